//! The packets on a host's wire: tcpdump on its `eth0`, to prove that a hop is encrypted, or that it is not.
//! `stop` first sends a marker datagram through the same capture and waits for it, so nothing before it is missing.

use std::fs;
use std::path::PathBuf;
use std::process;

use anyhow::{Context, Result, bail};

use crate::host::Host;
use crate::process::Process;
use crate::wait::{DEADLINE, until};

mod streams;

/// The discard port: where the marker goes.
const MARKER_PORT: u16 = 9;

/// A running capture of one host.
#[derive(Debug)]
pub struct Capture {
    host: Host,
    process: Process,
    file: PathBuf,
}

/// The packets of a stopped capture, as tcpdump wrote them (pcap).
#[derive(Debug)]
pub struct Packets(Vec<u8>);

impl Capture {
    /// Captures what matches `filter` (pcap-filter(7)) until [`Capture::stop`]. Returns when tcpdump listens.
    ///
    /// Errors: tcpdump is missing, or refuses the filter.
    pub fn start(host: &Host, filter: &str) -> Result<Self> {
        let file = host.directory().join("wire.pcap");
        let path = file.to_str().context("the path is not UTF-8")?;
        let filter = format!("({filter}) or udp port {MARKER_PORT}");
        let arguments =
            ["-i", "eth0", "-Z", "root", "-U", "--immediate-mode", "-B", "16384", "-s", "0", "-w", path, &filter];
        let mut process = host.spawn("tcpdump", &arguments, &[])?;
        process.wait_for_output("listening on", DEADLINE)?;
        Ok(Self { host: host.clone(), process, file })
    }

    /// Ends the capture; everything sent before this call is in it.
    ///
    /// Errors: the marker does not show up, or tcpdump does not end.
    pub fn stop(mut self) -> Result<Packets> {
        let marker = format!("weft-e2e marker {} {}", process::id(), self.host.namespace());
        let to = format!("10.77.255.255:{MARKER_PORT}");
        self.host.exec_ok("weft-e2e-probe", &["datagram", &to, &marker])?;
        until("the marker in the capture", DEADLINE, || {
            let packets = Packets(fs::read(&self.file).context("read the capture")?);
            if packets.contain(marker.as_bytes()) { Ok(()) } else { bail!("the marker is not in the capture") }
        })?;
        self.process.terminate(DEADLINE)?;
        Ok(Packets(fs::read(&self.file).context("read the capture")?))
    }
}

impl Packets {
    /// Whether these bytes were seen in one piece. A text that a packet boundary may split should be short.
    pub fn contain(&self, bytes: &[u8]) -> bool {
        self.0.windows(bytes.len().max(1)).any(|window| window == bytes)
    }

    /// Follows every TCP connection and counts those directions that are TLS records from the first byte to the last.
    ///
    /// Errors: one of them carried something else, with what it began with; or the capture is not one of ours.
    pub fn tls_only(&self) -> Result<usize> {
        let streams = streams::collect(&self.0).context("read the capture")?;
        for (name, bytes) in &streams {
            streams::ensure_tls(bytes).with_context(|| format!("{name}: {:?}", start(bytes)))?;
        }
        Ok(streams.len())
    }
}

fn start(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.get(..60).unwrap_or(bytes)).into_owned()
}
