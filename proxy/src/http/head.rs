//! Heads: what the request path may know of a request, and the hop-by-hop rules.
//! Spec: RFC 9110 §7.6.1 (Connection), RFC 9113 §8.2.2 (connection-specific fields in HTTP/2).

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version,
    header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, HOST, TE, TRANSFER_ENCODING, UPGRADE},
    uri::{Authority, PathAndQuery, Scheme},
};
use weft_core::{failure::Failure, route::RequestHead};

use super::hop;

/// Longest path and query, in bytes; above it 414.
pub(crate) const MAX_URI: usize = 8 * 1024;
/// Most fields of a head; above it 431.
pub(crate) const MAX_FIELDS: usize = 100;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// The head of a request whose host is known to be good.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) method: Method,
    pub(crate) authority: Option<Authority>,
    pub(crate) path: PathAndQuery,
    pub(crate) version: Version,
    pub(crate) fields: HeaderMap,
    /// The protocol that an `Upgrade` or an extended CONNECT asks for.
    pub(crate) upgrade: Option<HeaderValue>,
}

impl Head {
    /// Takes a request apart and refuses what is malformed or above a limit.
    pub(crate) fn take<B>(request: Request<B>) -> Result<(Self, http::Extensions, B), (Failure, http::Extensions)> {
        let (mut parts, body) = request.into_parts();
        if parts.headers.len().saturating_sub(hop::reserved(&parts.headers)) > MAX_FIELDS {
            return Err((Failure::HeadTooLarge, parts.extensions));
        }
        let uri = parts.uri.into_parts();
        let path = uri.path_and_query.unwrap_or_else(|| PathAndQuery::from_static("/"));
        if path.as_str().len() > MAX_URI {
            return Err((Failure::UriTooLong, parts.extensions));
        }
        // `http` keeps such a path as it came and puts the slash before it when it is sent: not the bytes that were judged.
        if !path.path().starts_with('/') && path.path() != "*" {
            return Err((Failure::BadRequest("the path does not begin with a slash"), parts.extensions));
        }
        let authority = match authority(&parts.headers, uri.authority, parts.version) {
            Ok(authority) => authority,
            Err(reason) => return Err((Failure::BadRequest(reason), parts.extensions)),
        };
        let protocol = parts.extensions.remove::<hyper::ext::Protocol>();
        let upgrade = match protocol {
            Some(protocol) => HeaderValue::from_str(protocol.as_str()).ok(),
            None if asks_for_upgrade(&parts.headers, parts.version) => parts.headers.get(UPGRADE).cloned(),
            None => None,
        };
        if parts.method == Method::CONNECT && upgrade.is_none() {
            return Err((Failure::BadRequest("CONNECT is not allowed here"), parts.extensions));
        }
        // HTTP/2 knows no such fields: a request with one is malformed and does not come this far (RFC 9113 §8.2.2).
        if parts.version < Version::HTTP_2 {
            strip_hop_by_hop(&mut parts.headers);
        }
        parts.headers.remove(HOST);
        let head =
            Self { method: parts.method, authority, path, version: parts.version, fields: parts.headers, upgrade };
        Ok((head, parts.extensions, body))
    }

    /// Gives an extended CONNECT of a caller outside the hop the method that the application will see, so that rules on
    /// methods judge what is sent (RFC 8441 §5.1: what HTTP/1 asks for by GET).
    pub(crate) fn tell_tunnels_method(&mut self) {
        if self.method == Method::CONNECT {
            self.method = Method::GET;
        }
    }

    /// Whether the caller speaks gRPC, so that errors are told in its way.
    pub(crate) fn is_grpc(&self) -> bool {
        is_grpc(&self.fields)
    }

    /// A request with this head for the hop or for HTTP/2: authority in the URI, no Host.
    pub(crate) fn to_http2<B>(&self, method: Method, body: B) -> Request<B> {
        let mut request = Request::new(body);
        *request.method_mut() = method;
        *request.version_mut() = Version::HTTP_2;
        let mut uri = http::uri::Parts::default();
        uri.path_and_query = Some(self.path.clone());
        if let Some(authority) = &self.authority {
            uri.scheme = Some(Scheme::HTTP);
            uri.authority = Some(authority.clone());
        } else {
            // h2 takes a request without an authority only as one of HTTP/1; HTTP/1.0 callers may leave it out.
            *request.version_mut() = Version::HTTP_11;
        }
        *request.uri_mut() = Uri::from_parts(uri).unwrap_or_default();
        *request.headers_mut() = self.fields.clone();
        request
    }

    /// A request with this head for HTTP/1: origin form with Host first.
    pub(crate) fn to_http1<B>(&self, body: B) -> Request<B> {
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.version_mut() = if self.version == Version::HTTP_10 { Version::HTTP_10 } else { Version::HTTP_11 };
        *request.uri_mut() = Uri::from(self.path.clone());
        let mut fields = HeaderMap::with_capacity(self.fields.len() + 3);
        if let Some(host) = self.authority.as_ref().and_then(|host| HeaderValue::from_str(host.as_str()).ok()) {
            fields.insert(HOST, host);
        }
        fields.extend(self.fields.iter().map(|(name, value)| (name.clone(), value.clone())));
        join_cookies(&mut fields);
        if let Some(protocol) = &self.upgrade {
            fields.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
            fields.insert(UPGRADE, protocol.clone());
        }
        *request.headers_mut() = fields;
        request
    }
}

impl RequestHead for Head {
    fn host(&self) -> &str {
        self.authority.as_ref().map_or("", Authority::host)
    }
    fn method(&self) -> &str {
        self.method.as_str()
    }
    fn path(&self) -> &str {
        self.path.path()
    }
    fn any_header(&self, name: &str, test: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        self.fields.get_all(name).iter().any(|value| test(value.as_bytes()))
    }
}

/// Whether fields are those of a gRPC message.
pub(crate) fn is_grpc(fields: &HeaderMap) -> bool {
    fields.get(CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// The host of a request, from its target or its Host field, which must agree (RFC 9112 §3.2, RFC 9113 §8.3.1).
fn authority(
    fields: &HeaderMap,
    target: Option<Authority>,
    version: Version,
) -> Result<Option<Authority>, &'static str> {
    let mut hosts = fields.get_all(HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (_, Some(_)) => return Err("more than one Host"),
        (Some(host), None) => {
            let parsed = Authority::try_from(host.as_bytes());
            Some(parsed.map_err(|_invalid| "the Host is not valid")?)
        }
        (None, None) => None,
    };
    let authority = match (target, host) {
        (Some(target), Some(host)) if target != host => return Err("the Host differs from the target's authority"),
        (Some(target), _) => Some(target),
        (None, Some(host)) => Some(host),
        (None, None) if version == Version::HTTP_11 => return Err("the Host is missing"),
        (None, None) => None,
    };
    match &authority {
        Some(authority) if authority.as_str().contains('@') => Err("the Host holds user information"),
        _ => Ok(authority),
    }
}

/// Whether a request asks for another protocol. Ignored, as a server may (RFC 9110 §7.8): to h2c, which RFC 9113 §3.1 has done
/// away with; in HTTP/1.0; and together with a body, which a tunnel has no place for.
fn asks_for_upgrade(fields: &HeaderMap, version: Version) -> bool {
    fields.get(UPGRADE).is_some_and(|protocol| !protocol.as_bytes().eq_ignore_ascii_case(b"h2c"))
        && version == Version::HTTP_11
        && !fields.contains_key(TRANSFER_ENCODING)
        && fields.get(CONTENT_LENGTH).is_none_or(|length| length == "0")
        && names_in_connection(fields).any(|name| name.eq_ignore_ascii_case("upgrade"))
}

fn names_in_connection(fields: &HeaderMap) -> impl Iterator<Item = &str> {
    fields
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
}

/// HTTP/2 may split a Cookie into several fields, HTTP/1 has one (RFC 9113 §8.2.3).
fn join_cookies(fields: &mut HeaderMap) {
    let crumbs: Vec<&[u8]> = fields.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if crumbs.len() > 1
        && let Ok(joined) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..]))
    {
        fields.insert(COOKIE, joined);
    }
}

/// Takes out what belongs to one connection only. `TE: trailers` stays.
pub(crate) fn strip_hop_by_hop(fields: &mut HeaderMap) {
    if fields.contains_key(CONNECTION) {
        let nominated: Vec<HeaderName> = names_in_connection(fields).filter_map(|name| name.parse().ok()).collect();
        for name in nominated {
            fields.remove(name);
        }
        fields.remove(CONNECTION);
    }
    for name in [&TRANSFER_ENCODING, &UPGRADE, &KEEP_ALIVE, &PROXY_CONNECTION, &HTTP2_SETTINGS] {
        fields.remove(name);
    }
    if fields.get(TE).is_some_and(|value| value != "trailers") {
        fields.remove(TE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(uri: &str, version: Version, fields: &[(&'static str, &str)]) -> Request<()> {
        let mut builder = Request::builder().uri(uri).version(version);
        for (name, value) in fields {
            builder = builder.header(*name, *value);
        }
        builder.body(()).unwrap()
    }

    fn taken(request: Request<()>) -> Result<Head, Failure> {
        Head::take(request).map(|(head, ..)| head).map_err(|(failure, _)| failure)
    }

    #[test]
    fn the_host_must_be_there_once_and_valid() {
        let ask = |fields| taken(request("/a", Version::HTTP_11, fields));
        assert_eq!(ask(&[("host", "a:80")]).unwrap().host(), "a");
        for fields in
            [&[][..], &[("host", "a"), ("host", "a")], &[("host", "a, b")], &[("host", "u@a")], &[("host", "a/b")]]
        {
            assert!(matches!(ask(fields), Err(Failure::BadRequest(_))), "{fields:?}");
        }
        assert!(taken(request("http://b/", Version::HTTP_11, &[("host", "a")])).is_err());
        assert!(taken(request("/a", Version::HTTP_10, &[])).is_ok());
    }

    #[test]
    fn what_belongs_to_one_connection_is_taken_out() {
        let head = taken(request(
            "/",
            Version::HTTP_11,
            &[
                ("host", "a"),
                ("connection", "close, X-Private"),
                ("x-private", "1"),
                ("keep-alive", "5"),
                ("te", "gzip"),
                ("transfer-encoding", "chunked"),
                ("x-public", "1"),
            ],
        ))
        .unwrap();
        assert_eq!(head.fields.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["x-public"]);
    }

    #[test]
    fn an_upgrade_is_one_only_when_connection_says_so() {
        let fields = [("host", "a"), ("upgrade", "websocket"), ("connection", "keep-alive, Upgrade")];
        assert_eq!(taken(request("/", Version::HTTP_11, &fields)).unwrap().upgrade.unwrap(), "websocket");
        assert!(taken(request("/", Version::HTTP_11, &fields[..2])).unwrap().upgrade.is_none());
    }

    #[test]
    fn a_path_begins_with_a_slash() {
        for (path, taken_in) in [("/admin", true), ("*", true), ("admin", false), ("*admin", false)] {
            let Ok(path) = PathAndQuery::try_from(path) else {
                assert!(!taken_in, "{path}");
                continue;
            };
            let mut request = request("/", Version::HTTP_2, &[]);
            *request.uri_mut() = Uri::from(path.clone());
            assert_eq!(taken(request).is_ok(), taken_in, "{path}");
        }
    }

    #[test]
    fn limits_have_their_own_answers() {
        let long = format!("/{}", "a".repeat(MAX_URI));
        assert_eq!(taken(request(&long, Version::HTTP_11, &[("host", "a")])).unwrap_err(), Failure::UriTooLong);
        let mut many = request("/", Version::HTTP_11, &[("host", "a")]);
        for i in 0..MAX_FIELDS {
            many.headers_mut().insert(HeaderName::try_from(format!("x-{i}")).unwrap(), HeaderValue::from_static("1"));
        }
        assert_eq!(taken(many).unwrap_err(), Failure::HeadTooLarge);
    }
}
