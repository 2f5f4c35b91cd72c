//! Fields that belong to one connection only, and what an `Upgrade` asks for.
//! Spec: RFC 9110 §7.6.1, §7.8.

use super::{Framing, members};
use crate::{
    fields::{Fields, Name},
    head::{Version, is_token},
};

/// Takes out what belongs to one connection only: `Connection` and what it nominates, `Keep-Alive`, `Proxy-Connection`,
/// `Transfer-Encoding`, `Upgrade`, `HTTP2-Settings`, and `TE` other than `trailers`, which stays though it is nominated.
pub fn strip_hop_by_hop(fields: &mut Fields) {
    // Mostly `keep-alive`, `close` or `Upgrade`, which need no list.
    let nominated: Vec<Vec<u8>> = members(fields.all(Name::Connection))
        .filter(|name| !name.is_empty() && !is_option(name) && !name.eq_ignore_ascii_case(b"te"))
        .map(<[u8]>::to_vec)
        .collect();
    fields.retain(|field| {
        if field.known == Name::Te {
            return field.value.eq_ignore_ascii_case(b"trailers");
        }
        !is_hop_by_hop(field.known) && !nominated.iter().any(|name| field.name.eq_ignore_ascii_case(name))
    });
}

/// The protocol that a request asks for. Ignored, as a server may (RFC 9110 §7.8): other versions of HTTP, h2c among them, which
/// RFC 9113 §3.1 has done away with; in HTTP/1.0; several `Upgrade` fields; and together with a body, which a tunnel has no place for.
pub fn upgrade(fields: &Fields, version: Version, framing: Framing) -> Option<Vec<u8>> {
    if version != Version::Http11 || !matches!(framing, Framing::None | Framing::Length(0)) {
        return None;
    }
    let mut values = fields.all(Name::Upgrade);
    let (Some(protocol), None) = (values.next(), values.next()) else { return None };
    let asked = members(fields.all(Name::Connection)).any(|name| name.eq_ignore_ascii_case(b"upgrade"));
    let valid = members(std::iter::once(protocol)).all(|protocol| {
        let name = protocol.split(|byte| *byte == b'/').next().unwrap_or_default();
        let http: [&[u8]; 3] = [b"h2c", b"h2", b"http"];
        !name.is_empty()
            && protocol.iter().all(|byte| is_token(*byte) || *byte == b'/')
            && !http.iter().any(|http| name.eq_ignore_ascii_case(http))
    });
    (asked && valid).then(|| protocol.to_vec())
}

/// Whether fields of this name say something of the connection, whatever their value.
pub(super) fn is_hop_by_hop(name: Name) -> bool {
    matches!(
        name,
        Name::Connection
            | Name::KeepAlive
            | Name::ProxyConnection
            | Name::TransferEncoding
            | Name::Upgrade
            | Name::Http2Settings
    )
}

fn is_option(name: &[u8]) -> bool {
    let options: [&[u8]; 3] = [b"keep-alive", b"close", b"upgrade"];
    options.iter().any(|option| name.eq_ignore_ascii_case(option))
}
