//! From a [`Node`] to a type, with errors that know the field and what was wrong: a serde deserializer of our own,
//! because the ready ones give a sentence where messages and recovery need the facts.
//! A null is an error and never "absent": `from:` with its entries commented out must not mean "anyone".

use std::fmt;

use serde::{
    Deserializer,
    de::{self, DeserializeSeed, IntoDeserializer, Visitor},
    forward_to_deserialize_any,
};

use super::node::{Node, Step};

/// Why a node does not have the shape of a type.
#[derive(Clone, Debug)]
pub(super) struct ShapeError {
    /// Where, innermost step first.
    path: Vec<Step>,
    pub(super) problem: Problem,
}

/// What is wrong.
#[derive(Clone, Debug)]
pub(super) enum Problem {
    UnknownField { field: String, known: &'static [&'static str] },
    MissingField(&'static str),
    DuplicateField(&'static str),
    UnknownValue { found: String, known: &'static [&'static str] },
    Wrong { found: String, expected: String },
    Null,
    Other(String),
}

impl ShapeError {
    fn new(problem: Problem) -> Self {
        Self { path: Vec::new(), problem }
    }

    fn under(mut self, step: Step) -> Self {
        self.path.push(step);
        self
    }

    /// Where, outermost step first.
    pub(super) fn steps(&self) -> Vec<Step> {
        self.path.iter().rev().cloned().collect()
    }
}

impl fmt::Display for ShapeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.problem)
    }
}

impl std::error::Error for ShapeError {}

impl de::Error for ShapeError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(Problem::Other(message.to_string()))
    }

    fn invalid_type(found: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::new(Problem::Wrong { found: describe(found), expected: expected.to_string() })
    }

    fn invalid_value(found: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::invalid_type(found, expected)
    }

    fn unknown_variant(found: &str, known: &'static [&'static str]) -> Self {
        Self::new(Problem::UnknownValue { found: found.to_owned(), known })
    }

    fn unknown_field(field: &str, known: &'static [&'static str]) -> Self {
        Self::new(Problem::UnknownField { field: field.to_owned(), known })
    }

    fn missing_field(field: &'static str) -> Self {
        Self::new(Problem::MissingField(field))
    }

    fn duplicate_field(field: &'static str) -> Self {
        Self::new(Problem::DuplicateField(field))
    }
}

fn describe(found: de::Unexpected<'_>) -> String {
    match found {
        de::Unexpected::Bool(value) => value.to_string(),
        de::Unexpected::Unsigned(value) => value.to_string(),
        de::Unexpected::Signed(value) => value.to_string(),
        de::Unexpected::Float(value) => value.to_string(),
        de::Unexpected::Str(text) => format!("{:?}", text.chars().take(80).collect::<String>()),
        de::Unexpected::Seq => "a list".to_owned(),
        de::Unexpected::Map => "a map".to_owned(),
        de::Unexpected::Unit | de::Unexpected::Option => "nothing".to_owned(),
        other @ (de::Unexpected::Char(_)
        | de::Unexpected::Bytes(_)
        | de::Unexpected::NewtypeStruct
        | de::Unexpected::Enum
        | de::Unexpected::UnitVariant
        | de::Unexpected::NewtypeVariant
        | de::Unexpected::TupleVariant
        | de::Unexpected::StructVariant
        | de::Unexpected::Other(_)) => other.to_string(),
    }
}

impl<'de> Deserializer<'de> for &'de Node {
    type Error = ShapeError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ShapeError> {
        match self {
            Node::Hole | Node::Null => Err(ShapeError::new(Problem::Null)),
            Node::Bool(value) => visitor.visit_bool(*value),
            Node::Unsigned(value) => visitor.visit_u64(*value),
            Node::Signed(value) => visitor.visit_i64(*value),
            Node::Float(value) => visitor.visit_f64(*value),
            Node::Text(text) => visitor.visit_str(text),
            Node::List(items) => visitor.visit_seq(Items { items: items.iter() }),
            Node::Map(fields) => visitor.visit_map(Fields { fields: fields.iter(), value: None }),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ShapeError> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, ShapeError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ShapeError> {
        let found = match self {
            Node::Text(text) => return visitor.visit_enum(text.as_str().into_deserializer()),
            Node::Hole => return visitor.visit_enum(variants.first().copied().unwrap_or_default().into_deserializer()),
            Node::Null => return Err(ShapeError::new(Problem::Null)),
            Node::Bool(value) => value.to_string(),
            Node::Unsigned(value) => value.to_string(),
            Node::Signed(value) => value.to_string(),
            Node::Float(value) => value.to_string(),
            Node::List(_) => "a list".to_owned(),
            Node::Map(_) => "a map".to_owned(),
        };
        let expected = format!("one of {}", variants.join(", "));
        Err(ShapeError::new(Problem::Wrong { found, expected }))
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ShapeError> {
        if *self == Node::Hole { visitor.visit_str("") } else { self.deserialize_any(visitor) }
    }

    fn deserialize_u16<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ShapeError> {
        if *self == Node::Hole { visitor.visit_u64(1) } else { self.deserialize_any(visitor) }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ShapeError> {
        if *self == Node::Hole { visitor.visit_seq(Items { items: [].iter() }) } else { self.deserialize_any(visitor) }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u32 u64 u128 f32 f64 char str bytes byte_buf unit unit_struct
        tuple tuple_struct map struct identifier ignored_any
    }
}

struct Items<'de> {
    items: std::slice::Iter<'de, (usize, Node)>,
}

impl<'de> de::SeqAccess<'de> for Items<'de> {
    type Error = ShapeError;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, ShapeError> {
        let Some((index, item)) = self.items.next() else { return Ok(None) };
        seed.deserialize(item).map(Some).map_err(|error| error.under(Step::Index(*index)))
    }
}

struct Fields<'de> {
    fields: std::slice::Iter<'de, (String, Node)>,
    value: Option<&'de (String, Node)>,
}

impl<'de> de::MapAccess<'de> for Fields<'de> {
    type Error = ShapeError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, ShapeError> {
        let Some(field) = self.fields.next() else { return Ok(None) };
        self.value = Some(field);
        let key: de::value::StrDeserializer<'_, ShapeError> = field.0.as_str().into_deserializer();
        seed.deserialize(key).map(Some).map_err(|error| error.under(Step::Field(field.0.clone())))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, ShapeError> {
        let Some((key, value)) = self.value.take() else {
            return Err(ShapeError::new(Problem::Null)); // serde asks for a value only after its key
        };
        seed.deserialize(value).map_err(|error| error.under(Step::Field(key.clone())))
    }
}
