//! Plaintext as a way around the mesh: what was in it is never called so, whoever says so and whatever is away; where plaintext
//! steps around a rule, that is told.

use std::time::Duration;

use tokio::net::TcpStream;
use weft_core::{
    listener::InboundMode,
    policy::{Authorization, Operation, Principal, Rule},
    snapshot::Resources,
};
use weft_proxy::{listener::socket::Role, live::Live};

use crate::{
    apps::{fixed_app, once},
    pair::{Authority, endpoint_set, identity, inbound, inbound_model, outbound, outbound_model},
    traffic::exchange,
};

/// Whether a call over opaque bytes is let through.
async fn opaque(address: std::net::SocketAddr) -> bool {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = TcpStream::connect(address).await.unwrap();
    let _refused = stream.write_all(b"\x01\x02\x03 not http\r\n\r\n").await;
    let mut heard = Vec::new();
    let _reset = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut heard)).await.expect("an end");
    !heard.is_empty()
}

#[tokio::test]
async fn an_endpoint_that_was_in_the_mesh_is_not_called_without_its_identity() {
    let application = fixed_app(200, "hello").await;
    let authority = Authority::new();
    // Permissive: plaintext to it would be answered.
    let (_inbound, at) =
        inbound(authority.svid("product", true), application, InboundMode::Permissive, Authorization::default());
    let plain = [(at, None)];
    let meshed = [(at, Some(identity("product")))];
    let (proxy, address) = outbound(Some(authority.svid("order", true)), &plain, |_, _| {});
    assert!(
        once(address, "GET", "/").await.starts_with("HTTP/1.1 200"),
        "never in the mesh: plaintext is what it takes"
    );
    let live = &proxy.shared.live;
    live.set_endpoints(&endpoint_set(&meshed));
    assert!(once(address, "GET", "/").await.starts_with("HTTP/1.1 200"));

    live.set_endpoints(&endpoint_set(&plain));
    let refused = once(address, "GET", "/").await;
    assert!(refused.starts_with("HTTP/1.1 503") && refused.contains("NOID"), "{refused}");
    assert!(!opaque(address).await);
    assert_eq!(live.withheld_sets().len(), 1, "the config dump tells it");
    assert_eq!(live.endpoint_sets()[0].endpoints, vec![]);

    // Neither the end of the service nor an empty set makes it forget.
    live.replace(Resources::default()).unwrap();
    live.replace(outbound_model(|_, _| {})).unwrap();
    live.set_endpoints(&endpoint_set(&[]));
    live.set_endpoints(&endpoint_set(&plain));
    assert!(once(address, "GET", "/").await.contains("NOID"));

    // Others of the set are called, and so is this one with its identity.
    let other = fixed_app(200, "other").await;
    live.set_endpoints(&endpoint_set(&[(at, None), (other, None)]));
    for _ in 0..5 {
        assert!(once(address, "GET", "/").await.contains("other"));
    }
    live.set_endpoints(&endpoint_set(&meshed));
    assert!(once(address, "GET", "/").await.starts_with("HTTP/1.1 200"));
    assert!(live.withheld_sets().is_empty());
}

#[tokio::test]
async fn an_address_of_the_mesh_that_nobody_knows_any_more_is_not_passed_through() {
    let application = fixed_app(200, "hello").await;
    let authority = Authority::new();
    let (_inbound, at) =
        inbound(authority.svid("product", true), application, InboundMode::Permissive, Authorization::default());
    let (proxy, _) = outbound(Some(authority.svid("order", true)), &[], |_, _| {});
    let direct = proxy.listen(Role::Outbound(Some(at)));
    let mut stream = TcpStream::connect(direct).await.unwrap();
    let answer = exchange(&mut stream, "GET / HTTP/1.1\r\nhost: a\r\n\r\n", "hello").await;
    assert!(answer.contains("hello"), "outside the mesh it passes: {answer}");
    proxy.shared.live.set_endpoints(&endpoint_set(&[(at, Some(identity("product")))]));
    proxy.shared.live.set_endpoints(&endpoint_set(&[]));
    let refused = once(direct, "GET", "/").await;
    assert!(refused.contains("NOID"), "{refused}");
}

/// A log that is kept.
#[derive(Clone, Default)]
struct Log(std::sync::Arc<parking_lot::Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_deny_rule_that_plaintext_steps_around_is_warned_of_once() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
    let said = || String::from_utf8(log.0.lock().clone()).unwrap().matches("can be stepped around").count();
    let bank = Rule {
        name: "shop/no-bank#0".into(),
        from: vec![Principal::Prefix("spiffe://weft.local/ns/bank/".into())],
        to: vec![Operation::default()],
    };
    let policy = Authorization { deny: vec![bank], allow: None };
    let strict = inbound_model(InboundMode::Strict, policy.clone());
    let permissive = inbound_model(InboundMode::Permissive, policy);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _runtime = runtime.enter();
    let live = Live::new(1);
    tracing::subscriber::with_default(subscriber, || {
        live.replace(strict.clone()).unwrap();
        assert_eq!(said(), 0);
        live.replace(permissive.clone()).unwrap();
        live.replace(permissive.clone()).unwrap();
        assert_eq!(said(), 1);
        live.replace(strict).unwrap();
        live.replace(permissive).unwrap();
        assert_eq!(said(), 2, "it came back");
    });
    assert!(String::from_utf8(log.0.lock().clone()).unwrap().contains("shop/no-bank#0"));
}
