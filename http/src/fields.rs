//! Header and trailer fields as received: names in their original case, fields in their original order, repetitions separate.
//! Shape: a [`Fields`] holds the bytes of a head in one buffer and the [`Span`] of each name and value in it. Names that the
//! codecs or the proxy act on are recognised once, on insertion ([`Name`]); a lookup of one then compares one byte per field.
//! Spec: RFC 9110 §5.

use std::fmt;

/// A field name that a proxy acts on; all others are [`Name::Other`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "each variant is the field of its name")]
pub enum Name {
    Other,
    /// A name that begins with `weft-` or `weft_`: reserved for fields between proxies.
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

/// Every recognised name in lower case, by length.
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
    /// Recognises a name, ignoring case.
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

    /// Whether a field of this name is connection-specific (RFC 9113 §8.2.2).
    pub(crate) fn is_connection_specific(self) -> bool {
        matches!(
            self,
            Self::Connection | Self::KeepAlive | Self::ProxyConnection | Self::TransferEncoding | Self::Upgrade
        )
    }

    /// The name in lower case; empty for [`Name::Other`] and [`Name::Reserved`].
    pub fn as_str(self) -> &'static str {
        NAMES.iter().find(|(_, name)| *name == self).map_or("", |(text, _)| text)
    }
}

/// CGI and WSGI map both `-` and `_` to `_`, so an application cannot tell `weft_client_id` from `weft-client-id`: both are reserved.
fn is_reserved(name: &[u8]) -> bool {
    matches!(name, [a, b, c, d, b'-' | b'_', ..] if [*a, *b, *c, *d].eq_ignore_ascii_case(b"weft"))
}

/// Offset and length of some bytes in the buffer of a [`Fields`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Span {
    start: u32,
    len: u32,
}

/// One field in the buffer.
#[derive(Clone, Copy, Debug)]
struct FieldSpans {
    name: Span,
    value: Span,
    known: Name,
}

/// One field.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Field<'a> {
    /// Its name, in its original case.
    pub name: &'a [u8],
    /// Its value, without leading and trailing white space.
    pub value: &'a [u8],
    /// Its name as recognised.
    pub known: Name,
}

/// The fields of one head or trailer section.
#[derive(Clone, Default)]
pub struct Fields {
    buffer: Vec<u8>,
    spans: Vec<FieldSpans>,
}

impl Fields {
    /// No fields, with capacity for `fields` of them in `bytes` bytes.
    pub fn with_capacity(bytes: usize, fields: usize) -> Self {
        Self { buffer: Vec::with_capacity(bytes), spans: Vec::with_capacity(fields) }
    }

    /// The number of fields.
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// Whether there are no fields.
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// Removes all fields and keeps the allocations.
    pub fn clear(&mut self) {
        self.buffer.clear();
        self.spans.clear();
    }

    /// Appends a field.
    pub fn push(&mut self, name: &[u8], value: &[u8]) {
        self.push_as(Name::of(name), name, value);
    }

    /// Appends a field; `known` must equal `Name::of(name)`.
    pub(crate) fn push_as(&mut self, known: Name, name: &[u8], value: &[u8]) {
        let (name, value) = (self.store(name), self.store(value));
        self.spans.push(FieldSpans { name, value, known });
    }

    /// Removes all fields of a name and appends one.
    pub fn set(&mut self, name: &str, value: &[u8]) {
        let known = Name::of(name.as_bytes());
        self.retain(|field| !field.is(name));
        self.push_as(known, name.as_bytes(), value);
    }

    /// All fields, in order.
    pub fn iter(&self) -> impl Iterator<Item = Field<'_>> + Clone {
        self.spans.iter().map(|field| self.field(field))
    }

    /// The first value of a recognised name.
    pub fn first(&self, known: Name) -> Option<&[u8]> {
        self.spans.iter().find(|field| field.known == known).map(|field| self.bytes(field.value))
    }

    /// All values of a recognised name.
    pub fn all(&self, known: Name) -> impl Iterator<Item = &[u8]> + Clone {
        self.spans.iter().filter(move |field| field.known == known).map(|field| self.bytes(field.value))
    }

    /// Whether a field of a recognised name is present.
    pub fn has(&self, known: Name) -> bool {
        self.spans.iter().any(|field| field.known == known)
    }

    /// All values of a name, ignoring case.
    pub fn named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> + Clone {
        self.iter().filter(move |field| field.is(name)).map(|field| field.value)
    }

    /// Removes all fields of a recognised name. Returns whether any was present.
    pub fn remove(&mut self, known: Name) -> bool {
        let before = self.spans.len();
        self.spans.retain(|field| field.known != known);
        self.spans.len() < before
    }

    /// Keeps only the fields for which `keep` returns true.
    pub fn retain(&mut self, mut keep: impl FnMut(Field<'_>) -> bool) {
        let buffer = &self.buffer;
        self.spans.retain(|field| {
            keep(Field { name: bytes(buffer, field.name), value: bytes(buffer, field.value), known: field.known })
        });
    }

    /// Gives each name that passes `which` to `spell`, to change its case.
    pub(crate) fn respell(&mut self, which: impl Fn(&Field<'_>) -> bool, mut spell: impl FnMut(&mut [u8])) {
        let Self { buffer, spans } = self;
        for field in spans.iter() {
            let seen = Field { name: bytes(buffer, field.name), value: bytes(buffer, field.value), known: field.known };
            if which(&seen) {
                let start = field.name.start as usize;
                spell(buffer.get_mut(start..start.saturating_add(field.name.len as usize)).unwrap_or_default());
            }
        }
    }

    /// Size as HTTP/2 counts it: names, values and 32 bytes for each field (RFC 9113 §6.5.2).
    pub fn size(&self) -> usize {
        self.spans.iter().map(|field| field.name.len as usize + field.value.len as usize + 32).sum()
    }

    /// Bytes of memory that the fields and what is stored with them need.
    pub fn memory(&self) -> usize {
        self.buffer.len() + self.spans.len() * size_of::<FieldSpans>()
    }

    /// Frees the capacity that is not needed, but for a few more fields: to add one to a full buffer would double it.
    pub fn shrink(&mut self) {
        self.buffer.shrink_to(self.buffer.len() + 512);
        self.spans.shrink_to(self.spans.len() + 8);
    }

    /// Stores bytes of the head that are not a field, such as the path.
    pub(crate) fn store(&mut self, bytes: &[u8]) -> Span {
        // The codecs bound a head far below 4 GiB; the fallback only keeps the conversion from wrapping.
        let start = u32::try_from(self.buffer.len()).unwrap_or(u32::MAX);
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        self.buffer.extend_from_slice(bytes);
        Span { start, len }
    }

    /// The bytes of a span.
    pub(crate) fn bytes(&self, span: Span) -> &[u8] {
        bytes(&self.buffer, span)
    }

    fn field(&self, spans: &FieldSpans) -> Field<'_> {
        Field { name: self.bytes(spans.name), value: self.bytes(spans.value), known: spans.known }
    }
}

fn bytes(buffer: &[u8], span: Span) -> &[u8] {
    let start = span.start as usize;
    buffer.get(start..start.saturating_add(span.len as usize)).unwrap_or_default()
}

impl Field<'_> {
    /// Whether HTTP/2 carries the field: it is not connection-specific (RFC 9113 §8.2.2), and not `Host`, which the authority
    /// replaces.
    pub(crate) fn is_carried(&self) -> bool {
        let te = self.known == Name::Te && self.value != b"trailers";
        !te && !self.known.is_connection_specific() && !matches!(self.known, Name::Host | Name::Http2Settings)
    }

    /// Whether the field has this name, ignoring case.
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
