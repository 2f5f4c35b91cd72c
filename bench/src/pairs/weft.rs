//! Weft, from files alone: forward listeners instead of redirection, all defaults on, inbound strict, one allowed caller.
//!
//! Both proxies get the same mesh: one Service, its one Workload, one AuthorizationPolicy and the MeshConfig.

use anyhow::Result;

use super::{Plan, Started, Variant};
use crate::certs::{Certs, Identity, NAMESPACE, TRUST_DOMAIN};
use crate::floor::Side;
use crate::scenario::Protocol;
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
    let hop = match plan.protocol {
        Protocol::Tcp => Hop { alpn: "weft-tcp", protocol: Protocol::Tcp, caller: Protocol::Tcp },
        Protocol::Http1 | Protocol::Http2 => Hop { alpn: "weft-h2", protocol: Protocol::Http2, caller: plan.protocol },
    };
    Ok((outbound, inbound, Some(hop)))
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
            format!("inbound: [{{listen: \"0.0.0.0:{}\", destination: \"{}\"}}]", plan.middle.port(), plan.server),
            format!("\n    ports: [{}]", server_port(plan)),
        ),
    };
    let workers = match plan.variant {
        Variant::Workers(workers) => workers,
        _ => 1,
    };
    format!("{}---\n{}", settings(identity, &ports, &forward, workers, &plan.place.certs), mesh(plan, side))
}

fn settings(identity: Identity, ports: &str, forward: &str, workers: u32, certs: &Certs) -> String {
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
  workers: {workers}
  limits: {{connections: 20000, connectionsPerSource: 20000}}
  ports: {{outbound: 0, inbound: 0, admin: 0, metrics: 0}}
  forward:
    {forward}
",
        certificate = certs.certificate(identity).display(),
        key = certs.key(identity).display(),
        ca = certs.ca().display(),
    )
}

/// The objects of the mesh, the many ones of the growth rows included, each only where it is obeyed.
fn mesh(plan: &Plan<'_>, side: Side) -> String {
    let mut text = base(plan);
    match plan.variant {
        Variant::Routes(count) if side == Side::Outbound => text.push_str(&routes(count)),
        Variant::Endpoints(count) if side == Side::Outbound => {
            for number in 1..count {
                text.push_str(&endpoint(plan, number));
            }
        }
        Variant::Policies(count) if side == Side::Inbound => {
            for number in 1..count {
                text.push_str(&policy(number));
            }
        }
        _ => {}
    }
    text
}

/// `count` rules in routes of 16, which is all that one may have; the request is for none of them but the last, which takes every path.
fn routes(count: u32) -> String {
    let server = Identity::Server.service_account();
    let backend = format!("backendRefs: [{{name: {server}, port: 80}}]");
    let mut text = String::new();
    for (number, rules) in (1..count).collect::<Vec<_>>().chunks(16).enumerate() {
        let rules: String = rules
            .iter()
            .map(|n| format!("  - {{matches: [{{path: {{type: Exact, value: /path/{n}}}}}], {backend}}}\n"))
            .collect();
        text.push_str(&route(&format!("routes-{number}"), &rules));
    }
    text.push_str(&route("any", &format!("  - {{{backend}}}\n")));
    text
}

fn route(name: &str, rules: &str) -> String {
    let server = Identity::Server.service_account();
    format!(
        "---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: {name}, namespace: {NAMESPACE}}}
spec:
  parentRefs: [{{group: \"\", kind: Service, name: {server}}}]
  rules:
{rules}"
    )
}

/// One more workload of the service. Ten in all are healthy: with ten thousand in use the row would measure ten thousand
/// connections.
fn endpoint(plan: &Plan<'_>, number: u32) -> String {
    let server = Identity::Server.service_account();
    let health = if number < 10 { "healthy" } else { "unhealthy" };
    // Every address of 127/8 is this machine's.
    let (high, low) = (1 + number / 250, 1 + number % 250);
    format!(
        "---
apiVersion: weft.dev/v1alpha1
kind: Workload
metadata: {{name: {server}-more-{number}, namespace: {NAMESPACE}, labels: {{app: {server}}}}}
spec: {{serviceAccount: {server}, addresses: [127.1.{high}.{low}], ports: [{port}], health: {health}}}
",
        port = server_port(plan),
    )
}

/// One more policy, which allows somebody else.
fn policy(number: u32) -> String {
    let server = Identity::Server.service_account();
    format!(
        "---
apiVersion: weft.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {{name: policy-{number}, namespace: {NAMESPACE}}}
spec:
  selector: {{matchLabels: {{app: {server}}}}}
  action: Allow
  rules: [{{from: [{{identities: [\"spiffe://{TRUST_DOMAIN}/ns/{NAMESPACE}/sa/caller-{number}\"]}}]}}]
"
    )
}

/// One service, its workload, who may call it, and strict mode.
fn base(plan: &Plan<'_>) -> String {
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
spec: {{inbound: strict, accessLog: {log}}}
",
        log = if plan.variant == Variant::Logged(true) { "all" } else { "errors" },
        port = plan.server.port(),
        protocol = protocol(plan.protocol),
        address = plan.middle.ip(),
        listed = server_port(plan),
        allowed = Identity::Client.spiffe_id(),
    )
}

/// The application's port, and where its proxy takes what is for it.
fn server_port(plan: &Plan<'_>) -> String {
    let (port, protocol, proxy_port) = (plan.server.port(), protocol(plan.protocol), plan.middle.port());
    format!("{{name: app, port: {port}, protocol: {protocol}, proxyPort: {proxy_port}}}")
}

fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Http1 => "http",
        Protocol::Http2 => "http2",
        Protocol::Tcp => "tcp",
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
        let variants = [
            (Variant::Default, [4, 4]),
            (Variant::Workers(2), [4, 4]),
            (Variant::Routes(250), [4 + 17, 4]),
            (Variant::Endpoints(300), [4 + 299, 4]),
            (Variant::Policies(20), [4, 4 + 19]),
        ];
        for (protocol, (variant, counts)) in
            [Protocol::Http1, Protocol::Http2, Protocol::Tcp].into_iter().flat_map(|p| variants.map(|v| (p, v)))
        {
            let plan = Plan {
                place: &place,
                dir: dir.path(),
                name: "weft",
                entry: "127.0.0.1:9001".parse().unwrap(),
                middle: "127.0.0.1:9002".parse().unwrap(),
                server: "127.0.0.1:9003".parse().unwrap(),
                protocol,
                variant,
                resumption: false,
            };
            for side in [Side::Outbound, Side::Inbound] {
                let text = proxy_file(&plan, side);
                let (config, objects) = parse_proxy_file(&text).unwrap_or_else(|errors| panic!("{errors:#?}\n{text}"));
                let forward = config.spec.forward;
                let listeners = (forward.outbound.len(), forward.inbound.len());
                assert_eq!(listeners, if side == Side::Outbound { (1, 0) } else { (0, 1) });
                assert_eq!(objects.len(), counts[usize::from(side == Side::Inbound)], "{variant:?}");
            }
        }
    }
}
