//! The check of raw tags against our descriptors, before a message is decoded: prost skips unknown fields in silence,
//! and a present but empty message declared as plain bytes looks absent.
//! Shape: bytes of a message in, errors out.
//! - A field that is declared `optional bytes` only detects that it is set, whatever its real type: refused by name.
//! - In a message that decides about authorization or about which rule applies ([`STRICT`]), an unknown field is refused.
//! - Elsewhere unknown fields are skipped.
//!
//! Messages in an `Any` are walked too when their type is known; the parsers decide about other types.
//! Bounded: [`MAX_DEPTH`] levels, `Any` included.

use std::{collections::HashMap, sync::LazyLock};

use prost::{
    Message as _,
    encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field},
};
use prost_types::{
    DescriptorProto, FieldDescriptorProto, FileDescriptorSet,
    field_descriptor_proto::{Label, Type},
};

use super::error::{At, Errors, Reason};

/// Messages and packages (with a trailing dot) in which nothing may be ignored.
const STRICT: &[&str] = &[
    "envoy.config.core.v3.HeaderValue",
    "envoy.config.core.v3.HeaderValueOption",
    "envoy.config.core.v3.TransportSocket",
    "envoy.config.listener.v3.Filter",
    "envoy.config.listener.v3.FilterChain",
    "envoy.config.listener.v3.FilterChainMatch",
    "envoy.config.listener.v3.ListenerFilter",
    "envoy.config.rbac.v3.",
    "envoy.config.route.v3.FilterConfig",
    "envoy.config.route.v3.HeaderMatcher",
    "envoy.config.route.v3.RouteMatch",
    "envoy.extensions.filters.http.rbac.v3.",
    "envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter",
    "envoy.extensions.filters.network.rbac.v3.",
    "envoy.extensions.transport_sockets.tls.v3.",
    "envoy.type.matcher.v3.",
];

/// Deepest nesting of messages.
const MAX_DEPTH: usize = 64;

const ANY: &str = "google.protobuf.Any";

/// Whether nothing may be ignored in a message of this full name.
pub(super) fn is_strict(name: &str) -> bool {
    STRICT.iter().any(|entry| if entry.ends_with('.') { name.starts_with(entry) } else { name == *entry })
}

/// What the descriptors say. Constant data in a form that is quick to ask: every resource that comes is walked.
static SCHEMA: LazyLock<Schema> = LazyLock::new(|| {
    // Our own descriptors, compiled in: if they did not decode, every message would be unknown and refused.
    let set = FileDescriptorSet::decode(weft_proto::DESCRIPTORS).unwrap_or_default();
    Schema::new(&set)
});

#[derive(Debug)]
struct Schema {
    /// By full name, the place in `shapes`.
    places: HashMap<String, usize>,
    shapes: Vec<Shape>,
}

#[derive(Debug)]
struct Shape {
    strict: bool,
    /// What it is called in a path when an `Any` holds it.
    segment: String,
    /// In the order of their numbers.
    fields: Vec<Field>,
}

#[derive(Debug)]
struct Field {
    number: u32,
    name: String,
    repeated: bool,
    kind: Kind,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Scalar,
    DetectOnly,
    Any,
    /// Of the shape at this place.
    Message(usize),
    /// Its entries are of the shape at this place.
    Map(usize),
    /// A message without a descriptor.
    Unknown,
}

impl Schema {
    fn new(set: &FileDescriptorSet) -> Self {
        let mut messages = Vec::new();
        for file in &set.file {
            file.message_type.iter().for_each(|message| list(file.package(), message, &mut messages));
        }
        let places = messages.iter().enumerate().map(|(place, (name, _))| (name.clone(), place)).collect();
        let kind = |field: &FieldDescriptorProto| kind(field, &places, &messages);
        let shapes = messages.iter().map(|(name, message)| describe(name, message, kind)).collect();
        Self { places, shapes }
    }

    fn find(&self, name: &str) -> Option<&Shape> {
        self.shapes.get(*self.places.get(name)?)
    }
}

impl Shape {
    fn field(&self, number: u32) -> Option<&Field> {
        let place = self.fields.binary_search_by_key(&number, |field| field.number).ok()?;
        self.fields.get(place)
    }
}

/// A message and those inside it, with their full names.
fn list<'a>(scope: &str, message: &'a DescriptorProto, messages: &mut Vec<(String, &'a DescriptorProto)>) {
    let name = format!("{scope}.{}", message.name());
    message.nested_type.iter().for_each(|nested| list(&name, nested, messages));
    messages.push((name, message));
}

fn describe(name: &str, message: &DescriptorProto, kind: impl Fn(&FieldDescriptorProto) -> Kind) -> Shape {
    let describe = |field: &FieldDescriptorProto| {
        let number = u32::try_from(field.number()).ok()?;
        let repeated = field.label() == Label::Repeated;
        Some(Field { number, name: field.name().to_owned(), repeated, kind: kind(field) })
    };
    let mut fields: Vec<Field> = message.field.iter().filter_map(describe).collect();
    fields.sort_by_key(|field| field.number);
    Shape { strict: is_strict(name), segment: snake(message.name()), fields }
}

fn kind(
    field: &FieldDescriptorProto,
    places: &HashMap<String, usize>,
    messages: &[(String, &DescriptorProto)],
) -> Kind {
    if field.r#type() == Type::Bytes && field.proto3_optional() {
        return Kind::DetectOnly;
    }
    if field.r#type() != Type::Message {
        return Kind::Scalar;
    }
    let name = field.type_name().trim_start_matches('.');
    if name == ANY {
        return Kind::Any;
    }
    let place = places.get(name).copied();
    let Some((place, (_, message))) = place.and_then(|place| Some((place, messages.get(place)?))) else {
        return Kind::Unknown;
    };
    let is_entry = message.options.as_ref().is_some_and(prost_types::MessageOptions::map_entry);
    if is_entry { Kind::Map(place) } else { Kind::Message(place) }
}

/// Checks the bytes of a message of this type. An unknown type is refused.
pub(super) fn walk(type_url: &str, bytes: &[u8], at: &At<'_>, errors: &mut Errors) {
    let schema = &*SCHEMA;
    match schema.find(message_name(type_url)) {
        Some(shape) => Walk { schema, errors }.message(shape, bytes, at, 0),
        None => errors.add(at, Reason::NotSupported),
    }
}

fn message_name(type_url: &str) -> &str {
    type_url.rsplit_once('/').map_or(type_url, |(_, name)| name)
}

/// A walk under way. Depth counts the messages around the one that is looked at.
struct Walk<'a> {
    schema: &'a Schema,
    errors: &'a mut Errors,
}

impl Walk<'_> {
    fn message(&mut self, shape: &Shape, bytes: &[u8], at: &At<'_>, depth: usize) {
        if depth > MAX_DEPTH {
            return self.errors.add(at, Reason::TooDeep);
        }
        let (mut rest, mut counts) = (bytes, Vec::new());
        loop {
            let (number, content) = match next_field(&mut rest) {
                Ok(Some(field)) => field,
                Ok(None) => return,
                Err(reason) => return self.errors.add(at, reason),
            };
            let Some(field) = shape.field(number) else {
                if shape.strict {
                    self.errors.add(at, Reason::UnknownField(number));
                }
                continue;
            };
            match (field.kind, content) {
                (Kind::Scalar, _) => {}
                (Kind::DetectOnly, _) => self.errors.add(&at.field(&field.name), Reason::NotSupported),
                (_, None) => self.errors.add(&at.field(&field.name), Reason::Malformed),
                (Kind::Any, Some(bytes)) => self.any(bytes, at, depth),
                (Kind::Map(place), Some(bytes)) => self.entry(field, place, bytes, at, depth),
                (kind, Some(bytes)) if field.repeated => {
                    self.value(kind, bytes, &at.index(&field.name, count(&mut counts, number)), depth);
                }
                (kind, Some(bytes)) => self.value(kind, bytes, &at.field(&field.name), depth),
            }
        }
    }

    fn value(&mut self, kind: Kind, bytes: &[u8], at: &At<'_>, depth: usize) {
        match kind {
            Kind::Message(place) | Kind::Map(place) => {
                if let Some(shape) = self.schema.shapes.get(place) {
                    self.message(shape, bytes, at, depth + 1);
                }
            }
            Kind::Any => self.any(bytes, at, depth),
            Kind::Unknown => self.errors.add(at, Reason::NotSupported),
            Kind::Scalar | Kind::DetectOnly => {}
        }
    }

    /// One entry of a map: its value is called by its key.
    fn entry(&mut self, field: &Field, place: usize, bytes: &[u8], at: &At<'_>, depth: usize) {
        let Some(entry) = self.schema.shapes.get(place) else { return };
        let Some(kind) = entry.field(2).map(|value| value.kind) else { return };
        let (mut rest, mut key, mut values) = (bytes, "", Vec::new());
        loop {
            match next_field(&mut rest) {
                Ok(Some((1, Some(text)))) => key = std::str::from_utf8(text).unwrap_or_default(),
                Ok(Some((2, Some(value)))) => values.push(value),
                Ok(Some((number, _))) if entry.strict && number > 2 => {
                    self.errors.add(&at.field(&field.name), Reason::UnknownField(number));
                }
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(reason) => return self.errors.add(&at.field(&field.name), reason),
            }
        }
        let at = at.key(&field.name, key);
        values.into_iter().for_each(|value| self.value(kind, value, &at, depth));
    }

    /// The message in an `Any`, when its type is known.
    fn any(&mut self, bytes: &[u8], at: &At<'_>, depth: usize) {
        let (mut rest, mut type_url, mut value): (_, &[u8], &[u8]) = (bytes, &[], &[]);
        loop {
            match next_field(&mut rest) {
                Ok(Some((1, Some(content)))) => type_url = content,
                Ok(Some((2, Some(content)))) => value = content,
                Ok(Some((1 | 2, None))) | Err(_) => return self.errors.add(at, Reason::Malformed),
                Ok(Some(_)) => {}
                Ok(None) => break,
            }
        }
        let Ok(type_url) = std::str::from_utf8(type_url) else {
            return self.errors.add(at, Reason::Malformed);
        };
        if let Some(shape) = self.schema.find(message_name(type_url)) {
            self.message(shape, value, &at.field(&shape.segment), depth + 1);
        }
    }
}

/// How often this repeated field came before.
fn count(counts: &mut Vec<(u32, usize)>, number: u32) -> usize {
    match counts.iter_mut().find(|(counted, _)| *counted == number) {
        Some((_, before)) => {
            *before += 1;
            *before
        }
        None => {
            counts.push((number, 0));
            0
        }
    }
}

/// A field on the wire: its number, and its bytes when it is length-delimited.
type RawField<'a> = (u32, Option<&'a [u8]>);

/// The next field; `None` at the end.
fn next_field<'a>(rest: &mut &'a [u8]) -> Result<Option<RawField<'a>>, Reason> {
    if rest.is_empty() {
        return Ok(None);
    }
    let (number, wire_type) = decode_key(rest)?;
    if wire_type != WireType::LengthDelimited {
        skip_field(wire_type, number, rest, DecodeContext::default())?;
        return Ok(Some((number, None)));
    }
    let length = usize::try_from(decode_varint(rest)?).ok();
    let (content, after) = length.and_then(|length| rest.split_at_checked(length)).ok_or(Reason::Malformed)?;
    *rest = after;
    Ok(Some((number, Some(content))))
}

/// `HttpConnectionManager` -> `http_connection_manager`, `RBACPerRoute` -> `rbac_per_route`.
fn snake(name: &str) -> String {
    let mut out = String::with_capacity(name.len() + 4);
    let mut letters = name.chars().peekable();
    let mut before = None;
    while let Some(letter) = letters.next() {
        let starts_word = letter.is_ascii_uppercase()
            && before.is_some_and(|b: char| {
                b.is_ascii_lowercase() || b.is_ascii_digit() || letters.peek().is_some_and(char::is_ascii_lowercase)
            });
        if starts_word {
            out.push('_');
        }
        out.push(letter.to_ascii_lowercase());
        before = Some(letter);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_strict_entry_names_something_of_the_descriptors() {
        for entry in STRICT {
            let found = SCHEMA
                .places
                .keys()
                .any(|name| if entry.ends_with('.') { name.starts_with(entry) } else { name == entry });
            assert!(found, "{entry}");
        }
    }

    #[test]
    fn an_any_is_called_by_its_message() {
        assert_eq!(snake("HttpConnectionManager"), "http_connection_manager");
        assert_eq!(snake("RBACPerRoute"), "rbac_per_route");
        assert_eq!(snake("RBAC"), "rbac");
        assert_eq!(snake("DownstreamTlsContext"), "downstream_tls_context");
    }
}
