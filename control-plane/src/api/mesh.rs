//! The state of the mesh: proxies, workloads, the root certificate.

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use serde::Serialize;
use weft_core::{
    answer::List,
    api::{
        Kind, Object, ObjectKey, ObjectMeta, Workload,
        service::AppProtocol,
        workload::{WorkloadHealth, WorkloadPort, WorkloadSpec},
    },
    endpoint::Health,
    listener::Protocol,
};

use super::{
    ApiState, Failure,
    objects::{has, labels},
    query::Parameters,
};
use crate::{registry::RegisteredWorkload, state::ProxyStatus};

/// Annotation: the origin of a workload in a list.
const SOURCE: &str = "weft.dev/source";
/// The origin of a workload that is an object.
const STATIC: &str = "static";

/// Annotation: addresses that a registered workload claims without a proof; nobody is sent there.
const UNPROVEN: &str = "weft.dev/unproven-addresses";

/// A connected proxy.
#[derive(Serialize)]
pub(super) struct Proxy {
    #[serde(flatten)]
    status: ProxyStatus,
    /// It has applied the newest revision.
    current: bool,
}

pub(super) async fn proxies(State(api): ApiState, query: Parameters) -> Result<Json<List<Proxy>>, Failure> {
    query.only(&[])?;
    let revision = api.desired.current().revision;
    let items = api.mesh.proxies.list().into_iter().map(|status| {
        let applied = status.discovery.as_ref().and_then(|discovery| discovery.applied_revision);
        Proxy { current: applied.is_some_and(|applied| applied >= revision), status }
    });
    Ok(Json(List { revision, items: items.collect() }))
}

/// Registered workloads in the shape of Workload objects, and the Workload objects.
pub(super) async fn workloads(State(api): ApiState, query: Parameters) -> Result<Json<List<Object>>, Failure> {
    query.only(&["namespace", "label"])?;
    let labels = labels(&query)?;
    let desired = api.desired.current();
    let registered = api.mesh.registered.borrow().clone();
    let view = api.status.view(&desired);
    let mut items: Vec<Object> = registered.workloads.values().map(|it| Object::Workload(shape(it))).collect();
    items.extend(desired.of(Kind::Workload).map(|(_, object)| marked(view.with_status(object), STATIC)));
    items.retain(|object| {
        query.one("namespace").is_none_or(|wanted| object.metadata().namespace == wanted) && has(object, &labels)
    });
    items.sort_by_key(Object::key);
    Ok(Json(List { revision: desired.revision, items }))
}

pub(super) async fn bundle(State(api): ApiState, query: Parameters) -> Result<Response, Failure> {
    query.only(&[])?;
    let kind = (http::header::CONTENT_TYPE, "application/pem-certificate-chain");
    Ok(([kind], api.authority.root_pem()).into_response())
}

/// Objects as a list prints them -> the objects that are meant: the annotations of a list are left out, and so are registered
/// workloads, whose keys come second. Those are their proxies' and not desired state.
pub(super) fn stated(objects: Vec<Object>) -> (Vec<Object>, Vec<ObjectKey>) {
    let (mut stated, mut registered) = (Vec::with_capacity(objects.len()), Vec::new());
    for mut object in objects {
        if object.kind() != Kind::Workload {
            stated.push(object);
            continue;
        }
        let annotations = &mut object.metadata_mut().annotations;
        annotations.remove(UNPROVEN);
        match annotations.remove(SOURCE) {
            Some(source) if source != STATIC => registered.push(object.key()),
            Some(_) | None => stated.push(object),
        }
    }
    (stated, registered)
}

fn marked(mut object: Object, source: &str) -> Object {
    object.metadata_mut().annotations.insert(SOURCE.to_owned(), source.to_owned());
    object
}

fn shape(workload: &RegisteredWorkload) -> Workload {
    let mut metadata = ObjectMeta::new(&workload.key.namespace, &workload.key.name);
    metadata.labels.clone_from(&workload.labels);
    let source = if workload.gateway { "registered gateway" } else { "registered" };
    metadata.annotations.insert(SOURCE.to_owned(), source.to_owned());
    let unproven: Vec<String> = workload.unproven.iter().map(ToString::to_string).collect();
    if !unproven.is_empty() {
        metadata.annotations.insert(UNPROVEN.to_owned(), unproven.join(","));
    }
    let ports = workload.ports.iter().map(|port| WorkloadPort {
        name: (!port.name.is_empty()).then(|| port.name.clone()),
        port: port.port,
        protocol: Some(match port.protocol {
            Protocol::Detect => AppProtocol::Detect,
            Protocol::Http => AppProtocol::Http,
            Protocol::Http2 => AppProtocol::Http2,
            Protocol::Tcp => AppProtocol::Tcp,
        }),
        proxy_port: port.proxy_port,
    });
    let spec = WorkloadSpec {
        service_account: Some(workload.service_account.clone()),
        addresses: workload.addresses.clone(),
        ports: ports.collect(),
        skip_inbound_ports: workload.skipped_ports.clone(),
        weight: Some(workload.weight),
        zone: (!workload.zone.is_empty()).then(|| workload.zone.clone()),
        health: Some(match workload.health {
            Health::Healthy => WorkloadHealth::Healthy,
            Health::Draining => WorkloadHealth::Draining,
            Health::Unhealthy => WorkloadHealth::Unhealthy,
        }),
        mesh: Some(true),
    };
    Workload::new(metadata, spec)
}
