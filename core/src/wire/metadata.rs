//! `metadata["weft.dev"]`: settings without a field in xDS. Envoy ignores it; unknown keys are ignored by us.

use std::collections::BTreeMap;

use prost_types::{Struct, Value, value::Kind};
use weft_proto::envoy::config::core::v3::Metadata;

use super::error::{At, Errors, Reason};

/// The key of our part in `filter_metadata`.
pub(super) const NAMESPACE: &str = "weft.dev";

/// Our part of a message's metadata.
#[derive(Clone, Copy, Debug)]
pub(super) struct Read<'a> {
    fields: Option<&'a BTreeMap<String, Value>>,
}

/// Metadata with these entries in our part; `None` when there are none.
pub(super) fn encode<const N: usize>(entries: [(&str, Option<Kind>); N]) -> Option<Metadata> {
    let fields: BTreeMap<String, Value> =
        entries.into_iter().filter_map(|(key, kind)| Some((key.to_owned(), Value { kind: Some(kind?) }))).collect();
    (!fields.is_empty())
        .then(|| Metadata { filter_metadata: BTreeMap::from([(NAMESPACE.to_owned(), Struct { fields })]) })
}

/// A text entry.
pub(super) fn text(value: impl Into<String>) -> Option<Kind> {
    Some(Kind::StringValue(value.into()))
}

/// A number entry.
pub(super) fn number(value: f64) -> Option<Kind> {
    Some(Kind::NumberValue(value))
}

impl<'a> Read<'a> {
    pub(super) fn of(metadata: Option<&'a Metadata>) -> Self {
        Self { fields: metadata.and_then(|m| m.filter_metadata.get(NAMESPACE)).map(|part| &part.fields) }
    }

    /// A text; `None` when it is not there or refused.
    pub(super) fn text(&self, key: &str, at: &At<'_>, errors: &mut Errors) -> Option<&'a str> {
        if let Kind::StringValue(text) = self.kind(key)? {
            return Some(text);
        }
        errors.refuse(&at.key("metadata", key), Reason::expected("another type", "a text"))
    }

    /// A number; `None` when it is not there or refused.
    pub(super) fn number(&self, key: &str, at: &At<'_>, errors: &mut Errors) -> Option<f64> {
        if let Kind::NumberValue(number) = self.kind(key)? {
            return Some(*number);
        }
        errors.refuse(&at.key("metadata", key), Reason::expected("another type", "a number"))
    }

    /// A ratio of 0..=1.
    pub(super) fn ratio(&self, key: &str, at: &At<'_>, errors: &mut Errors) -> Option<f64> {
        let number = self.number(key, at, errors)?;
        if (0.0..=1.0).contains(&number) {
            return Some(number);
        }
        errors.refuse(&at.key("metadata", key), Reason::expected(number, "0 to 1"))
    }

    /// One of some words, each with its meaning; `None` when it is not there or refused.
    pub(super) fn word<T: Copy>(
        &self,
        key: &str,
        words: &[(&'static str, T)],
        at: &At<'_>,
        errors: &mut Errors,
    ) -> Option<T> {
        let found = self.text(key, at, errors)?;
        match words.iter().find(|(word, _)| *word == found) {
            Some((_, meaning)) => Some(*meaning),
            None => errors.refuse(&at.key("metadata", key), Reason::expected(found, "a known word")),
        }
    }

    /// A text, where another type says nothing.
    pub(super) fn plain_text(&self, key: &str) -> Option<&'a str> {
        if let Kind::StringValue(text) = self.kind(key)? { Some(text) } else { None }
    }

    fn kind(&self, key: &str) -> Option<&'a Kind> {
        self.fields?.get(key)?.kind.as_ref()
    }
}

/// The word of a meaning.
pub(super) fn word_of<T: PartialEq>(words: &[(&'static str, T)], meaning: &T) -> Option<Kind> {
    words.iter().find(|(_, candidate)| candidate == meaning).and_then(|(word, _)| text(*word))
}
