//! One Weft proxy with a real control plane on loopback, objects applied through its API, for the rows about configuration.
//! The endpoints are nginx itself, outside the mesh: the calling proxy is measured.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::runtime;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep, timeout};

use crate::certs::NAMESPACE;
use crate::pairs::Place;
use crate::process::{Child, give_way};
use crate::scenario::Protocol;
use crate::server::{SECOND, free_address};
use crate::verify;

/// Services that are called.
const IN_USE: u32 = 5;
/// A file system in memory.
const MEMORY: &str = "/dev/shm";
/// Longest wait for a program to be ready.
const PATIENCE: Duration = Duration::from_secs(30);
/// Objects in one request to the API, which takes 4 MiB.
const AT_ONCE: usize = 1000;

/// The control plane and the proxy.
#[derive(Debug)]
pub struct Mesh {
    plane: Plane,
    /// One that no proxy is connected to.
    beside: Option<Plane>,
    dir: PathBuf,
    cpu: usize,
    load_cpu: usize,
    server: SocketAddr,
    proxy: Option<Proxy>,
}

/// A control plane with its objects.
#[derive(Debug)]
struct Plane {
    child: Child,
    grpc: SocketAddr,
    socket: PathBuf,
    token: String,
    _data: tempfile::TempDir,
}

/// A running series of changes; it ends when dropped.
#[derive(Debug)]
pub struct Churn {
    made: Arc<AtomicU64>,
    ended: oneshot::Receiver<Result<()>>,
    _stop: oneshot::Sender<()>,
}

impl Churn {
    /// How many were made.
    ///
    /// # Errors
    /// One failed, and there are no more.
    pub fn made(&mut self) -> Result<u64> {
        if let Ok(ended) = self.ended.try_recv() {
            ended?;
        }
        Ok(self.made.load(Ordering::Relaxed))
    }
}

#[derive(Debug)]
struct Proxy {
    child: Child,
    entries: Vec<SocketAddr>,
}

impl Plane {
    /// Starts a control plane with `services` services, all on `server`.
    async fn start(place: &Place, name: &str, load_cpu: usize, server: SocketAddr, services: u32) -> Result<Self> {
        let dir = place.dir.join(name);
        std::fs::create_dir_all(&dir)?;
        let (grpc, api, metrics) = (free_address()?, free_address()?, free_address()?);
        let socket = dir.join("api.sock");
        // In memory where that can be had: waiting for a disk, a virtual machine stops the CPU that the client runs on.
        let memory = Path::new(MEMORY);
        let data =
            tempfile::Builder::new().prefix("weft-bench-").tempdir_in(if memory.is_dir() { memory } else { &dir })?;
        let args = [
            "--data-dir".as_ref(),
            data.path().as_os_str(),
            "--api-socket".as_ref(),
            socket.as_os_str(),
            "--grpc".as_ref(),
            grpc.to_string().as_ref(),
            "--api".as_ref(),
            api.to_string().as_ref(),
            "--metrics".as_ref(),
            metrics.to_string().as_ref(),
            "--log".as_ref(),
            "warn".as_ref(),
        ]
        .map(std::ffi::OsStr::to_owned);
        let program = place.weft.with_file_name("weft-control-plane");
        ensure!(
            program.is_file(),
            "weft-control-plane is missing beside weft-proxy; build it: cargo build --release -p weft-control-plane"
        );
        let mut child = place.launcher.start_elsewhere(&format!("{name}-control-plane"), load_cpu, &program, args)?;
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = call(&socket, Method::GET, "/readyz", String::new()).await {
            child.check()?;
            ensure!(Instant::now() < deadline, "the control plane does not respond: {error:#}");
            sleep(Duration::from_millis(20)).await;
        }
        let documents: Vec<String> = objects(server, services);
        for part in documents.chunks(AT_ONCE) {
            call(&socket, Method::POST, "/api/v1/apply", part.join("---\n")).await.context("apply the objects")?;
        }
        let wish = format!(
            "{{\"namespace\": \"{NAMESPACE}\", \"serviceAccount\": \"client\", \"ttl\": \"1h\", \"reusable\": true}}"
        );
        let answer = call(&socket, Method::POST, "/api/v1/tokens", wish).await.context("create a token")?;
        let answer: serde_json::Value = serde_json::from_str(&answer)?;
        let token =
            answer.get("token").and_then(|token| token.as_str()).context("no token in the response")?.to_owned();
        Ok(Self { child, grpc, socket, token, _data: data })
    }
}

impl Mesh {
    /// Starts a control plane with `services` services, all on `server`; and `beside` it another one like it, which has no
    /// proxies and gets the changes of [`Mesh::churn`].
    ///
    /// # Errors
    /// It does not start or refuses the objects.
    pub async fn start(
        place: &Place,
        name: &str,
        load_cpu: usize,
        server: SocketAddr,
        services: u32,
        beside: bool,
    ) -> Result<Self> {
        let plane = Plane::start(place, name, load_cpu, server, services).await?;
        let beside = if beside {
            Some(Plane::start(place, &format!("{name}-beside"), load_cpu, server, services).await?)
        } else {
            None
        };
        Ok(Self { plane, beside, dir: place.dir.join(name), cpu: place.cpu, load_cpu, server, proxy: None })
    }

    /// Starts the proxy anew and returns how long it took until `/readyz` said 200.
    ///
    /// # Errors
    /// It does not become ready.
    pub async fn start_proxy(&mut self, place: &Place) -> Result<Duration> {
        self.proxy = None;
        let metrics = free_address()?;
        let entries = (0..IN_USE).map(|_| free_address()).collect::<Result<Vec<_>>>()?;
        let path = self.dir.join("proxy.yaml");
        std::fs::write(&path, self.proxy_file(metrics, &entries))?;
        let name = self.dir.file_name().and_then(|name| name.to_str()).unwrap_or("mesh");
        let start = Instant::now();
        let args = ["run".as_ref(), "--config".as_ref(), path.as_os_str()];
        let mut child = place.launcher.start(&format!("{name}-proxy"), self.cpu, &place.weft, args)?;
        while !is_ready(metrics).await {
            child.check()?;
            ensure!(start.elapsed() < PATIENCE, "the proxy is not ready; its log ends:\n{}", child.log_tail());
            sleep(Duration::from_millis(1)).await;
        }
        let took = start.elapsed();
        self.proxy = Some(Proxy { child, entries });
        Ok(took)
    }

    /// Uses each of the five services once.
    ///
    /// # Errors
    /// One does not answer rightly.
    pub async fn use_services(&self) -> Result<()> {
        for &entry in &self.proxy()?.entries {
            let deadline = Instant::now() + PATIENCE;
            while let Err(error) = verify::answers(entry, Protocol::Http1).await {
                ensure!(
                    Instant::now() < deadline,
                    "{error:#}\nthe proxy's log ends:\n{}",
                    self.proxy()?.child.log_tail()
                );
                sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(())
    }

    /// Where the first service is reached.
    ///
    /// # Errors
    /// The proxy was not started.
    pub fn entry(&self) -> Result<SocketAddr> {
        self.proxy()?.entries.first().copied().context("no entry")
    }

    /// The process ids of the proxy, of its control plane, and of the one beside if there is one.
    ///
    /// # Errors
    /// The proxy was not started.
    pub fn pids(&self) -> Result<Vec<i32>> {
        let planes = [&self.plane].into_iter().chain(&self.beside);
        Ok([self.proxy()?.child.pid()].into_iter().chain(planes.map(|plane| plane.child.pid())).collect())
    }

    /// Fails when one of them has ended.
    ///
    /// # Errors
    /// One has; with the end of its log.
    pub fn check(&mut self) -> Result<()> {
        self.plane.child.check()?;
        self.beside.as_mut().map_or(Ok(()), |plane| plane.child.check())?;
        self.proxy.as_mut().map_or(Ok(()), |proxy| proxy.child.check())
    }

    /// Begins to add and remove an endpoint of the first service, `rate` changes a second, each a revision of its own, on a
    /// thread that gives way to the load: at the control plane beside where there is one.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn churn(&self, rate: u32) -> Result<Churn> {
        let socket = self.beside.as_ref().unwrap_or(&self.plane).socket.clone();
        let body = workload("second", &SECOND.to_string(), self.server.port());
        let (stop, stopped) = oneshot::channel::<()>();
        let (tell, ended) = oneshot::channel();
        let churn = Churn { made: Arc::default(), ended, _stop: stop };
        let made = Arc::clone(&churn.made);
        let changes = async move {
            let mut ticks = interval(Duration::from_secs(1) / rate);
            let path = format!("/api/v1/workloads/{NAMESPACE}/second");
            let mut api = Api::open(&socket).await?;
            loop {
                for method in [Method::PUT, Method::DELETE] {
                    ticks.tick().await;
                    let body = if method == Method::PUT { body.clone() } else { String::new() };
                    api.call(method, &path, body).await.context("change an endpoint")?;
                    made.fetch_add(1, Ordering::Relaxed);
                }
            }
        };
        thread::Builder::new().name("churn".to_owned()).spawn(move || {
            let run = || {
                give_way()?;
                let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(async {
                    tokio::select! {
                        result = changes => result,
                        _ = stopped => Ok(()),
                    }
                })
            };
            // Nobody hears it once the load has ended.
            drop(tell.send(run()));
        })?;
        Ok(churn)
    }

    /// The load's CPU, where the control plane runs.
    #[must_use]
    pub fn load_cpu(&self) -> usize {
        self.load_cpu
    }

    fn proxy(&self) -> Result<&Proxy> {
        self.proxy.as_ref().context("the proxy was not started")
    }

    fn proxy_file(&self, metrics: SocketAddr, entries: &[SocketAddr]) -> String {
        let forward: Vec<String> = (1..)
            .zip(entries)
            .map(|(number, entry)| format!("{{listen: \"{entry}\", destination: \"{}:80\"}}", address(number)))
            .collect();
        format!(
            "apiVersion: weft.dev/v1alpha1
kind: ProxyConfig
metadata: {{name: client-1, namespace: {NAMESPACE}}}
spec:
  mode: sidecar
  workload: {{serviceAccount: client, labels: {{app: client}}, addresses: [127.0.0.1]}}
  controlPlane: {{address: \"{grpc}\", joinToken: \"{token}\"}}
  mark: 0
  workers: 1
  ports: {{outbound: 0, inbound: 0, admin: 0, metrics: {metrics}}}
  forward:
    outbound: [{forward}]
",
            grpc = self.plane.grpc,
            token = self.plane.token,
            metrics = metrics.port(),
            forward = forward.join(", "),
        )
    }
}

/// The address of service `number`, from 1.
fn address(number: u32) -> std::net::Ipv4Addr {
    let [_, a, b, c] = number.to_be_bytes();
    std::net::Ipv4Addr::new(240, a, b, c)
}

fn workload(name: &str, address: &str, port: u16) -> String {
    format!(
        "apiVersion: weft.dev/v1alpha1
kind: Workload
metadata: {{name: {name}, namespace: {NAMESPACE}, labels: {{app: server}}}}
spec: {{serviceAccount: server, addresses: [{address}], ports: [{{name: app, port: {port}, protocol: http}}], mesh: false}}
"
    )
}

fn objects(server: SocketAddr, services: u32) -> Vec<String> {
    let mut documents = vec![workload("first", &server.ip().to_string(), server.port())];
    documents.extend((1..=services).map(|number| {
        let mut text = String::new();
        _ = write!(
            text,
            "apiVersion: v1
kind: Service
metadata: {{name: service-{number}, namespace: {NAMESPACE}}}
spec:
  clusterIPs: [{}]
  selector: {{app: server}}
  ports: [{{name: app, port: 80, targetPort: {}, appProtocol: http}}]
",
            address(number),
            server.port()
        );
        text
    }));
    documents
}

/// One call of the API through its Unix socket, on a connection of its own.
async fn call(socket: &Path, method: Method, path: &str, body: String) -> Result<String> {
    Api::open(socket).await?.call(method, path, body).await
}

/// A connection to the API. It ends when dropped.
struct Api {
    sender: http1::SendRequest<Full<Bytes>>,
    _connection: JoinSet<hyper::Result<()>>,
}

impl Api {
    async fn open(socket: &Path) -> Result<Self> {
        let stream = timeout(PATIENCE, UnixStream::connect(socket)).await.context("no connection within 30 s")??;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let mut tasks = JoinSet::new();
        tasks.spawn(connection);
        Ok(Self { sender, _connection: tasks })
    }

    async fn call(&mut self, method: Method, path: &str, body: String) -> Result<String> {
        let exchange = async {
            self.sender.ready().await?;
            let request = Request::builder().method(method).uri(path).header("host", "localhost");
            let answer = self.sender.send_request(request.body(Full::new(Bytes::from(body)))?).await?;
            let status = answer.status();
            let body = answer.into_body().collect().await?.to_bytes();
            let body = String::from_utf8_lossy(&body).into_owned();
            match status {
                StatusCode::OK | StatusCode::CREATED => Ok(body),
                status => bail!("{path}: status {status}: {body}"),
            }
        };
        timeout(PATIENCE, exchange).await.context("no response within 30 s")?
    }
}

async fn is_ready(metrics: SocketAddr) -> bool {
    let exchange = async {
        let mut stream = TcpStream::connect(metrics).await?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await?;
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    exchange.await.is_ok_and(|answer| answer.ends_with(b" 200"))
}

#[cfg(test)]
mod tests {
    use weft_core::api::parse_proxy_file;

    use super::*;

    #[test]
    fn services_have_addresses_of_their_own() {
        assert_eq!(address(1).to_string(), "240.0.0.1");
        assert_eq!(address(10_000).to_string(), "240.0.39.16");
        assert_eq!(objects("127.0.0.1:80".parse().unwrap(), 10).len(), 11);
    }

    /// Without control plane the same objects stand in the proxy's file: their shapes are checked there.
    #[test]
    fn the_objects_are_valid() {
        let server = "127.0.0.1:8080".parse().unwrap();
        let config = "apiVersion: weft.dev/v1alpha1\nkind: ProxyConfig\nmetadata: {name: a, namespace: bench}\nspec:\n  mode: sidecar\n  workload: {serviceAccount: client, labels: {app: client}, addresses: [127.0.0.1]}\n";
        let text = format!("{config}---\n{}", objects(server, 3).join("---\n"));
        let (_, objects) = parse_proxy_file(&text).unwrap_or_else(|errors| panic!("{errors:#?}\n{text}"));
        assert_eq!(objects.len(), 4);
    }
}
