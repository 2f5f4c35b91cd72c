//! The kinds of objects, by every name that people type.

use serde_json::Value;

use crate::table::{Cell, Tone};

/// A kind.
#[derive(Debug, PartialEq, Eq)]
pub struct Kind {
    /// As objects say it.
    pub name: &'static str,
    /// As objects say it.
    pub api_version: &'static str,
    /// In paths of the API.
    pub plural: &'static str,
    /// What else people type, lower case.
    pub short: &'static [&'static str],
    /// Columns of its table between NAME and AGE.
    pub columns: &'static [&'static str],
}

/// All of them, in the order in which they build on each other.
pub const KINDS: &[Kind] = &[
    Kind {
        name: "MeshConfig",
        api_version: "weft.dev/v1alpha1",
        plural: "meshconfigs",
        short: &["mc", "mesh"],
        columns: &["INBOUND", "AUTHORIZATION", "OUTBOUND"],
    },
    Kind {
        name: "Service",
        api_version: "v1",
        plural: "services",
        short: &["svc"],
        columns: &["ADDRESSES", "PORTS", "SELECTOR"],
    },
    Kind {
        name: "Workload",
        api_version: "weft.dev/v1alpha1",
        plural: "workloads",
        short: &["wl"],
        columns: &["SERVICE-ACCOUNT", "ADDRESSES", "PORTS", "LABELS", "HEALTH", "SOURCE"],
    },
    Kind {
        name: "Gateway",
        api_version: "gateway.networking.k8s.io/v1",
        plural: "gateways",
        short: &["gw"],
        columns: &["LISTENERS", "PROGRAMMED"],
    },
    Kind {
        name: "HTTPRoute",
        api_version: "gateway.networking.k8s.io/v1",
        plural: "httproutes",
        short: &["route", "routes"],
        columns: &["PARENTS", "BACKENDS", "ACCEPTED"],
    },
    Kind {
        name: "TrafficPolicy",
        api_version: "weft.dev/v1alpha1",
        plural: "trafficpolicies",
        short: &["tp"],
        columns: &["TARGET", "ACCEPTED"],
    },
    Kind {
        name: "AuthorizationPolicy",
        api_version: "weft.dev/v1alpha1",
        plural: "authorizationpolicies",
        short: &["ap"],
        columns: &["ACTION", "TARGET", "RULES", "ACCEPTED"],
    },
];

/// The kind that a text names: singular, plural or short, in any case.
pub fn find(text: &str) -> Option<&'static Kind> {
    let text = text.to_ascii_lowercase();
    KINDS.iter().find(|kind| {
        kind.name.to_ascii_lowercase() == text || kind.plural == text || kind.short.contains(&text.as_str())
    })
}

/// What to say when there is no such kind.
pub fn unknown(text: &str) -> String {
    let known: Vec<String> = KINDS.iter().map(|kind| format!("{} ({})", kind.plural, kind.short.join(", "))).collect();
    format!("there is no kind {text:?}; there are {}", known.join(", "))
}

impl Kind {
    /// The cells of an object for [`Kind::columns`].
    pub fn cells(&self, object: &Value) -> Vec<Cell> {
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        match self.name {
            "MeshConfig" => ["/spec/inbound", "/spec/defaultAuthorization", "/spec/outbound"]
                .map(|pointer| Cell::from(text(pointer)))
                .into(),
            "Service" => vec![
                addresses(object).join(",").into(),
                join(items(object, "/spec/ports").map(|port| {
                    let number = |name| port.get(name).map(plain).unwrap_or_default();
                    let target = number("targetPort");
                    let target = if target.is_empty() { String::new() } else { format!("->{target}") };
                    let app = number("appProtocol");
                    let app = if app.is_empty() { app } else { format!("/{app}") };
                    format!("{}{target}{app}", number("port"))
                })),
                pairs(object.pointer("/spec/selector")).into(),
            ],
            "Workload" => vec![
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
            "Gateway" => vec![
                join(items(object, "/spec/listeners").map(|listener| {
                    let of = |name| listener.get(name).map(plain).unwrap_or_default();
                    format!("{}:{}/{}", of("hostname"), of("port"), of("protocol"))
                })),
                condition(items(object, "/status/conditions"), "Programmed"),
            ],
            "HTTPRoute" => {
                let backends =
                    items(object, "/spec/rules").flat_map(|rule| items(rule, "/backendRefs")).map(|backend| {
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
            "TrafficPolicy" => vec![
                object.pointer("/spec/targetRef").map(target).unwrap_or_default().into(),
                condition(items(object, "/status/conditions"), "Accepted"),
            ],
            "AuthorizationPolicy" => vec![
                text("/spec/action").into(),
                match object.pointer("/spec/targetRef") {
                    Some(reference) => target(reference).into(),
                    None => pairs(object.pointer("/spec/selector/matchLabels")).into(),
                },
                items(object, "/spec/rules").count().to_string().into(),
                condition(items(object, "/status/conditions"), "Accepted"),
            ],
            _ => Vec::new(),
        }
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

/// A text or number as people write it.
pub fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => value.to_string(),
    }
}

/// `a=b,c=d` of an object of texts.
pub fn pairs(value: Option<&Value>) -> String {
    let pairs = value.and_then(Value::as_object).into_iter().flatten();
    pairs.map(|(key, value)| format!("{key}={}", plain(value))).collect::<Vec<_>>().join(",")
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
    fn every_name_finds_its_kind_and_no_name_is_used_twice() {
        let mut names = std::collections::BTreeSet::new();
        for kind in KINDS {
            let singular = kind.name.to_ascii_lowercase();
            for name in kind.short.iter().copied().chain([kind.plural, singular.as_str()]) {
                assert!(names.insert(name.to_owned()), "{name}");
                assert_eq!(find(name), Some(kind));
                assert_eq!(find(&name.to_uppercase()), Some(kind));
            }
        }
        assert_eq!(find("pod"), None);
        assert!(unknown("pod").contains("services (svc)"));
    }

    #[test]
    fn the_kinds_are_those_of_the_mesh() {
        let all: Vec<_> = weft_core::api::Kind::ALL.iter().map(|kind| (kind.as_str(), kind.api_version())).collect();
        let ours: Vec<_> = KINDS.iter().map(|kind| (kind.name, kind.api_version)).collect();
        assert_eq!(ours, all);
    }

    #[test]
    fn every_kind_fills_its_columns_even_from_an_empty_object() {
        for kind in KINDS {
            assert_eq!(kind.cells(&json!({})).len(), kind.columns.len(), "{}", kind.name);
        }
    }

    fn row(kind: &str, object: &Value) -> String {
        let kind = find(kind).unwrap();
        let mut table = Table::new(kind.columns);
        table.row(kind.cells(object));
        table.render(Style::PLAIN).pop().unwrap().split_whitespace().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn cells_say_what_matters() {
        let service = json!({
            "spec": {"selector": {"app": "a"}, "ports": [{"port": 80, "targetPort": 8080, "appProtocol": "http"}, {"port": 81}],
                "clusterIP": "240.0.0.1", "clusterIPs": ["240.0.0.1", "fd77::1"]},
        });
        assert_eq!(row("svc", &service), "240.0.0.1,fd77::1 80->8080/http,81 app=a");
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
