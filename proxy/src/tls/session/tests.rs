//! Sessions of both record layers over real sockets: against each other, against rustls and OpenSSL, against a hostile peer.

mod bytes;
mod end;
mod hostile;
mod relay;

use std::{net::Ipv4Addr, time::Duration};

use ::bytes::Bytes;
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    time::timeout,
};
use weft_core::api::proxy_config::TlsRecords::{self, Rustls, Weft};

use super::*;
use crate::tls::{ALPN_TCP, MeshTls, handshake, provider, tests::Authority};

pub(super) const WAIT: Duration = Duration::from_secs(20);

const BOTH: [TlsRecords; 2] = [Weft, Rustls];
/// The record layers of a client and a server.
const PAIRS: [[TlsRecords; 2]; 4] = [[Weft, Weft], [Weft, Rustls], [Rustls, Weft], [Rustls, Rustls]];

pub(super) async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap());
    let (client, server) = tokio::join!(client, listener.accept());
    (client.unwrap(), server.unwrap().0)
}

/// Of both sides.
pub(super) fn tls(records: TlsRecords) -> MeshTls {
    Authority::new().tls("order", records, provider())
}

pub(super) fn client_config(tls: &MeshTls) -> Arc<rustls::ClientConfig> {
    tls.client(&[ALPN_TCP], ([127, 0, 0, 1], 1).into(), &tls.identity).0
}

pub(super) fn name() -> ServerName<'static> {
    ServerName::IpAddress(Ipv4Addr::LOCALHOST.into())
}

/// The two ends of one connection, the client's first.
pub(super) async fn pair([client, server]: [TlsRecords; 2]) -> (Session, Session) {
    // The keys are extracted only on the side that needs them.
    let authority = Authority::new();
    let (ours, theirs) = (authority.tls("order", client, provider()), authority.tls("order", server, provider()));
    let (client_tcp, server_tcp) = sockets().await;
    let (client, server) = tokio::join!(
        handshake::connect(client, client_config(&ours), name(), client_tcp),
        handshake::accept(server, theirs.server.clone(), server_tcp, Bytes::new())
    );
    (client.unwrap().session, server.unwrap().session)
}

impl Session {
    /// Our own kind.
    pub(super) fn weft(&mut self) -> &mut WeftSession {
        match self {
            Self::Weft(session) => session,
            Self::Rustls(_) => panic!("rustls' records"),
        }
    }

    /// Changes the keys often: before every so many records, or once at the beginning.
    fn change_keys(&mut self, records: u64) {
        match self {
            Self::Weft(session) => session.set_records_per_key(records),
            Self::Rustls(session) => session.refresh_key(),
        }
    }
}

/// A long body.
pub(super) fn content() -> Vec<u8> {
    (0..3_000_000u32).flat_map(|number| number.to_le_bytes()).collect()
}

/// Sends all in pieces of many sizes, also many at once, and then close_notify.
async fn send<W: AsyncWrite + Unpin>(mut to: W, content: &[u8]) -> W {
    let mut rest = content;
    for round in 0.. {
        let size = [1, 70_000, 16_384, 16_385, 5, 300_000][round % 6];
        let (piece, behind) = rest.split_at(size.min(rest.len()));
        if round % 2 == 0 {
            to.write_all(piece).await.unwrap();
        } else {
            let mut parts: Vec<_> = piece.chunks(size / 3 + 1).map(io::IoSlice::new).collect();
            let mut parts = parts.as_mut_slice();
            while !parts.is_empty() {
                let count = to.write_vectored(parts).await.unwrap();
                io::IoSlice::advance_slices(&mut parts, count);
            }
        }
        rest = behind;
        if rest.is_empty() {
            break;
        }
    }
    to.shutdown().await.unwrap();
    to
}

/// Reads to the end with buffers of many sizes.
async fn receive<R: AsyncRead + Unpin>(mut from: R) -> (R, Vec<u8>) {
    let mut all = Vec::new();
    let mut buffer = vec![0; 300_000];
    for round in 0.. {
        let size = [1, 100, 20_000, 300_000, 16_384, 131_072][round % 6];
        match from.read(&mut buffer[..size]).await.unwrap() {
            0 => break,
            count => all.extend_from_slice(&buffer[..count]),
        }
    }
    (from, all)
}

/// How much two record layers exchange: ours with ours 12 MB.
fn amount(records: [TlsRecords; 2]) -> usize {
    if records == [Weft, Weft] { 12_000_000 } else { 2_000_000 }
}

/// So many bytes in both directions at once.
async fn exchange<A, B>(a: A, b: B, amount: usize)
where
    A: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    B: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    async fn one<S: AsyncRead + AsyncWrite>(stream: S, content: Vec<u8>) -> Vec<u8> {
        let (read, write) = tokio::io::split(stream);
        let ((_, read), _) = tokio::join!(receive(read), send(write, &content));
        read
    }
    let content = content()[..amount].to_vec();
    let both = async { tokio::join!(tokio::spawn(one(a, content.clone())), tokio::spawn(one(b, content.clone()))) };
    let (a, b) = timeout(WAIT, both).await.unwrap();
    assert!(a.unwrap() == content);
    assert!(b.unwrap() == content);
}

/// All that is read from a session, and how that ends.
pub(super) async fn read_all<S: AsyncRead + Unpin>(session: &mut S) -> (Vec<u8>, io::Result<usize>) {
    let mut all = Vec::new();
    let result = timeout(WAIT, session.read_to_end(&mut all)).await.expect("an end");
    (all, result)
}
