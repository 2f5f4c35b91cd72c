//! HTTP/1 on a stream, both as the server of a caller and as the client of an application: one [`Io`] holds the stream and what
//! was read and not yet understood. A body is read and written by whoever needs it, so one connection may have a reader and a
//! writer at once; they share the [`Io`] under a lock that nobody holds while waiting.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use weft_core::failure::Failure;
use weft_http::{
    fields::Fields,
    http1::{self, BodyDecoder, Error, Framing, Limits, ParsedRequest, ParsedResponse},
    out::Unsent,
};

use super::{
    body::{Body, Next, Piece},
    http2::remember,
};
use crate::{
    buffer,
    connection::Connection,
    stream::{Rewind, Stream},
    upstream::dial::Slot,
};

/// Limits of heads.
pub(crate) const LIMITS: Limits =
    Limits { head: super::serve::MAX_HEAD, fields: super::head::MAX_FIELDS, target: super::head::MAX_URI };
/// What is read at once of a head and what comes with it.
const READ: usize = 8 * 1024;
/// The beginning of a message up to this is copied in front of what is read next.
const COPIED: usize = 1024;
/// What a caller may send ahead of its turn before it has to wait.
const MAX_AHEAD: usize = 16 * 1024;
/// What waits to be written before more is taken of a body.
const MAX_UNSENT: usize = 128 * 1024;
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// A connection.
#[derive(Debug)]
pub(crate) struct Io {
    /// `None` once it was taken for a tunnel.
    stream: Option<Stream>,
    input: BytesMut,
    failed: Option<io::Error>,
    out: Unsent,
    scratch: Vec<u8>,
    body: BodyDecoder,
    /// The caller waits for leave to send its body.
    wants_leave: bool,
    /// A body is being written to it by somebody.
    pub(crate) writing: bool,
    pub(crate) keep_alive: bool,
    /// The peer has sent all it will send.
    ended: bool,
    broken: bool,
    /// Nobody is given more of the body that comes.
    dismissed: bool,
    /// The peer's message is at fault, and this is what it did.
    pub(crate) malformed: Option<Error>,
    /// Bytes came since this was last asked.
    pub(crate) heard: bool,
    /// Who waits for bytes.
    reader: Option<Waker>,
    /// The connection from a caller, which is told when it lets us wait for a body.
    caller: Option<Arc<Connection>>,
    /// Its place among the connections that are allowed.
    _slot: Option<Slot>,
}

/// A connection that several parts of a message share.
pub(crate) type Shared = Arc<Mutex<Io>>;

/// The body that comes on a connection.
#[derive(Debug)]
pub(crate) struct Incoming {
    io: Shared,
    /// Of a request: what breaks it is the caller's doing.
    request: bool,
    /// All of it was read. What the connection carries from then on is another message's.
    ended: bool,
}

impl Io {
    pub(crate) fn new(stream: Stream, slot: Option<Slot>, caller: Option<Arc<Connection>>) -> Self {
        Self {
            stream: Some(stream),
            input: BytesMut::new(),
            failed: None,
            out: Unsent::default(),
            scratch: Vec::new(),
            body: BodyDecoder::new(Framing::None),
            wants_leave: false,
            writing: false,
            keep_alive: true,
            ended: false,
            broken: false,
            dismissed: false,
            malformed: None,
            heard: false,
            reader: None,
            caller,
            _slot: slot,
        }
    }

    /// Reads at most `most` bytes more. 0: the peer has sent all.
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
            Ok(_) => self.heard = true,
            Err(_) => (self.broken, self.ended) = (true, true),
        }
        Poll::Ready(read)
    }

    /// Breaks the connection off; whoever reads it hears of it.
    pub(crate) fn abort(&mut self) {
        self.stream = None;
        self.broken = true;
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }

    /// Ends the body that comes for whoever reads it: the rest is thrown away.
    pub(crate) fn dismiss(&mut self) {
        self.dismissed = true;
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }

    /// Writes all that waits.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(stream) = &mut self.stream else { return Poll::Ready(Err(io::ErrorKind::NotConnected.into())) };
        let written = ready!(buffer::poll_drain(stream, cx, &mut self.out));
        self.broken |= written.is_err();
        written?;
        self.out.shrink();
        Pin::new(stream).poll_flush(cx)
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
            match http1::parse_request(&mut self.input, &LIMITS) {
                Ok(Some(parsed)) => {
                    self.body = BodyDecoder::new(parsed.framing);
                    self.wants_leave = parsed.expects_continue;
                    self.keep_alive = parsed.keep_alive;
                    return Poll::Ready(Ok(Some(parsed)));
                }
                Ok(None) => {}
                Err(error) => return Poll::Ready(Err(self.refuse(error))),
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
            match http1::parse_response(&mut self.input, &LIMITS, method) {
                Ok(Some(parsed)) => {
                    if !parsed.head.is_interim() {
                        self.body = BodyDecoder::new(parsed.framing);
                        self.keep_alive = parsed.keep_alive && parsed.framing != Framing::UntilClose;
                    }
                    return Poll::Ready(Ok(parsed));
                }
                Ok(None) => {}
                Err(error) => {
                    self.refuse(error);
                    return Poll::Ready(Err(Failure::BadAnswer("not HTTP")));
                }
            }
            match ready!(self.poll_fill(cx, READ)) {
                Ok(0) => return Poll::Ready(Err(Failure::Reset("connection closed before the answer".into()))),
                Err(error) => return Poll::Ready(Err(Failure::Reset(error.to_string().into()))),
                Ok(_) => {}
            }
        }
    }

    fn refuse(&mut self, error: Error) -> Failure {
        self.keep_alive = false;
        let failure = match error.status() {
            431 => Failure::HeadTooLarge,
            414 => Failure::UriTooLong,
            _ => Failure::BadRequest("not HTTP/1.1 as RFC 9112 has it"),
        };
        self.malformed = Some(error);
        failure
    }

    /// Whether nothing of another message has come.
    pub(crate) fn is_silent(&self) -> bool {
        self.input.is_empty()
    }

    /// Whether the peer may still be sending what nobody will read.
    pub(crate) fn is_owed(&self) -> bool {
        !self.body.is_done() || !self.input.is_empty() || self.malformed.is_some()
    }

    /// Whether another message may follow.
    pub(crate) fn is_reusable(&self) -> bool {
        self.keep_alive
            && self.stream.is_some()
            && self.body.is_done()
            && !self.writing
            && !self.ended
            && !self.broken
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

    /// A body that is here already, in whole.
    fn take_small_body(&mut self) -> Option<Body> {
        let length = self.body.remaining().filter(|length| *length <= self.input.len() as u64)?;
        if length == 0 {
            return self.body.is_done().then_some(Body::Empty);
        }
        match self.body.decode(&mut self.input, &LIMITS) {
            Ok(Some(http1::Piece::Data(data))) => Some(Body::Full(data)),
            _ => None,
        }
    }

    fn poll_piece(&mut self, cx: &mut Context<'_>, request: bool) -> Poll<Next> {
        if std::mem::take(&mut self.wants_leave) && self.input.is_empty() && !self.body.is_done() {
            self.out.put(CONTINUE);
            // An error shows when the answer is written.
            let _flushed = self.poll_flush(cx).is_ready();
        }
        let broken = |reason: &str| {
            if request { Failure::CallerGone } else { Failure::Reset(reason.into()) }
        };
        loop {
            match self.body.decode(&mut self.input, &LIMITS) {
                Ok(Some(http1::Piece::Data(data))) => return Poll::Ready(Some(Ok(Piece::Data(data)))),
                Ok(Some(http1::Piece::Trailers(fields))) => return Poll::Ready(Some(Ok(Piece::Trailers(fields)))),
                Ok(Some(http1::Piece::End)) => return Poll::Ready(None),
                Ok(None) if self.body.is_done() => return Poll::Ready(None),
                Ok(None) => {}
                Err(error) => {
                    let failure = self.refuse(error);
                    let failure = if request { failure } else { Failure::BadAnswer("the body is not HTTP") };
                    return Poll::Ready(Some(Err(failure)));
                }
            }
            let filled = self.poll_fill(cx, buffer::SIZE);
            if let Some(caller) = &self.caller {
                caller.body_awaited(filled.is_pending());
            }
            match ready!(filled) {
                Ok(0) => {
                    return Poll::Ready(match self.body.end_of_stream() {
                        Ok(()) => None,
                        Err(_cut) => Some(Err(broken("connection closed before the end of the body"))),
                    });
                }
                Err(error) => return Poll::Ready(Some(Err(broken(&error.to_string())))),
                Ok(_) => {}
            }
        }
    }

    /// Looks, while its request runs, whether the caller is still there: ready when the connection broke. What it sends ahead is
    /// kept up to a bound. The end of what it sends is no farewell: it may still wait for its answer (RFC 9112 §9.6).
    pub(crate) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.body.is_done() && !self.ended && self.input.len() < MAX_AHEAD {
            match ready!(self.poll_fill(cx, READ)) {
                Ok(_) => {}
                Err(_) => return Poll::Ready(()),
            }
        }
        if self.broken { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Reads and throws away until the peer has sent all.
    pub(crate) fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while ready!(self.poll_fill(cx, buffer::SIZE))? > 0 {
            self.input.clear();
        }
        Poll::Ready(Ok(()))
    }

    /// Takes the stream and what was read of it, for a tunnel.
    pub(crate) fn take_stream(&mut self) -> Option<Rewind<Stream>> {
        self.keep_alive = false;
        let read = std::mem::take(&mut self.input).freeze();
        self.stream.take().map(|stream| Rewind::new(stream, read))
    }

    /// Queues what `write` appends.
    pub(crate) fn put_with(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        self.scratch.clear();
        write(&mut self.scratch);
        self.out.put(&self.scratch);
    }

    /// Queues a piece of a body. `chunked`: how it is framed.
    fn put(&mut self, data: Bytes, chunked: bool) {
        if data.is_empty() {
            return;
        }
        if !chunked {
            return self.out.put_data(data);
        }
        self.put_with(|out| http1::write_chunk_head(data.len(), out));
        self.out.put_data(data);
        self.out.put(b"\r\n");
    }

    fn put_end(&mut self, chunked: bool, trailers: Option<&Fields>) {
        if chunked {
            self.put_with(|out| http1::write_last_chunk(trailers, out));
        }
    }
}

impl Incoming {
    /// The body that comes behind a head of this framing. `request`: what breaks it is the caller's doing.
    pub(crate) fn body(io: &Shared, framing: Framing, request: bool) -> Body {
        if framing == Framing::None {
            return Body::Empty;
        }
        let small = io.lock().take_small_body();
        small.unwrap_or_else(|| Body::Http1(Self { io: io.clone(), request, ended: false }))
    }

    pub(crate) fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Next> {
        if self.ended {
            return Poll::Ready(None);
        }
        let mut io = self.io.lock();
        if io.dismissed {
            return Poll::Ready(Some(Err(Failure::CallerGone)));
        }
        let piece = ready!(io.poll_piece(cx, self.request));
        self.ended = !matches!(piece, Some(Err(_))) && io.body.is_done();
        Poll::Ready(piece)
    }

    pub(crate) fn is_end(&self) -> bool {
        self.ended || self.io.lock().body.is_done()
    }

    pub(crate) fn exact(&self) -> Option<u64> {
        if self.ended {
            return Some(0);
        }
        let io = self.io.lock();
        if io.body.is_done() { Some(0) } else { io.body.remaining() }
    }
}

/// Writes a body and flushes it. `trailers`: whether the peer wants them. Errors: why the body broke off, or none when the
/// connection did.
pub(crate) fn poll_body(
    io: &Shared,
    cx: &mut Context<'_>,
    body: &mut Option<Body>,
    chunked: bool,
    trailers: bool,
) -> Poll<Result<(), Option<Failure>>> {
    while let Some(source) = body {
        {
            let mut io = io.lock();
            if io.out.len() >= MAX_UNSENT {
                ready!(io.poll_flush(cx)).map_err(|_broken| None)?;
            }
        }
        match source.poll_piece(cx) {
            Poll::Ready(Some(Ok(Piece::Data(data)))) => {
                let end = source.is_end();
                let mut io = io.lock();
                io.put(data, chunked);
                if end {
                    io.put_end(chunked, None);
                    *body = None;
                }
            }
            Poll::Ready(Some(Ok(Piece::Trailers(fields)))) => {
                io.lock().put_end(chunked, Some(&fields).filter(|_| trailers));
                *body = None;
            }
            Poll::Ready(Some(Err(failure))) => {
                // What came before is the peer's all the same, so that it sees a message that was cut and not none.
                let _flushed = io.lock().poll_flush(cx).is_ready();
                return Poll::Ready(Err(Some(failure)));
            }
            Poll::Ready(None) => {
                io.lock().put_end(chunked, None);
                *body = None;
            }
            Poll::Pending => {
                let mut io = io.lock();
                if let Poll::Ready(Err(_broken)) = io.poll_flush(cx) {
                    return Poll::Ready(Err(None));
                }
                return Poll::Pending;
            }
        }
    }
    io.lock().poll_flush(cx).map_err(|_broken| None)
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
