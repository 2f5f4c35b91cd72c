//! Relays of opaque bytes between a workload and a session.

use std::sync::atomic::AtomicU64;

use socket2::SockRef;
use tokio::{
    io::Interest,
    task::{JoinSet, yield_now},
};

use super::*;
use crate::{
    stream::{Duplex, Stream},
    tcp::{Relay, RelayError},
};

/// Relays as a proxy does.
async fn relay(plain: impl Duplex, mesh: Stream) -> Result<(), RelayError> {
    let mut relay = Relay::new(plain, mesh);
    let result = relay.run(WAIT, &AtomicU64::new(0)).await;
    if result.is_err() {
        relay.abort().await;
    }
    result
}

/// Two workloads whose connections two proxies relay over the mesh, and those proxies.
async fn relayed(
    records: [TlsRecords; 2],
    change_keys: Option<u64>,
) -> ([TcpStream; 2], JoinSet<Result<(), RelayError>>) {
    let (client, server) = pair(records).await;
    let (mut workloads, mut proxies) = (Vec::new(), JoinSet::new());
    for mut session in [client, server] {
        if let Some(records) = change_keys {
            session.change_keys(records);
        }
        let (workload, plain) = sockets().await;
        workloads.push(workload);
        let (plain, mesh) = (Stream::tcp(plain, Bytes::new()), Stream::Tls(session));
        proxies.spawn(relay(plain, mesh));
    }
    (workloads.try_into().unwrap(), proxies)
}

#[tokio::test]
async fn a_relay_carries_bytes_of_any_size_both_ways_while_keys_change() {
    for records in PAIRS {
        for change_keys in [None, Some(3), Some(50)] {
            let ([one, other], mut proxies) = relayed(records, change_keys).await;
            exchange(one, other, amount(records)).await;
            while let Some(ended) = timeout(WAIT, proxies.join_next()).await.unwrap() {
                ended.unwrap().unwrap();
            }
        }
    }
}

#[tokio::test]
async fn a_workload_that_does_not_read_stops_the_other_and_nothing_is_lost() {
    for records in BOTH {
        let ([mut one, mut other], _proxies) = relayed([records; 2], None).await;
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
}

/// A workload for which the kernel keeps little, the two ends of a relay, and a peer in the mesh with our own records.
async fn apart(records: TlsRecords) -> (TcpStream, TcpStream, Stream, Session) {
    let (session, peer) = pair([records, Weft]).await;
    let (workload, plain) = sockets().await;
    SockRef::from(&plain).set_send_buffer_size(4 * 1024).unwrap();
    SockRef::from(&workload).set_recv_buffer_size(4 * 1024).unwrap();
    (workload, plain, Stream::Tls(session), peer)
}

fn kind(ended: Result<(), RelayError>) -> io::ErrorKind {
    match ended {
        Err(RelayError::Caller(error) | RelayError::Callee(error)) => error.kind(),
        ended => panic!("{ended:?}"),
    }
}

#[tokio::test]
async fn a_workload_that_breaks_off_ends_the_relay_behind_its_last_bytes() {
    for records in BOTH {
        let (mut workload, plain, mesh, mut peer) = apart(records).await;
        workload.write_all(b"last words").await.unwrap();
        SockRef::from(&workload).set_linger(Some(Duration::ZERO)).unwrap();
        drop(workload);
        while !plain.ready(Interest::READABLE).await.unwrap().is_read_closed() {
            yield_now().await;
        }
        let ((heard, result), ended) = tokio::join!(read_all(&mut peer), relay(plain, mesh));
        assert_eq!(heard, b"last words");
        result.expect_err("no close_notify");
        assert_eq!(kind(ended), io::ErrorKind::ConnectionReset);
    }
}

#[tokio::test]
async fn a_workload_that_reads_slowly_gets_all_that_a_peer_sent_before_it_broke_off() {
    for (records, fault) in BOTH.into_iter().flat_map(|records| [(records, false), (records, true)]) {
        let (mut workload, plain, mesh, mut peer) = apart(records).await;
        let content = &content()[..130_000];
        peer.write_all(content).await.unwrap();
        peer.flush().await.unwrap();
        if fault {
            peer.weft()
                .send_raw(rustls::ContentType::Alert, &[2, rustls::AlertDescription::InternalError.into()])
                .await;
        } else {
            // No close_notify before it.
            peer.weft().tcp.shutdown().await.unwrap();
        }
        let read = async {
            let (all, end) = read_all(&mut workload).await;
            assert_eq!(end.unwrap_err().kind(), io::ErrorKind::ConnectionReset, "(5) an error is not an end");
            all
        };
        let (read, ended) = tokio::join!(read, relay(plain, mesh));
        assert!(read == content, "{} bytes of {}", read.len(), content.len());
        let told = if fault { io::ErrorKind::InvalidData } else { io::ErrorKind::UnexpectedEof };
        assert_eq!(kind(ended), told);
    }
}
