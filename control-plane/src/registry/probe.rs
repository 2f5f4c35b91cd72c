//! Probing the address of a silent workload: a refused connection proves that nothing listens there any more.
//! A timeout proves nothing: the control plane itself may be cut off. A redirect on this machine would hand a probe to the
//! local proxy, so probes carry the mark of the proxies' own connections, which redirects exempt.

use std::{
    io::{self, ErrorKind},
    net::SocketAddr,
    num::NonZeroU32,
    time::Duration,
};

use futures_util::future::BoxFuture;
use socket2::SockRef;
use tokio::net::{TcpSocket, TcpStream};

use super::RegisteredWorkload;

/// Longest wait for an answer.
const TIMEOUT: Duration = Duration::from_secs(1);

/// Finds out whether anything listens at the address of a workload.
pub trait Probe: Send + Sync {
    /// Whether connections to the workload are refused.
    fn refused<'a>(&'a self, workload: &'a RegisteredWorkload) -> BoxFuture<'a, bool>;
}

/// A TCP connection to each of its ports, at its first address.
#[derive(Clone, Copy, Debug, Default)]
pub struct TcpProbe {
    /// `SO_MARK` of the connections. Without the privilege (CAP_NET_ADMIN) they go without it.
    pub mark: Option<NonZeroU32>,
}

impl TcpProbe {
    /// Opens a connection.
    pub(crate) async fn connect(self, target: SocketAddr) -> io::Result<TcpStream> {
        self.socket(target)?.connect(target).await
    }

    fn socket(self, target: SocketAddr) -> io::Result<TcpSocket> {
        let socket = if target.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        if let Some(mark) = self.mark {
            match SockRef::from(&socket).set_mark(mark.get()) {
                Err(error) if error.kind() != ErrorKind::PermissionDenied => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        Ok(socket)
    }
}

impl Probe for TcpProbe {
    fn refused<'a>(&'a self, workload: &'a RegisteredWorkload) -> BoxFuture<'a, bool> {
        Box::pin(async move {
            let Some(address) = workload.addresses.first() else { return false };
            let mut refused = false;
            for port in &workload.ports {
                let target = SocketAddr::new(*address, port.proxy_port.unwrap_or(port.port).get());
                match tokio::time::timeout(TIMEOUT, self.connect(target)).await {
                    Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => refused = true,
                    Ok(Ok(_) | Err(_)) | Err(_) => return false,
                }
            }
            refused
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_probe_carries_its_mark_where_the_kernel_lets_it_and_is_made_where_not() {
        let allowed = {
            let socket = TcpSocket::new_v4().unwrap();
            SockRef::from(&socket).set_mark(1).is_ok()
        };
        let probe = TcpProbe { mark: NonZeroU32::new(0x7765_6674) };
        for target in ["127.0.0.1:9", "[::1]:9"] {
            let Ok(socket) = probe.socket(target.parse().unwrap()) else { continue };
            let mark = SockRef::from(&socket).mark().unwrap();
            assert_eq!(mark, if allowed { 0x7765_6674 } else { 0 }, "{target}");
        }
    }
}
