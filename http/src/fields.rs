//! Header and trailer fields, raw: names in the case they came in, in their order, repeated ones apart.
//! Shape: all bytes of a head stand in one buffer, and a [`Fields`] knows where each name and value lies in it. Fields that
//! decide something are recognised once, when they are added ([`Name`]); looking for one of them compares a byte.
//! Spec: RFC 9110 §5.

use std::fmt;

/// A field name that means something to a proxy; all others are [`Name::Other`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names say what they are")]
pub enum Name {
    Other,
    /// A name that begins with `weft-` or `weft_`: reserved for what proxies tell each other.
    Reserved,
    Accept,
    AcceptEncoding,
    Authorization,
    Connection,
    ContentLength,
    ContentType,
    Cookie,
    Date,
    Expect,
    GrpcMessage,
    GrpcStatus,
    Host,
    Http2Settings,
    KeepAlive,
    ProxyConnection,
    Server,
    SetCookie,
    Te,
    Traceparent,
    Trailer,
    TransferEncoding,
    Upgrade,
    UserAgent,
    XForwardedFor,
    XForwardedProto,
}

/// Every recognised name as it is written, by length. Sorted by nothing: few have the same length.
const NAMES: [(&str, Name); 25] = [
    ("te", Name::Te),
    ("host", Name::Host),
    ("date", Name::Date),
    ("accept", Name::Accept),
    ("cookie", Name::Cookie),
    ("expect", Name::Expect),
    ("server", Name::Server),
    ("trailer", Name::Trailer),
    ("upgrade", Name::Upgrade),
    ("connection", Name::Connection),
    ("keep-alive", Name::KeepAlive),
    ("set-cookie", Name::SetCookie),
    ("user-agent", Name::UserAgent),
    ("grpc-status", Name::GrpcStatus),
    ("traceparent", Name::Traceparent),
    ("grpc-message", Name::GrpcMessage),
    ("content-type", Name::ContentType),
    ("authorization", Name::Authorization),
    ("content-length", Name::ContentLength),
    ("http2-settings", Name::Http2Settings),
    ("accept-encoding", Name::AcceptEncoding),
    ("x-forwarded-for", Name::XForwardedFor),
    ("proxy-connection", Name::ProxyConnection),
    ("transfer-encoding", Name::TransferEncoding),
    ("x-forwarded-proto", Name::XForwardedProto),
];

impl Name {
    /// Recognises a name, whatever its case.
    pub fn of(name: &[u8]) -> Self {
        let is = |text: &str| name.eq_ignore_ascii_case(text.as_bytes());
        let one = |text: &str, then: Self| if is(text) { then } else { Self::Other };
        let found = match name.len() {
            2 => one("te", Self::Te),
            4 if is("host") => Self::Host,
            4 => one("date", Self::Date),
            6 if is("accept") => Self::Accept,
            6 if is("cookie") => Self::Cookie,
            6 if is("expect") => Self::Expect,
            6 => one("server", Self::Server),
            7 if is("trailer") => Self::Trailer,
            7 => one("upgrade", Self::Upgrade),
            10 if is("connection") => Self::Connection,
            10 if is("user-agent") => Self::UserAgent,
            10 if is("keep-alive") => Self::KeepAlive,
            10 => one("set-cookie", Self::SetCookie),
            11 if is("traceparent") => Self::Traceparent,
            11 => one("grpc-status", Self::GrpcStatus),
            12 if is("content-type") => Self::ContentType,
            12 => one("grpc-message", Self::GrpcMessage),
            13 => one("authorization", Self::Authorization),
            14 if is("content-length") => Self::ContentLength,
            14 => one("http2-settings", Self::Http2Settings),
            15 if is("accept-encoding") => Self::AcceptEncoding,
            15 => one("x-forwarded-for", Self::XForwardedFor),
            16 => one("proxy-connection", Self::ProxyConnection),
            17 if is("transfer-encoding") => Self::TransferEncoding,
            17 => one("x-forwarded-proto", Self::XForwardedProto),
            _ => Self::Other,
        };
        if found == Self::Other && is_reserved(name) { Self::Reserved } else { found }
    }

    /// As it is written in lower case; empty for [`Name::Other`] and [`Name::Reserved`].
    pub fn as_str(self) -> &'static str {
        NAMES.iter().find(|(_, name)| *name == self).map_or("", |(text, _)| text)
    }
}

/// Applications that are told fields by environment variables (CGI, WSGI) take `_` for `-`, so `weft_client_id` is one too.
fn is_reserved(name: &[u8]) -> bool {
    matches!(name, [a, b, c, d, b'-' | b'_', ..] if [*a, *b, *c, *d].eq_ignore_ascii_case(b"weft"))
}

/// Where some bytes of a head lie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    start: u32,
    len: u32,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    name: Span,
    value: Span,
    known: Name,
}

/// One field.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Field<'a> {
    /// Its name, in the case it came in.
    pub name: &'a [u8],
    /// Its value, without white space at the ends.
    pub value: &'a [u8],
    /// What its name is.
    pub known: Name,
}

/// The fields of one head or trailer section.
#[derive(Clone, Default)]
pub struct Fields {
    text: Vec<u8>,
    entries: Vec<Entry>,
}

impl Fields {
    /// No fields yet, with room for as many.
    pub fn with_capacity(bytes: usize, fields: usize) -> Self {
        Self { text: Vec::with_capacity(bytes), entries: Vec::with_capacity(fields) }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Takes all out and keeps the buffers.
    pub fn clear(&mut self) {
        self.text.clear();
        self.entries.clear();
    }

    /// Adds a field at the end.
    pub fn push(&mut self, name: &[u8], value: &[u8]) {
        self.push_as(Name::of(name), name, value);
    }

    /// Adds a field whose name is recognised already.
    pub fn push_known(&mut self, known: Name, value: &[u8]) {
        self.push_as(known, known.as_str().as_bytes(), value);
    }

    /// Adds a field; `known` must be what [`Name::of`] says of `name`.
    pub fn push_as(&mut self, known: Name, name: &[u8], value: &[u8]) {
        let (name, value) = (self.store(name), self.store(value));
        self.entries.push(Entry { name, value, known });
    }

    /// Takes out all fields of a name and adds one at the end.
    pub fn set(&mut self, name: &str, value: &[u8]) {
        let known = Name::of(name.as_bytes());
        self.retain(|field| !field.is(name));
        self.push_as(known, name.as_bytes(), value);
    }

    /// All, in order.
    pub fn iter(&self) -> impl Iterator<Item = Field<'_>> + Clone {
        self.entries.iter().map(|entry| self.field(entry))
    }

    /// The first value of a recognised name.
    pub fn first(&self, known: Name) -> Option<&[u8]> {
        self.entries.iter().find(|entry| entry.known == known).map(|entry| self.bytes(entry.value))
    }

    /// All values of a recognised name.
    pub fn all(&self, known: Name) -> impl Iterator<Item = &[u8]> + Clone {
        self.entries.iter().filter(move |entry| entry.known == known).map(|entry| self.bytes(entry.value))
    }

    /// Whether there is one of a recognised name.
    pub fn has(&self, known: Name) -> bool {
        self.entries.iter().any(|entry| entry.known == known)
    }

    /// All values of a name, whatever its case.
    pub fn named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> + Clone {
        self.iter().filter(move |field| field.is(name)).map(|field| field.value)
    }

    /// Takes out all of a recognised name. Returns whether there was any.
    pub fn remove(&mut self, known: Name) -> bool {
        let before = self.entries.len();
        self.entries.retain(|entry| entry.known != known);
        self.entries.len() < before
    }

    /// Keeps only those that pass.
    pub fn retain(&mut self, mut keep: impl FnMut(Field<'_>) -> bool) {
        let text = &self.text;
        self.entries.retain(|entry| {
            keep(Field { name: bytes(text, entry.name), value: bytes(text, entry.value), known: entry.known })
        });
    }

    /// Size as HTTP/2 counts it: 32 bytes a field on top (RFC 9113 §6.5.2).
    pub fn size(&self) -> usize {
        self.entries.iter().map(|entry| entry.name.len as usize + entry.value.len as usize + 32).sum()
    }

    /// Keeps bytes that belong to the head but are no field, such as its path.
    pub fn store(&mut self, bytes: &[u8]) -> Span {
        // A head is bounded far below 4 GiB; what is not is cut here rather than wrapped around.
        let start = u32::try_from(self.text.len()).unwrap_or(u32::MAX);
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        self.text.extend_from_slice(bytes);
        Span { start, len }
    }

    /// The bytes of a span.
    pub fn bytes(&self, span: Span) -> &[u8] {
        bytes(&self.text, span)
    }

    fn field(&self, entry: &Entry) -> Field<'_> {
        Field { name: self.bytes(entry.name), value: self.bytes(entry.value), known: entry.known }
    }
}

fn bytes(text: &[u8], span: Span) -> &[u8] {
    let start = span.start as usize;
    text.get(start..start.saturating_add(span.len as usize)).unwrap_or_default()
}

impl Field<'_> {
    /// Whether this is its name, whatever the case.
    pub fn is(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name.as_bytes())
    }
}

impl fmt::Debug for Field<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name.escape_ascii(), self.value.escape_ascii())
    }
}

impl fmt::Debug for Fields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl PartialEq for Fields {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl<N: AsRef<[u8]>, V: AsRef<[u8]>> FromIterator<(N, V)> for Fields {
    fn from_iter<T: IntoIterator<Item = (N, V)>>(fields: T) -> Self {
        let mut all = Self::default();
        fields.into_iter().for_each(|(name, value)| all.push(name.as_ref(), value.as_ref()));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_recognised_name_is_recognised_in_any_case() {
        for (text, name) in NAMES {
            assert_eq!(Name::of(text.as_bytes()), name, "{text}");
            assert_eq!(Name::of(text.to_uppercase().as_bytes()), name, "{text}");
            assert_eq!(name.as_str(), text);
        }
        for other in ["", "hosts", "x", "content-lengt", "weft", "weftage", "x-weft-client-id"] {
            assert_eq!(Name::of(other.as_bytes()), Name::Other, "{other}");
        }
        for reserved in ["weft-client-id", "WEFT_client_id", "Weft-"] {
            assert_eq!(Name::of(reserved.as_bytes()), Name::Reserved, "{reserved}");
        }
    }

    #[test]
    fn fields_keep_case_order_and_repetition() {
        let mut fields: Fields =
            [("X-A", "1"), ("Host", "h"), ("x-a", "2"), ("Set-Cookie", "c"), ("X-a", "3")].into_iter().collect();
        assert_eq!(fields.named("x-A").collect::<Vec<_>>(), [b"1", b"2", b"3"]);
        assert_eq!(fields.first(Name::Host), Some(&b"h"[..]));
        assert!(fields.remove(Name::Host) && !fields.remove(Name::Host));
        fields.set("x-a", b"4");
        assert_eq!(format!("{fields:?}"), "[Set-Cookie: c, x-a: 4]");
        assert_eq!(fields.size(), 10 + 1 + 32 + 3 + 1 + 32);
    }
}
