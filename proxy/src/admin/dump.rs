//! The config dump: what this proxy was told and what it obeys. No secret is in any of it.

use std::{collections::BTreeMap, fmt::Display};

use data_encoding::HEXLOWER;
use serde::Serialize;
use serde_json::{Value, json};

use super::View;

/// Everything as JSON, resources under their names.
pub(super) fn dump(view: &View) -> Value {
    let live = view.state.live();
    let resources = &live.resources;
    let applied = *view.status.applied.borrow();
    let tls = view.tls.load();
    let certificate = tls
        .as_ref()
        .map(|tls| json!({"identity": tls.identity, "not_before": tls.svid.not_before, "not_after": tls.not_after}));
    let endpoints: serde_json::Map<String, Value> = view
        .state
        .endpoint_sets()
        .into_iter()
        .map(|set| (set.cluster.to_string(), serde_json::to_value(set.endpoints).unwrap_or_default()))
        .collect();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "settings": view.settings.effective,
        "revision": resources.revision,
        "hash": applied.hash.map(|hash| HEXLOWER.encode(&hash)),
        "certificate": certificate,
        "discovery_connected": view.status.discovery.is_up(),
        "agent_connected": view.status.agent.is_up(),
        "listeners": named(&resources.listeners),
        "absent": resources.absent.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "routes": named(&resources.routes),
        "clusters": named(&resources.clusters),
        "endpoints": endpoints,
    })
}

/// A map with the names as they are on the wire.
fn named<K: Display, V: Serialize>(map: &BTreeMap<K, V>) -> Value {
    map.iter().map(|(name, value)| (name.to_string(), serde_json::to_value(value).unwrap_or_default())).collect()
}
