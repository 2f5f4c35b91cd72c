//! A stream of HTTP/2 as bytes in both directions, carried in DATA frames (RFC 8441).

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use weft_http::http2::Code;

use super::{Incoming, StreamRef};
use crate::{
    http::body::Piece,
    stream::{Duplex, Exit},
};

/// A stream as a tunnel.
#[derive(Debug)]
pub(crate) struct Tunnel {
    incoming: Incoming,
    unread: Bytes,
    unsent: Bytes,
}

impl Tunnel {
    pub(crate) fn new(stream: StreamRef) -> Self {
        Self { incoming: Incoming::open(stream), unread: Bytes::new(), unsent: Bytes::new() }
    }

    fn poll_unsent(&mut self, cx: &Context<'_>) -> Poll<io::Result<()>> {
        if self.unsent.is_empty() {
            return Poll::Ready(Ok(()));
        }
        self.incoming.stream.poll_send(cx, &mut self.unsent, false).map_err(io::Error::other)
    }
}

impl Duplex for Tunnel {
    fn break_off(&mut self) -> Exit {
        // RFC 9113 §8.5: the code for a connection that was reset or abnormally closed.
        self.incoming.stream.reset(Code::ConnectError);
        Exit::Any
    }
    fn socket(&self) -> Option<&TcpStream> {
        None
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.unread.is_empty() {
            match ready!(self.incoming.poll_piece(cx)) {
                Some(Ok(Piece::Data(data))) => self.unread = data,
                Some(Ok(Piece::Trailers(_))) | None => return Poll::Ready(Ok(())),
                Some(Err(failure)) => return Poll::Ready(Err(io::Error::other(failure))),
            }
        }
        let count = self.unread.len().min(buf.remaining());
        buf.put_slice(&self.unread.split_to(count));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_unsent(cx))?;
        self.unsent = Bytes::copy_from_slice(buf);
        // Bytes that cannot be sent now are kept, and are sent before the next ones.
        match self.poll_unsent(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(buf.len())),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_unsent(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_unsent(cx))?;
        self.incoming.stream.poll_send(cx, &mut Bytes::new(), true).map_err(io::Error::other)
    }
}
