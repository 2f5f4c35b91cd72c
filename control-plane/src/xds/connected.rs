//! A connected proxy's entry in the table of proxies: what its stream has sent, and what the proxy has applied or rejected.

use std::sync::Arc;

use jiff::Timestamp;

use super::{
    client::Client,
    content::{Class, revision_type},
    delta::{Reply, Session},
};
use crate::state::{DiscoveryStream, Nack, ProxyKey, ProxyTable};

/// The entry; removed when this is dropped.
#[derive(Debug)]
pub(super) struct Connected {
    entry: DiscoveryStream,
    name: Arc<str>,
}

impl Connected {
    pub(super) fn new(table: &Arc<ProxyTable>, session: &Session, client: &Client) -> Self {
        let name: Arc<str> = match client.class {
            Class::Weft => format!("{}/{}", client.requester.namespace, client.requester.name).into(),
            Class::Envoy => client.id.as_str().into(),
        };
        let key = ProxyKey { identity: session.peer().clone(), name: Arc::clone(&name) };
        let entry = table.discovery(key, client.agent.clone(), Timestamp::now());
        let requester = Arc::new(client.requester.clone());
        entry.update(|status| status.requester = Some(requester));
        tracing::debug!(proxy = %name, client = client.agent, "a proxy opened its discovery stream");
        Self { entry, name }
    }

    /// Records an ACK or NACK of the client.
    pub(super) fn reply(&self, reply: Reply) {
        let now = Timestamp::now();
        match reply {
            Reply::Applied(number) => {
                self.entry.update(|status| status.applied_revision = Some(number));
                self.entry.ack([weft_core::wire::REVISION_NAME], now);
            }
            Reply::Ack(names) => self.entry.ack(names.iter().map(AsRef::as_ref), now),
            Reply::Nack { type_url, names, reason } => {
                let what = if type_url == revision_type() { "a revision" } else { "resources" };
                tracing::warn!(proxy = %self.name, type_url, ?names, reason, "a proxy rejected {what}");
                let nack = Nack { type_url: type_url.into(), message: reason, at: now };
                self.entry.nack(names.iter().map(ToString::to_string), nack);
            }
        }
    }

    /// Records what was sent.
    pub(super) fn sent(&self, session: &Session) {
        let (names, revision, gateways) = (session.names(), session.revision(), session.gateways());
        self.entry.update(|status| {
            status.gateways = gateways;
            status.subscriptions = names;
            status.sent_revision = revision.or(status.sent_revision);
        });
    }
}
