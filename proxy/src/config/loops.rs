//! Loops: forward listeners whose destination is a port of the proxy itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use weft_core::api::proxy_config::{Forward, ForwardListener, ProxyConfigSpec};

/// A forward listener leads to a port of the proxy itself: a connection there would come back to it, for ever.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {destination} is the proxy's own {port}: a connection there would come back to it")]
pub struct LoopError {
    /// The destination's place in the file.
    pub field: String,
    /// The destination.
    pub destination: SocketAddr,
    /// The setting of the port that it is.
    pub port: String,
}

/// The forward listeners that lead to one of the ports the proxy listens on. `listening`: setting and address of each;
/// those whose number is not known yet (0) are left out. `own`: the workload's addresses, which are the proxy's too.
pub(crate) fn loops(forward: &Forward, listening: &[(String, SocketAddr)], own: &[IpAddr]) -> Vec<LoopError> {
    let ours = |ip: IpAddr| ip.is_loopback() || ip.is_unspecified() || own.contains(&ip);
    let reaches = |destination: SocketAddr, at: SocketAddr| {
        let (to, at_ip) = (destination.ip().to_canonical(), at.ip().to_canonical());
        let any = at_ip.is_unspecified() || to.is_unspecified();
        at.port() == destination.port() && at.port() != 0 && (to == at_ip || (any && ours(to) && ours(at_ip)))
    };
    let mut found = Vec::new();
    for (direction, listeners) in [("outbound", &forward.outbound), ("inbound", &forward.inbound)] {
        for (index, listener) in listeners.iter().enumerate() {
            let destination = listener.destination;
            if let Some((port, _)) = listening.iter().find(|(_, at)| reaches(destination, *at)) {
                let field = format!("spec.forward.{direction}[{index}].destination");
                found.push(LoopError { field, destination, port: port.clone() });
            }
        }
    }
    found
}

/// Where a proxy with this file listens, by setting; 0 where a free port is picked at the start.
pub(super) fn listening(spec: &ProxyConfigSpec) -> Vec<(String, SocketAddr)> {
    let any = IpAddr::from(Ipv6Addr::UNSPECIFIED);
    let ports = [
        ("outbound", any, spec.ports.outbound),
        ("inbound", any, spec.ports.inbound),
        ("admin", Ipv4Addr::LOCALHOST.into(), spec.ports.admin),
        ("metrics", spec.bind.unwrap_or(any), spec.ports.metrics),
    ];
    let mut all: Vec<_> =
        ports.iter().map(|(name, ip, port)| (format!("spec.ports.{name}"), SocketAddr::new(*ip, *port))).collect();
    for (direction, listeners) in [("outbound", &spec.forward.outbound), ("inbound", &spec.forward.inbound)] {
        let of = |(index, listener): (usize, &ForwardListener)| {
            (format!("spec.forward.{direction}[{index}].listen"), listener.listen)
        };
        all.extend(listeners.iter().enumerate().map(of));
    }
    all
}
