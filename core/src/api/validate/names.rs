//! Forms of names. Each says what the form is; the message continues the quoted text.

use std::net::IpAddr;

type Form = Result<(), &'static str>;

fn when(good: bool, reason: &'static str) -> Form {
    if good { Ok(()) } else { Err(reason) }
}

fn is_label(text: &str) -> bool {
    text.len() <= 63 && is_dns_part(text)
}

fn is_dns_part(text: &str) -> bool {
    !text.is_empty()
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// As Kubernetes judges it: the parts have no limit of their own.
fn is_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_dns_part)
}

fn is_name_part(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.ends_with(|c: char| c.is_ascii_alphanumeric())
}

/// RFC 1123 label.
pub(super) fn label(text: &str) -> Form {
    when(
        is_label(text),
        "is not a name: use 1 to 63 lower-case letters, digits and '-', with a letter or digit at both ends",
    )
}

/// RFC 1123 subdomain.
pub(super) fn subdomain(text: &str) -> Form {
    when(
        is_subdomain(text),
        "is not a name: use up to 253 lower-case letters, digits, '-' and '.', with a letter or digit at both ends of \
         each part",
    )
}

/// Name of a port (RFC 6335 §5.1).
pub(super) fn port_name(text: &str) -> Form {
    when(
        is_label(text) && text.len() <= 15 && !text.contains("--") && text.bytes().any(|b| b.is_ascii_lowercase()),
        "is not a port name: use 1 to 15 lower-case letters, digits and '-', at least one letter, a letter or digit at \
         both ends",
    )
}

/// Kubernetes qualified name: key of a label or annotation, `appProtocol`.
pub(super) fn qualified(text: &str) -> Form {
    let good = match text.split_once('/') {
        Some((prefix, name)) => is_subdomain(prefix) && is_name_part(name),
        None => is_name_part(text),
    };
    when(
        good,
        "is not a key: use up to 63 letters, digits, '-', '_' and '.', with a letter or digit at both ends, after an \
         optional domain and '/'",
    )
}

/// Kubernetes label value.
pub(super) fn label_value(text: &str) -> Form {
    when(
        text.is_empty() || is_name_part(text),
        "is not a label value: use up to 63 letters, digits, '-', '_' and '.', with a letter or digit at both ends",
    )
}

/// Gateway API `Hostname`: a DNS name, the first label possibly `*`; no address.
pub(super) fn hostname(text: &str) -> Form {
    let plain = text.strip_prefix("*.").unwrap_or(text);
    when(
        text.len() <= 253 && is_subdomain(plain) && plain.parse::<IpAddr>().is_err(),
        "is not a hostname: use a lower-case DNS name such as \"a.example\" or \"*.example\", no address and no port",
    )
}

/// A token of RFC 9110 §5.6.2, at most 256 bytes: name of a header.
pub(super) fn header_name(text: &str) -> Form {
    when(is_token(text) && text.len() <= 256, "is not a header name (RFC 9110 §5.6.2)")
}

/// A method as it is compared: a token without lower-case letters.
pub(super) fn method(text: &str) -> Form {
    when(
        is_token(text) && text.len() <= 32 && !text.bytes().any(|b| b.is_ascii_lowercase()),
        "is not a method: methods are compared exactly and written in upper case",
    )
}

fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

/// Gateway API path of a match by value.
pub(super) fn path(text: &str) -> Form {
    let segments = |bad: &str| text.split('/').any(|segment| segment == bad);
    if !text.starts_with('/') {
        return Err("must start with '/'");
    }
    if text.len() > 1024 {
        return Err("is longer than 1024 bytes");
    }
    if segments(".") || segments("..") || text.contains("//") {
        return Err("must have no empty, \".\" or \"..\" segment");
    }
    if text.to_ascii_lowercase().contains("%2f") {
        return Err("must have no encoded '/'");
    }
    when(is_path(text), "has a character that is not allowed in a path (RFC 3986 §3.3)")
}

/// Characters of a path, and whole percent-encodings of anything but control characters.
pub(super) fn is_path(text: &str) -> bool {
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let good = match byte {
            b'%' => {
                let two = (bytes.next(), bytes.next());
                // A control character, which applications read in different ways, is none in an escape either.
                matches!(two, (Some(a @ (b'2'..=b'9' | b'a'..=b'f' | b'A'..=b'F')), Some(b))
                    if b.is_ascii_hexdigit() && (a, b.to_ascii_lowercase()) != (b'7', b'f'))
            }
            _ => byte.is_ascii_alphanumeric() || b"-/._~!$&'()*+,;=:@".contains(&byte),
        };
        if !good {
            return false;
        }
    }
    true
}
