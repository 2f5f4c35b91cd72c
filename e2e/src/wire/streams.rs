//! The TCP streams in a capture: pcap (Ethernet) -> IPv4 and IPv6 -> bytes of each direction in order -> TLS records.
//! A capture on a veth pair loses nothing, so a gap is an error; what is sent twice counts once.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};

const ETHERNET: usize = 14;
const TCP: u8 = 6;

/// The bytes of every direction that carried some, by `source -> destination`.
///
/// Errors: not a pcap file of Ethernet in this machine's byte order, or a gap in a stream.
pub(super) fn collect(pcap: &[u8]) -> Result<BTreeMap<String, Vec<u8>>> {
    ensure!(number(pcap, 0)? == 0xa1b2_c3d4 && number(pcap, 20)? == 1, "not a pcap file with Ethernet frames");
    let mut streams: BTreeMap<String, (u32, BTreeMap<usize, &[u8]>)> = BTreeMap::new();
    let mut at = 24;
    while at < pcap.len() {
        let length = usize::try_from(number(pcap, at + 8)?)?;
        at += 16;
        let frame = slice(pcap, at, length)?;
        at += length;
        let Some(segment) = segment(frame)? else { continue };
        // SYN counts as one number of the sequence.
        if segment.syn {
            streams.insert(segment.name, (segment.sequence.wrapping_add(1), BTreeMap::new()));
            continue;
        }
        let Some((start, segments)) = streams.get_mut(&segment.name) else { continue };
        if segment.payload.is_empty() {
            continue;
        }
        let longest = segments.entry(usize::try_from(segment.sequence.wrapping_sub(*start))?).or_default();
        if longest.len() < segment.payload.len() {
            *longest = segment.payload;
        }
    }
    let mut whole = BTreeMap::new();
    for (name, (_, segments)) in streams.into_iter().filter(|(_, (_, segments))| !segments.is_empty()) {
        let bytes = join(&segments).with_context(|| name.clone())?;
        whole.insert(name, bytes);
    }
    Ok(whole)
}

/// In order, what came twice only once. Two processors may show the segments of a stream out of order.
fn join(segments: &BTreeMap<usize, &[u8]>) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for (offset, payload) in segments {
        let known = bytes
            .len()
            .checked_sub(*offset)
            .with_context(|| format!("a gap of {} bytes at offset {}", offset - bytes.len(), bytes.len()))?;
        bytes.extend_from_slice(payload.get(known..).unwrap_or_default());
    }
    Ok(bytes)
}

/// Whether these are records of TLS 1.2 and 1.3 and nothing else (RFC 8446 §5.1); the last one may be cut.
///
/// Errors: something else is among them.
pub(super) fn ensure_tls(bytes: &[u8]) -> Result<()> {
    let mut at = 0;
    while let Some(head) = bytes.get(at..at + 5) {
        let [kind, major, minor, high, low] = *head else { break };
        ensure!((20..=23).contains(&kind) && major == 3 && minor <= 3, "no TLS record at {at}");
        at += 5 + usize::from(u16::from_be_bytes([high, low]));
    }
    Ok(())
}

struct Segment<'a> {
    name: String,
    sequence: u32,
    syn: bool,
    payload: &'a [u8],
}

fn segment(frame: &[u8]) -> Result<Option<Segment<'_>>> {
    let kind = slice(frame, 12, 2)?;
    let packet = slice(frame, ETHERNET, frame.len() - ETHERNET)?;
    // Frames are padded, so the end is what the IP header says.
    let (protocol, header, end, addresses) = match *kind {
        [0x08, 0x00] => {
            let header = usize::from(byte(packet, 0)? & 15) * 4;
            (byte(packet, 9)?, header, usize::from(short(packet, 2)?), (slice(packet, 12, 4)?, slice(packet, 16, 4)?))
        }
        [0x86, 0xdd] => {
            (byte(packet, 6)?, 40, 40 + usize::from(short(packet, 4)?), (slice(packet, 8, 16)?, slice(packet, 24, 16)?))
        }
        _ => return Ok(None),
    };
    if protocol != TCP {
        return Ok(None);
    }
    let tcp = slice(packet, header, end.checked_sub(header).context("a packet is too short")?)?;
    let data = usize::from(byte(tcp, 12)? >> 4) * 4;
    let (source, destination) = (short(tcp, 0)?, short(tcp, 2)?);
    Ok(Some(Segment {
        name: format!("{:x?}:{source} -> {:x?}:{destination}", addresses.0, addresses.1),
        sequence: u32::from_be_bytes(slice(tcp, 4, 4)?.try_into()?),
        syn: byte(tcp, 13)? & 2 != 0,
        payload: slice(tcp, data, tcp.len().saturating_sub(data))?,
    }))
}

fn slice(bytes: &[u8], at: usize, length: usize) -> Result<&[u8]> {
    bytes.get(at..at + length).with_context(|| format!("{length} bytes at {at} are missing"))
}

fn byte(bytes: &[u8], at: usize) -> Result<u8> {
    bytes.get(at).copied().with_context(|| format!("the byte at {at} is missing"))
}

fn short(bytes: &[u8], at: usize) -> Result<u16> {
    Ok(u16::from_be_bytes(slice(bytes, at, 2)?.try_into()?))
}

fn number(bytes: &[u8], at: usize) -> Result<u32> {
    Ok(u32::from_ne_bytes(slice(bytes, at, 4)?.try_into()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_and_nothing_else() {
        ensure_tls(&[22, 3, 1, 0, 2, 9, 9, 23, 3, 3, 0, 1, 7]).unwrap();
        ensure_tls(&[23, 3, 3, 1, 0, 7]).unwrap();
        for wrong in [&b"GET / HTTP/1.1"[..], &[22, 3, 1, 0, 1, 9, b'h', b'e', b'l', b'l', b'o']] {
            ensure_tls(wrong).unwrap_err();
        }
    }
}
