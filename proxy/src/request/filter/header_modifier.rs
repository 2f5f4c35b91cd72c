//! Header modifier: removes, sets and adds fields of a head. Costs nothing where a rule has none.
//! Spec: Gateway API `HTTPHeaderFilter`. `core::filter::header_modifier` keeps names out that the proxy needs for itself.

use weft_core::filter::{Change, HeaderModifier};
use weft_http::fields::Fields;

/// Applies every change, in order.
pub(crate) fn apply(modifier: &HeaderModifier, fields: &mut Fields) {
    for change in modifier.changes() {
        match change {
            Change::Remove(name) => fields.retain(|field| !field.is(name)),
            Change::Set(name, value) => fields.set(name, value.as_bytes()),
            Change::Add(name, value) => fields.push(name.as_bytes(), value.as_bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use weft_core::filter::Header;

    use super::*;

    #[test]
    fn fields_are_removed_then_set_then_added_whatever_their_case() {
        let mut fields = Fields::with_capacity(64, 8);
        for (name, value) in [("X-Old", "1"), ("x-both", "before"), ("X-Set", "a"), ("x-set", "b"), ("x-more", "1")] {
            fields.push(name.as_bytes(), value.as_bytes());
        }
        let modifier = HeaderModifier {
            remove: vec!["x-old".into(), "x-both".into()],
            set: vec![Header::new("x-set", "c"), Header::new("x-new", "n")],
            add: vec![Header::new("x-more", "2"), Header::new("x-both", "after")],
        };
        apply(&modifier, &mut fields);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let got: Vec<(String, String)> = fields.iter().map(|field| (text(field.name), text(field.value))).collect();
        let want = [("x-more", "1"), ("x-set", "c"), ("x-new", "n"), ("x-more", "2"), ("x-both", "after")];
        assert_eq!(got, want.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }
}
