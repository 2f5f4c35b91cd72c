//! Which resources are for which client: rule 2 of the head of `xds.rs`.

use weft_core::{
    api::{Kind as ObjectKind, ObjectKey, gateway::GATEWAY_ACCOUNT, proxy_config::ProxyMode},
    compile::World,
    names::{ListenerName, RouteName},
};

use super::{
    client::Client,
    content::{Absence, Kind},
};

/// Whether a resource is rendered for each client: one name, another content.
pub(super) fn is_own(kind: Kind, name: &str) -> bool {
    match kind {
        Kind::Listener => name == "inbound",
        Kind::Routes => name == "inbound" || name.starts_with("inbound:"),
        Kind::Cluster | Kind::Endpoints => false,
    }
}

/// Why this client may not have this resource: a gateway's are for proxies with `mode: gateway`, of its namespace, and of
/// its service account where the Gateway names one.
pub(super) fn forbidden(kind: Kind, name: &str, client: &Client, world: &World) -> Option<Absence> {
    let (namespace, gateway) = match kind {
        Kind::Listener => match ListenerName::parse(name) {
            Ok(ListenerName::Gateway { namespace, name }) => (namespace, name),
            Ok(ListenerName::Inbound | ListenerName::OutboundDefault | ListenerName::Outbound(_)) | Err(_) => {
                return None;
            }
        },
        Kind::Routes => match RouteName::parse(name) {
            Ok(RouteName::Gateway { namespace, name, .. }) => (namespace, name),
            Ok(RouteName::Service(_) | RouteName::Direct(_) | RouteName::Inbound(_)) | Err(_) => return None,
        },
        Kind::Cluster | Kind::Endpoints => return None,
    };
    if namespace != client.requester.namespace {
        return Some(Absence::denied(
            &format!("proxies of namespace {namespace}"),
            &format!("one of {}", client.requester.namespace),
        ));
    }
    if client.requester.mode != ProxyMode::Gateway {
        return Some(Absence::denied("proxies with `mode: gateway`", "a sidecar"));
    }
    let object = world.objects().find(&ObjectKey::new(ObjectKind::Gateway, &namespace, &gateway))?;
    let account = object.metadata().annotations.get(GATEWAY_ACCOUNT)?;
    let denied = || {
        let requester = format!("one of {}", client.requester.service_account);
        Absence::denied(&format!("proxies of service account {account}"), &requester)
    };
    (*account != client.requester.service_account).then(denied)
}
