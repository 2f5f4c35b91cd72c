//! The floor: a TLS relay that forwards bytes and parses nothing, a lower bound for proxies over mutual TLS.
//!
//! Two processes, each one thread: `outbound` takes plain connections and opens a TLS 1.3 connection with a client
//! certificate for each; `inbound` takes those and opens a plain connection to the server. Half-close passes through.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::ValueEnum;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional_with_sizes};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::certs::{Certs, Identity};

/// Which half of the pair a relay is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Side {
    /// Plain in, TLS out.
    Outbound,
    /// TLS in, plain out.
    Inbound,
}

impl Side {
    /// The name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
        }
    }
}

/// One relay process.
pub struct Relay {
    connect: SocketAddr,
    buffer: usize,
    tls: Tls,
}

enum Tls {
    Outbound(TlsConnector),
    Inbound(TlsAcceptor),
}

impl Relay {
    /// A relay towards `connect` with two copy buffers of `buffer` bytes for each connection.
    ///
    /// # Errors
    /// The certificates cannot be read.
    pub fn new(side: Side, connect: SocketAddr, certs: &Certs, buffer: usize) -> Result<Self> {
        let tls = match side {
            Side::Outbound => Tls::Outbound(Arc::new(certs.client_config(Identity::Client, &[])?).into()),
            Side::Inbound => Tls::Inbound(Arc::new(certs.server_config(Identity::Server)?).into()),
        };
        Ok(Self { connect, buffer, tls })
    }

    /// Serves `listener` until the runtime ends. A broken connection ends that connection only.
    ///
    /// # Errors
    /// The listener itself fails.
    pub async fn serve(self, listener: TcpListener) -> Result<()> {
        let relay = Arc::new(self);
        loop {
            let (stream, peer) = listener.accept().await.context("accept")?;
            let relay = Arc::clone(&relay);
            tokio::spawn(async move {
                if let Err(error) = relay.forward(stream).await {
                    eprintln!("connection from {peer}: {error}");
                }
            });
        }
    }

    async fn forward(&self, downstream: TcpStream) -> io::Result<()> {
        downstream.set_nodelay(true)?;
        match &self.tls {
            Tls::Outbound(connector) => {
                let upstream = self.dial().await?;
                let name = ServerName::IpAddress(Ipv4Addr::LOCALHOST.into());
                let upstream = connector.connect(name, upstream).await?;
                self.copy(downstream, upstream).await
            }
            Tls::Inbound(acceptor) => {
                let downstream = acceptor.accept(downstream).await?;
                let upstream = self.dial().await?;
                self.copy(downstream, upstream).await
            }
        }
    }

    async fn dial(&self) -> io::Result<TcpStream> {
        let stream = TcpStream::connect(self.connect).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    async fn copy<A, B>(&self, mut a: A, mut b: B) -> io::Result<()>
    where
        A: AsyncRead + AsyncWrite + Unpin,
        B: AsyncRead + AsyncWrite + Unpin,
    {
        copy_bidirectional_with_sizes(&mut a, &mut b, self.buffer, self.buffer).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
