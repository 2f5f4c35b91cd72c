//! One whole proxy against a control plane that sends no revisions: what it subscribes to, and what is in force meanwhile.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tokio::{
    io::AsyncReadExt,
    net::TcpStream,
    time::{Instant, sleep},
};
use weft_core::{
    cluster::Cluster,
    endpoint::{Endpoint, EndpointSet, Health},
    listener::{InboundMode, Listener, Outbound, Protocol},
    names::{ClusterName, RouteName, ServicePort},
    policy::{Authorization, Operation, Principal},
    route::{Action, Forward, RouteTable, Rule, VirtualHost},
    wire::{ClientClass, Encoded, ResourceType, render_cluster, render_endpoints, render_listener, render_route},
};
use weft_proxy::{
    app::App,
    config::{Overrides, Settings},
};

use crate::{
    apps::{fixed_app, once},
    control::{first, start, world},
    pair::{Anyone, inbound_model},
    plane::{Ca, Discovery, PATIENCE, Plane},
};

/// The service's address.
const VIP: &str = "240.0.0.1:80";
/// That of another one.
const OTHER: &str = "240.0.0.2:80";

fn service(name: &str) -> ServicePort {
    ServicePort { namespace: "shop".into(), name: name.into(), port: 80.try_into().unwrap() }
}

fn cluster(name: &str) -> Encoded {
    render_cluster(&Cluster::new(ClusterName::Service(service(name))), ClientClass::Weft)
}

fn endpoints(name: &str, address: SocketAddr) -> Encoded {
    let endpoint = Endpoint {
        address,
        workload: "shop/a".into(),
        identity: None,
        weight: 1.try_into().unwrap(),
        zone: String::new(),
        health: Health::Healthy,
    };
    let set = EndpointSet { cluster: ClusterName::Service(service(name)), endpoints: vec![endpoint] };
    render_endpoints(&set, ClientClass::Weft)
}

/// A listener whose requests are routed by the table of a service's name.
fn listener(address: &str, route: &str) -> Encoded {
    let (address, http) = (address.parse().unwrap(), Some(RouteName::Service(service(route))));
    let listener = Outbound { address, protocol: Protocol::Http, http, tcp: Vec::new() };
    render_listener(&Listener::Outbound(listener), ClientClass::Weft).unwrap()
}

/// The table of a service's name, which sends every request to a cluster.
fn route(name: &str, to: &str) -> Encoded {
    let rule = Rule::all("shop/a#0", Action::Forward(Forward::to(ClusterName::Service(service(to)))));
    let host = VirtualHost { name: Arc::from("*"), domains: vec![Arc::from("*")], rules: vec![rule] };
    let name = RouteName::Service(service(name));
    render_route(&RouteTable { name, hosts: vec![host], authorization: Authorization::default() }, ClientClass::Weft)
        .unwrap()
}

/// Calls until the answer ends so.
async fn becomes(address: SocketAddr, wanted: &str) {
    let end = Instant::now() + PATIENCE;
    loop {
        let answer = once(address, "GET", "/").await;
        if answer.ends_with(wanted) {
            return;
        }
        assert!(Instant::now() < end, "still {answer:?}, never {wanted:?}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// A proxy whose workload calls `VIP`, which the control plane leads to the cluster `old`; and one that calls `OTHER`.
async fn following(application: SocketAddr) -> (Plane, App, Discovery, [SocketAddr; 2]) {
    let mut plane = Plane::start().await;
    let app = start(&plane, &[VIP, OTHER]).await;
    let mut stream = plane.stream().await;
    stream.subscribed(ResourceType::Listener, "outbound").await;
    let [inbound, outbound, routes] = first(&world(&[])).try_into().unwrap();
    stream.send(ResourceType::Listener, &[inbound, outbound], &[]).await;
    stream.subscribed(ResourceType::Route, "inbound").await;
    stream.send(ResourceType::Route, &[routes], &[]).await;
    let [address, other] = app.addresses.forward_outbound[..] else { panic!("two listeners") };
    let called = tokio::spawn(async move { once(address, "GET", "/").await });
    stream.subscribed(ResourceType::Listener, &format!("outbound/{VIP}")).await;
    stream.send(ResourceType::Listener, &[listener(VIP, "server")], &[]).await;
    stream.subscribed(ResourceType::Route, "svc/shop/server:80").await;
    stream.send(ResourceType::Route, &[route("server", "old")], &[]).await;
    stream.subscribed(ResourceType::Endpoints, "svc/shop/old:80").await;
    stream.send(ResourceType::Endpoints, &[endpoints("old", application)], &[]).await;
    stream.send(ResourceType::Cluster, &[cluster("old")], &[]).await;
    assert!(called.await.unwrap().ends_with("one"));
    (plane, app, stream, [address, other])
}

/// The requests until now that unsubscribe from a name.
fn unsubscribed(stream: &Discovery, name: &str) -> usize {
    let names = stream.seen.iter().flat_map(|request| &request.resource_names_unsubscribe);
    names.filter(|gone| *gone == name).count()
}

/// (27.8)
#[tokio::test]
async fn a_cluster_in_force_stays_subscribed_while_a_new_route_waits_for_a_missing_one() {
    let (one, two) = (fixed_app(200, "one").await, fixed_app(200, "two").await);
    let (_plane, _app, mut stream, [address, _]) = following(one).await;
    // The second version of the route leads to a cluster that does not come.
    let nonce = stream.send(ResourceType::Route, &[route("server", "new")], &[]).await;
    assert_eq!(stream.answer(&nonce).await, None);
    stream.subscribed(ResourceType::Cluster, "svc/shop/new:80").await;
    // Meanwhile the endpoints of the cluster in force change.
    let nonce = stream.send(ResourceType::Endpoints, &[endpoints("old", two)], &[]).await;
    assert_eq!(stream.answer(&nonce).await, None);
    assert_eq!(unsubscribed(&stream, "svc/shop/old:80"), 0, "it is in force");
    becomes(address, "two").await;
    // So do its settings.
    let mut limited = Cluster::new(ClusterName::Service(service("old")));
    limited.limits.requests = 0;
    stream.send(ResourceType::Cluster, &[render_cluster(&limited, ClientClass::Weft)], &[]).await;
    becomes(address, "(UO)\n").await;
    // Once the new cluster is there the old one is not needed.
    stream.send(ResourceType::Endpoints, &[endpoints("new", one)], &[]).await;
    stream.send(ResourceType::Cluster, &[cluster("new")], &[]).await;
    becomes(address, "one").await;
    while unsubscribed(&stream, "svc/shop/old:80") < 2 {
        stream.request().await;
    }
}

/// (27.8) A listener that waits for its cluster is no reason for others to wait.
#[tokio::test]
async fn a_new_route_that_waits_delays_no_other_listener() {
    let (one, two) = (fixed_app(200, "one").await, fixed_app(200, "two").await);
    let (_plane, _app, mut stream, [address, other]) = following(one).await;
    stream.send(ResourceType::Route, &[route("server", "new")], &[]).await;
    stream.subscribed(ResourceType::Cluster, "svc/shop/new:80").await;
    let called = tokio::spawn(async move { once(other, "GET", "/").await });
    stream.subscribed(ResourceType::Listener, &format!("outbound/{OTHER}")).await;
    stream.send(ResourceType::Listener, &[listener(OTHER, "other")], &[]).await;
    stream.send(ResourceType::Route, &[route("other", "other")], &[]).await;
    stream.send(ResourceType::Endpoints, &[endpoints("other", two)], &[]).await;
    stream.send(ResourceType::Cluster, &[cluster("other")], &[]).await;
    let answer = called.await.unwrap();
    assert!(answer.ends_with("two"), "{answer}");
    assert!(once(address, "GET", "/").await.ends_with("one"), "as it was");
}

/// The client's side of mesh TLS for an ID, with a certificate of this authority.
fn caller(ca: &Ca, id: &str) -> tokio_rustls::TlsConnector {
    let (chain, key) = ca.pem(id, Duration::from_secs(3600));
    let mut config = rustls::ClientConfig::builder_with_provider(weft_proxy::tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone))
        .with_client_auth_cert(
            CertificateDer::pem_slice_iter(chain.as_bytes()).map(Result::unwrap).collect(),
            PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
        )
        .unwrap();
    config.alpn_protocols = vec![b"weft-tcp-2".to_vec()];
    Arc::new(config).into()
}

/// (20.37) Envoy's `authenticated` without a name.
#[tokio::test]
async fn a_caller_of_another_trust_domain_is_not_authenticated_for_a_foreign_policy() {
    let application = fixed_app(200, "one").await;
    let mut plane = Plane::start().await;
    let text = format!(
        "apiVersion: weft.dev/v1alpha1\nkind: ProxyConfig\nmetadata: {{name: client-1, namespace: shop}}\nspec:\n  \
         mode: sidecar\n  workload: {{serviceAccount: client, labels: {{app: client}}, addresses: [127.0.0.1]}}\n  \
         controlPlane: {{address: \"{}\", joinToken: {}}}\n  mark: 0\n  drain: 2s\n  \
         ports: {{outbound: 0, inbound: 0, admin: 0, metrics: 0}}\n  \
         forward: {{inbound: [{{listen: \"127.0.0.1:0\", destination: \"{application}\"}}]}}\n",
        plane.address,
        plane.ca.token("client"),
    );
    let app = App::start(Settings::parse(&text, &Overrides::default()).unwrap()).await.unwrap();
    let mut stream = plane.stream().await;
    // Authenticated, without a name, is how others say it; ours names the trust domain.
    let rule = weft_core::policy::Rule {
        name: "a".into(),
        from: vec![Principal::Authenticated],
        to: vec![Operation::default()],
    };
    let model = inbound_model(InboundMode::Strict, Authorization { deny: Vec::new(), allow: Some(vec![rule]) });
    let listener = model.listeners.values().map(|listener| render_listener(listener, ClientClass::Weft).unwrap());
    stream.send(ResourceType::Listener, &listener.collect::<Vec<_>>(), &["outbound"]).await;
    stream.subscribed(ResourceType::Route, "inbound").await;
    let routes = model.routes.values().map(|table| render_route(table, ClientClass::Weft).unwrap());
    stream.send(ResourceType::Route, &routes.collect::<Vec<_>>(), &[]).await;
    let end = Instant::now() + PATIENCE;
    while !app.not_ready().is_empty() {
        assert!(Instant::now() < end, "{:?}", app.not_ready());
        sleep(Duration::from_millis(10)).await;
    }
    for (id, allowed) in
        [("spiffe://weft.local/ns/shop/sa/other", true), ("spiffe://other.test/ns/shop/sa/other", false)]
    {
        let stream = TcpStream::connect(app.addresses.forward_inbound[0]).await.unwrap();
        let name = rustls::pki_types::ServerName::from(stream.peer_addr().unwrap().ip());
        let mut mesh = caller(&plane.ca, id).connect(name, stream).await.unwrap();
        let verdict = mesh.read_u8().await.unwrap();
        assert_eq!(verdict == 0, allowed, "{id}: {verdict}");
    }
}
