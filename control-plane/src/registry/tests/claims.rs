//! Who gets an address that two claim.

use super::*;

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

#[tokio::test(start_paused = true)]
async fn another_identity_does_not_take_an_address_by_saying_so() {
    let registry = registry(Vec::new());
    let owner = of("order-1", "order", &["10.0.0.1"]);
    let session = join(&registry, owner.clone());
    let thief = of("thief", "thief", &["10.0.0.1"]);
    let from = Some(ip("10.0.0.66"));
    let error = register(&registry, thief.clone(), from).unwrap_err().to_string();
    assert!(error.contains("10.0.0.1") && error.contains("shop/order-1") && error.contains("stop"), "{error}");
    registry.disconnected(&owner.key, session);
    assert!(register(&registry, thief, from).is_err(), "nor while the owner is silent");
    assert_eq!(addresses(&registry, "order-1"), [ip("10.0.0.1")]);
    assert_eq!(registry.metrics.claims_refused.value(), 2);
}

#[tokio::test(start_paused = true)]
async fn who_connects_from_an_address_takes_it_from_who_only_said_so() {
    let registry = registry(Vec::new());
    let insider = of("insider", "insider", &["10.0.0.66", "10.0.0.1"]);
    join(&registry, insider);
    let v4_mapped = Some(ip("::ffff:10.0.0.1"));
    let (_, refused) = register(&registry, of("order-1", "order", &["10.0.0.1"]), v4_mapped).unwrap();
    assert_eq!(refused, []);
    assert_eq!(addresses(&registry, "order-1"), [ip("10.0.0.1")]);
    assert_eq!(addresses(&registry, "insider"), [ip("10.0.0.66")], "it keeps its own");
}

#[tokio::test(start_paused = true)]
async fn a_dual_stack_owner_is_not_locked_out_by_a_claim_of_its_second_address() {
    let registry = registry(Vec::new());
    let insider = of("insider", "insider", &["10.0.0.66", "fd00::1"]);
    join(&registry, insider);
    let owner = of("order-1", "order", &["10.0.0.1", "fd00::1"]);
    let (_, refused) = register(&registry, owner, Some(ip("10.0.0.1"))).unwrap();
    assert_eq!(refused.iter().map(|it| it.address).collect::<Vec<_>>(), [ip("fd00::1")]);
    assert_eq!(addresses(&registry, "order-1"), [ip("10.0.0.1")]);
}

#[tokio::test(start_paused = true)]
async fn a_refused_address_is_asked_for_with_each_heartbeat_until_its_holder_goes() {
    let registry = registry(Vec::new());
    let holder = of("holder", "holder", &["10.0.0.66", "fd00::1"]);
    let held = join(&registry, holder.clone());
    let wish = of("order-1", "order", &["fd00::1", "10.0.0.1"]);
    let (session, refused) = register(&registry, wish.clone(), Some(ip("10.0.0.1"))).unwrap();
    let beat = || registry.heartbeat(&wish.key, session, Health::Healthy);
    assert_eq!((refused.len(), beat(), beat()), (1, HeartbeatResult::Unchanged, HeartbeatResult::Unchanged));
    assert_eq!(registry.metrics.claims_refused.value(), 1, "counted once");
    registry.deregister(&holder.key, held);
    assert_eq!(beat(), HeartbeatResult::Changed(Vec::new()));
    assert_eq!(addresses(&registry, "order-1"), wish.addresses, "in the order of its wish");
    assert_eq!(beat(), HeartbeatResult::Unchanged);
}

#[tokio::test(start_paused = true)]
async fn who_loses_an_address_is_told_with_its_next_heartbeat() {
    let registry = registry(Vec::new());
    let insider = of("insider", "insider", &["10.0.0.66", "10.0.0.1"]);
    let session = join(&registry, insider.clone());
    register(&registry, of("order-1", "order", &["10.0.0.1"]), Some(ip("10.0.0.1"))).unwrap();
    let HeartbeatResult::Changed(refused) = registry.heartbeat(&insider.key, session, Health::Healthy) else {
        panic!("untold")
    };
    assert_eq!(refused[0].address, ip("10.0.0.1"));
    assert!(refused[0].reason.contains("shop/order-1"), "{}", refused[0].reason);
    assert_eq!(registry.heartbeat(&insider.key, session, Health::Healthy), HeartbeatResult::Unchanged);
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
    assert!(register(&registry, of("thief", "thief", &["192.168.0.5"]), Some(ip("10.0.0.66"))).is_err());
    assert!(
        register(&registry, of("nat", "thief", &["192.168.0.5"]), Some(ip("10.0.0.66"))).is_err(),
        "nor by its name"
    );
    assert_eq!(register(&registry, behind_nat, Some(ip("10.0.0.254"))).unwrap().1, []);
    assert_eq!(register(&registry, dual, Some(ip("fd00::1"))).unwrap().1, []);
    assert_eq!(addresses(&registry, "dual").len(), 2);
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
    assert_eq!(register(&registry, other, None).unwrap().1, [], "another port of that host");
}
