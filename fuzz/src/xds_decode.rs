//! xDS resources as a control plane sends them. The input: a byte for the type (its place in [`ResourceType::ALL`]), a byte for
//! the length of the name, the name, the encoded message.
//! Oracles: what was read, rendered and read again is the same, and rendering is stable; the text of a NACK is bounded.

use prost_types::Any;
use weft_core::wire::{
    self, ClientClass, Encoded, Parsed, ResourceType, WireError,
    error::{MAX_ERRORS, MAX_TEXT},
};

use crate::{must, some};

/// Runs the target.
pub fn run(bytes: &[u8]) {
    let [kind, length, rest @ ..] = bytes else { return };
    let Some(kind) = ResourceType::ALL.get(usize::from(*kind)).copied() else { return };
    let Some((name, value)) = rest.split_at_checked(usize::from(*length)) else { return };
    let Ok(name) = std::str::from_utf8(name) else { return };
    let Some(parsed) = read(kind, name, value.to_vec()) else { return };
    let rendered = render(&parsed);
    assert_eq!((rendered.resource_type, rendered.name.as_str()), (kind, name), "rendered as another resource");
    let again = some(read(kind, name, rendered.value.to_vec()), "a rendered resource that can be read");
    assert_eq!(again, parsed, "rendering changed the resource");
    assert_eq!(render(&again), rendered, "rendering is not stable");
}

fn read(kind: ResourceType, name: &str, value: Vec<u8>) -> Option<Parsed> {
    match wire::parse(kind, name, &Any { type_url: kind.type_url().into(), value }) {
        Ok(parsed) => Some(parsed),
        Err(error) => {
            judge(&error);
            None
        }
    }
}

fn judge(error: &WireError) {
    let text = error.to_string();
    assert!(text.len() <= MAX_TEXT && error.errors.len() <= MAX_ERRORS, "a NACK of {} bytes", text.len());
    assert!(!error.errors.is_empty(), "a NACK without a reason");
}

fn render(parsed: &Parsed) -> Encoded {
    let class = ClientClass::Weft;
    match parsed {
        Parsed::Listener(_, listener) => must(wire::render_listener(listener, class), "a listener for our own proxy"),
        Parsed::Route(table) => must(wire::render_route(table, class), "a route table for our own proxy"),
        Parsed::Cluster(cluster) => wire::render_cluster(cluster, class),
        Parsed::Endpoints(set) => wire::render_endpoints(set, class),
        Parsed::Revision(revision) => wire::render_revision(revision),
    }
}
