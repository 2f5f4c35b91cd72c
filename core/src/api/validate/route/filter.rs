//! Rules of the filters of an HTTPRoute's rule. Spec: Gateway API `HTTPRouteFilter` (CEL rules), `HTTPHeaderFilter`.

use crate::{
    api::{
        http_route::{FilterType, HttpHeader, HttpHeaderFilter, HttpRouteFilter},
        validate::Check,
    },
    filter::header_modifier::{MAX_ENTRIES, MAX_VALUE, check_name, check_value},
};

/// One filter: of a type that the mesh does, with the field of its type and no other.
pub(super) fn filter(check: &mut Check, filter: &HttpRouteFilter) {
    let fields = [
        (FilterType::RequestHeaderModifier, "requestHeaderModifier", &filter.request_header_modifier),
        (FilterType::ResponseHeaderModifier, "responseHeaderModifier", &filter.response_header_modifier),
    ];
    if !fields.iter().any(|(kind, ..)| *kind == filter.kind) {
        check.not_supported("type");
    }
    for (kind, field, modifier) in fields {
        match modifier {
            Some(modifier) if kind == filter.kind => check.at(field, |check| header_modifier(check, modifier)),
            Some(_) => check.fail(field, "is the field of another type of filter"),
            None if kind == filter.kind => check.required(field),
            None => {}
        }
    }
}

fn header_modifier(check: &mut Check, modifier: &HttpHeaderFilter) {
    headers(check, "set", &modifier.set);
    headers(check, "add", &modifier.add);
    check.at_most("remove", &modifier.remove, MAX_ENTRIES);
    check.each("remove", &modifier.remove, |check, header| name(check, header));
    check.unique("remove", "", &modifier.remove, |name| Some(name.to_ascii_lowercase()));
    // The Gateway API leaves the order of the lists open, so an answer to "removed and set?" would be a guess.
    for (index, removed) in modifier.remove.iter().enumerate() {
        for (list, headers) in [("set", &modifier.set), ("add", &modifier.add)] {
            if headers.iter().any(|header| header.name.eq_ignore_ascii_case(removed)) {
                check.fail(&format!("remove[{index}]"), format!("{removed:?} is also in {list}"));
            }
        }
    }
}

fn headers(check: &mut Check, field: &str, headers: &[HttpHeader]) {
    check.at_most(field, headers, MAX_ENTRIES);
    check.each(field, headers, |check, header| {
        check.at("name", |check| name(check, &header.name));
        check.at("value", |check| match header.value.as_str() {
            "" => check.fail("", "must not be empty"),
            value if value.len() > MAX_VALUE => check.fail("", format!("is longer than {MAX_VALUE} bytes")),
            value => {
                if let Err(error) = check_value(value) {
                    check.fail("", error.to_string());
                }
            }
        });
    });
    check.unique(field, "name", headers, |header| Some(header.name.to_ascii_lowercase()));
}

fn name(check: &mut Check, name: &str) {
    if let Err(error) = check_name(name) {
        let shown: String = name.chars().take(80).collect();
        check.fail("", format!("{shown:?} {error}"));
    }
}
