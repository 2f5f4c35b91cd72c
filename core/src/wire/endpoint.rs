//! Endpoint sets <-> `envoy.config.endpoint.v3.ClusterLoadAssignment`.
//!
//! | model | xDS |
//! |---|---|
//! | `cluster` | `cluster_name` |
//! | `zone` | one `endpoints[]` per zone: `locality.zone`; region and sub-zone are ignored |
//! | `address` | `endpoint.address.socket_address`, a literal IP address |
//! | `weight` | `load_balancing_weight`, also of the locality (the sum); absent: 1 |
//! | `health` | `health_status` HEALTHY, DRAINING, UNHEALTHY; UNKNOWN is read as healthy, TIMEOUT and DEGRADED as unhealthy |
//! | `identity`, `workload` | `metadata["weft.dev"]` of the endpoint |
//!
//! For Envoy without metadata; endpoints with an identity only where the caller says so, and then in plaintext.
//! The order is that of the addresses, whatever came on the wire. Priorities are refused.

mod read;
mod render;

pub use self::{read::parse_endpoints, render::render_endpoints};

/// The metadata that holds the SPIFFE ID which is expected at an endpoint.
const IDENTITY: &str = "identity";
/// The metadata that holds the workload's name.
const WORKLOAD: &str = "workload";
