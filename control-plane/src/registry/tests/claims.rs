//! Which claims are proven, and who gets an address that two claim.

use super::*;

/// The service accounts that answer a probe, by address; nothing answers elsewhere.
#[derive(Clone, Default)]
struct Answers(Arc<Mutex<BTreeMap<IpAddr, &'static str>>>);

impl Prover for Answers {
    fn probe<'a>(&'a self, workload: &'a RegisteredWorkload, address: IpAddr) -> BoxFuture<'a, Finding> {
        Box::pin(async move {
            match self.0.lock().get(&address) {
                Some(account) if *account == workload.service_account => Finding::Proven,
                Some(_) => Finding::Contradicted("another identity answers there"),
                None => Finding::Unknown("nothing answers there"),
            }
        })
    }
}

/// Probes until the test ends.
fn probing(registry: &Arc<Registry>, answers: &[(&str, &'static str)]) -> Answers {
    let all = Answers::default();
    all.0.lock().extend(answers.iter().map(|(address, account)| (ip(address), *account)));
    let (registry, prover) = (Arc::clone(registry), all.clone());
    tokio::spawn(async move { registry.prove(&prover).await });
    all
}

/// Time for several probes of each claim.
async fn probed() {
    tokio::time::sleep(Duration::from_secs(5)).await;
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn of(name: &str, account: &str, addresses: &[&str]) -> RegisteredWorkload {
    RegisteredWorkload {
        identity: Identity::parse(&format!("spiffe://weft.local/ns/shop/sa/{account}")).unwrap(),
        service_account: account.into(),
        addresses: addresses.iter().map(|text| ip(text)).collect(),
        ..workload(name)
    }
}

fn registry(loaded: Vec<RegisteredWorkload>) -> Arc<Registry> {
    Registry::new(loaded, INTERVAL, desired(), Arc::default())
}

fn addresses(registry: &Registry, name: &str) -> Vec<IpAddr> {
    let inner = registry.inner.lock();
    inner
        .registrations
        .find(&WorkloadKey::new("shop", name))
        .map(|registration| registration.workload.addresses.clone())
        .unwrap_or_default()
}

/// What a claim without a proof is to others: nothing, whoever else claims the address, and after it is gone. (30)
#[tokio::test(start_paused = true)]
async fn an_address_without_a_proof_is_shown_to_nobody_and_held_against_nobody() {
    let registry = registry(Vec::new());
    let publisher = Arc::clone(&registry);
    tokio::spawn(async move { publisher.publish().await });
    probing(&registry, &[("10.0.0.9", "owner")]);
    let thief = of("thief", "thief", &["203.0.113.5", "10.0.0.9"]);
    let (session, refused) = register(&registry, thief.clone(), Some(ip("10.0.0.66"))).unwrap();
    assert_eq!(refused, []);
    let owner = of("owner", "owner", &["10.0.0.9"]);
    assert_eq!(register(&registry, owner, Some(ip("10.0.0.77"))).unwrap().1, []);
    probed().await;
    let published = registry.watch().borrow().clone();
    let of = |name: &str| published.workloads[&WorkloadKey::new("shop", name)].clone();
    assert_eq!((of("thief").addresses.clone(), of("thief").unproven.clone()), (vec![], thief.addresses.clone()));
    assert_eq!((of("owner").addresses.clone(), of("owner").unproven.clone()), (vec![ip("10.0.0.9")], vec![]));
    let HeartbeatResult::Changed(told) = registry.heartbeat(&thief.key, session, Health::Healthy) else {
        panic!("untold")
    };
    assert!(told[0].reason.contains("not proven") && told[0].reason.contains("nothing answers"), "{}", told[0]);
    assert!(told[1].reason.contains("another identity"), "{}", told[1]);
    assert_eq!(registry.heartbeat(&thief.key, session, Health::Healthy), HeartbeatResult::Unchanged, "told once");
}

/// A workload that only its own claim puts into a service keeps no other one of it from expiring. (30)
#[tokio::test(start_paused = true)]
async fn a_workload_without_a_proven_address_expires_on_silence_and_counts_in_no_service() {
    let running = start(Vec::new());
    running.registry.opened();
    let session = join(&running.registry, workload("real"));
    register(&running.registry, of("ghost", "order", &["203.0.113.5"]), Some(ip("10.0.0.66"))).unwrap();
    running.registry.disconnected(&WorkloadKey::new("shop", "real"), session);
    tokio::time::sleep(running.registry.window() * 3).await;
    assert_eq!(running.names(), ["real"], "the last one of its service");
}

#[tokio::test(start_paused = true)]
async fn one_identity_has_a_bounded_number_of_workloads() {
    let registry = registry(Vec::new());
    let nth = |n: usize| of(&format!("w{n}"), "order", &["10.0.0.1"]);
    for n in 0..MAX_WORKLOADS_OF_IDENTITY {
        register(&registry, nth(n), None).unwrap();
    }
    let error = register(&registry, nth(MAX_WORKLOADS_OF_IDENTITY), None).unwrap_err();
    assert!(matches!(error, RegisterError::TooManyOfIdentity(_)), "{error}");
    register(&registry, nth(0), None).unwrap();
    register(&registry, of("other", "other", &["10.0.0.1"]), None).unwrap();
    let (session, _) = register(&registry, nth(1), None).unwrap();
    registry.deregister(&nth(1).key, session);
    register(&registry, nth(MAX_WORKLOADS_OF_IDENTITY), None).unwrap();
}

#[tokio::test(start_paused = true)]
async fn another_identity_does_not_take_an_address_by_saying_so() {
    let registry = registry(Vec::new());
    probing(&registry, &[("10.0.0.1", "order")]);
    let owner = of("order-1", "order", &["10.0.0.1"]);
    let session = join(&registry, owner.clone());
    register(&registry, of("thief", "thief", &["10.0.0.1"]), Some(ip("10.0.0.66"))).unwrap();
    probed().await;
    registry.disconnected(&owner.key, session);
    probed().await;
    assert_eq!(addresses(&registry, "order-1"), [ip("10.0.0.1")], "nor while the owner is silent");
    assert_eq!(addresses(&registry, "thief"), Vec::<IpAddr>::new());
}

#[tokio::test(start_paused = true)]
async fn a_session_from_an_address_takes_it_from_one_from_elsewhere() {
    let registry = registry(Vec::new());
    let answers = probing(&registry, &[("10.0.0.1", "insider")]);
    let insider = of("insider", "insider", &["10.0.0.66", "10.0.0.1"]);
    let session = join(&registry, insider.clone());
    probed().await;
    assert_eq!(addresses(&registry, "insider"), insider.addresses);
    // Another machine has that address now.
    answers.0.lock().insert(ip("10.0.0.1"), "order");
    let v4_mapped = Some(ip("::ffff:10.0.0.1"));
    let (_, refused) = register(&registry, of("order-1", "order", &["10.0.0.1"]), v4_mapped).unwrap();
    assert_eq!(refused, []);
    assert_eq!(addresses(&registry, "order-1"), [ip("10.0.0.1")]);
    assert_eq!(addresses(&registry, "insider"), [ip("10.0.0.66")], "it keeps its own");
    let HeartbeatResult::Changed(refused) = registry.heartbeat(&insider.key, session, Health::Healthy) else {
        panic!("untold")
    };
    assert_eq!(refused[0].address, ip("10.0.0.1"));
    assert!(refused[0].reason.contains("shop/order-1"), "{}", refused[0].reason);
    assert_eq!(registry.heartbeat(&insider.key, session, Health::Healthy), HeartbeatResult::Unchanged);
}

#[tokio::test(start_paused = true)]
async fn a_dual_stack_owner_has_its_second_address_once_it_answers_there() {
    let registry = registry(Vec::new());
    probing(&registry, &[("fd00::1", "order")]);
    let insider = of("insider", "insider", &["10.0.0.66", "fd00::1"]);
    join(&registry, insider);
    let owner = of("order-1", "order", &["fd00::1", "10.0.0.1"]);
    let (session, refused) = register(&registry, owner.clone(), Some(ip("10.0.0.1"))).unwrap();
    assert_eq!((refused, addresses(&registry, "order-1")), (vec![], vec![ip("10.0.0.1")]));
    probed().await;
    assert_eq!(addresses(&registry, "order-1"), owner.addresses, "in the order of its wish");
    assert_eq!(addresses(&registry, "insider"), [ip("10.0.0.66")]);
    assert_eq!(registry.heartbeat(&owner.key, session, Health::Healthy), HeartbeatResult::Unchanged);
}

#[tokio::test(start_paused = true)]
async fn a_refused_address_is_asked_for_with_each_heartbeat_until_its_holder_goes() {
    let registry = registry(Vec::new());
    let holder = of("holder", "holder", &["10.0.0.1"]);
    let held = join(&registry, holder.clone());
    let answers = probing(&registry, &[("fd00::1", "order")]);
    let wish = of("order-1", "order", &["fd00::1", "10.0.0.1"]);
    let (session, refused) = register(&registry, wish.clone(), Some(ip("10.0.0.1"))).unwrap();
    let beat = || registry.heartbeat(&wish.key, session, Health::Healthy);
    assert_eq!((refused.len(), beat(), beat()), (1, HeartbeatResult::Unchanged, HeartbeatResult::Unchanged));
    assert_eq!(registry.metrics.claims_refused.value(), 1, "counted once");
    probed().await;
    assert_eq!((addresses(&registry, "order-1"), beat()), (vec![ip("fd00::1")], HeartbeatResult::Unchanged));
    registry.deregister(&holder.key, held);
    assert_eq!(beat(), HeartbeatResult::Changed(Vec::new()));
    assert_eq!(addresses(&registry, "order-1"), wish.addresses, "in the order of its wish");
    assert_eq!(beat(), HeartbeatResult::Unchanged);
    drop(answers);
}

#[tokio::test(start_paused = true)]
async fn several_on_one_host_differ_by_port() {
    let registry = registry(Vec::new());
    join(&registry, of("order-1", "order", &["10.0.0.1"]));
    let mut other = of("cart-1", "cart", &["10.0.0.1"]);
    other.ports[0].port = 9090.try_into().unwrap();
    join(&registry, other);
    let neighbour = of("thief", "thief", &["10.0.0.1"]);
    assert!(register(&registry, neighbour, Some(ip("10.0.0.1"))).is_err(), "both prove it: who was first keeps it");
}

#[tokio::test(start_paused = true)]
async fn after_a_restart_everybody_comes_back_to_their_own() {
    let behind_nat = of("nat", "nat", &["192.168.0.5"]);
    let dual = of("dual", "dual", &["10.0.0.1", "fd00::1"]);
    let registry = registry(vec![behind_nat.clone(), dual.clone()]);
    registry.opened();
    register(&registry, of("thief", "thief", &["192.168.0.5"]), Some(ip("10.0.0.66"))).unwrap();
    assert!(addresses(&registry, "thief").is_empty());
    assert!(
        register(&registry, of("nat", "thief", &["192.168.0.5"]), Some(ip("10.0.0.66"))).is_err(),
        "nor by its name"
    );
    assert_eq!(register(&registry, behind_nat, Some(ip("10.0.0.254"))).unwrap().1, []);
    assert_eq!(register(&registry, dual, Some(ip("fd00::1"))).unwrap().1, []);
    assert_eq!(addresses(&registry, "dual").len(), 2);
    // What another one answers at by now is taken back.
    probing(&registry, &[("10.0.0.1", "thief")]);
    probed().await;
    assert_eq!(addresses(&registry, "dual"), [ip("fd00::1")]);
    assert_eq!(addresses(&registry, "nat").len(), 1, "silence takes nothing back");
}

#[tokio::test(start_paused = true)]
async fn what_a_person_wrote_is_only_for_its_own_account() {
    let text = "{apiVersion: weft.dev/v1alpha1, kind: Workload, metadata: {name: db, namespace: shop}, spec: {serviceAccount: db, addresses: [10.0.0.5], ports: [{port: 8080}]}}";
    let objects = parse_documents(text).unwrap().into_iter().map(|o: Object| (o.key(), Arc::new(o))).collect();
    let (_sender, receiver) = watch::channel(Arc::new(Desired { revision: 1, objects }));
    let registry = Registry::new(Vec::new(), INTERVAL, receiver, Arc::default());
    let error = register(&registry, of("thief", "thief", &["10.0.0.5"]), Some(ip("10.0.0.5"))).unwrap_err().to_string();
    assert!(error.contains("10.0.0.5") && error.contains("shop/db") && error.contains("delete"), "{error}");
    assert_eq!(register(&registry, of("db-1", "db", &["10.0.0.5"]), None).unwrap().1, []);
    let mut other = of("cart-1", "cart", &["10.0.0.5"]);
    other.ports[0].port = 9090.try_into().unwrap();
    assert_eq!(register(&registry, other, Some(ip("10.0.0.5"))).unwrap().1, [], "another port of that host");
    assert_eq!(addresses(&registry, "db-1"), [ip("10.0.0.5")], "the object is the proof");
}
