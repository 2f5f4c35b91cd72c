//! What only our own record layer has: exact output, bounds of what it keeps; and a peer that may send anything, for other tests.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};
use tokio_rustls::TlsConnector;
use weft_core::api::proxy_config::TlsRecords::Weft;

use super::{
    open::{MAX_TICKETS, MAX_WITHOUT_DATA},
    seal::SEALED,
    *,
};
use crate::tls::{
    ALPN_HTTP, handshake,
    session::tests::{WAIT, content, name, pair, read_all, sockets, tls},
};

/// A peer that sends what it likes.
impl WeftSession {
    /// A record of this type and content, sealed as the next.
    pub(in crate::tls::session) fn seal_raw(&mut self, kind: ContentType, content: &[u8]) -> Vec<u8> {
        let mut record = vec![0; content.len() + OVERHEAD];
        let length = self.send_key.seal(kind, content.len(), Some(content), &mut record).unwrap();
        record.truncate(length);
        record
    }

    /// Sends a record as it is.
    pub(in crate::tls::session) async fn send_raw(&mut self, kind: ContentType, content: &[u8]) {
        let record = self.seal_raw(kind, content);
        self.tcp.write_all(&record).await.unwrap();
    }

    /// Sends the request for a key update, or the announcement of one, and seals with the next key from then on.
    pub(in crate::tls::session) async fn send_key_update(&mut self, requests: bool) {
        self.send_raw(ContentType::Handshake, &[24, 0, 0, 1, requests.into()]).await;
        self.renew_send_key();
    }

    pub(in crate::tls::session) fn renew_send_key(&mut self) {
        self.send_key = self.keys.next_send_key().unwrap();
    }

    pub(in crate::tls::session) fn set_records_per_key(&mut self, records: u64) {
        self.records_per_key = records;
    }

    /// Bytes read ahead that are kept.
    pub(in crate::tls::session) fn kept(&self) -> usize {
        self.ciphertext.capacity()
    }
}

#[tokio::test]
async fn before_http_the_rest_of_the_handshake_leaves_with_the_first_write_or_flush() {
    let tls = tls(Weft);
    let (config, _) = tls.client(&[ALPN_HTTP], ([127, 0, 0, 1], 1).into(), &tls.identity);
    for flush in [false, true] {
        let (client, server) = sockets().await;
        let (client, server) = tokio::join!(
            TlsConnector::from(config.clone()).connect(name(), client),
            handshake::accept(Weft, tls.server.clone(), server, Bytes::new())
        );
        let (client, mut server) = (client.unwrap(), server.unwrap().session);
        let (tcp, mut seen) = (client.get_ref().0, [0; 8192]);
        let ticket = server.weft().output.len();
        assert!(ticket > 100);
        timeout(Duration::from_millis(50), tcp.peek(&mut seen)).await.unwrap_err();
        let expected = if flush {
            server.flush().await.unwrap();
            ticket
        } else {
            server.write_all(b"hello").await.unwrap();
            ticket + OVERHEAD + 5
        };
        assert_eq!(timeout(WAIT, tcp.peek(&mut seen)).await.unwrap().unwrap(), expected, "in one piece");
        server.flush().await.unwrap();
        assert!(server.weft().output.is_empty());
    }
}

#[tokio::test]
async fn a_peer_that_asks_for_our_new_key_gets_it_before_our_next_bytes() {
    let (mut client, mut server) = pair([Weft, Weft]).await;
    for round in 0..3 {
        client.weft().send_key_update(true).await;
        client.write_all(b"new key?").await.unwrap();
        let mut read = [0; 8];
        server.read_exact(&mut read).await.unwrap();
        assert!(server.weft().key_update_requested, "{round}");
        server.write_all(b"here").await.unwrap();
        assert!(!server.weft().key_update_requested && server.weft().send_key.sequence() == 1, "{round}");
        client.read_exact(&mut read[..4]).await.unwrap();
        assert_eq!(&read[..4], b"here");
    }
}

#[tokio::test]
async fn so_many_tickets_are_kept() {
    let (mut client, mut server) = pair([Weft, Weft]).await;
    // Lifetime, age, nonce, ticket, extensions (RFC 8446 §4.6.1).
    let ticket = |nonce: u8| [&[4, 0, 0, 17, 0, 0, 14, 16, 0, 0, 0, 1, 1, nonce, 0, 3, 1, 2, 3, 0, 0][..]].concat();
    for nonce in 0..20 {
        server.weft().send_raw(ContentType::Handshake, &ticket(nonce)).await;
    }
    server.weft().send_raw(ContentType::ApplicationData, b"x").await;
    assert_eq!(client.read_u8().await.unwrap(), b'x');
    assert_eq!(client.weft().tickets, MAX_TICKETS);
}

#[tokio::test]
async fn records_that_bring_nothing_are_counted_from_the_last_with_data() {
    let (mut client, mut server) = pair([Weft, Weft]).await;
    for _ in 0..3 {
        for _ in 0..MAX_WITHOUT_DATA {
            client.weft().send_raw(ContentType::ApplicationData, b"").await;
        }
        client.weft().send_raw(ContentType::ApplicationData, b"x").await;
    }
    server.read_exact(&mut [0; 3]).await.unwrap();
    for _ in 0..=MAX_WITHOUT_DATA {
        client.weft().send_key_update(false).await;
    }
    let error = read_all(&mut server).await.1.unwrap_err();
    let fault = crate::stream::tls_error(&error).unwrap();
    assert_eq!(*fault, rustls::PeerMisbehaved::TooManyEmptyFragments.into());
}

#[tokio::test]
async fn little_is_kept_for_a_reader_that_does_not_read() {
    let (mut client, mut server) = pair([Weft, Weft]).await;
    let content = content();
    let mut taken = 0;
    while let Ok(count) = timeout(Duration::from_millis(200), client.write(&content[taken..])).await {
        taken += count.unwrap();
        assert!(taken < content.len(), "the socket has no end");
    }
    assert!(client.weft().output.len() - client.weft().written <= SEALED);
    let mut read = vec![0; taken];
    let (sent, _) = tokio::join!(client.flush(), server.read_exact(&mut read));
    sent.unwrap();
    assert!(read == content[..taken]);
    let (client, server) = (client.weft(), server.weft());
    assert!(client.output.is_empty() && server.ciphertext.is_empty() && server.plaintext.is_empty());
}

#[tokio::test]
async fn bytes_behind_close_notify_are_not_kept() {
    let (mut client, mut server) = pair([Weft, Weft]).await;
    client.shutdown().await.unwrap();
    assert_eq!(read_all(&mut server).await.1.unwrap(), 0);
    assert_eq!(server.weft().kept(), 0);
    server.write_all(b"answer").await.unwrap();
    server.weft().queue_alert(1, AlertDescription::CloseNotify);
    server.weft().output.extend_from_slice(&[b'x'; 1000]);
    server.shutdown().await.unwrap();
    assert_eq!(read_all(&mut client).await.0, b"answer");
    assert_eq!(client.weft().kept(), 0);
}
