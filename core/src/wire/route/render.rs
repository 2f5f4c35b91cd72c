//! Route tables to the wire.

use weft_proto::envoy::{
    config::route::v3::{
        DirectResponseAction, NonForwardingAction, Route, RouteAction, RouteConfiguration, VirtualHost as HostMessage,
        WeightedCluster as WeightedMessage, route,
        route_action::{ClusterNotFoundResponseCode, ClusterSpecifier},
        weighted_cluster::ClusterWeight,
    },
    extensions::filters::http::rbac::v3::{Rbac, RbacPerRoute},
};

use super::{headers, matches, retry};
use crate::{
    route::{Action, Forward, RouteTable, Rule, UNRESOLVED, VirtualHost, WeightedCluster},
    wire::{ClientClass, Encoded, NotForClient, ResourceType, authorization, class::Form, duration, types::pack},
};

/// Renders a route table.
/// Errors: it has an authorization, and the class of client does not enforce it.
pub fn render_route(table: &RouteTable, class: ClientClass) -> Result<Encoded, NotForClient> {
    let form = class.form();
    if !form.authorization && !table.authorization.allows_all() {
        return Err(NotForClient::Authorization);
    }
    let name = table.name.to_string();
    let policies = authorization::encode(&table.authorization).into_iter().filter_map(|(filter, rules)| {
        let rbac = Rbac { rules: Some(rules?), ..Rbac::default() };
        Some((filter.to_owned(), pack(&RbacPerRoute { rbac: Some(rbac) })))
    });
    let message = RouteConfiguration {
        name: name.clone(),
        virtual_hosts: table.hosts.iter().map(|host| encode_host(host, &form)).collect(),
        typed_per_filter_config: policies.collect(),
        ignore_port_in_host_matching: true,
        ..RouteConfiguration::default()
    };
    Ok(Encoded::new(ResourceType::Route, name, &message))
}

fn encode_host(host: &VirtualHost, form: &Form) -> HostMessage {
    HostMessage {
        name: if host.name.is_empty() { form.unnamed_host } else { host.name.as_ref() }.into(),
        domains: host.domains.iter().map(|domain| domain.as_ref().into()).collect(),
        routes: host.rules.iter().map(|rule| encode_rule(rule, form)).collect(),
        ..HostMessage::default()
    }
}

fn encode_rule(rule: &Rule, form: &Form) -> Route {
    let (action, metadata) = match &rule.action {
        Action::Forward(forward) => {
            let metadata = if form.metadata { retry::metadata(&forward.retry) } else { None };
            (route::Action::Route(encode_forward(forward, form)), metadata)
        }
        Action::Respond(status) => {
            let response = DirectResponseAction { status: u32::from(*status), ..DirectResponseAction::default() };
            (route::Action::DirectResponse(response), None)
        }
        Action::Deliver => (route::Action::NonForwardingAction(NonForwardingAction {}), None),
    };
    let (request_headers_to_add, request_headers_to_remove) = headers::encode(&rule.filters.request_headers);
    let (response_headers_to_add, response_headers_to_remove) = headers::encode(&rule.filters.response_headers);
    Route {
        name: rule.name.as_ref().into(),
        r#match: Some(matches::encode(&rule.matches)),
        action: Some(action),
        metadata,
        request_headers_to_add,
        request_headers_to_remove,
        response_headers_to_add,
        response_headers_to_remove,
        ..Route::default()
    }
}

fn encode_forward(forward: &Forward, form: &Form) -> RouteAction {
    let specifier = match (forward.clusters.as_slice(), forward.unresolved) {
        ([WeightedCluster { cluster, weight: 1 }], 0) => ClusterSpecifier::Cluster(cluster.to_string()),
        (clusters, unresolved) => {
            let share = |name: String, weight| ClusterWeight { name, weight: Some(weight), ..ClusterWeight::default() };
            let missing = (unresolved > 0).then(|| share(UNRESOLVED.to_owned(), unresolved));
            let clusters = clusters.iter().map(|one| share(one.cluster.to_string(), one.weight));
            ClusterSpecifier::WeightedClusters(WeightedMessage { clusters: clusters.chain(missing).collect() })
        }
    };
    let not_found = match forward.unresolved {
        0 => ClusterNotFoundResponseCode::ServiceUnavailable,
        _ => ClusterNotFoundResponseCode::InternalServerError,
    };
    RouteAction {
        cluster_specifier: Some(specifier),
        cluster_not_found_response_code: not_found.into(),
        timeout: Some(duration::encode(forward.request_timeout.unwrap_or_default())),
        idle_timeout: Some(duration::encode(forward.idle_timeout.unwrap_or_default())),
        retry_policy: Some(retry::encode(&forward.retry, forward.try_timeout, form)),
        ..RouteAction::default()
    }
}
