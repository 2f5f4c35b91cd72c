//! Clusters <-> `envoy.config.cluster.v3.Cluster`.
//!
//! | model | xDS |
//! |---|---|
//! | `name` | `name`; `type` EDS, endpoints by ADS under the same name |
//! | `connect_timeout` | `connect_timeout`; absent: 5 s, as in Envoy |
//! | `http`, `http_idle` | `typed_extension_protocol_options`: `HttpProtocolOptions` with `explicit_http_config` HTTP/2 or `use_downstream_protocol_config`; `common_http_protocol_options.idle_timeout`, absent: 1 h |
//! | `tcp_idle` | `metadata.tcp_idle`; absent: 1 h |
//! | `limits` | `circuit_breakers.thresholds` of priority DEFAULT: `max_connections`, `max_pending_requests`, `max_requests`; absent: 1024 |
//! | `outlier` | `outlier_detection`: `consecutive_gateway_failure` (enforced, every other kind not), `base_ejection_time`, `max_ejection_percent`, the exact ratio in `metadata.max_ejected` when it is no whole percentage |
//! | `budget` | `retry_budget.budget_percent`, and exactly in `metadata.retry_ratio` and `metadata.retry_min_per_second` |
//!
//! For Envoy (without metadata) `load_balancing_policy` names least_request, then wrr_locality: all clients take this
//! form. TLS is not in here for Weft: each endpoint names the expected identity. A transport socket is refused, as are other
//! discovery types and balancing by hash.

mod read;
mod render;

pub use self::{read::parse_cluster, render::render_cluster};

const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
const TCP_IDLE: &str = "tcp_idle";
const MAX_EJECTED: &str = "max_ejected";
const RETRY_RATIO: &str = "retry_ratio";
const RETRY_MIN: &str = "retry_min_per_second";

/// A ratio as the wire says it where it has whole percentages only.
fn ratio_of(percent: u32) -> f64 {
    f64::from(percent) / 100.0
}
