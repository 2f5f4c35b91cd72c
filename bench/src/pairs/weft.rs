//! Weft, from files alone: forward listeners instead of redirection, all defaults on, inbound strict, one allowed caller.

use std::net::SocketAddr;

use anyhow::Result;

use super::{Plan, Started};
use crate::certs::{Certs, Identity, NAMESPACE, TRUST_DOMAIN};
use crate::floor::Side;
use crate::scenario::Version;
use crate::verify::Hop;

/// The service's address in the mesh; the outbound proxy takes each connection as on its way there.
const SERVICE: &str = "240.0.0.1";

pub(super) fn start(plan: &Plan<'_>) -> Result<Started> {
    let run = |side: Side, text: &str| {
        let path = plan.write(&format!("{}.yaml", side.name()), text)?.display().to_string();
        plan.launch(side, &plan.place.weft, &["run", "--config", &path])
    };
    let inbound = run(Side::Inbound, &inbound(plan.middle, plan.server, plan.version, &plan.place.certs))?;
    let outbound = run(Side::Outbound, &outbound(plan.entry, plan.middle, plan.version, &plan.place.certs))?;
    Ok((outbound, inbound, Some(Hop { alpn: "weft-h2", version: Version::Http2 })))
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::Http1 => "http",
        Version::Http2 => "http2",
    }
}

fn outbound(listen: SocketAddr, peer: SocketAddr, version: Version, certs: &Certs) -> String {
    let (port, protocol) = (peer.port(), protocol(version));
    let forward = format!("outbound: [{{listen: \"{listen}\", destination: \"{SERVICE}:80\"}}]");
    let proxy = proxy_config(Identity::Client, "", &forward, certs);
    let account = Identity::Server.service_account();
    format!(
        "{proxy}---
apiVersion: v1
kind: Service
metadata: {{name: server, namespace: {NAMESPACE}}}
spec:
  clusterIPs: [{SERVICE}]
  selector: {{app: server}}
  ports: [{{name: {protocol}, port: 80, targetPort: {port}}}]
---
apiVersion: weft.dev/v1alpha1
kind: Workload
metadata: {{name: server, namespace: {NAMESPACE}, labels: {{app: server}}}}
spec:
  addresses: [\"{ip}\"]
  serviceAccount: {account}
  ports: [{{name: {protocol}, port: {port}, protocol: {protocol}}}]
---
{mesh}",
        ip = peer.ip(),
        mesh = mesh_config(),
    )
}

fn inbound(listen: SocketAddr, server: SocketAddr, version: Version, certs: &Certs) -> String {
    let ports = format!("    ports: [{{name: http, port: {}, protocol: {}}}]\n", server.port(), protocol(version));
    let forward = format!("inbound: [{{listen: \"{listen}\", destination: \"{server}\"}}]");
    let proxy = proxy_config(Identity::Server, &ports, &forward, certs);
    format!(
        "{proxy}---
apiVersion: weft.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {{name: client-only, namespace: {NAMESPACE}}}
spec:
  action: allow
  rules: [{{from: [{{identities: [\"{client}\"]}}]}}]
---
{mesh}",
        client = Identity::Client.spiffe_id(),
        mesh = mesh_config(),
    )
}

fn proxy_config(identity: Identity, ports: &str, forward: &str, certs: &Certs) -> String {
    let account = identity.service_account();
    format!(
        "apiVersion: weft.dev/v1alpha1
kind: ProxyConfig
metadata: {{name: {account}-1, namespace: {NAMESPACE}}}
spec:
  mode: sidecar
  workload:
    serviceAccount: {account}
    labels: {{app: {account}}}
    addresses: [127.0.0.1]
{ports}  identity:
    certificateFile: {certificate}
    privateKeyFile: {key}
    trustBundleFile: {ca}
  workers: 1
  ports: {{outbound: 0, inbound: 0, admin: 0, metrics: 0}}
  forward:
    {forward}
",
        certificate = certs.certificate(identity).display(),
        key = certs.key(identity).display(),
        ca = certs.ca().display(),
    )
}

fn mesh_config() -> String {
    format!(
        "apiVersion: weft.dev/v1alpha1
kind: MeshConfig
metadata: {{name: default}}
spec:
  trustDomain: {TRUST_DOMAIN}
  inbound: {{mode: strict}}
"
    )
}
