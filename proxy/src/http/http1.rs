//! HTTP/1 on a stream, as the server of a caller and as the client of an application: one [`Io`] holds the stream and the
//! bytes that were read and not yet parsed. One connection may have a reader and a writer at once, in different tasks; they
//! share the [`Io`] under a lock that is never held across a wait.
//!
//! - [`body`]: bodies, read and written piece by piece.

mod body;

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};

use bytes::BytesMut;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use weft_core::failure::Failure;
use weft_http::{
    http1::{self, BodyDecoder, Error, Framing, ParsedRequest, ParsedResponse},
    out::Unsent,
};

pub(crate) use self::body::{Incoming, poll_body};
use super::{
    limits::{HTTP1, too_large},
    remember,
    stall::Watch,
};
use crate::{
    buffer,
    connection::Connection,
    slot::Slot,
    stream::{Duplex, Rewind, Stream},
};

/// Bytes of a head, and of the body behind it, that are read at once.
const READ: usize = 8 * 1024;
/// The beginning of a message up to this is copied in front of what is read next.
const COPIED: usize = 1024;
/// Bytes that are kept to write the next head in.
const SCRATCH: usize = 2 * 1024;
/// Bytes that a caller may send ahead of the answer before the proxy stops reading.
const MAX_AHEAD: usize = 16 * 1024;

/// A connection.
#[derive(Debug)]
pub(crate) struct Io {
    /// `None` once it was taken for a tunnel, or broken off.
    stream: Option<Stream>,
    input: BytesMut,
    failed: Option<io::Error>,
    out: Unsent,
    scratch: Vec<u8>,
    body: BodyDecoder,
    /// A body is being written to it.
    pub(crate) writing: bool,
    pub(crate) keep_alive: bool,
    /// Bytes that the connection has taken.
    written: u64,
    /// The peer has closed its sending side.
    ended: bool,
    broken: bool,
    /// We have closed our sending side (client).
    half_closed: bool,
    /// An answer that ends with the connection is being written (server), or one is awaited (client): an end now would look like
    /// that of the message.
    pub(crate) unfinished: bool,
    /// The rest of the body that comes is thrown away.
    dismissed: bool,
    /// How the peer's message was malformed.
    pub(crate) malformed: Option<Error>,
    /// The task that waits for bytes.
    reader: Option<Waker>,
    /// The connection of the caller (server), for the timeout of a body that does not come.
    caller: Option<Arc<Connection>>,
    /// Its place under the limit of connections (client).
    slot: Option<Slot>,
}

/// A connection that the reader and the writer of a message share.
pub(crate) type SharedIo = Arc<Mutex<Io>>;

impl Io {
    pub(crate) fn new(stream: Stream, slot: Option<Slot>, caller: Option<Arc<Connection>>) -> Self {
        Self {
            stream: Some(stream),
            input: BytesMut::new(),
            failed: None,
            out: Unsent::default(),
            scratch: Vec::new(),
            body: BodyDecoder::new(Framing::None),
            writing: false,
            keep_alive: true,
            written: 0,
            ended: false,
            broken: false,
            half_closed: false,
            unfinished: false,
            dismissed: false,
            malformed: None,
            reader: None,
            caller,
            slot,
        }
    }

    /// Reads at most `most` bytes more. 0: the peer has closed its sending side.
    fn poll_fill(&mut self, cx: &mut Context<'_>, most: usize) -> Poll<io::Result<usize>> {
        let Some(stream) = &mut self.stream else { return Poll::Ready(Err(io::ErrorKind::NotConnected.into())) };
        if self.ended {
            return Poll::Ready(Ok(0));
        }
        if self.input.is_empty() {
            // An idle connection holds no buffer.
            self.input = BytesMut::new();
        }
        if self.failed.is_none() && !stream.poll_readable(cx, false) {
            remember(&mut self.reader, cx);
            return Poll::Pending;
        }
        let read = if self.input.len() <= COPIED {
            buffer::lend(|buffer| {
                buffer.extend_from_slice(&self.input);
                let filled = ready!(buffer::poll_fill(stream, cx, buffer, most, &mut self.failed))?;
                self.input = buffer::detach(buffer);
                Poll::Ready(Ok(filled.count))
            })
        } else {
            self.input.reserve(READ);
            let filled = buffer::poll_fill(stream, cx, &mut self.input, most.min(READ), &mut self.failed);
            filled.map_ok(|filled| filled.count)
        };
        let Poll::Ready(read) = read else {
            remember(&mut self.reader, cx);
            return Poll::Pending;
        };
        match read {
            Ok(0) => self.ended = true,
            Ok(_) => {}
            Err(_) => (self.broken, self.ended) = (true, true),
        }
        Poll::Ready(read)
    }

    /// Breaks the connection off, and wakes the task that reads it.
    pub(crate) fn abort(&mut self) {
        self.break_off_if_unfinished();
        self.stream = None;
        self.broken = true;
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }

    /// Resets the connection, and discards what waits to be written, in the kernel too.
    pub(crate) fn reset(&mut self) {
        if let Some(stream) = &mut self.stream {
            stream.break_off();
        }
        self.abort();
    }

    /// Makes the end of a connection an error where it is one.
    fn break_off_if_unfinished(&mut self) {
        // A request that was answered may still be sent, and the answer may not have ended.
        let client = self.caller.is_none();
        if (self.unfinished || client && (self.writing || !self.body.is_done()))
            && let Some(stream) = &mut self.stream
        {
            stream.break_off();
        }
    }

    /// Ends the body that comes, and wakes the task that reads it: the rest is thrown away.
    pub(crate) fn dismiss(&mut self) {
        self.dismissed = true;
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }

    /// Writes all queued bytes.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(stream) = &mut self.stream else { return Poll::Ready(Err(io::ErrorKind::NotConnected.into())) };
        let before = self.out.len();
        let written = buffer::poll_drain(stream, cx, &mut self.out);
        self.written += (before - self.out.len()) as u64;
        let written = ready!(written);
        self.broken |= written.is_err();
        written?;
        self.out.shrink();
        Pin::new(stream).poll_flush(cx)
    }

    /// Writes all queued bytes, if there are any.
    pub(crate) fn poll_unsent(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.out.is_empty() { Poll::Ready(Ok(())) } else { self.poll_flush(cx) }
    }

    /// Whether all of the body that came was read.
    pub(crate) fn body_has_ended(&self) -> bool {
        self.body.is_done()
    }

    /// Whether a caller that waits for 100 (`expects`) has not begun with its body.
    pub(crate) fn is_held_back(&self, expects: bool) -> bool {
        expects && self.input.is_empty() && !self.body.is_done()
    }

    /// Ready when the peer takes none of the bytes that wait for it: see [`Watch::poll`].
    pub(crate) fn poll_stalled(&self, cx: &mut Context<'_>, watch: &mut Watch) -> Poll<()> {
        if self.out.is_empty() { Poll::Pending } else { watch.poll(cx, self.written) }
    }

    /// Closes the sending side.
    pub(crate) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Some(stream) => Pin::new(stream).poll_shutdown(cx),
            None => Poll::Ready(Ok(())),
        }
    }

    /// The next request (server). `None`: the caller is done.
    pub(crate) fn poll_request(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<ParsedRequest>, Failure>> {
        loop {
            match http1::parse_request(&mut self.input, &HTTP1) {
                Ok(Some(parsed)) => {
                    self.body = BodyDecoder::new(parsed.framing);
                    self.keep_alive = parsed.keep_alive;
                    return Poll::Ready(Ok(Some(parsed)));
                }
                Ok(None) => {}
                Err(error) => return Poll::Ready(Err(self.refuse(error, true))),
            }
            match ready!(self.poll_fill(cx, READ)) {
                Ok(0) | Err(_) => return Poll::Ready(Ok(None)),
                Ok(_) => {}
            }
        }
    }

    /// The head of an answer (client), interim ones too.
    pub(crate) fn poll_response(
        &mut self,
        cx: &mut Context<'_>,
        method: &str,
    ) -> Poll<Result<ParsedResponse, Failure>> {
        loop {
            match http1::parse_response(&mut self.input, &HTTP1, method) {
                Ok(Some(parsed)) => {
                    if !parsed.head.is_interim() {
                        self.unfinished = false;
                        self.body = BodyDecoder::new(parsed.framing);
                        self.keep_alive = parsed.keep_alive && parsed.framing != Framing::UntilClose;
                    }
                    return Poll::Ready(Ok(parsed));
                }
                Ok(None) => {}
                Err(error) => return Poll::Ready(Err(self.refuse(error, false))),
            }
            match ready!(self.poll_fill(cx, READ)) {
                Ok(0) => return Poll::Ready(Err(Failure::reset("connection closed before the answer"))),
                Err(error) => return Poll::Ready(Err(Failure::reset(error))),
                Ok(_) => {}
            }
        }
    }

    /// Keeps how a message is malformed, of a request or of an answer.
    fn refuse(&mut self, error: Error, request: bool) -> Failure {
        self.keep_alive = false;
        let failure = match error {
            Error::TooLarge(excess) => too_large(request, false, excess),
            Error::TrailersTooLarge(excess) => too_large(request, true, excess),
            _ if !request => Failure::BadAnswer("not HTTP"),
            Error::TargetTooLong => Failure::UriTooLong,
            Error::Malformed(reason) => Failure::BadRequest(reason),
            Error::Truncated => Failure::BadRequest("not a whole message"),
            Error::Expectation => Failure::Unsupported(error.status(), "an expectation other than 100-continue"),
            Error::Coding => Failure::Unsupported(error.status(), "a transfer coding other than chunked"),
            Error::Version => Failure::Unsupported(error.status(), "a version of HTTP other than 1.0, 1.1 and 2"),
        };
        self.malformed = Some(error);
        failure
    }

    /// Whether no byte of another message has come. An empty line is none: some clients end a body with it (RFC 9112 §2.2).
    pub(crate) fn is_silent(&self) -> bool {
        matches!(&self.input[..], b"" | b"\r" | b"\r\n")
    }

    /// Whether the peer may still be sending bytes that are not read any more.
    pub(crate) fn is_owed(&self) -> bool {
        !self.body.is_done() || !self.input.is_empty() || self.malformed.is_some()
    }

    /// Whether another message may follow.
    pub(crate) fn is_reusable(&self) -> bool {
        self.keep_alive
            && self.stream.is_some()
            && self.body.is_done()
            && !self.writing
            // A caller may have sent more requests before it closed its sending side.
            && (!self.ended || self.caller.is_some() && !self.input.is_empty())
            && !self.broken
            && !self.half_closed
            && self.malformed.is_none()
            && self.out.is_empty()
    }

    /// Whether an idle connection (client) is still open and silent. Costs a system call only where something may have come.
    pub(crate) fn is_alive(&mut self) -> bool {
        if !self.is_reusable() || !self.input.is_empty() {
            return false;
        }
        let mut cx = Context::from_waker(Waker::noop());
        let Some(stream) = &mut self.stream else { return false };
        let mut byte = [0];
        let mut read = ReadBuf::new(&mut byte);
        !stream.poll_readable(&mut cx, false) || Pin::new(stream).poll_read(&mut cx, &mut read).is_pending()
    }

    /// Ready when the caller's connection breaks while its request is in flight. Bytes that the caller sends ahead are kept up to
    /// [`MAX_AHEAD`]. A closed sending side is no break: the caller may still wait for its answer (RFC 9112 §9.6).
    pub(crate) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let ended = self.ended;
        let gone = self.poll_break(cx);
        if self.ended && !ended {
            // The end of its sending side is passed on by the same task.
            cx.waker().wake_by_ref();
        }
        gone
    }

    fn poll_break(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.body.is_done() && !self.ended && self.input.len() < MAX_AHEAD {
            match ready!(self.poll_fill(cx, READ)) {
                Ok(_) => {}
                Err(_) => return Poll::Ready(()),
            }
        }
        if self.broken { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Whether the peer has closed its sending side behind a whole message, and its connection is not broken.
    pub(crate) fn has_half_closed(&self) -> bool {
        self.ended && !self.broken && self.body.is_done()
    }

    /// Closes the sending side behind a request (client), once: nothing can follow on the connection.
    pub(crate) fn poll_half_close(&mut self, cx: &mut Context<'_>) {
        if self.writing || self.half_closed {
            return;
        }
        if let (Poll::Ready(Ok(())), Some(stream)) = (self.poll_unsent(cx), &mut self.stream) {
            self.half_closed = Pin::new(stream).poll_shutdown(cx).is_ready();
        }
    }

    /// Reads and throws away until the peer closes its sending side.
    pub(crate) fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while ready!(self.poll_fill(cx, buffer::SIZE))? > 0 {
            self.input.clear();
        }
        Poll::Ready(Ok(()))
    }

    /// Takes the stream and the bytes that were read ahead, for a tunnel.
    pub(crate) fn take_stream(&mut self) -> Option<Rewind<Stream>> {
        self.keep_alive = false;
        let read = std::mem::take(&mut self.input).freeze();
        self.stream.take().map(|stream| Rewind::new(stream, read))
    }

    /// Takes its place under the limit of connections (client), for a tunnel.
    pub(crate) fn take_slot(&mut self) -> Option<Slot> {
        self.slot.take()
    }

    /// Queues what `write` appends.
    pub(crate) fn put_with(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        self.scratch.clear();
        write(&mut self.scratch);
        self.out.put(&self.scratch);
        // A connection keeps no copy of a large head.
        if self.scratch.capacity() > SCRATCH {
            self.scratch = Vec::new();
        }
    }
}

impl Drop for Io {
    fn drop(&mut self) {
        self.break_off_if_unfinished();
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, time::Duration};

    use socket2::SockRef;
    use tokio::{
        io::{AsyncWriteExt, Interest},
        net::{TcpListener, TcpStream},
        task::yield_now,
        time::timeout,
    };

    use bytes::Bytes;

    use super::*;

    #[tokio::test]
    async fn a_caller_that_breaks_off_behind_much_that_it_sent_ahead_is_gone() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (caller, accepted) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        let (mut caller, (accepted, _)) = (caller.unwrap(), accepted.unwrap());
        caller.write_all(&[b'x'; 3 * COPIED]).await.unwrap();
        SockRef::from(&caller).set_linger(Some(Duration::ZERO)).unwrap();
        drop(caller);
        while !accepted.ready(Interest::READABLE).await.unwrap().is_read_closed() {
            yield_now().await;
        }
        let mut io = Io::new(Stream::tcp(accepted, Bytes::new()), None, None);
        let read = poll_fn(|cx| io.poll_fill(cx, buffer::SIZE)).await.unwrap();
        assert_eq!(read, 3 * COPIED);
        timeout(Duration::from_secs(10), poll_fn(|cx| io.poll_gone(cx))).await.unwrap();
    }
}
