//! The application behind every pair: one nginx process that answers with 128 fixed bytes.
//!
//! It serves HTTP/1.1 on one port and HTTP/2 (prior knowledge) on another, so the last hop speaks what the client speaks,
//! for every pair alike. Its own count of requests (`stub_status`) is the bench's count: the load generators report only
//! a whole run, and CPU per request must leave out the run's beginning, where connections and handshakes are made.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::process::{Child, Launcher};
use crate::scenario::Protocol;

/// The body of every answer, 128 bytes.
pub const BODY: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\
                        0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// Where HTTP/1.1 is served too, on the same port: a second endpoint that comes and goes.
pub const SECOND: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// A running server.
#[derive(Debug)]
pub struct Server {
    child: Child,
    http1: SocketAddr,
    http2: SocketAddr,
}

impl Server {
    /// Starts nginx on `cpu` with its files in `dir` and waits until it answers.
    ///
    /// # Errors
    /// nginx does not start; the error carries its log.
    pub async fn start(launcher: &Launcher, nginx: &Path, dir: &Path, cpu: usize) -> Result<Self> {
        let (http1, http2) = (free_address()?, free_address()?);
        let dir = dir.join("nginx");
        std::fs::create_dir_all(&dir)?;
        let config = dir.join("nginx.conf");
        std::fs::write(&config, configuration(&dir, http1, http2))?;
        let args = [Path::new("-e"), Path::new("stderr"), Path::new("-p"), &dir, Path::new("-c"), &config];
        let child = launcher.start("nginx", cpu, nginx, args)?;
        let mut server = Self { child, http1, http2 };
        for _ in 0..200 {
            server.child.check()?;
            if server.requests().await.is_ok() {
                return Ok(server);
            }
            tokio::time::sleep(std::time::Duration::from_millis(25)).await;
        }
        bail!("nginx does not answer on {http1}; the end of its log:\n{}", server.child.log_tail())
    }

    /// Where it speaks `protocol`.
    #[must_use]
    pub fn address(&self, protocol: Protocol) -> SocketAddr {
        match protocol {
            Protocol::Http1 | Protocol::Tcp => self.http1,
            Protocol::Http2 => self.http2,
        }
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.child.pid()
    }

    /// Requests served so far, this one included.
    ///
    /// # Errors
    /// The server does not answer, or with something else.
    pub async fn requests(&self) -> Result<u64> {
        let mut stream = TcpStream::connect(self.http1).await?;
        stream.write_all(b"GET /requests HTTP/1.0\r\n\r\n").await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        parse_stub_status(&text).with_context(|| format!("nginx stub_status answered {text:?}"))
    }
}

/// Where ports are looked for: below those that the kernel gives to outgoing connections (by default from 32768), whose last
/// ones still stand in the way of a listener for a minute.
const PORTS: std::ops::Range<u16> = 10_000..32_000;

/// An address of this machine with a port that nobody listens on at the moment, another each time.
///
/// # Errors
/// No port is free.
pub fn free_address() -> Result<SocketAddr> {
    static GIVEN: AtomicU16 = AtomicU16::new(0);
    // Two benches at once begin at different places.
    let start = std::process::id() % 20_000;
    for _ in PORTS {
        // Programs that listen with SO_REUSEPORT would share one that was given twice, and each get a part of the connections.
        let number = u32::from(GIVEN.fetch_add(1, Ordering::Relaxed)) + start;
        let port = PORTS.start + u16::try_from(number % u32::from(PORTS.end - PORTS.start))?;
        if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            return Ok(listener.local_addr()?);
        }
    }
    bail!("no port from {} to {} is free", PORTS.start, PORTS.end)
}

/// One process without a master, so that one process id holds everything.
fn configuration(dir: &Path, http1: SocketAddr, http2: SocketAddr) -> String {
    let (dir, port) = (dir.display(), http1.port());
    format!(
        r#"daemon off; master_process off; pid {dir}/pid; error_log stderr error;
events {{ worker_connections 4096; }}
http {{
  access_log off; tcp_nodelay on; keepalive_requests 4000000000; keepalive_timeout 600s;
  client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy; fastcgi_temp_path {dir}/fastcgi;
  uwsgi_temp_path {dir}/uwsgi; scgi_temp_path {dir}/scgi;
  default_type text/plain;
  server {{ listen {http1}; listen {SECOND}:{port}; location / {{ return 200 "{BODY}"; }} location = /requests {{ stub_status; }} }}
  server {{ listen {http2} http2; location / {{ return 200 "{BODY}"; }} }}
}}
"#
    )
}

/// The third number of the line below `server accepts handled requests`.
fn parse_stub_status(text: &str) -> Option<u64> {
    let mut lines = text.lines().skip_while(|line| !line.starts_with("server accepts handled requests"));
    lines.next()?;
    lines.next()?.split_whitespace().nth(2)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_the_third_number() {
        let text = "HTTP/1.1 200 OK\r\nServer: nginx/1.22.1\r\n\r\nActive connections: 2 \n\
                    server accepts handled requests\n 16 15 149850 \nReading: 0 Writing: 1 Waiting: 1 \n";
        assert_eq!(parse_stub_status(text), Some(149_850));
        assert_eq!(parse_stub_status("HTTP/1.1 404 Not Found\r\n\r\n 1 2 3 \n"), None);
        assert_eq!(parse_stub_status("server accepts handled requests\n 1 2\n"), None);
    }

    #[test]
    fn the_body_has_the_length_that_the_documentation_names() {
        assert_eq!(BODY.len(), 128);
    }
}
