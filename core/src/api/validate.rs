//! Validation: the rules that concern one object alone. Rules that need other objects (a port that a Service does not
//! have, two policies for one target) are checked by the control plane and by `compile`.
//! Spec: Kubernetes names and labels (RFC 1123), Gateway API v1 limits and CEL rules.

mod names;
mod policy;
mod proxy;
mod route;
mod service;

use std::{collections::HashSet, hash::Hash};

use super::{
    error::FieldError,
    mesh_config::MESH_CONFIG_NAME,
    meta::{DEFAULT_NAMESPACE, ObjectMeta},
    object::{Object, Scope},
    proxy_config::ProxyConfig,
    service::SERVICE_ACCOUNTS,
};

/// Largest weight of a backend or workload (Gateway API).
pub const MAX_WEIGHT: u32 = 1_000_000;
/// Most tries of one request.
pub const MAX_ATTEMPTS: u32 = 10;

/// Judges one object by itself. Empty: nothing is wrong.
pub fn validate(object: &Object) -> Vec<FieldError> {
    let mut check = Check::default();
    check.at("metadata", |check| {
        metadata(check, object.metadata());
        if object.kind().scope() == Scope::Mesh {
            the_only_one(check, object);
        }
    });
    match object {
        Object::Service(service) => {
            check.at("metadata.name", |check| check.form(&service.metadata.name, names::label));
            if let Some(accounts) = service.metadata.annotations.get(SERVICE_ACCOUNTS) {
                check.at(&format!("metadata.{}", entry("annotations", SERVICE_ACCOUNTS)), |check| {
                    for account in accounts.split(',') {
                        check.form(account.trim(), names::subdomain);
                    }
                });
            }
            check.at("spec", |check| service::service(check, &service.spec));
        }
        Object::Workload(workload) => check.at("spec", |check| service::workload(check, &workload.spec)),
        Object::HttpRoute(route) => check.at("spec", |check| route::http_route(check, &route.spec)),
        Object::Gateway(gateway) => check.at("spec", |check| route::gateway(check, &gateway.spec)),
        Object::TrafficPolicy(policy) => check.at("spec", |check| policy::traffic(check, &policy.spec)),
        Object::AuthorizationPolicy(policy) => check.at("spec", |check| policy::authorization(check, &policy.spec)),
        Object::MeshConfig(_) => {}
    }
    check.finish()
}

/// Judges a proxy's settings.
pub(super) fn proxy_config(config: &ProxyConfig) -> Vec<FieldError> {
    let mut check = Check::default();
    check.at("metadata", |check| metadata(check, &config.metadata));
    check.at("spec", |check| proxy::settings(check, &config.spec));
    check.finish()
}

/// The name and namespace of an object of which there is one for the mesh.
fn the_only_one(check: &mut Check, object: &Object) {
    let kind = object.kind();
    if object.metadata().name != MESH_CONFIG_NAME {
        check.fail("name", format!("must be {MESH_CONFIG_NAME:?}: there is one {kind}"));
    }
    if object.metadata().namespace != DEFAULT_NAMESPACE {
        check.fail("namespace", format!("must be {DEFAULT_NAMESPACE:?} or absent: there is one {kind}"));
    }
}

fn metadata(check: &mut Check, metadata: &ObjectMeta) {
    check.at("name", |check| check.form(&metadata.name, names::subdomain));
    check.at("namespace", |check| check.form(&metadata.namespace, names::label));
    labels(check, "labels", &metadata.labels);
    let mut size = 0;
    for (key, value) in &metadata.annotations {
        check.at(&entry("annotations", key), |check| check.form(key, names::qualified));
        size += key.len() + value.len();
    }
    if size > 256 * 1024 {
        check.fail("annotations", "must be at most 256 KiB together");
    }
}

fn labels<'a>(check: &mut Check, field: &str, labels: impl IntoIterator<Item = (&'a String, &'a String)>) {
    for (key, value) in labels {
        check.at(&entry(field, key), |check| {
            check.form(key, names::qualified);
            check.form(value, names::label_value);
        });
    }
}

/// The path of an entry of a map, as the parser writes it.
fn entry(field: &str, key: &str) -> String {
    if key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-') && !key.is_empty() {
        format!("{field}.{key}")
    } else {
        format!("{field}[{key:?}]")
    }
}

/// What is wrong so far, and where the check is now.
#[derive(Default)]
struct Check {
    path: String,
    errors: Vec<FieldError>,
}

impl Check {
    /// Checks something below the current path.
    fn at(&mut self, field: &str, inner: impl FnOnce(&mut Self)) {
        let length = self.path.len();
        self.path = self.below(field);
        inner(self);
        self.path.truncate(length);
    }

    /// Checks each member of a list, below `field`.
    fn each<T>(&mut self, field: &str, items: &[T], mut inner: impl FnMut(&mut Self, &T)) {
        for (index, item) in items.iter().enumerate() {
            self.at(&format!("{field}[{index}]"), |check| inner(check, item));
        }
    }

    /// Something is wrong at `field`; the empty text is the current path.
    fn fail(&mut self, field: &str, reason: impl Into<String>) {
        self.errors.push(FieldError::invalid(self.below(field), reason));
    }

    fn required(&mut self, field: &str) {
        self.errors.push(FieldError::required(self.below(field)));
    }

    fn not_supported(&mut self, field: &str) {
        self.errors.push(FieldError::not_supported(self.below(field)));
    }

    /// Checks the form of the text at the current path.
    fn form(&mut self, text: &str, form: impl FnOnce(&str) -> Result<(), &'static str>) {
        if let Err(reason) = form(text) {
            let shown: String = text.chars().take(80).collect();
            self.fail("", format!("{shown:?} {reason}"));
        }
    }

    /// Checks that a list is not longer than `most`.
    fn at_most<T>(&mut self, field: &str, items: &[T], most: usize) {
        if items.len() > most {
            self.fail(field, format!("must have at most {most} entries, not {}", items.len()));
        }
    }

    /// Checks that no two members of a list have the same key; members without one do not count.
    fn unique<'a, T, K: Eq + Hash>(
        &mut self,
        list: &str,
        field: &str,
        items: &'a [T],
        key: impl Fn(&'a T) -> Option<K>,
    ) {
        let mut seen = HashSet::new();
        for (index, item) in items.iter().enumerate() {
            if key(item).is_some_and(|key| !seen.insert(key)) {
                let path = format!("{list}[{index}]");
                let path = if field.is_empty() { path } else { format!("{path}.{field}") };
                self.fail(&path, "appears twice");
            }
        }
    }

    fn below(&self, field: &str) -> String {
        match (self.path.is_empty(), field.is_empty()) {
            (true, _) => field.to_owned(),
            (_, true) => self.path.clone(),
            _ => format!("{}.{field}", self.path),
        }
    }

    /// All mistakes; the same one at the same place is named once.
    fn finish(self) -> Vec<FieldError> {
        let mut seen = HashSet::new();
        self.errors.into_iter().filter(|error| seen.insert((error.path.clone(), error.reason.clone()))).collect()
    }
}

#[cfg(test)]
mod tests {
    use crate::api::parse_documents;

    #[test]
    fn the_accounts_of_a_service_are_names() {
        let parse = |accounts: &str| {
            parse_documents(&format!(
                "{{apiVersion: v1, kind: Service, metadata: {{name: a, namespace: shop, annotations: {{weft.dev/service-accounts: {accounts:?}}}}}, spec: {{ports: [{{port: 80}}]}}}}"
            ))
        };
        assert!(parse("product, product-canary").is_ok());
        for wrong in ["", "product,", "Product", "a b"] {
            let error = format!("{:?}", parse(wrong).unwrap_err());
            assert!(error.contains("metadata.annotations") && error.contains("service-accounts"), "{wrong:?}: {error}");
        }
    }
}
