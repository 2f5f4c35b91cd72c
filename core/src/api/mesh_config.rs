//! `weft.dev/v1alpha1 MeshConfig`: settings of the whole mesh. There is one, named `default`.

use serde::{Deserialize, Serialize};

/// The only name that a MeshConfig may have.
pub const MESH_CONFIG_NAME: &str = "default";

/// What a MeshConfig is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MeshConfigSpec {
    /// Whether workloads take plaintext. Default `permissive`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inbound: Option<InboundMode>,
    /// What a workload that no `Allow` policy guards lets in. Default `allow`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_authorization: Option<DefaultAuthorization>,
    /// Whether workloads may call what the mesh does not know. Default `allow-any`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outbound: Option<OutboundMode>,
    /// Which requests and connections are logged. Default `errors`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_log: Option<AccessLogMode>,
    /// What gateways do with a path that holds `%2f`. Default `refuse`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoded_slashes: Option<EncodedSlashesMode>,
}

/// Whether workloads take plaintext.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InboundMode {
    /// Mesh TLS and plaintext.
    #[default]
    Permissive,
    /// Mesh TLS only.
    Strict,
}

/// What a workload that no `Allow` policy guards lets in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DefaultAuthorization {
    /// Everyone.
    #[default]
    Allow,
    /// Everyone with a verified identity.
    Authenticated,
    /// Nobody.
    Deny,
}

/// Whether workloads may call what the mesh does not know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OutboundMode {
    /// They may, in plaintext, as without a mesh.
    #[default]
    AllowAny,
    /// They may not.
    RegisteredOnly,
}

/// Which requests and connections are logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AccessLogMode {
    /// None. In YAML for kubectl write `"off"`, in quotes: the bare word is a truth value there.
    Off,
    /// Those that failed.
    #[default]
    Errors,
    /// Every one.
    All,
}

/// What gateways do with a path that holds `%2f`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EncodedSlashesMode {
    /// Answer 400.
    #[default]
    Refuse,
    /// Pass it on as it came.
    Keep,
}
