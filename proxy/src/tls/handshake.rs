//! Handshakes of the mesh: rustls decides, this carries its bytes, and makes a [`Session`] of what was agreed on.
//! With [`TlsRecords::Rustls`] the session keeps rustls' connection. With [`TlsRecords::Weft`] it takes over the keys.
//! Invariant of the latter: rustls sees one record after the other and none behind the handshake, which is the session's.
//! The last bytes of a side (the client's Finished, the server's ticket) leave with the first bytes of the session, where it is
//! sure that there are some: each side of HTTP/2 begins with its settings.
//!
//! # Defaults
//! A handshake message in many records: 64 KiB. What is left to the session to send: 4 KiB.

use std::{future::poll_fn, io, sync::Arc};

use bytes::{Buf, Bytes, BytesMut};
use rustls::{
    ClientConfig, ClientConnection, CommonState, Connection, Error, ExtractedSecrets, InvalidMessage, ServerConfig,
    ServerConnection,
    client::{ClientConnectionData, UnbufferedClientConnection},
    pki_types::ServerName,
    server::{ServerConnectionData, UnbufferedServerConnection},
    unbuffered::{ConnectionState, EncodeError, EncodeTlsData, UnbufferedStatus},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use weft_core::api::proxy_config::TlsRecords;

use super::{
    ALPN_HTTP,
    record::{HEADER, MAX_RECORD},
    session::{
        Session,
        buffered::BufferedSession,
        weft::{Keys, MAX_HANDSHAKE_TAIL, WeftSession},
    },
    svid::SvidError,
    verify::{self, Peer},
};

/// Room for a read, in bytes: a flight is about 1 KiB without intermediate certificates.
const ROOM: usize = 4 * 1024;

/// Most bytes of a message on the wire. rustls bounds messages, but not the number of records that carry one.
const MAX_SHOWN: usize = 64 * 1024;

/// A finished handshake.
#[derive(Debug)]
pub(crate) struct Established {
    pub(crate) session: Session,
    /// The peer's identity, or why its certificate gives none.
    pub(crate) peer: Result<Peer, SvidError>,
    /// Full or resumed, as metrics name it.
    pub(crate) kind: &'static str,
    /// The protocol agreed on.
    pub(crate) alpn: Option<Vec<u8>>,
}

/// Answers a handshake. `first`: what was read of it already.
/// Errors: IO, or of rustls inside one of the kind `InvalidData`; the peer was told so.
pub(crate) async fn accept(
    records: TlsRecords,
    config: Arc<ServerConfig>,
    tcp: TcpStream,
    first: Bytes,
) -> io::Result<Established> {
    match records {
        TlsRecords::Weft => {
            handshake_unbuffered(UnbufferedServerConnection::new(config).map_err(invalid)?, tcp, first).await
        }
        TlsRecords::Rustls => {
            handshake_buffered(ServerConnection::new(config).map_err(invalid)?.into(), tcp, first).await
        }
    }
}

/// Begins a handshake. Errors: as those of [`accept`].
pub(crate) async fn connect(
    records: TlsRecords,
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    tcp: TcpStream,
) -> io::Result<Established> {
    match records {
        TlsRecords::Weft => {
            handshake_unbuffered(UnbufferedClientConnection::new(config, name).map_err(invalid)?, tcp, Bytes::new())
                .await
        }
        TlsRecords::Rustls => {
            let connection = ClientConnection::new(config, name).map_err(invalid)?;
            handshake_buffered(connection.into(), tcp, Bytes::new()).await
        }
    }
}

/// A handshake whose bytes rustls' own buffers hold.
async fn handshake_buffered(connection: Connection, tcp: TcpStream, first: Bytes) -> io::Result<Established> {
    let mut session = Box::new(BufferedSession::new(connection, tcp, first));
    poll_fn(|cx| session.poll_handshake(cx)).await?;
    let (peer, kind, alpn) = outcome(session.state());
    finish(Established { session: Session::Rustls(session), peer, kind, alpn }).await
}

/// What a finished handshake says.
fn outcome(state: &CommonState) -> (Result<Peer, SvidError>, &'static str, Option<Vec<u8>>) {
    (verify::peer(state), verify::kind(state), state.alpn_protocol().map(<[u8]>::to_vec))
}

/// Sends what is left of the handshake, unless bytes of the session follow soon.
async fn finish(mut established: Established) -> io::Result<Established> {
    if established.alpn.as_deref() != Some(ALPN_HTTP) {
        established.session.flush().await?;
    }
    Ok(established)
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

/// The next step of a handshake.
enum Step {
    Again,
    Write,
    Read,
    Done,
    Fail(Error),
}

async fn handshake_unbuffered(mut side: impl Side, mut tcp: TcpStream, first: Bytes) -> io::Result<Established> {
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
            // The last flight is left to the session, unless it is long.
            Step::Write if !side.state().is_handshaking() && outgoing.len() <= MAX_HANDSHAKE_TAIL => {}
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
                // The next call returns the alert; a further one would process the faulty bytes again.
                let last = side.process(incoming.get_mut(..shown).unwrap_or_default());
                if let Ok(ConnectionState::EncodeTlsData(data)) = last.state {
                    encode(data, &mut outgoing);
                }
                // Not waited for: the peer may not read.
                let _told = tcp.try_write(&outgoing);
                return Err(invalid(error));
            }
        }
    }
    let (peer, kind, alpn) = outcome(side.state());
    let (secrets, keys) = side.finish().map_err(invalid)?;
    let session = Box::new(WeftSession::new(tcp, secrets, keys, incoming.to_vec(), outgoing).map_err(invalid)?);
    finish(Established { session: Session::Weft(session), peer, kind, alpn }).await
}

/// The end of the record behind the bytes that were shown, or `shown` if it is incomplete. For a record of an unknown type the
/// end of all bytes: rustls reports it.
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
    // With no room it returns the size that it needs.
    if let Err(EncodeError::InsufficientSize(needs)) = data.encode(&mut []) {
        outgoing.resize(end + needs.required_size, 0);
        let encoded = data.encode(outgoing.get_mut(end..).unwrap_or_default());
        debug_assert!(encoded.is_ok(), "{encoded:?}");
    }
}

fn invalid(error: Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
