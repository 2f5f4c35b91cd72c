//! Failures of the request path: whether the request may be tried again, and the answer that the caller gets.
//! Shape: one enum, matched exhaustively; the answer, retries, outlier detection, access log and metrics use only
//! [`Failure::retry`] and [`Failure::reply`].
//! Flags follow Envoy's response flags where there is one.

use std::{error::Error, fmt, io, sync::Arc};

use crate::{outlier::Failed, retry::Outcome};

// Error numbers of Linux, the same on every architecture that it supports.
const ENOMEM: i32 = 12;
const ENFILE: i32 = 23;
const EMFILE: i32 = 24;
const EADDRNOTAVAIL: i32 = 99;
const ENOBUFS: i32 = 105;

/// The error below a failure. Shared, since one broken connection fails every request on it.
pub type Cause = Arc<dyn Error + Send + Sync>;

/// Why a request or connection failed. `Display` is without the cause; [`Failure::report`] is with it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Failure {
    /// The request is malformed.
    #[error("malformed request: {0}")]
    BadRequest(&'static str),
    /// The head or the trailers of the request are above a limit, which the text names.
    #[error("request {0}")]
    HeadTooLarge(Arc<str>),
    /// The head or the trailers of the answer are above a limit, which the text names.
    #[error("response {0}")]
    AnswerTooLarge(Arc<str>),
    /// A body that has to be kept before the request can be sent is too large.
    #[error("the chunked body of an upgrade is larger than the limit; send it with Content-Length")]
    BodyTooLarge,
    /// A method that no proxy passes on (TRACE: the application would answer with the fields that identify its caller).
    #[error("the method TRACE is not forwarded")]
    MethodRefused,
    /// The request asks for something of HTTP that no proxy can pass on; the status of its answer.
    #[error("{1}")]
    Unsupported(u16, &'static str),
    /// The head did not come whole in its time.
    #[error("request head not complete within its timeout")]
    HeadTimeout,
    /// A request to a forward proxy: CONNECT, or a target that names another host than the one called (RFC 9110 §3.7).
    #[error(
        "a request to a forward proxy (CONNECT, or a target with another host) on a port that is read as HTTP; declare the \
         port of the forward proxy as tcp: `appProtocol: tcp` in its Service, `protocol: tcp` in its workload"
    )]
    ForwardProxy,
    /// The URI is too long.
    #[error("URI longer than the limit")]
    UriTooLong,
    /// The caller speaks plaintext and the workload takes mesh TLS only.
    #[error("plaintext to a workload that accepts only mesh TLS")]
    PlaintextRefused,
    /// Bytes of another protocol than the port speaks.
    #[error("not the protocol of this port")]
    ProtocolRefused,
    /// A rule denies it.
    #[error("denied by policy rule {0}")]
    Denied(Arc<str>),
    /// No rule allows it.
    #[error("no policy rule allows it")]
    NotAllowed,
    /// The callee's proxy does not allow the connection.
    #[error("the callee's proxy does not allow it")]
    DeniedByPeer,
    /// No route for it.
    #[error("no route")]
    NoRoute,
    /// The rule itself answers with this status (backends that do not exist: 500).
    #[error("the route answers {0}")]
    RouteAnswers(u16),
    /// The destination is not in the mesh and the outbound policy is `registered-only`.
    #[error("destination is not registered in the mesh")]
    NotRegistered,
    /// The destination is in the mesh's own ranges and nothing is known there.
    #[error("no service has this mesh address")]
    UnknownService,
    /// The control plane did not say in time what the destination is.
    #[error("discovery of this destination timed out")]
    NoDiscovery,
    /// No configuration yet.
    #[error("no configuration yet")]
    NotConfigured,
    /// A limit of the proxy or cluster is reached.
    #[error("limit reached: {0}")]
    Overloaded(Limit),
    /// The cluster has no endpoint.
    #[error("no endpoint")]
    NoEndpoint,
    /// What is called was in the mesh, and there is no identity to expect there now.
    #[error("the endpoint was in the mesh and has no identity now; it is not called in plaintext")]
    LostIdentity,
    /// The connection was not made.
    #[error("connect failed")]
    Connect(#[source] Cause),
    /// The connection was not made in time.
    #[error("connect timed out")]
    ConnectTimeout,
    /// The connection was made, and TLS on it was not.
    #[error("TLS handshake failed")]
    Handshake(#[source] Cause),
    /// The peer has another identity than the expected one.
    #[error("the peer's identity is not the expected one: {0}")]
    PeerIdentity(Arc<str>),
    /// The peer refused our identity.
    #[error("the peer refused our identity")]
    IdentityRefused,
    /// The peer did not process the request.
    #[error(
        "the peer's proxy refused the request before the application received it: application not reachable, or a limit reached"
    )]
    RefusedStream,
    /// The connection or stream broke.
    #[error("upstream reset")]
    Reset(#[source] Cause),
    /// The stream was reset with NO_ERROR before the end of the answer, and no length says that it is whole. Node ends answers this
    /// way when it is busy; its callers are told the same.
    #[error("upstream reset: no end and no length of the answer")]
    Unended,
    /// The peer's answer is malformed.
    #[error("malformed response: {0}")]
    BadAnswer(&'static str),
    /// No head of an answer in the time for one try.
    #[error("no response within the timeout of one attempt")]
    TryTimeout,
    /// Not done in the time for the request.
    #[error("request timed out")]
    RequestTimeout,
    /// Nothing moved for the idle time.
    #[error("idle timeout")]
    IdleTimeout,
    /// Bytes of a body waited for their reader, and none was taken in time.
    #[error("none of the waiting bytes of a body was read in time (spec.limits.stalled)")]
    Stalled,
    /// The caller went away.
    #[error("the caller closed the connection")]
    CallerGone,
    /// The peer has not shown a valid certificate since that of its connection expired.
    #[error("the peer's certificate expired and the peer showed no other")]
    CertificateExpired,
    /// The proxy stopped before the end.
    #[error("the proxy stopped before the end; the drain timeout was over")]
    Stopping,
    /// A bug of ours; the panic was caught.
    #[error("internal error")]
    Panic,
}

/// A limit that a request or connection can run into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Limit {
    /// Open connections of one cluster, or of the workload behind this proxy.
    #[error("connections")]
    Connections,
    /// Requests of one cluster that wait for a connection.
    #[error("pending")]
    Pending,
    /// Requests of one cluster in flight.
    #[error("requests")]
    Requests,
    /// Open connections of the whole proxy in one direction.
    #[error("connections of the proxy")]
    ProxyConnections,
    /// Open connections from one source.
    #[error("connections from one source")]
    Source,
    /// Open connections of other proxies under one identity.
    #[error("connections of one identity")]
    Identity,
    /// Files, ports or memory for sockets on the machine of this proxy.
    #[error("files, ports or memory for sockets on the proxy's machine")]
    Sockets,
}

/// What the caller is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The HTTP status.
    pub status: u16,
    /// A short flag for log, metric and the `weft-error` header.
    pub flag: &'static str,
}

/// A failure with its causes, as answers and the access log say it: `connect failed: Connection refused`.
#[derive(Clone, Copy, Debug)]
pub struct Report<'a>(&'a Failure);

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut below = self.0.source();
        while let Some(cause) = below {
            write!(f, ": {cause}")?;
            below = cause.source();
        }
        Ok(())
    }
}

impl Failure {
    /// A socket could not be connected. Where the machine of the proxy lacks something for it, the destination is not to blame.
    pub fn socket(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(ENOMEM | ENFILE | EMFILE | EADDRNOTAVAIL | ENOBUFS) => Self::Overloaded(Limit::Sockets),
            _ => Self::connect(error),
        }
    }

    /// The connection was not made.
    pub fn connect(cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Connect(Arc::from(cause.into()))
    }

    /// The connection or stream broke.
    pub fn reset(cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Reset(Arc::from(cause.into()))
    }

    /// Whether a head or trailers are above a limit.
    pub fn is_too_large(&self) -> bool {
        matches!(self, Self::HeadTooLarge(_) | Self::AnswerTooLarge(_))
    }

    /// The text with its causes.
    pub fn report(&self) -> Report<'_> {
        Report(self)
    }

    /// How it counts for a retry; `None` when trying again cannot help or is not allowed.
    pub fn retry(&self) -> Option<Outcome> {
        match self {
            // Nothing was sent to a peer of another identity: its address may have been reused.
            Self::Connect(_) | Self::ConnectTimeout | Self::Handshake(_) | Self::PeerIdentity(_) => {
                Some(Outcome::ConnectFailure)
            }
            Self::RefusedStream => Some(Outcome::RefusedStream),
            Self::Reset(_) | Self::Unended | Self::BadAnswer(_) => Some(Outcome::Reset),
            Self::TryTimeout => Some(Outcome::TryTimeout),
            Self::BadRequest(_)
            | Self::HeadTooLarge(_)
            | Self::AnswerTooLarge(_)
            | Self::BodyTooLarge
            | Self::MethodRefused
            | Self::Unsupported(..)
            | Self::HeadTimeout
            | Self::ForwardProxy
            | Self::UriTooLong
            | Self::PlaintextRefused
            | Self::ProtocolRefused
            | Self::Denied(_)
            | Self::NotAllowed
            | Self::DeniedByPeer
            | Self::NoRoute
            | Self::RouteAnswers(_)
            | Self::NotRegistered
            | Self::UnknownService
            | Self::NoDiscovery
            | Self::NotConfigured
            | Self::Overloaded(_)
            | Self::NoEndpoint
            | Self::LostIdentity
            | Self::IdentityRefused
            | Self::RequestTimeout
            | Self::IdleTimeout
            | Self::Stalled
            | Self::CallerGone
            | Self::CertificateExpired
            | Self::Stopping
            | Self::Panic => None,
        }
    }

    /// How it counts for outlier detection; `None` where the endpoint is not to blame.
    pub fn failed(&self) -> Option<Failed> {
        self.retry().map(|outcome| if outcome.is_unreached() { Failed::Connect } else { Failed::Answer })
    }

    /// What the caller is told.
    pub fn reply(&self) -> Reply {
        let (status, flag) = match self {
            Self::BadRequest(_) => (400, "DPE"),
            Self::HeadTooLarge(_) => (431, "DPE"),
            Self::BodyTooLarge => (413, "DPE"),
            Self::MethodRefused => (405, "DPE"),
            Self::Unsupported(status, _) => (*status, "DPE"),
            Self::HeadTimeout => (408, "DPE"),
            Self::ForwardProxy => (501, "DPE"),
            Self::UriTooLong => (414, "DPE"),
            Self::PlaintextRefused => (403, "PLAINTEXT"),
            Self::ProtocolRefused => (400, "PROTOCOL"),
            Self::Denied(_) | Self::NotAllowed | Self::DeniedByPeer => (403, "RBAC"),
            Self::NoRoute => (404, "NR"),
            Self::RouteAnswers(status) => (*status, "NC"),
            Self::NotRegistered => (502, "REG"),
            Self::UnknownService => (503, "NS"),
            Self::NoDiscovery => (503, "DISC"),
            Self::NotConfigured => (503, "CONF"),
            Self::Overloaded(_) => (503, "UO"),
            Self::NoEndpoint => (503, "UH"),
            Self::LostIdentity => (503, "NOID"),
            Self::Connect(_) | Self::ConnectTimeout | Self::Handshake(_) => (503, "UF"),
            Self::PeerIdentity(_) => (503, "PEERID"),
            Self::IdentityRefused => (503, "OURID"),
            Self::RefusedStream => (503, "REFUSED"),
            Self::Reset(_) | Self::Unended => (502, "UC"),
            Self::BadAnswer(_) | Self::AnswerTooLarge(_) => (502, "UPE"),
            Self::TryTimeout | Self::RequestTimeout => (504, "UT"),
            Self::IdleTimeout | Self::Stalled => (504, "SI"),
            Self::CallerGone => (499, "DC"),
            Self::CertificateExpired => (503, "EXPIRED"),
            Self::Stopping => (503, "STOP"),
            Self::Panic => (500, "PANIC"),
        };
        Reply { status, flag }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of this machine's own shortage.
    #[test]
    fn what_the_proxys_own_machine_lacks_is_not_the_endpoints_fault() {
        for number in [EMFILE, ENFILE, ENOBUFS, ENOMEM, EADDRNOTAVAIL] {
            let failure = Failure::socket(io::Error::from_raw_os_error(number));
            assert_eq!((failure.failed(), failure.reply().flag), (None, "UO"), "{failure}");
        }
        let refused = Failure::socket(io::Error::from_raw_os_error(111));
        assert_eq!(refused.failed(), Some(Failed::Connect));
    }

    #[test]
    fn a_report_has_every_cause_once() {
        let inner = io::Error::from(io::ErrorKind::ConnectionRefused);
        let failure = Failure::connect(io::Error::new(io::ErrorKind::ConnectionRefused, inner));
        assert_eq!(failure.to_string(), "connect failed");
        assert_eq!(failure.report().to_string(), "connect failed: connection refused");
        assert_eq!(Failure::reset("connection closed").report().to_string(), "upstream reset: connection closed");
        assert_eq!(Failure::NoRoute.report().to_string(), "no route");
    }
}
