//! The kinds of objects as tables: their columns and cells. The names of kinds are in [`weft_core::api::Kind`].

use serde_json::Value;
pub use weft_core::api::Kind;
use weft_core::text::clean;

use crate::table::{Cell, Tone};

/// The message for a text that names no kind.
pub fn unknown(text: &str) -> String {
    let known: Vec<String> =
        Kind::ALL.iter().map(|kind| format!("{} ({})", kind.plural(), kind.short_names().join(", "))).collect();
    format!("there is no kind {text:?}; there are {}", known.join(", "))
}

/// The columns of a kind's table between NAME and AGE.
pub fn columns(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::MeshConfig => &["INBOUND", "AUTHORIZATION", "OUTBOUND"],
        Kind::Service => &["ADDRESSES", "PORTS", "ENDPOINTS", "SELECTOR"],
        Kind::Workload => &["SERVICE-ACCOUNT", "ADDRESSES", "PORTS", "LABELS", "HEALTH", "SOURCE"],
        Kind::Gateway => &["LISTENERS", "PROGRAMMED"],
        Kind::HttpRoute => &["PARENTS", "BACKENDS", "ACCEPTED"],
        Kind::TrafficPolicy => &["TARGET", "ACCEPTED"],
        Kind::AuthorizationPolicy => &["ACTION", "TARGET", "RULES", "ACCEPTED"],
    }
}

/// The cells of an object for [`columns`].
pub fn cells(kind: Kind, object: &Value) -> Vec<Cell> {
    let text = |pointer: &str| object.pointer(pointer).map(plain).unwrap_or_default();
    match kind {
        Kind::MeshConfig => ["/spec/inbound", "/spec/defaultAuthorization", "/spec/outbound"]
            .map(|pointer| Cell::from(text(pointer)))
            .into(),
        Kind::Service => vec![
            addresses(object).join(",").into(),
            join(items(object, "/spec/ports").map(|port| {
                let number = |name| port.get(name).map(plain).unwrap_or_default();
                let target = number("targetPort");
                let target = if target.is_empty() { String::new() } else { format!("->{target}") };
                let app = number("appProtocol");
                let app = if app.is_empty() { app } else { format!("/{app}") };
                format!("{}{target}{app}", number("port"))
            })),
            endpoints(object),
            pairs(object.pointer("/spec/selector")).into(),
        ],
        Kind::Workload => vec![
            text("/spec/serviceAccount").into(),
            join(items(object, "/spec/addresses").map(plain)),
            join(items(object, "/spec/ports").filter_map(|port| port.get("port")).map(plain)),
            pairs(object.pointer("/metadata/labels")).into(),
            match text("/spec/health").as_str() {
                health @ ("" | "healthy") => Cell::toned(health, Tone::Good),
                health @ "unhealthy" => Cell::toned(health, Tone::Bad),
                health => Cell::toned(health, Tone::Notice),
            },
            text("/metadata/annotations/weft.dev~1source").into(),
        ],
        Kind::Gateway => vec![
            join(items(object, "/spec/listeners").map(|listener| {
                let of = |name| listener.get(name).map(plain).unwrap_or_default();
                format!("{}:{}/{}", of("hostname"), of("port"), of("protocol"))
            })),
            condition(items(object, "/status/conditions"), "Programmed"),
        ],
        Kind::HttpRoute => {
            let backends = items(object, "/spec/rules").flat_map(|rule| items(rule, "/backendRefs")).map(|backend| {
                let of = |name| backend.get(name).map(plain);
                let name = of("name").unwrap_or_default();
                of("weight").map_or(name.clone(), |weight| format!("{name}={weight}"))
            });
            let backends: Vec<String> = backends.collect();
            let conditions = items(object, "/status/parents").flat_map(|parent| items(parent, "/conditions"));
            vec![
                join(items(object, "/spec/parentRefs").map(target)),
                backends.join(",").into(),
                condition(conditions, "Accepted"),
            ]
        }
        Kind::TrafficPolicy => vec![
            object.pointer("/spec/targetRef").map(target).unwrap_or_default().into(),
            condition(items(object, "/status/conditions"), "Accepted"),
        ],
        Kind::AuthorizationPolicy => vec![
            text("/spec/action").into(),
            match object.pointer("/spec/targetRef") {
                Some(reference) => target(reference).into(),
                None => pairs(object.pointer("/spec/selector/matchLabels")).into(),
            },
            items(object, "/spec/rules").count().to_string().into(),
            condition(items(object, "/status/conditions"), "Accepted"),
        ],
    }
}

/// The addresses of a Service: those it asks for or was given.
pub fn addresses(service: &Value) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    let first = service.pointer("/spec/clusterIP").map(plain);
    let spec = items(service, "/spec/clusterIPs").map(plain);
    let status =
        items(service, "/status/addresses").map(|address| address.get("value").map_or_else(|| plain(address), plain));
    for address in first.into_iter().chain(spec).chain(status) {
        if !address.is_empty() && !all.contains(&address) {
            all.push(address);
        }
    }
    all
}

/// The list at a path, empty when there is none.
pub fn items<'a>(value: &'a Value, pointer: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    value.pointer(pointer).and_then(Value::as_array).into_iter().flatten()
}

/// A text or number as people write it, without characters that a terminal obeys.
pub fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => clean(text).into_owned(),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            clean(&value.to_string()).into_owned()
        }
    }
}

/// `a=b,c=d` of an object of texts.
pub fn pairs(value: Option<&Value>) -> String {
    let pairs = value.and_then(Value::as_object).into_iter().flatten();
    pairs.map(|(key, value)| format!("{}={}", clean(key), plain(value))).collect::<Vec<_>>().join(",")
}

fn join(texts: impl Iterator<Item = String>) -> Cell {
    texts.collect::<Vec<_>>().join(",").into()
}

/// `Service/product` of a reference.
fn target(reference: &Value) -> String {
    let of = |name| reference.get(name).map(plain).unwrap_or_default();
    let kind = of("kind");
    format!("{}/{}", if kind.is_empty() { "Gateway" } else { &kind }, of("name"))
}

/// `2/3`: those that take new work, of those that the Service's selector picks.
fn endpoints(service: &Value) -> Cell {
    let count = |name: &str| service.pointer(&format!("/status/endpoints/{name}")).and_then(Value::as_u64);
    let (Some(healthy), Some(total)) = (count("healthy"), count("total")) else { return Cell::default() };
    let tone = match healthy {
        0 => Tone::Bad,
        _ if healthy < total => Tone::Notice,
        _ => Tone::Good,
    };
    Cell::toned(format!("{healthy}/{total}"), tone)
}

/// The state of a condition over all that report it: the worst.
fn condition<'a>(conditions: impl Iterator<Item = &'a Value>, wanted: &str) -> Cell {
    let mut cell = Cell::default();
    for condition in conditions {
        let of = |name: &str| condition.get(name).and_then(Value::as_str).unwrap_or_default();
        if of("type") == wanted {
            if of("status") == "True" {
                if cell == Cell::default() {
                    cell = Cell::toned("True", Tone::Good);
                }
            } else {
                cell = Cell::toned(format!("{} ({})", of("status"), of("reason")), Tone::Bad);
            }
        }
    }
    cell
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{style::Style, table::Table};

    #[test]
    fn an_unknown_kind_is_answered_with_the_known_ones() {
        assert!(unknown("pod").contains("services (svc)"));
    }

    #[test]
    fn every_kind_fills_its_columns_even_from_an_empty_object() {
        for kind in Kind::ALL.iter().copied() {
            assert_eq!(cells(kind, &json!({})).len(), columns(kind).len(), "{kind}");
        }
    }

    fn row(kind: &str, object: &Value) -> String {
        let kind = Kind::named(kind).unwrap();
        let mut table = Table::new(columns(kind));
        table.row(cells(kind, object));
        table.render(Style::PLAIN).pop().unwrap().split_whitespace().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn cells_say_what_matters() {
        let service = json!({
            "status": {"endpoints": {"healthy": 2, "total": 3}},
            "spec": {"selector": {"app": "a"}, "ports": [{"port": 80, "targetPort": 8080, "appProtocol": "http"}, {"port": 81}],
                "clusterIP": "240.0.0.1", "clusterIPs": ["240.0.0.1", "fd77::1"]},
        });
        assert_eq!(row("svc", &service), "240.0.0.1,fd77::1 80->8080/http,81 2/3 app=a");
        let route = json!({
            "spec": {"parentRefs": [{"group": "", "kind": "Service", "name": "product"}],
                "rules": [{"backendRefs": [{"name": "v1", "weight": 90}, {"name": "v2", "weight": 10}]}]},
            "status": {"parents": [
                {"conditions": [{"type": "Accepted", "status": "True", "reason": "Accepted"}]},
                {"conditions": [{"type": "Accepted", "status": "False", "reason": "NoMatchingParent"}]}]},
        });
        assert_eq!(row("route", &route), "Service/product v1=90,v2=10 False (NoMatchingParent)");
        let workload = json!({
            "metadata": {"labels": {"app": "a"}, "annotations": {"weft.dev/source": "registered"}},
            "spec": {"serviceAccount": "a", "addresses": ["10.0.0.1"], "ports": [{"port": 80}], "health": "draining"},
        });
        assert_eq!(row("wl", &workload), "a 10.0.0.1 80 app=a draining registered");
        let policy = json!({"spec": {"action": "Deny", "selector": {"matchLabels": {"app": "a"}}, "rules": [{}, {}]}});
        assert_eq!(row("ap", &policy), "Deny app=a 2 -");
    }
}
