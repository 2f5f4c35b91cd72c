//! Requests to the control plane's REST API: HTTP/1.1 over TLS or over its Unix socket, a connection a request.
//! Bounds: 5 s to connect, 60 s for an answer, 64 MiB of it.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use serde::Deserialize;
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    time::timeout,
};
use tokio_rustls::TlsConnector;

use crate::config::{Server, Settings};

const CONNECT: Duration = Duration::from_secs(5);
const ANSWER: Duration = Duration::from_secs(60);
const MAX_ANSWER: usize = 64 << 20;

/// Speaks to one control plane. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    server: Server,
    token: Option<HeaderValue>,
    author: Option<HeaderValue>,
    tls: Option<Arc<ClientConfig>>,
}

/// What an object is wrong about.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Detail {
    /// Path such as `spec.rules[0].matches[0].path.value`.
    pub field: String,
    /// What is wrong there.
    pub reason: String,
    /// `Kind/namespace/name`.
    pub object: Option<String>,
    /// Which document of the request, from 0.
    pub document: Option<usize>,
}

/// A request that did not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answers there.
    #[error("cannot reach the control plane at {server}")]
    Connect {
        /// Where.
        server: Server,
        /// Why.
        source: io::Error,
    },
    /// It did not answer in time.
    #[error("the control plane at {server} did not answer within {limit:?}")]
    Slow {
        /// Where.
        server: Server,
        /// How long we waited.
        limit: Duration,
    },
    /// The CA file is not usable.
    #[error("--ca {}: {reason}", path.display())]
    Ca {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// No root to check the certificate against.
    #[error("nothing to check the certificate of {0} against")]
    NoCa(Server),
    /// Not a name that a certificate can carry.
    #[error("{0:?} is neither an address nor a DNS name")]
    Name(String),
    /// The certificate is not the right one.
    #[error("the TLS handshake with {server} failed")]
    Tls {
        /// Where.
        server: Server,
        /// Why.
        source: io::Error,
    },
    /// The connection broke.
    #[error("the connection to {server} broke")]
    Broken {
        /// Where.
        server: Server,
        /// Why.
        source: hyper::Error,
    },
    /// The answer is not one of this API.
    #[error("{server} gave an answer that is not this API's ({status}: {reason})")]
    Answer {
        /// Where.
        server: Server,
        /// Its status.
        status: StatusCode,
        /// What is wrong with it.
        reason: String,
    },
    /// It said no.
    #[error("{message}")]
    Refused {
        /// Its status.
        status: StatusCode,
        /// Its words.
        message: String,
        /// One for each mistake.
        details: Vec<Detail>,
    },
}

#[derive(Deserialize)]
struct Refusal {
    error: String,
    #[serde(default)]
    details: Vec<Detail>,
}

impl Client {
    /// Prepares; connects with each request.
    ///
    /// Errors: the CA file, if there is one.
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
                    return Err(wrong("has no certificate in PEM".into()));
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

    /// Where it connects to.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// `GET`; the JSON of the answer.
    ///
    /// Errors: [`ClientError`].
    pub async fn read(&self, path: &str) -> Result<Value, ClientError> {
        self.request(Method::GET, path, None).await
    }

    /// A request with or without a body of this content type; the JSON of the answer, `null` when it has none.
    ///
    /// Errors: [`ClientError`]; `Refused` for every status that is not 2xx.
    pub async fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<(&'static str, Bytes)>,
    ) -> Result<Value, ClientError> {
        let (status, bytes) = self.exchange(method, path, body).await?;
        let wrong = |reason: String| ClientError::Answer { server: self.server.clone(), status, reason };
        if status.is_success() {
            return match bytes.is_empty() {
                true => Ok(Value::Null),
                false => serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string())),
            };
        }
        match serde_json::from_slice::<Refusal>(&bytes) {
            Ok(Refusal { error, details }) => Err(ClientError::Refused { status, message: error, details }),
            Err(_not_ours) => {
                let text: String =
                    String::from_utf8_lossy(&bytes).chars().filter(|c| !c.is_control()).take(200).collect();
                Err(wrong(text))
            }
        }
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Option<(&'static str, Bytes)>,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let connect = |source| ClientError::Connect { server: self.server.clone(), source };
        let slow = |limit| ClientError::Slow { server: self.server.clone(), limit };
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

    async fn over<S>(
        &self,
        stream: S,
        authority: &str,
        method: Method,
        path: &str,
        body: Option<(&'static str, Bytes)>,
    ) -> Result<(StatusCode, Bytes), ClientError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let broken = |source| ClientError::Broken { server: self.server.clone(), source };
        let (content_type, body) = body.map_or((None, Bytes::new()), |(kind, body)| (Some(kind), body));
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        let not_ours = |reason: String| ClientError::Answer {
            server: self.server.clone(),
            status: StatusCode::BAD_REQUEST,
            reason,
        };
        *request.uri_mut() = path.parse().map_err(|error: http::uri::InvalidUri| not_ours(error.to_string()))?;
        let headers = request.headers_mut();
        let host = HeaderValue::from_str(authority).map_err(|error| not_ours(error.to_string()))?;
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
        let answer = async {
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
            let driver = tokio::spawn(connection);
            let response = sender.send_request(request).await.map_err(broken)?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
            driver.abort();
            let body = body.map_err(|error| ClientError::Answer {
                server: self.server.clone(),
                status,
                reason: error.to_string(),
            })?;
            Ok((status, body.to_bytes()))
        };
        timeout(ANSWER, answer)
            .await
            .map_err(|_elapsed| ClientError::Slow { server: self.server.clone(), limit: ANSWER })?
    }
}

impl ClientError {
    /// What to do about it, for people; one sentence or two.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Connect { server: Server::Unix(path), source } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some(format!(
                    "Only the control plane's user may open {}: run weft as that user (sudo), or use --server https://… with --token.",
                    path.display()
                ))
            }
            Self::Connect { server: Server::Unix(_), .. } => Some(
                "Is a control plane running on this machine? Start one with `weft-control-plane --data-dir DIR`, \
                 or point to one: --server https://HOST:8080, or --server unix:DIR/api.sock."
                    .to_owned(),
            ),
            Self::Connect { .. } | Self::Slow { .. } => Some(
                "Is the control plane running, and is this its API address (port 8080)? Point to it with --server or WEFT_SERVER."
                    .to_owned(),
            ),
            Self::NoCa(_) => Some(
                "Give the mesh's root: --ca FILE or WEFT_CA. The control plane keeps it as root.pem in its data directory."
                    .to_owned(),
            ),
            Self::Tls { .. } => Some(
                "Is --ca the root of this mesh, and is the host in the certificate? `weft-control-plane --advertise NAME` adds names to it."
                    .to_owned(),
            ),
            Self::Refused { status: StatusCode::UNAUTHORIZED, .. } => Some(
                "Give an admin token: --token-file FILE, --token or WEFT_TOKEN. The control plane printed one at its first start; \
                 on its machine, its Unix socket needs none."
                    .to_owned(),
            ),
            Self::Refused { status: StatusCode::FORBIDDEN, .. } => {
                Some("This token may not do that: use an admin token.".to_owned())
            }
            Self::Answer { .. } => Some("Is --server really a Weft control plane, of this version?".to_owned()),
            Self::Ca { .. } | Self::Name(_) | Self::Broken { .. } | Self::Refused { .. } => None,
        }
    }

    /// Whether the control plane says that there is no such thing.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Refused { status: StatusCode::NOT_FOUND, .. })
    }
}

/// Escapes what a path segment or query value may not contain (RFC 3986 §2.1).
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
    fn errors_say_what_to_do() {
        let server = Server::Unix("/x.sock".into());
        let refused = |status| ClientError::Refused { status, message: String::new(), details: vec![] };
        let connect = |kind: io::ErrorKind| ClientError::Connect { server: server.clone(), source: kind.into() };
        for (error, word) in [
            (connect(io::ErrorKind::NotFound), "weft-control-plane --data-dir"),
            (connect(io::ErrorKind::PermissionDenied), "sudo"),
            (refused(StatusCode::UNAUTHORIZED), "--token-file"),
            (ClientError::NoCa(server.clone()), "--ca"),
        ] {
            assert!(error.hint().unwrap().contains(word), "{error}");
        }
        assert_eq!(refused(StatusCode::CONFLICT).hint(), None);
    }
}
