//! Objects: the documents that are applied, stored and listed.
//! Shape: an [`Object`] of one of a closed set of [`Kind`]s, found by its [`ObjectKey`]. Reads and writes the whole
//! document (`apiVersion`, `kind`, `metadata`, `spec`, `status`); fields that were not written are not added, but for
//! `metadata.namespace`.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser::SerializeStruct};

use super::{
    authorization_policy::AuthorizationPolicySpec,
    gateway::GatewaySpec,
    http_route::HttpRouteSpec,
    mesh_config::MeshConfigSpec,
    meta::{ObjectMeta, Status},
    node::Node,
    parse,
    service::ServiceSpec,
    traffic_policy::TrafficPolicySpec,
    workload::WorkloadSpec,
};

/// An object of one kind: metadata, what is wanted, and what became of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Resource<S> {
    /// Name, labels and bookkeeping.
    pub metadata: ObjectMeta,
    /// What is wanted.
    pub spec: S,
    /// What became of it.
    pub status: Option<Status>,
}

/// `v1 Service`.
pub type Service = Resource<ServiceSpec>;
/// `gateway.networking.k8s.io/v1 HTTPRoute`.
pub type HttpRoute = Resource<HttpRouteSpec>;
/// `gateway.networking.k8s.io/v1 Gateway`.
pub type Gateway = Resource<GatewaySpec>;
/// `weft.dev/v1alpha1 Workload`.
pub type Workload = Resource<WorkloadSpec>;
/// `weft.dev/v1alpha1 TrafficPolicy`.
pub type TrafficPolicy = Resource<TrafficPolicySpec>;
/// `weft.dev/v1alpha1 AuthorizationPolicy`.
pub type AuthorizationPolicy = Resource<AuthorizationPolicySpec>;
/// `weft.dev/v1alpha1 MeshConfig`.
pub type MeshConfig = Resource<MeshConfigSpec>;

/// Declares [`Kind`] and [`Object`] from one table, so that no place can forget a kind.
macro_rules! kinds {
    ($($(#[doc = $doc:literal])* $variant:ident($spec:ty) = {
        version: $version:literal, name: $name:literal, plural: $plural:literal, short: $short:expr, scope: $scope:ident
    };)*) => {
        /// A kind of object that can be stored, in the order in which kinds are listed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Kind {
            $($(#[doc = $doc])* $variant,)*
        }

        /// An object that can be stored.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Object {
            $($(#[doc = $doc])* $variant(Resource<$spec>),)*
        }

        impl Kind {
            /// Every kind.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// As `kind` says it, such as `HTTPRoute`.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// As `apiVersion` says it, such as `gateway.networking.k8s.io/v1`.
            pub fn api_version(self) -> &'static str {
                match self { $(Self::$variant => $version,)* }
            }

            /// The plural, in lower case, as paths of the API say it: `httproutes`.
            pub fn plural(self) -> &'static str {
                match self { $(Self::$variant => $plural,)* }
            }

            /// Further names that people may type, in lower case: `gw`.
            pub fn short_names(self) -> &'static [&'static str] {
                match self { $(Self::$variant => $short,)* }
            }

            /// What one object of this kind is about.
            pub fn scope(self) -> Scope {
                match self { $(Self::$variant => Scope::$scope,)* }
            }
        }

        impl Object {
            /// Its kind.
            pub fn kind(&self) -> Kind {
                match self { $(Self::$variant(_) => Kind::$variant,)* }
            }

            /// Its metadata.
            pub fn metadata(&self) -> &ObjectMeta {
                match self { $(Self::$variant(object) => &object.metadata,)* }
            }

            /// Its metadata, to change.
            pub fn metadata_mut(&mut self) -> &mut ObjectMeta {
                match self { $(Self::$variant(object) => &mut object.metadata,)* }
            }

            /// Its status.
            pub fn status(&self) -> Option<&Status> {
                match self { $(Self::$variant(object) => object.status.as_ref(),)* }
            }

            /// Its status, to change.
            pub fn status_mut(&mut self) -> &mut Option<Status> {
                match self { $(Self::$variant(object) => &mut object.status,)* }
            }

            /// Whether another object is of the same kind and wants the same (labels, status and bookkeeping aside).
            pub fn same_spec(&self, other: &Self) -> bool {
                match (self, other) {
                    $((Self::$variant(one), Self::$variant(two)) => one.spec == two.spec,)*
                    _ => false,
                }
            }

            /// Reads the parts of a document of a known kind.
            pub(super) fn from_parts(
                kind: Kind,
                read: &mut parse::Reader<'_>,
            ) -> Option<Self> {
                match kind { $(Kind::$variant => read.resource().map(Self::$variant),)* }
            }
        }

        impl Serialize for Object {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                match self { $(Self::$variant(object) => write(serializer, Kind::$variant, object),)* }
            }
        }

        $(impl From<Resource<$spec>> for Object {
            fn from(object: Resource<$spec>) -> Self {
                Self::$variant(object)
            }
        })*
    };
}

kinds! {
    /// `MeshConfig`
    MeshConfig(MeshConfigSpec) = {
        version: "weft.dev/v1alpha1", name: "MeshConfig", plural: "meshconfigs", short: &["mc", "mesh"], scope: Mesh
    };
    /// `Service`
    Service(ServiceSpec) = {
        version: "v1", name: "Service", plural: "services", short: &["svc"], scope: Namespace
    };
    /// `Workload`
    Workload(WorkloadSpec) = {
        version: "weft.dev/v1alpha1", name: "Workload", plural: "workloads", short: &["wl"], scope: Namespace
    };
    /// `Gateway`
    Gateway(GatewaySpec) = {
        version: "gateway.networking.k8s.io/v1", name: "Gateway", plural: "gateways", short: &["gw"], scope: Namespace
    };
    /// `HTTPRoute`
    HttpRoute(HttpRouteSpec) = {
        version: "gateway.networking.k8s.io/v1", name: "HTTPRoute", plural: "httproutes", short: &["route", "routes"], scope: Namespace
    };
    /// `TrafficPolicy`
    TrafficPolicy(TrafficPolicySpec) = {
        version: "weft.dev/v1alpha1", name: "TrafficPolicy", plural: "trafficpolicies", short: &["tp"], scope: Namespace
    };
    /// `AuthorizationPolicy`
    AuthorizationPolicy(AuthorizationPolicySpec) = {
        version: "weft.dev/v1alpha1", name: "AuthorizationPolicy", plural: "authorizationpolicies", short: &["ap"], scope: Namespace
    };
}

/// What one object of a kind is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// A part of a namespace: there may be many.
    Namespace,
    /// The whole mesh: there is one, named `default` in the namespace `default`.
    Mesh,
}

/// What an object is found by. Orders by kind, namespace, name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ObjectKey {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// A text that names no kind of object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is not a kind that Weft knows; the kinds are {}", kind_names())]
pub struct KindError {
    /// The text.
    pub given: String,
}

/// A text that is no object key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ObjectKeyError {
    /// Not `Kind/namespace/name`.
    #[error("must be Kind/namespace/name")]
    Form,
    /// An unknown kind.
    #[error(transparent)]
    Kind(#[from] KindError),
}

impl Kind {
    /// The kind that a person means by a text: its name, plural or a short name, in any case.
    pub fn named(text: &str) -> Option<Self> {
        let text = text.to_ascii_lowercase();
        Self::ALL.iter().copied().find(|kind| {
            kind.as_str().eq_ignore_ascii_case(&text)
                || kind.plural() == text
                || kind.short_names().contains(&text.as_str())
        })
    }

    /// The kind of a plural, exactly as paths of the API say it.
    pub fn from_plural(plural: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.plural() == plural)
    }
}

/// The names of all kinds, for messages.
pub(super) fn kind_names() -> String {
    Kind::ALL.iter().map(|kind| kind.as_str()).collect::<Vec<_>>().join(", ")
}

impl Object {
    /// What it is found by.
    pub fn key(&self) -> ObjectKey {
        let metadata = self.metadata();
        ObjectKey { kind: self.kind(), namespace: metadata.namespace.clone(), name: metadata.name.clone() }
    }
}

impl<S> Resource<S> {
    /// An object that says what is wanted and has no status.
    pub fn new(metadata: ObjectMeta, spec: S) -> Self {
        Self { metadata, spec, status: None }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Kind {
    type Err = KindError;

    fn from_str(text: &str) -> Result<Self, KindError> {
        let found = Self::ALL.iter().find(|kind| kind.as_str() == text);
        found.copied().ok_or_else(|| KindError { given: text.to_owned() })
    }
}

impl Serialize for Kind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Kind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl ObjectKey {
    /// The key of these parts.
    pub fn new(kind: Kind, namespace: &str, name: &str) -> Self {
        Self { kind, namespace: namespace.to_owned(), name: name.to_owned() }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.kind, self.namespace, self.name)
    }
}

impl FromStr for ObjectKey {
    type Err = ObjectKeyError;

    fn from_str(text: &str) -> Result<Self, ObjectKeyError> {
        let mut parts = text.split('/');
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(kind), Some(namespace), Some(name), None) if !namespace.is_empty() && !name.is_empty() => {
                Ok(Self::new(kind.parse()?, namespace, name))
            }
            _ => Err(ObjectKeyError::Form),
        }
    }
}

fn write<S: Serializer, T: Serialize>(serializer: S, kind: Kind, object: &Resource<T>) -> Result<S::Ok, S::Error> {
    let length = 4 + usize::from(object.status.is_some());
    let mut fields = serializer.serialize_struct("Object", length)?;
    fields.serialize_field("apiVersion", kind.api_version())?;
    fields.serialize_field("kind", kind.as_str())?;
    fields.serialize_field("metadata", &object.metadata)?;
    fields.serialize_field("spec", &object.spec)?;
    match &object.status {
        Some(status) => fields.serialize_field("status", status)?,
        None => fields.skip_field("status")?,
    }
    fields.end()
}

/// Reads one document; the error names every mistake in it.
impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let node = Node::deserialize(deserializer)?;
        parse::object(node).map_err(|errors| {
            let all: Vec<String> = errors.iter().map(ToString::to_string).collect();
            de::Error::custom(all.join("; "))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_finds_its_kind_and_no_name_is_used_twice() {
        let mut names = std::collections::BTreeSet::new();
        for kind in Kind::ALL.iter().copied() {
            let singular = kind.as_str().to_ascii_lowercase();
            for name in kind.short_names().iter().copied().chain([kind.plural(), singular.as_str()]) {
                assert!(names.insert(name.to_owned()), "{name}");
                assert_eq!(Kind::named(name), Some(kind));
                assert_eq!(Kind::named(&name.to_uppercase()), Some(kind));
            }
            assert_eq!(Kind::from_plural(kind.plural()), Some(kind));
        }
        assert_eq!((Kind::named("pod"), Kind::from_plural("svc")), (None, None));
    }
}
