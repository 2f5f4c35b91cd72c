//! What became of an object: what the compiler says of it, and which proxies refuse what was made of it.

use std::fmt::Write;

use weft_core::{
    api::{
        Condition, ConditionStatus, Object, ObjectKey, Status,
        http_route::{ParentReference, RefKind},
    },
    compile::ROOT_NAMESPACE,
};

use super::Discovery;
use crate::state::{Nack, ProxyKey};

/// The condition that is false while a proxy refuses what was made of the object.
pub const PROGRAMMED: &str = "Programmed";
/// How many refusals a message names.
const NAMED: usize = 3;

/// Names of resources that an object goes into.
enum Concern {
    /// This name.
    Name(String),
    /// Names that start so.
    Prefix(String),
    /// `inbound` of the proxies of this namespace; of all of them without one.
    Inbound(Option<String>),
}

impl Discovery {
    /// The status of an object, without times; `None` when there is no such object.
    pub fn status(&self, key: &ObjectKey) -> Option<Status> {
        let world = std::sync::Arc::clone(self.shared.store.lock().world());
        let mut status = world.status(key)?;
        let object = world.objects().find(key)?;
        let generation = object.metadata().generation;
        let nacks = self.shared.proxies.standing_nacks();
        if nacks.is_empty() {
            return Some(status);
        }
        if let Object::HttpRoute(_) = &**object {
            for parent in &mut status.parents {
                let concerns = parent_concern(&parent.parent_ref, &key.namespace);
                parent.conditions.extend(refused(&nacks, &concerns, generation));
            }
        } else {
            status.conditions.extend(refused(&nacks, &concerns(object), generation));
        }
        Some(status)
    }
}

fn concerns(object: &Object) -> Vec<Concern> {
    let (namespace, name) = (&object.metadata().namespace, &object.metadata().name);
    match object {
        Object::Service(_) => vec![Concern::Prefix(format!("svc/{namespace}/{name}:"))],
        Object::TrafficPolicy(policy) => {
            vec![Concern::Prefix(format!("svc/{namespace}/{}:", policy.spec.target_ref.name))]
        }
        Object::Gateway(_) => vec![
            Concern::Name(format!("gateway/{namespace}/{name}")),
            Concern::Prefix(format!("gateway/{namespace}/{name}:")),
        ],
        Object::Workload(workload) => {
            let shown = workload.spec.addresses.iter().map(|address| match address {
                std::net::IpAddr::V4(v4) => v4.to_string(),
                std::net::IpAddr::V6(v6) => format!("[{v6}]"),
            });
            let prefixes = shown.flat_map(|at| [format!("direct/{at}:"), format!("outbound/{at}:")]);
            prefixes.map(Concern::Prefix).collect()
        }
        Object::AuthorizationPolicy(_) => {
            vec![Concern::Inbound((namespace != ROOT_NAMESPACE).then(|| namespace.clone()))]
        }
        Object::MeshConfig(_) => vec![Concern::Inbound(None), Concern::Name("outbound".into())],
        Object::HttpRoute(route) => {
            route.spec.parent_refs.iter().flat_map(|parent| parent_concern(parent, namespace)).collect()
        }
    }
}

fn parent_concern(parent: &ParentReference, route: &str) -> Vec<Concern> {
    let (namespace, name) = (parent.namespace(route), &parent.name);
    match parent.target() {
        Some(RefKind::Service) => vec![Concern::Prefix(format!("svc/{namespace}/{name}:"))],
        Some(RefKind::Gateway) => vec![Concern::Prefix(format!("gateway/{namespace}/{name}:"))],
        None => Vec::new(),
    }
}

impl Concern {
    fn covers(&self, name: &str, proxy: &ProxyKey) -> bool {
        match self {
            Self::Name(wanted) => wanted == name,
            Self::Prefix(prefix) => name.starts_with(prefix.as_str()),
            Self::Inbound(namespace) => {
                (name == "inbound" || name.starts_with("inbound:"))
                    && namespace.as_deref().is_none_or(|wanted| proxy.identity.namespace() == Some(wanted))
            }
        }
    }
}

/// The condition, if any proxy refuses any of it.
fn refused(nacks: &[(String, ProxyKey, Nack)], concerns: &[Concern], generation: Option<u64>) -> Option<Condition> {
    let found: Vec<_> =
        nacks.iter().filter(|(name, proxy, _)| concerns.iter().any(|concern| concern.covers(name, proxy))).collect();
    let mut message = format!("{} refused by proxies", found.len());
    for (name, proxy, nack) in found.iter().take(NAMED) {
        // Writing to a text does not fail.
        write!(message, "; {} refuses {name}: {}", proxy.name, nack.message).ok()?;
    }
    (!found.is_empty()).then(|| Condition {
        kind: PROGRAMMED.to_owned(),
        status: ConditionStatus::False,
        reason: "Refused".to_owned(),
        message,
        observed_generation: generation,
        last_transition_time: None,
    })
}
