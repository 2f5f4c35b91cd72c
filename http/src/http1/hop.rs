//! Hop-by-hop fields, and the protocol that an `Upgrade` requests.
//! Spec: RFC 9110 §7.6.1, §7.8.

use super::members;
use crate::{
    fields::{Fields, Name},
    head::{Response, Version, is_token},
};

/// Removes the hop-by-hop fields: `Connection` and the fields that it lists, `Keep-Alive`, `Proxy-Connection`,
/// `Transfer-Encoding`, `Upgrade`, `HTTP2-Settings`, and `TE` unless it is `trailers`, which gRPC needs end to end; that one stays
/// even if `Connection` lists it.
pub fn strip_hop_by_hop(fields: &mut Fields) {
    strip(fields, None);
}

/// Removes the hop-by-hop fields of a response. One with 426 keeps `Upgrade`, which names what the server asks for (RFC 9110
/// §15.5.22).
pub fn strip_answer(head: &mut Response) {
    strip(&mut head.fields, (head.status == 426).then_some(Name::Upgrade));
}

fn strip(fields: &mut Fields, kept: Option<Name>) {
    // Mostly `keep-alive`, `close` or `Upgrade`, for which the list stays empty and does not allocate.
    let listed: Vec<Vec<u8>> = members(fields.all(Name::Connection))
        .filter(|name| !name.is_empty() && !is_option(name) && !name.eq_ignore_ascii_case(b"te"))
        .map(<[u8]>::to_vec)
        .collect();
    fields.retain(|field| {
        if field.known == Name::Te {
            return field.value.eq_ignore_ascii_case(b"trailers");
        }
        (!is_hop_by_hop(field.known) || Some(field.known) == kept)
            && !listed.iter().any(|name| field.name.eq_ignore_ascii_case(name))
    });
}

/// The protocol that a request asks to upgrade to. `None` also for an upgrade that is ignored, as RFC 9110 §7.8 allows: to another
/// version of HTTP (h2c is deprecated, RFC 9113 §3.1); in HTTP/1.0; with several `Upgrade` fields. A body precedes the tunnel's
/// bytes.
pub fn upgrade(fields: &Fields, version: Version) -> Option<Vec<u8>> {
    if version != Version::Http11 {
        return None;
    }
    let mut values = fields.all(Name::Upgrade);
    let (Some(protocol), None) = (values.next(), values.next()) else { return None };
    let asked = members(fields.all(Name::Connection)).any(|name| name.eq_ignore_ascii_case(b"upgrade"));
    (asked && is_upgrade(protocol)).then(|| protocol.to_vec())
}

/// Whether protocols, of `Upgrade` or of an extended CONNECT (RFC 8441 §4), may be passed on: they are well-formed, and none is
/// another version of HTTP, whose requests nobody would judge.
pub fn is_upgrade(protocols: &[u8]) -> bool {
    members(std::iter::once(protocols)).all(|protocol| {
        let name = protocol.split(|byte| *byte == b'/').next().unwrap_or_default();
        let http: [&[u8]; 3] = [b"h2c", b"h2", b"http"];
        !name.is_empty()
            && protocol.iter().all(|byte| is_token(*byte) || *byte == b'/')
            && !http.iter().any(|http| name.eq_ignore_ascii_case(http))
    })
}

/// Whether fields of this name are hop-by-hop regardless of their value.
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

/// Whether a connection option is not the name of a field.
fn is_option(name: &[u8]) -> bool {
    let options: [&[u8]; 3] = [b"keep-alive", b"close", b"upgrade"];
    options.iter().any(|option| name.eq_ignore_ascii_case(option))
}
