//! A document as a tree, before it has a shape: the parts that YAML and JSON share, with list positions remembered, so that a
//! broken part can be cut out and the rest still be read under its own path.
//! Invariant: at most [`MAX_NODES`] nodes, [`MAX_DEPTH`] levels and [`MAX_CHARACTERS`] bytes of text, however small the
//! source (YAML aliases).

use std::{
    cell::Cell,
    collections::HashSet,
    fmt,
    hash::{BuildHasher, RandomState},
};

use serde::{
    Deserialize, Deserializer,
    de::{self, DeserializeSeed},
};

/// Most nodes in one document.
pub(super) const MAX_NODES: usize = 200_000;
/// Most levels in one document.
pub(super) const MAX_DEPTH: usize = 64;

/// Most bytes of all texts in one document, field names included.
pub(super) const MAX_CHARACTERS: usize = 8 * 1024 * 1024;

/// A part of a document.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Node {
    /// Stands for a required field that is missing, so that what is beside it can still be read; fits most types.
    Hole,
    Null,
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Text(String),
    /// With the position in the text's list.
    List(Vec<(usize, Node)>),
    Map(Vec<(String, Node)>),
}

/// One step down from a map or a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Field(String),
    Index(usize),
}

impl Node {
    /// The value of a field, if this is a map that has it.
    pub(super) fn field(&self, name: &str) -> Option<&Self> {
        match self {
            Self::Map(fields) => fields.iter().find(|(key, _)| key == name).map(|(_, value)| value),
            Self::Hole
            | Self::Null
            | Self::Bool(_)
            | Self::Unsigned(_)
            | Self::Signed(_)
            | Self::Float(_)
            | Self::Text(_)
            | Self::List(_) => None,
        }
    }

    /// The text, if this is one.
    pub(super) fn text(&self) -> Option<&str> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }

    /// Takes out every field without a value.
    pub(super) fn drop_nulls(&mut self) {
        match self {
            Self::Map(fields) => {
                fields.retain(|(_, value)| *value != Self::Null);
                fields.iter_mut().for_each(|(_, value)| value.drop_nulls());
            }
            Self::List(items) => items.iter_mut().for_each(|(_, value)| value.drop_nulls()),
            Self::Hole
            | Self::Null
            | Self::Bool(_)
            | Self::Unsigned(_)
            | Self::Signed(_)
            | Self::Float(_)
            | Self::Text(_) => {}
        }
    }

    /// Takes out what is at a path; says whether there was something.
    pub(super) fn remove(&mut self, path: &[Step]) -> bool {
        let Some((first, rest)) = path.split_first() else { return false };
        match (self, first) {
            (Self::Map(fields), Step::Field(name)) => {
                let Some(at) = fields.iter().position(|(key, _)| key == name) else { return false };
                if rest.is_empty() {
                    fields.remove(at);
                    return true;
                }
                fields.get_mut(at).is_some_and(|(_, value)| value.remove(rest))
            }
            (Self::List(items), Step::Index(index)) => {
                let Some(at) = items.iter().position(|(position, _)| position == index) else { return false };
                if rest.is_empty() {
                    items.remove(at);
                    return true;
                }
                items.get_mut(at).is_some_and(|(_, value)| value.remove(rest))
            }
            _ => false,
        }
    }
}

impl Node {
    /// Puts a hole into the map at a path; says whether there is a map without that field.
    pub(super) fn dig(&mut self, path: &[Step], name: &str) -> bool {
        match (self, path.split_first()) {
            (Self::Map(fields), None) => {
                let missing = !fields.iter().any(|(key, _)| key == name);
                if missing {
                    fields.push((name.to_owned(), Self::Hole));
                }
                missing
            }
            (Self::Map(fields), Some((Step::Field(step), rest))) => {
                let below = fields.iter_mut().find(|(key, _)| key == step);
                below.is_some_and(|(_, value)| value.dig(rest, name))
            }
            (Self::List(items), Some((Step::Index(step), rest))) => {
                let below = items.iter_mut().find(|(index, _)| index == step);
                below.is_some_and(|(_, value)| value.dig(rest, name))
            }
            _ => false,
        }
    }
}

/// Writes a path as people do: `spec.rules[1].backendRefs[0]`; a key with other characters as `["a.b/c"]`.
pub(super) fn path_text(steps: &[Step]) -> String {
    let mut text = String::new();
    for step in steps {
        match step {
            Step::Index(index) => text.push_str(&format!("[{index}]")),
            Step::Field(name)
                if !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-') =>
            {
                if !text.is_empty() {
                    text.push('.');
                }
                text.push_str(name);
            }
            Step::Field(name) => text.push_str(&format!("[{name:?}]")),
        }
    }
    text
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (left, text) = (Cell::new(MAX_NODES), Cell::new(MAX_CHARACTERS));
        NodeSeed { left: &left, text: &text, depth: 0 }.deserialize(deserializer)
    }
}

#[derive(Clone, Copy)]
struct NodeSeed<'a> {
    left: &'a Cell<usize>,
    text: &'a Cell<usize>,
    depth: usize,
}

impl NodeSeed<'_> {
    /// Takes a text, if there is room for it.
    fn keep<E: de::Error>(self, text: impl Into<String> + AsRef<str>) -> Result<String, E> {
        let left = self.text.get().checked_sub(text.as_ref().len());
        self.text.set(left.ok_or_else(|| E::custom(format_args!("more than {MAX_CHARACTERS} bytes of text")))?);
        Ok(text.into())
    }
}

impl<'de> DeserializeSeed<'de> for NodeSeed<'_> {
    type Value = Node;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        if self.depth > MAX_DEPTH {
            return Err(de::Error::custom(format_args!("deeper than {MAX_DEPTH} levels")));
        }
        let left = self.left.get().checked_sub(1);
        self.left.set(left.ok_or_else(|| de::Error::custom(format_args!("more than {MAX_NODES} values")))?);
        deserializer.deserialize_any(self)
    }
}

impl<'de> de::Visitor<'de> for NodeSeed<'_> {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Unsigned(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(u64::try_from(value).map_or(Node::Signed(value), Node::Unsigned))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
        Ok(Node::Float(value))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Node, E> {
        self.keep(value).map(Node::Text)
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(Self { depth: self.depth + 1, ..self })? {
            list.push((list.len(), item));
        }
        Ok(Node::List(list))
    }

    fn visit_map<A: de::MapAccess<'de>>(self, mut fields: A) -> Result<Node, A::Error> {
        let mut map: Vec<(String, Node)> = Vec::new();
        // Hashes, not the keys: a map may hold 200,000 of them.
        let (hashes, mut seen) = (RandomState::new(), HashSet::new());
        while let Some(key) = fields.next_key::<String>()? {
            let key = self.keep(key)?;
            if !seen.insert(hashes.hash_one(&key)) && map.iter().any(|(known, _)| *known == key) {
                return Err(de::Error::custom(format_args!("the field {key:?} appears twice")));
            }
            map.push((key, fields.next_value_seed(Self { depth: self.depth + 1, ..self })?));
        }
        map.shrink_to_fit(); // most maps are small, and room for four fields is a lot of memory for one
        Ok(Node::Map(map))
    }
}
