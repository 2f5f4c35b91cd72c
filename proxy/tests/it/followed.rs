//! One whole proxy against a control plane that sends no revisions: what it subscribes to, and what is in force meanwhile.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};
use weft_core::{
    cluster::Cluster,
    endpoint::{Endpoint, EndpointSet, Health},
    listener::{Listener, Outbound, Protocol},
    names::{ClusterName, RouteName, ServicePort},
    policy::Authorization,
    route::{Action, Forward, RouteTable, Rule, VirtualHost},
    wire::{ClientClass, Encoded, ResourceType, render_cluster, render_endpoints, render_listener, render_route},
};
use weft_proxy::app::App;

use crate::{
    apps::{fixed_app, once},
    control::{first, start, world},
    plane::{Discovery, PATIENCE, Plane},
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
