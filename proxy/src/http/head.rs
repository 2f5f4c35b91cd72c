//! The head of a request, and the checks at its arrival.
//! Spec: RFC 9110 §7.6.1 (Connection), RFC 9113 §8.2.2 (connection-specific fields in HTTP/2).

use std::{borrow::Cow, time::Duration};

use weft_core::{
    failure::Failure,
    route::{RequestHead, joined},
};
use weft_http::{
    fields::{Fields, Name},
    head::{Request, Version},
    http1::{self, Framing},
};

use super::{hop, interim::Interim, limits::MAX_URI};

/// The head of a request on its way.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    pub(crate) request: Request,
    /// The HTTP version for the application.
    pub(crate) version: Version,
    /// The protocol that an `Upgrade` or an extended CONNECT asks for.
    pub(crate) upgrade: Option<Vec<u8>>,
    /// Its target named the authority, as to a proxy.
    pub(crate) absolute: bool,
    /// The length of the body of a request that asks for another protocol, where it has one. Its bytes precede the tunnel's.
    pub(crate) upgrade_body: Option<u64>,
    /// How long its application may take to be connected, where the caller's policy says so.
    pub(crate) connect: Option<Duration>,
    /// Where interim answers go; `None` for a caller that knows none.
    pub(crate) interim: Option<Interim>,
    /// It is written for the hop, not for the application.
    on_hop: bool,
}

impl Head {
    /// Takes a head that came by HTTP/1. `absolute`: its target named the authority.
    pub(crate) fn http1(mut request: Request, framing: Framing, absolute: bool) -> Result<Self, Failure> {
        let upgrade = http1::upgrade(&request.fields, request.version);
        match request.method() {
            "CONNECT" => return Err(Failure::ForwardProxy),
            "TRACE" => return Err(Failure::MethodRefused),
            _ => {}
        }
        http1::strip_hop_by_hop(&mut request.fields);
        let upgrade_body = match framing {
            Framing::Length(length) if upgrade.is_some() => Some(length),
            Framing::Length(_) | Framing::None | Framing::Chunked | Framing::UntilClose => None,
        };
        Ok(Self {
            version: request.version,
            request,
            upgrade,
            absolute,
            upgrade_body,
            connect: None,
            interim: None,
            on_hop: false,
        })
    }

    /// Whether the caller has closed its sending side behind the request: it may be gone. The task that waits for the answer or for
    /// more of it is woken then.
    pub(crate) fn has_half_closed(&self) -> bool {
        self.interim.as_ref().is_some_and(Interim::has_half_closed)
    }

    /// Takes a head that came by HTTP/2. `hop`: from another proxy, which passes on a request of HTTP/1.0 without Host too.
    pub(crate) fn http2(request: Request, hop: bool) -> Result<Self, Failure> {
        if request.target().len() > MAX_URI {
            return Err(Failure::UriTooLong);
        }
        let upgrade = request.protocol().map(<[u8]>::to_vec);
        match request.method() {
            "CONNECT" if upgrade.is_none() => return Err(Failure::ForwardProxy),
            "TRACE" => return Err(Failure::MethodRefused),
            _ => {}
        }
        // What is no `Upgrade` in HTTP/1 is none here.
        if upgrade.as_deref().is_some_and(|protocol| !http1::is_upgrade(protocol)) {
            return Err(Failure::Unsupported(501, ":protocol that is malformed or a version of HTTP"));
        }
        // RFC 9113 §8.3.1: what HTTP/1.1 says with Host, :authority or Host says here.
        if request.authority().is_none() && !(hop && hop::is_http10(&request.fields)) {
            return Err(Failure::BadRequest("neither :authority nor Host"));
        }
        Ok(Self {
            version: Version::Http2,
            request,
            upgrade,
            absolute: false,
            upgrade_body: None,
            connect: None,
            interim: None,
            on_hop: false,
        })
    }

    /// Gives an extended CONNECT of a caller outside the hop the method that the application will see, so that rules on methods
    /// match it (RFC 8441 §5.1: GET in HTTP/1).
    pub(crate) fn tell_tunnels_method(&mut self) {
        if self.request.method() == "CONNECT" {
            self.set_method(b"GET");
        }
    }

    /// Replaces the method by one that is known to be valid.
    pub(crate) fn set_method(&mut self, method: &[u8]) {
        if self.request.set_method(method).is_err() {
            tracing::debug!("a malformed method was not set");
        }
    }

    /// The method of the request, also where the head is written for the hop, where a request for another protocol is a CONNECT.
    pub(crate) fn callers_method(&self) -> &str {
        match self.upgrade {
            Some(_) if self.on_hop => hop::told_method(&self.request.fields),
            _ => self.request.method(),
        }
    }

    /// Rewrites the head for the hop (`true`) or for the application, whichever it was written for before.
    pub(crate) fn write_for_hop(&mut self, hop: bool) {
        match (std::mem::replace(&mut self.on_hop, hop), hop) {
            (false, true) => hop::send(self),
            (true, false) => {
                let version = self.version;
                if let Err(failure) = hop::receive(self) {
                    tracing::debug!(%failure, "a head that this proxy wrote for the hop");
                }
                self.version = version;
            }
            _ => {}
        }
    }

    /// Whether the caller speaks gRPC, whose errors have a form of their own.
    pub(crate) fn is_grpc(&self) -> bool {
        is_grpc(&self.request.fields)
    }
}

impl RequestHead for Head {
    fn host(&self) -> &str {
        self.request.host()
    }
    fn method(&self) -> &str {
        self.request.method()
    }
    fn path(&self) -> &str {
        self.request.path()
    }
    fn header<'a>(&'a self, name: &'a str) -> Option<Cow<'a, [u8]>> {
        if name == "host" {
            return self.request.authority().map(|authority| authority.as_bytes().into());
        }
        joined(name, self.request.fields.named(name))
    }
}

/// Whether fields are those of a gRPC message.
pub(crate) fn is_grpc(fields: &Fields) -> bool {
    fields.first(Name::ContentType).is_some_and(|value| value.starts_with(b"application/grpc"))
}
