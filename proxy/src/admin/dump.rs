//! The config dump: the settings and the configuration in force. It holds no secret.

use std::{collections::BTreeMap, fmt::Display};

use data_encoding::HEXLOWER;
use serde::Serialize;
use serde_json::{Value, json};
use weft_core::endpoint::EndpointSet;

use crate::control::View;

/// The dump as JSON, resources under their names.
pub(super) fn dump(view: &View) -> Value {
    let live = view.live.load();
    let resources = &live.resources;
    let applied = *view.status.applied.borrow();
    let captured = *view.status.captured.borrow();
    let tls = view.tls.load();
    let certificate = tls
        .as_ref()
        .map(|tls| json!({"identity": tls.identity, "not_before": tls.svid.not_before, "not_after": tls.not_after}));
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "settings": view.settings.effective,
        "revision": applied.revision,
        "hash": applied.hash.map(|hash| HEXLOWER.encode(&hash)),
        "certificate": certificate,
        "discovery_connected": view.status.discovery.is_up(),
        "agent_connected": view.status.agent.is_up(),
        "refused_control_plane": *view.status.refused_origin.lock(),
        "redirected": {"outbound": captured.outbound.known(), "inbound": captured.inbound.known()},
        "refused_addresses": *view.status.missing.lock(),
        "listeners": named(&resources.listeners),
        "absent": resources.absent.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "routes": named(&resources.routes),
        "clusters": named(&resources.clusters),
        "endpoints": by_cluster(view.live.endpoint_sets()),
        "endpoints_withheld": by_cluster(view.live.withheld_sets()),
    })
}

/// Endpoints under the names of their clusters.
fn by_cluster(sets: Vec<EndpointSet>) -> Value {
    sets.into_iter()
        .map(|set| (set.cluster.to_string(), serde_json::to_value(set.endpoints).unwrap_or_default()))
        .collect()
}

/// A map whose keys are the names on the wire.
fn named<K: Display, V: Serialize>(map: &BTreeMap<K, V>) -> Value {
    map.iter().map(|(name, value)| (name.to_string(), serde_json::to_value(value).unwrap_or_default())).collect()
}
