//! Weft, from files alone: forward listeners instead of redirection, all defaults on, inbound strict, one allowed caller.
//!
//! Both proxies get the same mesh: one Service, its one Workload, one AuthorizationPolicy and the MeshConfig.

use anyhow::Result;

use super::{Plan, Started};
use crate::certs::{Certs, Identity, NAMESPACE};
use crate::floor::Side;
use crate::scenario::Version;
use crate::verify::Hop;

/// The service's address in the mesh; the outbound proxy takes each connection as on its way there.
const SERVICE: &str = "240.0.0.1";

pub(super) fn start(plan: &Plan<'_>) -> Result<Started> {
    let run = |side: Side| {
        let text = proxy_file(plan, side);
        let path = plan.write(&format!("{}.yaml", side.name()), &text)?.display().to_string();
        plan.launch(side, &plan.place.weft, &["run", "--config", &path])
    };
    let inbound = run(Side::Inbound)?;
    let outbound = run(Side::Outbound)?;
    Ok((outbound, inbound, Some(Hop { alpn: "weft-h2", version: Version::Http2, caller: plan.version })))
}

/// The whole file of one proxy: its own settings, then the mesh.
fn proxy_file(plan: &Plan<'_>, side: Side) -> String {
    let (identity, forward, ports) = match side {
        Side::Outbound => (
            Identity::Client,
            format!("outbound: [{{listen: \"{}\", destination: \"{SERVICE}:80\"}}]", plan.entry),
            String::new(),
        ),
        Side::Inbound => (
            Identity::Server,
            format!("inbound: [{{listen: \"{}\", destination: \"{}\"}}]", plan.middle, plan.server),
            format!("\n    ports: [{}]", server_port(plan)),
        ),
    };
    format!("{}---\n{}", settings(identity, &ports, &forward, &plan.place.certs), mesh(plan))
}

fn settings(identity: Identity, ports: &str, forward: &str, certs: &Certs) -> String {
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
    addresses: [127.0.0.1]{ports}
  identity:
    certificateFile: {certificate}
    privateKeyFile: {key}
    trustBundleFile: {ca}
  mark: 0
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

fn mesh(plan: &Plan<'_>) -> String {
    let (client, server) = (Identity::Client.service_account(), Identity::Server.service_account());
    format!(
        "apiVersion: v1
kind: Service
metadata: {{name: {server}, namespace: {NAMESPACE}}}
spec:
  clusterIPs: [{SERVICE}]
  selector: {{app: {server}}}
  ports: [{{name: app, port: 80, targetPort: {port}, appProtocol: {protocol}}}]
---
apiVersion: weft.dev/v1alpha1
kind: Workload
metadata: {{name: {server}-1, namespace: {NAMESPACE}, labels: {{app: {server}}}}}
spec:
  serviceAccount: {server}
  addresses: [{address}]
  ports: [{listed}]
---
apiVersion: weft.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {{name: {client}-only, namespace: {NAMESPACE}}}
spec:
  selector: {{matchLabels: {{app: {server}}}}}
  action: Allow
  rules: [{{from: [{{identities: [\"{allowed}\"]}}]}}]
---
apiVersion: weft.dev/v1alpha1
kind: MeshConfig
metadata: {{name: default}}
spec: {{inbound: strict}}
",
        port = plan.server.port(),
        protocol = protocol(plan.version),
        address = plan.middle.ip(),
        listed = server_port(plan),
        allowed = Identity::Client.spiffe_id(),
    )
}

/// The application's port, and where its proxy takes what is for it.
fn server_port(plan: &Plan<'_>) -> String {
    let (port, protocol, proxy_port) = (plan.server.port(), protocol(plan.version), plan.middle.port());
    format!("{{name: app, port: {port}, protocol: {protocol}, proxyPort: {proxy_port}}}")
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::Http1 => "http",
        Version::Http2 => "http2",
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use weft_core::api::parse_proxy_file;

    use super::*;
    use crate::pairs::Place;
    use crate::process::Launcher;

    /// The bench is run seldom; a change of the shapes shows here at once.
    #[test]
    fn weft_s_files_are_valid() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place {
            launcher: Launcher::new(PathBuf::new(), dir.path().to_owned()),
            certs: Certs::open(dir.path()),
            dir: dir.path().to_owned(),
            cpu: 0,
            weft: PathBuf::new(),
            envoy: PathBuf::new(),
        };
        for version in [Version::Http1, Version::Http2] {
            let plan = Plan {
                place: &place,
                dir: dir.path(),
                name: "weft",
                entry: "127.0.0.1:9001".parse().unwrap(),
                middle: "127.0.0.1:9002".parse().unwrap(),
                server: "127.0.0.1:9003".parse().unwrap(),
                version,
            };
            for side in [Side::Outbound, Side::Inbound] {
                let text = proxy_file(&plan, side);
                let (config, objects) = parse_proxy_file(&text).unwrap_or_else(|errors| panic!("{errors:#?}\n{text}"));
                let forward = config.spec.forward;
                let listeners = (forward.outbound.len(), forward.inbound.len());
                assert_eq!(listeners, if side == Side::Outbound { (1, 0) } else { (0, 1) });
                assert_eq!(objects.len(), 4);
            }
        }
    }
}
