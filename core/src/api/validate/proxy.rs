//! Rules of a proxy's own settings.

use std::net::SocketAddr;

use super::{Check, labels, names, service};
use crate::api::proxy_config::{ControlPlane, HealthCheck, HealthCheckType, ProxyConfigSpec, ProxyMode, ProxyWorkload};

const MAX_WORKERS: usize = 256;
const MAX_CHECKS: usize = 16;

pub(super) fn settings(check: &mut Check, spec: &ProxyConfigSpec) {
    match spec.mode {
        ProxyMode::Sidecar => {
            if spec.workload.is_none() {
                check.required("workload");
            }
            if spec.gateway.is_some() {
                check.fail("gateway", "only with `mode: gateway`");
            }
        }
        ProxyMode::Gateway => {
            if spec.gateway.is_none() {
                check.required("gateway");
            }
            if !spec.forward.is_empty() {
                check.fail("forward", "only with `mode: sidecar`");
            }
        }
    }
    if let Some(gateway) = &spec.gateway {
        check.at("gateway", |check| check.form(gateway, names::subdomain));
    }
    if let Some(beside) = &spec.workload {
        check.at("workload", |check| workload(check, beside));
    }
    if let Some(plane) = &spec.control_plane {
        check.at("controlPlane", |check| control_plane(check, plane));
        if spec.identity.is_some() {
            check.fail("identity", "not together with controlPlane, which issues the identity");
        }
    }
    if spec.workers.get() > MAX_WORKERS {
        check.fail("workers", format!("must be at most {MAX_WORKERS}"));
    }
    // Port 0 picks a free one, so it may be there more than once.
    let ports = [
        ("ports.outbound", spec.ports.outbound),
        ("ports.inbound", spec.ports.inbound),
        ("ports.admin", spec.ports.admin),
        ("ports.metrics", spec.ports.metrics),
    ];
    for (index, (field, port)) in ports.iter().enumerate() {
        if let Some((other, _)) = ports.iter().take(index).find(|(_, other)| other == port && *port != 0) {
            check.fail(field, format!("is the same as {}", other.trim_start_matches("ports.")));
        }
    }
    // A listener of this kind stands for a capture, whose destination always has a port.
    check.at("forward", |check| {
        for (field, listeners) in [("outbound", &spec.forward.outbound), ("inbound", &spec.forward.inbound)] {
            check.each(field, listeners, |check, listener| {
                if listener.destination.port() == 0 {
                    check.fail("destination", "must have a port from 1 to 65535");
                }
            });
        }
        // The sockets share their address (SO_REUSEPORT): the kernel would spread connections over both destinations, or hide
        // one behind the other where one is for all addresses.
        let mut taken: Vec<(String, SocketAddr)> = Vec::new();
        for (field, listeners) in [("outbound", &spec.forward.outbound), ("inbound", &spec.forward.inbound)] {
            let mut index = 0;
            check.each(field, listeners, |check, listener| {
                let listen = listener.listen;
                match taken.iter().find(|(_, other)| share(*other, listen)) {
                    Some((other, address)) => {
                        check.fail("listen", format!("{listen} is in use by {other} ({address}): choose another port"));
                    }
                    None => taken.push((format!("spec.forward.{field}[{index}].listen"), listen)),
                }
                index += 1;
            });
        }
    });
}

/// Whether one connection can reach both: one port, and one address or all addresses.
fn share(one: SocketAddr, other: SocketAddr) -> bool {
    let (a, b) = (one.ip().to_canonical(), other.ip().to_canonical());
    one.port() == other.port() && one.port() != 0 && (a == b || a.is_unspecified() || b.is_unspecified())
}

fn workload(check: &mut Check, workload: &ProxyWorkload) {
    if let Some(account) = &workload.service_account {
        check.at("serviceAccount", |check| check.form(account, names::subdomain));
    }
    labels(check, "labels", &workload.labels);
    service::addresses(check, &workload.addresses);
    service::ports(check, &workload.ports);
    check.at_most("skipInboundPorts", &workload.skip_inbound_ports, service::MAX_SKIPPED);
    service::weight(check, workload.weight.map(std::num::NonZero::get));
    if let Some(zone) = &workload.zone {
        check.at("zone", |check| check.form(zone, names::label_value));
    }
    let checks = workload.health.as_deref().unwrap_or_default();
    check.at_most("health", checks, MAX_CHECKS);
    check.each("health", checks, health);
}

fn health(check: &mut Check, health: &HealthCheck) {
    match (health.kind, &health.path) {
        (HealthCheckType::Http, Some(path)) if !path.starts_with('/') => {
            check.fail("path", format!("{path:?} must start with '/'"));
        }
        (HealthCheckType::Http, Some(path)) if path.bytes().any(|b| !b.is_ascii_graphic()) => {
            check.fail("path", "has a character that is not allowed in a path (RFC 3986 §3.3)");
        }
        (HealthCheckType::Tcp, Some(_)) => check.fail("path", "only with `type: http`"),
        (HealthCheckType::Http | HealthCheckType::Tcp, _) => {}
    }
    for (field, duration) in [("interval", health.interval), ("timeout", health.timeout)] {
        if duration.is_zero() {
            check.fail(field, "must be more than 0s");
        }
    }
}

fn control_plane(check: &mut Check, plane: &ControlPlane) {
    let port = plane.address.rsplit_once(':').and_then(|(host, port)| {
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let good = !host.is_empty() && (!host.contains(':') || plane.address.starts_with('['));
        good.then(|| port.parse::<std::num::NonZeroU16>().ok()).flatten()
    });
    if port.is_none() {
        check.fail("address", format!("{:?} must be host:port", plane.address));
    }
    match (&plane.join_token_file, &plane.join_token) {
        (Some(_), Some(_)) => check.fail("joinToken", "not together with joinTokenFile"),
        (None, None) => check.fail("", "joinTokenFile or joinToken is required"),
        (Some(_), None) | (None, Some(_)) => {}
    }
}
