//! Streams without a socket and with a clock that tests move: what is asked for, staged and given up.

use std::{collections::BTreeMap, sync::Arc};

use tokio::{sync::mpsc, time::advance};
use weft_core::{
    cluster::Cluster,
    endpoint::{Endpoint, EndpointSet},
    listener::{Inbound, InboundMode, InboundPort, Listener, Outbound, OutboundDefault, OutboundPolicy, Protocol},
    names::{ClusterName, RouteName, ServicePort},
    policy::Authorization,
    route::{Action, RouteTable, Rule, VirtualHost, WeightedCluster},
    wire::{self, ClientClass, Encoded, ResourceType, Revision, render_revision},
};
use weft_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};

use super::{
    stream::Wire,
    subscriptions::{IDLE, MAX_DESTINATIONS},
    *,
};

const DURATION: Duration = Duration::from_secs(77);

/// A client, the other end of its requests, and what the server believes that it holds.
struct Bench {
    client: Discovery,
    wire: Wire,
    requests: mpsc::Receiver<DeltaDiscoveryRequest>,
    held: BTreeMap<(ResourceType, String), String>,
    open: Arc<parking_lot::Mutex<HashSet<SocketAddr>>>,
    _interest: mpsc::Sender<SocketAddr>,
}

fn destination(last: u8) -> SocketAddr {
    SocketAddr::from(([240, 0, 0, last], 80))
}

fn cluster(last: u8) -> ClusterName {
    let port = 80.try_into().unwrap();
    ClusterName::Service(ServicePort { namespace: "shop".into(), name: format!("s{last}"), port })
}

fn outbound(last: u8) -> Encoded {
    let to = WeightedCluster { cluster: cluster(last), weight: 1 };
    let listener = Outbound { address: destination(last), protocol: Protocol::Tcp, http: None, tcp: vec![to] };
    wire::render_listener(&Listener::Outbound(listener), ClientClass::Weft).unwrap()
}

fn endpoints(last: u8) -> EndpointSet {
    let endpoint = Endpoint {
        address: destination(last),
        workload: "shop/a".into(),
        identity: None,
        weight: 1.try_into().unwrap(),
        zone: String::new(),
        health: Default::default(),
    };
    EndpointSet { cluster: cluster(last), endpoints: vec![endpoint] }
}

fn tree(last: u8) -> Vec<Encoded> {
    vec![
        wire::render_cluster(&Cluster::new(cluster(last)), ClientClass::Weft),
        wire::render_endpoints(&endpoints(last), ClientClass::Weft),
        outbound(last),
    ]
}

fn first() -> Vec<Encoded> {
    let name = RouteName::Inbound(None);
    let port = InboundPort {
        mode: InboundMode::Strict,
        protocol: Protocol::Detect,
        routes: name.clone(),
        authorization: Authorization::default(),
    };
    let inbound = Inbound { ports: BTreeMap::new(), default: port, access_log: Default::default() };
    let rule = Rule::all("a", Action::Deliver);
    let host = VirtualHost { name: "inbound".into(), domains: vec!["*".into()], rules: vec![rule] };
    let table = RouteTable { name, hosts: vec![host], authorization: Authorization::default() };
    let default = OutboundDefault { policy: OutboundPolicy::RegisteredOnly };
    vec![
        wire::render_listener(&Listener::Inbound(inbound), ClientClass::Weft).unwrap(),
        wire::render_listener(&Listener::OutboundDefault(default), ClientClass::Weft).unwrap(),
        wire::render_route(&table, ClientClass::Weft).unwrap(),
    ]
}

impl Bench {
    /// A client with its first configuration.
    fn new() -> Self {
        let text = "apiVersion: weft.dev/v1alpha1\nkind: ProxyConfig\nmetadata: {name: a, namespace: shop}\n\
                    spec: {mode: sidecar, workload: {addresses: [10.0.0.1]}}\n";
        let settings = Settings::parse(text, &crate::config::Overrides::default()).unwrap();
        let (interest, wanted) = mpsc::channel(16);
        let open = Arc::<parking_lot::Mutex<HashSet<SocketAddr>>>::default();
        let seen = open.clone();
        let client = Discovery::new(
            &settings,
            ControlPlane { address: "127.0.0.1:1".into(), mark: None },
            Arc::new(CurrentTls::empty()),
            Arc::new(Live::new(1)),
            Arc::new(Status::default()),
            wanted,
            Box::new(move || seen.lock().clone()),
        );
        let (sender, requests) = mpsc::channel(64);
        let wire = Wire::new(sender, Node::default());
        let mut bench = Self { client, wire, requests, held: BTreeMap::new(), open, _interest: interest };
        bench.client.begin(&mut bench.wire).unwrap();
        bench.send_all(&first());
        bench.barrier(1);
        bench.requests();
        bench
    }

    fn send(&mut self, kind: ResourceType, resources: &[Encoded], removed: &[&str]) {
        for resource in resources {
            self.held.insert((kind, resource.name.clone()), resource.version.clone());
        }
        removed.iter().for_each(|name| drop(self.held.remove(&(kind, (*name).to_owned()))));
        let response = DeltaDiscoveryResponse {
            type_url: kind.type_url().into(),
            resources: resources.iter().map(Encoded::to_resource).collect(),
            removed_resources: removed.iter().map(|name| (*name).to_owned()).collect(),
            nonce: "n".into(),
            ..DeltaDiscoveryResponse::default()
        };
        self.client.take(response, &mut self.wire).unwrap();
    }

    fn send_all(&mut self, resources: &[Encoded]) {
        for resource in resources {
            self.send(resource.resource_type, std::slice::from_ref(resource), &[]);
        }
    }

    fn barrier(&mut self, number: u64) {
        let held = self.held.iter().map(|((kind, name), version)| (*kind, name.as_str(), version.as_str()));
        let hash = wire::revision_hash(held);
        let barrier = render_revision(&Revision { number, hash });
        self.send(ResourceType::Revision, &[barrier], &[]);
        self.held.retain(|(kind, _), _| *kind != ResourceType::Revision);
    }

    /// Every request so far.
    fn requests(&mut self) -> Vec<DeltaDiscoveryRequest> {
        std::iter::from_fn(|| self.requests.try_recv().ok()).collect()
    }

    /// The workload calls a destination, which then is in force.
    fn call(&mut self, last: u8) {
        self.client.subscribe(vec![destination(last)], &mut self.wire).unwrap();
        self.send_all(&tree(last));
        self.barrier(1);
        self.requests();
    }

    fn in_force(&self, last: u8) -> bool {
        self.client.live.load().resources.listeners.contains_key(&ListenerName::Outbound(destination(last)))
    }

    /// What the last requests subscribed to and unsubscribed from.
    fn asked(&mut self) -> (Vec<String>, Vec<String>) {
        let requests = self.requests();
        let of = |names: fn(&DeltaDiscoveryRequest) -> &Vec<String>| requests.iter().flat_map(names).cloned().collect();
        (of(|request| &request.resource_names_subscribe), of(|request| &request.resource_names_unsubscribe))
    }
}

#[tokio::test(start_paused = true)]
async fn what_nobody_calls_is_given_up_and_stays_in_force_until_the_barrier() {
    let mut bench = Bench::new();
    bench.call(1);
    bench.call(2);
    bench.call(3);
    advance(IDLE).await;
    bench.client.live.interest.touch(destination(2));
    bench.open.lock().insert(destination(3));
    bench.client.sweep(&mut bench.wire).unwrap();
    assert_eq!(bench.asked(), (vec![], vec!["outbound/240.0.0.1:80".to_owned()]), "2 was called, 3 has a connection");
    assert!(bench.in_force(1));
    // A barrier that the server sent before it read that has another hash, and is not answered.
    bench.barrier(2);
    assert!(bench.requests().is_empty() && bench.in_force(1));
    bench.held.remove(&(ResourceType::Listener, "outbound/240.0.0.1:80".to_owned()));
    bench.send(ResourceType::Cluster, &[], &["svc/shop/s1:80"]);
    bench.barrier(2);
    assert!(!bench.in_force(1) && bench.in_force(2) && bench.in_force(3));
    assert_eq!(bench.client.status.applied.borrow().revision, 2);
}

#[tokio::test(start_paused = true)]
async fn a_destination_called_again_while_it_is_given_up_stays_in_force() {
    let mut bench = Bench::new();
    bench.call(1);
    advance(IDLE).await;
    bench.client.sweep(&mut bench.wire).unwrap();
    bench.requests();
    bench.client.live.interest.touch(destination(1));
    bench.held.remove(&(ResourceType::Listener, "outbound/240.0.0.1:80".to_owned()));
    bench.barrier(2);
    assert_eq!(bench.asked().0, vec!["outbound/240.0.0.1:80"]);
    assert!(bench.in_force(1));
    bench.send_all(&[outbound(1)]);
    bench.barrier(2);
    assert!(bench.in_force(1));
}

#[tokio::test(start_paused = true)]
async fn an_absent_destination_is_known_at_once_and_forgotten_when_it_is_given_up() {
    let mut bench = Bench::new();
    bench.client.subscribe(vec![destination(9)], &mut bench.wire).unwrap();
    bench.send_all(&tree(1)); // staged for later, by another answer
    bench.send(ResourceType::Listener, &[], &["outbound/240.0.0.9:80"]);
    let absent = |bench: &Bench| bench.client.live.load().resources.absent.clone();
    assert_eq!(absent(&bench), [ListenerName::Outbound(destination(9))].into());
    assert!(!bench.in_force(1), "what is staged is not let in by it");
    advance(IDLE).await;
    bench.client.sweep(&mut bench.wire).unwrap();
    assert!(absent(&bench).is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_listener_whose_tree_is_not_complete_stays_as_it_was() {
    let mut bench = Bench::new();
    bench.call(1);
    let mut moved = tree(2);
    let mut listener = outbound(1);
    // It now leads to a cluster that was never sent.
    let to = WeightedCluster { cluster: cluster(7), weight: 1 };
    let model = Outbound { address: destination(1), protocol: Protocol::Tcp, http: None, tcp: vec![to] };
    listener = wire::render_listener(&Listener::Outbound(model), ClientClass::Weft).unwrap_or(listener);
    moved.push(listener);
    bench.client.subscribe(vec![destination(2)], &mut bench.wire).unwrap();
    bench.send_all(&moved);
    bench.requests();
    bench.barrier(2);
    let answers = bench.requests();
    let reason = answers.last().and_then(|answer| answer.error_detail.clone()).expect("a NACK").message;
    assert!(reason.contains("outbound/240.0.0.1:80") && reason.contains("svc/shop/s7:80"), "{reason}");
    assert!(bench.in_force(1) && bench.in_force(2), "the others are taken");
    let live = bench.client.live.load().resources.clone();
    assert!(live.clusters.contains_key(&cluster(1)) && bench.client.status.applied.borrow().revision == 1);
}

#[tokio::test(start_paused = true)]
async fn a_new_stream_is_told_what_is_held_and_asks_for_the_barrier_last() {
    let mut bench = Bench::new();
    bench.call(1);
    bench.client.begin(&mut bench.wire).unwrap();
    let requests = bench.requests();
    let kinds: Vec<_> = requests.iter().filter_map(|request| ResourceType::from_type_url(&request.type_url)).collect();
    assert_eq!(
        kinds,
        [
            ResourceType::Cluster,
            ResourceType::Endpoints,
            ResourceType::Route,
            ResourceType::Listener,
            ResourceType::Revision
        ]
    );
    let told: Vec<_> = requests.iter().flat_map(|request| request.initial_resource_versions.clone()).collect();
    assert_eq!(told.len(), bench.held.len());
    let listeners = &requests[3];
    assert_eq!(listeners.resource_names_subscribe, ["inbound", "outbound", "outbound/240.0.0.1:80"]);
}

#[tokio::test(start_paused = true)]
async fn more_destinations_than_there_is_room_for_push_out_the_oldest() {
    let mut bench = Bench::new();
    bench.call(1);
    advance(Duration::from_secs(60)).await;
    for chunk in 0..MAX_DESTINATIONS / 256 + 1 {
        let many = (0..256).map(|port| SocketAddr::from(([10, 0, u8::try_from(chunk).unwrap(), 1], 1000 + port)));
        bench.client.subscribe(many.collect(), &mut bench.wire).unwrap();
    }
    let (_, gone) = bench.asked();
    assert_eq!(gone, ["outbound/240.0.0.1:80"], "the others are fresh");
    assert!(bench.client.subscriptions.len() <= MAX_DESTINATIONS);
}

#[tokio::test(start_paused = true)]
async fn a_revision_that_changes_endpoints_only_compiles_nothing_anew() {
    let mut bench = Bench::new();
    bench.call(1);
    let before = bench.client.live.load_full();
    let mut set = endpoints(1);
    set.endpoints.iter_mut().for_each(|endpoint| endpoint.weight = 7.try_into().unwrap());
    bench.send_all(&[wire::render_endpoints(&set, ClientClass::Weft)]);
    bench.barrier(2);
    let after = bench.client.live.load_full();
    assert_eq!(bench.client.status.applied.borrow().revision, 2);
    assert!(Arc::ptr_eq(&before, &after));
    let target = |live: &crate::live::Snapshot| live.outbound[&destination(1)].clone().unwrap();
    let weight = |live| target(live).tcp[0].0.state.endpoints()[0].endpoint.weight.get();
    assert_eq!(weight(&after), 7);
    // And one that changes more is taken over.
    bench.send_all(&[wire::render_cluster(
        &Cluster { connect_timeout: DURATION, ..Cluster::new(cluster(1)) },
        ClientClass::Weft,
    )]);
    bench.barrier(3);
    let last = bench.client.live.load_full();
    assert_eq!(bench.client.status.applied.borrow().revision, 3);
    assert_eq!(target(&last).tcp[0].0.settings.connect_timeout, DURATION);
}

/// Given up and gone from the configuration, and yet there when it is called during an outage. With a stream the control plane
/// is asked. (15)
#[tokio::test(start_paused = true)]
async fn a_destination_that_was_idle_is_called_as_it_last_was_while_there_is_no_control_plane() {
    let mut bench = Bench::new();
    bench.call(1);
    bench.call(2);
    advance(IDLE).await;
    bench.client.live.interest.touch(destination(2));
    bench.client.sweep(&mut bench.wire).unwrap();
    bench.held.remove(&(ResourceType::Listener, "outbound/240.0.0.1:80".to_owned()));
    for kind in [ResourceType::Cluster, ResourceType::Endpoints] {
        bench.send(kind, &[], &["svc/shop/s1:80"]);
    }
    bench.barrier(2);
    assert!(!bench.in_force(1) && bench.in_force(2));
    bench.client.status.discovery.up();
    bench.client.called(destination(1));
    assert!(!bench.in_force(1), "there is a stream to ask");

    bench.client.status.discovery.down();
    bench.client.called(destination(1));
    bench.client.called(destination(7));
    assert!(bench.in_force(1) && bench.in_force(2) && !bench.in_force(7));
    let live = bench.client.live.load_full();
    let target = live.outbound[&destination(1)].clone().unwrap();
    assert_eq!(target.tcp[0].0.state.endpoints()[0].endpoint, endpoints(1).endpoints[0]);

    // The next stream asks for it, and its answer counts: it does not exist any more.
    bench.client.begin(&mut bench.wire).unwrap();
    assert!(bench.asked().0.contains(&"outbound/240.0.0.1:80".to_owned()));
    bench.client.status.discovery.up();
    bench.send(ResourceType::Listener, &[], &["outbound/240.0.0.1:80"]);
    bench.barrier(3);
    assert!(!bench.in_force(1));
    bench.client.status.discovery.down();
    bench.client.called(destination(1));
    assert!(!bench.in_force(1), "what is known to be gone is not kept");
}

/// (15)
#[tokio::test(start_paused = true)]
async fn discovery_is_back_as_soon_as_the_agent_is_and_a_slow_connect_is_no_success() {
    let mut bench = Bench::new();
    let started = Instant::now();
    bench.client.pause(Duration::from_secs(10)).await;
    assert_eq!(started.elapsed(), Duration::from_secs(10));
    let status = bench.client.status.clone();
    let later = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        status.agent.up();
    };
    let started = Instant::now();
    tokio::join!(bench.client.pause(Duration::from_secs(10)), later);
    assert_eq!(started.elapsed(), Duration::from_secs(1));

    advance(Duration::from_secs(7)).await;
    assert_eq!(status.agent.down(), Duration::from_secs(7));
    advance(Duration::from_secs(15)).await;
    assert_eq!(status.agent.down(), Duration::ZERO, "it was never up");
}

/// (27.8) The address takes connections and says nothing, as one whose packets are dropped: each connect times out.
#[tokio::test(start_paused = true)]
async fn the_backoff_grows_to_its_most_while_connects_time_out_and_only_a_good_stream_resets_it() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (attempted, mut attempts) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            held.push(stream);
            attempted.send(Instant::now()).unwrap();
        }
    });
    let Bench { mut client, open: _open, .. } = Bench::new();
    let tls = crate::tls::tests::Authority::new().tls("client", Default::default(), crate::tls::provider());
    client.tls.store(Some(Arc::new(tls)));
    client.plane.address = address;
    let status = client.status.clone();
    status.certificates.send_modify(|count| *count += 1);
    let running = tokio::spawn(client.run());
    let mut last = attempts.recv().await.unwrap();
    let (connect, longest) = (Duration::from_secs(5), Duration::from_secs(10));
    let mut next = async || {
        let now = attempts.recv().await.unwrap();
        let wait = now - std::mem::replace(&mut last, now);
        wait.checked_sub(connect).expect("the connect times out")
    };
    let within = |wait: Duration, most: Duration| {
        assert!(wait >= most / 2 && wait <= most + Duration::from_millis(20), "{wait:?} of at most {most:?}");
    };
    let mut at_most = HashSet::new();
    for failures in 0..20 {
        let most = Duration::from_millis(100 << failures).min(longest);
        let wait = next().await;
        within(wait, most);
        if most == longest {
            at_most.insert(wait);
        }
    }
    assert!(at_most.len() > 3, "at random: {at_most:?}");
    // The server answers, and the stream ends at once: it may do so again and again.
    tokio::time::sleep(Duration::from_secs(3)).await;
    status.discovery.up();
    within(next().await, longest);
    // Now it is up for long enough.
    status.discovery.up();
    within(next().await, Duration::from_millis(100));
    within(next().await, Duration::from_millis(200));
    running.abort();
}
