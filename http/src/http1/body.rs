//! Decoding of message bodies, mostly without copying their data.
//! Spec: RFC 9112 §6, §7.1; RFC 9110 §6.5.1 for fields that are not allowed in trailers.

use bytes::{Buf, Bytes, BytesMut};
use httparse::{Header, Status};

use super::{Error, Framing, Limits, hop::is_hop_by_hop, line, section, trim};
use crate::{
    fields::{Fields, Name},
    head::{Excess, is_value},
};

/// Most hex digits of a chunk size: those of a u64.
const MAX_DIGITS: usize = 16;
/// Most bytes of the extensions of one chunk.
const MAX_EXTENSION: usize = 256;
/// Most bytes of the extensions of all chunks of a body.
const MAX_EXTENSIONS: usize = 16 * 1024;

/// Decodes one body incrementally.
#[derive(Debug)]
pub struct BodyDecoder {
    state: DecoderState,
    /// Bytes of chunk extensions so far.
    extensions: usize,
}

#[derive(Clone, Copy, Debug)]
enum DecoderState {
    /// Bytes left of the body; never 0.
    Length(u64),
    UntilClose,
    ChunkSize,
    /// Bytes left of the chunk; never 0.
    ChunkData(u64),
    ChunkEnd,
    Trailers,
    Done,
}

/// A piece of a body.
#[derive(Debug, PartialEq)]
pub enum Piece {
    /// At least one byte.
    Data(Bytes),
    /// The trailer fields that may be forwarded, at least one; [`Piece::End`] follows.
    Trailers(Fields),
    /// The body is complete.
    End,
}

impl BodyDecoder {
    /// A decoder for a body with this framing.
    pub fn new(framing: Framing) -> Self {
        let state = match framing {
            Framing::None | Framing::Length(0) => DecoderState::Done,
            Framing::Length(length) => DecoderState::Length(length),
            Framing::Chunked => DecoderState::ChunkSize,
            Framing::UntilClose => DecoderState::UntilClose,
        };
        Self { state, extensions: 0 }
    }

    /// Removes the next piece from `buffer`. `Ok(None)`: more bytes are needed.
    /// Errors: malformed chunks or trailers, or trailers above a limit; the decoder cannot be used after one.
    pub fn decode(&mut self, buffer: &mut BytesMut, limits: &Limits) -> Result<Option<Piece>, Error> {
        loop {
            match self.state {
                DecoderState::Done => return Ok(Some(Piece::End)),
                // RFC 9112 §6.3, 6: the body has exactly Content-Length bytes; bytes after it belong to the next message.
                DecoderState::Length(left) => {
                    let Some((data, left)) = take(buffer, left) else { return Ok(None) };
                    self.state = if left == 0 { DecoderState::Done } else { DecoderState::Length(left) };
                    return Ok(Some(Piece::Data(data)));
                }
                // RFC 9112 §6.3, 8: only `end_of_stream` ends the body.
                DecoderState::UntilClose => {
                    return Ok(take(buffer, u64::MAX).map(|(data, _)| Piece::Data(data)));
                }
                // RFC 9112 §7.1: chunk = chunk-size [ chunk-ext ] CRLF chunk-data CRLF. A chunk is passed on in parts, so a large
                // chunk is never buffered whole.
                DecoderState::ChunkData(left) => {
                    let Some((data, left)) = take(buffer, left) else { return Ok(None) };
                    self.state = if left == 0 { DecoderState::ChunkEnd } else { DecoderState::ChunkData(left) };
                    return Ok(Some(Piece::Data(data)));
                }
                // A chunk-size that is shorter than the data would shift the next chunk-size line into the data (smuggling), so
                // anything but CRLF is an error.
                DecoderState::ChunkEnd => match &**buffer {
                    [b'\r', b'\n', ..] => {
                        buffer.advance(2);
                        self.state = DecoderState::ChunkSize;
                    }
                    [] | [b'\r'] => return Ok(None),
                    _ => return Err(Error::Malformed("chunk does not end with CRLF")),
                },
                DecoderState::ChunkSize => match self.chunk_size(buffer)? {
                    None => return Ok(None),
                    // last-chunk has size 0; the trailer section and an empty line follow.
                    Some(0) => self.state = DecoderState::Trailers,
                    Some(size) => self.state = DecoderState::ChunkData(size),
                },
                DecoderState::Trailers => {
                    // RFC 9112 §7.1.2. The section is parsed once it is complete; its size is bounded like that of a head.
                    let within = buffer.get(..limits.head).unwrap_or(buffer);
                    let Some(end) = section(within)? else {
                        return if buffer.len() > limits.head {
                            Err(Error::TrailersTooLarge(Excess::Bytes(limits.head)))
                        } else {
                            Ok(None)
                        };
                    };
                    let fields = trailers(buffer.get(..end).unwrap_or_default(), limits)?;
                    buffer.advance(end);
                    self.state = DecoderState::Done;
                    return Ok(Some(if fields.is_empty() { Piece::End } else { Piece::Trailers(fields) }));
                }
            }
        }
    }

    /// Marks the end of the connection. Errors: the body is incomplete (RFC 9112 §8).
    pub fn end_of_stream(&mut self) -> Result<(), Error> {
        if !matches!(self.state, DecoderState::UntilClose | DecoderState::Done) {
            return Err(Error::Truncated);
        }
        self.state = DecoderState::Done;
        Ok(())
    }

    /// Whether the body and its trailers are complete.
    pub fn is_done(&self) -> bool {
        matches!(self.state, DecoderState::Done)
    }

    /// The bytes left, if Content-Length gives them.
    pub fn remaining(&self) -> Option<u64> {
        match self.state {
            DecoderState::Done => Some(0),
            DecoderState::Length(left) => Some(left),
            DecoderState::UntilClose
            | DecoderState::ChunkSize
            | DecoderState::ChunkData(_)
            | DecoderState::ChunkEnd
            | DecoderState::Trailers => None,
        }
    }

    /// Removes a chunk-size line and returns the size. `Ok(None)`: the line is incomplete.
    fn chunk_size(&mut self, buffer: &mut BytesMut) -> Result<Option<u64>, Error> {
        const MAX_LINE: usize = MAX_DIGITS + MAX_EXTENSION + 2;
        let within = buffer.get(..MAX_LINE).unwrap_or(buffer);
        let Some(len) = line(within)? else {
            let long = within.len() == MAX_LINE;
            return if long { Err(Error::Malformed("chunk size line too long")) } else { Ok(None) };
        };
        let text = within.get(..len.saturating_sub(2)).unwrap_or_default();
        let digits = text.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
        let (size, extension) = text.split_at(digits);
        if digits == 0 || digits > MAX_DIGITS {
            return Err(Error::Malformed("invalid chunk size"));
        }
        if !extension.is_empty() && (trim(extension).first() != Some(&b';') || !extension.iter().all(|b| is_value(*b)))
        {
            return Err(Error::Malformed("invalid chunk extension"));
        }
        // Extensions are ignored (RFC 9112 §7.1.1), so a peer could send any amount of them with one-byte chunks.
        self.extensions += extension.len();
        if extension.len() > MAX_EXTENSION || self.extensions > MAX_EXTENSIONS {
            return Err(Error::Malformed("chunk extensions too long"));
        }
        let size = size
            .iter()
            .fold(0_u64, |size, digit| size << 4 | char::from(*digit).to_digit(16).map(u64::from).unwrap_or_default());
        buffer.advance(len);
        Ok(Some(size))
    }
}

/// Removes at most `left` bytes and returns them with the rest of `left`; `None` if the buffer is empty.
fn take(buffer: &mut BytesMut, left: u64) -> Option<(Bytes, u64)> {
    let len = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
    (len > 0).then(|| (crate::input::take(buffer, len), left - len as u64))
}

/// The fields of a complete trailer section that may be forwarded.
fn trailers(section: &[u8], limits: &Limits) -> Result<Fields, Error> {
    let mut fields = Fields::default();
    if section == b"\r\n" {
        return Ok(fields);
    }
    let mut slots = vec![httparse::EMPTY_HEADER; limits.fields.min(section.len() / 4)];
    let headers: &[Header<'_>] = match httparse::parse_headers(section, &mut slots) {
        Ok(Status::Complete((_, headers))) => headers,
        Err(httparse::Error::TooManyHeaders) => return Err(Error::TrailersTooLarge(Excess::Fields(limits.fields))),
        Ok(Status::Partial) | Err(_) => return Err(Error::Malformed("invalid trailer section")),
    };
    for header in headers {
        let known = Name::of(header.name.as_bytes());
        if is_trailer(known) {
            fields.push_as(known, header.name.as_bytes(), trim(header.value));
        }
    }
    Ok(fields)
}

/// Whether a trailer section may contain the field: none that is reserved for proxies, or is for framing, routing, authentication or content processing
/// (RFC 9110 §6.5.1).
pub(super) fn is_trailer(name: Name) -> bool {
    let forbidden = matches!(
        name,
        Name::Authorization
            | Name::ContentLength
            | Name::ContentType
            | Name::Cookie
            | Name::Expect
            | Name::Host
            | Name::SetCookie
            | Name::Reserved
            | Name::Te
            | Name::Trailer
    );
    !forbidden && !is_hop_by_hop(name)
}
