//! The workloads as compile sees them: instances with addresses and identity, found by label and by address.
//! Shape: an index of persistent maps that is changed one workload at a time; a clone shares all that did not change.
//! Order: everything that comes out is sorted, so that the same workloads give the same bytes.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    num::{NonZeroU16, NonZeroU32},
    sync::Arc,
};

use rpds::{RedBlackTreeMapSync as Map, RedBlackTreeSetSync as Set};

use crate::{endpoint::Health, identity::Identity, listener::Protocol};

/// One running instance, registered or written down by a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// Its namespace.
    pub namespace: String,
    /// Its name, unique in the namespace.
    pub name: String,
    /// What selectors look at.
    pub labels: BTreeMap<String, String>,
    /// The identity of the proxy that answers there; without it the instance is reached in plaintext.
    pub identity: Option<Identity>,
    /// Where it is reached. The first one is used for services; each one is known as a destination of its own.
    pub addresses: Vec<IpAddr>,
    /// What it listens on.
    pub ports: Vec<InstancePort>,
    /// Ports at which its host is reached without its proxy: in plaintext, without an identity.
    pub skipped_ports: Vec<NonZeroU16>,
    /// Its share of a service's traffic relative to the other instances.
    pub weight: NonZeroU32,
    /// Where it runs; empty when not known.
    pub zone: String,
    /// Whether it takes new work.
    pub health: Health,
}

/// One port of an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstancePort {
    /// What services call it; may be empty.
    pub name: String,
    /// The application's port.
    pub port: NonZeroU16,
    /// What it speaks.
    pub protocol: Protocol,
    /// Where the proxy takes this port's traffic when there is no redirection.
    pub proxy_port: Option<NonZeroU16>,
}

/// Every instance, by namespace and name, label, and address.
#[derive(Clone, Debug, Default)]
pub struct Workloads {
    namespaces: Map<Arc<str>, Namespace>,
    by_address: Map<IpAddr, Map<InstanceKey, Arc<Instance>>>,
    /// The number of instances of each identity.
    by_identity: Map<Identity, usize>,
}

/// Namespace and name.
type InstanceKey = (Arc<str>, Arc<str>);

/// The names of the instances that have each value of one label.
type Values = Map<Arc<str>, Set<Arc<str>>>;

#[derive(Clone, Debug, Default)]
struct Namespace {
    instances: Map<Arc<str>, Arc<Instance>>,
    by_label: Map<Arc<str>, Values>,
}

impl Instance {
    /// The port with this number, if it is declared.
    pub fn port(&self, port: NonZeroU16) -> Option<&InstancePort> {
        self.ports.iter().find(|candidate| candidate.port == port)
    }

    /// The port with this name, if it is declared.
    pub fn port_named(&self, name: &str) -> Option<&InstancePort> {
        self.ports.iter().find(|candidate| candidate.name == name)
    }

    /// Whether a port is reached without its proxy.
    pub fn skips(&self, port: NonZeroU16) -> bool {
        self.skipped_ports.contains(&port)
    }

    /// `<namespace>/<name>`.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

impl Workloads {
    /// Adds an instance, or replaces the one of the same namespace and name, which is returned. Cost: logarithmic.
    pub fn insert(&mut self, instance: Arc<Instance>) -> Option<Arc<Instance>> {
        let old = self.remove(&instance.namespace, &instance.name);
        let key: InstanceKey = (instance.namespace.as_str().into(), instance.name.as_str().into());
        for address in &instance.addresses {
            at(&mut self.by_address, *address, |there| there.insert_mut(key.clone(), Arc::clone(&instance)));
        }
        if let Some(identity) = &instance.identity {
            at(&mut self.by_identity, identity.clone(), |count| *count += 1);
        }
        let (namespace, name) = key;
        at(&mut self.namespaces, namespace, |index| {
            for (label, value) in &instance.labels {
                at(&mut index.by_label, label.as_str().into(), |values| {
                    at(values, value.as_str().into(), |names| names.insert_mut(Arc::clone(&name)));
                });
            }
            index.instances.insert_mut(name, Arc::clone(&instance));
        });
        old
    }

    /// Every instance at an address, in the order of namespace and name.
    pub fn all_at(&self, address: IpAddr) -> impl Iterator<Item = &Arc<Instance>> {
        self.by_address.get(&address).into_iter().flat_map(|there| there.values())
    }

    /// Takes an instance out. Cost: logarithmic.
    pub fn remove(&mut self, namespace: &str, name: &str) -> Option<Arc<Instance>> {
        let index = self.namespaces.get_mut(namespace)?;
        let old = Arc::clone(index.instances.get(name)?);
        index.instances.remove_mut(name);
        for (label, value) in &old.labels {
            if let Some(values) = index.by_label.get_mut(label.as_str()) {
                if let Some(names) = values.get_mut(value.as_str()) {
                    names.remove_mut(name);
                    if names.is_empty() {
                        values.remove_mut(value.as_str());
                    }
                }
                if values.is_empty() {
                    index.by_label.remove_mut(label.as_str());
                }
            }
        }
        if index.instances.is_empty() {
            self.namespaces.remove_mut(namespace);
        }
        if let Some(identity) = &old.identity {
            if let Some(count) = self.by_identity.get_mut(identity).filter(|count| **count > 1) {
                *count -= 1;
            } else {
                self.by_identity.remove_mut(identity);
            }
        }
        let key: InstanceKey = (namespace.into(), name.into());
        for address in &old.addresses {
            if let Some(there) = self.by_address.get_mut(address) {
                there.remove_mut(&key);
                if there.is_empty() {
                    self.by_address.remove_mut(address);
                }
            }
        }
        Some(old)
    }

    /// The instance of this name.
    pub fn find(&self, namespace: &str, name: &str) -> Option<&Arc<Instance>> {
        self.namespaces.get(namespace)?.instances.get(name)
    }

    /// The instance at this address. Where several claim it, one that declares the port goes first, then one that takes
    /// new work, then the first by name.
    pub fn at(&self, address: SocketAddr) -> Option<&Arc<Instance>> {
        let port = NonZeroU16::new(address.port());
        let declares = |instance: &Instance| port.is_some_and(|port| instance.port(port).is_some());
        self.by_address.get(&address.ip())?.values().min_by_key(|instance| (!declares(instance), instance.health))
    }

    /// The instances of a namespace whose labels have every pair of the selector, in the order of their names. An empty
    /// selector selects nothing. Cost: linear in the instances that have the rarest pair.
    pub fn select<'a>(
        &'a self,
        namespace: &str,
        selector: &'a BTreeMap<String, String>,
    ) -> impl Iterator<Item = &'a Arc<Instance>> {
        let found = self.namespaces.get(namespace).and_then(|index| Some((index, index.rarest(selector)?)));
        found.into_iter().flat_map(move |(index, names)| {
            names
                .iter()
                .filter_map(|name| index.instances.get(name))
                .filter(move |instance| selects(selector, &instance.labels))
        })
    }

    /// Whether any instance has this identity. Cost: logarithmic.
    pub fn has_identity(&self, identity: &Identity) -> bool {
        self.by_identity.contains_key(identity)
    }

    /// Every identity that an instance has, each once, in order.
    pub fn identities(&self) -> impl Iterator<Item = &Identity> {
        self.by_identity.keys()
    }

    /// Every namespace that has an instance, in order.
    pub fn namespaces(&self) -> impl Iterator<Item = &str> {
        self.namespaces.keys().map(|name| &**name)
    }

    /// Every instance, in the order of namespace and name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Instance>> {
        self.namespaces.values().flat_map(|namespace| namespace.instances.values())
    }
}

/// Changes what a map has at a key, the default where it has nothing.
fn at<K: Ord + Clone, V: Clone + Default>(map: &mut Map<K, V>, key: K, change: impl FnOnce(&mut V)) {
    if let Some(value) = map.get_mut(&key) {
        change(value);
        return;
    }
    let mut value = V::default();
    change(&mut value);
    map.insert_mut(key, value);
}

impl Namespace {
    fn rarest(&self, selector: &BTreeMap<String, String>) -> Option<&Set<Arc<str>>> {
        let mut best: Option<&Set<Arc<str>>> = None;
        for (label, value) in selector {
            let names = self.by_label.get(label.as_str())?.get(value.as_str())?;
            if best.is_none_or(|other| names.size() < other.size()) {
                best = Some(names);
            }
        }
        best
    }
}

/// Whether labels have every pair of a selector. An empty selector selects nothing here; callers decide what it means.
pub fn selects(selector: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    !selector.is_empty() && selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn instance(name: &str, labels: &[(&str, &str)], address: &str) -> Instance {
        Instance {
            namespace: "shop".into(),
            name: name.into(),
            labels: labels.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect(),
            identity: None,
            addresses: vec![address.parse().unwrap()],
            ports: vec![],
            skipped_ports: vec![],
            weight: NonZeroU32::MIN,
            zone: String::new(),
            health: Health::Healthy,
        }
    }

    #[test]
    fn a_clone_keeps_what_it_had() {
        let mut now = Workloads::default();
        now.insert(Arc::new(instance("a", &[("app", "x")], "10.0.0.1")));
        let then = now.clone();
        now.remove("shop", "a");
        assert!(now.at("10.0.0.1:80".parse().unwrap()).is_none() && now.iter().next().is_none());
        assert_eq!(then.at("10.0.0.1:80".parse().unwrap()).unwrap().name, "a");
    }

    #[test]
    fn of_two_at_one_address_the_one_that_takes_work_is_meant() {
        let mut index = Workloads::default();
        index.insert(Arc::new(Instance { health: Health::Draining, ..instance("a", &[], "fd00::1") }));
        index.insert(Arc::new(instance("b", &[], "fd00::1")));
        assert_eq!(index.at("[fd00::1]:80".parse().unwrap()).unwrap().name, "b");
    }

    #[test]
    fn of_two_at_one_address_the_one_that_declares_the_port_is_meant() {
        let mut index = Workloads::default();
        let port = |port: u16| InstancePort {
            name: String::new(),
            port: port.try_into().unwrap(),
            protocol: Protocol::Detect,
            proxy_port: None,
        };
        index.insert(Arc::new(Instance { ports: vec![port(9)], ..instance("a", &[], "10.0.0.1") }));
        let draining = Health::Draining;
        index.insert(Arc::new(Instance { ports: vec![port(80)], health: draining, ..instance("b", &[], "10.0.0.1") }));
        let name = |address: &str| index.at(address.parse().unwrap()).unwrap().name.clone();
        assert_eq!((name("10.0.0.1:80"), name("10.0.0.1:9"), name("10.0.0.1:7")), ("b".into(), "a".into(), "a".into()));
    }

    proptest! {
        #[test]
        fn the_index_agrees_with_a_scan(
            steps in prop::collection::vec((0u8..6, 0u8..3, 0u8..3, 0u8..4, any::<bool>()), 1..40),
            app in 0u8..3,
            version in prop::option::of(0u8..3),
        ) {
            let mut index = Workloads::default();
            let mut plain: BTreeMap<String, Instance> = BTreeMap::new();
            for (name, app, version, address, remove) in steps {
                let name = format!("w{name}");
                if remove {
                    prop_assert_eq!(index.remove("shop", &name).map(|i| (*i).clone()), plain.remove(&name));
                } else {
                    let labels = [("app", app.to_string()), ("version", version.to_string())];
                    let labels: Vec<(&str, &str)> = labels.iter().map(|(k, v)| (*k, v.as_str())).collect();
                    let account = (version > 0).then(|| format!("spiffe://weft.local/ns/shop/sa/{app}"));
                    let identity = account.map(|id| Identity::parse(&id).unwrap());
                    let new = Instance { identity, ..instance(&name, &labels, &format!("10.0.0.{address}")) };
                    plain.insert(name, new.clone());
                    index.insert(Arc::new(new));
                }
            }
            let mut selector = BTreeMap::from([("app".to_owned(), app.to_string())]);
            selector.extend(version.map(|v| ("version".to_owned(), v.to_string())));
            let found: Vec<&str> = index.select("shop", &selector).map(|i| i.name.as_str()).collect();
            let scanned: Vec<&str> =
                plain.values().filter(|i| selects(&selector, &i.labels)).map(|i| i.name.as_str()).collect();
            prop_assert_eq!(found, scanned);
            let identities: std::collections::BTreeSet<_> = plain.values().filter_map(|i| i.identity.clone()).collect();
            prop_assert!(index.identities().eq(&identities));
            for last in 0..4 {
                let address: IpAddr = format!("10.0.0.{last}").parse().unwrap();
                let scanned = plain.values().find(|i| i.addresses[0] == address).map(|i| i.name.as_str());
                prop_assert_eq!(index.at(SocketAddr::new(address, 80)).map(|i| i.name.as_str()), scanned);
            }
        }
    }
}
