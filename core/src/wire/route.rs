//! Route tables <-> `envoy.config.route.v3.RouteConfiguration`.
//!
//! | model | xDS |
//! |---|---|
//! | `authorization` | `typed_per_filter_config` of `weft.rbac.deny` and `weft.rbac.allow`: `RBACPerRoute`; see `wire::authorization` |
//! | `VirtualHost` | `virtual_hosts`: `name`, `domains` |
//! | `Rule.name` | `routes[].name` |
//! | `PathMatch` | `path`; `path_separated_prefix`, or `prefix` `/` for all; `safe_regex` |
//! | `Match.method` | a header matcher on `:method`, first of all |
//! | `HeaderMatch` | `headers[].string_match`: `exact`, `safe_regex` |
//! | `Filters` | `request_headers_to_add`, `request_headers_to_remove`, and the same of `response`; see `wire::route::headers` |
//! | `Action::Forward` | `route`: `cluster` for one of weight 1, else `weighted_clusters` |
//! | … `unresolved` | a weighted cluster of this name that does not exist, and `cluster_not_found_response_code` 500 |
//! | … `request_timeout`, `idle_timeout` | `timeout`, `idle_timeout`; none: 0 s, since absence means 15 s and 5 min |
//! | … `try_timeout`, `retry` | `retry_policy`; see `wire::route::retry` |
//! | `Action::Respond` | `direct_response.status`, no body |
//! | `Action::Deliver` | `non_forwarding_action` |
//!
//! Read from others: `prefix`, `case_sensitive`, and the other header matches become regular expressions;
//! `max_stream_duration` is a request timeout. Rewrites, redirects and mirrors are refused, and header changes anywhere but on
//! a route.

mod headers;
mod matches;
mod read;
mod render;
mod retry;

pub use self::{read::parse_route, render::render_route};
