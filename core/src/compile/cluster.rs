//! Clusters and their endpoints: TrafficPolicies over defaults, workloads by selector.

use std::{
    net::{IpAddr, SocketAddr},
    num::{NonZeroU16, NonZeroU32},
    sync::Arc,
};

use super::{Instance, World};
use crate::{
    api::{
        Service, TrafficPolicy,
        service::{SERVICE_ACCOUNTS, TargetPort},
        traffic_policy::{OutlierDetection as OutlierSetting, RetryCondition, TrafficPolicySpec},
    },
    cluster::{Cluster, HttpVersion, OutlierDetection},
    endpoint::{Endpoint, EndpointSet},
    listener::Protocol,
    names::{ClusterName, ServicePort},
    retry::{RetryOn, RetryPolicy},
};

impl World {
    /// A cluster. `None`: no service has that port, or no workload that address.
    pub fn cluster(&self, name: &ClusterName) -> Option<Cluster> {
        let mut cluster = Cluster::new(name.clone());
        let protocol = match name {
            ClusterName::Service(at) => {
                let service = self.service(at)?;
                if let Some(policy) = self.traffic_policy(service, at.port) {
                    apply(&policy.spec, &mut cluster);
                }
                super::protocol(service.spec.port(at.port)?.app())
            }
            ClusterName::Direct(address) => {
                let port = NonZeroU16::new(address.port())?;
                self.workload_at(*address)?.port(port).map(|port| port.protocol).unwrap_or_default()
            }
        };
        if protocol == Protocol::Http2 {
            cluster.http = HttpVersion::Http2;
        }
        Some(cluster)
    }

    /// The endpoints of a cluster, in the order of their addresses. `None` as for [`World::cluster`]; a service without
    /// workloads has an empty set.
    pub fn endpoints(&self, name: &ClusterName) -> Option<EndpointSet> {
        let mut endpoints = match name {
            ClusterName::Service(at) => self.service_endpoints(at)?,
            ClusterName::Direct(address) => {
                let port = NonZeroU16::new(address.port())?;
                let instance = self.workload_at(*address)?;
                vec![self.endpoint(instance, address.ip(), port)]
            }
        };
        // Of two at one address the one that takes new work stays.
        let order = |e: &Endpoint| (e.address, e.health, e.workload.clone());
        endpoints.sort_by_cached_key(order);
        endpoints.dedup_by_key(|endpoint| endpoint.address);
        Some(EndpointSet { cluster: name.clone(), endpoints })
    }

    fn service_endpoints(&self, at: &ServicePort) -> Option<Vec<Endpoint>> {
        let service = self.service(at)?;
        let target = service.spec.port(at.port)?.target();
        Some(self.instances_of(service).filter_map(|it| self.service_endpoint(service, &target, it)).collect())
    }

    /// An instance as an endpoint of a service's port; `None` where it has no address or no such port.
    pub(super) fn service_endpoint(
        &self,
        service: &Service,
        target: &TargetPort,
        instance: &Instance,
    ) -> Option<Endpoint> {
        let port = target_port(instance, target)?;
        // One endpoint for one workload, whatever number of addresses it has: else it would count twice.
        let endpoint = self.endpoint(instance, *instance.addresses.first()?, port);
        // Where the service names its accounts, an endpoint must prove that it has one.
        (endpoint.identity.is_some() || !service.metadata.annotations.contains_key(SERVICE_ACCOUNTS))
            .then_some(endpoint)
    }

    /// The workloads of a service; only those of its service accounts, when it names any.
    pub(super) fn instances_of<'a>(&'a self, service: &'a Service) -> impl Iterator<Item = &'a Arc<Instance>> {
        self.labelled(service).filter(|instance| Self::takes(service, instance))
    }

    /// The workloads that have the labels of a service. One that registered itself stands for one of the same name that a person
    /// wrote down.
    pub(super) fn labelled<'a>(&'a self, service: &'a Service) -> impl Iterator<Item = &'a Arc<Instance>> {
        let (namespace, selector) = (&service.metadata.namespace, &service.spec.selector);
        let written = self.objects.workloads().select(namespace, selector);
        let written = written.filter(|instance| !self.is_registered(instance));
        self.registered.select(namespace, selector).chain(written)
    }

    /// Whether a service takes an instance that has its labels: where it names its accounts ([`SERVICE_ACCOUNTS`]), one without
    /// an identity (a written one outside the mesh) has no account that could be on the list.
    pub(super) fn takes(service: &Service, instance: &Instance) -> bool {
        let Some(accounts) = service.metadata.annotations.get(SERVICE_ACCOUNTS) else { return true };
        let own = instance.identity.as_ref().and_then(|identity| identity.service_account());
        own.is_some_and(|own| accounts.split(',').any(|account| account.trim() == own))
    }

    /// One port of an instance at one of its addresses. A port that is reached without the proxy has no identity.
    fn endpoint(&self, instance: &Instance, address: IpAddr, port: NonZeroU16) -> Endpoint {
        let skipped = self.is_skipped(instance, address, port);
        let proxy_port = instance.port(port).and_then(|port| port.proxy_port).filter(|_| !skipped);
        Endpoint {
            address: SocketAddr::new(address, proxy_port.unwrap_or(port).get()),
            workload: instance.full_name(),
            identity: instance.identity.clone().filter(|_| !skipped),
            weight: instance.weight,
            zone: instance.zone.clone(),
            health: instance.health,
        }
    }

    /// Whether a port of an address is reached without the proxy. Nobody takes the identity from a port of another workload on
    /// the same host: all that are there have to say so.
    fn is_skipped(&self, instance: &Instance, address: IpAddr, port: NonZeroU16) -> bool {
        let agrees = |other: &Arc<Instance>| {
            other.identity.is_none() || other.identity == instance.identity || other.skips(port)
        };
        instance.skips(port)
            && self.registered.all_at(address).all(agrees)
            && self.objects.workloads().all_at(address).all(agrees)
    }

    /// The workload at an address that is no service's.
    pub(super) fn workload_at(&self, address: SocketAddr) -> Option<&Arc<Instance>> {
        if self.objects.service_at(address.ip()).is_some() {
            return None;
        }
        self.instance_at(address)
    }

    /// The policy of a service's port: the oldest that names the port, else the oldest for the whole service.
    pub(super) fn traffic_policy(&self, service: &Service, port: NonZeroU16) -> Option<&TrafficPolicy> {
        let name = service.spec.port(port)?.name.as_deref();
        let policies = || self.objects.service_policies(&service.metadata.namespace, &service.metadata.name);
        let section = |policy: &&TrafficPolicy| {
            let wanted = policy.spec.target_ref.section_name.as_deref();
            wanted.is_some() && wanted == name
        };
        policies().find(section).or_else(|| policies().find(|policy| policy.spec.target_ref.section_name.is_none()))
    }
}

/// The application's port that a service's target means at a workload; `None` when the workload has none of that name.
pub(super) fn target_port(instance: &Instance, target: &TargetPort) -> Option<NonZeroU16> {
    match target {
        TargetPort::Number(port) => Some(*port),
        TargetPort::Name(name) => instance.port_named(name).map(|port| port.port),
    }
}

fn apply(policy: &TrafficPolicySpec, cluster: &mut Cluster) {
    if let Some(timeouts) = &policy.timeouts {
        set(&mut cluster.connect_timeout, timeouts.connect.map(Into::into));
        set(&mut cluster.http_idle, timeouts.idle.map(Into::into));
        set(&mut cluster.tcp_idle, timeouts.tcp_idle.map(Into::into));
    }
    if let Some(limits) = &policy.limits {
        set(&mut cluster.limits.connections, limits.connections);
        set(&mut cluster.limits.pending, limits.pending);
        set(&mut cluster.limits.requests, limits.requests);
    }
    if let Some(outlier) = &policy.outlier_detection {
        cluster.outlier = outlier_detection(outlier);
    }
    if let Some(budget) = policy.retry.as_ref().and_then(|retry| retry.budget) {
        set(&mut cluster.budget.ratio, budget.ratio);
        set(&mut cluster.budget.min_per_second, budget.min_per_second);
    }
}

fn outlier_detection(setting: &OutlierSetting) -> Option<OutlierDetection> {
    let mut outlier = OutlierDetection::default();
    if let Some(failures) = setting.consecutive_failures {
        outlier.consecutive_failures = NonZeroU32::new(failures)?;
    }
    set(&mut outlier.base_ejection, setting.base_ejection.map(Into::into));
    set(&mut outlier.max_ejected, setting.max_ejected);
    Some(outlier)
}

/// The retries that a policy asks for, over the defaults.
pub(super) fn retry_policy(policy: Option<&TrafficPolicySpec>) -> RetryPolicy {
    let mut out = RetryPolicy::default();
    let Some(retry) = policy.and_then(|policy| policy.retry.as_ref()) else { return out };
    set(&mut out.attempts, retry.attempts);
    if let Some(on) = &retry.on {
        out.on = RetryOn {
            connect_failure: on.contains(&RetryCondition::ConnectFailure),
            refused_stream: on.contains(&RetryCondition::RefusedStream),
            gateway_error: on.contains(&RetryCondition::GatewayError),
            reset: on.contains(&RetryCondition::Reset),
            server_error: on.contains(&RetryCondition::ServerError),
        };
    }
    out.status_codes.clone_from(&retry.status_codes);
    if let Some(backoff) = retry.backoff {
        set(&mut out.backoff_base, backoff.base.map(Into::into));
        set(&mut out.backoff_max, backoff.max.map(Into::into));
        out.backoff_max = out.backoff_max.max(out.backoff_base);
    }
    out
}

fn set<T>(place: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *place = value;
    }
}
