//! The registry's rules, with paused time and a probe that answers as told.

use std::{collections::BTreeSet, net::IpAddr, num::NonZeroU32};

use futures_util::future::BoxFuture;
use weft_core::{
    api::{Object, parse_documents},
    identity::Identity,
    listener::Protocol,
};

use super::*;

const INTERVAL: Duration = Duration::from_secs(2);

/// Refuses for the workloads named in it.
#[derive(Clone, Default)]
struct Dead(Arc<Mutex<BTreeSet<String>>>);

impl Probe for Dead {
    fn refused<'a>(&'a self, workload: &'a RegisteredWorkload) -> BoxFuture<'a, bool> {
        Box::pin(async move { self.0.lock().contains(&workload.key.name) })
    }
}

fn workload(name: &str) -> RegisteredWorkload {
    let last: u8 = name.bytes().map(|b| b % 50).sum();
    RegisteredWorkload {
        key: WorkloadKey::new("shop", name),
        identity: Identity::parse("spiffe://weft.local/ns/shop/sa/order").unwrap(),
        service_account: "order".into(),
        labels: [("app".to_owned(), "order".to_owned())].into(),
        addresses: vec![[10, 0, 0, last].into()],
        unproven: Vec::new(),
        ports: vec![RegisteredPort {
            name: "http".into(),
            port: 8080.try_into().unwrap(),
            protocol: Protocol::Http,
            proxy_port: None,
        }],
        skipped_ports: Vec::new(),
        weight: NonZeroU32::MIN,
        zone: String::new(),
        gateway: false,
        health: Health::Healthy,
        incarnation: "one".into(),
        source: None,
    }
}

/// Registers from an address.
fn register(
    registry: &Registry,
    workload: RegisteredWorkload,
    source: Option<IpAddr>,
) -> Result<(Session, Vec<RefusedClaim>), RegisterError> {
    registry.register(RegisteredWorkload { source, ..workload })
}

/// Registers from the workload's own address.
fn join(registry: &Registry, workload: RegisteredWorkload) -> Session {
    let source = workload.addresses.first().copied();
    let (session, refused) = register(registry, workload, source).unwrap();
    assert_eq!(refused, []);
    session
}

fn desired() -> watch::Receiver<Arc<Desired>> {
    let text = "{apiVersion: v1, kind: Service, metadata: {name: order, namespace: shop}, spec: {selector: {app: order}, ports: [{port: 80}]}}";
    let objects = parse_documents(text).unwrap().into_iter().map(|o: Object| (o.key(), Arc::new(o))).collect();
    let (sender, receiver) = watch::channel(Arc::new(Desired { revision: 1, objects }));
    drop(sender);
    receiver
}

struct Running {
    registry: Arc<Registry>,
    dead: Dead,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.tasks.iter().for_each(|task| task.abort());
    }
}

fn start(loaded: Vec<RegisteredWorkload>) -> Running {
    let registry = Registry::new(loaded, INTERVAL, desired(), Arc::default());
    let dead = Dead::default();
    let (one, two, probe) = (Arc::clone(&registry), Arc::clone(&registry), dead.clone());
    let maintain = tokio::spawn(async move { one.maintain(&probe).await });
    let publish = tokio::spawn(async move { two.publish().await });
    Running { registry, dead, tasks: vec![maintain, publish] }
}

impl Running {
    fn names(&self) -> Vec<String> {
        self.registry.watch().borrow().workloads.keys().map(|key| key.name.clone()).collect()
    }

    /// Lets time pass while these workloads send their heartbeats.
    async fn live(&self, time: Duration, beating: &[(&str, Session)]) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            for (name, session) in beating {
                self.registry.heartbeat(&WorkloadKey::new("shop", *name), *session, Health::Healthy);
            }
            tokio::time::sleep(INTERVAL / 2).await;
        }
    }
}

/// (27.7)
#[tokio::test(start_paused = true)]
async fn a_pause_of_the_control_plane_expires_nobody_and_the_dead_go_in_their_time_after_it() {
    let running = start(Vec::new());
    running.registry.opened();
    let sessions: Vec<_> = ["a", "b", "c"].map(|name| (name, join(&running.registry, workload(name)))).into();
    running.live(INTERVAL * 6, &sessions).await;
    assert_eq!(running.names(), ["a", "b", "c"]);
    // The clock jumps, and nothing ran meanwhile. Even those without a listener have their time again.
    running.dead.0.lock().extend(["a", "b", "c"].map(str::to_owned));
    tokio::time::advance(INTERVAL * 30).await;
    running.live(INTERVAL * 2, &[]).await;
    assert_eq!(running.names(), ["a", "b", "c"], "right after the pause");
    running.live(INTERVAL * 4, &sessions[..2]).await;
    assert_eq!(running.names(), ["a", "b"], "the one without heartbeats since the pause");
}

/// (27.7)
#[tokio::test(start_paused = true)]
async fn an_address_is_not_taken_over_because_the_control_plane_was_paused() {
    let running = start(Vec::new());
    running.registry.opened();
    let session = join(&running.registry, workload("a"));
    running.live(INTERVAL * 6, &[("a", session)]).await;
    tokio::time::advance(INTERVAL * 30).await;
    let other = RegisteredWorkload {
        key: WorkloadKey::new("shop", "other"),
        identity: Identity::parse("spiffe://weft.local/ns/shop/sa/cart").unwrap(),
        service_account: "cart".into(),
        ..workload("a")
    };
    // From the address itself, as behind one NAT: a session with heartbeats outdoes it.
    let source = other.addresses.first().copied();
    let refused = register(&running.registry, other, source);
    assert!(matches!(refused, Err(RegisterError::Claimed(_))), "{refused:?}");
    assert_eq!(
        running.registry.heartbeat(&WorkloadKey::new("shop", "a"), session, Health::Healthy),
        HeartbeatResult::Unchanged
    );
}

#[tokio::test(start_paused = true)]
async fn what_was_loaded_is_shown_at_once_and_has_a_full_window_after_opening() {
    let running = start((0..10).map(|n| workload(&format!("w{n}"))).collect());
    assert_eq!(running.names().len(), 10);
    running.dead.0.lock().extend((0..10).map(|n| format!("w{n}")));
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(running.names().len(), 10, "the API is not open yet");
    running.registry.opened();
    tokio::time::sleep(running.registry.window() - Duration::from_millis(100)).await;
    assert_eq!(running.names().len(), 10, "the window has not passed yet");
    tokio::time::sleep(INTERVAL).await;
    assert!(running.names().is_empty(), "refused connections end the grace");
}

#[tokio::test(start_paused = true)]
async fn of_one_service_at_most_three_of_ten_expire_in_one_window() {
    let running = start(Vec::new());
    running.registry.opened();
    for n in 0..10 {
        let session = join(&running.registry, workload(&format!("w{n}")));
        running.registry.disconnected(&WorkloadKey::new("shop", format!("w{n}")), session);
    }
    tokio::time::sleep(running.registry.window() + INTERVAL).await;
    assert_eq!(running.names().len(), 7);
    tokio::time::sleep(running.registry.window() / 2).await;
    assert_eq!(running.names().len(), 7, "the same window still");
    tokio::time::sleep(running.registry.window()).await;
    assert_eq!(running.names().len(), 5, "30 % of 7 in the next window");
}

#[tokio::test(start_paused = true)]
async fn one_silent_workload_goes_in_each_window_and_the_last_one_stays() {
    for (count, after) in [(1, [1, 1, 1]), (2, [1, 1, 1]), (3, [2, 1, 1]), (10, [7, 5, 4])] {
        let running = start(Vec::new());
        running.registry.opened();
        for n in 0..count {
            let session = join(&running.registry, workload(&format!("w{n}")));
            running.registry.disconnected(&WorkloadKey::new("shop", format!("w{n}")), session);
        }
        let mut left = Vec::new();
        tokio::time::sleep(INTERVAL).await;
        for _ in 0..after.len() {
            tokio::time::sleep(running.registry.window()).await;
            left.push(running.names().len());
        }
        assert_eq!(left, after, "of {count}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_workload_that_nothing_selects_expires_after_three_missed_heartbeats() {
    let running = start(Vec::new());
    running.registry.opened();
    let mut other = workload("other");
    other.labels.clear();
    let session = join(&running.registry, other);
    running.live(running.registry.window() * 3, &[("other", session)]).await;
    assert_eq!(running.names(), ["other"]);
    tokio::time::sleep(INTERVAL * 2).await;
    assert_eq!(running.names(), ["other"], "two are missed");
    tokio::time::sleep(INTERVAL * 2).await;
    assert!(running.names().is_empty());
    assert_eq!(running.registry.metrics.workloads_expired.value(), 1);
}

#[tokio::test(start_paused = true)]
async fn one_whose_session_broke_goes_at_once_when_its_address_refuses() {
    let running = start(Vec::new());
    running.registry.opened();
    tokio::time::sleep(running.registry.window() * 2).await;
    let (dead, alive) = (workload("dead"), workload("alive"));
    let (a, b) = (join(&running.registry, dead.clone()), join(&running.registry, alive.clone()));
    running.dead.0.lock().insert("dead".into());
    running.registry.disconnected(&dead.key, a);
    running.registry.disconnected(&alive.key, b);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(running.names(), ["alive"], "no answer is no proof");
}

#[tokio::test(start_paused = true)]
async fn one_that_reconnects_while_it_is_probed_stays() {
    struct Slow(Arc<Registry>);
    impl Probe for Slow {
        fn refused<'a>(&'a self, it: &'a RegisteredWorkload) -> BoxFuture<'a, bool> {
            Box::pin(async move {
                let mut new = it.clone();
                new.incarnation = "two".into();
                join(&self.0, new);
                true
            })
        }
    }
    let registry = Registry::new(vec![workload("w")], INTERVAL, desired(), Arc::default());
    registry.opened();
    let task = tokio::spawn({
        let registry = Arc::clone(&registry);
        async move { registry.maintain(&Slow(Arc::clone(&registry))).await }
    });
    tokio::time::sleep(registry.window() + INTERVAL).await;
    assert_eq!(
        registry.inner.lock().registrations.find(&WorkloadKey::new("shop", "w")).unwrap().workload.incarnation,
        "two"
    );
    task.abort();
}

#[tokio::test(start_paused = true)]
async fn another_incarnation_replaces_and_the_old_session_is_without_effect() {
    let running = start(Vec::new());
    let key = WorkloadKey::new("shop", "w");
    let old = join(&running.registry, workload("w"));
    let mut second = workload("w");
    (second.incarnation, second.zone) = ("two".into(), "b".into());
    let new = join(&running.registry, second);
    assert_eq!(running.registry.heartbeat(&key, old, Health::Unhealthy), HeartbeatResult::Lost);
    running.registry.deregister(&key, old);
    running.registry.disconnected(&key, old);
    assert_eq!(running.registry.heartbeat(&key, new, Health::Draining), HeartbeatResult::Unchanged);
    tokio::time::sleep(DEBOUNCE * 2).await;
    let shown = running.registry.watch().borrow().workloads[&key].clone();
    assert_eq!((shown.zone.as_str(), shown.health), ("b", Health::Draining));
    running.registry.deregister(&key, new);
    tokio::time::sleep(DEBOUNCE * 2).await;
    assert!(running.names().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_name_of_a_connected_workload_is_not_given_to_another_identity() {
    let running = start(Vec::new());
    let session = join(&running.registry, workload("w"));
    let mut thief = workload("w");
    thief.identity = Identity::parse("spiffe://weft.local/ns/shop/sa/other").unwrap();
    assert!(matches!(register(&running.registry, thief.clone(), None), Err(RegisterError::Taken { .. })));
    running.registry.disconnected(&thief.key, session);
    let other = Some([10, 9, 9, 9].into());
    assert!(
        matches!(register(&running.registry, thief.clone(), other), Err(RegisterError::Taken { .. })),
        "not from there"
    );
    join(&running.registry, thief);
}

#[tokio::test(start_paused = true)]
async fn an_address_that_is_used_again_leaves_the_workload_that_is_gone() {
    let running = start(Vec::new());
    let old = join(&running.registry, workload("old"));
    let mut new = workload("new");
    new.addresses = workload("old").addresses;
    join(&running.registry, new.clone());
    tokio::time::sleep(DEBOUNCE * 2).await;
    assert_eq!(running.names(), ["new", "old"], "both are connected");
    running.registry.disconnected(&WorkloadKey::new("shop", "old"), old);
    join(&running.registry, new);
    tokio::time::sleep(DEBOUNCE * 2).await;
    assert_eq!(running.names(), ["new"]);
}

#[tokio::test(start_paused = true)]
async fn an_answer_at_the_address_of_another_workload_is_no_sign_of_life() {
    let running = start(Vec::new());
    running.registry.opened();
    tokio::time::sleep(running.registry.window() * 2).await;
    let old = join(&running.registry, workload("old"));
    let mut new = workload("new");
    new.addresses = workload("old").addresses;
    join(&running.registry, new);
    running.registry.disconnected(&WorkloadKey::new("shop", "old"), old);
    tokio::time::sleep(DEBOUNCE * 4).await;
    assert_eq!(running.names(), ["new"]);
}

#[tokio::test(start_paused = true)]
async fn a_hundred_changes_are_shown_together_and_unchanged_ones_keep_their_place() {
    let running = start(Vec::new());
    let mut watch = running.registry.watch();
    join(&running.registry, workload("first"));
    watch.changed().await.unwrap();
    let first = watch.borrow_and_update().workloads[&WorkloadKey::new("shop", "first")].clone();
    for n in 0..100 {
        join(&running.registry, workload(&format!("w{n}")));
    }
    join(&running.registry, workload("first"));
    watch.changed().await.unwrap();
    let snapshot = watch.borrow_and_update().clone();
    assert_eq!((snapshot.workloads.size(), snapshot.version), (101, 3));
    assert!(Arc::ptr_eq(&first, &snapshot.workloads[&first.key]));
}

#[tokio::test]
async fn the_file_has_what_was_registered_and_a_damaged_one_is_put_aside() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("registry.redb");
    let (file, loaded) = RegistryFile::open(&path).unwrap();
    assert!(loaded.is_empty());
    let file = Arc::new(file);
    let registry = Registry::new(Vec::new(), INTERVAL, desired(), Arc::default());
    let mut full = workload("w1");
    full.ports.push(RegisteredPort {
        name: "db".into(),
        port: 5432.try_into().unwrap(),
        protocol: Protocol::Tcp,
        proxy_port: Some(9.try_into().unwrap()),
    });
    full.skipped_ports = vec![9100.try_into().unwrap()];
    full.health = Health::Draining;
    full.source = full.addresses.first().copied();
    join(&registry, full.clone());
    full.unproven = vec![[203, 0, 113, 5].into()];
    let wish = RegisteredWorkload {
        addresses: full.addresses.iter().chain(&full.unproven).copied().collect(),
        unproven: Vec::new(),
        ..full.clone()
    };
    register(&registry, wish, full.source).unwrap();
    let gone = join(&registry, workload("w2"));
    registry.flush(&file).await.unwrap();
    registry.deregister(&WorkloadKey::new("shop", "w2"), gone);
    registry.flush(&file).await.unwrap();
    drop(file);
    assert_eq!(RegistryFile::open(&path).unwrap().1, [full]);
    std::fs::write(&path, b"no database, but longer than nothing at all").unwrap();
    assert!(RegistryFile::open(&path).unwrap().1.is_empty());
    assert!(dir.path().join("registry.redb.damaged").exists());
}

#[tokio::test]
async fn a_closed_port_refuses_and_an_open_one_does_not() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut it = workload("w");
    it.addresses = vec![[127, 0, 0, 1].into()];
    it.ports[0].port = listener.local_addr().unwrap().port().try_into().unwrap();
    assert!(!TcpProbe::default().refused(&it).await);
    drop(listener);
    assert!(TcpProbe::default().refused(&it).await);
    it.ports.clear();
    assert!(!TcpProbe::default().refused(&it).await, "no port, no proof");
}

mod claims;
