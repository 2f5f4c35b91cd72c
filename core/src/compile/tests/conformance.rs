//! Requests and expectations of the Gateway API's conformance suite (kubernetes-sigs/gateway-api v1.6, Apache-2.0), as
//! data: `conformance/*.yaml` are the suite's manifests, `cases.json` its requests. The suite's base (backends and the
//! gateway `same-namespace`) is written here.

use serde::Deserialize;

use super::*;
use crate::route::Action;

#[derive(Deserialize)]
struct Test {
    test: String,
    manifest: String,
    cases: Vec<Case>,
}

#[derive(Debug, Deserialize)]
struct Case {
    #[serde(default)]
    host: String,
    #[serde(default = "get_method")]
    method: String,
    path: String,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    backend: Option<String>,
    status: Option<u16>,
}

fn get_method() -> String {
    "GET".into()
}

const GATEWAY: &str = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: same-namespace, namespace: gateway-conformance-infra}
spec:
  gatewayClassName: weft
  listeners: [{name: http, port: 80, protocol: HTTP, allowedRoutes: {namespaces: {from: Same}}}]
"#;

fn manifests() -> Vec<(&'static str, &'static str)> {
    macro_rules! files {
        ($($name:literal),* $(,)?) => { vec![$(($name, include_str!(concat!("conformance/", $name)))),*] };
    }
    files![
        "httproute-exact-path-matching.yaml",
        "httproute-header-matching.yaml",
        "httproute-hostname-intersection.yaml",
        "httproute-listener-hostname-matching.yaml",
        "httproute-listener-port-matching.yaml",
        "httproute-matching-across-routes.yaml",
        "httproute-matching.yaml",
        "httproute-method-matching.yaml",
        "httproute-omitted-backendrefs.yaml",
        "httproute-path-match-order.yaml",
        "mesh-httproute-matching.yaml",
    ]
}

fn base() -> String {
    let service = |(namespace, name, port): (&str, String, u16)| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{selector: {{app: {name}}}, ports: [{{name: a, port: {port}}}, {{name: b, port: 9999}}]}}\n"
        )
    };
    let infra = (1..=3).map(|n| ("gateway-conformance-infra", format!("infra-backend-v{n}"), 8080));
    let mesh = [("echo", 80), ("echo-v1", 8080), ("echo-v2", 8080)]
        .map(|(name, port)| ("gateway-conformance-mesh", name.to_owned(), port));
    infra.chain(mesh).map(service).collect()
}

#[test]
fn requests_go_where_the_conformance_suite_says() {
    let tests: Vec<Test> = serde_json::from_str(include_str!("conformance/cases.json")).unwrap();
    let mut checked = 0;
    for test in &tests {
        let manifests = manifests();
        let (_, manifest) = manifests.iter().find(|(name, _)| *name == test.manifest).unwrap();
        let manifest = manifest.replace("\"{GATEWAY_CLASS_NAME}\"", "weft");
        let world = world(&format!("{}{GATEWAY}---\n{manifest}{}", "---", base()));
        let tables = tables(&world);
        for case in &test.cases {
            // In this one test the host's port is also where the request is sent.
            let (host, sent) = case.host.rsplit_once(':').unwrap_or((&case.host, "80"));
            let port = if test.test == "HTTPRouteListenerPortMatching" { sent } else { "80" };
            let head = Head {
                host: host.into(),
                method: case.method.clone(),
                path: case.path.split('?').next().unwrap().into(),
                headers: case.headers.clone().into_iter().collect(),
            };
            // In this one test there are two gateways, and these hosts are asked for at the second.
            let second = ["first.com", "second.com", "third.com"].iter().any(|end| host.ends_with(end));
            let gateway = |table: &&RouteTable| {
                test.test != "HTTPRouteHostnameIntersection" || table.name.to_string().contains("-all:") == second
            };
            let at_port =
                tables.iter().filter(gateway).filter(|table| table.name.to_string().ends_with(&format!(":{port}")));
            // Where a test has a gateway of its own, that one is meant; it holds the only rules then.
            let used = at_port.max_by_key(|table| table.hosts.iter().map(|host| host.rules.len()).sum::<usize>());
            let found = match used.and_then(|table| table.find(&head)).map(|rule| &rule.action) {
                Some(Action::Forward(forward)) => forward.clusters[0].cluster.to_string(),
                Some(Action::Respond(status)) => status.to_string(),
                Some(Action::Deliver) => panic!("no inbound table"),
                None => "404".into(),
            };
            let name = |cluster: &str| {
                let name = cluster.rsplit('/').next().and_then(|last| last.split(':').next());
                name.unwrap_or_default().to_owned()
            };
            match (&case.backend, case.status) {
                (Some(backend), _) => assert_eq!(&name(&found), backend, "{} {case:?}: {found}", test.test),
                (None, status) => assert_eq!(found, status.unwrap().to_string(), "{} {case:?}", test.test),
            }
            checked += 1;
        }
    }
    assert_eq!(checked, 110, "every case is checked");
}

fn tables(world: &World) -> Vec<RouteTable> {
    let mut names = Vec::new();
    for (key, object) in world.objects().iter() {
        if let Object::Gateway(gateway) = &**object {
            names.extend(gateway.spec.listeners.iter().map(|listener| RouteName::Gateway {
                namespace: key.namespace.clone(),
                name: key.name.clone(),
                port: listener.port,
            }));
        }
    }
    let mut tables: Vec<RouteTable> = names.iter().filter_map(|name| world.routes(name, &anyone())).collect();
    tables.extend(routes(world, "svc/gateway-conformance-mesh/echo:80").filter(|table| {
        // The mesh's table counts only where a route is attached to it.
        table.hosts[0].rules.iter().any(|rule| !rule.name.ends_with("#default"))
    }));
    tables
}
