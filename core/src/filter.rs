//! Filters of a rule: changes to a request on its way to the backend, and to the answer on its way back.
//! Shape: one [`Filters`] for each rule, with at most one filter of each kind: a proxy applies each in its phase, so there is
//! no order among them to keep.
//! Spec: Gateway API `HTTPRouteFilter`. A filter that a proxy does not know must not be skipped: see `wire::route`.
//!
//! - [`header_modifier`]: set, add and remove header fields.

pub mod header_modifier;

use serde::Serialize;

pub use self::header_modifier::{Change, Header, HeaderModifier};

/// The filters of a rule.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Filters {
    /// Changes to the header fields of a request, before it is sent.
    #[serde(skip_serializing_if = "HeaderModifier::is_empty")]
    pub request_headers: HeaderModifier,
    /// Changes to the header fields of the answer, before it goes to the caller.
    #[serde(skip_serializing_if = "HeaderModifier::is_empty")]
    pub response_headers: HeaderModifier,
}

impl Filters {
    /// Whether they change nothing.
    pub fn is_empty(&self) -> bool {
        self.request_headers.is_empty() && self.response_headers.is_empty()
    }
}
