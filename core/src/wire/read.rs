//! The common part of every parser: the type, the raw tags, the decoding, names, lists.

use prost_types::Any;

use super::{
    ResourceType, WireError,
    error::{At, Errors, Reason},
    types::{self, Typed},
    walk,
};
use crate::names::ClusterName;

/// Checks the type and the raw tags, decodes the message, and makes the model value of it by `read`.
pub(super) fn parse_with<M: Typed, T>(
    resource_type: ResourceType,
    name: &str,
    any: &Any,
    read: impl FnOnce(&M, &At<'_>, &mut Errors) -> Option<T>,
) -> Result<T, WireError> {
    let mut errors = Errors::default();
    let at = At::root();
    let model = types::check_type::<M>(any, &at, &mut errors).and_then(|()| {
        walk::walk(M::TYPE_URL, &any.value, &at, &mut errors);
        // What the walk refused may also be undecodable; one error is enough.
        let message: M = if errors.is_empty() {
            types::decode(&any.value, &at, &mut errors)?
        } else {
            M::decode(&*any.value).ok()?
        };
        read(&message, &at, &mut errors)
    });
    match model {
        Some(model) if errors.is_empty() => Ok(model),
        _ => Err(errors.finish(resource_type, name)),
    }
}

/// The name inside a resource must be the one it was sent under.
pub(super) fn check_name(inner: &str, name: &str, at: &At<'_>, errors: &mut Errors) {
    if inner != name {
        errors.add(at, Reason::expected(inner, "the resource's name"));
    }
}

pub(super) fn read_cluster_name(text: &str, at: &At<'_>, errors: &mut Errors) -> Option<ClusterName> {
    if text.is_empty() {
        return errors.refuse(at, Reason::Required);
    }
    ClusterName::parse(text).map_err(|error| errors.add(at, error.into())).ok()
}

/// All or nothing, but every item is looked at, so that every error is reported.
pub(super) fn collect<T>(items: impl Iterator<Item = Option<T>>) -> Option<Vec<T>> {
    let mut all = Some(Vec::new());
    for item in items {
        match (&mut all, item) {
            (Some(all), Some(item)) => all.push(item),
            (_, None) => all = None,
            (None, Some(_)) => {}
        }
    }
    all
}
