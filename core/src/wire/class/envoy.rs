//! Envoy: routes, clusters and endpoints without metadata and in plaintext, in the forms that its validation takes.

use std::time::Duration;

use weft_proto::envoy::{
    config::{
        cluster::v3::{LoadBalancingPolicy, cluster::LbPolicy, load_balancing_policy::Policy},
        core::v3::TypedExtensionConfig,
    },
    extensions::load_balancing_policies::{
        least_request::v3::LeastRequest, round_robin::v3::RoundRobin, wrr_locality::v3::WrrLocality,
    },
};

use super::Form;
use crate::wire::types::{Typed, pack};

pub(super) fn form(plaintext_to_mesh: bool) -> Form {
    Form {
        listeners: false,
        authorization: false,
        metadata: false,
        // Its validation wants a name.
        unnamed_host: "*",
        // Its validation refuses 0.
        least_duration: Duration::from_millis(1),
        balancing: || (LbPolicy::RoundRobin, Some(for_everyone())),
        mesh_endpoints: plaintext_to_mesh,
        sums_weights: true,
    }
}

/// The form that Envoy, gRPC C-core and gRPC Node take: the first policy that the client knows wins.
fn for_everyone() -> LoadBalancingPolicy {
    let round_robin = LoadBalancingPolicy { policies: vec![policy("round_robin", &RoundRobin {})] };
    let by_locality = WrrLocality { endpoint_picking_policy: Some(round_robin) };
    LoadBalancingPolicy {
        policies: vec![policy("least_request", &LeastRequest {}), policy("wrr_locality", &by_locality)],
    }
}

fn policy(name: &str, config: &impl Typed) -> Policy {
    let config = TypedExtensionConfig {
        name: format!("envoy.load_balancing_policies.{name}"),
        typed_config: Some(pack(config)),
    };
    Policy { typed_extension_config: Some(config) }
}
