//! Handshakes of the mesh: rustls speaks, this carries its bytes, and makes a [`Session`] of what was agreed on.
//! Invariant: rustls sees one record after the other and none behind the handshake, which is the session's.
//! What a side says last (the client's Finished, the server's ticket) leaves with the first bytes of the session, where it is
//! sure that there are some: each side of HTTP/2 begins with its settings.
//!
//! # Defaults
//! What rustls has seen and still needs, a message in many records: 64 KiB. What is left to the session: 4 KiB.

use std::{io, sync::Arc};

use bytes::{Buf, Bytes, BytesMut};
use rustls::{
    ClientConfig, CommonState, Error, ExtractedSecrets, InvalidMessage, ServerConfig,
    client::{ClientConnectionData, UnbufferedClientConnection},
    pki_types::ServerName,
    server::{ServerConnectionData, UnbufferedServerConnection},
    unbuffered::{ConnectionState, EncodeError, EncodeTlsData, UnbufferedStatus},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{
    ALPN_HTTP,
    record::{HEADER, MAX_RECORD},
    session::{Keys, MAX_LAST_WORDS, Session},
    svid::SvidError,
    verify::{self, Peer},
};

/// Room to read into, in bytes: a flight is about 1 KiB without certificates of others.
const ROOM: usize = 4 * 1024;

/// Most that a message may take on the wire, in bytes. rustls bounds messages, but not the records that they come in.
const MAX_SHOWN: usize = 64 * 1024;

/// A finished handshake.
#[derive(Debug)]
pub(crate) struct Shaken {
    pub(crate) session: Box<Session>,
    /// Who the peer is, or why it cannot be anybody.
    pub(crate) peer: Result<Peer, SvidError>,
    /// How it went, as metrics name it.
    pub(crate) kind: &'static str,
    /// What is spoken on it.
    pub(crate) alpn: Option<Vec<u8>>,
}

/// Answers a handshake. `first`: what was read of it already.
/// Errors: IO, or of rustls inside one of the kind `InvalidData`; the peer was told so.
pub(crate) async fn accept(config: Arc<ServerConfig>, tcp: TcpStream, first: Bytes) -> io::Result<Shaken> {
    shake(UnbufferedServerConnection::new(config).map_err(invalid)?, tcp, first).await
}

/// Begins a handshake. Errors: as those of [`accept`].
pub(crate) async fn connect(
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    tcp: TcpStream,
) -> io::Result<Shaken> {
    shake(UnbufferedClientConnection::new(config, name).map_err(invalid)?, tcp, Bytes::new()).await
}

/// Either side of a handshake.
trait Side {
    type Data;
    fn process<'a>(&'a mut self, incoming: &'a mut [u8]) -> UnbufferedStatus<'a, 'a, Self::Data>;
    fn state(&self) -> &CommonState;
    fn finish(self) -> Result<(ExtractedSecrets, Keys), Error>;
}

macro_rules! side {
    ($connection:ty, $data:ty, $keys:path) => {
        impl Side for $connection {
            type Data = $data;
            fn process<'a>(&'a mut self, incoming: &'a mut [u8]) -> UnbufferedStatus<'a, 'a, Self::Data> {
                self.process_tls_records(incoming)
            }
            fn state(&self) -> &CommonState {
                self
            }
            fn finish(self) -> Result<(ExtractedSecrets, Keys), Error> {
                self.dangerous_into_kernel_connection().map(|(secrets, keys)| (secrets, $keys(keys)))
            }
        }
    };
}
side!(UnbufferedServerConnection, ServerConnectionData, Keys::Server);
side!(UnbufferedClientConnection, ClientConnectionData, Keys::Client);

/// What is to be done next.
enum Step {
    Again,
    Write,
    Read,
    Done,
    Fail(Error),
}

async fn shake(mut side: impl Side, mut tcp: TcpStream, first: Bytes) -> io::Result<Shaken> {
    let (mut incoming, mut outgoing) = (BytesMut::from(first), Vec::new());
    // Bytes that rustls was shown and may still need.
    let mut shown = 0;
    loop {
        let UnbufferedStatus { discard, state } = side.process(incoming.get_mut(..shown).unwrap_or_default());
        let step = match state {
            Ok(ConnectionState::EncodeTlsData(data)) => {
                encode(data, &mut outgoing);
                Step::Again
            }
            Ok(ConnectionState::TransmitTlsData(data)) => {
                data.done();
                Step::Write
            }
            Ok(ConnectionState::BlockedHandshake) => Step::Read,
            Ok(ConnectionState::WriteTraffic(_)) => Step::Done,
            Ok(_) => Step::Fail(Error::HandshakeNotComplete),
            Err(error) => Step::Fail(error),
        };
        incoming.advance(discard);
        shown -= discard;
        match step {
            Step::Again => {}
            Step::Write if !side.state().is_handshaking() && outgoing.len() <= MAX_LAST_WORDS => {}
            Step::Write => {
                tcp.write_all(&outgoing).await?;
                outgoing.clear();
            }
            Step::Read => {
                while shown == seen(&incoming, shown).map_err(invalid)? {
                    incoming.reserve(ROOM);
                    if tcp.read_buf(&mut incoming).await? == 0 {
                        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "closed during the TLS handshake"));
                    }
                }
                shown = seen(&incoming, shown).map_err(invalid)?;
            }
            Step::Done if shown == 0 && !side.state().is_handshaking() => break,
            Step::Done => return Err(invalid(Error::HandshakeNotComplete)),
            Step::Fail(error) => {
                // Asked once more it gives the alert; asked again it would look again at what it has found wrong.
                let last = side.process(incoming.get_mut(..shown).unwrap_or_default());
                if let Ok(ConnectionState::EncodeTlsData(data)) = last.state {
                    encode(data, &mut outgoing);
                }
                // Not waited for: the peer need not listen.
                let _told = tcp.try_write(&outgoing);
                return Err(invalid(error));
            }
        }
    }
    let state = side.state();
    let (peer, kind) = (verify::peer(state), verify::kind(state));
    let alpn = state.alpn_protocol().map(<[u8]>::to_vec);
    let (secrets, keys) = side.finish().map_err(invalid)?;
    let mut session = Box::new(Session::new(tcp, secrets, keys, incoming.to_vec(), outgoing).map_err(invalid)?);
    if alpn.as_deref() != Some(ALPN_HTTP) {
        session.flush().await?;
    }
    Ok(Shaken { session, peer, kind, alpn })
}

/// Where the record ends that follows what was shown, or no farther where not all of it has come. All that has come where it is
/// of no known type: rustls says so.
/// Errors: a record or a message that is too long.
fn seen(incoming: &[u8], shown: usize) -> Result<usize, Error> {
    let bytes = incoming.get(shown..).unwrap_or_default();
    let Some((&[kind, _, _, high, low], rest)) = bytes.split_first_chunk::<HEADER>() else { return Ok(shown) };
    if !(20..=23).contains(&kind) {
        return Ok(incoming.len());
    }
    let length = usize::from(u16::from_be_bytes([high, low]));
    if HEADER + length > MAX_RECORD {
        return Err(Error::PeerSentOversizedRecord);
    }
    let end = shown + HEADER + length;
    if shown > 0 && end > MAX_SHOWN {
        return Err(InvalidMessage::HandshakePayloadTooLarge.into());
    }
    Ok(if rest.len() < length { shown } else { end })
}

fn encode<T>(mut data: EncodeTlsData<'_, T>, outgoing: &mut Vec<u8>) {
    let end = outgoing.len();
    // Asked with no room it says how much it needs.
    if let Err(EncodeError::InsufficientSize(needs)) = data.encode(&mut []) {
        outgoing.resize(end + needs.required_size, 0);
        let encoded = data.encode(outgoing.get_mut(end..).unwrap_or_default());
        debug_assert!(encoded.is_ok(), "{encoded:?}");
    }
}

fn invalid(error: Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
