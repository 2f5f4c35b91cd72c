//! Requests to the control plane's REST API: HTTP/1.1 over TLS or over its Unix socket, one connection per request.
//! Every answer must carry the field `weft-api` and have the expected shape: a web server, or the gRPC port of the same control
//! plane, answers 200 to anything.
//! Bounds: 5 s to connect, 60 s for a response, 64 MiB of response body.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    time::timeout,
};
use tokio_rustls::TlsConnector;
use weft_core::text::{clean, clean_lines, is_unprintable};

use crate::{
    answer::{Answer, Detail, Refused},
    config::{Server, Settings},
};

const CONNECT: Duration = Duration::from_secs(5);
const RESPONSE: Duration = Duration::from_secs(60);
const MAX_RESPONSE: usize = 64 << 20;
/// The field by which the API is recognised, and the version of the API that this program speaks.
const API: (&str, &str) = ("weft-api", "v1");

/// A client of one control plane. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    server: Server,
    token: Option<HeaderValue>,
    author: Option<HeaderValue>,
    tls: Option<Arc<ClientConfig>>,
}

/// A request that failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The connection could not be opened.
    #[error("cannot reach the control plane at {server}")]
    Connect {
        /// The control plane.
        server: Server,
        /// The cause.
        source: io::Error,
    },
    /// No connection or response in time.
    #[error("the control plane at {server} did not respond within {limit:?}")]
    Timeout {
        /// The control plane.
        server: Server,
        /// The time limit.
        limit: Duration,
    },
    /// The CA file is unusable.
    #[error("--ca {}: {reason}", path.display())]
    Ca {
        /// The file.
        path: PathBuf,
        /// The reason.
        reason: String,
    },
    /// No root certificate was given.
    #[error("no root certificate to verify {0} with")]
    NoCa(Server),
    /// The host cannot appear in a certificate.
    #[error("{0:?} is neither an address nor a DNS name")]
    Name(String),
    /// The TLS handshake failed, for example because of the certificate.
    #[error("the TLS handshake with {server} failed")]
    Tls {
        /// The control plane.
        server: Server,
        /// The cause.
        source: io::Error,
    },
    /// The connection failed during the request.
    #[error("the connection to {server} failed")]
    Connection {
        /// The control plane.
        server: Server,
        /// The cause.
        source: hyper::Error,
    },
    /// Another server than the API answered.
    #[error(
        "{server} is not the API of a Weft control plane: it answered {status}{kind}, without the field \"weft-api: v1\""
    )]
    Stranger {
        /// The server.
        server: Server,
        /// The status of the response.
        status: StatusCode,
        /// ` (application/grpc)`: the type of its content, if it has one.
        kind: String,
    },
    /// The response is not of the shape that the request has.
    #[error("unexpected response from {server} ({status}: {reason})")]
    Response {
        /// The control plane.
        server: Server,
        /// The status of the response.
        status: StatusCode,
        /// The reason.
        reason: String,
    },
    /// The control plane rejected the request.
    #[error("{message}")]
    Rejected {
        /// The status of the response.
        status: StatusCode,
        /// The error of the response.
        message: String,
        /// One per mistake.
        details: Vec<Detail>,
    },
}

impl Client {
    /// Reads the CA file; connects later, once per request.
    ///
    /// Errors: the CA file is missing or unusable.
    pub fn new(settings: &Settings) -> Result<Self, ClientError> {
        let tls = match (&settings.server, &settings.ca) {
            (Server::Unix(_), _) => None,
            (Server::Https { .. }, None) => return Err(ClientError::NoCa(settings.server.clone())),
            (Server::Https { .. }, Some(path)) => {
                let wrong = |reason: String| ClientError::Ca { path: path.clone(), reason };
                let mut roots = RootCertStore::empty();
                for certificate in CertificateDer::pem_file_iter(path).map_err(|error| wrong(error.to_string()))? {
                    let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
                    roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
                }
                if roots.is_empty() {
                    return Err(wrong("contains no PEM certificate".into()));
                }
                let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
                let config = ClientConfig::builder_with_provider(provider)
                    .with_protocol_versions(&[&rustls::version::TLS13])
                    .map_err(|error| wrong(error.to_string()))?
                    .with_root_certificates(roots)
                    .with_no_client_auth();
                Some(Arc::new(config))
            }
        };
        let token = settings.token.as_ref().and_then(|token| HeaderValue::from_str(&format!("Bearer {token}")).ok());
        let token = token.map(|mut value| {
            value.set_sensitive(true);
            value
        });
        let author = settings.author.as_ref().and_then(|author| HeaderValue::from_str(author).ok());
        Ok(Self { server: settings.server.clone(), token, author, tls })
    }

    /// The address of the control plane.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// `GET`; the response as a `T`.
    ///
    /// Errors: [`ClientError`].
    pub async fn read<T: DeserializeOwned>(&self, path: &str) -> Result<Answer<T>, ClientError> {
        self.request(Method::GET, path, None).await
    }

    /// A request with an optional body (content type, bytes); the response as a `T`, `()` for an empty one.
    ///
    /// Errors: [`ClientError`]; `Rejected` for every status other than 2xx.
    pub async fn request<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<(&'static str, Bytes)>,
    ) -> Result<Answer<T>, ClientError> {
        let (head, bytes) = self.exchange(method, path, body).await?;
        let status = head.status;
        if head.headers.get(API.0).is_none_or(|version| version != API.1) {
            let kind = head.headers.get(header::CONTENT_TYPE).map(|kind| String::from_utf8_lossy(kind.as_bytes()));
            let kind = kind.map(|kind| format!(" ({})", printable(&kind))).unwrap_or_default();
            return Err(ClientError::Stranger { server: self.server.clone(), status, kind });
        }
        let wrong = |reason: String| ClientError::Response { server: self.server.clone(), status, reason };
        if status.is_success() {
            let text: &[u8] = if bytes.is_empty() { b"null" } else { &bytes };
            let json: Value = serde_json::from_slice(text).map_err(|error| wrong(error.to_string()))?;
            let meaning = T::deserialize(cleaned(&json)).map_err(|error| wrong(error.to_string()))?;
            return Ok(Answer { json, meaning });
        }
        match serde_json::from_slice::<Refused>(&bytes) {
            Ok(Refused { error, details }) => Err(ClientError::Rejected { status, message: error, details }),
            Err(_other_format) => Err(wrong(printable(&String::from_utf8_lossy(&bytes)))),
        }
    }

    /// An answer of the right shape that does not fit the request.
    pub fn unexpected(&self, reason: &str) -> ClientError {
        ClientError::Response { server: self.server.clone(), status: StatusCode::OK, reason: reason.to_owned() }
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Option<(&'static str, Bytes)>,
    ) -> Result<(http::response::Parts, Bytes), ClientError> {
        let connect = |source| ClientError::Connect { server: self.server.clone(), source };
        let slow = |limit| ClientError::Timeout { server: self.server.clone(), limit };
        match &self.server {
            Server::Unix(path_of_socket) => {
                let stream = timeout(CONNECT, UnixStream::connect(path_of_socket)).await;
                let stream = stream.map_err(|_elapsed| slow(CONNECT))?.map_err(connect)?;
                self.over(stream, "localhost", method, path, body).await
            }
            Server::Https { host, port } => {
                let name = ServerName::try_from(host.clone()).map_err(|_not_a_name| ClientError::Name(host.clone()))?;
                let tls = self.tls.clone().ok_or_else(|| ClientError::NoCa(self.server.clone()))?;
                let stream = timeout(CONNECT, TcpStream::connect((host.as_str(), *port))).await;
                let stream = stream.map_err(|_elapsed| slow(CONNECT))?.map_err(connect)?;
                let stream = timeout(CONNECT, TlsConnector::from(tls).connect(name, stream)).await;
                let stream = stream
                    .map_err(|_elapsed| slow(CONNECT))?
                    .map_err(|source| ClientError::Tls { server: self.server.clone(), source })?;
                let authority = self.server.to_string();
                self.over(stream, authority.trim_start_matches("https://"), method, path, body).await
            }
        }
    }

    /// Sends one request over an open stream.
    async fn over<S>(
        &self,
        stream: S,
        authority: &str,
        method: Method,
        path: &str,
        body: Option<(&'static str, Bytes)>,
    ) -> Result<(http::response::Parts, Bytes), ClientError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let broken = |source| ClientError::Connection { server: self.server.clone(), source };
        let (content_type, body) = body.map_or((None, Bytes::new()), |(kind, body)| (Some(kind), body));
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        let invalid = |reason: String| ClientError::Response {
            server: self.server.clone(),
            status: StatusCode::BAD_REQUEST,
            reason,
        };
        *request.uri_mut() = path.parse().map_err(|error: http::uri::InvalidUri| invalid(error.to_string()))?;
        let headers = request.headers_mut();
        let host = HeaderValue::from_str(authority).map_err(|error| invalid(error.to_string()))?;
        headers.insert(header::HOST, host);
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        if let Some(kind) = content_type {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        }
        if let Some(author) = &self.author {
            headers.insert("x-weft-author", author.clone());
        }
        if let Some(token) = &self.token {
            headers.insert(header::AUTHORIZATION, token.clone());
        }
        // One limit covers handshake, head and body: a control plane that stalls anywhere is reported alike.
        let response = async {
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
            let driver = tokio::spawn(connection);
            let response = sender.send_request(request).await.map_err(broken)?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, MAX_RESPONSE).collect().await;
            // The connection serves no other request.
            driver.abort();
            let body = body.map_err(|error| ClientError::Response {
                server: self.server.clone(),
                status: head.status,
                reason: error.to_string(),
            })?;
            Ok((head, body.to_bytes()))
        };
        timeout(RESPONSE, response)
            .await
            .map_err(|_elapsed| ClientError::Timeout { server: self.server.clone(), limit: RESPONSE })?
    }
}

impl ClientError {
    /// A suggestion for the user, of one or two sentences.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Connect { server: Server::Unix(path), source } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some(format!(
                    "Only the control plane's user and root can open {}: run weft as that user (sudo), or use --server https://… with --token.",
                    path.display()
                ))
            }
            Self::Connect { server: Server::Unix(_), .. } => Some(
                "Is a control plane running on this machine? Start one with `weft-control-plane --data-dir DIR`, \
                 or name another: --server https://HOST:8080, or --server unix:DIR/api.sock."
                    .to_owned(),
            ),
            Self::Connect { .. } | Self::Timeout { .. } => Some(
                "Is the control plane running, and is this its API address (port 8080)? Set the address with --server or WEFT_SERVER."
                    .to_owned(),
            ),
            Self::NoCa(_) => Some(
                "Give the mesh's root: --ca FILE or WEFT_CA. It is root.pem in the control plane's data directory."
                    .to_owned(),
            ),
            Self::Tls { .. } => Some(
                "Is --ca the root of this mesh, and does the certificate contain the host? `weft-control-plane --advertise NAME` adds a name."
                    .to_owned(),
            ),
            Self::Rejected { status: StatusCode::UNAUTHORIZED, .. } => Some(
                "Give an admin token: --token-file FILE, --token or WEFT_TOKEN. It is in admin-token of the control plane's data directory; \
                 its Unix socket, on its machine, needs no token."
                    .to_owned(),
            ),
            Self::Rejected { status: StatusCode::FORBIDDEN, .. } => {
                Some("This token does not permit the request: use an admin token.".to_owned())
            }
            Self::Rejected { status: StatusCode::NOT_FOUND, .. } => Some(
                "`weft get KIND -A`, `weft history` and `weft token list` print what there is.".to_owned(),
            ),
            Self::Connection { .. } | Self::Stranger { .. } => Some(
                "Give --server the control plane's API: its port is 8080 unless --api says otherwise, and 15012 is for proxies only."
                    .to_owned(),
            ),
            Self::Response { .. } => Some(
                "Is --server the API of a Weft control plane of this version? `weft history` tells what was changed."
                    .to_owned(),
            ),
            Self::Ca { .. } | Self::Name(_) | Self::Rejected { .. } => None,
        }
    }

    /// Whether the command line, a setting or a file is wrong: no attempt with the same ones can succeed.
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Ca { .. } | Self::NoCa(_) | Self::Name(_) => true,
            Self::Rejected { status, .. } => *status == StatusCode::BAD_REQUEST,
            Self::Connect { .. }
            | Self::Timeout { .. }
            | Self::Tls { .. }
            | Self::Connection { .. }
            | Self::Stranger { .. }
            | Self::Response { .. } => false,
        }
    }

    /// Whether the object or path does not exist (404).
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Rejected { status: StatusCode::NOT_FOUND, .. })
    }
}

/// At most 200 characters of a text, without control characters.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !is_unprintable(*c)).take(200).collect()
}

/// A value whose texts have no characters that a terminal obeys.
fn cleaned(value: &Value) -> Value {
    match value {
        Value::String(text) => Value::String(clean_lines(text)),
        Value::Array(items) => items.iter().map(cleaned).collect(),
        Value::Object(fields) => {
            fields.iter().map(|(name, value)| (clean(name).into_owned(), cleaned(value))).collect::<Map<_, _>>().into()
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
    }
}

/// The query of a change: `?dryRun=true&message=…`, or nothing.
pub fn query(message: Option<&str>, dry_run: bool) -> String {
    let dry_run = dry_run.then(|| "dryRun=true".to_owned());
    let parts: Vec<String> =
        dry_run.into_iter().chain(message.map(|message| format!("message={}", escape(message)))).collect();
    if parts.is_empty() { String::new() } else { format!("?{}", parts.join("&")) }
}

/// Percent-encodes a path segment or query value (RFC 3986 §2.1).
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_escaped() {
        assert_eq!(escape("a-b.c_~1"), "a-b.c_~1");
        assert_eq!(escape("a/b?c=é "), "a%2Fb%3Fc%3D%C3%A9%20");
    }

    #[test]
    fn errors_suggest_a_remedy() {
        let server = Server::Unix("/x.sock".into());
        let rejected = |status| ClientError::Rejected { status, message: String::new(), details: vec![] };
        let connect = |kind: io::ErrorKind| ClientError::Connect { server: server.clone(), source: kind.into() };
        for (error, word) in [
            (connect(io::ErrorKind::NotFound), "weft-control-plane --data-dir"),
            (connect(io::ErrorKind::PermissionDenied), "sudo"),
            (rejected(StatusCode::UNAUTHORIZED), "--token-file"),
            (ClientError::NoCa(server.clone()), "--ca"),
            (rejected(StatusCode::NOT_FOUND), "weft get KIND -A"),
        ] {
            assert!(error.hint().unwrap().contains(word), "{error}");
        }
        assert_eq!(rejected(StatusCode::CONFLICT).hint(), None);
    }
}
