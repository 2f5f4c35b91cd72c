use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::sleep;

use super::*;

/// An HTTP/1.1 server that answers at once, but for one second from `stall` after its start on answers nobody.
async fn server(stall: Option<Duration>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let start = Instant::now();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut head = [0; 4096];
                while stream.read(&mut head).await.is_ok_and(|length| length > 0) {
                    if let Some(stall) = stall {
                        let (from, now) = (start + stall, Instant::now());
                        if now >= from && now < from + Duration::from_secs(1) {
                            sleep(from + Duration::from_secs(1) - now).await;
                        }
                    }
                    if stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.is_err() {
                        break;
                    }
                }
            });
        }
    });
    address
}

#[test]
fn the_schedule_is_even_and_does_not_drift() {
    let start = Instant::now();
    let schedule = Schedule::new(start, 3000);
    assert_eq!(schedule.due(0), start);
    assert_eq!(schedule.due(1) - start, Duration::from_nanos(333_333));
    assert_eq!(schedule.due(3000) - start, Duration::from_secs(1));
    assert_eq!(schedule.due(3_000_000_000) - start, Duration::from_secs(1_000_000));
    assert_eq!(Schedule::new(start, 0).due(2) - start, Duration::from_secs(2));
}

#[tokio::test]
async fn a_steady_server_gets_the_rate() {
    let load = OpenLoop::start(server(None).await, Protocol::Http1, 4, 500).await.unwrap();
    sleep(Duration::from_millis(100)).await;
    let from = Instant::now();
    sleep(Duration::from_secs(1)).await;
    let to = Instant::now();
    sleep(Duration::from_millis(100)).await;
    let seen = load.finish(from, to, &Stolen::default()).await.unwrap();
    assert!((490..=520).contains(&seen.requests), "{seen:?}");
    assert!(seen.p50 < Duration::from_millis(50), "{seen:?}");
}

/// A closed loop would send four requests in the stalled second and call the 99th percentile fast.
#[tokio::test]
async fn a_stall_of_a_second_shows_in_the_99th_percentile() {
    let load = OpenLoop::start(server(Some(Duration::from_millis(500))).await, Protocol::Http1, 4, 200).await.unwrap();
    let from = Instant::now();
    sleep(Duration::from_secs(2)).await;
    let to = Instant::now();
    sleep(Duration::from_millis(200)).await;
    let seen = load.finish(from, to, &Stolen::default()).await.unwrap();
    // Half of the requests were due in the stalled second; they waited 0.5 s on average and one in fifty 0.97 s and more.
    assert!(seen.p99 > Duration::from_millis(900), "{seen:?}");
    assert!((380..=420).contains(&seen.requests), "{seen:?}");
}

#[tokio::test]
async fn a_server_that_never_answers_again_shows_too() {
    let load = OpenLoop::start(server(Some(Duration::from_millis(300))).await, Protocol::Http1, 2, 100).await.unwrap();
    let from = Instant::now();
    sleep(Duration::from_millis(1000)).await;
    // The stall is not over; two thirds of the requests have no answer.
    let seen = load.finish(from, Instant::now(), &Stolen::default()).await.unwrap();
    assert!(seen.requests < 50, "{seen:?}");
    assert!(seen.p50 > Duration::from_millis(150) && seen.p99 > Duration::from_millis(600), "{seen:?}");
}

#[tokio::test]
async fn a_closed_connection_fails_the_load() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        _ = stream.read(&mut [0; 100]).await.unwrap();
    });
    let load = OpenLoop::start(address, Protocol::Http1, 1, 100).await.unwrap();
    sleep(Duration::from_millis(300)).await;
    load.finish(Instant::now(), Instant::now(), &Stolen::default()).await.unwrap_err();
}
