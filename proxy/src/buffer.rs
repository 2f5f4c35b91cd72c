//! Read buffers. They belong to the worker's thread, not to its connections: a connection borrows one while it reads and parses.
//! So an idle connection holds no buffer, and the next buffer is still in the CPU's cache.
//! A part that is split off and kept prevents the buffer from being lent again until the part is dropped; small parts are copied.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Size of a buffer: eight whole TLS records. The rest of a record that does not fit has to be copied.
pub(crate) const SIZE: usize = 8 * (16 * 1024 + 22);
/// Parts up to this size, in bytes, are copied out: a part that is kept occupies at most 16 times its size.
pub(crate) const SMALL: usize = weft_http::SMALL;
/// With less room than this, in bytes, no further read is made: a whole TLS record has to fit.
pub(crate) const RECORD: usize = 17 * 1024;
/// Buffers that a thread keeps.
const KEPT: usize = 8;

thread_local! {
    static BUFFERS: RefCell<Vec<BytesMut>> = const { RefCell::new(Vec::new()) };
}

/// The outcome of a read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Filled {
    /// Bytes; 0 means the end of the stream.
    pub(crate) count: usize,
    /// The last read was pending: the task is woken when there is more.
    pub(crate) drained: bool,
}

/// Lends an empty buffer.
pub(crate) fn lend<R>(user: impl FnOnce(&mut BytesMut) -> R) -> R {
    let free = BUFFERS.with_borrow_mut(|kept| {
        let free = kept.iter_mut().rposition(|buffer| buffer.try_reclaim(SIZE))?;
        Some(kept.remove(free))
    });
    let mut buffer = free.unwrap_or_else(|| BytesMut::with_capacity(SIZE));
    let result = user(&mut buffer);
    buffer.clear();
    BUFFERS.with_borrow_mut(|kept| {
        if kept.len() == KEPT {
            kept.remove(0);
        }
        kept.push(buffer);
    });
    result
}

/// Takes the content out of a lent buffer.
pub(crate) fn detach(buffer: &mut BytesMut) -> BytesMut {
    if buffer.len() <= 2 * SMALL { BytesMut::from(&buffer[..]) } else { buffer.split() }
}

/// Copies kept bytes to a reader, as far as it has room. Once all are taken the memory is freed, which the connection would
/// otherwise hold to its end.
pub(crate) fn hand_on(kept: &mut Bytes, reader: &mut ReadBuf<'_>) {
    reader.put_slice(&kept.split_to(kept.len().min(reader.remaining())));
    if kept.is_empty() {
        *kept = Bytes::new();
    }
}

/// Reads until the stream is pending, at most `most` bytes and as many as the buffer has room for. An error behind bytes is kept
/// in `failed`, and returned by the next call.
pub(crate) fn poll_fill<S: AsyncRead + Unpin>(
    stream: &mut S,
    cx: &mut Context<'_>,
    buffer: &mut BytesMut,
    most: usize,
    failed: &mut Option<io::Error>,
) -> Poll<io::Result<Filled>> {
    if let Some(error) = failed.take() {
        return Poll::Ready(Err(error));
    }
    let room = most.min(buffer.capacity() - buffer.len());
    let mut count = 0;
    loop {
        match tokio_util::io::poll_read_buf(Pin::new(&mut *stream), cx, &mut (&mut *buffer).limit(room - count)) {
            // An end behind bytes is found again by the next call.
            Poll::Ready(Ok(0)) => return Poll::Ready(Ok(Filled { count, drained: false })),
            Poll::Ready(Ok(more)) => count += more,
            Poll::Ready(Err(error)) if count == 0 => return Poll::Ready(Err(error)),
            Poll::Ready(Err(error)) => {
                *failed = Some(error);
                return Poll::Ready(Ok(Filled { count, drained: false }));
            }
            Poll::Pending if count == 0 => return Poll::Pending,
            Poll::Pending => return Poll::Ready(Ok(Filled { count, drained: true })),
        }
        if room - count < RECORD {
            return Poll::Ready(Ok(Filled { count, drained: false }));
        }
    }
}

/// Writes until all is written or the stream is pending. One piece takes a cheaper system call than several.
pub(crate) fn poll_drain<S: AsyncWrite + Unpin>(
    stream: &mut S,
    cx: &mut Context<'_>,
    buffer: &mut impl Buf,
) -> Poll<io::Result<()>> {
    while buffer.has_remaining() {
        let stream = Pin::new(&mut *stream);
        let count = if buffer.chunk().len() == buffer.remaining() {
            let count = ready!(stream.poll_write(cx, buffer.chunk()))?;
            buffer.advance(count);
            count
        } else {
            ready!(tokio_util::io::poll_write_buf(stream, cx, buffer))?
        };
        if count == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
    }
    Poll::Ready(Ok(()))
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    /// Gives what it holds, one by one.
    struct Source(Vec<io::Result<usize>>);

    impl AsyncRead for Source {
        fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            if self.0.is_empty() {
                return Poll::Pending;
            }
            buf.put_slice(&vec![b'x'; self.0.remove(0)?]);
            Poll::Ready(Ok(()))
        }
    }

    fn fill(source: &mut Source, most: usize, failed: &mut Option<io::Error>) -> Poll<io::Result<Filled>> {
        lend(|buffer| poll_fill(source, &mut Context::from_waker(Waker::noop()), buffer, most, failed))
    }

    #[test]
    fn a_buffer_is_lent_again_once_nobody_holds_a_part_of_it() {
        let address = |buffer: &mut BytesMut| buffer.as_ptr() as usize;
        let first = lend(address);
        let part: Bytes = lend(|buffer| {
            assert_eq!(address(buffer), first);
            buffer.extend_from_slice(&[b'x'; 3 * SMALL]);
            detach(buffer).freeze()
        });
        assert_ne!(lend(address), first);
        drop(part);
        // The one that was used last is still warm.
        let second = lend(address);
        lend(|one| {
            assert_eq!(address(one), second);
            lend(|other| assert_eq!(address(other), first));
        });
    }

    #[test]
    fn a_small_part_does_not_keep_a_buffer() {
        let first = lend(|buffer| buffer.as_ptr() as usize);
        let part = lend(|buffer| {
            buffer.extend_from_slice(b"small");
            detach(buffer)
        });
        assert_eq!(lend(|buffer| buffer.as_ptr() as usize), first);
        assert_eq!(&part[..], b"small");
    }

    #[test]
    fn all_that_is_there_is_read_and_what_stopped_it_is_told() {
        let mut failed = None;
        let mut source = Source(vec![Ok(10), Ok(20)]);
        assert!(matches!(fill(&mut source, SIZE, &mut failed), Poll::Ready(Ok(Filled { count: 30, drained: true }))));
        assert!(fill(&mut source, SIZE, &mut failed).is_pending());
        source.0 = vec![Ok(10), Ok(0), Ok(0)];
        assert!(matches!(fill(&mut source, SIZE, &mut failed), Poll::Ready(Ok(Filled { count: 10, drained: false }))));
        assert!(matches!(fill(&mut source, SIZE, &mut failed), Poll::Ready(Ok(Filled { count: 0, .. }))));
        source.0 = vec![Ok(10), Err(io::ErrorKind::ConnectionReset.into())];
        assert!(matches!(fill(&mut source, SIZE, &mut failed), Poll::Ready(Ok(Filled { count: 10, drained: false }))));
        assert!(matches!(fill(&mut source, SIZE, &mut failed), Poll::Ready(Err(_))));
    }

    #[test]
    fn no_more_is_read_than_was_asked_for() {
        let mut failed = None;
        let mut source = Source(vec![Ok(16 * 1024), Ok(16 * 1024), Ok(1024)]);
        let most = 33 * 1024;
        assert!(matches!(
            fill(&mut source, most, &mut failed),
            Poll::Ready(Ok(Filled { count: 0x8000, drained: false }))
        ));
        assert!(matches!(fill(&mut source, most, &mut failed), Poll::Ready(Ok(Filled { count: 1024, drained: true }))));
    }
}
