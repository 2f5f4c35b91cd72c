//! Where in a document a field is: the line of a mistake.
//! The document is read again along the path, up to the field; the reader stops there with an error, which has the place.

use std::fmt;

use serde::{
    Deserializer,
    de::{self, DeserializeSeed, IgnoredAny},
};

use super::node::{Step, path_text};

/// The line, from 1, of a field in one document of YAML or JSON. `path` is that of a [`FieldError`](super::FieldError). A field
/// that is not there has the line of the innermost part that is.
pub fn line_of(document: &str, path: &str) -> usize {
    let found = Find { wanted: path, steps: &[] }.deserialize(serde_norway::Deserializer::from_str(document));
    found.err().and_then(|error| Some(error.location()?.line())).unwrap_or(1)
}

/// Reads one value, down to the field.
#[derive(Clone, Copy)]
struct Find<'a> {
    wanted: &'a str,
    /// The way to this value.
    steps: &'a [Step],
}

impl Find<'_> {
    /// Whether the wanted field is here (`Some(true)`), or below (`Some(false)`).
    fn leads(self) -> Option<bool> {
        let here = path_text(self.steps);
        let rest = self.wanted.strip_prefix(here.as_str())?;
        match rest.chars().next() {
            None => Some(true),
            Some('.' | '[') => Some(false),
            Some(_) => here.is_empty().then_some(false),
        }
    }

    fn step(self, step: Step) -> Vec<Step> {
        self.steps.iter().cloned().chain([step]).collect()
    }
}

/// The error that carries the place.
fn here<E: de::Error>() -> E {
    E::custom("here")
}

impl<'de> DeserializeSeed<'de> for Find<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> de::Visitor<'de> for Find<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: de::Error>(self) -> Result<(), E> {
        Err(here())
    }

    fn visit_bool<E: de::Error>(self, _: bool) -> Result<(), E> {
        Err(here())
    }

    fn visit_u64<E: de::Error>(self, _: u64) -> Result<(), E> {
        Err(here())
    }

    fn visit_i64<E: de::Error>(self, _: i64) -> Result<(), E> {
        Err(here())
    }

    fn visit_f64<E: de::Error>(self, _: f64) -> Result<(), E> {
        Err(here())
    }

    fn visit_str<E: de::Error>(self, _: &str) -> Result<(), E> {
        Err(here())
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        for index in 0.. {
            let steps = self.step(Step::Index(index));
            let below = Find { steps: &steps, ..self };
            let more = match below.leads() {
                Some(_) => items.next_element_seed(below)?.is_some(),
                None => items.next_element::<IgnoredAny>()?.is_some(),
            };
            if !more {
                break;
            }
        }
        Err(here())
    }

    fn visit_map<A: de::MapAccess<'de>>(self, mut fields: A) -> Result<(), A::Error> {
        if self.leads() == Some(true) {
            return Err(here());
        }
        while let Some(key) = fields.next_key_seed(Key(self))? {
            let steps = self.step(Step::Field(key));
            let below = Find { steps: &steps, ..self };
            match below.leads() {
                Some(_) => fields.next_value_seed(below)?,
                None => drop(fields.next_value::<IgnoredAny>()?),
            }
        }
        Err(here())
    }
}

/// Reads a key. The wanted field is where its key is, not where its value begins.
struct Key<'a>(Find<'a>);

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl de::Visitor<'_> for Key<'_> {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: de::Error>(self, key: &str) -> Result<String, E> {
        let steps = self.0.step(Step::Field(key.to_owned()));
        if (Find { steps: &steps, ..self.0 }).leads() == Some(true) { Err(here()) } else { Ok(key.to_owned()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str = "\
# a comment
kind: HTTPRoute
metadata:
  name: a
  annotations:
    weft.dev/x: one
spec:
  rules:
  - matches: [{path: {value: /}}]
    backendRefs:
    - name: a
      weight: 1
    - {name: b,
       weight: many}
  - filters:
    -
      type: X
";

    /// (26)
    #[test]
    fn the_line_is_that_of_the_field_or_of_what_should_have_it() {
        for (path, line) in [
            ("kind", 2),
            ("metadata.name", 4),
            ("metadata.annotations", 5),
            ("metadata.annotations[\"weft.dev/x\"]", 6),
            ("spec.rules[0].matches[0].path.value", 9),
            ("spec.rules[0].backendRefs[0].weight", 12),
            ("spec.rules[0].backendRefs[1].weight", 14),
            ("spec.rules[1].filters[0].type", 17),
            // Not there.
            ("spec.rules[0].backendRefs[0].port", 11),
            ("spec.rules[1].filters[3]", 16),
            ("spec.rule", 8),
            ("specs", 2),
            ("", 2),
        ] {
            assert_eq!(line_of(DOCUMENT, path), line, "{path}");
        }
        assert_eq!(line_of("{\"a\": {\n  \"b\": 1}}", "a.b"), 2);
        assert_eq!(line_of("items:\n- kind: A\n- kind: B\n  spec:\n    x: 1\n", "items[1].spec.x"), 5);
        assert_eq!(line_of("", "a"), 1);
        assert_eq!(line_of("a: [", "b"), 2, "a mistake of syntax has the place of its own");
    }
}
