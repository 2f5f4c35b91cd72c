//! The last good content of destinations that were unsubscribed from, for use without a discovery stream.
//! Pure. A tree is complete: it holds every route table and cluster that its listener needs, and their endpoint sets.
//!
//! # Defaults
//! 1,000 destinations; beyond, the one that was unsubscribed from or used first is evicted.

use std::collections::VecDeque;

use weft_core::{
    endpoint::EndpointSet,
    names::{ClusterName, ListenerName},
    snapshot::{IncompleteError, Resources},
};

/// Most destinations kept.
const MAX: usize = 1_000;

/// The destinations, the one used last at the end.
#[derive(Debug, Default)]
pub(super) struct Kept(VecDeque<(ListenerName, Tree)>);

/// One listener and everything below it.
#[derive(Debug)]
struct Tree {
    resources: Resources,
    endpoints: Vec<EndpointSet>,
}

impl Kept {
    /// Keeps the tree of a listener in force. One whose tree has gaps is not kept.
    pub(super) fn keep(
        &mut self,
        name: &ListenerName,
        in_force: &Resources,
        endpoints: impl Fn(&ClusterName) -> Option<EndpointSet>,
    ) {
        let Some(listener) = in_force.listeners.get(name) else { return };
        let mut resources = Resources::default();
        let added = resources.add(name, listener, |route| in_force.routes.get(route), |it| in_force.clusters.get(it));
        if added.is_err() {
            return;
        }
        let endpoints = resources.clusters.keys().filter_map(endpoints).collect();
        self.forget(name);
        self.0.push_back((name.clone(), Tree { resources, endpoints }));
        if self.0.len() > MAX {
            self.0.pop_front();
        }
    }

    /// Forgets a destination: it does not exist any more.
    pub(super) fn forget(&mut self, name: &ListenerName) {
        if let Some(at) = self.position(name) {
            self.0.remove(at);
        }
    }

    /// Adds the tree of a destination to a configuration, in which what is in force already stays. Returns the endpoint sets of
    /// the clusters that are new in it; `None` if the destination is not kept.
    pub(super) fn restore(&mut self, name: &ListenerName, to: &mut Resources) -> Option<Vec<EndpointSet>> {
        let (name, tree) = self.0.remove(self.position(name)?)?;
        let new = |set: &&EndpointSet| !to.clusters.contains_key(&set.cluster);
        let endpoints: Vec<_> = tree.endpoints.iter().filter(new).cloned().collect();
        let restored = add(&tree, &name, to);
        self.0.push_back((name, tree));
        restored.ok().map(|()| endpoints)
    }

    fn position(&self, name: &ListenerName) -> Option<usize> {
        self.0.iter().position(|(kept, _)| kept == name)
    }
}

/// Adds a tree; what `to` has of it already stays as it is.
fn add(tree: &Tree, name: &ListenerName, to: &mut Resources) -> Result<(), IncompleteError> {
    let Some(listener) = tree.resources.listeners.get(name) else { return Ok(()) };
    let mut more = Resources::default();
    more.add(
        name,
        listener,
        |route| to.routes.get(route).or_else(|| tree.resources.routes.get(route)),
        |cluster| to.clusters.get(cluster).or_else(|| tree.resources.clusters.get(cluster)),
    )?;
    to.listeners.append(&mut more.listeners);
    to.routes.append(&mut more.routes);
    to.clusters.append(&mut more.clusters);
    Ok(())
}

#[cfg(test)]
mod tests {
    use weft_core::listener::{Listener, Outbound, Protocol};

    use super::*;

    #[test]
    fn the_destinations_kept_are_bounded_and_those_used_last_stay() {
        let name = |n: usize| {
            let n = u16::try_from(n).unwrap();
            ListenerName::Outbound(std::net::SocketAddr::from(([240, 0, 0, 1], n)))
        };
        let mut in_force = Resources::default();
        for n in 0..=MAX {
            let ListenerName::Outbound(address) = name(n) else { continue };
            let listener = Outbound { address, protocol: Protocol::Tcp, http: None, tcp: Vec::new() };
            in_force.listeners.insert(name(n), Listener::Outbound(listener));
        }
        let mut kept = Kept::default();
        (0..MAX).for_each(|n| kept.keep(&name(n), &in_force, |_| None));
        assert!(kept.restore(&name(0), &mut Resources::default()).is_some());
        kept.keep(&name(MAX), &in_force, |_| None);
        let mut has = |n| kept.restore(&name(n), &mut Resources::default()).is_some();
        assert!(has(0) && !has(1) && has(2) && has(MAX));
        kept.forget(&name(2));
        assert!(kept.restore(&name(2), &mut Resources::default()).is_none() && kept.0.len() == MAX - 1);
    }
}
