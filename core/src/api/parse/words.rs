//! The texts of parse errors.

use crate::api::{
    error::{Fault, FieldError},
    node::Step,
    object::Kind,
    shape::Problem,
};

/// A mistake in words. `not_yet`: the field is right by the standard.
pub(super) fn explain(path: String, problem: &Problem, not_yet: bool) -> FieldError {
    let (fault, reason) = match problem {
        Problem::UnknownField { .. } if not_yet => return FieldError::not_supported(path),
        Problem::UnknownField { field, known } => (Fault::Unknown, unknown_field(field, known)),
        Problem::MissingField(_) => (Fault::Required, "required".to_owned()),
        Problem::DuplicateField(field) => (Fault::Invalid, format!("{field:?} appears twice")),
        Problem::UnknownValue { found, known } => (Fault::Invalid, unknown_value(found, known)),
        Problem::Wrong { found, expected } => (Fault::Invalid, wrong(found, expected)),
        Problem::Null => (Fault::Invalid, "has no value: give it one or remove the field".to_owned()),
        Problem::Other(reason) => (Fault::Invalid, reason.clone()),
    };
    FieldError { path, fault, reason }
}

/// What to say about a field that is not among the known ones.
pub(super) fn unknown_field(field: &str, known: &[&str]) -> String {
    match nearest(field, known.iter().copied()) {
        Some(near) => format!("unknown field; did you mean {near:?}?"),
        None => format!("unknown field; known are {}", known.join(", ")),
    }
}

fn unknown_value(found: &str, known: &[&str]) -> String {
    let hint = nearest(found, known.iter().copied()).map(|near| format!("; did you mean {near:?}?"));
    format!("must be one of {}, not {found:?}{}", known.join(", "), hint.unwrap_or_default())
}

fn wrong(found: &str, expected: &str) -> String {
    let expected = match expected {
        "u16" => "a number from 0 to 65535",
        "a nonzero u16" => "a number from 1 to 65535",
        "u32" => "a number from 0 to 4294967295",
        "a nonzero u32" => "a number from 1 to 4294967295",
        "u64" => "a whole number from 0",
        "a nonzero usize" => "a whole number from 1",
        "f64" => "a number",
        "a boolean" => "true or false",
        "a sequence" => "a list",
        other if other.starts_with("struct ") => "a map",
        other => other,
    };
    let scalar = !found.starts_with('"') && !found.starts_with("a ");
    let hint = if expected == "a string" && scalar { " (put it in quotes)" } else { "" };
    format!("must be {expected}, not {found}{hint}")
}

/// The known name that a person most likely meant: at most a third of the letters differ, in any case,
/// or one begins like the other.
pub(super) fn nearest<'a>(given: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    if given.len() > 64 {
        return None;
    }
    let given = given.to_ascii_lowercase();
    let limit = (given.chars().count() / 3).max(1);
    let rank = |name: &str| {
        let name = name.to_ascii_lowercase();
        let begins = given.len() >= 4 && (name.starts_with(&given) || given.starts_with(&name));
        distance(&given, &name).min(if begins { limit } else { usize::MAX })
    };
    known
        .map(|name| (rank(name), name))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// Edit distance (insert, remove, replace). Cost: the product of the lengths.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.chars().enumerate() {
        let mut next = vec![i + 1];
        for ((right, pair), last) in b.iter().zip(row.windows(2)).zip(1..) {
            let &[diagonal, above] = pair else { continue };
            let beside = next.get(last - 1).copied().unwrap_or(usize::MAX);
            let replace = diagonal + usize::from(left != *right);
            next.push(replace.min(above + 1).min(beside + 1));
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}

/// Whether an unknown field is one that its standard has and Weft does not do yet: refused by that reason, so that
/// the user does not search for a typing error. `path` from the document's root.
pub(super) fn not_yet(kind: Kind, path: &[Step]) -> bool {
    let mut text = String::new();
    for step in path {
        match step {
            Step::Index(_) => text.push_str("[]"),
            Step::Field(name) => {
                if !text.is_empty() {
                    text.push('.');
                }
                text.push_str(name);
            }
        }
    }
    let fields: &[&str] = match kind {
        Kind::Service => SERVICE,
        Kind::HttpRoute => HTTP_ROUTE,
        Kind::Gateway => GATEWAY,
        Kind::AuthorizationPolicy => &["spec.selector.matchExpressions"],
        Kind::MeshConfig | Kind::Workload | Kind::TrafficPolicy => &[],
    };
    METADATA.contains(&text.as_str()) || fields.contains(&text.as_str())
}

/// Kubernetes `ObjectMeta`.
const METADATA: &[&str] = &[
    "metadata.deletionGracePeriodSeconds",
    "metadata.deletionTimestamp",
    "metadata.finalizers",
    "metadata.generateName",
    "metadata.managedFields",
    "metadata.ownerReferences",
    "metadata.selfLink",
];

/// Kubernetes core/v1 `ServiceSpec`.
const SERVICE: &[&str] = &[
    "spec.allocateLoadBalancerNodePorts",
    "spec.externalIPs",
    "spec.externalName",
    "spec.externalTrafficPolicy",
    "spec.healthCheckNodePort",
    "spec.internalTrafficPolicy",
    "spec.ipFamilies",
    "spec.ipFamilyPolicy",
    "spec.loadBalancerClass",
    "spec.loadBalancerIP",
    "spec.loadBalancerSourceRanges",
    "spec.ports[].nodePort",
    "spec.publishNotReadyAddresses",
    "spec.sessionAffinity",
    "spec.sessionAffinityConfig",
    "spec.trafficDistribution",
    "status.loadBalancer",
];

/// Gateway API `HTTPRouteSpec`.
const HTTP_ROUTE: &[&str] = &[
    "spec.rules[].backendRefs[].filters",
    "spec.rules[].filters[].cors",
    "spec.rules[].filters[].extensionRef",
    "spec.rules[].filters[].externalAuth",
    "spec.rules[].filters[].requestMirror",
    "spec.rules[].filters[].requestRedirect",
    "spec.rules[].filters[].urlRewrite",
    "spec.rules[].matches[].queryParams",
    "spec.rules[].sessionPersistence",
    "spec.useDefaultGateways",
];

/// Gateway API `GatewaySpec`.
const GATEWAY: &[&str] = &[
    "spec.allowedListeners",
    "spec.backendTLS",
    "spec.defaultScope",
    "spec.infrastructure",
    "spec.listeners[].allowedRoutes.namespaces.selector.matchExpressions",
    "spec.listeners[].tls",
    "spec.tls",
    "status.attachedListenerSets",
];
