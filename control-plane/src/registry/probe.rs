//! Asking a silent workload's own address: a refused connection is proof that nothing listens there any more.
//! No answer is no proof: it may be this side that is cut off.

use std::{io::ErrorKind, net::SocketAddr, time::Duration};

use futures_util::future::BoxFuture;
use tokio::net::TcpStream;

use crate::state::RegisteredWorkload;

/// Longest wait for an answer.
const TIMEOUT: Duration = Duration::from_secs(1);

/// Asks whether anything listens where a workload was.
pub trait Probe: Send + Sync {
    /// Whether connections to the workload are refused.
    fn refused<'a>(&'a self, workload: &'a RegisteredWorkload) -> BoxFuture<'a, bool>;
}

/// A TCP connection to each of its ports, at its first address.
#[derive(Clone, Copy, Debug)]
pub struct TcpProbe;

impl Probe for TcpProbe {
    fn refused<'a>(&'a self, workload: &'a RegisteredWorkload) -> BoxFuture<'a, bool> {
        Box::pin(async move {
            let Some(address) = workload.addresses.first() else { return false };
            let mut refused = false;
            for port in &workload.ports {
                let target = SocketAddr::new(*address, port.proxy_port.unwrap_or(port.port).get());
                match tokio::time::timeout(TIMEOUT, TcpStream::connect(target)).await {
                    Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => refused = true,
                    Ok(Ok(_) | Err(_)) | Err(_) => return false,
                }
            }
            refused
        })
    }
}
