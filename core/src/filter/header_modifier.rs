//! The header modifier: sets, adds and removes header fields.
//! Shape: three lists; [`HeaderModifier::changes`] gives them as one sequence, in the order in which they apply, to whatever
//! holds the fields of a message.
//! Spec: Gateway API `HTTPHeaderFilter`; order as in Envoy (`request_headers_to_remove` first), so that a name that is
//! removed and added ends with the added value.
//! Invariant: no name passes [`check_name`] that decides about routing, framing, connections or what proxies tell each other.

use std::sync::Arc;

use serde::Serialize;

/// Longest name, in bytes (Gateway API `HeaderName`).
pub const MAX_NAME: usize = 256;
/// Longest value that is written by people, in bytes (Gateway API `HTTPHeader.value`).
pub const MAX_VALUE: usize = 4096;
/// Most entries of each list that is written by people (Gateway API).
pub const MAX_ENTRIES: usize = 16;

/// Changes to the header fields of one message.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct HeaderModifier {
    /// Names whose fields are removed, lower case.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub remove: Vec<Arc<str>>,
    /// Fields that replace every field of their name, or are added where there is none. No name twice.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub set: Vec<Header>,
    /// Fields that are added beside those there are.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub add: Vec<Header>,
}

/// A header field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Header {
    /// The name, lower case.
    pub name: Arc<str>,
    /// The value, as it is sent: see [`check_value`].
    pub value: Arc<str>,
}

/// One step of a [`HeaderModifier`]. Names are compared without case (RFC 9110 §5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change<'a> {
    /// Remove every field of this name.
    Remove(&'a str),
    /// Replace every field of this name by one with this value; add it where there is none.
    Set(&'a str, &'a str),
    /// Add a field of this name and value after those there are.
    Add(&'a str, &'a str),
}

/// Why a header field cannot be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// No token, or longer than [`MAX_NAME`].
    #[error("is not a header name (RFC 9110 §5.6.2)")]
    Name,
    /// `weft-*` and `weft_*`.
    #[error("is reserved: Weft's proxies use names that start with \"weft-\" among themselves")]
    Reserved,
    /// A field of one connection, or one that frames the message.
    #[error("belongs to a connection and cannot be changed by a route (RFC 9110 §7.6.1)")]
    Connection,
    /// `Host`, which decides where a request goes.
    #[error("cannot be changed by a header modifier: it takes part in routing")]
    Host,
    /// A control character, or white space at an end.
    #[error("is not a header value (RFC 9110 §5.5)")]
    Value,
}

/// Fields that a proxy writes by itself: of the connection (RFC 9110 §7.6.1), and the framing of the message
/// (RFC 9112 §6).
const OF_CONNECTION: [&str; 9] = [
    "connection",
    "content-length",
    "http2-settings",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

impl HeaderModifier {
    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.set.is_empty() && self.add.is_empty()
    }

    /// Every change, in the order in which they apply: all removals, then what is set, then what is added.
    pub fn changes(&self) -> impl Iterator<Item = Change<'_>> {
        let remove = self.remove.iter().map(|name| Change::Remove(name));
        let set = self.set.iter().map(|header| Change::Set(&header.name, &header.value));
        let add = self.add.iter().map(|header| Change::Add(&header.name, &header.value));
        remove.chain(set).chain(add)
    }
}

impl Header {
    /// A field; the name is written in lower case.
    pub fn new(name: &str, value: &str) -> Self {
        Self { name: name.to_ascii_lowercase().into(), value: value.into() }
    }
}

/// Whether a modifier may change fields of this name, in any case.
/// Errors: no name, or one that a proxy needs for itself.
pub fn check_name(name: &str) -> Result<(), HeaderError> {
    let is_token = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b));
    if name.is_empty() || name.len() > MAX_NAME || !is_token {
        return Err(HeaderError::Name);
    }
    let name = name.to_ascii_lowercase();
    // Applications that get fields as environment variables (CGI, WSGI) read `_` for `-`.
    if name.starts_with("weft-") || name.starts_with("weft_") {
        return Err(HeaderError::Reserved);
    }
    if OF_CONNECTION.contains(&name.as_str()) {
        return Err(HeaderError::Connection);
    }
    if name == "host" { Err(HeaderError::Host) } else { Ok(()) }
}

/// Whether this can be the value of a field: no control character but tab, no white space at its ends.
/// Errors: it cannot.
pub fn check_value(value: &str) -> Result<(), HeaderError> {
    let is_control = |b: u8| b.is_ascii_control() && b != b'\t';
    let is_bare = value.trim_matches([' ', '\t']).len() == value.len();
    if is_bare && !value.bytes().any(is_control) { Ok(()) } else { Err(HeaderError::Value) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_a_proxy_needs_for_itself_cannot_be_changed() {
        for (name, error) in [
            ("", HeaderError::Name),
            (":path", HeaderError::Name),
            ("a b", HeaderError::Name),
            ("Host", HeaderError::Host),
            ("Weft-Client-Id", HeaderError::Reserved),
            ("weft_client_id", HeaderError::Reserved),
            ("Transfer-Encoding", HeaderError::Connection),
            ("content-length", HeaderError::Connection),
            ("TE", HeaderError::Connection),
        ] {
            assert_eq!(check_name(name), Err(error), "{name}");
        }
        assert_eq!(check_name(&"a".repeat(257)), Err(HeaderError::Name));
        for name in ["X-A", "x_a", "hosts", "weft", "content-type", "set-cookie", "connections"] {
            assert_eq!(check_name(name), Ok(()), "{name}");
        }
    }

    #[test]
    fn a_value_has_no_control_character_and_no_white_space_at_its_ends() {
        for value in ["", "a", "a b", "a\tb", "ä", "100%"] {
            assert_eq!(check_value(value), Ok(()), "{value:?}");
        }
        for value in ["a\r\nb", "\0", " a", "a\t", "\u{7f}"] {
            assert_eq!(check_value(value), Err(HeaderError::Value), "{value:?}");
        }
    }

    #[test]
    fn removals_come_before_what_is_set_and_that_before_what_is_added() {
        let modifier = HeaderModifier {
            add: vec![Header::new("X-A", "1"), Header::new("x-a", "2")],
            set: vec![Header::new("X-S", "3")],
            remove: vec!["x-r".into()],
        };
        let changes: Vec<Change<'_>> = modifier.changes().collect();
        let wanted = [Change::Remove("x-r"), Change::Set("x-s", "3"), Change::Add("x-a", "1"), Change::Add("x-a", "2")];
        assert_eq!(changes, wanted);
        assert!(!modifier.is_empty() && HeaderModifier::default().is_empty());
    }
}
