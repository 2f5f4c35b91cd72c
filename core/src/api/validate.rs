//! Validation.
use super::{error::FieldError, object::Object, proxy_config::ProxyConfig};

/// Judges one object by itself.
pub fn validate(_object: &Object) -> Vec<FieldError> {
    Vec::new()
}

/// Judges a proxy's settings.
pub(super) fn proxy_config(_config: &ProxyConfig) -> Vec<FieldError> {
    Vec::new()
}
