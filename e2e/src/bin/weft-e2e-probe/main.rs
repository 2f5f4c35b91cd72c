//! `weft-e2e-probe`: the small network program of the end-to-end tests.
//! `listen` tells each client where it was going (by original destination); `connect` dials and prints the answer;
//! `load` sends steady HTTP/1.1 requests and says how each ended; `relay` does what a proxy does with captured bytes, and nothing else; `datagram` sends one UDP packet.
//! The original destination comes from `weft_redirect::original_dst`, as in the proxy, so the tests cover that module.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use socket2::{Domain, Protocol, Socket, Type};
use weft_redirect::original_dst::{Destination, original_dst, set_mark};

mod load;

const CONNECT: Duration = Duration::from_secs(3);

/// The network program of the end-to-end tests
#[derive(Parser)]
enum Probe {
    /// Listen dual-stack; answer every connection with "PORT captured ADDRESS" or "PORT direct"
    Listen {
        /// Ports to listen on
        ports: Vec<u16>,
        /// Reset every connection instead of answering
        #[arg(long)]
        reset: bool,
    },
    /// Connect, print the answer; "error: KIND" and exit 1 when that fails
    Connect {
        /// Where to
        address: SocketAddr,
        /// SO_MARK of the socket
        #[arg(long)]
        mark: Option<u32>,
        /// How long the connection may take
        #[arg(long, default_value = "3000")]
        timeout_ms: u64,
        /// Bytes to send first
        #[arg(long, default_value = "")]
        send: String,
    },
    /// Listen dual-stack; pass every captured connection on to its destination, close direct ones
    Relay {
        /// Ports to listen on
        ports: Vec<u16>,
        /// SO_MARK of the onward connection
        #[arg(long)]
        mark: u32,
    },
    /// Send requests at a steady rate; one line each: "AT TOOK STATUS" or "AT TOOK error: KIND", in milliseconds
    Load {
        /// Where to
        address: SocketAddr,
        /// The host field
        authority: String,
        /// The path
        path: String,
        /// Requests per second
        #[arg(long)]
        rate: u32,
        /// POST instead of GET
        #[arg(long)]
        post: bool,
    },
    /// Send one UDP packet, broadcast allowed
    Datagram {
        /// Where to
        address: SocketAddr,
        /// What
        text: String,
    },
}

fn main() -> Result<ExitCode> {
    match Probe::parse() {
        Probe::Listen { ports, reset: false } => serve(&ports, |port, stream| tell(port, &stream))?,
        // Closing with a linger of zero sends a reset.
        Probe::Listen { ports, reset: true } => {
            serve(&ports, |_, stream| Ok(socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?))?;
        }
        Probe::Relay { ports, mark } => serve(&ports, move |port, stream| relay(port, stream, mark))?,
        Probe::Load { address, authority, path, rate, post } => {
            load::run(&load::Request { address, authority, path, post }, rate)?;
        }
        Probe::Datagram { address, text } => {
            let socket = UdpSocket::bind(if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
            socket.set_broadcast(true)?;
            socket.send_to(text.as_bytes(), address)?;
        }
        Probe::Connect { address, mark, timeout_ms, send } => match converse(address, mark, timeout_ms, &send) {
            Ok(answer) => print!("{answer}"),
            Err(error) => {
                println!("error: {:?}", error.kind());
                return Ok(ExitCode::FAILURE);
            }
        },
    }
    Ok(ExitCode::SUCCESS)
}

/// Accepts on every port, each connection in a thread; says "ready" once when all listen; does not return.
fn serve(ports: &[u16], handle: impl Fn(u16, TcpStream) -> Result<()> + Clone + Send + 'static) -> Result<()> {
    let listeners = ports.iter().map(|port| listen(*port)).collect::<Result<Vec<_>>>()?;
    println!("ready");
    let mut threads = Vec::new();
    for (port, listener) in ports.iter().copied().zip(listeners) {
        let handle = handle.clone();
        threads.push(thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let handle = handle.clone();
                thread::spawn(move || {
                    if let Err(error) = handle(port, stream) {
                        println!("{port} error: {error:#}");
                    }
                });
            }
        }));
    }
    for thread in threads {
        thread.join().ok();
    }
    Ok(())
}

fn listen(port: u16) -> Result<TcpListener> {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_only_v6(false)?;
    socket.set_reuse_address(true)?;
    let address = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port);
    socket.bind(&address.into()).with_context(|| format!("bind {address}"))?;
    socket.listen(128)?;
    Ok(socket.into())
}

fn tell(port: u16, mut stream: &TcpStream) -> Result<()> {
    let line = match original_dst(stream)? {
        Destination::Captured(address) => format!("{port} captured {address}\n"),
        Destination::Direct => format!("{port} direct\n"),
    };
    print!("{line}");
    stream.write_all(line.as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    // The client's end of input: otherwise unread bytes would turn our close into a reset.
    io::copy(&mut stream, &mut io::sink())?;
    Ok(())
}

fn relay(port: u16, downstream: TcpStream, mark: u32) -> Result<()> {
    let peer = downstream.peer_addr()?;
    let Destination::Captured(address) = original_dst(&downstream)? else {
        println!("{port} direct from {peer}: closed");
        return Ok(());
    };
    println!("{port} {address} from {peer}");
    let upstream = connect(address, Some(mark), CONNECT).with_context(|| format!("connect to {address}"))?;
    let (down_reader, up_writer) = (downstream.try_clone()?, upstream.try_clone()?);
    let there = thread::spawn(move || pump(down_reader, up_writer));
    let back = pump(upstream, downstream);
    there.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    back?;
    Ok(())
}

fn pump(mut from: TcpStream, mut to: TcpStream) -> io::Result<()> {
    io::copy(&mut from, &mut to)?;
    to.shutdown(Shutdown::Write)
}

fn connect(address: SocketAddr, mark: Option<u32>, timeout: Duration) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if let Some(mark) = mark {
        set_mark(&socket, mark)?;
    }
    socket.connect_timeout(&address.into(), timeout)?;
    // `connect_timeout` leaves the socket blocking, with no time limit on reads.
    Ok(socket.into())
}

fn converse(address: SocketAddr, mark: Option<u32>, timeout_ms: u64, send: &str) -> io::Result<String> {
    let mut stream = connect(address, mark, Duration::from_millis(timeout_ms))?;
    stream.write_all(send.as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
