//! Bodies as they arrive, without copying their data.
//! Spec: RFC 9112 §6, §7.1; RFC 9110 §6.5.1 for what a trailer section may not hold.

use bytes::{Buf, Bytes, BytesMut};
use httparse::{Header, Status};

use super::{Error, Framing, Limits, hop::is_hop_by_hop, line, section, trim};
use crate::{
    fields::{Fields, Name},
    head::is_value,
};

/// Most digits of a chunk's size: what a u64 holds.
const MAX_DIGITS: usize = 16;
/// Bytes that the extensions of one chunk may have.
const MAX_EXTENSION: usize = 256;
/// Bytes that the extensions of all chunks of a body may have.
const MAX_EXTENSIONS: usize = 16 * 1024;

/// Reads a body out of what arrives.
#[derive(Debug)]
pub struct BodyDecoder {
    state: State,
    /// Bytes that extensions had so far.
    extensions: usize,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// So many bytes are left; never 0.
    Length(u64),
    UntilClose,
    ChunkSize,
    /// So many bytes of the chunk are left; never 0.
    ChunkData(u64),
    ChunkEnd,
    Trailers,
    Done,
}

/// A piece of a body.
#[derive(Debug, PartialEq)]
pub enum Piece {
    /// Some bytes, at least one.
    Data(Bytes),
    /// The trailer fields that may be given on; [`Piece::End`] follows.
    Trailers(Fields),
    /// There is no more.
    End,
}

impl BodyDecoder {
    /// At the beginning of a body of this framing.
    pub fn new(framing: Framing) -> Self {
        let state = match framing {
            Framing::None | Framing::Length(0) => State::Done,
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::ChunkSize,
            Framing::UntilClose => State::UntilClose,
        };
        Self { state, extensions: 0 }
    }

    /// Takes the next piece out of `buffer`. `Ok(None)`: more bytes are needed.
    /// Errors: malformed chunks or trailers, or trailers above a limit; the body is of no more use then.
    pub fn decode(&mut self, buffer: &mut BytesMut, limits: &Limits) -> Result<Option<Piece>, Error> {
        loop {
            match self.state {
                State::Done => return Ok(Some(Piece::End)),
                State::Length(left) => {
                    let Some((data, left)) = take(buffer, left) else { return Ok(None) };
                    self.state = if left == 0 { State::Done } else { State::Length(left) };
                    return Ok(Some(Piece::Data(data)));
                }
                State::UntilClose => {
                    return Ok(take(buffer, u64::MAX).map(|(data, _)| Piece::Data(data)));
                }
                State::ChunkData(left) => {
                    let Some((data, left)) = take(buffer, left) else { return Ok(None) };
                    self.state = if left == 0 { State::ChunkEnd } else { State::ChunkData(left) };
                    return Ok(Some(Piece::Data(data)));
                }
                State::ChunkEnd => match &**buffer {
                    [b'\r', b'\n', ..] => {
                        buffer.advance(2);
                        self.state = State::ChunkSize;
                    }
                    [] | [b'\r'] => return Ok(None),
                    _ => return Err(Error::Malformed("a chunk does not end with CRLF")),
                },
                State::ChunkSize => match self.chunk_size(buffer)? {
                    None => return Ok(None),
                    Some(0) => self.state = State::Trailers,
                    Some(size) => self.state = State::ChunkData(size),
                },
                State::Trailers => {
                    let within = buffer.get(..limits.head).unwrap_or(buffer);
                    let Some(end) = section(within)? else {
                        return if buffer.len() > limits.head { Err(Error::TooLarge) } else { Ok(None) };
                    };
                    let fields = trailers(buffer.get(..end).unwrap_or_default(), limits)?;
                    buffer.advance(end);
                    self.state = State::Done;
                    return Ok(Some(if fields.is_empty() { Piece::End } else { Piece::Trailers(fields) }));
                }
            }
        }
    }

    /// The peer closed. Errors: the body was not at its end.
    pub fn end_of_stream(&mut self) -> Result<(), Error> {
        if !matches!(self.state, State::UntilClose | State::Done) {
            return Err(Error::Truncated);
        }
        self.state = State::Done;
        Ok(())
    }

    /// Whether all of it was taken out; trailers too.
    pub fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// The bytes that are left, where that is known.
    pub fn remaining(&self) -> Option<u64> {
        match self.state {
            State::Done => Some(0),
            State::Length(left) => Some(left),
            State::UntilClose | State::ChunkSize | State::ChunkData(_) | State::ChunkEnd | State::Trailers => None,
        }
    }

    /// Takes a line with a chunk's size out.
    fn chunk_size(&mut self, buffer: &mut BytesMut) -> Result<Option<u64>, Error> {
        const MAX_LINE: usize = MAX_DIGITS + MAX_EXTENSION + 2;
        let within = buffer.get(..MAX_LINE).unwrap_or(buffer);
        let Some(len) = line(within)? else {
            let long = within.len() == MAX_LINE;
            return if long { Err(Error::Malformed("the line of a chunk's size is too long")) } else { Ok(None) };
        };
        let text = within.get(..len.saturating_sub(2)).unwrap_or_default();
        let digits = text.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
        let (size, extension) = text.split_at(digits);
        if digits == 0 || digits > MAX_DIGITS {
            return Err(Error::Malformed("a chunk's size is not valid"));
        }
        if !extension.is_empty() && (trim(extension).first() != Some(&b';') || !extension.iter().all(|b| is_value(*b)))
        {
            return Err(Error::Malformed("a chunk's extension is not valid"));
        }
        self.extensions += extension.len();
        if extension.len() > MAX_EXTENSION || self.extensions > MAX_EXTENSIONS {
            return Err(Error::Malformed("the extensions of chunks are too long"));
        }
        let size = size
            .iter()
            .fold(0_u64, |size, digit| size << 4 | char::from(*digit).to_digit(16).map(u64::from).unwrap_or_default());
        buffer.advance(len);
        Ok(Some(size))
    }
}

/// Takes out at most `left` bytes and says what is left then; `None` when the buffer is empty.
fn take(buffer: &mut BytesMut, left: u64) -> Option<(Bytes, u64)> {
    let len = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
    (len > 0).then(|| (crate::input::take(buffer, len), left - len as u64))
}

/// The fields of a whole trailer section that may be given on.
fn trailers(section: &[u8], limits: &Limits) -> Result<Fields, Error> {
    let mut fields = Fields::default();
    if section == b"\r\n" {
        return Ok(fields);
    }
    let mut slots = vec![httparse::EMPTY_HEADER; limits.fields.min(section.len() / 4)];
    let headers: &[Header<'_>] = match httparse::parse_headers(section, &mut slots) {
        Ok(Status::Complete((_, headers))) => headers,
        Err(httparse::Error::TooManyHeaders) => return Err(Error::TooLarge),
        Ok(Status::Partial) | Err(_) => return Err(Error::Malformed("the trailers are not valid")),
    };
    for header in headers {
        let known = Name::of(header.name.as_bytes());
        if is_trailer(known) {
            fields.push_as(known, header.name.as_bytes(), trim(header.value));
        }
    }
    Ok(fields)
}

/// Whether a trailer section may hold it: nothing that frames, routes or authenticates a message, or says how to read it.
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
            | Name::Te
            | Name::Trailer
    );
    !forbidden && !is_hop_by_hop(name)
}
