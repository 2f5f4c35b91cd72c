//! A pair of proxies resumes for a workload's second connection, and the identity and the policy are those of the first.

use std::{sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use weft_core::{
    listener::InboundMode,
    policy::{Authorization, Operation, Principal, Rule},
};

use crate::{
    apps::raw_app,
    pair::{Authority, Proxy, identity, inbound, inbound_model, outbound},
};

const WAIT: Duration = Duration::from_secs(5);

/// Whether bytes come back through the pair on a connection of their own.
async fn echoes(address: std::net::SocketAddr) -> bool {
    let mut client = TcpStream::connect(address).await.unwrap();
    let mut back = [0; 6];
    client.write_all(b"\0PING\n").await.unwrap();
    match timeout(WAIT, client.read_exact(&mut back)).await.expect("an echo or an end") {
        Ok(_) => &back == b"\0PING\n",
        Err(_ended) => false,
    }
}

fn handshakes(proxy: &Proxy, direction: &str) -> (f64, f64) {
    let of = |kind: &str| {
        let labels = [&*format!("direction=\"{direction}\""), &*format!("kind=\"{kind}\"")];
        proxy.metric("weft_tls_handshakes_total", &labels)
    };
    (of("full"), of("resumed"))
}

#[tokio::test]
async fn a_pair_resumes_and_policy_still_knows_the_caller() {
    let echo = raw_app(|stream| async move {
        let (mut read, mut write) = stream.into_split();
        tokio::io::copy(&mut read, &mut write).await.ok();
    })
    .await;
    let only = |account: &str| {
        let from = vec![Principal::Identity(identity(account))];
        let rule = Rule { name: "shop/only#0".into(), from, to: vec![Operation::default()] };
        Authorization { deny: vec![], allow: Some(vec![rule]) }
    };
    let authority = Authority::new();
    let (server, endpoint) = inbound(authority.svid("product", true), echo, InboundMode::Strict, only("order"));
    let endpoints = [(endpoint, Some(identity("product")))];
    let (client, address) = outbound(Some(authority.svid("order", true)), &endpoints, |_, _| {});
    for number in 0..3 {
        assert!(echoes(address).await, "{number}");
    }
    assert_eq!((handshakes(&client, "outbound"), handshakes(&server, "inbound")), ((1.0, 2.0), (1.0, 2.0)));
    // The policy of now and the certificate of the first handshake decide.
    server.shared.live.replace(inbound_model(InboundMode::Strict, only("billing"))).unwrap();
    assert!(!echoes(address).await);
    assert_eq!(handshakes(&server, "inbound"), (1.0, 3.0));
    // Another certificate begins anew, and is who the policy asks for.
    client.shared.tls.store(Some(Arc::new(authority.svid("billing", true))));
    assert!(echoes(address).await);
    assert_eq!((handshakes(&client, "outbound"), handshakes(&server, "inbound")), ((2.0, 3.0), (2.0, 3.0)));
    // So does a new one of the server's.
    server.shared.tls.store(Some(Arc::new(authority.svid("product", true))));
    assert!(echoes(address).await);
    assert_eq!((handshakes(&client, "outbound"), handshakes(&server, "inbound")), ((3.0, 3.0), (3.0, 3.0)));
}

crate::records::with_rustls! {
    a_pair_resumes_and_policy_still_knows_the_caller
}
