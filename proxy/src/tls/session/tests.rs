//! Sessions over real sockets: against each other, against rustls' own records, against OpenSSL, against a hostile peer.

use std::{net::Ipv4Addr, process::Stdio, sync::atomic::AtomicUsize, time::Duration};

use proptest::prelude::*;
use rustls::pki_types::ServerName;
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, Interest},
    net::{
        TcpListener,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::{JoinSet, yield_now},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;
use crate::{
    stream::Stream,
    tcp::{self, RelayError},
    tls::{ALPN_HTTP, ALPN_TCP, MeshTls, handshake, provider, tests::Authority},
};

const WAIT: Duration = Duration::from_secs(20);

async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap());
    let (client, server) = tokio::join!(client, listener.accept());
    (client.unwrap(), server.unwrap().0)
}

fn tls() -> MeshTls {
    Authority::new().tls("order", provider())
}

fn client_config(tls: &MeshTls) -> Arc<rustls::ClientConfig> {
    tls.client(ALPN_TCP, ([127, 0, 0, 1], 1).into(), &tls.identity).0
}

fn name() -> ServerName<'static> {
    ServerName::IpAddress(Ipv4Addr::LOCALHOST.into())
}

/// Two ends of one connection, the client's first.
async fn pair() -> (Session, Session) {
    let tls = tls();
    let (client, server) = sockets().await;
    let (client, server) = tokio::join!(
        handshake::connect(client_config(&tls), name(), client),
        handshake::accept(tls.server.clone(), server, Bytes::new())
    );
    (*client.unwrap().session, *server.unwrap().session)
}

/// A body, and in what pieces it is written.
fn content() -> Vec<u8> {
    (0..3_000_000u32).flat_map(|number| number.to_le_bytes()).collect()
}

/// Sends all in pieces of many sizes, also many at once, and says goodbye.
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

/// Both directions at once.
async fn exchange<A, B>(a: A, b: B)
where
    A: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    B: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    async fn one<S: AsyncRead + AsyncWrite>(stream: S) -> Vec<u8> {
        let (read, write) = tokio::io::split(stream);
        let content = content();
        let ((_, read), _) = tokio::join!(receive(read), send(write, &content));
        read
    }
    let both = async { tokio::join!(tokio::spawn(one(a)), tokio::spawn(one(b))) };
    let (a, b) = timeout(WAIT, both).await.unwrap();
    assert!(a.unwrap() == content());
    assert!(b.unwrap() == content());
}

#[tokio::test]
async fn bytes_of_any_size_pass_both_ways_and_keys_change_on_the_way() {
    let (client, server) = pair().await;
    exchange(client, server).await;
    let (mut client, mut server) = pair().await;
    (client.rekey, server.rekey) = (3, 50);
    exchange(client, server).await;
}

/// Two workloads whose connections two proxies relay over the mesh, and those proxies.
async fn relayed(rekey: u64) -> ([TcpStream; 2], JoinSet<Result<(), RelayError>>) {
    let (client, server) = pair().await;
    let (mut workloads, mut proxies) = (Vec::new(), JoinSet::new());
    for mut session in [client, server] {
        session.rekey = rekey;
        let (workload, plain) = sockets().await;
        workloads.push(workload);
        let (plain, mesh) = (Stream::tcp(plain, Bytes::new()), Stream::Tls(Box::new(session)));
        proxies.spawn(async { tcp::relay(plain, mesh, WAIT).await.1 });
    }
    (workloads.try_into().unwrap(), proxies)
}

#[tokio::test]
async fn a_relay_carries_bytes_of_any_size_both_ways_while_keys_change() {
    for rekey in [REKEY, 3, 50] {
        let ([one, other], mut proxies) = relayed(rekey).await;
        exchange(one, other).await;
        while let Some(ended) = timeout(WAIT, proxies.join_next()).await.unwrap() {
            ended.unwrap().unwrap();
        }
    }
}

#[tokio::test]
async fn a_workload_that_does_not_read_stops_the_other_and_nothing_is_lost() {
    let ([mut one, mut other], _proxies) = relayed(REKEY).await;
    let content: Vec<u8> = std::iter::repeat_with(content).take(4).flatten().collect();
    let mut taken = 0;
    while let Ok(count) = timeout(Duration::from_millis(500), one.write(&content[taken..])).await {
        taken += count.unwrap();
        assert!(taken < content.len(), "the sockets have no end");
    }
    // The other direction goes on meanwhile.
    other.write_all(b"still here").await.unwrap();
    let mut heard = [0; 10];
    timeout(WAIT, one.read_exact(&mut heard)).await.unwrap().unwrap();
    assert_eq!(&heard, b"still here");
    one.shutdown().await.unwrap();
    let mut read = Vec::new();
    timeout(WAIT, other.read_to_end(&mut read)).await.unwrap().unwrap();
    assert!(read == content[..taken]);
}

/// What a relay stands between, and its two ends: a workload for which the kernel keeps little, and a peer in the mesh.
async fn apart() -> (TcpStream, TcpStream, Stream, Session) {
    let (session, peer) = pair().await;
    let (workload, plain) = sockets().await;
    SockRef::from(&plain).set_send_buffer_size(4 * 1024).unwrap();
    SockRef::from(&workload).set_recv_buffer_size(4 * 1024).unwrap();
    (workload, plain, Stream::Tls(Box::new(session)), peer)
}

fn kind(ended: Result<(), RelayError>) -> io::ErrorKind {
    match ended {
        Err(RelayError::Io(error)) => error.kind(),
        ended => panic!("{ended:?}"),
    }
}

#[tokio::test]
async fn a_workload_that_breaks_off_ends_the_relay_behind_its_last_bytes() {
    let (mut workload, plain, mesh, mut peer) = apart().await;
    workload.write_all(b"last words").await.unwrap();
    SockRef::from(&workload).set_linger(Some(Duration::ZERO)).unwrap();
    drop(workload);
    while !plain.ready(Interest::READABLE).await.unwrap().is_read_closed() {
        yield_now().await;
    }
    let ((heard, result), (_, ended)) = tokio::join!(read_all(&mut peer), tcp::relay(plain, mesh, WAIT));
    assert_eq!(heard, b"last words");
    result.expect_err("no farewell");
    assert_eq!(kind(ended), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_workload_that_reads_slowly_gets_all_that_a_peer_sent_before_it_broke_off() {
    for fault in [false, true] {
        let (mut workload, plain, mesh, mut peer) = apart().await;
        let content = &content()[..130_000];
        peer.write_all(content).await.unwrap();
        peer.flush().await.unwrap();
        if fault {
            send_raw(&mut peer, ContentType::Alert, &[2, AlertDescription::InternalError.into()]).await;
        } else {
            // No close_notify before it.
            peer.tcp.shutdown().await.unwrap();
        }
        let read = async {
            let mut all = Vec::new();
            timeout(WAIT, workload.read_to_end(&mut all)).await.unwrap().unwrap();
            all
        };
        let (read, (_, ended)) = tokio::join!(read, tcp::relay(plain, mesh, WAIT));
        assert!(read == content, "{} bytes of {}", read.len(), content.len());
        let told = if fault { io::ErrorKind::InvalidData } else { io::ErrorKind::UnexpectedEof };
        assert_eq!(kind(ended), told);
    }
}

#[tokio::test]
async fn rustls_own_records_are_understood_and_understand_ours() {
    let tls = tls();
    let (client, server) = sockets().await;
    let (client, server) = tokio::join!(
        TlsConnector::from(client_config(&tls)).connect(name(), client),
        handshake::accept(tls.server.clone(), server, Bytes::new())
    );
    let (mut client, mut server) = (client.unwrap(), server.unwrap().session);
    client.get_mut().1.refresh_traffic_keys().unwrap();
    server.rekey = 20;
    exchange(client, *server).await;

    let (client, server) = sockets().await;
    let (client, server) = tokio::join!(
        handshake::connect(client_config(&tls), name(), client),
        TlsAcceptor::from(tls.server.clone()).accept(server)
    );
    let (client, mut server) = (client.unwrap().session, server.unwrap());
    server.get_mut().1.refresh_traffic_keys().unwrap();
    exchange(*client, server).await;
}

#[tokio::test]
async fn before_http_the_last_words_of_a_handshake_leave_with_the_first_write_or_flush() {
    let tls = tls();
    let (config, _) = tls.client(ALPN_HTTP, ([127, 0, 0, 1], 1).into(), &tls.identity);
    for flush in [false, true] {
        let (client, server) = sockets().await;
        let (client, server) = tokio::join!(
            TlsConnector::from(config.clone()).connect(name(), client),
            handshake::accept(tls.server.clone(), server, Bytes::new())
        );
        let (client, mut server) = (client.unwrap(), *server.unwrap().session);
        let (tcp, mut seen) = (client.get_ref().0, [0; 8192]);
        let ticket = server.unwritten.len();
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
        assert!(server.unwritten.is_empty());
    }
}

#[tokio::test]
async fn a_peer_that_asks_for_our_new_key_gets_it_before_our_next_bytes() {
    let (mut client, mut server) = pair().await;
    for round in 0..3 {
        let asks = [24, 0, 0, 1, 1];
        send_raw(&mut client, ContentType::Handshake, &asks).await;
        client.seals = client.keys.next_of_ours().unwrap();
        client.write_all(b"new key?").await.unwrap();
        let mut read = [0; 8];
        server.read_exact(&mut read).await.unwrap();
        assert!(server.owes_key, "{round}");
        server.write_all(b"here").await.unwrap();
        assert!(!server.owes_key && server.seals.sequence() == 1, "{round}");
        client.read_exact(&mut read[..4]).await.unwrap();
        assert_eq!(&read[..4], b"here");
    }
}

/// Sends a record as it is.
async fn send_raw(session: &mut Session, kind: ContentType, content: &[u8]) {
    let mut record = vec![0; content.len() + OVERHEAD];
    let length = session.seals.seal(kind, content.len(), Some(content), &mut record).unwrap();
    session.tcp.write_all(&record[..length]).await.unwrap();
}

/// What a session makes of what is read from it, up to its end.
async fn read_all(session: &mut Session) -> (Vec<u8>, io::Result<usize>) {
    let mut all = Vec::new();
    let result = timeout(WAIT, session.read_to_end(&mut all)).await.expect("an end");
    (all, result)
}

/// Does something to a connection as its hostile client. Returns what the server reads and why it ends, and what the client hears.
async fn hostile(act: impl AsyncFnOnce(&mut Session)) -> (Vec<u8>, Error, Error) {
    let (mut client, mut server) = pair().await;
    act(&mut client).await;
    let (read, result) = read_all(&mut server).await;
    let error = result.unwrap_err();
    let fault = crate::stream::tls_error(&error).unwrap_or_else(|| panic!("{error}")).clone();
    assert!(server.read(&mut [0; 10]).await.is_err(), "the fault stays");
    assert_eq!(server.write(b"more").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    let heard = read_all(&mut client).await.1.unwrap_err();
    (read, fault, crate::stream::tls_error(&heard).unwrap_or_else(|| panic!("{heard}")).clone())
}

fn alerted(description: AlertDescription) -> Error {
    Error::AlertReceived(description)
}

#[tokio::test]
async fn what_is_no_record_of_the_peers_ends_the_connection_and_what_came_before_it_is_read() {
    let changed = hostile(async |client| {
        send_raw(client, ContentType::ApplicationData, b"good").await;
        let mut record = [0; 40];
        let length = client.seals.seal(ContentType::ApplicationData, 3, Some(b"bad"), &mut record).unwrap();
        record[7] ^= 1;
        client.tcp.write_all(&record[..length]).await.unwrap();
    });
    let expected = (b"good".to_vec(), Error::DecryptError, alerted(AlertDescription::BadRecordMac));
    assert_eq!(changed.await, expected);

    let replayed = hostile(async |client| {
        let mut record = [0; 40];
        let length = client.seals.seal(ContentType::ApplicationData, 4, Some(b"once"), &mut record).unwrap();
        client.tcp.write_all(&[&record[..length], &record[..length]].concat()).await.unwrap();
    });
    assert_eq!(replayed.await, (b"once".to_vec(), Error::DecryptError, alerted(AlertDescription::BadRecordMac)));

    let dropped = hostile(async |client| {
        let mut record = [0; 40];
        client.seals.seal(ContentType::ApplicationData, 4, Some(b"lost"), &mut record).unwrap();
        send_raw(client, ContentType::ApplicationData, b"next").await;
    });
    assert_eq!(dropped.await, (vec![], Error::DecryptError, alerted(AlertDescription::BadRecordMac)));

    let long = hostile(async |client| client.tcp.write_all(&[23, 3, 3, 0x41, 1]).await.unwrap());
    assert_eq!(long.await, (vec![], Error::PeerSentOversizedRecord, alerted(AlertDescription::RecordOverflow)));

    let content = hostile(async |client| {
        let mut record = vec![0; MAX_CONTENT + 1 + OVERHEAD];
        let sealed = raw_record(client, &[vec![b'x'; MAX_CONTENT + 1], vec![23]].concat(), &mut record);
        client.tcp.write_all(sealed).await.unwrap();
    });
    assert_eq!(content.await, (vec![], Error::PeerSentOversizedRecord, alerted(AlertDescription::RecordOverflow)));

    for plaintext in
        [&[21, 3, 3, 0, 2, 1, 0][..], &[20, 3, 3, 0, 1, 1], &[22, 3, 3, 0, 1, 1], b"GET / HTTP/1.1\r\n\r\n"]
    {
        let (_, fault, heard) = hostile(async |client| client.tcp.write_all(plaintext).await.unwrap()).await;
        assert!(matches!(fault, Error::InappropriateMessage { .. }), "{fault:?}");
        assert_eq!(heard, alerted(AlertDescription::UnexpectedMessage));
    }
}

/// Seals what stands inside a record byte for byte: content, type and padding.
fn raw_record<'a>(session: &mut Session, inner: &[u8], place: &'a mut Vec<u8>) -> &'a [u8] {
    place.resize(inner.len() + 64, 0);
    // What `seal` takes for content and type is one sequence of bytes to the cipher.
    let (kind, content) = inner.split_last().unwrap();
    let length = session.seals.seal((*kind).into(), content.len(), Some(content), place).unwrap();
    &place[..length]
}

#[tokio::test]
async fn padding_is_taken_off_and_a_record_of_nothing_else_refused() {
    let (mut client, mut server) = pair().await;
    let mut place = Vec::new();
    for inner in [&b"abc\x17\0\0\0"[..], b"def\0\x17", b"\x17\0", &[&b"ghi\x17"[..], &[0; 200]].concat()] {
        let record = raw_record(&mut client, inner, &mut place).to_vec();
        client.tcp.write_all(&record).await.unwrap();
    }
    client.shutdown().await.unwrap();
    assert_eq!(read_all(&mut server).await.0, b"abcdef\0ghi");

    let (_, fault, heard) = hostile(async |client| {
        let record = raw_record(client, &[0; 20], &mut Vec::new()).to_vec();
        client.tcp.write_all(&record).await.unwrap();
    })
    .await;
    assert_eq!(fault, PeerMisbehaved::IllegalTlsInnerPlaintext.into());
    assert_eq!(heard, alerted(AlertDescription::UnexpectedMessage));
}

#[tokio::test]
async fn messages_of_the_handshake_that_have_no_place_are_refused() {
    use ContentType::{ApplicationData as Data, ChangeCipherSpec, Handshake};
    let ticket = [&[4, 0, 0, 13][..], &[0; 13]].concat();
    type Case<'a> = (&'a str, Vec<(ContentType, &'a [u8])>, fn(&Error) -> bool);
    let faults: [Case<'_>; 11] = [
        ("a client's ticket", vec![(Handshake, &ticket)], |fault| {
            matches!(fault, Error::InappropriateHandshakeMessage { .. })
        }),
        ("a ClientHello", vec![(Handshake, &[1, 0, 0, 1, 0])], |fault| {
            matches!(fault, Error::InappropriateHandshakeMessage { .. })
        }),
        ("none at all", vec![(Handshake, &[])], |fault| matches!(fault, Error::InvalidMessage(_))),
        ("a key of another kind", vec![(Handshake, &[24, 0, 0, 1, 2])], |fault| {
            matches!(fault, Error::InvalidMessage(_))
        }),
        ("too long", vec![(Handshake, &[24, 1, 0, 1])], |fault| matches!(fault, Error::InvalidMessage(_))),
        ("behind a new key", vec![(Handshake, &[24, 0, 0, 1, 0, 24])], |fault| {
            *fault == PeerMisbehaved::KeyEpochWithPendingFragment.into()
        }),
        ("an alert of nothing", vec![(ContentType::Alert, &[])], |fault| {
            *fault == InvalidMessage::InvalidEmptyPayload.into()
        }),
        ("nothing in the middle", vec![(Handshake, &[24, 0, 0]), (Data, b"")], |fault| {
            *fault == PeerMisbehaved::MessageInterleavedWithHandshakeMessage.into()
        }),
        ("data in the middle", vec![(Handshake, &[24, 0, 0]), (Data, b"x")], |fault| {
            *fault == PeerMisbehaved::MessageInterleavedWithHandshakeMessage.into()
        }),
        ("another type", vec![(ChangeCipherSpec, &[1])], |fault| matches!(fault, Error::InappropriateMessage { .. })),
        ("half an alert", vec![(ContentType::Alert, &[1])], |fault| matches!(fault, Error::InvalidMessage(_))),
    ];
    for (name, records, is_it) in faults {
        let (read, fault, _) = hostile(async |client| {
            for (kind, content) in records {
                send_raw(client, kind, content).await;
            }
        })
        .await;
        assert!(read.is_empty() && is_it(&fault), "{name}: {fault:?}");
    }
}

#[tokio::test]
async fn a_message_in_ever_more_records_is_not_waited_for() {
    let (mut client, server) = sockets().await;
    let tls = tls();
    let accepted = tokio::spawn(handshake::accept(tls.server.clone(), server, Bytes::new()));
    // A ClientHello of 65,520 bytes, one to a record: 393 KB on the wire, and with padding it could be 1 GB.
    client.write_all(&[22, 3, 1, 0, 4, 1, 0, 0xff, 0xf0]).await.unwrap();
    let records = [22, 3, 1, 0, 1, 0].repeat(65_000);
    client.write_all(&records[..60_000]).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!accepted.is_finished(), "so much may still be a message");
    client.write_all(&records[60_000..]).await.ok();
    let error = timeout(WAIT, accepted).await.unwrap().unwrap().unwrap_err();
    let fault = crate::stream::tls_error(&error).unwrap();
    assert_eq!(*fault, InvalidMessage::HandshakePayloadTooLarge.into());

    let (mut client, server) = sockets().await;
    client.write_all(&[22, 3, 1, 0x41, 1, 1]).await.unwrap();
    let error = timeout(WAIT, handshake::accept(tls.server.clone(), server, Bytes::new())).await.unwrap().unwrap_err();
    assert_eq!(crate::stream::tls_error(&error), Some(&Error::PeerSentOversizedRecord));
}

#[tokio::test]
async fn so_many_tickets_are_kept() {
    let (mut client, mut server) = pair().await;
    // Lifetime, age, nonce, ticket, extensions (RFC 8446 §4.6.1).
    let ticket = |nonce: u8| [&[4, 0, 0, 17, 0, 0, 14, 16, 0, 0, 0, 1, 1, nonce, 0, 3, 1, 2, 3, 0, 0][..]].concat();
    for nonce in 0..20 {
        send_raw(&mut server, ContentType::Handshake, &ticket(nonce)).await;
    }
    send_raw(&mut server, ContentType::ApplicationData, b"x").await;
    assert_eq!(client.read_u8().await.unwrap(), b'x');
    assert_eq!(client.tickets, MAX_TICKETS);
}

#[tokio::test]
async fn records_that_bring_nothing_are_counted() {
    let (mut client, mut server) = pair().await;
    for _ in 0..3 {
        for _ in 0..MAX_WITHOUT_DATA {
            send_raw(&mut client, ContentType::ApplicationData, b"").await;
        }
        send_raw(&mut client, ContentType::ApplicationData, b"x").await;
    }
    server.read_exact(&mut [0; 3]).await.unwrap();
    let (_, fault, _) = hostile(async |client| {
        for _ in 0..=MAX_WITHOUT_DATA {
            send_raw(client, ContentType::Handshake, &KEY_UPDATE).await;
            client.seals = client.keys.next_of_ours().unwrap();
        }
    })
    .await;
    assert_eq!(fault, PeerMisbehaved::TooManyEmptyFragments.into());
}

#[tokio::test]
async fn a_message_may_come_in_parts() {
    let (mut client, mut server) = pair().await;
    for part in KEY_UPDATE {
        send_raw(&mut client, ContentType::Handshake, &[part]).await;
    }
    client.seals = client.keys.next_of_ours().unwrap();
    send_raw(&mut client, ContentType::ApplicationData, b"x").await;
    assert_eq!(server.read_u8().await.unwrap(), b'x');
}

#[tokio::test]
async fn a_farewell_ends_one_direction_and_a_fin_without_one_is_a_fault() {
    let (mut client, mut server) = pair().await;
    client.write_all(b"question").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(client.write(b"more").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    let (question, end) = read_all(&mut server).await;
    assert_eq!((&question[..], end.unwrap()), (&b"question"[..], 8));
    assert_eq!(server.sealed.capacity(), 0);
    server.write_all(b"answer").await.unwrap();
    server.say(1, AlertDescription::CloseNotify);
    server.unwritten.extend_from_slice(&[b'x'; 1000]);
    server.shutdown().await.unwrap();
    assert_eq!(read_all(&mut client).await.0, b"answer");
    assert_eq!(client.sealed.capacity(), 0, "what stands behind a farewell is not kept");

    let (mut client, mut server) = pair().await;
    client.write_all(b"question").await.unwrap();
    client.tcp.shutdown().await.unwrap();
    let (question, end) = read_all(&mut server).await;
    assert_eq!(question, b"question");
    assert_eq!(end.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
}

#[tokio::test]
async fn an_alert_is_told_to_whoever_asked() {
    let (mut client, mut server) = pair().await;
    let flag = client.alerted();
    send_raw(&mut server, ContentType::Alert, &[1, 90]).await;
    send_raw(&mut server, ContentType::ApplicationData, b"x").await;
    assert_eq!(client.read_u8().await.unwrap(), b'x');
    assert!(!flag.load(Relaxed), "user_canceled means nothing");
    send_raw(&mut server, ContentType::Alert, &[2, 42]).await;
    let error = client.read_u8().await.unwrap_err();
    assert_eq!(crate::stream::tls_error(&error), Some(&alerted(AlertDescription::BadCertificate)));
    assert!(flag.load(Relaxed));
}

#[tokio::test]
async fn a_reader_that_does_not_read_stops_the_writer_and_little_is_kept() {
    let (mut client, mut server) = pair().await;
    let content = content();
    let mut taken = 0;
    while let Ok(count) = timeout(Duration::from_millis(200), client.write(&content[taken..])).await {
        taken += count.unwrap();
        assert!(taken < content.len(), "the socket has no end");
    }
    assert!(client.unwritten.len() - client.written <= SEALED);
    let mut read = vec![0; taken];
    let (sent, _) = tokio::join!(client.flush(), server.read_exact(&mut read));
    sent.unwrap();
    assert!(read == content[..taken]);
    assert!(client.unwritten.is_empty() && server.sealed.is_empty() && server.plain.is_empty());
}

/// What `openssl` says to a server of ours.
#[tokio::test]
async fn openssl_speaks_with_us_and_changes_keys() {
    let tls = tls();
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, label: &str, der: &[u8]| {
        let path = directory.path().join(name);
        let body = data_encoding::BASE64.encode(der);
        let lines: Vec<_> = body.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
        std::fs::write(&path, format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n")))
            .unwrap();
        path
    };
    let certificate = write("cert.pem", "CERTIFICATE", &tls.svid.chain[0]);
    let key = write("key.pem", "PRIVATE KEY", tls.svid.key.secret_der());
    for suite in ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"] {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let mut client = tokio::process::Command::new("openssl")
            .args(["s_client", "-tls1_3", "-ciphersuites", suite, "-alpn", "weft-tcp", "-connect"])
            .arg(listener.local_addr().unwrap().to_string())
            .arg("-cert")
            .arg(&certificate)
            .arg("-key")
            .arg(&key)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("openssl, which the test set-up installs");
        let (tcp, _) = timeout(WAIT, listener.accept()).await.unwrap().unwrap();
        let shaken = timeout(WAIT, handshake::accept(tls.server.clone(), tcp, Bytes::new())).await.unwrap();
        let mut session = shaken.unwrap().session;
        session.rekey = 2;
        let (mut says, mut hears) = (client.stdin.take().unwrap(), client.stdout.take().unwrap());
        let mut line = [0; 6];
        for round in 0..4 {
            // K: a new key, and ours is asked for too.
            if round > 0 {
                says.write_all(b"K\n").await.unwrap();
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            says.write_all(b"hello\n").await.unwrap();
            timeout(WAIT, session.read_exact(&mut line)).await.unwrap().unwrap();
            assert_eq!(&line, b"hello\n", "{suite}");
            assert_eq!(session.owes_key, round > 0, "{suite}");
            session.write_all(format!("answer {round}\n").as_bytes()).await.unwrap();
        }
        session.shutdown().await.unwrap();
        let mut heard = String::new();
        timeout(WAIT, hears.read_to_string(&mut heard)).await.unwrap().unwrap();
        assert!((0..4).all(|round| heard.contains(&format!("answer {round}\n"))), "{suite}: {heard}");
        assert!(heard.contains(suite), "{heard}");
    }
}

/// Passes records on, a byte changed. Tells where in its record that is.
async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, at: usize, xor: u8, place: Arc<AtomicUsize>) {
    let mut passed = 0;
    loop {
        let mut record = vec![0; HEADER];
        if from.read_exact(&mut record).await.is_err() {
            return;
        }
        record.resize(HEADER + usize::from(u16::from_be_bytes([record[3], record[4]])), 0);
        if from.read_exact(&mut record[HEADER..]).await.is_err() {
            return;
        }
        if let Some(here) = at.checked_sub(passed)
            && let Some(byte) = record.get_mut(here)
        {
            *byte ^= xor;
            place.store(here, Relaxed);
        }
        passed += record.len();
        if to.write_all(&record).await.is_err() {
            return;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// A byte of the handshake or of what comes behind it is changed on the way: nobody takes the one for the other, nobody panics,
    /// and both come to an end.
    #[test]
    fn a_changed_byte_is_found(at in 0usize..4500, xor in 1u8.., of_client in any::<bool>()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let tls = tls();
            let ((client, a), (b, server)) = (sockets().await, sockets().await);
            let ((a_read, a_write), (b_read, b_write)) = (a.into_split(), b.into_split());
            let (up, down) = if of_client { (at, usize::MAX) } else { (usize::MAX, at) };
            let place = Arc::new(AtomicUsize::new(usize::MAX));
            tokio::spawn(pass(a_read, b_write, up, xor, place.clone()));
            tokio::spawn(pass(b_read, a_write, down, xor, place.clone()));
            let client = async {
                let mut session = handshake::connect(client_config(&tls), name(), client).await.ok()?.session;
                session.write_all(&[b'c'; 1000]).await.ok()?;
                session.shutdown().await.ok()?;
                let (read, result) = read_all(&mut session).await;
                assert_eq!(read, vec![b's'; read.len()]);
                (result.ok()? == 1000).then_some(())
            };
            let server = async {
                let mut session = handshake::accept(tls.server.clone(), server, Bytes::new()).await.ok()?.session;
                let (read, result) = read_all(&mut session).await;
                assert_eq!(read, vec![b'c'; read.len()]);
                session.write_all(&[b's'; 1000]).await.ok()?;
                session.shutdown().await.ok()?;
                (result.ok()? == 1000).then_some(())
            };
            let both = timeout(Duration::from_secs(1), async { tokio::join!(client, server) }).await;
            match (both, place.load(Relaxed)) {
                (Ok((Some(()), Some(()))), usize::MAX) => {}
                // A record's version counts for nothing (RFC 8446 §5.1); what has become longer is waited for, a record or a message.
                (Ok((Some(()), Some(()))), place) => prop_assert!((1..=2).contains(&place), "{place} of a record"),
                (Err(_elapsed), place) => prop_assert!(matches!(place, 3..=4 | 6..=8), "{place} of a record"),
                (Ok(_), place) => prop_assert!(place != usize::MAX),
            }
            Ok(())
        })?;
    }
}
