//! Judging what a proxy registers: every field has a bound, and the namespace must be that of its certificate.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    num::{NonZeroU16, NonZeroU32},
};

use weft_core::{endpoint::Health, identity::Identity, listener::Protocol};
use weft_proto::weft::v1::{Port, Register};

use crate::desired::in_mesh_range;
use crate::registry::{RegisteredPort, RegisteredWorkload, WorkloadKey};

const MAX_LABELS: usize = 64;
const MAX_TEXT: usize = 253;
const MAX_ADDRESSES: usize = 16;
const MAX_PORTS: usize = 64;
const MAX_WEIGHT: u32 = 1_000_000;

/// Where the control plane itself is: no workload may claim its addresses from elsewhere, nor its ports there.
#[derive(Clone, Debug, Default)]
pub struct OwnEndpoints {
    /// Addresses by which others reach it, besides those of this machine.
    pub addresses: Vec<IpAddr>,
    /// Its ports.
    pub ports: Vec<u16>,
}

impl OwnEndpoints {
    /// Whether an address is the control plane's: a named one, or one of this machine.
    fn has(&self, address: IpAddr) -> bool {
        self.addresses.contains(&address) || is_local(address)
    }
}

/// Whether an address is this machine's: the kernel would send from it to itself, or lets it be bound, where not every
/// address can be (`ip_nonlocal_bind`). No packet is sent.
fn is_local(address: IpAddr) -> bool {
    let (any, foreign): (IpAddr, IpAddr) = match address {
        IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::new(203, 0, 113, 254).into()),
        IpAddr::V6(_) => (Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0xfffe).into()),
    };
    let bind = |address| UdpSocket::bind(SocketAddr::new(address, 0));
    let from = bind(any).and_then(|socket| {
        socket.connect(SocketAddr::new(address, 9))?;
        socket.local_addr()
    });
    from.is_ok_and(|from| from.ip() == address) || (bind(address).is_ok() && bind(foreign).is_err())
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

/// The workload that a proxy registers.
/// Errors: the first wrong field and the reason, for the proxy's log.
/// `source`: where its session comes from.
pub(super) fn workload(
    register: Register,
    identity: &Identity,
    source: Option<IpAddr>,
    health: Health,
    control_plane: &OwnEndpoints,
) -> Result<RegisteredWorkload, String> {
    let own = identity.namespace().unwrap_or_default();
    if register.namespace != own {
        return Err(format!("namespace: must be {own:?}, as in the certificate"));
    }
    let account = identity.service_account().unwrap_or_default();
    name(&register.name).map_err(|reason| format!("name: {reason}"))?;
    let gateway = match register.mode.as_str() {
        "sidecar" => false,
        "gateway" => true,
        other => return Err(format!("mode: must be sidecar or gateway, not {other:.40?}")),
    };
    if register.labels.len() > MAX_LABELS {
        return Err(format!("labels: more than {MAX_LABELS}"));
    }
    if register.labels.iter().any(|(key, value)| key.is_empty() || key.len() > MAX_TEXT || value.len() > MAX_TEXT) {
        return Err(format!("labels: an empty name, or a text longer than {MAX_TEXT} bytes"));
    }
    if register.zone.len() > MAX_TEXT {
        return Err(format!("zone: longer than {MAX_TEXT} bytes"));
    }
    if register.incarnation.is_empty() || register.incarnation.len() > MAX_TEXT {
        return Err(format!("incarnation: must be 1 to {MAX_TEXT} bytes"));
    }
    if register.addresses.len() > MAX_ADDRESSES {
        return Err(format!("addresses: more than {MAX_ADDRESSES}"));
    }
    if register.addresses.is_empty() && !gateway {
        return Err("addresses: at least one is needed".to_owned());
    }
    let addresses = register.addresses.iter().enumerate().map(|(index, text)| {
        let reason = |why: &str| format!("addresses[{index}]: {text:.60?} {why}");
        let address: IpAddr = text.parse().map_err(|_cause| reason("is no IP address"))?;
        let address = address.to_canonical();
        if address.is_unspecified() || address.is_multicast() {
            return Err(reason("cannot be a workload's"));
        }
        if in_mesh_range(address) {
            return Err(reason("is of the mesh's own range for services"));
        }
        // Loopback means another place on each machine: only where everything runs on this one.
        if address.is_loopback() && !source.is_some_and(|source| source.is_loopback()) {
            return Err(reason("is loopback, and this session comes from another machine"));
        }
        if is_link_local(address) {
            return Err(reason("is link-local, which means another place on each network"));
        }
        if control_plane.has(address) && !source.is_some_and(|source| control_plane.has(source)) {
            return Err(reason("is the control plane's, and this session comes from another machine"));
        }
        Ok(address)
    });
    let addresses = addresses.collect::<Result<Vec<_>, String>>()?;
    if register.ports.len() > MAX_PORTS {
        return Err(format!("ports: more than {MAX_PORTS}"));
    }
    let ports = register.ports.into_iter().enumerate();
    let ports = ports.map(|(index, it)| port(it).map_err(|reason| format!("ports[{index}].{reason}")));
    let ports = ports.collect::<Result<Vec<_>, String>>()?;
    if register.skipped_ports.len() > MAX_PORTS {
        return Err(format!("skipped_ports: more than {MAX_PORTS}"));
    }
    let skipped = register.skipped_ports.into_iter().enumerate().map(|(index, port)| {
        let port = u16::try_from(port).ok().and_then(NonZeroU16::new);
        port.ok_or_else(|| format!("skipped_ports[{index}]: must be 1 to 65535"))
    });
    let skipped = skipped.collect::<Result<BTreeSet<_>, String>>()?;
    let taken = ports.iter().position(|port| control_plane.ports.contains(&port.port.get()));
    if let Some(index) = taken
        && addresses.iter().any(|address| control_plane.has(*address))
    {
        return Err(format!("ports[{index}].port: is the control plane's own at this address"));
    }
    Ok(RegisteredWorkload {
        key: WorkloadKey::new(register.namespace, register.name),
        identity: identity.clone(),
        service_account: account.to_owned(),
        labels: register.labels,
        addresses,
        unproven: Vec::new(),
        ports,
        skipped_ports: skipped.into_iter().collect(),
        weight: NonZeroU32::new(register.weight.min(MAX_WEIGHT)).unwrap_or(NonZeroU32::MIN),
        zone: register.zone,
        gateway,
        health,
        incarnation: register.incarnation,
        source,
    })
}

fn port(port: Port) -> Result<RegisteredPort, String> {
    let number = |value: u32| u16::try_from(value).map_err(|_cause| ());
    let protocol = match port.protocol.as_str() {
        "detect" | "" => Protocol::Detect,
        "http" => Protocol::Http,
        "http2" | "grpc" => Protocol::Http2,
        "tcp" => Protocol::Tcp,
        other => return Err(format!("protocol: must be http, http2, grpc, tcp or detect, not {other:.40?}")),
    };
    if port.name.len() > MAX_TEXT {
        return Err(format!("name: longer than {MAX_TEXT} bytes"));
    }
    let own = number(port.port).ok().and_then(NonZeroU16::new).ok_or("port: must be 1 to 65535")?;
    let proxy_port = number(port.proxy_port).map(NonZeroU16::new).map_err(|()| "proxy_port: must be 0 to 65535")?;
    Ok(RegisteredPort { name: port.name, port: own, protocol, proxy_port })
}

/// A DNS label, dots allowed (RFC 1123), as object names are.
fn name(text: &str) -> Result<(), &'static str> {
    if text.is_empty() || text.len() > MAX_TEXT {
        return Err("must be 1 to 253 bytes");
    }
    let fine = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    if text.split('.').all(fine) { Ok(()) } else { Err("may hold only a-z, 0-9, '-' and '.', like a DNS name") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Register {
        Register {
            namespace: "shop".into(),
            name: "order-1".into(),
            labels: [("app".to_owned(), "order".to_owned())].into(),
            addresses: vec!["10.0.0.1".into(), "::ffff:10.0.0.2".into()],
            ports: vec![Port { name: "http".into(), port: 8080, protocol: "http".into(), proxy_port: 0 }],
            mode: "sidecar".into(),
            incarnation: "x".into(),
            ..Register::default()
        }
    }

    fn identity() -> Identity {
        Identity::parse("spiffe://weft.local/ns/shop/sa/order").unwrap()
    }

    #[test]
    fn a_workload_is_who_its_certificate_says() {
        let workload = workload(good(), &identity(), None, Health::Healthy, &OwnEndpoints::default()).unwrap();
        assert_eq!((workload.service_account.as_str(), workload.weight.get()), ("order", 1));
        assert_eq!(workload.addresses[1].to_string(), "10.0.0.2");
        assert_eq!(workload.ports[0].proxy_port, None);
    }

    #[test]
    fn a_wrong_field_is_named() {
        type Change = fn(&mut Register);
        let cases: [(&str, Change); 20] = [
            ("namespace", |r| r.namespace = "bank".into()),
            ("name", |r| r.name = "Order_1".into()),
            ("name", |r| r.name = "a/b".into()),
            ("mode", |r| r.mode = "both".into()),
            ("incarnation", |r| r.incarnation.clear()),
            ("addresses", |r| r.addresses.clear()),
            ("addresses[0]", |r| r.addresses = vec!["host".into()]),
            ("addresses[1]", |r| r.addresses[1] = "0.0.0.0".into()),
            ("addresses[1]", |r| r.addresses[1] = "240.0.0.7".into()),
            ("addresses[1]", |r| r.addresses[1] = "127.0.0.1".into()),
            ("addresses[1]", |r| r.addresses[1] = "169.254.169.254".into()),
            ("addresses[1]", |r| r.addresses[1] = "fe80::1".into()),
            ("addresses[1]", |r| r.addresses[1] = "198.51.100.1".into()),
            ("ports[0].port", |r| r.ports[0].port = 0),
            ("ports[0].port", |r| r.ports[0].port = 65_536),
            ("ports[0].proxy_port", |r| r.ports[0].proxy_port = 65_536),
            ("ports[0].protocol", |r| r.ports[0].protocol = "udp".into()),
            ("skipped_ports[1]", |r| r.skipped_ports = vec![22, 0]),
            ("skipped_ports", |r| r.skipped_ports = (1..=65).collect()),
            ("labels", |r| r.labels = (0..65).map(|n| (n.to_string(), String::new())).collect()),
        ];
        for (field, change) in cases {
            let mut register = good();
            change(&mut register);
            let own = OwnEndpoints { addresses: vec!["198.51.100.1".parse().unwrap()], ports: vec![8080] };
            let reason = workload(register, &identity(), None, Health::Healthy, &own).unwrap_err();
            assert!(reason.starts_with(&format!("{field}:")), "{field}: {reason}");
        }
    }

    #[test]
    fn on_the_control_planes_machine_a_workload_has_its_address_but_not_its_ports() {
        let own = OwnEndpoints { addresses: vec!["198.51.100.1".parse().unwrap()], ports: vec![15012] };
        let at = |port, source: &str| {
            let mut register = good();
            register.addresses = vec!["198.51.100.1".into()];
            register.ports[0].port = port;
            workload(register, &identity(), Some(source.parse().unwrap()), Health::Healthy, &own)
        };
        assert!(at(8080, "198.51.100.1").is_ok());
        assert!(at(15012, "198.51.100.1").unwrap_err().starts_with("ports[0].port: is the control plane's own"));
        assert!(at(8080, "198.51.100.2").unwrap_err().starts_with("addresses[0]: "));
    }

    #[test]
    fn only_this_machines_addresses_are_local() {
        assert!(is_local("127.0.0.1".parse().unwrap()) && is_local("127.3.2.1".parse().unwrap()));
        for foreign in ["198.51.100.1", "2001:db8::1", "10.255.254.253"] {
            assert!(!is_local(foreign.parse().unwrap()), "{foreign}");
        }
    }

    #[test]
    fn a_gateway_needs_no_address() {
        let mut register = good();
        (register.mode, register.addresses) = ("gateway".into(), Vec::new());
        assert!(workload(register, &identity(), None, Health::Healthy, &OwnEndpoints::default()).unwrap().gateway);
    }
}
