//! One whole proxy against a fake control plane: what it obeys, when, and what it keeps when the control plane is wrong,
//! slow or gone.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{Instant, sleep, timeout},
};
use weft_core::{
    api::{parse_documents, proxy_config::ProxyMode},
    cluster::Cluster,
    compile::{Objects, Requester, Workloads, World},
    endpoint::EndpointSet,
    identity::TrustDomain,
    listener::{Listener, Outbound, Protocol},
    names::{ClusterName, ListenerName, RouteName, ServicePort},
    route::WeightedCluster,
    wire::{ClientClass, Encoded, ResourceType, render_cluster, render_endpoints, render_listener, render_route},
};
use weft_proto::weft::v1::{Health, agent_message::Message};
use weft_proxy::{
    app::App,
    config::{Overrides, Settings},
};

use crate::plane::{Discovery, PATIENCE, PLANE, Plane};

/// The service's address.
const VIP: &str = "240.0.0.1:80";

/// A server that says its name to everyone and closes.
async fn application(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut heard = [0; 64];
                let _closed = stream.read(&mut heard).await;
                let _closed = stream.write_all(name.as_bytes()).await;
            });
        }
    });
    address
}

/// The file of a proxy whose forward listeners lead to these destinations.
pub(crate) fn settings(plane: &Plane, token: &str, destinations: &[&str], more: &str) -> Settings {
    let forwards: Vec<String> =
        destinations.iter().map(|to| format!("{{listen: \"127.0.0.1:0\", destination: \"{to}\"}}")).collect();
    let text = format!(
        "apiVersion: weft.dev/v1alpha1\nkind: ProxyConfig\nmetadata: {{name: client-1, namespace: shop}}\nspec:\n  \
         mode: sidecar\n  workload: {{serviceAccount: client, labels: {{app: client}}, addresses: [127.0.0.1]{more}}}\n  \
         controlPlane: {{address: \"{}\", joinToken: {token}}}\n  mark: 0\n  drain: 2s\n  \
         ports: {{outbound: 0, inbound: 0, admin: 0, metrics: 0}}\n  forward: {{outbound: [{}]}}\n",
        plane.address,
        forwards.join(", "),
    );
    Settings::parse(&text, &Overrides::default()).unwrap_or_else(|mistakes| panic!("{mistakes:?}\n{text}"))
}

pub(crate) async fn start(plane: &Plane, destinations: &[&str]) -> App {
    App::start(settings(plane, &plane.ca.token("client"), destinations, "")).await.unwrap()
}

/// A mesh with one TCP service, `shop/server:80`, whose workloads have no proxy.
pub(crate) fn world(targets: &[SocketAddr]) -> World {
    let mut text = "apiVersion: v1\nkind: Service\nmetadata: {name: server, namespace: shop}\nspec: {selector: {app: \
                    server}, clusterIPs: [240.0.0.1], ports: [{name: p, port: 80, targetPort: app, appProtocol: tcp}]}\n"
        .to_owned();
    for (index, target) in targets.iter().enumerate() {
        text.push_str(&format!(
            "---\napiVersion: weft.dev/v1alpha1\nkind: Workload\nmetadata: {{name: server-{index}, namespace: shop, \
             labels: {{app: server}}}}\nspec: {{mesh: false, addresses: [127.0.0.1], ports: [{{name: app, port: {}, protocol: tcp}}]}}\n",
            target.port()
        ));
    }
    let objects = parse_documents(&text).unwrap_or_else(|errors| panic!("{errors:?}"));
    let objects: BTreeMap<_, _> = objects.into_iter().map(|object| (object.key(), Arc::new(object))).collect();
    let domain = TrustDomain::parse("weft.local").unwrap();
    World::new(Arc::new(Objects::new(&objects, domain, 1)), Arc::new(Workloads::default()))
}

pub(crate) fn requester() -> Requester {
    Requester {
        namespace: "shop".into(),
        name: "client-1".into(),
        labels: [("app".to_owned(), "client".to_owned())].into(),
        service_account: "client".into(),
        ports: vec![],
        mode: ProxyMode::Sidecar,
    }
}

fn listener(world: &World, name: &str) -> Encoded {
    let listener = world.listener(&ListenerName::parse(name).unwrap(), &requester()).unwrap();
    render_listener(&listener, ClientClass::Weft).unwrap()
}

/// The tree of `inbound` and `outbound`.
pub(crate) fn first(world: &World) -> Vec<Encoded> {
    let routes = world.routes(&RouteName::Inbound(None), &requester()).unwrap();
    let routes = render_route(&routes, ClientClass::Weft).unwrap();
    vec![listener(world, "inbound"), listener(world, "outbound"), routes]
}

fn service_port() -> ServicePort {
    ServicePort { namespace: "shop".into(), name: "server".into(), port: 80.try_into().unwrap() }
}

fn cluster() -> ClusterName {
    ClusterName::Service(service_port())
}

fn endpoints(world: &World) -> Encoded {
    render_endpoints(&world.endpoints(&cluster()).unwrap(), ClientClass::Weft)
}

/// The tree of the service's address.
fn service(world: &World) -> Vec<Encoded> {
    let of = world.cluster(&cluster()).unwrap();
    vec![render_cluster(&of, ClientClass::Weft), endpoints(world), listener(world, &format!("outbound/{VIP}"))]
}

/// Lets the proxy have its first configuration.
async fn begin(plane: &mut Plane, app: &App, world: &World) -> Discovery {
    let mut stream = plane.stream().await;
    stream.subscribed(ResourceType::Revision, "revision").await;
    for name in ["inbound", "outbound"] {
        stream.subscribed(ResourceType::Listener, name).await;
    }
    let nonces = stream.send_all(&first(world)).await;
    assert_eq!(app.not_ready(), ["no configuration"], "nothing is in force before the barrier");
    let barrier = stream.barrier(1).await;
    for nonce in nonces.iter().chain([&barrier]) {
        assert_eq!(stream.answer(nonce).await, None);
    }
    assert_eq!(app.not_ready(), Vec::<&str>::new());
    stream
}

/// What an application hears when it calls a destination; empty when it is refused.
async fn call(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let _refused = stream.write_all(b"who are you?").await;
    let mut answer = Vec::new();
    let _reset = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("an end");
    String::from_utf8(answer).unwrap()
}

/// Calls until the answer is this one.
async fn becomes(address: SocketAddr, wanted: &str) {
    let end = Instant::now() + PATIENCE;
    loop {
        let answer = call(address).await;
        if answer == wanted {
            return;
        }
        assert!(Instant::now() < end, "still {answer:?}, never {wanted:?}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// A proxy that knows the service already.
async fn known(targets: &[SocketAddr]) -> (Plane, App, Discovery, SocketAddr) {
    let mut plane = Plane::start().await;
    let app = start(&plane, &[VIP]).await;
    let world = world(targets);
    let mut stream = begin(&mut plane, &app, &world).await;
    let address = app.addresses.forward_outbound[0];
    let called = tokio::spawn(call(address));
    stream.subscribed(ResourceType::Listener, &format!("outbound/{VIP}")).await;
    stream.send_all(&service(&world)).await;
    let barrier = stream.barrier(1).await;
    assert_eq!(stream.answer(&barrier).await, None);
    assert_eq!(called.await.unwrap(), if targets.is_empty() { "" } else { "one" });
    (plane, app, stream, address)
}

#[tokio::test]
async fn a_destination_is_asked_for_when_it_is_first_called_and_never_again() {
    let (_plane, _app, mut stream, address) = known(&[application("one").await]).await;
    let before = stream.seen.len();
    assert_eq!(call(address).await, "one");
    let nothing = timeout(Duration::from_millis(200), stream.request()).await;
    assert!(nothing.is_err(), "{:?}", &stream.seen[before..]);
}

#[tokio::test]
async fn endpoints_apply_at_once_and_everything_else_at_the_barrier() {
    let (one, two) = (application("one").await, application("two").await);
    let (_plane, _app, mut stream, address) = known(&[one]).await;
    stream.send(ResourceType::Endpoints, &[endpoints(&world(&[two]))], &[]).await;
    becomes(address, "two").await;
    // The service goes away: until the barrier says so it is as it was.
    let name = format!("outbound/{VIP}");
    let nonce = stream.send(ResourceType::Listener, &[], &[&name]).await;
    assert_eq!(stream.answer(&nonce).await, None);
    assert_eq!(call(address).await, "two");
    stream.send(ResourceType::Cluster, &[], &["svc/shop/server:80"]).await;
    stream.send(ResourceType::Endpoints, &[], &["svc/shop/server:80"]).await;
    assert_eq!(call(address).await, "two");
    let barrier = stream.barrier(2).await;
    assert_eq!(stream.answer(&barrier).await, None);
    assert_eq!(call(address).await, "", "a mesh address without a service is refused");
}

#[tokio::test]
async fn a_change_of_many_resources_is_one_step_for_callers() {
    let (one, two) = (application("one").await, application("two").await);
    let (_plane, _app, mut stream, address) = known(&[one]).await;
    let caller = tokio::spawn(async move {
        let mut heard: Vec<String> = Vec::new();
        while heard.last().is_none_or(|last| last != "two") {
            heard.push(call(address).await);
        }
        heard
    });
    // The same address leads to another service now: its listener, its cluster and the endpoints are new.
    let world = world(&[two]);
    let other = ClusterName::Service(ServicePort { name: "other".into(), ..service_port() });
    let to = WeightedCluster { cluster: other.clone(), weight: 1 };
    let moved = Outbound { address: VIP.parse().unwrap(), protocol: Protocol::Tcp, http: None, tcp: vec![to] };
    let moved = render_listener(&Listener::Outbound(moved), ClientClass::Weft).unwrap();
    let endpoints = EndpointSet { cluster: other.clone(), ..world.endpoints(&cluster()).unwrap() };
    // The order that would break it, were it not staged: what needs comes before what is needed, and that goes too early.
    stream.send(ResourceType::Listener, &[moved], &[]).await;
    sleep(Duration::from_millis(100)).await;
    stream.send(ResourceType::Cluster, &[], &["svc/shop/server:80"]).await;
    stream.send(ResourceType::Endpoints, &[], &["svc/shop/server:80"]).await;
    sleep(Duration::from_millis(100)).await;
    stream.send(ResourceType::Cluster, &[render_cluster(&Cluster::new(other), ClientClass::Weft)], &[]).await;
    stream.send(ResourceType::Endpoints, &[render_endpoints(&endpoints, ClientClass::Weft)], &[]).await;
    sleep(Duration::from_millis(100)).await;
    let barrier = stream.barrier(2).await;
    assert_eq!(stream.answer(&barrier).await, None);
    let heard = timeout(PATIENCE, caller).await.expect("the other service in time").unwrap();
    let (last, before) = heard.split_last().unwrap();
    assert!(last == "two" && before.len() > 10 && before.iter().all(|heard| heard == "one"), "{heard:?}");
}

#[tokio::test]
async fn a_bad_resource_is_refused_by_name_and_the_last_good_one_stays() {
    let (_plane, app, mut stream, address) = known(&[application("one").await]).await;
    let world = world(&[application("two").await]);
    let mut bad = listener(&world, &format!("outbound/{VIP}"));
    bad.value = vec![0xff, 0xff].into();
    bad.version = "bad".into();
    let nonce = stream.send(ResourceType::Listener, &[bad, listener(&world, "outbound")], &[]).await;
    let reason = stream.answer(&nonce).await.expect("a NACK");
    assert!(reason.contains(&format!("outbound/{VIP}")) && reason.contains("malformed"), "{reason}");
    let barrier = stream.barrier(2).await;
    let reason = stream.answer(&barrier).await.expect("the revision is not wholly in force");
    assert!(reason.contains(&format!("outbound/{VIP}")), "{reason}");
    assert_eq!(app.revision(), 1);
    assert_eq!(call(address).await, "one");
    stream.send(ResourceType::Listener, &[listener(&world, &format!("outbound/{VIP}"))], &[]).await;
    let barrier = stream.barrier(3).await;
    assert_eq!(stream.answer(&barrier).await, None);
    assert_eq!((app.revision(), call(address).await), (3, "one".to_owned()));
}

#[tokio::test]
async fn without_a_control_plane_everything_goes_on_and_it_resumes_where_it_was() {
    let (one, two) = (application("one").await, application("two").await);
    let (plane, app, stream, address) = known(&[one]).await;
    let (ca, port) = (plane.ca.clone(), plane.address.port());
    drop((plane, stream));
    for _ in 0..20 {
        assert_eq!(call(address).await, "one");
        sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(app.not_ready(), Vec::<&str>::new());
    let mut plane = Plane::start_as(ca, port, PLANE).await;
    let mut agent = plane.agent().await;
    let again = timeout(PATIENCE, agent.recv()).await.unwrap().unwrap().message;
    assert!(matches!(again, Some(Message::Register(_))), "the registration comes first: {again:?}");
    let mut stream = plane.stream().await;
    stream.subscribed(ResourceType::Revision, "revision").await;
    let told: Vec<&String> = stream.seen.iter().flat_map(|request| request.initial_resource_versions.keys()).collect();
    let name = format!("outbound/{VIP}");
    for held in ["inbound", "outbound", name.as_str(), "svc/shop/server:80"] {
        assert!(told.iter().any(|told| *told == held), "{held}: {told:?}");
    }
    stream.subscribed(ResourceType::Listener, &name).await;
    stream.send(ResourceType::Endpoints, &[endpoints(&world(&[two]))], &[]).await;
    let barrier = stream.barrier(2).await;
    assert_eq!(stream.answer(&barrier).await, None, "nothing but endpoints was sent again, and the hash is the same");
    assert_eq!((app.revision(), call(address).await), (2, "two".to_owned()));
}

#[tokio::test]
async fn an_answer_that_does_not_come_refuses_mesh_addresses_and_lets_others_pass() {
    let outside = application("outside").await;
    let mut plane = Plane::start().await;
    let mut settings = settings(&plane, &plane.ca.token("client"), &["240.0.0.9:80", &outside.to_string()], "");
    assert_eq!(settings.discovery_wait, Duration::from_secs(3));
    settings.discovery_wait = Duration::from_millis(300);
    let app = App::start(settings).await.unwrap();
    let mut stream = begin(&mut plane, &app, &world(&[])).await;
    let started = Instant::now();
    let [mesh, other] = app.addresses.forward_outbound[..] else { panic!("two listeners") };
    assert_eq!(call(mesh).await, "");
    assert!((300..2_000).contains(&started.elapsed().as_millis()), "{:?}", started.elapsed());
    assert_eq!(call(other).await, "outside");
    // An answer that says no applies at once, without a barrier.
    let name = format!("outbound/{outside}");
    stream.subscribed(ResourceType::Listener, &name).await;
    stream.send(ResourceType::Listener, &[], &[&name, "outbound/240.0.0.9:80"]).await;
    let end = Instant::now() + PATIENCE;
    loop {
        let started = Instant::now();
        assert_eq!((call(mesh).await, call(other).await), (String::new(), "outside".to_owned()));
        if started.elapsed() < Duration::from_millis(200) {
            break;
        }
        assert!(Instant::now() < end, "the answer is still waited for");
    }
}

#[tokio::test]
async fn during_an_outage_only_the_first_connection_to_an_unknown_destination_waits() {
    let outside = application("outside").await;
    let mut plane = Plane::start().await;
    let destinations = ["240.0.0.9:80", &outside.to_string()];
    let mut settings = settings(&plane, &plane.ca.token("client"), &destinations, "");
    settings.discovery_wait = Duration::from_millis(500);
    let app = App::start(settings).await.unwrap();
    let stream = begin(&mut plane, &app, &world(&[])).await;
    let (ca, port) = (plane.ca.clone(), plane.address.port());
    drop((plane, stream));
    sleep(Duration::from_millis(100)).await;
    let [mesh, other] = app.addresses.forward_outbound[..] else { panic!("two listeners") };
    for (address, answer) in [(mesh, ""), (other, "outside")] {
        let started = Instant::now();
        assert_eq!(call(address).await, answer);
        assert!(started.elapsed() >= Duration::from_millis(500), "the first one waits: {:?}", started.elapsed());
        for _ in 0..5 {
            let started = Instant::now();
            assert_eq!(call(address).await, answer);
            assert!(started.elapsed() < Duration::from_millis(400), "the others do not: {:?}", started.elapsed());
        }
    }
    // Once there is a control plane again it is asked, and its answer is waited for.
    let mut plane = Plane::start_as(ca, port, PLANE).await;
    let mut stream = plane.stream().await;
    stream.subscribed(ResourceType::Listener, "outbound/240.0.0.9:80").await;
    stream.subscribed(ResourceType::Listener, &format!("outbound/{outside}")).await;
    let barrier = stream.barrier(1).await;
    assert_eq!(stream.answer(&barrier).await, None);
    let started = Instant::now();
    assert_eq!(call(mesh).await, "");
    assert!(started.elapsed() >= Duration::from_millis(500), "{:?}", started.elapsed());
}

#[tokio::test]
async fn before_the_first_configuration_nothing_leaves() {
    let outside = application("outside").await;
    let mut plane = Plane::start().await;
    let mut settings = settings(&plane, &plane.ca.token("client"), &[&outside.to_string()], "");
    settings.discovery_wait = Duration::from_millis(300);
    let app = App::start(settings).await.unwrap();
    let other = app.addresses.forward_outbound[0];
    assert_eq!(call(other).await, "", "the outbound policy is not known yet");
    begin(&mut plane, &app, &world(&[])).await;
    assert_eq!(call(other).await, "outside");
}

#[tokio::test]
async fn another_hash_is_refused_and_everything_is_asked_for_again() {
    let (mut plane, app, mut stream, address) = known(&[application("one").await]).await;
    let barrier = stream.barrier_with(2, [7; 32]).await;
    let reason = stream.answer(&barrier).await.expect("a NACK");
    assert!(reason.contains("revision 2") && reason.contains("hash"), "{reason}");
    let mut again = plane.stream().await;
    again.subscribed(ResourceType::Revision, "revision").await;
    assert!(again.seen.iter().all(|request| request.initial_resource_versions.is_empty()), "{:?}", again.seen);
    assert_eq!((app.revision(), call(address).await), (1, "one".to_owned()));
}

#[tokio::test]
async fn a_control_plane_without_revisions_is_followed_down_the_tree() {
    let mut plane = Plane::start().await;
    let app = start(&plane, &[VIP]).await;
    let world = world(&[application("one").await]);
    let mut stream = plane.stream().await;
    stream.subscribed(ResourceType::Listener, "outbound").await;
    let [inbound, outbound, routes] = first(&world).try_into().unwrap();
    stream.send(ResourceType::Listener, &[inbound, outbound], &[]).await;
    stream.subscribed(ResourceType::Route, "inbound").await;
    assert_eq!(app.not_ready(), ["no configuration"], "not before the tree is complete");
    stream.send(ResourceType::Route, &[routes], &[]).await;
    let address = app.addresses.forward_outbound[0];
    let called = tokio::spawn(call(address));
    stream.subscribed(ResourceType::Listener, &format!("outbound/{VIP}")).await;
    let [cluster, endpoints, listener] = service(&world).try_into().unwrap();
    stream.send(ResourceType::Listener, &[listener], &[]).await;
    stream.subscribed(ResourceType::Cluster, "svc/shop/server:80").await;
    stream.subscribed(ResourceType::Endpoints, "svc/shop/server:80").await;
    stream.send(ResourceType::Endpoints, &[endpoints], &[]).await;
    stream.send(ResourceType::Cluster, &[cluster], &[]).await;
    assert_eq!(called.await.unwrap(), "one");
    assert_eq!(app.not_ready(), Vec::<&str>::new());
}

#[tokio::test]
async fn the_first_certificate_is_by_token_and_the_next_ones_by_certificate_with_new_keys() {
    let mut plane = Plane::start().await;
    plane.issuing.lock().ttl = Duration::from_secs(4);
    let app = start(&plane, &[]).await;
    begin(&mut plane, &app, &world(&[])).await;
    let end = Instant::now() + PATIENCE;
    while plane.asked.lock().len() < 3 {
        assert!(Instant::now() < end, "{:?}", plane.asked.lock());
        assert_eq!(app.not_ready(), Vec::<&str>::new());
        sleep(Duration::from_millis(50)).await;
    }
    let asked = plane.asked.lock().clone();
    assert_eq!((asked[0].token.as_str(), asked[0].by_certificate), (plane.ca.token("client").as_str(), false));
    assert!(asked[1..].iter().all(|asked| asked.token.is_empty() && asked.by_certificate), "{asked:?}");
    assert!(asked[0].key != asked[1].key && asked[1].key != asked[2].key, "a key is never used twice");
}

#[tokio::test]
async fn a_stranger_in_the_control_planes_place_gets_no_token() {
    for (id, same_root) in [(PLANE, false), ("spiffe://weft.local/ns/shop/sa/client", true)] {
        let other = Plane::start().await;
        let plane = Plane::start_as(other.ca.clone(), 0, id).await;
        let token = if same_root { plane.ca.token("client") } else { Plane::start().await.ca.token("client") };
        let app = App::start(settings(&plane, &token, &[], "")).await.unwrap();
        sleep(Duration::from_millis(500)).await;
        assert_eq!(plane.asked.lock().len(), 0, "{id}");
        assert_eq!(app.not_ready(), ["no certificate", "no configuration"]);
    }
}

#[tokio::test]
async fn a_refused_token_is_tried_again_with_patience() {
    let plane = Plane::start().await;
    plane.issuing.lock().refuse = Some("join_token: already used".into());
    let app = start(&plane, &[]).await;
    sleep(Duration::from_millis(1_000)).await;
    let tries = plane.asked.lock().len();
    assert!((2..=6).contains(&tries), "{tries} tries in a second");
    // `ready` says why. (26)
    let told =
        ["no certificate: the control plane refuses a certificate: join_token: already used", "no configuration"];
    assert_eq!(app.reasons(), told);
    let readiness = format!("http://{}/readyz", app.addresses.metrics);
    let ready = tokio::task::spawn_blocking(move || {
        std::process::Command::new(env!("CARGO_BIN_EXE_weft-proxy")).args(["ready", "--url", &readiness]).output()
    });
    let ready = ready.await.unwrap().unwrap();
    let said = String::from_utf8_lossy(&ready.stderr).into_owned();
    assert_eq!(ready.status.code(), Some(1), "{said}");
    assert!(said.contains(told[0]), "{said}");
    plane.issuing.lock().refuse = None;
    let end = Instant::now() + PATIENCE;
    while app.not_ready().contains(&"no certificate") {
        assert!(Instant::now() < end);
        sleep(Duration::from_millis(20)).await;
    }
}

/// (26)
#[tokio::test]
async fn a_certificate_of_another_account_is_refused_and_ready_says_so() {
    let plane = Plane::start().await;
    plane.issuing.lock().account = "other".into();
    let app = start(&plane, &[]).await;
    let end = Instant::now() + PATIENCE;
    let wanted = "no certificate: the certificate is for spiffe://weft.local/ns/shop/sa/other, and the proxy's file says shop/client";
    while !app.reasons().iter().any(|reason| reason.starts_with(wanted)) {
        assert!(Instant::now() < end, "{:?}", app.reasons());
        sleep(Duration::from_millis(20)).await;
    }
    plane.issuing.lock().account = "client".into();
    while app.not_ready().contains(&"no certificate") {
        assert!(Instant::now() < end);
        sleep(Duration::from_millis(20)).await;
    }
}

/// Reads heartbeats until one says this.
async fn heartbeat(
    agent: &mut tokio::sync::mpsc::Receiver<weft_proto::weft::v1::AgentMessage>,
    wanted: Health,
) -> String {
    loop {
        let message = timeout(PATIENCE, agent.recv()).await.expect("a heartbeat in time").expect("the stream is open");
        if let Some(Message::Heartbeat(heartbeat)) = message.message
            && heartbeat.health() == wanted
        {
            return heartbeat.reason;
        }
    }
}

#[tokio::test]
async fn the_control_plane_hears_of_the_workload_its_health_and_its_end() {
    let application = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = application.local_addr().unwrap().port();
    let mut plane = Plane::start().await;
    let more =
        format!(", ports: [{{name: http, port: {port}, protocol: grpc}}], health: {{port: {port}, interval: 20ms}}");
    let app = App::start(settings(&plane, &plane.ca.token("client"), &[], &more)).await.unwrap();
    let mut agent = plane.agent().await;
    let first = timeout(PATIENCE, agent.recv()).await.unwrap().unwrap();
    let Some(Message::Register(register)) = first.message else { panic!("{first:?}") };
    assert_eq!(
        (register.namespace.as_str(), register.name.as_str(), register.mode.as_str()),
        ("shop", "client-1", "sidecar")
    );
    assert_eq!((register.addresses, register.ports[0].protocol.as_str()), (vec!["127.0.0.1".to_owned()], "grpc"));
    assert_eq!(register.incarnation.len(), 32);
    begin(&mut plane, &app, &world(&[])).await;
    heartbeat(&mut agent, Health::Healthy).await;
    drop(application);
    let reason = heartbeat(&mut agent, Health::Unhealthy).await;
    assert!(reason.contains(&port.to_string()) && reason.contains("refused"), "{reason}");
    let stopped = tokio::spawn(app.shutdown());
    heartbeat(&mut agent, Health::Draining).await;
    let mut last = None;
    while let Some(message) = timeout(PATIENCE, agent.recv()).await.expect("an end in time") {
        last = message.message;
    }
    assert!(matches!(last, Some(Message::Deregister(_))), "{last:?}");
    assert!(stopped.await.unwrap(), "nothing was open");
}

#[tokio::test]
async fn draining_waits_for_open_connections_and_no_longer_than_it_may() {
    let (_plane, app, _stream, address) = known(&[application("one").await]).await;
    let mut open = TcpStream::connect(address).await.unwrap();
    open.write_all(b"x").await.unwrap();
    let mut one = [0; 3];
    open.read_exact(&mut one).await.unwrap();
    // The deadline comes before a connection of the workload counts as idle.
    let held = TcpStream::connect(address).await.unwrap();
    sleep(Duration::from_millis(100)).await;
    let started = Instant::now();
    let stopped = tokio::spawn(app.shutdown());
    drop(open);
    assert!(!stopped.await.unwrap(), "one connection was left at the deadline");
    let took = started.elapsed();
    assert!((1_900..3_500).contains(&took.as_millis()), "{took:?}");
    drop(held);
}
