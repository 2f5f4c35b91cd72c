//! Rules of Services and Workloads.

use std::net::IpAddr;

use super::{Check, MAX_WEIGHT, labels, names};
use crate::api::{
    service::{ServiceSpec, TargetPort, Transport},
    workload::{WorkloadPort, WorkloadSpec},
};

const MAX_PORTS: usize = 100;
pub(super) const MAX_SKIPPED: usize = 32;
const MAX_ADDRESSES: usize = 16;

pub(super) fn service(check: &mut Check, spec: &ServiceSpec) {
    labels(check, "selector", &spec.selector);
    if spec.kind.as_deref().is_some_and(|kind| kind != "ClusterIP") {
        check.not_supported("type");
    }
    if spec.ports.is_empty() {
        check.fail("ports", "must have at least one entry");
    }
    check.at_most("ports", &spec.ports, MAX_PORTS);
    check.unique("ports", "port", &spec.ports, |port| Some(port.port));
    check.unique("ports", "name", &spec.ports, |port| port.name.clone());
    check.each("ports", &spec.ports, |check, port| {
        match &port.name {
            Some(name) => check.at("name", |check| check.form(name, names::label)),
            None if spec.ports.len() > 1 => check.fail("name", "required when there is more than one port"),
            None => {}
        }
        if let Some(TargetPort::Name(name)) = &port.target_port {
            check.at("targetPort", |check| check.form(name, names::port_name));
        }
        if let Some(protocol) = &port.app_protocol {
            check.at("appProtocol", |check| check.form(protocol, names::qualified));
        }
        if matches!(port.protocol, Some(Transport::Udp | Transport::Sctp)) {
            check.not_supported("protocol");
        }
    });
    // Kubernetes keeps both fields, and the first of the list is always the single one.
    if let (Some(first), Some(listed)) = (spec.cluster_ip, spec.cluster_ips.first())
        && first != *listed
    {
        check.fail("clusterIPs[0]", format!("must be clusterIP, which is {first}"));
    }
    if let Some(address) = spec.cluster_ip {
        check.at("clusterIP", |check| unicast(check, address));
    }
    check.each("clusterIPs", &spec.cluster_ips, |check, address| unicast(check, *address));
    check.unique("clusterIPs", "", &spec.cluster_ips, |address| Some(*address));
    // One address of each family, as in a dual-stack Service.
    for v4 in [true, false] {
        if spec.addresses().iter().filter(|address| address.is_ipv4() == v4).count() > 1 {
            check.fail("clusterIPs", format!("must have at most one IPv{} address", if v4 { 4 } else { 6 }));
        }
    }
}

pub(super) fn workload(check: &mut Check, spec: &WorkloadSpec) {
    if let Some(account) = &spec.service_account {
        check.at("serviceAccount", |check| check.form(account, names::subdomain));
    }
    if spec.addresses.is_empty() {
        check.fail("addresses", "must have at least one entry");
    }
    addresses(check, &spec.addresses);
    ports(check, &spec.ports);
    check.at_most("skipInboundPorts", &spec.skip_inbound_ports, MAX_SKIPPED);
    weight(check, spec.weight.map(std::num::NonZero::get));
    if let Some(zone) = &spec.zone {
        check.at("zone", |check| check.form(zone, names::label_value));
    }
}

pub(super) fn addresses(check: &mut Check, addresses: &[IpAddr]) {
    check.at_most("addresses", addresses, MAX_ADDRESSES);
    check.unique("addresses", "", addresses, |address| Some(*address));
    check.each("addresses", addresses, |check, address| unicast(check, *address));
}

pub(super) fn ports(check: &mut Check, ports: &[WorkloadPort]) {
    check.at_most("ports", ports, MAX_PORTS);
    check.unique("ports", "port", ports, |port| Some(port.port));
    check.unique("ports", "name", ports, |port| port.name.clone());
    check.each("ports", ports, |check, port| {
        if let Some(name) = &port.name {
            check.at("name", |check| check.form(name, names::port_name));
        }
    });
}

pub(super) fn weight(check: &mut Check, weight: Option<u32>) {
    if weight.is_some_and(|weight| weight > MAX_WEIGHT) {
        check.fail("weight", format!("must be at most {MAX_WEIGHT}"));
    }
}

fn unicast(check: &mut Check, address: IpAddr) {
    if address.is_unspecified() || address.is_multicast() {
        check.fail("", format!("{address} is not a unicast address"));
    }
}
