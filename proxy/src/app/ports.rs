//! Opening the ports of the settings.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use tokio::net::TcpListener;

use crate::{
    agent::OwnPorts,
    config::{LoopError, Mode, Settings, loops},
    listener::socket::{Role, bind},
    stream::kernel::notice_stuck,
};

/// The addresses that a proxy listens on, with the numbers picked for 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// The admin port.
    pub admin: SocketAddr,
    /// Metrics and health.
    pub metrics: SocketAddr,
    /// Outbound capture; none at a gateway.
    pub outbound: Option<SocketAddr>,
    /// Inbound capture; none at a gateway.
    pub inbound: Option<SocketAddr>,
    /// Explicit outbound listeners, in the order of the file.
    pub forward_outbound: Vec<SocketAddr>,
    /// Explicit inbound listeners, in the order of the file.
    pub forward_inbound: Vec<SocketAddr>,
}

/// A port cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("{field}: cannot listen on {address}")]
pub struct PortError {
    /// The setting.
    pub field: String,
    /// Where.
    pub address: SocketAddr,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// One socket for each worker.
pub(super) struct Opened {
    pub(super) role: Role,
    pub(super) sockets: Vec<std::net::TcpListener>,
}

/// All open sockets.
pub(super) struct Ports {
    pub(super) addresses: Addresses,
    pub(super) admin: TcpListener,
    pub(super) metrics: TcpListener,
    pub(super) data: Vec<Opened>,
}

impl Ports {
    /// Opens them. The admin port comes first: its socket is not shared, so a second proxy on the same ports stops here.
    pub(super) async fn open(settings: &Settings) -> Result<Self, PortError> {
        let admin = (Ipv4Addr::LOCALHOST, settings.ports.admin).into();
        let admin = single("spec.ports.admin", admin).await?;
        let metrics = single("spec.ports.metrics", SocketAddr::new(settings.bind, settings.ports.metrics)).await?;
        let mut data = Vec::new();
        let mut addresses = Addresses {
            admin: local(&admin, "spec.ports.admin")?,
            metrics: local(&metrics, "spec.ports.metrics")?,
            outbound: None,
            inbound: None,
            forward_outbound: Vec::new(),
            forward_inbound: Vec::new(),
        };
        if settings.mode == Mode::Sidecar {
            let mut open = |field: String, address, role| {
                let (address, sockets) = shared(&field, address, settings.workers)?;
                data.push(Opened { role, sockets });
                Ok(address)
            };
            let any = |port| SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port);
            let (outbound, inbound) = (any(settings.ports.outbound), any(settings.ports.inbound));
            addresses.outbound = Some(open("spec.ports.outbound".to_owned(), outbound, Role::Outbound(None))?);
            addresses.inbound = Some(open("spec.ports.inbound".to_owned(), inbound, Role::Inbound(None))?);
            for (index, forward) in settings.forward.outbound.iter().enumerate() {
                let field = format!("spec.forward.outbound[{index}]");
                let role = Role::Outbound(Some(forward.destination));
                addresses.forward_outbound.push(open(field, forward.listen, role)?);
            }
            for (index, forward) in settings.forward.inbound.iter().enumerate() {
                let field = format!("spec.forward.inbound[{index}]");
                let role = Role::Inbound(Some(forward.destination));
                addresses.forward_inbound.push(open(field, forward.listen, role)?);
            }
        }
        Ok(Self { addresses, admin, metrics, data })
    }
}

impl Addresses {
    /// Forward listeners that lead to one of these, which is known only now that the free ports are picked.
    pub(super) fn loops(&self, settings: &Settings) -> Result<(), LoopError> {
        let mut listening: Vec<(String, SocketAddr)> =
            vec![("spec.ports.admin".to_owned(), self.admin), ("spec.ports.metrics".to_owned(), self.metrics)];
        listening.extend(self.outbound.map(|at| ("spec.ports.outbound".to_owned(), at)));
        listening.extend(self.inbound.map(|at| ("spec.ports.inbound".to_owned(), at)));
        for (direction, forwards) in [("outbound", &self.forward_outbound), ("inbound", &self.forward_inbound)] {
            let of = |(index, at): (usize, &SocketAddr)| (format!("spec.forward.{direction}[{index}].listen"), *at);
            listening.extend(forwards.iter().enumerate().map(of));
        }
        let found = loops(&settings.forward, &listening, &settings.workload.addresses);
        found.into_iter().next().map_or(Ok(()), Err)
    }

    /// What the agent has to know: peers reach only the port of metrics, unless it is on loopback.
    pub(super) fn of_agent(&self) -> OwnPorts {
        let metrics = (!self.metrics.ip().is_loopback()).then_some(self.metrics.port());
        let captures = self.outbound.iter().chain(&self.inbound);
        OwnPorts { metrics, hidden: captures.chain([&self.admin]).map(SocketAddr::port).collect() }
    }

    /// The numbers of all ports.
    pub(super) fn own_ports(&self) -> Vec<u16> {
        let captures = self.outbound.iter().chain(&self.inbound);
        let forwards = self.forward_outbound.iter().chain(&self.forward_inbound);
        [&self.admin, &self.metrics].into_iter().chain(captures).chain(forwards).map(SocketAddr::port).collect()
    }
}

impl fmt::Display for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "admin {}, metrics {}", self.admin, self.metrics)?;
        let forwards = |f: &mut fmt::Formatter<'_>, name, addresses: &[SocketAddr]| {
            addresses.iter().try_for_each(|address| write!(f, ", {name} {address}"))
        };
        forwards(f, "outbound", self.outbound.as_slice())?;
        forwards(f, "inbound", self.inbound.as_slice())?;
        forwards(f, "forward outbound", &self.forward_outbound)?;
        forwards(f, "forward inbound", &self.forward_inbound)
    }
}

/// Opens one socket on the same address for each worker.
pub(super) fn shared(
    field: &str,
    address: SocketAddr,
    workers: usize,
) -> Result<(SocketAddr, Vec<std::net::TcpListener>), PortError> {
    let mut at = address;
    let mut sockets = Vec::with_capacity(workers);
    for _ in 0..workers.max(1) {
        let wrong = |source| PortError { field: field.to_owned(), address, source };
        let listener = bind(at).map_err(wrong)?;
        at = listener.local_addr().map_err(wrong)?;
        sockets.push(listener.into_std().map_err(wrong)?);
    }
    Ok((at, sockets))
}

async fn single(field: &str, address: SocketAddr) -> Result<TcpListener, PortError> {
    let wrong = |source| PortError { field: field.to_owned(), address, source };
    let listener = match TcpListener::bind(address).await {
        // No IPv6 on this host.
        Err(error) if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) && error.kind() != io::ErrorKind::AddrInUse => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        bound => bound,
    };
    let listener = listener.map_err(wrong)?;
    notice_stuck(&listener);
    Ok(listener)
}

fn local(listener: &TcpListener, field: &str) -> Result<SocketAddr, PortError> {
    let address = (Ipv4Addr::UNSPECIFIED, 0).into();
    listener.local_addr().map_err(|source| PortError { field: field.to_owned(), address, source })
}
