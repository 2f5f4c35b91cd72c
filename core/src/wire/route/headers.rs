//! Header modifiers.
//!
//! | model | xDS `Route` |
//! |---|---|
//! | `remove` | `request_headers_to_remove`, `response_headers_to_remove` |
//! | `set` | `…_headers_to_add` with `append_action` OVERWRITE_IF_EXISTS_OR_ADD, first |
//! | `add` | `…_headers_to_add` with `append_action` APPEND_IF_EXISTS_OR_ADD |
//! | `Header.value` | `header.value`; a percent sign is written twice, since `%NAME%` is a command for Envoy |
//! | … an empty one | also `keep_empty_value`, without which Envoy adds nothing |
//!
//! Refused from others: the other actions, commands in values, and names that a route may not change.

use weft_proto::envoy::config::core::v3::{HeaderValue, HeaderValueOption, header_value_option::HeaderAppendAction};

use crate::{
    filter::{
        Header, HeaderModifier,
        header_modifier::{check_name, check_value},
    },
    wire::{
        error::{At, Errors, Reason},
        read::collect,
    },
};

/// The two lists of a direction: fields to add, names to remove.
pub(super) fn encode(modifier: &HeaderModifier) -> (Vec<HeaderValueOption>, Vec<String>) {
    let option = |header: &Header, action: HeaderAppendAction| HeaderValueOption {
        header: Some(HeaderValue {
            key: header.name.as_ref().into(),
            value: header.value.replace('%', "%%"),
            ..HeaderValue::default()
        }),
        append_action: action.into(),
        keep_empty_value: header.value.is_empty(),
        ..HeaderValueOption::default()
    };
    let set = modifier.set.iter().map(|header| option(header, HeaderAppendAction::OverwriteIfExistsOrAdd));
    let add = modifier.add.iter().map(|header| option(header, HeaderAppendAction::AppendIfExistsOrAdd));
    (set.chain(add).collect(), modifier.remove.iter().map(|name| name.as_ref().into()).collect())
}

/// The modifier of a direction; `to_add` and `to_remove` are what its fields are called.
pub(super) fn read(
    (to_add, options): (&str, &[HeaderValueOption]),
    (to_remove, names): (&str, &[String]),
    at: &At<'_>,
    errors: &mut Errors,
) -> Option<HeaderModifier> {
    let remove = collect(names.iter().enumerate().map(|(index, name)| {
        check_name(name).map_err(|error| errors.add(&at.index(to_remove, index), error.into())).ok()?;
        Some(name.to_ascii_lowercase().into())
    }));
    let (mut set, mut add): (Vec<Header>, Vec<Header>) = (Vec::new(), Vec::new());
    let mut is_whole = true;
    for (index, option) in options.iter().enumerate() {
        let at = at.index(to_add, index);
        match read_option(option, &at, errors) {
            Some((Append::Set, header)) if set.iter().any(|known| known.name == header.name) => {
                errors.add(&at.field("header"), Reason::Duplicate);
            }
            Some((Append::Set, header)) => set.push(header),
            Some((Append::Add, header)) => add.push(header),
            None => is_whole = false,
        }
    }
    is_whole.then_some(HeaderModifier { remove: remove?, set, add })
}

/// What an option does beside a field of the same name.
enum Append {
    Set,
    Add,
}

fn read_option(option: &HeaderValueOption, at: &At<'_>, errors: &mut Errors) -> Option<(Append, Header)> {
    let append = match (HeaderAppendAction::try_from(option.append_action), option.append) {
        (Ok(HeaderAppendAction::AppendIfExistsOrAdd), None | Some(true)) => Append::Add,
        // The older way to say it, where the newer one says nothing.
        (Ok(HeaderAppendAction::AppendIfExistsOrAdd), Some(false))
        | (Ok(HeaderAppendAction::OverwriteIfExistsOrAdd), None) => Append::Set,
        _ => return errors.refuse(&at.field("append_action"), Reason::NotSupported),
    };
    let at_header = at.field("header");
    let Some(header) = &option.header else { return errors.refuse(&at_header, Reason::Required) };
    let name = check_name(&header.key).map_err(|error| errors.add(&at_header.field("key"), error.into())).ok();
    let at_value = at_header.field("value");
    if header.value.is_empty() && !option.keep_empty_value {
        return errors.refuse(&at_value, Reason::Required);
    }
    let Some(value) = literal(&header.value) else {
        return errors.refuse(&at_value, Reason::expected(&header.value, "a text without a command"));
    };
    check_value(&value).map_err(|error| errors.add(&at_value, error.into())).ok()?;
    name.map(|()| (append, Header::new(&header.key, &value)))
}

/// The text that Envoy makes of a format without commands: every `%%` is a `%`. `None`: it has a command.
fn literal(format: &str) -> Option<String> {
    let mut text = String::with_capacity(format.len());
    let mut letters = format.chars();
    while let Some(letter) = letters.next() {
        if letter == '%' && letters.next() != Some('%') {
            return None;
        }
        text.push(letter);
    }
    Some(text)
}
