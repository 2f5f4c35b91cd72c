//! `weft.dev/v1alpha1 AuthorizationPolicy`: which callers may do what at a workload.
//! Invariant: a list that is present but empty, and an entry that says nothing, are refused: a mistake never makes a
//! policy wider (BATTERY.md F10).

use std::num::NonZeroU16;

use serde::{Deserialize, Serialize};

use super::{gateway::LabelSelector, traffic_policy::PolicyTarget};

/// What an AuthorizationPolicy is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthorizationPolicySpec {
    /// The workloads of its namespace that it guards, by labels (empty: all). This or `targetRef`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,
    /// The Service of its namespace whose workloads it guards. This or `selector`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<PolicyTarget>,
    /// What a matching rule does.
    pub action: Action,
    /// The rules. With `Allow` and an empty list nothing is allowed.
    pub rules: Vec<AuthorizationRule>,
}

/// What a matching rule does. Deny wins over allow, whatever the order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// Lets the request in; what no rule of any `Allow` policy matches is refused.
    Allow,
    /// Refuses the request.
    Deny,
}

/// Callers and operations: both have to match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthorizationRule {
    /// What a denial names. Default: the rule's index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The callers: any of these. Absent: every caller, also without an identity. An empty list is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Vec<Source>>,
    /// What: any of these. Absent: everything. An empty list is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Vec<Target>>,
}

/// Callers: exactly one of the lists, and any of its values.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Source {
    /// SPIFFE IDs; one that ends with `*` means all that start so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identities: Option<Vec<String>>,
    /// Service accounts of the mesh's own trust domain, `namespace/name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_accounts: Option<Vec<String>>,
    /// Every service account of these namespaces, in the mesh's own trust domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<Vec<String>>,
}

/// What is called: every list that is present has to match. At least one must be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Target {
    /// HTTP methods, compared exactly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub methods: Option<Vec<String>>,
    /// Paths without the query; one that ends with `*` means all that start so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paths: Option<Vec<String>>,
    /// The workload's ports (not the Service's).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Option<Vec<NonZeroU16>>,
}
