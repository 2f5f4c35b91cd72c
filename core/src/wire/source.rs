//! Where a client asks for a resource that another one names: `envoy.config.core.v3.ConfigSource`, always this stream.

use weft_proto::envoy::config::core::v3::{
    AggregatedConfigSource, ApiVersion, ConfigSource, config_source::ConfigSourceSpecifier,
};

use super::error::{At, Errors, Reason};

/// "Ask on this stream."
pub(super) fn ads() -> ConfigSource {
    ConfigSource {
        config_source_specifier: Some(ConfigSourceSpecifier::Ads(AggregatedConfigSource {})),
        resource_api_version: ApiVersion::V3.into(),
    }
}

/// Resources come on this stream, or not at all.
pub(super) fn check_source(source: Option<&ConfigSource>, at: &At<'_>, errors: &mut Errors) {
    if source.is_none_or(|source| source.config_source_specifier.is_none()) {
        errors.add(&at.field("ads"), Reason::Required);
    }
}
