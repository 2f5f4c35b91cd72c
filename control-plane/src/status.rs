//! The status of objects, computed when it is read: the conditions from compile, and whether the proxies have applied it.
//! Shape: [`StatusBook`] keeps one compiled world, of the revision that was last read, and the time since which each
//! condition has its status (`times`). [`StatusBook::follow`] computes the status of all objects after a change, so that
//! these times do not depend on readers.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use weft_core::{
    api::{Condition, ConditionStatus, Object, Status},
    compile::{Objects, Workloads, World, resources_of},
    identity::TrustDomain,
};

use self::times::Times;
use crate::{
    desired::Desired,
    state::{ProxyStatus, ProxyTable},
};

mod times;

/// Interval in which changes are looked for.
const LOOK: Duration = Duration::from_secs(5);
/// Objects that are computed before other tasks get a turn.
const TOGETHER: usize = 64;

/// Computes the status of objects.
pub struct StatusBook {
    trust_domain: TrustDomain,
    proxies: Arc<ProxyTable>,
    world: Mutex<Option<Arc<World>>>,
    times: Arc<Mutex<Times>>,
}

/// Computes the status of the objects of one snapshot.
pub struct StatusView {
    world: Arc<World>,
    proxies: Proxies,
    /// `None` for the snapshot of a dry run.
    times: Option<Arc<Mutex<Times>>>,
}

/// The revisions of the proxies, and their NACKs.
#[derive(Debug, Default, PartialEq)]
struct Proxies {
    /// The applied revision of each proxy that was sent one, sorted.
    applied: Vec<u64>,
    refusals: Vec<Refusal>,
}

#[derive(Debug, PartialEq)]
struct Refusal {
    proxy: Arc<str>,
    /// The applied revision of the proxy.
    applied: u64,
    resource: String,
    message: String,
}

impl StatusBook {
    /// For a mesh.
    pub fn new(trust_domain: TrustDomain, proxies: Arc<ProxyTable>) -> Self {
        Self { trust_domain, proxies, world: Mutex::new(None), times: Arc::default() }
    }

    /// For a snapshot that is or was current. Cost: linear in the objects if another revision was read last.
    pub fn view(&self, desired: &Desired) -> StatusView {
        let mut cached = self.world.lock();
        let world = match cached.as_ref().filter(|world| world.revision() == desired.revision) {
            Some(world) => Arc::clone(world),
            None => {
                let world = self.compile(desired);
                *cached = Some(Arc::clone(&world));
                world
            }
        };
        drop(cached);
        StatusView { world, proxies: Proxies::new(self.proxies.list()), times: Some(Arc::clone(&self.times)) }
    }

    /// For a snapshot that may never become current, as of a dry run.
    pub fn view_once(&self, desired: &Desired) -> StatusView {
        StatusView { world: self.compile(desired), proxies: Proxies::default(), times: None }
    }

    /// Follows changes, until `stop`. Cost: linear in the objects after a change, every 5 s at most.
    pub async fn follow(&self, desired: watch::Receiver<Arc<Desired>>, stop: CancellationToken) {
        let mut last = None;
        loop {
            let now = desired.borrow().clone();
            let view = self.view(&now);
            if last.as_ref().is_none_or(|(revision, proxies)| (*revision, proxies) != (now.revision, &view.proxies)) {
                for (at, object) in now.objects.values().enumerate() {
                    if at % TOGETHER == TOGETHER - 1 {
                        tokio::task::yield_now().await;
                    }
                    view.status(object);
                }
                self.times.lock().keep(&now);
                last = Some((now.revision, view.proxies));
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    fn compile(&self, desired: &Desired) -> Arc<World> {
        let objects = Objects::new(&desired.objects, self.trust_domain.clone(), desired.revision);
        Arc::new(World::new(Arc::new(objects), Arc::new(Workloads::default())))
    }
}

impl StatusView {
    /// An object with its status.
    pub fn with_status(&self, object: &Object) -> Object {
        let status = self.status(object);
        let mut object = object.clone();
        *object.status_mut() = Some(status);
        object
    }

    fn status(&self, object: &Object) -> Status {
        let mut status = self.world.status(&object.key()).unwrap_or_default();
        let generation = object.metadata().generation;
        if !status.conditions.iter().any(|condition| condition.kind == "Accepted") && status.parents.is_empty() {
            status.conditions.push(condition("Accepted", ConditionStatus::True, "Accepted", String::new(), generation));
        }
        status.conditions.push(self.programmed(object));
        if let Some(times) = &self.times {
            times.lock().note(object, &mut status, Timestamp::now());
        }
        status
    }

    /// Faults of an object that are no reason to reject it.
    pub fn warnings(&self, object: &Object) -> Vec<String> {
        let bad = |condition: &Condition| match condition.kind.as_str() {
            "Conflicted" => condition.status == ConditionStatus::True,
            _ => condition.status == ConditionStatus::False,
        };
        let conditions = self.world.conditions(&object.key());
        let mut texts: Vec<String> =
            conditions.into_iter().filter(bad).map(|it| format!("{}: {}", it.reason, it.message)).collect();
        texts.dedup();
        texts
    }

    /// Whether every connected proxy has applied this object.
    fn programmed(&self, object: &Object) -> Condition {
        let metadata = object.metadata();
        let revision: u64 = metadata.resource_version.as_deref().and_then(|text| text.parse().ok()).unwrap_or(0);
        let resources = resources_of(object);
        let generation = metadata.generation;
        let tell = |status, reason, message| condition("Programmed", status, reason, message, generation);
        let concerns = |refusal: &&Refusal| {
            resources.iter().any(|names| names.covers(&refusal.resource))
                || (refusal.resource == weft_core::wire::REVISION_NAME && refusal.applied < revision)
        };
        let told = |it: &Refusal| format!("{} refuses {}: {}", it.proxy, it.resource, it.message);
        let mut refusals: Vec<String> = self.proxies.refusals.iter().filter(concerns).map(told).collect();
        let (all, behind) =
            (self.proxies.applied.len(), self.proxies.applied.partition_point(|applied| *applied < revision));
        if !refusals.is_empty() {
            let more = refusals.len().saturating_sub(3);
            refusals.truncate(3);
            let more = if more > 0 { format!("; and {more} more") } else { String::new() };
            return tell(ConditionStatus::False, "Refused", format!("{}{more}", refusals.join("; ")));
        }
        match (all, behind) {
            (0, _) => tell(ConditionStatus::Unknown, "NoProxy", "no proxy is connected".to_owned()),
            (_, 0) => tell(ConditionStatus::True, "Programmed", String::new()),
            _ => tell(
                ConditionStatus::Unknown,
                "Pending",
                format!("{behind} of {all} proxies do not run revision {revision} yet"),
            ),
        }
    }
}

impl Proxies {
    fn new(proxies: Vec<ProxyStatus>) -> Self {
        let mut summary = Self::default();
        for ProxyStatus { key, discovery, .. } in proxies {
            let Some(discovery) = discovery else { continue };
            let applied = discovery.applied_revision.unwrap_or(0);
            if discovery.sent_revision.is_some() {
                summary.applied.push(applied);
            }
            summary.refusals.extend(discovery.nacks.into_iter().map(|(resource, nack)| Refusal {
                proxy: Arc::clone(&key.name),
                applied,
                resource,
                message: nack.message,
            }));
        }
        summary.applied.sort_unstable();
        summary
    }
}

fn condition(kind: &str, status: ConditionStatus, reason: &str, message: String, generation: Option<u64>) -> Condition {
    Condition {
        kind: kind.to_owned(),
        status,
        reason: reason.to_owned(),
        message,
        observed_generation: generation,
        last_transition_time: None,
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use weft_core::{
        api::{ObjectKey, parse_documents},
        identity::Identity,
    };

    use super::*;
    use crate::state::{Nack, ProxyKey};

    const TEXT: &str = "
{apiVersion: v1, kind: Service, metadata: {name: a, namespace: shop}, spec: {ports: [{port: 80}], clusterIPs: [240.0.0.1]}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: a}]
  rules: [{backendRefs: [{name: missing, port: 80}]}]
";

    fn desired() -> Desired {
        let objects = parse_documents(TEXT).unwrap().into_iter().map(|mut object| {
            object.metadata_mut().resource_version = Some("4".into());
            object.metadata_mut().generation = Some(2);
            (object.key(), Arc::new(object))
        });
        Desired { revision: 4, objects: objects.collect() }
    }

    fn programmed(view: &StatusView, desired: &Desired, key: &str) -> (ConditionStatus, String, String) {
        let object = view.with_status(&desired.objects[&key.parse::<ObjectKey>().unwrap()]);
        let all = object.status().unwrap().conditions.clone();
        let found = all.into_iter().find(|condition| condition.kind == "Programmed").unwrap();
        assert_eq!(found.observed_generation, Some(2));
        (found.status, found.reason, found.message)
    }

    #[test]
    fn a_refusal_and_a_proxy_that_is_behind_are_told_on_the_object() {
        let table = Arc::new(ProxyTable::default());
        let book = StatusBook::new(TrustDomain::parse("weft.local").unwrap(), Arc::clone(&table));
        let desired = desired();
        let told = |key| programmed(&book.view(&desired), &desired, key);
        assert_eq!(told("Service/shop/a").1, "NoProxy");
        let identity = Identity::parse("spiffe://weft.local/ns/shop/sa/order").unwrap();
        let key = ProxyKey { identity, name: "shop/order-1".into() };
        let stream = table.discovery(key, "weft-proxy".into(), Timestamp::UNIX_EPOCH);
        stream.update(|status| (status.sent_revision, status.applied_revision) = (Some(4), Some(3)));
        assert_eq!(told("Service/shop/a").1, "Pending");
        let nack = Nack { type_url: String::new(), message: "too new".into(), at: Timestamp::UNIX_EPOCH };
        stream.nack(["svc/shop/a:80".into()], nack.clone());
        let (status, reason, message) = told("HTTPRoute/shop/r");
        assert_eq!((status, reason.as_str()), (ConditionStatus::False, "Refused"));
        assert_eq!(message, "shop/order-1 refuses svc/shop/a:80: too new");
        stream.ack(["svc/shop/a:80"], Timestamp::UNIX_EPOCH);
        stream.nack(["svc/shop/ab:80".into()], nack);
        stream.update(|status| status.applied_revision = Some(4));
        assert_eq!(told("Service/shop/a").0, ConditionStatus::True);
    }

    #[tokio::test]
    async fn a_transition_time_is_that_of_the_last_change_of_the_status() {
        let table = Arc::new(ProxyTable::default());
        let book = Arc::new(StatusBook::new(TrustDomain::parse("weft.local").unwrap(), Arc::clone(&table)));
        let desired = Arc::new(desired());
        let object = &desired.objects[&"HTTPRoute/shop/r".parse::<ObjectKey>().unwrap()];
        // What was seen an hour ago, as if it had been then.
        let hour = jiff::SignedDuration::from_hours(1);
        let mut earlier = book.view_once(&desired).with_status(object).status().unwrap().clone();
        assert!(earlier.parents[0].conditions.iter().all(|it| it.last_transition_time.is_none()), "a dry run");
        let then = Timestamp::now() - hour;
        book.times.lock().note(object, &mut earlier, then);

        let told = || book.view(&desired).with_status(object).status().unwrap().clone();
        let of = |status: &Status| {
            let programmed = status.conditions.iter().find(|it| it.kind == "Programmed").unwrap();
            (status.parents[0].conditions[0].last_transition_time, programmed.last_transition_time)
        };
        let then = Timestamp::from_second(then.as_second()).unwrap();
        assert_eq!(of(&told()), (Some(then), Some(then)), "the same as an hour ago");

        // A proxy comes: one condition changes, and nobody reads it.
        let identity = Identity::parse("spiffe://weft.local/ns/shop/sa/order").unwrap();
        let key = ProxyKey { identity, name: "shop/order-1".into() };
        let stream = table.discovery(key, "weft-proxy".into(), Timestamp::UNIX_EPOCH);
        stream.update(|status| (status.sent_revision, status.applied_revision) = (Some(4), Some(4)));
        let (_sender, receiver) = watch::channel(Arc::clone(&desired));
        let stop = CancellationToken::new();
        stop.cancel();
        book.follow(receiver, stop).await;
        let seen = book.times.lock().since(object, "Programmed");
        assert!(seen.is_some_and(|at| at > then + hour / 2), "{seen:?}");
        assert_eq!(of(&told()), (Some(then), seen), "the other one keeps its time");

        // Another object of the same name begins anew.
        let mut other = Object::clone(object);
        other.metadata_mut().uid = Some("another".into());
        let status = book.view(&desired).with_status(&other).status().unwrap().clone();
        assert!(of(&status).0 > Some(then));
    }

    #[test]
    fn a_dangling_reference_is_a_warning_and_a_condition() {
        let book = StatusBook::new(TrustDomain::parse("weft.local").unwrap(), Arc::default());
        let desired = desired();
        let view = book.view_once(&desired);
        let route = &desired.objects[&"HTTPRoute/shop/r".parse::<ObjectKey>().unwrap()];
        assert_eq!(view.warnings(route), ["BackendNotFound: there is no Service shop/missing with port 80"]);
        let parent = view.with_status(route).status().unwrap().parents[0].clone();
        assert!(parent.conditions.iter().any(|c| c.kind == "ResolvedRefs" && c.status == ConditionStatus::False));
    }
}
