//! Serving HTTP/1 and HTTP/2 on a stream, within the limits of `limits`.
//!
//! # Defaults
//! Heads and streams: `limits`. A silent HTTP/2 peer: `http2`. Head and idle times: `connection`.

use std::{
    future::{Future, poll_fn},
    num::NonZeroU32,
    panic::AssertUnwindSafe,
    pin::pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt;
use parking_lot::Mutex;
use tokio::time::{sleep, timeout};
use weft_core::failure::Failure;
use weft_http::{
    fields::Name,
    head::{Response, Version},
    http1::{self as codec, Framing, ParsedRequest},
    http2::{Code, Config},
};

use super::{
    answer::Answer,
    body::Body,
    head::Head,
    hop,
    http1::{self, Incoming, Io, SharedIo},
    http2::{Arrival, Driver, Mux, StreamRef, Tunnel},
    interim::Interim,
    limits::{MAX_FIELDS, MAX_HEAD_HOP, MAX_HEAD_HTTP2, Peer, Windows},
    muxes::Muxes,
    respond,
    stall::{Timeouts, Watch},
};
use crate::{
    connection::{Close, Connection, InFlight},
    stream::{self, DELIVERY, Stream},
    telemetry::Metrics,
};

/// Longest wait for a caller to close after GOAWAY while it has no request in flight: longer than the 1 s of a lost segment.
const FAREWELL: Duration = Duration::from_millis(1_500);
/// Longest wait after GOAWAY for a caller to read the end of its last answers.
const TAIL: Duration = Duration::from_secs(10);
/// How long the rest of a request that was answered early is read, so that the answer is not lost: longer than the 1 s after which
/// a lost segment is sent again (RFC 6298).
const LINGER: Duration = Duration::from_millis(2_500);

/// Answers the requests of a connection.
pub(crate) trait Handler: Send + Sync + 'static {
    /// Answers one request. Errors: the request did not reach the application; the answer is REFUSED_STREAM.
    /// `in_flight` is to be kept until the answer has been sent.
    fn handle(
        &self,
        head: Head,
        body: Body,
        in_flight: InFlight,
    ) -> impl Future<Output = Result<Answer, Refused>> + Send;

    /// Answers a request whose head is malformed or over a limit.
    fn refuse(&self, failure: &Failure) -> Answer;
}

/// The request did not reach the application; it may be tried elsewhere whatever its method.
#[derive(Debug)]
pub(crate) struct Refused;

/// Serves HTTP/1 until the connection ends.
pub(crate) async fn http1(
    stream: Stream,
    connection: Arc<Connection>,
    handler: Arc<impl Handler>,
    metrics: Arc<Metrics>,
    stall: Timeouts,
) {
    let io = Arc::new(Mutex::new(Io::new(stream, None, Some(connection.clone()))));
    let _hang_up = HangUp(io.clone());
    let mut registered = false;
    loop {
        let next = poll_fn(|cx| {
            let mut io = io.lock();
            let polled = io.poll_request(cx);
            let begun = !io.is_silent();
            if polled.is_pending() && begun {
                connection.head_begins();
            }
            match (&polled, connection.poll_close(cx, &mut registered)) {
                (Poll::Pending, Some(Close::Now(_))) if begun => Poll::Ready(Err(Failure::HeadTimeout)),
                (Poll::Pending, Some(Close::Now(_))) => Poll::Ready(Ok(None)),
                // A request already started may complete, within the header timeout.
                (Poll::Pending, Some(Close::Gracefully)) if !begun => Poll::Ready(Ok(None)),
                _ => polled,
            }
        });
        match next.await {
            Ok(Some(parsed)) => {
                // Boxed: an idle connection holds nothing of a request.
                let kept = Box::pin(exchange(&io, parsed, &connection, &handler, (&metrics, stall))).await;
                if !kept {
                    return;
                }
            }
            Ok(None) => return,
            Err(failure) => {
                let _in_flight = connection.request_starts();
                let answer = handler.refuse(&failure);
                write(&io, &connection, answer, &Asked::default(), true, stall).await;
                return linger(&io).await;
            }
        }
    }
}

/// Closes the connection when its task ends, although a body that is still read shares it.
struct HangUp(SharedIo);

impl Drop for HangUp {
    fn drop(&mut self) {
        self.0.lock().abort();
    }
}

/// How the answer to a request is to be written, as the request says.
#[derive(Debug)]
struct Asked {
    version: Version,
    head_only: bool,
    trailers: bool,
    expects_continue: bool,
}

impl Default for Asked {
    fn default() -> Self {
        Self { version: Version::Http11, head_only: false, trailers: false, expects_continue: false }
    }
}

/// Serves one request. Returns whether another may follow.
async fn exchange(
    io: &SharedIo,
    parsed: ParsedRequest,
    connection: &Arc<Connection>,
    handler: &Arc<impl Handler>,
    (metrics, stall): (&Metrics, Timeouts),
) -> bool {
    let in_flight = connection.request_starts();
    let ParsedRequest { head: request, framing, absolute, .. } = parsed;
    let asked = Asked {
        version: request.version,
        head_only: request.method() == "HEAD",
        trailers: request.fields.first(Name::Te).is_some_and(|te| te.eq_ignore_ascii_case(b"trailers")),
        expects_continue: parsed.expects_continue,
    };
    let head = match Head::http1(request, framing, absolute) {
        Ok(mut head) => {
            head.interim = Some(Interim::Http1(io.clone(), asked.version));
            head
        }
        Err(failure) => {
            write(io, connection, handler.refuse(&failure), &asked, true, stall).await;
            linger(io).await;
            return false;
        }
    };
    let body = Incoming::body(io, framing, true);
    let answer = {
        let mut call = pin!(caught(handler.handle(head, body, in_flight), metrics));
        poll_fn(|cx| match call.as_mut().poll(cx) {
            Poll::Ready(answer) => Poll::Ready(Some(answer)),
            Poll::Pending => match connection.why_cut() {
                Some(failure) => Poll::Ready(Some(Ok(respond::to(&failure, false)))),
                None => {
                    let mut io = io.lock();
                    // Interim answers leave as they come.
                    if let Poll::Ready(Err(_broken)) = io.poll_unsent(cx) {
                        return Poll::Ready(None);
                    }
                    io.poll_gone(cx).map(|()| None)
                }
            },
        })
        .await
    };
    // The caller is gone; its request ends with it.
    let Some(answer) = answer else { return false };
    let mut answer = answer.unwrap_or_else(|Refused| respond::to(&Failure::RefusedStream, false));
    if let Some(switch) = answer.switch.take() {
        // The tunnel's bytes follow the whole request (RFC 9110 §7.8).
        if io.lock().body_has_ended() && switched(io, &answer.head, &switch.protocol).await {
            let caller = io.lock().take_stream();
            if let Some(caller) = caller {
                (switch.join)(Box::new(caller)).await;
            }
        }
        return false;
    }
    let last = connection.is_closing();
    if !write(io, connection, answer, &asked, last, stall).await {
        return false;
    }
    let reusable = io.lock().is_reusable() && !last;
    if !reusable {
        linger(io).await;
    }
    reusable
}

/// Runs one request; a panic in it becomes a 500 and hurts nothing else.
fn caught(
    call: impl Future<Output = Result<Answer, Refused>>,
    metrics: &Metrics,
) -> impl Future<Output = Result<Answer, Refused>> {
    // No async block: it would hold the call twice.
    AssertUnwindSafe(call).catch_unwind().map(|result| {
        result.unwrap_or_else(|_panic| {
            metrics.event("weft_panics_total", &[("where", "request")]);
            Ok(respond::to(&Failure::Panic, false))
        })
    })
}

/// Writes an answer. Returns whether it was written in whole.
async fn write(
    io: &SharedIo,
    connection: &Connection,
    answer: Answer,
    asked: &Asked,
    last: bool,
    stall: Timeouts,
) -> bool {
    let Answer { mut head, body, .. } = answer;
    let bodiless = asked.head_only || matches!(head.status, 204 | 304);
    let framing = match body.exact() {
        _ if bodiless => Framing::None,
        Some(length) => Framing::Length(length),
        None if asked.version == Version::Http10 => Framing::UntilClose,
        None => Framing::Chunked,
    };
    head.version = asked.version;
    {
        let mut io = io.lock();
        // A caller that was not told to send its body may send it all the same, or not: nothing can follow.
        io.keep_alive &= !last && framing != Framing::UntilClose && !io.is_held_back(asked.expects_continue);
        // Other bodies show by themselves that they were cut.
        io.unfinished = framing == Framing::UntilClose;
        let connection = if io.keep_alive { codec::Connection::KeepAlive } else { codec::Connection::Close };
        io.put_with(|out| codec::write_response(&head, framing, connection, out));
    }
    let mut body = (!bodiless).then_some(body);
    let chunked = framing == Framing::Chunked;
    let mut watch = Watch::new(stall);
    let written = poll_fn(|cx| {
        let written = http1::poll_body(io, cx, &mut body, chunked, asked.trailers);
        if written.is_ready() {
            return written;
        }
        let mut io = io.lock();
        let failure = match connection.why_cut() {
            Some(failure) => failure,
            None if io.poll_gone(cx).is_ready() => return Poll::Ready(Err(None)),
            None if io.poll_stalled(cx, &mut watch).is_ready() => {
                io.reset();
                Failure::Stalled
            }
            None => return Poll::Pending,
        };
        if let Some(body) = &mut body {
            body.break_off(&failure);
        }
        Poll::Ready(Err(Some(failure)))
    });
    let written = written.await.is_ok();
    if written {
        io.lock().unfinished = false;
    } else if framing == Framing::UntilClose {
        break_off(io).await;
    }
    written
}

/// Resets a connection behind the bytes of an answer that broke off and would otherwise have ended with its connection.
async fn break_off(io: &SharedIo) {
    // An error shows when the stream is broken off, too.
    let _flushed = timeout(DELIVERY, poll_fn(|cx| io.lock().poll_flush(cx))).await.is_ok();
    let stream = io.lock().take_stream();
    if let Some(mut stream) = stream {
        stream::abort(&mut stream).await;
    }
}

async fn switched(io: &SharedIo, head: &Response, protocol: &[u8]) -> bool {
    let connection = codec::Connection::Upgrade(protocol);
    io.lock().put_with(|out| codec::write_response(head, Framing::None, connection, out));
    poll_fn(|cx| io.lock().poll_flush(cx)).await.is_ok()
}

/// Closes a connection whose caller may still be sending: its bytes are read and discarded for a moment, or the kernel would
/// discard the answer (RFC 9112 §9.6).
async fn linger(io: &SharedIo) {
    {
        let mut io = io.lock();
        if !io.is_owed() {
            return;
        }
        io.dismiss();
    }
    let discard = poll_fn(|cx| {
        let mut io = io.lock();
        if io.poll_shutdown(cx)?.is_pending() {
            return Poll::Pending;
        }
        io.poll_discard(cx)
    });
    if let Ok(Err(error)) = timeout(LINGER, discard).await {
        tracing::trace!(%error, "the caller is gone");
    }
}

/// Serves HTTP/2 until the connection ends. `max_streams`: the most requests in flight; `None`: the default for such a peer.
pub(crate) async fn http2(
    stream: Stream,
    connection: Arc<Connection>,
    handler: Arc<impl Handler>,
    metrics: Arc<Metrics>,
    muxes: Muxes,
    max_streams: Option<NonZeroU32>,
) {
    let peer = Peer::of(connection.flow.direction, connection.identity.is_some());
    let max_streams = max_streams.map_or(peer.max_streams(), NonZeroU32::get);
    let windows = Windows::new(peer, max_streams);
    let config = Config {
        max_streams,
        stream_window: windows.stream,
        grown_window: windows.grown,
        growth: windows.growth,
        connection_window: Windows::CONNECTION,
        max_head: if peer == Peer::Proxy { MAX_HEAD_HOP } else { MAX_HEAD_HTTP2 },
        max_fields: MAX_FIELDS,
        connect_protocol: true,
    };
    let mux = Mux::server(config, muxes.heads.clone(), peer == Peer::Proxy);
    muxes.watch(&mux);
    let mut driver = Driver::new(stream, mux.clone(), |arrival| {
        let in_flight = connection.request_starts();
        let (handler, metrics) = (handler.clone(), metrics.clone());
        match arrival {
            Arrival::Request(stream, request, body) => {
                tokio::spawn(async move {
                    let head_only = request.method() == "HEAD";
                    let result = match Head::http2(request, peer == Peer::Proxy) {
                        Ok(mut head) => {
                            head.interim = Some(stream.interim(peer == Peer::Proxy));
                            // What comes on the stream is the tunnel's, but for a body that another proxy tells of.
                            let body = if head.upgrade.is_some() {
                                let told = (peer == Peer::Proxy).then(|| hop::upgrade_body(&head.request.fields));
                                body.first(told.flatten().unwrap_or(0))
                            } else {
                                body
                            };
                            let mut call = pin!(caught(handler.handle(head, body, in_flight), &metrics));
                            poll_fn(|cx| match call.as_mut().poll(cx) {
                                Poll::Ready(answer) => Poll::Ready(Some(answer)),
                                Poll::Pending => stream.poll_gone(cx).map(|()| None),
                            })
                            .await
                        }
                        Err(failure) => Some(Ok(handler.refuse(&failure))),
                    };
                    match result {
                        Some(Ok(answer)) => send(stream, answer, head_only).await,
                        Some(Err(Refused)) => stream.reset(Code::RefusedStream),
                        None => {}
                    }
                });
            }
            Arrival::Bad(stream, failure) => {
                let answer = handler.refuse(&failure);
                tokio::spawn(async move {
                    send(stream, answer, false).await;
                    drop(in_flight);
                });
            }
        }
    });
    let mut registered = false;
    let mut farewell = pin!(async {
        sleep(FAREWELL).await;
        // A caller that does not close after GOAWAY has no request in flight, or is given the time to end it.
        connection.unused().await;
        // The answer's end may still be on its way to a slow caller.
        let taken = async {
            while !mux.is_done() {
                sleep(LINGER / 10).await;
            }
        };
        let _in_time = timeout(TAIL, taken).await;
    });
    let result = poll_fn(|cx| {
        let driven = driver.poll(cx);
        if driven.is_ready() {
            return driven;
        }
        match connection.poll_close(cx, &mut registered) {
            None => Poll::Pending,
            Some(Close::Now(_)) if connection.has_begun() => Poll::Ready(Ok(())),
            Some(_) => {
                mux.retire();
                farewell.as_mut().poll(cx).map(Ok)
            }
        }
    });
    if let Err(error) = result.await {
        tracing::debug!(%error, peer = %connection.flow.peer, "HTTP/2 connection ended");
    }
    let goodbye = timeout(FAREWELL, poll_fn(|cx| driver.poll_close(cx))).await;
    if let Ok(Err(error)) = goodbye {
        tracing::trace!(%error, "the caller is gone");
    }
}

/// Sends an answer on its stream.
async fn send(stream: StreamRef, answer: Answer, head_only: bool) {
    let Answer { head, body, switch } = answer;
    if let Some(switch) = switch {
        if stream.send_answer(&head, false).is_ok() {
            (switch.join)(Box::new(Tunnel::new(stream))).await;
        }
        return;
    }
    let end = head_only || matches!(head.status, 204 | 304) || body.is_end();
    if stream.send_answer(&head, end).is_err() || end {
        return;
    }
    if let Err(Some(failure)) = stream.send_body(body, Bytes::new()).await {
        tracing::debug!(failure = %failure.report(), "an answer broke off");
    }
}
