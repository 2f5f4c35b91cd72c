//! The prelude of a connection, in every direction: its first bytes, its silence, or the side that speaks first.
//! Shape: [`read`] waits for the caller; where silence is an answer it connects to the server and watches both sides. The
//! result names the caller's protocol and holds the bytes read and the server connected meanwhile.

use std::{io, time::Duration};

use bytes::BytesMut;
use tokio::{io::AsyncWriteExt, net::TcpStream};
use weft_core::failure::Failure;

use super::refuse;
use crate::{
    listener::detect::{SILENCE, Speaks, detect, first_speaker, proxied},
    stream::{self, Stream},
    tcp::guard::Guard,
    telemetry::Flow,
    upstream::{dial::plain, pool::Version},
    worker::Worker,
};

/// The meaning of a caller that sends nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Silence {
    /// It may wait for the server to speak first: the server is connected and both are watched.
    /// It is given up after this time in which neither side speaks.
    ServerMaySpeakFirst(Duration),
    /// The same, and the server did so on the last connection: the caller's silence is taken for granted.
    ServerSpeaksFirst(Duration),
    /// Nothing: bytes have to come within this time.
    Bounded(Duration),
}

/// The prelude of a connection.
pub(crate) struct Prelude<S> {
    pub(crate) speaks: Speaks,
    pub(crate) stream: Stream,
    /// Read from the caller.
    bytes: BytesMut,
    /// Read from the server.
    greeting: BytesMut,
    /// The server, where it was connected.
    pub(crate) server: Option<S>,
}

/// Why a connection has no prelude.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PreludeError {
    /// The caller has closed it without a byte.
    #[error("closed without a byte")]
    Closed,
    /// The caller's connection, or the server's, which both were reset.
    #[error("the connection broke")]
    Broken(#[source] io::Error),
    /// The server cannot be connected.
    #[error(transparent)]
    Server(Failure),
}

/// Detects a caller's protocol. `connect`: the server, connected only where silence is an answer.
pub(crate) async fn read<S: AsMut<Stream>>(
    mut stream: Stream,
    silence: Silence,
    connect: impl Future<Output = Result<S, Failure>>,
) -> Result<Prelude<S>, PreludeError> {
    let (mut bytes, mut greeting, mut server) = (BytesMut::new(), BytesMut::new(), None);
    let mut speaks = match silence {
        Silence::Bounded(limit) => detect(&mut stream, &mut bytes, limit).await,
        Silence::ServerMaySpeakFirst(_) => detect(&mut stream, &mut bytes, SILENCE).await,
        Silence::ServerSpeaksFirst(_) => Ok(Speaks::Silent),
    };
    // A silent caller is connected to the server, and the first of the two that speaks decides.
    if let (Ok(Speaks::Silent), Silence::ServerMaySpeakFirst(idle) | Silence::ServerSpeaksFirst(idle)) =
        (&speaks, silence)
    {
        let connected = match connect.await {
            Ok(connected) => server.insert(connected),
            Err(failure) => {
                stream::refuse(stream);
                return Err(PreludeError::Server(failure));
            }
        };
        speaks = first_speaker(&mut stream, &mut bytes, connected.as_mut(), &mut greeting, idle).await;
        if greeting.starts_with(b"HTTP/") {
            speaks = speaks.map(|_| Speaks::Doubtful);
        }
    }
    match speaks {
        Ok(Speaks::Closed) => Err(PreludeError::Closed),
        Ok(speaks) => Ok(Prelude { speaks, stream, bytes, greeting, server }),
        // Either side broke, and so does the other.
        Err(error) => {
            stream::refuse(stream);
            if let Some(mut server) = server {
                stream::refuse(server.as_mut());
            }
            Err(PreludeError::Broken(error))
        }
    }
}

/// The server of a connection that is not connected before the caller has spoken: there is none.
pub(crate) enum NoServer {}

impl AsMut<Stream> for NoServer {
    fn as_mut(&mut self) -> &mut Stream {
        match *self {}
    }
}

/// Detects the protocol of a caller that has to send bytes within `limit`.
pub(crate) async fn read_within(stream: TcpStream, limit: Duration) -> Result<Prelude<NoServer>, PreludeError> {
    read(plain(stream), Silence::Bounded(limit), std::future::pending()).await
}

impl<S> Prelude<S> {
    /// The version of HTTP that the caller speaks.
    pub(crate) fn http(&self) -> Option<Version> {
        match self.speaks {
            Speaks::Http1 => Some(Version::Http1),
            Speaks::Http2 => Some(Version::Http2),
            Speaks::MeshTls
            | Speaks::ApplicationTls
            | Speaks::Unknown
            | Speaks::Binary
            | Speaks::Doubtful
            | Speaks::Silent
            | Speaks::Closed => None,
        }
    }

    /// The authority that a request to a forward proxy names.
    pub(crate) fn proxied(&self) -> Option<&str> {
        if self.speaks == Speaks::Http1 { proxied(&self.bytes) } else { None }
    }

    /// What of these bytes is looked at although they are opaque: a lenient HTTP server may read requests in them.
    pub(crate) fn guard(&self) -> Guard {
        match self.speaks {
            Speaks::Http1 | Speaks::Doubtful => Guard::every_line(),
            Speaks::Binary => Guard::first_line(),
            Speaks::MeshTls
            | Speaks::ApplicationTls
            | Speaks::Http2
            | Speaks::Unknown
            | Speaks::Silent
            | Speaks::Closed => Guard::Nothing,
        }
    }

    /// Whether the server spoke first. An HTTP server that gives up on a silent connection (408) is still one of HTTP.
    pub(crate) fn server_spoke_first(&self) -> bool {
        !self.greeting.is_empty() && !self.greeting.starts_with(b"HTTP/")
    }

    /// The caller's connection from its first byte.
    pub(crate) fn into_stream(self) -> Stream {
        self.stream.again(self.bytes.freeze())
    }

    /// The same with its parts apart, for TLS on it. `None`: TLS is on it already.
    pub(crate) fn into_parts(self) -> Option<(TcpStream, bytes::Bytes)> {
        Some((self.stream.into_tcp()?, self.bytes.freeze()))
    }

    /// Hands the caller the server's first bytes, and gives both connections to be relayed.
    /// Errors: the caller is gone.
    pub(crate) async fn into_opaque(mut self) -> io::Result<(Stream, Option<S>)> {
        if !self.greeting.is_empty() {
            self.stream.write_all(&self.greeting).await?;
            self.stream.flush().await?;
        }
        Ok((self.stream.again(self.bytes.freeze()), self.server))
    }
}

impl PreludeError {
    /// Ends the connection: refused where the server is the reason.
    pub(crate) fn end(self, worker: &Worker, flow: Flow) {
        match self {
            Self::Closed => {}
            Self::Broken(error) => {
                tracing::debug!(%error, peer = %flow.peer, direction = flow.direction.as_str(), "connection broke");
            }
            Self::Server(failure) => refuse::outcome(worker, flow, None, "", &failure),
        }
    }
}
