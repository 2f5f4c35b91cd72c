//! Errors of documents: which document, which object, which field, and why.

use std::fmt;

use super::object::ObjectKey;

/// One mistake in a text of documents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    /// Which document of the text, from 0. A member of a List counts as its document.
    pub document: usize,
    /// The object, when its kind and name could be read.
    pub object: Option<ObjectKey>,
    /// Which field, and why.
    pub error: FieldError,
}

/// One mistake in an object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct FieldError {
    /// The field as people write it: `spec.rules[1].backendRefs[0].port`. Empty: the document itself.
    pub path: String,
    /// What kind of mistake.
    pub fault: Fault,
    /// Why, as a sentence without a full stop.
    pub reason: String,
}

/// A kind of mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The text is no YAML or JSON, or larger or deeper than is read.
    Syntax,
    /// A field that has to be there is not.
    Required,
    /// There is no such field or kind.
    Unknown,
    /// Right by the standard, but Weft does not do it yet.
    NotSupported,
    /// A value of the wrong type or out of its bounds.
    Invalid,
}

impl FieldError {
    /// A field that has to be there is not.
    pub fn required(path: impl Into<String>) -> Self {
        Self { path: path.into(), fault: Fault::Required, reason: "required".to_owned() }
    }

    /// Right by the standard, but Weft does not do it yet.
    pub fn not_supported(path: impl Into<String>) -> Self {
        Self { path: path.into(), fault: Fault::NotSupported, reason: "not supported yet".to_owned() }
    }

    /// A value of the wrong type or out of its bounds.
    pub fn invalid(path: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { path: path.into(), fault: Fault::Invalid, reason: reason.into() }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.reason)
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "document {}", self.document + 1)?;
        if let Some(key) = &self.object {
            write!(f, ", {key}")?;
        }
        write!(f, ": {}", self.error)
    }
}

impl std::error::Error for ApiError {}
