use std::collections::BTreeMap;

use super::*;
use crate::{
    api::{Kind, Object, ObjectKey, parse_documents},
    identity::{Identity, TrustDomain},
    policy::{Decision, Request},
    route::RequestHead,
};

mod conformance;
mod destinations;
mod gateways;
mod policies;
mod routes;
mod selected;
mod shadowed;

fn objects(yaml: &str) -> BTreeMap<ObjectKey, Arc<Object>> {
    let parsed = parse_documents(yaml).unwrap_or_else(|errors| panic!("{errors:#?}"));
    parsed.into_iter().map(|object| (object.key(), Arc::new(object))).collect()
}

fn domain() -> TrustDomain {
    TrustDomain::parse("weft.local").unwrap()
}

fn world(yaml: &str) -> World {
    let objects = Objects::new(&objects(yaml), domain(), 7);
    World::new(Arc::new(objects), Arc::new(Workloads::default()))
}

fn requester(name: &str, labels: &[(&str, &str)], ports: &[(&str, u16)]) -> Requester {
    Requester {
        namespace: "shop".into(),
        name: name.into(),
        labels: labels.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect(),
        service_account: name.into(),
        ports: ports
            .iter()
            .map(|(name, port)| InstancePort {
                name: (*name).into(),
                port: NonZeroU16::new(*port).unwrap(),
                protocol: Protocol::Detect,
                proxy_port: None,
            })
            .collect(),
        mode: ProxyMode::Sidecar,
    }
}

fn anyone() -> Requester {
    requester("client", &[], &[])
}

#[derive(Clone, Debug, Default)]
struct Head {
    host: String,
    method: String,
    path: String,
    headers: Vec<(String, String)>,
}

impl RequestHead for Head {
    fn host(&self) -> &str {
        &self.host
    }
    fn method(&self) -> &str {
        &self.method
    }
    fn path(&self) -> &str {
        &self.path
    }
    fn header<'a>(&'a self, name: &'a str) -> Option<std::borrow::Cow<'a, [u8]>> {
        let values = self.headers.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name));
        crate::route::joined(name, values.map(|(_, value)| value.as_bytes()))
    }
}

fn get(path: &str) -> Head {
    Head { host: "product".into(), method: "GET".into(), path: path.into(), headers: vec![] }
}

fn listener(world: &World, name: &str) -> Option<Listener> {
    world.listener(&ListenerName::parse(name).unwrap(), &anyone())
}

fn outbound(world: &World, name: &str) -> Option<Outbound> {
    match listener(world, name) {
        Some(Listener::Outbound(outbound)) => Some(outbound),
        None => None,
        other => panic!("{other:?}"),
    }
}

fn routes(world: &World, name: &str) -> Option<RouteTable> {
    world.routes(&RouteName::parse(name).unwrap(), &anyone())
}

fn addresses(world: &World, name: &str) -> Vec<String> {
    let set = world.endpoints(&ClusterName::parse(name).unwrap()).unwrap();
    set.endpoints.iter().map(|endpoint| endpoint.address.to_string()).collect()
}

fn reasons(world: &World, kind: Kind, name: &str) -> Vec<String> {
    let conditions = world.conditions(&ObjectKey::new(kind, "shop", name));
    conditions.iter().map(|c| format!("{}={:?}/{}", c.kind, c.status, c.reason)).collect()
}

/// A service with two workloads, one of them IPv6 only.
const SHOP: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: product, namespace: shop}
spec:
  selector: {app: product}
  clusterIPs: [240.0.0.10, "fd77:6566:7400::10"]
  ports:
  - {name: http, port: 80, targetPort: web, appProtocol: http}
  - {name: grpc, port: 90, targetPort: 9090, appProtocol: kubernetes.io/h2c}
  - {name: db, port: 5432, appProtocol: tcp}
  - {name: any, port: 7000}
---
apiVersion: v1
kind: Service
metadata: {name: product-v2, namespace: shop}
spec:
  selector: {app: product, version: v2}
  clusterIP: 240.0.0.11
  ports: [{name: http, port: 80, targetPort: web, appProtocol: http}]
---
apiVersion: weft.dev/v1alpha1
kind: Workload
metadata: {name: product-1, namespace: shop, labels: {app: product, version: v1}}
spec:
  serviceAccount: product
  addresses: [10.77.0.12, "fd00:77::12"]
  ports: [{name: web, port: 8080, protocol: http}, {port: 9090, protocol: grpc, proxyPort: 15099}]
---
apiVersion: weft.dev/v1alpha1
kind: Workload
metadata: {name: product-2, namespace: shop, labels: {app: product, version: v2}}
spec:
  serviceAccount: product
  addresses: ["fd00:77::11"]
  weight: 3
  zone: a
  health: draining
  ports: [{name: web, port: 8081, protocol: http}]
---
apiVersion: weft.dev/v1alpha1
kind: Workload
metadata: {name: old, namespace: shop, labels: {app: product}}
spec:
  addresses: [10.77.0.9]
  mesh: false
"#;

fn shop(more: &str) -> World {
    world(&format!("{SHOP}---\n{more}"))
}
