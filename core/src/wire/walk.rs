//! The check of raw tags against our descriptors, before a message is decoded: prost skips unknown fields in silence,
//! and a present but empty message declared as plain bytes looks absent.
//! Shape: bytes of a message in, errors out.
//! - A field that is declared `optional bytes` only detects that it is set, whatever its real type: refused by name.
//! - In a message that decides who may pass or which rule applies ([`STRICT`]), an unknown field is refused.
//! - Elsewhere unknown fields are skipped.
//!
//! Messages in an `Any` are walked too when their type is known; what to do with other types the parsers decide.
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

/// What the descriptors say, by full name of the message. Constant data in a form that is quick to ask.
static SCHEMA: LazyLock<HashMap<String, Shape>> = LazyLock::new(|| {
    let mut shapes = HashMap::new();
    // Our own descriptors, compiled in: if they did not decode, every message would be unknown and refused.
    let set = FileDescriptorSet::decode(weft_proto::DESCRIPTORS).unwrap_or_default();
    for file in &set.file {
        for message in &file.message_type {
            describe(file.package(), message, &mut shapes);
        }
    }
    shapes
});

#[derive(Debug)]
struct Shape {
    strict: bool,
    map_entry: bool,
    fields: HashMap<u32, Field>,
}

#[derive(Debug)]
struct Field {
    name: String,
    repeated: bool,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Scalar,
    DetectOnly,
    Message(String),
}

fn describe(scope: &str, message: &DescriptorProto, shapes: &mut HashMap<String, Shape>) {
    let name = format!("{scope}.{}", message.name());
    for nested in &message.nested_type {
        describe(&name, nested, shapes);
    }
    let strict = is_strict(&name);
    let fields =
        message.field.iter().filter_map(|field| Some((u32::try_from(field.number()).ok()?, describe_field(field))));
    let map_entry = message.options.as_ref().is_some_and(prost_types::MessageOptions::map_entry);
    let fields = fields.collect();
    shapes.insert(name, Shape { strict, map_entry, fields });
}

fn describe_field(field: &FieldDescriptorProto) -> Field {
    let kind = if field.r#type() == Type::Message {
        Kind::Message(field.type_name().trim_start_matches('.').to_owned())
    } else if field.r#type() == Type::Bytes && field.proto3_optional() {
        Kind::DetectOnly
    } else {
        Kind::Scalar
    };
    Field { name: field.name().to_owned(), repeated: field.label() == Label::Repeated, kind }
}

/// Checks the bytes of a message of this type. An unknown type is refused.
pub(super) fn walk(type_url: &str, bytes: &[u8], at: &At<'_>, errors: &mut Errors) {
    match SCHEMA.get(message_name(type_url)) {
        Some(shape) => walk_message(shape, bytes, at, 0, errors),
        None => errors.add(at, Reason::NotSupported),
    }
}

fn message_name(type_url: &str) -> &str {
    type_url.rsplit_once('/').map_or(type_url, |(_, name)| name)
}

fn walk_message(shape: &Shape, bytes: &[u8], at: &At<'_>, depth: usize, errors: &mut Errors) {
    if depth > MAX_DEPTH {
        return errors.add(at, Reason::TooDeep);
    }
    let mut rest = bytes;
    let mut counts: HashMap<u32, usize> = HashMap::new();
    loop {
        let (number, content) = match next_field(&mut rest) {
            Ok(Some(field)) => field,
            Ok(None) => return,
            Err(reason) => return errors.add(at, reason),
        };
        let Some(field) = shape.fields.get(&number) else {
            if shape.strict {
                errors.add(at, Reason::UnknownField(number));
            }
            continue;
        };
        match (&field.kind, content) {
            (Kind::Scalar, _) => {}
            (Kind::DetectOnly, _) => errors.add(&at.field(&field.name), Reason::NotSupported),
            (Kind::Message(_), None) => errors.add(&at.field(&field.name), Reason::Malformed),
            (Kind::Message(name), Some(bytes)) => {
                let index = counts.entry(number).or_default();
                walk_field(field, name, *index, bytes, at, depth, errors);
                *index += 1;
            }
        }
    }
}

fn walk_field(
    field: &Field,
    message: &str,
    index: usize,
    bytes: &[u8],
    at: &At<'_>,
    depth: usize,
    errors: &mut Errors,
) {
    if message == ANY {
        return walk_any(bytes, at, depth, errors);
    }
    let Some(shape) = SCHEMA.get(message) else {
        return errors.add(&at.field(&field.name), Reason::NotSupported);
    };
    if shape.map_entry {
        walk_entry(field, shape, bytes, at, depth, errors);
    } else if field.repeated {
        walk_message(shape, bytes, &at.index(&field.name, index), depth + 1, errors);
    } else {
        walk_message(shape, bytes, &at.field(&field.name), depth + 1, errors);
    }
}

/// One entry of a map: its value is called by its key.
fn walk_entry(field: &Field, entry: &Shape, bytes: &[u8], at: &At<'_>, depth: usize, errors: &mut Errors) {
    let Some(Field { kind: Kind::Message(message), .. }) = entry.fields.get(&2) else { return };
    let (mut rest, mut key, mut values) = (bytes, "", Vec::new());
    loop {
        match next_field(&mut rest) {
            Ok(Some((1, Some(text)))) => key = std::str::from_utf8(text).unwrap_or_default(),
            Ok(Some((2, Some(value)))) => values.push(value),
            Ok(Some((number, _))) if entry.strict && number > 2 => {
                errors.add(&at.field(&field.name), Reason::UnknownField(number));
            }
            Ok(Some(_)) => {}
            Ok(None) => break,
            Err(reason) => return errors.add(&at.field(&field.name), reason),
        }
    }
    let at = at.key(&field.name, key);
    for value in values {
        if message == ANY {
            walk_any(value, &at, depth, errors);
        } else if let Some(shape) = SCHEMA.get(message) {
            walk_message(shape, value, &at, depth + 1, errors);
        }
    }
}

/// The message in an `Any`, when its type is known.
fn walk_any(bytes: &[u8], at: &At<'_>, depth: usize, errors: &mut Errors) {
    let Ok(any) = prost_types::Any::decode(bytes) else {
        return errors.add(at, Reason::Malformed);
    };
    let name = message_name(&any.type_url);
    if let Some(shape) = SCHEMA.get(name) {
        let segment = snake(name.rsplit_once('.').map_or(name, |(_, short)| short));
        walk_message(shape, &any.value, &at.field(&segment), depth + 1, errors);
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
            let found =
                SCHEMA.keys().any(|name| if entry.ends_with('.') { name.starts_with(entry) } else { name == entry });
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
