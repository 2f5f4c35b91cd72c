//! Health checks of the workload: a connection or a GET to its own address, with the proxy's mark, so that it is not captured.
//! One task per check; the workload is healthy while all of them pass, or, with the checks that it has by default, one of them.
//! A refused connection counts at once, any other failure the second time in a row. A check that fails is repeated after 1 s at
//! the latest, so that callers soon learn of the workload's return.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};
use weft_core::api::proxy_config::{HealthCheck, HealthCheckType, Passing};

use crate::{control_plane::dial, status::WorkloadHealth};

/// Longest time from a check that failed to the next.
const AGAIN: Duration = Duration::from_secs(1);
/// Failures in a row that count, unless the connection is refused.
const FAILURES: u32 = 2;

/// A check failed.
#[derive(Debug, thiserror::Error)]
enum CheckError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("no HTTP answer")]
    Http(#[from] hyper::Error),
    #[error("answers {0}")]
    Status(StatusCode),
    #[error("cannot make the request")]
    Request(#[from] http::Error),
}

/// The checks of a workload while they run.
#[derive(Debug)]
pub(crate) struct Checks {
    pub(crate) health: watch::Receiver<WorkloadHealth>,
    _tasks: JoinSet<()>,
}

impl Checks {
    /// Starts them on the current runtime; they end with the value.
    pub(crate) fn start(
        (checks, passing): (Vec<HealthCheck>, Passing),
        address: Option<IpAddr>,
        mark: Option<u32>,
    ) -> Self {
        let address = address.unwrap_or(Ipv4Addr::LOCALHOST.into());
        let failing = checks.iter().map(|check| (check.port.get(), "not checked yet".to_owned())).collect();
        // How many may fail.
        let spare = match passing {
            Passing::All => 0,
            Passing::Any => checks.len().saturating_sub(1),
        };
        let (failing, receiver) = watch::channel::<BTreeMap<u16, String>>(failing);
        let mut tasks = JoinSet::new();
        for check in checks {
            tasks.spawn(repeat(check, address, mark, failing.clone()));
        }
        let (health, changed) = watch::channel(judge(&receiver.borrow(), spare));
        tasks.spawn(async move {
            let mut receiver = receiver;
            while receiver.changed().await.is_ok() {
                let now = judge(&receiver.borrow_and_update(), spare);
                health.send_if_modified(|before| {
                    let changed = *before != now;
                    *before = now;
                    changed
                });
            }
        });
        Self { health: changed, _tasks: tasks }
    }
}

fn judge(failing: &BTreeMap<u16, String>, spare: usize) -> WorkloadHealth {
    if failing.len() <= spare {
        return WorkloadHealth::Healthy;
    }
    WorkloadHealth::Unhealthy(
        failing.iter().map(|(port, why)| format!("port {port}: {why}")).collect::<Vec<_>>().join("; "),
    )
}

async fn repeat(check: HealthCheck, address: IpAddr, mark: Option<u32>, failing: watch::Sender<BTreeMap<u16, String>>) {
    let port = check.port.get();
    let target = SocketAddr::new(address, port);
    let mut failures = 0u32;
    loop {
        match once(&check, target, mark).await {
            Ok(()) => {
                failures = 0;
                if failing.send_if_modified(|failing| failing.remove(&port).is_some()) {
                    tracing::info!(port, "health check passes");
                }
            }
            Err(error) => {
                failures = failures.saturating_add(1);
                let refused = matches!(&error, CheckError::Io(io) if io.kind() == io::ErrorKind::ConnectionRefused);
                if refused || failures >= FAILURES {
                    let reason = chain(&error);
                    let changed = failing.send_if_modified(|failing| {
                        failing.insert(port, reason.clone()).is_none_or(|before| before != reason)
                    });
                    if changed {
                        tracing::warn!(port, reason, "health check fails");
                    }
                }
            }
        }
        let interval = check.interval.std();
        sleep(if failures > 0 { interval.min(AGAIN) } else { interval }).await;
    }
}

/// An error with its causes, as one text.
fn chain(error: &CheckError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

async fn once(check: &HealthCheck, target: SocketAddr, mark: Option<u32>) -> Result<(), CheckError> {
    let limit = check.timeout.std();
    let result = match check.kind {
        HealthCheckType::Tcp => timeout(limit, async { Ok(dial(target, mark).await.map(drop)?) }).await,
        HealthCheckType::Http => timeout(limit, probe(check.path(), target, mark)).await,
    };
    result.unwrap_or(Err(CheckError::Timeout(limit)))
}

async fn probe(path: &str, target: SocketAddr, mark: Option<u32>) -> Result<(), CheckError> {
    let stream = dial(target, mark).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get(path)
        .header(http::header::HOST, target.to_string())
        .header(http::header::USER_AGENT, "weft-proxy health check")
        .body(Empty::<Bytes>::new())?;
    let exchange = async {
        let status = sender.send_request(request).await?.status();
        if status.is_success() || status.is_redirection() { Ok(()) } else { Err(CheckError::Status(status)) }
    };
    tokio::pin!(exchange, connection);
    tokio::select! {
        result = &mut exchange => result,
        ended = connection.as_mut() => { ended?; exchange.await }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use weft_core::api::proxy_config::ProxyWorkload;

    use super::*;

    fn check(json: serde_json::Value) -> HealthCheck {
        serde_json::from_value(json).unwrap()
    }

    async fn becomes(checks: &mut Checks, wanted: impl Fn(&WorkloadHealth) -> bool) {
        let wait = checks.health.wait_for(|health| wanted(health));
        timeout(Duration::from_secs(10), wait).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn an_application_is_unhealthy_while_it_refuses_or_answers_errors() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let answers = std::sync::Arc::new(std::sync::atomic::AtomicU16::new(500));
        let status = answers.clone();
        let application = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = [0; 1024];
                let read = stream.read(&mut head).await.unwrap();
                assert!(head[..read].starts_with(b"GET /ready HTTP/1.1\r\n"));
                let status = status.load(std::sync::atomic::Ordering::Relaxed);
                stream.write_all(format!("HTTP/1.1 {status} x\r\ncontent-length: 0\r\n\r\n").as_bytes()).await.unwrap();
            }
        });
        let http =
            check(serde_json::json!({"port": address.port(), "type": "http", "path": "/ready", "interval": "20ms"}));
        let mut checks = Checks::start((vec![http], Passing::All), Some(address.ip()), None);
        assert!(matches!(&*checks.health.borrow(), WorkloadHealth::Unhealthy(why) if why.contains("not checked yet")));
        becomes(&mut checks, |v| matches!(v, WorkloadHealth::Unhealthy(why) if why.contains("answers 500"))).await;
        answers.store(302, std::sync::atomic::Ordering::Relaxed);
        becomes(&mut checks, |v| *v == WorkloadHealth::Healthy).await;
        application.abort();
        becomes(&mut checks, |v| matches!(v, WorkloadHealth::Unhealthy(why) if why.contains("refused"))).await;
    }

    #[tokio::test]
    async fn without_checks_a_workload_is_healthy() {
        for passing in [Passing::All, Passing::Any] {
            assert_eq!(*Checks::start((Vec::new(), passing), None, None).health.borrow(), WorkloadHealth::Healthy);
        }
    }

    /// (23)
    #[tokio::test]
    async fn by_default_one_of_the_declared_ports_must_be_open() {
        let [one, two] = [(); 2].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
        let ports = [&one, &two].map(|listener| serde_json::json!({"port": listener.local_addr().unwrap().port()}));
        let workload = |health: Option<serde_json::Value>| -> ProxyWorkload {
            let mut workload = serde_json::json!({"ports": ports});
            if let Some(health) = health {
                workload["health"] = health;
            }
            serde_json::from_value(workload).unwrap()
        };
        let address = Some(Ipv4Addr::LOCALHOST.into());
        let (checks, passing) = workload(None).checks();
        assert_eq!((checks.len(), passing), (2, Passing::Any));
        assert_eq!(workload(Some(serde_json::json!([]))).checks(), (Vec::new(), Passing::All), "switched off");
        let soon = checks.into_iter().map(|check| HealthCheck { interval: "20ms".parse().unwrap(), ..check });
        let mut checks = Checks::start((soon.collect(), passing), address, None);
        becomes(&mut checks, |health| *health == WorkloadHealth::Healthy).await;
        drop(one);
        sleep(Duration::from_millis(200)).await;
        assert_eq!(*checks.health.borrow(), WorkloadHealth::Healthy, "the other one is open");
        let at = two.local_addr().unwrap();
        drop(two);
        becomes(&mut checks, |v| matches!(v, WorkloadHealth::Unhealthy(why) if why.contains("refused"))).await;
        let _back = tokio::net::TcpListener::bind(at).await.unwrap();
        becomes(&mut checks, |health| *health == WorkloadHealth::Healthy).await;
    }
}
