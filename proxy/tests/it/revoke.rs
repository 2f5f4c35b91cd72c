//! What is taken back is taken back for connections that are open, too: by policy for opaque ones, by certificate for pools.

use std::{sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use weft_core::{
    listener::InboundMode,
    policy::{Authorization, Operation, PathPattern, Principal, Rule},
};

use crate::{
    apps::{once, raw_app},
    pair::{Authority, identity, inbound, inbound_model, outbound},
    traffic::mirror,
};

const SECOND: Duration = Duration::from_secs(1);

/// An open opaque connection through a permissive proxy, which is then given another mode and policy. Returns whether the
/// connection was ended, and the flag of the failure that was counted.
async fn after(mode: InboundMode, authorization: Authorization, flag: &str) -> (bool, f64) {
    let echo = raw_app(|stream| async move {
        let (mut read, mut write) = stream.into_split();
        tokio::io::copy(&mut read, &mut write).await.ok();
    })
    .await;
    let product = Authority::new().svid("product", true);
    let (proxy, address) = inbound(product, echo, InboundMode::Permissive, Authorization::default());
    let mut client = TcpStream::connect(address).await.unwrap();
    let mut back = [0; 6];
    client.write_all(b"PING\r\n").await.unwrap();
    timeout(SECOND * 5, client.read_exact(&mut back)).await.expect("an echo").unwrap();
    proxy.shared.live.replace(inbound_model(mode, authorization)).unwrap();
    let ended = timeout(SECOND, client.read(&mut back)).await.is_ok_and(|read| !matches!(read, Ok(1..)));
    if !ended {
        client.write_all(b"PING\r\n").await.unwrap();
        timeout(SECOND * 5, client.read_exact(&mut back)).await.expect("an echo").unwrap();
    }
    (ended, proxy.metric("weft_failures_total", &[&format!("flag=\"{flag}\"")]))
}

#[tokio::test]
async fn a_tunnel_ends_when_its_request_would_no_longer_be_allowed() {
    let application = raw_app(|mut stream| async move {
        crate::apps::read_head(&mut stream).await;
        stream
            .write_all(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n")
            .await
            .unwrap();
        let (mut read, mut write) = stream.into_split();
        tokio::io::copy(&mut read, &mut write).await.ok();
    })
    .await;
    let product = Authority::new().svid("product", true);
    let (proxy, address) = inbound(product, application, InboundMode::Permissive, Authorization::default());
    let deny = |path: &str| {
        let operation = Operation { paths: vec![PathPattern::Exact(path.into())], ..Operation::default() };
        let rule = Rule { name: "shop/no#0".into(), from: vec![Principal::Any], to: vec![operation] };
        Authorization { deny: vec![rule], allow: None }
    };
    let mut client = TcpStream::connect(address).await.unwrap();
    let ask = "GET /live HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: x\r\n\r\n";
    let answer = crate::traffic::exchange(&mut client, ask, "\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
    let mut back = [0; 4];
    for (path, lives) in [("/other", true), ("/live", false)] {
        proxy.shared.live.replace(inbound_model(InboundMode::Permissive, deny(path))).unwrap();
        client.write_all(b"ping").await.ok();
        let read = timeout(SECOND, client.read_exact(&mut back)).await.expect("an echo or the end");
        assert_eq!(read.is_ok(), lives, "{path}");
    }
    assert_eq!(proxy.metric("weft_failures_total", &["flag=\"RBAC\""]), 1.0);
}

#[tokio::test]
async fn a_deny_rule_ends_an_open_connection_and_names_itself() {
    let rule = Rule { name: "shop/no#0".into(), from: vec![Principal::Any], to: vec![Operation::default()] };
    let deny = Authorization { deny: vec![rule], allow: None };
    assert_eq!(after(InboundMode::Permissive, deny, "RBAC").await, (true, 1.0));
}

#[tokio::test]
async fn strict_ends_an_open_connection_in_plaintext() {
    assert!(after(InboundMode::Strict, Authorization::default(), "none").await.0);
}

#[tokio::test]
async fn a_change_that_takes_nothing_back_leaves_an_open_connection_alone() {
    let rule = Rule { name: "shop/all#0".into(), from: vec![Principal::Any], to: vec![Operation::default()] };
    let allow = Authorization { deny: vec![], allow: Some(vec![rule]) };
    assert_eq!(after(InboundMode::Permissive, allow, "RBAC").await, (false, 0.0));
}

#[tokio::test]
async fn a_new_certificate_is_shown_from_the_next_request_on() {
    let (authority, application) = (Authority::new(), mirror().await);
    let strict = InboundMode::Strict;
    let (_inbound, endpoint) = inbound(authority.svid("product", true), application, strict, Authorization::default());
    let order = Some(authority.svid("order", true));
    let (outbound, address) = outbound(order, &[(endpoint, Some(identity("product")))], |_, _| {});
    for account in ["order", "billing", "billing"] {
        if account == "billing" {
            outbound.shared.tls.store(Some(Arc::new(authority.svid(account, true))));
        }
        let answer = once(address, "GET", "/").await;
        assert!(answer.contains(&format!("weft-client-id: spiffe://weft.local/ns/shop/sa/{account}")), "{answer}");
    }
}

#[tokio::test]
async fn a_peer_whose_root_was_taken_out_gets_no_request_on_an_old_connection() {
    let (old, application) = (Authority::new(), mirror().await);
    let strict = InboundMode::Strict;
    let (_inbound, endpoint) = inbound(old.svid("product", true), application, strict, Authorization::default());
    let order = Some(old.svid("order", true));
    let (outbound, address) = outbound(order, &[(endpoint, Some(identity("product")))], |_, _| {});
    assert!(once(address, "GET", "/").await.starts_with("HTTP/1.1 200"));
    outbound.shared.tls.store(Some(Arc::new(Authority::new().svid("order", true))));
    let answer = once(address, "GET", "/").await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
}

crate::records::with_rustls! {
    a_new_certificate_is_shown_from_the_next_request_on
    a_peer_whose_root_was_taken_out_gets_no_request_on_an_old_connection
}
