//! The resources that are due to one client: what [`super::subscriptions`] hands to a variant of the protocol.

use std::{collections::BTreeMap, sync::Arc};

use super::content::{Absence, Content, Kind};

/// The resources that are due to one client, by type.
#[derive(Debug, Default)]
pub(super) struct Due {
    pub(super) added: BTreeMap<Kind, Vec<Arc<Content>>>,
    pub(super) removed: BTreeMap<Kind, Vec<Removed>>,
    /// Types that get a response even if it is empty.
    pub(super) responses: Vec<Kind>,
    /// Names that cannot exist, by type URL.
    pub(super) invalid: Vec<(String, Vec<String>)>,
}

/// A name without a resource, and the reason if that is an error.
pub(super) type Removed = (Arc<str>, Option<Absence>);

impl Due {
    pub(super) fn add(&mut self, kind: Kind, content: Arc<Content>) {
        self.added.entry(kind).or_default().push(content);
    }

    pub(super) fn remove(&mut self, kind: Kind, name: Arc<str>, reason: Option<Absence>) {
        self.removed.entry(kind).or_default().push((name, reason));
    }

    /// At least one message of this type, even an empty one: the client asked for everything and waits for it.
    pub(super) fn response(&mut self, kind: Kind) {
        self.responses.push(kind);
    }

    /// Names that cannot exist, or of a type that is not served.
    pub(super) fn invalid(&mut self, type_url: String, names: Vec<String>) {
        self.invalid.push((type_url, names));
    }

    /// Whether any of it is staged until the barrier: everything but endpoints is (rule 9).
    pub(super) fn is_staged(&self) -> bool {
        self.added.keys().any(|kind| *kind != Kind::Endpoints)
    }
}
