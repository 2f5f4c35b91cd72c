use std::{net::Ipv4Addr, num::NonZeroU32};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::Barrier,
};
use weft_core::{
    cluster::Cluster as Settings,
    endpoint::{Endpoint, EndpointSet, Health},
    listener::{Listener, Outbound, Protocol},
    names::{ClusterName, ListenerName, RouteName, ServicePort},
    policy::Authorization,
    route::{Action, RouteTable, Rule, VirtualHost},
    snapshot::Resources,
};
use weft_http::{fields::Fields, head::Request, http1::Framing};

use super::*;
use crate::{
    drain::Drainer, listener::spread::Spread, live::Live, telemetry::AccessLog, tls::CurrentTls, worker::Shared,
};

/// An application whose answers wait until as many requests have arrived as `together` asks for.
async fn application(together: Arc<Barrier>) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let together = together.clone();
            tokio::spawn(async move {
                assert!(stream.read(&mut [0; 1024]).await.unwrap() > 0);
                together.wait().await;
                stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
                stream.read_to_end(&mut Vec::new()).await.unwrap();
            });
        }
    });
    address
}

fn worker() -> Arc<Worker> {
    let shared = Shared {
        live: Arc::new(Live::new(1)),
        tls: Arc::new(CurrentTls::empty()),
        interest: None,
        mark: None,
        own_addresses: Vec::new(),
        own_ports: Vec::new(),
        declared: Vec::new(),
        mesh_ranges: Vec::new(),
        access_log: None,
        spread: Spread::new(1, 10, 10).0,
        max_streams: None,
        heads: Arc::default(),
        stalled: Duration::ZERO,
        paused: Duration::ZERO,
        half_closed: Duration::ZERO,
        discovery_wait: Duration::ZERO,
        self_probe: Arc::default(),
    };
    Worker::new(0, Arc::new(shared), AccessLog::to(tokio::io::sink()), Drainer::new().1)
}

/// A cluster of these endpoints, as a snapshot of the worker resolves it.
fn cluster(worker: &Worker, endpoints: &[SocketAddr]) -> Arc<Cluster> {
    let at = ServicePort { namespace: "shop".into(), name: "app".into(), port: 80.try_into().unwrap() };
    let (name, route) = (ClusterName::Service(at.clone()), RouteName::Service(at));
    let destination: SocketAddr = ([240, 0, 0, 1], 80).into();
    let listener =
        Outbound { address: destination, protocol: Protocol::Http, http: Some(route.clone()), tcp: Vec::new() };
    let rule = Rule::all("all", Action::Forward(Forward::to(name.clone())));
    let host = VirtualHost { name: "all".into(), domains: vec!["*".into()], rules: vec![rule] };
    let table = RouteTable { name: route.clone(), hosts: vec![host], authorization: Authorization::default() };
    let live = &worker.shared.live;
    live.replace(Resources {
        listeners: [(ListenerName::Outbound(destination), Listener::Outbound(listener))].into(),
        routes: [(route, table)].into(),
        clusters: [(name.clone(), Settings::new(name.clone()))].into(),
        ..Resources::default()
    })
    .unwrap();
    let endpoint = |address: &SocketAddr| Endpoint {
        address: *address,
        identity: None,
        weight: NonZeroU32::MIN,
        health: Health::Healthy,
        workload: String::new(),
        zone: String::new(),
    };
    live.set_endpoints(&EndpointSet { cluster: name, endpoints: endpoints.iter().map(endpoint).collect() });
    let snapshot = live.load();
    let routes = snapshot.outbound[&destination].as_ref().unwrap().routes.as_ref().unwrap();
    routes.targets[0][0][0].clone()
}

#[tokio::test]
async fn two_attempts_of_one_request_can_be_in_flight_at_once_at_different_endpoints() {
    let together = Arc::new(Barrier::new(2));
    let endpoints = [application(together.clone()).await, application(together).await];
    let worker = worker();
    let cluster = cluster(&worker, &endpoints);
    let rule = Forward::to(ClusterName::Direct(endpoints[0]));
    let target = Target {
        worker: &worker,
        forward: &rule,
        cluster: &cluster,
        direction: Direction::Outbound,
        started: Instant::now(),
    };
    let request = Request::new(HttpVersion::Http11, b"GET", b"/", None, Fields::with_capacity(16, 1)).unwrap();
    let mut head = Head::http1(request, Framing::None, false).unwrap();
    let mut copy = head.clone();
    let (mut first, mut second) = (Progress::default(), Progress::default());
    let limit = Duration::from_secs(5);
    // Neither endpoint answers before the other has its request.
    let (one, other) = tokio::join!(
        timeout(limit, run(target, &mut head, Body::Empty, &mut first)),
        timeout(limit, run(target, &mut copy, Body::Empty, &mut second)),
    );
    let ((one, flight), (other, other_flight)) = (one.unwrap().unwrap(), other.unwrap().unwrap());
    assert_eq!((one.head.status, other.head.status), (204, 204));
    assert_ne!(first.endpoint, second.endpoint);
    let in_flight = || cluster.state.requests.load(Relaxed);
    assert_eq!(in_flight(), 2);
    drop(flight);
    assert_eq!(in_flight(), 1, "each holds its own");
    drop(other_flight);
    assert_eq!(in_flight(), 0);
}
