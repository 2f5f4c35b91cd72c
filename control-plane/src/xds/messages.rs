//! Messages of the incremental variant: what is due to a client, in order, each message below a size.
//! Order (rule 5): clusters, endpoints, listeners, routes, then removals in the opposite order of need, so that no resource
//! ever refers to one that was not sent yet or is already removed.

use std::sync::Arc;

use prost::Message;
use weft_proto::{
    envoy::service::discovery::v3::{DeltaDiscoveryResponse, ResourceError, ResourceName},
    google::rpc::Status,
};

use super::{
    content::{Absence, Content, INVALID_ARGUMENT, Kind},
    due::Due,
};

/// Largest message, in bytes; only a single resource that is larger goes above it.
pub(super) const MAX_MESSAGE: usize = 1 << 20;

/// What a resource costs besides its value and name: type URL and version.
const FRAME: usize = 128;
/// What an entry costs on the wire besides its own bytes: tags and lengths.
const ENTRY: usize = 16;

/// A message with the names in it, for the pairing of its answer.
pub(super) type Built = (&'static str, Vec<Arc<str>>, Outgoing);

/// A message in the queue of a stream: its resources are still the shared ones.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    pub(super) message: DeltaDiscoveryResponse,
    contents: Vec<Arc<Content>>,
}

impl Outgoing {
    /// The message as it is sent.
    pub(super) fn finish(mut self) -> DeltaDiscoveryResponse {
        self.message.resources.extend(self.contents.iter().map(|content| content.encoded.to_resource()));
        self.message
    }
}

impl From<DeltaDiscoveryResponse> for Outgoing {
    fn from(message: DeltaDiscoveryResponse) -> Self {
        Self { message, contents: Vec::new() }
    }
}

/// The messages that carry what is due, without their nonces.
pub(super) fn build(mut due: Due) -> Vec<Built> {
    let mut out = Vec::new();
    for kind in Kind::ALL {
        let added = due.added.remove(&kind).unwrap_or_default();
        if added.is_empty() && due.responses.contains(&kind) && !due.removed.contains_key(&kind) {
            out.push((kind.type_url(), Vec::new(), empty(kind.type_url()).into()));
        }
        let mut parts = Parts::new(kind.type_url());
        for content in added {
            parts.reserve(content.encoded.value.len() + content.name.len() + FRAME);
            parts.contents.push(Arc::clone(&content));
            parts.names.push(Arc::clone(&content.name));
        }
        out.extend(parts.finish());
    }
    for kind in [Kind::Listener, Kind::Routes, Kind::Cluster, Kind::Endpoints] {
        let mut parts = Parts::new(kind.type_url());
        for (name, reason) in due.removed.remove(&kind).unwrap_or_default() {
            parts.gone(name, reason);
        }
        out.extend(parts.finish());
    }
    for (type_url, names) in due.invalid {
        // The static name of a type that is served, or the client's own text, which pairs with nothing.
        let known = Kind::parse(&type_url).map_or("", Kind::type_url);
        let message = format!("{} has no resource of this name", if known.is_empty() { "Weft" } else { known });
        let mut parts = Parts::new(known);
        parts.message.type_url = type_url;
        for name in names {
            parts.gone(name.into(), Some(Absence { code: INVALID_ARGUMENT, message: message.clone() }));
        }
        out.extend(parts.finish());
    }
    out
}

fn empty(type_url: &str) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse { type_url: type_url.to_owned(), ..DeltaDiscoveryResponse::default() }
}

/// Messages of one type, split by size.
struct Parts {
    type_url: &'static str,
    done: Vec<Built>,
    names: Vec<Arc<str>>,
    message: DeltaDiscoveryResponse,
    contents: Vec<Arc<Content>>,
    size: usize,
}

impl Parts {
    fn new(type_url: &'static str) -> Self {
        Self { type_url, done: Vec::new(), names: Vec::new(), message: empty(type_url), contents: Vec::new(), size: 0 }
    }

    fn reserve(&mut self, size: usize) {
        let size = size + ENTRY;
        if self.size > 0 && self.size + size > MAX_MESSAGE - 1024 {
            self.close();
        }
        self.size += size;
    }

    fn gone(&mut self, name: Arc<str>, reason: Option<Absence>) {
        let error = reason.map(|reason| ResourceError {
            resource_name: Some(ResourceName { name: name.to_string() }),
            error_detail: Some(Status { code: reason.code, message: reason.message, ..Status::default() }),
        });
        self.reserve(name.len() + error.as_ref().map_or(0, |error| error.encoded_len() + ENTRY));
        self.message.removed_resources.push(name.to_string());
        self.message.resource_errors.extend(error);
        self.names.push(name);
    }

    fn close(&mut self) {
        let next = empty(&self.message.type_url);
        let message = std::mem::replace(&mut self.message, next);
        let outgoing = Outgoing { message, contents: std::mem::take(&mut self.contents) };
        self.done.push((self.type_url, std::mem::take(&mut self.names), outgoing));
        self.size = 0;
    }

    fn finish(mut self) -> Vec<Built> {
        if self.size > 0 {
            self.close();
        }
        self.done
    }
}
