//! Rolling restarts: an application that is down for a moment costs no request while another instance is healthy.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::RwLock,
    task::JoinSet,
    time::{Instant, interval, sleep, timeout},
};
use weft_core::{listener::InboundMode, policy::Authorization};

use crate::{
    apps::once,
    pair::{Authority, Proxy, identity, inbound, outbound},
};

const SECOND: Duration = Duration::from_secs(1);

/// An application that answers HTTP, and lines that begin with 1, until it is stopped.
struct Instance {
    address: SocketAddr,
    running: JoinSet<()>,
}

impl Instance {
    async fn start(address: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(address).unwrap();
        let listener = socket.listen(1024).unwrap();
        let address = listener.local_addr().unwrap();
        let mut running = JoinSet::new();
        running.spawn(accept(listener));
        Self { address, running }
    }

    async fn stop(&mut self) {
        self.running.shutdown().await;
    }
}

async fn accept(listener: TcpListener) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        connections.spawn(serve(stream));
    }
}

async fn serve(mut stream: TcpStream) {
    let mut read = Vec::new();
    while stream.read_buf(&mut read).await.unwrap_or(0) > 0 {
        let answer: &[u8] = if read.starts_with(b"\x01") && read.ends_with(b"\n") {
            b"answer\n"
        } else if read.ends_with(b"\r\n\r\n") {
            b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
        } else {
            continue;
        };
        read.clear();
        if stream.write_all(answer).await.is_err() {
            return;
        }
    }
}

/// One connection of opaque bytes: whether it was answered.
async fn opaque(address: SocketAddr) -> bool {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"\x01question\n").await?;
        let mut answer = [0; 7];
        stream.read_exact(&mut answer).await?;
        std::io::Result::Ok(answer == *b"answer\n")
    };
    timeout(SECOND * 10, exchange).await.is_ok_and(|answered| answered.unwrap_or(false))
}

/// Restarts two instances one after the other with each of the gaps, again and again until `total` requests were sent at `rate`
/// a second: GET, POST and opaque connections by turns. Returns the failures.
async fn rolling(total: usize, rate: usize, gaps: &[Duration]) -> (Vec<String>, Proxy) {
    let authority = Authority::new();
    let any: SocketAddr = ([127, 0, 0, 1], 0).into();
    let mut instances = [Instance::start(any).await, Instance::start(any).await];
    let proxies = instances.each_ref().map(|instance| {
        inbound(authority.svid("product", true), instance.address, InboundMode::Strict, Authorization::default())
    });
    let endpoints = proxies.each_ref().map(|(_, address)| (*address, Some(identity("product"))));
    let (outbound, address) = outbound(Some(authority.svid("order", true)), &endpoints, |_, _| {});
    // What is in flight when an application dies may be lost: no instance is stopped before it has answered.
    let quiet = Arc::new(RwLock::new(()));
    let started = Instant::now();
    let load = tokio::spawn({
        let quiet = quiet.clone();
        async move {
            let (mut calls, mut failed) = (JoinSet::new(), Vec::new());
            let mut ticks = interval(SECOND / u32::try_from(rate).unwrap());
            for number in 0..total {
                ticks.tick().await;
                let quiet = quiet.clone();
                calls.spawn(async move {
                    let _answered = quiet.read().await;
                    let answer = match number % 3 {
                        0 => once(address, "GET", "/").await,
                        1 => once(address, "POST", "/").await,
                        _ => return (!opaque(address).await).then(|| "opaque bytes".to_owned()),
                    };
                    (!answer.starts_with("HTTP/1.1 200")).then_some(answer)
                });
                while let Some(done) = calls.try_join_next() {
                    failed.extend(done.unwrap().map(|what| (started.elapsed(), what)));
                }
            }
            while let Some(done) = calls.join_next().await {
                failed.extend(done.unwrap().map(|what| (started.elapsed(), what)));
            }
            failed
        }
    });
    let rounds = gaps.iter().cycle().flat_map(|gap| [(0, *gap), (1, *gap)]);
    for (which, gap) in rounds {
        if load.is_finished() {
            break;
        }
        let instance = &mut instances[which];
        {
            let _nothing_in_flight = quiet.write().await;
            instance.stop().await;
            sleep(Duration::from_millis(10)).await;
        }
        sleep(gap).await;
        *instance = Instance::start(instance.address).await;
        sleep(SECOND / 5).await;
    }
    let failed = load.await.unwrap();
    (failed.into_iter().map(|(when, what)| format!("{when:?}: {what}")).collect(), outbound)
}

/// (4)
#[tokio::test]
async fn a_rolling_restart_of_two_instances_costs_no_request() {
    let (failed, outbound) = rolling(900, 200, &[SECOND * 3 / 10, SECOND]).await;
    assert!(failed.is_empty(), "{} of 900: {:#?}", failed.len(), &failed[..failed.len().min(5)]);
    let refused = ["cause=\"REFUSED\"", "result=\"tried\""];
    assert!(outbound.metric("weft_retries_total", &refused) > 5.0, "the restarts were felt");
    assert_eq!(outbound.metric("weft_retries_total", &["result=\"over_budget\""]), 0.0);
}

/// (4)
#[tokio::test]
#[ignore = "slow: 10,000 requests at 300/s"]
async fn a_rolling_restart_of_two_instances_costs_no_request_of_ten_thousand() {
    let (failed, _outbound) = rolling(10_000, 300, &[SECOND * 3 / 10, SECOND * 2, SECOND * 3]).await;
    assert!(failed.is_empty(), "{} of 10,000: {:#?}", failed.len(), &failed[..failed.len().min(5)]);
}
