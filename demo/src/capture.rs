//! What really goes over an interface: tcpdump into a file, and the file read back.
//! `stop` sends a last datagram through the same capture and waits for it, so nothing before it is missing.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;

use crate::{
    netns::Inside,
    process::{Process, Program},
    wait::{DEADLINE, until},
};

/// The discard port: where the last datagram goes.
const LAST: u16 = 9;

/// A running capture.
#[derive(Debug)]
pub(crate) struct Capture {
    process: Process,
    file: PathBuf,
    name: String,
}

/// The packets of a stopped capture.
#[derive(Debug, Default)]
pub(crate) struct Packets(Vec<Packet>);

/// One TCP segment or UDP datagram.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Packet {
    /// From.
    pub(crate) source: SocketAddr,
    /// To.
    pub(crate) destination: SocketAddr,
    /// What it carries.
    pub(crate) payload: Vec<u8>,
}

impl Capture {
    /// Captures TCP on an interface of a namespace. Returns when tcpdump listens.
    ///
    /// Errors: tcpdump does not.
    pub(crate) async fn start(namespace: &str, interface: &str, directory: &Path, logs: &Path) -> Result<Self> {
        let name = format!("tcpdump-{namespace}-{interface}");
        let file = directory.join(format!("{name}.pcap"));
        let path = file.display().to_string();
        let filter = format!("tcp or udp port {LAST}");
        let words =
            ["tcpdump", "-i", interface, "-Z", "root", "-U", "--immediate-mode", "-s", "0", "-w", &path, &filter];
        let program = Program {
            name: name.clone(),
            namespace: Some(namespace.to_owned()),
            user: None,
            command: words.map(str::to_owned).into(),
            env: Vec::new(),
            directory: directory.to_owned(),
            stop: Signal::TERM,
        };
        let mut process = program.start(logs)?;
        process.prints("listening on", DEADLINE).await?;
        Ok(Self { process, file, name })
    }

    /// The packets so far; the last ones may still be on their way into the file.
    ///
    /// Errors: the file is not what tcpdump writes.
    pub(crate) fn so_far(&self) -> Result<Packets> {
        let bytes = fs::read(&self.file).with_context(|| format!("read {}", self.file.display()))?;
        Packets::parse(&bytes)
    }

    /// Ends it; all that was sent before is in it. `from` and `to`: a datagram that this interface carries.
    ///
    /// Errors: the datagram does not show up.
    pub(crate) async fn stop(mut self, from: &Inside, to: IpAddr) -> Result<Packets> {
        let last = format!("last of {}", self.name);
        from.datagram((to, LAST).into(), last.clone().into_bytes()).await.context("send the last datagram")?;
        until("the last datagram in the capture", DEADLINE, async || {
            ensure!(self.so_far()?.contain(last.as_bytes()), "not there");
            Ok(())
        })
        .await?;
        self.process.end(Duration::from_secs(5)).await?;
        self.so_far()
    }
}

impl Packets {
    /// Reads the pcap format (microseconds or nanoseconds, this machine's byte order, Ethernet), up to where it is
    /// written. What is neither TCP nor UDP is left out.
    ///
    /// Errors: another format.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self> {
        let word = |at: usize| bytes.get(at..at + 4).and_then(|word| word.try_into().ok()).map(u32::from_ne_bytes);
        if bytes.len() < 24 {
            return Ok(Self::default());
        }
        ensure!(matches!(word(0), Some(0xa1b2_c3d4 | 0xa1b2_3c4d)), "not a pcap file of this machine");
        ensure!(word(20) == Some(1), "not Ethernet");
        let (mut packets, mut at) = (Vec::new(), 24);
        while let Some(length) = word(at + 8) {
            let length = usize::try_from(length).context("a length")?;
            let Some(frame) = bytes.get(at + 16..at + 16 + length) else { break };
            packets.extend(packet(frame));
            at += 16 + length;
        }
        Ok(Self(packets))
    }

    /// All of them.
    pub(crate) fn all(&self) -> &[Packet] {
        &self.0
    }

    /// Whether these bytes are in one of the packets.
    pub(crate) fn contain(&self, bytes: &[u8]) -> bool {
        self.0.iter().any(|packet| packet.contains(bytes))
    }

    /// How many segments begin with a TLS record of application data (RFC 8446 §5.2) from or to this address and port.
    pub(crate) fn application_data(&self, addresses: &[IpAddr], port: u16) -> usize {
        let here = |end: &SocketAddr| end.port() == port && addresses.contains(&end.ip());
        let these = self.0.iter().filter(|packet| here(&packet.source) || here(&packet.destination));
        these.filter(|packet| packet.payload.starts_with(&[23, 3, 3])).count()
    }
}

impl Packet {
    /// Whether these bytes are in it.
    pub(crate) fn contains(&self, bytes: &[u8]) -> bool {
        self.payload.windows(bytes.len().max(1)).any(|window| window == bytes)
    }
}

/// Ethernet, IPv4 (RFC 791) or IPv6 (RFC 8200) without extension headers, TCP (RFC 9293) or UDP (RFC 768).
fn packet(frame: &[u8]) -> Option<Packet> {
    let ip = frame.get(14..)?;
    let (source, destination, protocol, segment): (IpAddr, IpAddr, u8, &[u8]) = match frame.get(12..14)? {
        [0x08, 0x00] => {
            let head = usize::from(ip.first()? & 0x0f) * 4;
            let total = usize::from(u16::from_be_bytes(ip.get(2..4)?.try_into().ok()?));
            let address = |at: usize| Some(IpAddr::from(<[u8; 4]>::try_from(ip.get(at..at + 4)?).ok()?));
            // Large segments that the card would cut have a total of 0.
            let end = if total == 0 { ip.len() } else { total.min(ip.len()) };
            (address(12)?, address(16)?, *ip.get(9)?, ip.get(head..end)?)
        }
        [0x86, 0xdd] => {
            let length = usize::from(u16::from_be_bytes(ip.get(4..6)?.try_into().ok()?));
            let address = |at: usize| Some(IpAddr::from(<[u8; 16]>::try_from(ip.get(at..at + 16)?).ok()?));
            let end = if length == 0 { ip.len() } else { (40 + length).min(ip.len()) };
            (address(8)?, address(24)?, *ip.get(6)?, ip.get(40..end)?)
        }
        _ => return None,
    };
    let port = |at: usize| Some(u16::from_be_bytes(segment.get(at..at + 2)?.try_into().ok()?));
    let payload = match protocol {
        6 => segment.get(usize::from(segment.get(12)? >> 4) * 4..)?,
        17 => segment.get(8..)?,
        _ => return None,
    };
    Some(Packet {
        source: (source, port(0)?).into(),
        destination: (destination, port(2)?).into(),
        payload: payload.to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([0x08, 0x00, 0x45, 0]);
        frame.extend(u16::try_from(40 + payload.len()).unwrap().to_be_bytes());
        frame.extend([0, 0, 0, 0, 64, 6, 0, 0, 10, 77, 0, 11, 10, 77, 0, 12]);
        frame.extend(40_000_u16.to_be_bytes());
        frame.extend(8080_u16.to_be_bytes());
        frame.extend([0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x18, 0, 0, 0, 0, 0, 0]);
        frame.extend(payload);
        // Ethernet pads short frames.
        frame.resize(frame.len().max(60), 0xff);
        frame
    }

    fn file(frames: &[Vec<u8>]) -> Vec<u8> {
        let mut file = Vec::new();
        for word in [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 262_144, 1] {
            file.extend(word.to_ne_bytes());
        }
        for frame in frames {
            let length = u32::try_from(frame.len()).unwrap();
            for word in [1, 2, length, length] {
                file.extend(u32::to_ne_bytes(word));
            }
            file.extend(frame);
        }
        file
    }

    #[test]
    fn segments_are_read_without_padding_and_up_to_the_end_of_the_file() {
        let mut bytes = file(&[frame(b"GET /"), frame(&[23, 3, 3, 0, 1, 9]), frame(b"cut")]);
        bytes.truncate(bytes.len() - 1);
        let packets = Packets::parse(&bytes).unwrap();
        assert_eq!(packets.all().len(), 2);
        assert_eq!(packets.all()[0].payload, b"GET /");
        assert_eq!(packets.all()[0].destination.to_string(), "10.77.0.12:8080");
        assert!(packets.contain(b"ET /") && !packets.contain(b"cut"));
        let here: IpAddr = "10.77.0.12".parse().unwrap();
        assert_eq!((packets.application_data(&[here], 8080), packets.application_data(&[here], 80)), (1, 0));
        assert!(Packets::parse(&[0; 30]).is_err());
    }
}
