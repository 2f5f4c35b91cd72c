//! The agent stream: registration over a real connection, and what the API then shows.

use http::Method;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};
use weft_proto::weft::v1::{
    AgentMessage, ControlMessage, Deregister, Health, Heartbeat, Port, Register, Registered, agent_client::AgentClient,
    agent_message::Message, control_message,
};

use crate::harness::{Mesh, Svid, soon};

struct Agent {
    messages: mpsc::Sender<AgentMessage>,
    answers: Streaming<ControlMessage>,
}

impl Agent {
    async fn connect(mesh: &Mesh, svid: Option<&Svid>) -> Result<Self, tonic::Status> {
        Self::connect_from("127.0.0.1", mesh, svid).await
    }

    async fn connect_from(source: &str, mesh: &Mesh, svid: Option<&Svid>) -> Result<Self, tonic::Status> {
        let channel = mesh.grpc_from(source, svid).await;
        let channel = channel.map_err(|error| tonic::Status::unavailable(error.to_string()))?;
        let (messages, receiver) = mpsc::channel(8);
        let answers = AgentClient::new(channel).session(ReceiverStream::new(receiver)).await?.into_inner();
        Ok(Self { messages, answers })
    }

    async fn say(&self, message: Message) {
        self.messages.send(AgentMessage { message: Some(message) }).await.unwrap();
    }

    async fn register(&mut self, register: Register) -> Registered {
        self.say(Message::Register(register)).await;
        self.registered().await
    }

    async fn registered(&mut self) -> Registered {
        let answer = self.answers.message().await.unwrap().unwrap();
        let Some(control_message::Message::Registered(registered)) = answer.message else { panic!("{answer:?}") };
        registered
    }
}

fn register(name: &str) -> Register {
    Register {
        namespace: "shop".into(),
        name: name.into(),
        labels: [("app".to_owned(), "order".to_owned())].into(),
        addresses: vec!["127.0.0.1".into()],
        ports: vec![Port { name: "http".into(), port: 9, protocol: "http".into(), proxy_port: 0 }],
        mode: "sidecar".into(),
        version: "0.1.0".into(),
        incarnation: "one".into(),
        ..Register::default()
    }
}

fn heartbeat(health: Health) -> Message {
    Message::Heartbeat(Heartbeat { health: health.into(), reason: "busy".into(), revision: 3, ..Heartbeat::default() })
}

async fn workloads(mesh: &Mesh) -> Vec<Value> {
    mesh.get("/api/v1/workloads").await["items"].as_array().unwrap().clone()
}

#[tokio::test]
async fn a_workload_registers_reports_and_leaves() {
    let mesh = Mesh::start().await;
    let svid = mesh.svid("order").await;
    let mut agent = Agent::connect(&mesh, Some(&svid)).await.unwrap();
    let answer = agent.register(register("order-1")).await;
    assert_eq!((answer.heartbeat_interval_ms, answer.refused.as_str()), (2_000, ""));
    agent.say(heartbeat(Health::Draining)).await;
    let shown = soon("the heartbeat", async || {
        workloads(&mesh).await.into_iter().find(|workload| workload["spec"]["health"] == "draining")
    })
    .await;
    assert_eq!(shown["metadata"]["name"], "order-1");
    assert_eq!(shown["metadata"]["annotations"]["weft.dev/source"], "registered");
    assert_eq!(
        (&shown["spec"]["serviceAccount"], &shown["spec"]["addresses"]),
        (&json!("order"), &json!(["127.0.0.1"]))
    );
    let proxies = mesh.get("/api/v1/proxies").await;
    let proxy = &proxies["items"][0];
    assert_eq!(
        (&proxy["key"]["name"], &proxy["agent"]["health"], &proxy["agent"]["reason"]),
        (&json!("shop/order-1"), &json!("draining"), &json!("busy"))
    );
    assert_eq!(proxy["key"]["identity"], "spiffe://weft.local/ns/shop/sa/order");
    assert_eq!(mesh.get("/api/v1/workloads?label=app=order").await["items"].as_array().unwrap().len(), 1);
    assert_eq!(mesh.get("/api/v1/workloads?label=app=x").await["items"].as_array().unwrap().len(), 0);
    // What is read can be applied: a registered workload does not become an object by that. (21)
    let list = json!({"apiVersion": "v1", "kind": "List", "items": workloads(&mesh).await}).to_string();
    let applied = mesh.apply(&list).await;
    assert_eq!((&applied["revision"], &applied["objects"][0]["result"]), (&json!(0), &json!("unchanged")), "{applied}");
    assert!(applied["objects"][0]["warnings"][0].as_str().unwrap().contains("registered by its proxy"), "{applied}");
    let (status, put) =
        mesh.local(Method::PUT, "/api/v1/workloads/shop/order-1", workloads(&mesh).await.remove(0).to_string()).await;
    assert_eq!(status, 400, "{put}");
    agent.say(Message::Deregister(Deregister {})).await;
    soon("the end", async || workloads(&mesh).await.is_empty().then_some(())).await;
    soon("the end", async || mesh.get("/api/v1/proxies").await["items"].as_array().unwrap().is_empty().then_some(()))
        .await;
}

/// (24)
#[tokio::test]
async fn an_apply_warns_of_selectors_and_accounts_that_nobody_has_until_somebody_comes() {
    let mesh = Mesh::start().await;
    let text = "
{apiVersion: v1, kind: Service, metadata: {name: order, namespace: shop}, spec: {selector: {app: order}, ports: [{port: 80}]}}
---
apiVersion: weft.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: p, namespace: shop}
spec: {selector: {matchLabels: {app: order}}, action: Allow, rules: [{from: [{serviceAccounts: [shop/web, shop/order]}]}]}
";
    let warnings = |answer: &Value| {
        let objects = answer["objects"].as_array().unwrap().iter();
        let texts = objects.flat_map(|object| object["warnings"].as_array().cloned().unwrap_or_default());
        texts.map(|text| text.as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let no_service = "NoWorkload: no workload of namespace shop has the labels app=order";
    let no_guard =
        "NoWorkload: no workload with a proxy in namespace shop has the labels app=order, so nothing is guarded";
    let unknown = "UnknownAccount: no workload and no join token is of shop/order, shop/web";
    let (status, dry) = mesh.local(Method::POST, "/api/v1/apply?dryRun=true", text).await;
    assert_eq!((status.as_u16(), warnings(&dry)), (200, vec![no_service.into(), no_guard.into(), unknown.into()]));
    assert_eq!(warnings(&mesh.apply(text).await), [no_service, no_guard, unknown]);

    // A join token is enough for an account: its workload may be on its way.
    let id = mesh.join_token("web", json!({})).await.split('.').nth(1).unwrap().to_owned();
    let svid = mesh.svid("order").await;
    assert_eq!(warnings(&mesh.apply(text).await), [no_service, no_guard]);
    let service = async || mesh.get("/api/v1/services/shop/order").await["status"].clone();
    let selected = |status: &Value| {
        let conditions = status["conditions"].as_array().unwrap();
        conditions.iter().find(|it| it["type"] == "Selected").unwrap()["status"].clone()
    };
    let status = service().await;
    assert_eq!((selected(&status), &status["endpoints"]), (json!("False"), &json!({"healthy": 0, "total": 0})));

    let mut agent = Agent::connect(&mesh, Some(&svid)).await.unwrap();
    agent.register(register("order-1")).await;
    agent.say(heartbeat(Health::Healthy)).await;
    let status = soon("the registration", async || {
        let status = service().await;
        (status["endpoints"] == json!({"healthy": 1, "total": 1})).then_some(status)
    })
    .await;
    assert_eq!(selected(&status), "True");
    assert_eq!(warnings(&mesh.apply(text).await), Vec::<String>::new());
    agent.say(heartbeat(Health::Draining)).await;
    soon("the heartbeat", async || (service().await["endpoints"] == json!({"healthy": 0, "total": 1})).then_some(()))
        .await;
    assert_eq!(mesh.local(Method::DELETE, &format!("/api/v1/tokens/{id}"), "").await.0, 204);
    assert_eq!(warnings(&mesh.apply(text).await), ["UnknownAccount: no workload and no join token is of shop/web"]);
}

#[tokio::test]
async fn only_ones_own_namespace_and_only_with_a_certificate() {
    let mesh = Mesh::start().await;
    assert_eq!(Agent::connect(&mesh, None).await.err().unwrap().code(), Code::Unauthenticated);
    let svid = mesh.svid("order").await;
    let mut agent = Agent::connect(&mesh, Some(&svid)).await.unwrap();
    let answer = agent.register(Register { namespace: "bank".into(), ..register("order-1") }).await;
    assert!(answer.refused.starts_with("namespace: "), "{}", answer.refused);
    let answer = agent.register(Register { addresses: vec!["x".into()], ..register("order-1") }).await;
    assert!(answer.refused.starts_with("addresses[0]: "), "{}", answer.refused);
    assert!(workloads(&mesh).await.is_empty());
    assert_eq!(agent.register(register("order-1")).await.refused, "");
    let other = mesh.svid("other").await;
    let mut thief = Agent::connect(&mesh, Some(&other)).await.unwrap();
    assert!(thief.register(register("order-1")).await.refused.starts_with("name: "));
}

#[tokio::test]
async fn an_address_belongs_to_who_connects_from_it() {
    let mesh = Mesh::start().await;
    let (order, thief) = (mesh.svid("order").await, mesh.svid("thief").await);
    let at = |name: &str, addresses: &[&str]| Register {
        addresses: addresses.iter().map(|it| (*it).to_owned()).collect(),
        ..register(name)
    };
    let holders = async || {
        let all = workloads(&mesh).await.into_iter();
        all.map(|it| (it["metadata"]["name"].clone(), it["spec"]["addresses"].clone())).collect::<Vec<_>>()
    };

    // Before the victim is there its address is free, and yet the thief has it for nobody.
    let mut insider = Agent::connect_from("127.0.0.2", &mesh, Some(&thief)).await.unwrap();
    let answer = insider.register(at("insider", &["127.0.0.2", "127.0.0.3"])).await;
    assert_eq!((answer.refused.as_str(), answer.refused_addresses.len()), ("", 0));
    let shown = soon("the claim", async || workloads(&mesh).await.into_iter().next()).await;
    assert_eq!(shown["metadata"]["annotations"]["weft.dev/unproven-addresses"], "127.0.0.3");
    assert_eq!(shown["spec"]["addresses"], json!(["127.0.0.2"]));

    // It is told so once a probe has failed.
    let told = soon("a failed probe", async || {
        insider.say(heartbeat(Health::Healthy)).await;
        tokio::time::timeout(std::time::Duration::from_millis(50), insider.registered()).await.ok()
    })
    .await;
    assert_eq!((told.refused.as_str(), told.refused_addresses[0].address.as_str()), ("", "127.0.0.3"));
    assert!(told.refused_addresses[0].reason.contains("not proven"), "{told:?}");
    soon("the status", async || {
        let proxies = mesh.get("/api/v1/proxies").await;
        let mut all = proxies["items"].as_array().unwrap().iter();
        all.any(|it| it["agent"]["refusedAddresses"][0]["address"] == "127.0.0.3").then_some(())
    })
    .await;

    // The victim comes from it and has it.
    let mut victim = Agent::connect_from("127.0.0.3", &mesh, Some(&order)).await.unwrap();
    assert_eq!(victim.register(at("order-1", &["127.0.0.3"])).await.refused, "");
    let wanted = vec![(json!("insider"), json!(["127.0.0.2"])), (json!("order-1"), json!(["127.0.0.3"]))];
    soon("the victim's address", async || (holders().await == wanted).then_some(())).await;
    let mut other = Agent::connect_from("127.0.0.4", &mesh, Some(&thief)).await.unwrap();
    other.register(at("other", &["127.0.0.3"])).await;
    soon("a registration without an address", async || {
        (holders().await[1..] == [wanted[1].clone(), (json!("other"), json!([]))]).then_some(())
    })
    .await;
    other.say(Message::Deregister(Deregister {})).await;

    // It goes, and what was asked for is given to who answers there.
    victim.say(Message::Deregister(Deregister {})).await;
    soon("the end", async || (holders().await.len() == 1).then_some(())).await;
    let listener = std::net::TcpListener::bind("127.0.0.3:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let serving = tokio::spawn(serve_tls(listener, mesh.server(&thief)));
    let mut there = at("insider", &["127.0.0.2", "127.0.0.3"]);
    there.ports[0].port = port.into();
    insider.say(Message::Register(there)).await;
    let wanted = vec![(json!("insider"), json!(["127.0.0.2", "127.0.0.3"]))];
    soon("the address", async || (holders().await == wanted).then_some(())).await;
    serving.abort();
}

/// Handshakes as the proxy of a workload does them.
async fn serve_tls(listener: std::net::TcpListener, config: std::sync::Arc<rustls::ServerConfig>) {
    listener.set_nonblocking(true).unwrap();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(config);
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        if let Ok(mut stream) = acceptor.accept(stream).await {
            tokio::io::AsyncReadExt::read(&mut stream, &mut [0; 1]).await.ok();
        }
    }
}

#[tokio::test]
async fn a_new_process_takes_the_place_of_the_old_one() {
    let mesh = Mesh::start().await;
    let svid = mesh.svid("order").await;
    let mut old = Agent::connect(&mesh, Some(&svid)).await.unwrap();
    old.register(register("order-1")).await;
    let mut new = Agent::connect(&mesh, Some(&svid)).await.unwrap();
    new.register(Register { incarnation: "two".into(), zone: "b".into(), ..register("order-1") }).await;
    old.say(heartbeat(Health::Unhealthy)).await;
    assert_eq!(old.answers.message().await.unwrap_err().code(), Code::Aborted);
    let shown = soon("the new one", async || {
        workloads(&mesh).await.into_iter().find(|workload| workload["spec"]["zone"] == "b")
    })
    .await;
    assert_eq!(shown["spec"]["health"], "healthy");
    new.say(heartbeat(Health::Healthy)).await;
    soon("one proxy", async || {
        let proxies = mesh.get("/api/v1/proxies").await;
        (proxies["items"].as_array().unwrap().len() == 1 && proxies["items"][0]["agent"]["health"] == "healthy")
            .then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_rollback_leaves_registered_workloads_alone() {
    let mesh = Mesh::start().await;
    let svid = mesh.svid("order").await;
    let mut agent = Agent::connect(&mesh, Some(&svid)).await.unwrap();
    mesh.apply("{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {ports: [{port: 80}]}}").await;
    agent.register(register("order-1")).await;
    soon("the registration", async || (workloads(&mesh).await.len() == 1).then_some(())).await;
    let (status, _) = mesh.local(Method::POST, "/api/v1/rollback/0", "").await;
    assert_eq!(status, 200);
    assert_eq!(workloads(&mesh).await.len(), 1);
}

#[tokio::test]
async fn a_restart_forgets_nobody_and_expires_only_who_stays_away() {
    let flags = ["--heartbeat-interval", "300ms"];
    let mut mesh = Mesh::start_with(&flags).await;
    let svid = mesh.svid("order").await;
    let mut agents = Vec::new();
    for name in ["order-1", "order-2"] {
        let mut agent = Agent::connect(&mesh, Some(&svid)).await.unwrap();
        assert_eq!(agent.register(register(name)).await.refused, "");
        agents.push(agent);
    }
    mesh.restart(&flags).await;
    assert_eq!(workloads(&mesh).await.len(), 2, "they are there before they are back");
    let mut back = Agent::connect(&mesh, Some(&svid)).await.unwrap();
    back.register(register("order-1")).await;
    let beating = tokio::spawn(async move {
        loop {
            back.say(heartbeat(Health::Healthy)).await;
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    });
    let left = soon("the absent one's end", async || {
        let names: Vec<_> =
            workloads(&mesh).await.iter().map(|w| w["metadata"]["name"].as_str().unwrap().to_owned()).collect();
        (names.len() == 1).then_some(names)
    })
    .await;
    assert_eq!(left, ["order-1"]);
    beating.abort();
}

#[tokio::test]
async fn a_stop_ends_the_stream_with_a_word() {
    let mut mesh = Mesh::start().await;
    let svid = mesh.svid("order").await;
    let mut agent = Agent::connect(&mesh, Some(&svid)).await.unwrap();
    agent.register(register("order-1")).await;
    let running = mesh.running.take().unwrap();
    let stopped = tokio::spawn(running.stop());
    assert_eq!(agent.answers.message().await.unwrap_err().code(), Code::Unavailable);
    tokio::time::timeout(std::time::Duration::from_secs(5), stopped).await.unwrap().unwrap();
}

/// A registered workload, as it is kept.
pub(crate) fn registered(number: u32) -> weft_control_plane::registry::RegisteredWorkload {
    use weft_control_plane::registry::{RegisteredWorkload, WorkloadKey};
    RegisteredWorkload {
        key: WorkloadKey::new("shop", format!("order-{number}")),
        identity: weft_core::identity::Identity::parse("spiffe://weft.local/ns/shop/sa/order").unwrap(),
        service_account: "order".into(),
        labels: std::collections::BTreeMap::new(),
        addresses: vec![std::net::Ipv4Addr::from_bits(0x0a00_0000 + number).into()],
        unproven: Vec::new(),
        ports: Vec::new(),
        skipped_ports: Vec::new(),
        weight: std::num::NonZeroU32::MIN,
        zone: "z".repeat(200),
        gateway: false,
        health: weft_core::endpoint::Health::Healthy,
        incarnation: "one".into(),
        source: None,
    }
}
