//! Weft's own proxy: the whole model, exactly.

use std::time::Duration;

use weft_proto::envoy::config::cluster::v3::cluster::LbPolicy;

use super::Form;

pub(super) fn form() -> Form {
    Form {
        listeners: true,
        authorization: true,
        metadata: true,
        unnamed_host: "",
        least_duration: Duration::ZERO,
        // It balances by itself, by power of two choices on peak EWMA.
        balancing: || (LbPolicy::LeastRequest, None),
        mesh_endpoints: true,
        sums_weights: false,
    }
}
