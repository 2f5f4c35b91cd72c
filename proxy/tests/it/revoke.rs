//! A policy that takes something back does so for opaque connections that are open, too.

use std::time::Duration;

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
    pair::{Authority, inbound, inbound_model},
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
    proxy.shared.state.replace(inbound_model(mode, authorization)).unwrap();
    let ended = timeout(SECOND, client.read(&mut back)).await.is_ok_and(|read| !matches!(read, Ok(1..)));
    if !ended {
        client.write_all(b"PING\r\n").await.unwrap();
        timeout(SECOND * 5, client.read_exact(&mut back)).await.expect("an echo").unwrap();
    }
    (ended, proxy.metric("weft_failures_total", &[&format!("flag=\"{flag}\"")]))
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
