//! xDS from others: what is read, and what is refused and how it is named. Made with the published crate, so with the
//! field names, numbers and types of Envoy. One file for each resource; here what they share.

mod clusters;
mod endpoints;
mod listeners;
mod policies;
mod routes;

use envoy_types::pb::google::protobuf as pb;
use prost::Message;
use prost_types::Any;

use super::super::*;

const ROUTE: &str = "svc/a/b:80";

fn any(url: &str, message: &impl Message) -> pb::Any {
    pb::Any { type_url: format!("type.googleapis.com/{url}"), value: message.encode_to_vec() }
}

/// The errors of a parse, one a line, without the resource's name.
fn errors<T: std::fmt::Debug>(
    kind: ResourceType,
    name: &str,
    message: &impl Message,
    parse: impl Fn(&str, &Any) -> Result<T, WireError>,
) -> String {
    let any = Any { type_url: kind.type_url().into(), value: message.encode_to_vec() };
    let lines = parse(name, &any).unwrap_err().errors;
    lines.iter().map(|error| format!("{}: {}\n", error.path, error.reason)).collect()
}

/// In every message of a listener with a policy, and of a table with one: an unknown field is refused where it could
/// decide who may pass, and changes nothing elsewhere.
#[test]
fn an_unknown_field_is_refused_in_every_message_that_decides_and_ignored_in_the_others() {
    use super::{super::walk::is_strict, golden};
    let descriptors = golden::Descriptors::load();
    let mut strict = std::collections::BTreeSet::new();
    for encoded in [
        render_listener(&golden::guarded_listener(), ClientClass::Weft).unwrap(),
        render_route(&golden::split_table(), ClientClass::Weft).unwrap(),
    ] {
        let url = encoded.resource_type.type_url();
        let plain = parse(encoded.resource_type, &encoded.name, &encoded.to_any()).unwrap();
        let name = url.rsplit('/').next().unwrap();
        let changed = (0..).map_while(|place| descriptors.inject(name, &encoded.value, place));
        for (message, value) in changed {
            let read = parse(encoded.resource_type, &encoded.name, &Any { type_url: url.into(), value });
            if is_strict(&message) {
                let text = read.expect_err(&message).to_string();
                assert!(text.contains("has the unknown field 999"), "{message}: {text}");
                strict.insert(message);
            } else {
                assert_eq!(read.unwrap(), plain, "{message}");
            }
        }
    }
    for message in [
        "envoy.config.rbac.v3.Principal.Authenticated",
        "envoy.type.matcher.v3.StringMatcher",
        "envoy.extensions.transport_sockets.tls.v3.SdsSecretConfig",
        "envoy.config.route.v3.HeaderMatcher",
        "envoy.extensions.filters.http.rbac.v3.RBACPerRoute",
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter",
    ] {
        assert!(strict.contains(message), "{message} of {strict:?}");
    }
}
