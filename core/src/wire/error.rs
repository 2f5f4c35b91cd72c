//! The errors of a resource, with the paths of the fields: the text of a NACK.
//! Shape: parsers walk with an `At` (where they are, without allocation) and report to `Errors`, so that all
//! mistakes are reported at once. Bounded: [`MAX_ERRORS`] errors, [`MAX_TEXT`] bytes of text.

use std::fmt::{self, Write as _};

use super::ResourceType;
use crate::{filter::header_modifier::HeaderError, identity::IdentityError, names::NameError, route::PatternError};

/// Most errors that are kept of one resource.
pub const MAX_ERRORS: usize = 32;
/// Longest text of a [`WireError`], in bytes.
pub const MAX_TEXT: usize = 4096;
/// Longest part of a peer's text that an error repeats, in characters.
const MAX_QUOTE: usize = 100;

/// A resource that is refused.
#[derive(Clone, Debug)]
pub struct WireError {
    /// Its type.
    pub resource_type: ResourceType,
    /// The name it was sent under.
    pub name: String,
    /// What is wrong; at most [`MAX_ERRORS`].
    pub errors: Vec<FieldError>,
    /// How many errors more there were.
    pub more: usize,
}

/// One field that is wrong.
#[derive(Clone, Debug)]
pub struct FieldError {
    /// The field, as `filter_chains[0].transport_socket.downstream_tls_context`: names of the .proto files, with an
    /// `Any` called by the message in it; empty for the whole resource.
    pub path: String,
    /// Why.
    pub reason: Reason,
}

/// Why a field is refused.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Reason {
    /// It is not there, or empty.
    #[error("required")]
    Required,
    /// It is known, and Weft cannot do what it asks for.
    #[error("not supported")]
    NotSupported,
    /// A message that has to be known whole has a field with this number that is not known.
    #[error("has the unknown field {0}, and nothing may be ignored here")]
    UnknownField(u32),
    /// The bytes are no message.
    #[error("malformed")]
    Malformed,
    /// The bytes are no message of the type.
    #[error("malformed: {0}")]
    Decode(#[from] prost::DecodeError),
    /// Messages are nested too deeply.
    #[error("nested too deeply")]
    TooDeep,
    /// It has another value than it may have.
    #[error("must be {expected}, not {found:?}")]
    Expected {
        /// What it may be.
        expected: &'static str,
        /// What it is, shortened.
        found: String,
    },
    /// The same thing twice.
    #[error("appears twice")]
    Duplicate,
    /// No name of a resource.
    #[error(transparent)]
    Name(#[from] NameError),
    /// No SPIFFE ID.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A header field that a route may not change.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// No regular expression.
    #[error(transparent)]
    Pattern(#[from] PatternError),
}

impl Reason {
    /// It must be `expected`, and is `found`.
    pub(super) fn expected(found: impl fmt::Display, expected: &'static str) -> Self {
        Self::Expected { expected, found: found.to_string().chars().take(MAX_QUOTE).collect() }
    }
}

impl std::error::Error for WireError {}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name: String = self.name.chars().take(MAX_QUOTE * 2).collect();
        let mut text = format!("{} {name:?}: ", self.resource_type.noun());
        for (index, FieldError { path, reason }) in self.errors.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            let colon = if path.is_empty() { "" } else { ": " };
            write!(text, "{separator}{path}{colon}{reason}")?;
            if text.len() > MAX_TEXT {
                break;
            }
        }
        if self.more > 0 {
            write!(text, "; and {} more", self.more)?;
        }
        if text.len() > MAX_TEXT {
            let limit = MAX_TEXT - "…".len();
            let end = (0..=limit).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
            text.truncate(end);
            text.push('…');
        }
        f.write_str(&text)
    }
}

/// A place in a resource.
#[derive(Clone, Copy, Debug)]
pub(super) struct At<'a> {
    parent: Option<&'a At<'a>>,
    segment: Segment<'a>,
}

#[derive(Clone, Copy, Debug)]
enum Segment<'a> {
    Root,
    Field(&'a str),
    Index(&'a str, usize),
    Key(&'a str, &'a str),
}

impl<'a> At<'a> {
    pub(super) fn root() -> Self {
        Self { parent: None, segment: Segment::Root }
    }

    pub(super) fn field(&'a self, name: &'a str) -> Self {
        Self { parent: Some(self), segment: Segment::Field(name) }
    }

    pub(super) fn index(&'a self, name: &'a str, index: usize) -> Self {
        Self { parent: Some(self), segment: Segment::Index(name, index) }
    }

    pub(super) fn key(&'a self, name: &'a str, key: &'a str) -> Self {
        Self { parent: Some(self), segment: Segment::Key(name, key) }
    }
}

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
            if !matches!(parent.segment, Segment::Root) {
                f.write_char('.')?;
            }
        }
        match self.segment {
            Segment::Root => Ok(()),
            Segment::Field(name) => f.write_str(name),
            Segment::Index(name, index) => write!(f, "{name}[{index}]"),
            Segment::Key(name, key) => write!(f, "{name}[{:?}]", key.chars().take(MAX_QUOTE).collect::<String>()),
        }
    }
}

/// The errors of one resource so far.
#[derive(Debug, Default)]
pub(super) struct Errors {
    list: Vec<FieldError>,
    more: usize,
}

impl Errors {
    pub(super) fn add(&mut self, at: &At<'_>, reason: Reason) {
        if self.list.len() >= MAX_ERRORS {
            self.more += 1;
            return;
        }
        self.list.push(FieldError { path: at.to_string(), reason });
    }

    /// Adds an error where a value was to be made.
    pub(super) fn refuse<T>(&mut self, at: &At<'_>, reason: Reason) -> Option<T> {
        self.add(at, reason);
        None
    }

    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub(super) fn finish(mut self, resource_type: ResourceType, name: &str) -> WireError {
        if self.list.is_empty() {
            self.add(&At::root(), Reason::Malformed);
        }
        WireError { resource_type, name: name.into(), errors: self.list, more: self.more }
    }
}
