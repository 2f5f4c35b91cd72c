//! Draining: what is waited for and what is not, and how a drain is taken back.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};
use weft_proxy::app::App;

use crate::{
    apps::{raw_app, until},
    files::{post, service, write},
    plane::PATIENCE,
};

const SECOND: Duration = Duration::from_secs(1);

/// An application that gives back what it reads.
async fn echo() -> SocketAddr {
    raw_app(|mut stream| async move {
        let (mut read, mut write) = stream.split();
        tokio::io::copy(&mut read, &mut write).await.ok();
    })
    .await
}

/// A proxy beside an application that calls a service where it is itself the only workload.
async fn proxy() -> App {
    let directory = tempfile::tempdir().unwrap();
    let port = echo().await.port();
    let spec = format!(
        "  mode: sidecar\n  drain: 20s\n  workload: {{serviceAccount: a, addresses: [127.0.0.1]}}\n  \
         forward:\n    outbound: [{{listen: \"127.0.0.1:0\", destination: \"240.0.0.1:80\"}}]\n    \
         inbound: [{{listen: \"127.0.0.1:0\", destination: \"127.0.0.1:{port}\"}}]\n"
    );
    let args = write(directory.path(), &spec, &service(port));
    App::start(args.read().unwrap()).await.unwrap()
}

async fn say(stream: &mut TcpStream) {
    stream.write_all(b"x\n").await.unwrap();
    let mut back = [0; 2];
    timeout(PATIENCE, stream.read_exact(&mut back)).await.expect("an answer in time").unwrap();
}

async fn opened(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    say(&mut stream).await;
    stream
}

/// (22)
#[tokio::test]
async fn stopping_waits_for_what_moves_and_not_for_idle_pools_of_the_workload() {
    let app = proxy().await;
    let calls = app.addresses.forward_outbound[0];
    let (_pool, mut used) = (opened(calls).await, opened(calls).await);
    let started = Instant::now();
    let stopped = tokio::spawn(app.shutdown());
    // The application still works, on a connection that it has, and on new ones.
    while started.elapsed() < SECOND * 5 {
        say(&mut used).await;
        drop(opened(calls).await);
        sleep(SECOND / 4).await;
    }
    assert!(!stopped.is_finished());
    assert!(timeout(SECOND * 12, stopped).await.expect("before the deadline of 20 s").unwrap());
}

/// (22)
#[tokio::test]
async fn stopping_waits_for_callers_and_says_what_is_open() {
    let app = proxy().await;
    let (admin, inbound) = (app.addresses.admin, app.addresses.forward_inbound[0]);
    let (caller, _pool) = (opened(inbound).await, opened(app.addresses.forward_outbound[0]).await);
    sleep(SECOND * 4).await;
    let (status, said) = post(admin, "/drain").await;
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    let by = &said["by"];
    // The call of the workload to itself is served in the process.
    assert_eq!(
        (status, &by["inbound"], &by["outbound_idle"], &said["waits_for"]),
        (200, &1.into(), &1.into(), &1.into()),
        "{said}"
    );
    let stopped = tokio::spawn(app.shutdown());
    sleep(SECOND * 4).await;
    assert!(!stopped.is_finished(), "a caller is never cut before the deadline");
    drop(caller);
    assert!(timeout(SECOND * 5, stopped).await.expect("the caller has gone").unwrap());
}

/// (22)
#[tokio::test]
async fn a_drain_can_be_taken_back() {
    let app = proxy().await;
    let (admin, inbound) = (app.addresses.admin, app.addresses.forward_inbound[0]);
    for _ in 0..2 {
        drop(opened(inbound).await);
        assert_eq!(post(admin, "/drain").await.0, 200);
        let refused = || std::net::TcpStream::connect(inbound).is_err();
        assert!(until(PATIENCE, refused).await.is_some());
        assert_eq!(app.not_ready(), ["draining"]);
        drop(opened(app.addresses.forward_outbound[0]).await);
        assert_eq!(post(admin, "/undrain").await.0, 200);
        assert!(until(PATIENCE, || std::net::TcpStream::connect(inbound).is_ok()).await.is_some());
        assert!(until(PATIENCE, || app.not_ready().is_empty()).await.is_some());
    }
    drop(opened(inbound).await);
    assert!(app.shutdown().await);
}
