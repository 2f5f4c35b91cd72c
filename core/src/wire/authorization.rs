//! Policies <-> RBAC.
//!
//! | model | xDS |
//! |---|---|
//! | `Authorization.deny` | a filter [`DENY_FILTER`], action DENY; left out when empty |
//! | `Authorization.allow` | a filter [`ALLOW_FILTER`], action ALLOW; left out when `None`; without policies when empty |
//! | `Rule.name` | the key of `policies`, after six digits and a space that keep the order |
//! | `Rule.from` | `principals`; empty: `not_id { any }` |
//! | `Principal` | `any`, `authenticated` without name, with an exact one, with a prefix |
//! | `Rule.to` | `permissions`; empty: `not_rule { any }` |
//! | `Operation` | `any`, or `and_rules` of one `or_rules` per part: `header` `:method` exact, `url_path` exact or prefix, `destination_port` |
//!
//! Read from others: also nested `or_rules` and `or_ids`, `and_rules` whose parts are about different things, and single
//! conditions. Everything else is refused, because a rule that is left out or made wider is a hole.

mod read;
mod render;

pub(super) use self::{
    read::{read, read_method},
    render::{encode, method_matcher},
};

/// The name of the filter that denies.
pub(super) const DENY_FILTER: &str = "weft.rbac.deny";
/// The name of the filter that allows.
pub(super) const ALLOW_FILTER: &str = "weft.rbac.allow";
