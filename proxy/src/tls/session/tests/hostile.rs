//! A peer that breaks the protocol, and bytes that change on the way. Our own records are judged exactly; of rustls' the same is
//! expected, but for the choice of the error.

use std::sync::atomic::AtomicUsize;

use proptest::prelude::*;
use rustls::{AlertDescription, ContentType, InvalidMessage, PeerMisbehaved};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use super::*;
use crate::tls::record::{HEADER, MAX_CONTENT};

/// Does something to a connection as its hostile client. Returns the bytes that the server reads, its error, and the alert that
/// the client gets. rustls sends none for some faults.
async fn hostile(records: TlsRecords, act: impl AsyncFnOnce(&mut WeftSession)) -> (Vec<u8>, Error, Option<Error>) {
    let (mut client, mut server) = pair([Weft, records]).await;
    act(client.weft()).await;
    let (read, result) = read_all(&mut server).await;
    let error = result.unwrap_err();
    let fault = crate::stream::tls_error(&error).unwrap_or_else(|| panic!("{error}")).clone();
    assert!(server.read(&mut [0; 10]).await.is_err(), "the fault stays");
    assert_eq!(server.write(b"more").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    if records == Rustls {
        server.shutdown().await.unwrap();
    }
    let alert = read_all(&mut client).await.1.unwrap_err();
    let alert = crate::stream::tls_error(&alert).cloned();
    assert!(alert.is_some() || records == Rustls);
    (read, fault, alert)
}

fn alerted(description: AlertDescription) -> Option<Error> {
    Some(Error::AlertReceived(description))
}

/// The head of a record that is too long by one byte. rustls allows what TLS 1.2 does (RFC 5246 §6.2.3).
fn too_long(records: TlsRecords) -> [u8; 5] {
    let [high, low] = match records {
        Weft => u16::try_from(MAX_CONTENT + 257).unwrap(),
        Rustls => u16::try_from(MAX_CONTENT + 2049).unwrap(),
    }
    .to_be_bytes();
    [23, 3, 3, high, low]
}

#[tokio::test]
async fn what_is_no_record_of_the_peers_ends_the_connection_and_what_came_before_it_is_read() {
    use ContentType::ApplicationData as Data;
    for records in BOTH {
        let changed = hostile(records, async |client| {
            client.send_raw(Data, b"good").await;
            let mut record = client.seal_raw(Data, b"bad");
            record[7] ^= 1;
            client.tcp.write_all(&record).await.unwrap();
        });
        let expected = (b"good".to_vec(), Error::DecryptError, alerted(AlertDescription::BadRecordMac));
        assert_eq!(changed.await, expected, "{records:?}");

        let replayed = hostile(records, async |client| {
            let record = client.seal_raw(Data, b"once");
            client.tcp.write_all(&record.repeat(2)).await.unwrap();
        });
        let expected = (b"once".to_vec(), Error::DecryptError, alerted(AlertDescription::BadRecordMac));
        assert_eq!(replayed.await, expected, "{records:?}");

        let dropped = hostile(records, async |client| {
            client.seal_raw(Data, b"lost");
            client.send_raw(Data, b"next").await;
        });
        let expected = (vec![], Error::DecryptError, alerted(AlertDescription::BadRecordMac));
        assert_eq!(dropped.await, expected, "{records:?}");

        let oversized = (vec![], Error::PeerSentOversizedRecord, alerted(AlertDescription::RecordOverflow));
        let content = hostile(records, async |client| {
            client.send_raw(Data, &vec![b'x'; MAX_CONTENT + 1]).await;
        });
        assert_eq!(content.await, oversized, "{records:?}");
        let long = hostile(records, async |client| client.tcp.write_all(&too_long(records)).await.unwrap()).await;
        match records {
            Weft => assert_eq!(long, oversized),
            Rustls => assert!(matches!(long, (_, Error::InvalidMessage(_), Some(_))), "{long:?}"),
        }

        for plaintext in
            [&[21, 3, 3, 0, 2, 1, 0][..], &[20, 3, 3, 0, 1, 1], &[22, 3, 3, 0, 1, 1], b"GET / HTTP/1.1\r\n\r\n"]
        {
            let (read, fault, alert) =
                hostile(records, async |client| client.tcp.write_all(plaintext).await.unwrap()).await;
            assert!(read.is_empty());
            if records == Weft {
                assert!(matches!(fault, Error::InappropriateMessage { .. }), "{fault:?}");
                assert_eq!(alert, alerted(AlertDescription::UnexpectedMessage));
            }
        }
    }
}

#[tokio::test]
async fn padding_is_taken_off_and_a_record_of_nothing_else_refused() {
    // A record's content and type are one sequence of bytes to the cipher: these are what stands inside of it.
    let send = async |client: &mut WeftSession, inner: &[u8]| {
        let (kind, content) = inner.split_last().unwrap();
        client.send_raw((*kind).into(), content).await;
    };
    for records in BOTH {
        let (mut client, mut server) = pair([Weft, records]).await;
        for inner in [&b"abc\x17\0\0\0"[..], b"def\0\x17", b"\x17\0", &[&b"ghi\x17"[..], &[0; 200]].concat()] {
            send(client.weft(), inner).await;
        }
        client.shutdown().await.unwrap();
        assert_eq!(read_all(&mut server).await.0, b"abcdef\0ghi");

        let (_, fault, alert) = hostile(records, async |client| send(client, &[0; 20]).await).await;
        assert_eq!(fault, PeerMisbehaved::IllegalTlsInnerPlaintext.into());
        if records == Weft {
            assert_eq!(alert, alerted(AlertDescription::UnexpectedMessage));
        }
    }
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
        for layer in BOTH {
            // rustls counts a record of nothing as one without data.
            if layer == Rustls && name == "none at all" {
                continue;
            }
            let (read, fault, _) = hostile(layer, async |client| {
                for (kind, content) in &records {
                    client.send_raw(*kind, content).await;
                }
            })
            .await;
            assert!(read.is_empty() && (is_it(&fault) || layer == Rustls), "{name}, {layer:?}: {fault:?}");
        }
    }
}

#[tokio::test]
async fn a_message_in_ever_more_records_is_not_waited_for() {
    for records in BOTH {
        let (mut client, server) = sockets().await;
        let tls = tls(records);
        let accepted = tokio::spawn(handshake::accept(records, tls.server.clone(), server, Bytes::new()));
        // A ClientHello of 65,520 bytes, one to a record: 393 KB on the wire, and with padding it could be 1 GB.
        client.write_all(&[22, 3, 1, 0, 4, 1, 0, 0xff, 0xf0]).await.unwrap();
        let rest = [22, 3, 1, 0, 1, 0].repeat(65_000);
        client.write_all(&rest[..60_000]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(!accepted.is_finished(), "so much may still be a message");
        client.write_all(&rest[60_000..]).await.ok();
        let error = timeout(WAIT, accepted).await.unwrap().unwrap().unwrap_err();
        let fault = crate::stream::tls_error(&error).unwrap();
        assert_eq!(*fault, InvalidMessage::HandshakePayloadTooLarge.into());

        let (mut client, server) = sockets().await;
        let mut record = too_long(records);
        record[0] = 22;
        client.write_all(&record).await.unwrap();
        let error = timeout(WAIT, handshake::accept(records, tls.server.clone(), server, Bytes::new()))
            .await
            .unwrap()
            .unwrap_err();
        match records {
            Weft => assert_eq!(crate::stream::tls_error(&error), Some(&Error::PeerSentOversizedRecord)),
            Rustls => assert!(crate::stream::tls_error(&error).is_some()),
        }
    }
}

#[tokio::test]
async fn records_that_bring_nothing_are_bounded() {
    for records in BOTH {
        let (_, fault, _) = hostile(records, async |client| {
            for _ in 0..40 {
                client.send_raw(ContentType::ApplicationData, b"").await;
            }
        })
        .await;
        assert_eq!(fault, PeerMisbehaved::TooManyEmptyFragments.into(), "{records:?}");
    }
}

#[tokio::test]
async fn a_message_may_come_in_parts() {
    for records in BOTH {
        let (mut client, mut server) = pair([Weft, records]).await;
        let client = client.weft();
        for part in [24, 0, 0, 1, 0] {
            client.send_raw(ContentType::Handshake, &[part]).await;
        }
        client.renew_send_key();
        client.send_raw(ContentType::ApplicationData, b"x").await;
        assert_eq!(server.read_u8().await.unwrap(), b'x');
    }
}

#[tokio::test]
async fn a_peer_that_asks_for_a_new_key_gets_it() {
    for records in BOTH {
        let (mut client, mut server) = pair([Weft, records]).await;
        for _ in 0..3 {
            client.weft().send_key_update(true).await;
            client.write_all(b"new key?").await.unwrap();
            let mut read = [0; 8];
            server.read_exact(&mut read).await.unwrap();
            server.write_all(b"here").await.unwrap();
            client.read_exact(&mut read[..4]).await.unwrap();
            assert_eq!(&read[..4], b"here");
        }
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
    fn a_changed_byte_is_found(at in 0usize..4500, xor in 1u8.., of_client in any::<bool>(), pair in 0..PAIRS.len()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let [client_records, server_records] = PAIRS[pair];
            let authority = Authority::new();
            let client_tls = authority.tls("order", client_records, provider());
            let server_tls = authority.tls("order", server_records, provider());
            let ((client, a), (b, server)) = (sockets().await, sockets().await);
            let ((a_read, a_write), (b_read, b_write)) = (a.into_split(), b.into_split());
            let (up, down) = if of_client { (at, usize::MAX) } else { (usize::MAX, at) };
            let place = Arc::new(AtomicUsize::new(usize::MAX));
            tokio::spawn(pass(a_read, b_write, up, xor, place.clone()));
            tokio::spawn(pass(b_read, a_write, down, xor, place.clone()));
            let client = async {
                let mut session = handshake::connect(client_records, client_config(&client_tls), name(), client).await.ok()?.session;
                session.write_all(&[b'c'; 1000]).await.ok()?;
                session.shutdown().await.ok()?;
                let (read, result) = read_all(&mut session).await;
                assert_eq!(read, vec![b's'; read.len()]);
                (result.ok()? == 1000).then_some(())
            };
            let server = async {
                let mut session = handshake::accept(server_records, server_tls.server.clone(), server, Bytes::new()).await.ok()?.session;
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
