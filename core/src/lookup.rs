//! The parts of compiled tables: a map from exact texts, and one from prefixes.
//! [`Prefixes`] answers which of many known texts a given text starts with. The known texts are sorted, and each remembers
//! the longest other one that it starts with. Every known text that a given text starts with is the last one that sorts
//! before it, or an ancestor of that.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

/// A map with keys from the configuration. A request cannot add keys, so a quick hash with a random seed is safe enough.
pub(crate) type Map<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

/// A map from texts that is asked by their continuations.
#[derive(Clone, Debug)]
pub(crate) struct Prefixes<T> {
    entries: Vec<Node<T>>,
}

#[derive(Clone, Debug)]
struct Node<T> {
    key: Arc<str>,
    value: T,
    /// The longest other key that `key` starts with.
    parent: Option<usize>,
}

impl<T> Default for Prefixes<T> {
    fn default() -> Self {
        Self { entries: Vec::new() }
    }
}

impl<T> Prefixes<T> {
    /// Every entry whose key `text` starts with, the longest first. Cost: a binary search, then one step for each key that
    /// the nearest one starts with.
    pub(crate) fn of<'a>(&'a self, text: &'a str) -> impl Iterator<Item = (&'a str, &'a T)> {
        let after = self.entries.partition_point(|entry| entry.key.as_ref() <= text);
        let mut next = after.checked_sub(1);
        std::iter::from_fn(move || {
            loop {
                let entry = self.entries.get(next?)?;
                next = entry.parent;
                if text.starts_with(entry.key.as_ref()) {
                    return Some((entry.key.as_ref(), &entry.value));
                }
            }
        })
    }
}

impl<T> FromIterator<(Arc<str>, T)> for Prefixes<T> {
    /// Of two values with the same key the last one stays.
    fn from_iter<I: IntoIterator<Item = (Arc<str>, T)>>(pairs: I) -> Self {
        let sorted: BTreeMap<Arc<str>, T> = pairs.into_iter().collect();
        let mut entries: Vec<Node<T>> = Vec::with_capacity(sorted.len());
        for (key, value) in sorted {
            let mut parent = entries.len().checked_sub(1);
            while let Some(before) = parent.and_then(|at| entries.get(at))
                && !key.starts_with(before.key.as_ref())
            {
                parent = before.parent;
            }
            entries.push(Node { key, value, parent });
        }
        Self { entries }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_agrees_with_a_look_at_every_key(
            keys in prop::collection::btree_set("[ab/é]{0,5}", 0..20),
            text in "[ab/é]{0,8}",
        ) {
            let prefixes: Prefixes<usize> = keys.iter().enumerate().map(|(n, key)| (key.as_str().into(), n)).collect();
            let found: Vec<(&str, usize)> = prefixes.of(&text).map(|(key, n)| (key, *n)).collect();
            let mut expected: Vec<(&str, usize)> =
                keys.iter().enumerate().filter(|(_, key)| text.starts_with(*key)).map(|(n, key)| (key.as_str(), n)).collect();
            expected.sort_by_key(|(key, _)| std::cmp::Reverse(key.len()));
            prop_assert_eq!(found, expected);
        }
    }
}
