//! Balancing on the wire. Weft's own proxy balances by itself (power of two choices on peak EWMA); others get a list.

use weft_proto::envoy::{
    config::{
        cluster::v3::{Cluster as Message, LoadBalancingPolicy, cluster::LbPolicy, load_balancing_policy::Policy},
        core::v3::TypedExtensionConfig,
    },
    extensions::load_balancing_policies::{
        least_request::v3::LeastRequest, round_robin::v3::RoundRobin, wrr_locality::v3::WrrLocality,
    },
};

use crate::wire::{
    error::{At, Errors, Reason},
    types::{Typed, pack},
};

const RANDOM: &str = "type.googleapis.com/envoy.extensions.load_balancing_policies.random.v3.Random";

/// The form that Envoy, gRPC C-core and gRPC Node take: the first policy that the client knows wins.
pub(super) fn for_everyone() -> LoadBalancingPolicy {
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

/// Whether what is asked for can be served by balancing on load: not, where a request has to stick to an endpoint.
pub(super) fn check(message: &Message, at: &At<'_>, errors: &mut Errors) {
    let Some(list) = &message.load_balancing_policy else {
        return match LbPolicy::try_from(message.lb_policy) {
            Ok(LbPolicy::RoundRobin | LbPolicy::LeastRequest | LbPolicy::Random) => {}
            Ok(
                LbPolicy::RingHash | LbPolicy::Maglev | LbPolicy::ClusterProvided | LbPolicy::LoadBalancingPolicyConfig,
            )
            | Err(_) => errors.add(&at.field("lb_policy"), Reason::NotSupported),
        };
    };
    let known = [LeastRequest::TYPE_URL, RoundRobin::TYPE_URL, WrrLocality::TYPE_URL, RANDOM];
    let mut configs =
        list.policies.iter().filter_map(|policy| policy.typed_extension_config.as_ref()?.typed_config.as_ref());
    if !configs.any(|config| known.contains(&config.type_url.as_str())) {
        errors.add(&at.field("load_balancing_policy"), Reason::NotSupported);
    }
}
