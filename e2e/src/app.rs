//! The applications of the tests (`e2e/apps`): they contain no code for a mesh and report what they received.
//! Ports by kind, the same on every host: [`HTTP`], [`HTTP2`], [`TCP`], [`GREET`] (server speaks first), [`GRPC`].

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::certificate::Files;
use crate::host::Host;
use crate::mesh::Workload;
use crate::process::Process;
use crate::programs;
use crate::wait::DEADLINE;

/// HTTP/1.1, and WebSocket.
pub const HTTP: u16 = 8080;
/// HTTP/2 with prior knowledge.
pub const HTTP2: u16 = 8081;
/// Echo; answers the client's half-close with `bye from <name>`.
pub const TCP: u16 = 9000;
/// The same after a greeting: `220 <name> ready`.
pub const GREET: u16 = 9001;
/// gRPC (grpcio).
pub const GRPC: u16 = 50051;

/// Redis.
pub const REDIS: u16 = 6379;
/// PostgreSQL.
pub const POSTGRES: u16 = 5432;

/// A workload with every port an application listens on, each with its protocol declared.
pub fn workload(name: &str) -> Workload {
    Workload::of(name).port(HTTP, "http").port(HTTP2, "http2").port(TCP, "tcp").port(GREET, "tcp").port(GRPC, "grpc")
}

/// The running applications of one host.
#[derive(Debug)]
pub struct App {
    /// HTTP and TCP (node).
    pub node: Process,
    /// gRPC (Python).
    pub grpc: Process,
}

/// Starts all applications on a host under its name; returns when they listen.
///
/// Errors: node, Python or grpcio is missing.
pub fn start(host: &Host) -> Result<App> {
    let services =
        [("http", HTTP), ("http2", HTTP2), ("tcp", TCP), ("greet", GREET)].map(|(kind, port)| format!("{kind}={port}"));
    let script = path("app.js");
    let args: Vec<&str> =
        [script.as_str(), host.name()].into_iter().chain(services.iter().map(String::as_str)).collect();
    let mut node = host.spawn("node", &args, &[])?;
    let port = GRPC.to_string();
    let mut grpc = host.spawn(&python()?, &[&path("grpc_app.py"), "serve", host.name(), &port], &[])?;
    node.wait_for_output("ready", DEADLINE)?;
    grpc.wait_for_output("ready", DEADLINE)?;
    Ok(App { node, grpc })
}

/// Starts a Redis server that listens on every address and keeps nothing; returns when it listens.
///
/// Errors: redis-server is missing.
pub fn start_redis(host: &Host) -> Result<Process> {
    let port = REDIS.to_string();
    let args = ["--port", &port, "--bind", "*", "-::*", "--protected-mode", "no", "--save", "", "--appendonly", "no"];
    let mut redis = host.spawn("redis-server", &args, &[])?;
    redis.wait_for_output("Ready to accept connections", DEADLINE)?;
    Ok(redis)
}

/// A running PostgreSQL server and its data.
#[derive(Debug)]
pub struct Postgres {
    /// The server.
    pub process: Process,
    /// Removed after the process has ended.
    _data: TempDir,
}

/// Starts a new PostgreSQL server that listens on every address and believes everyone; returns when it listens.
///
/// Errors: it is not installed, or the user `postgres` is missing (it refuses to run as root).
pub fn start_postgres(host: &Host) -> Result<Postgres> {
    let versions = fs::read_dir("/usr/lib/postgresql").context("PostgreSQL is missing: run `make test`")?;
    let programs = versions.flatten().map(|version| version.path().join("bin"));
    let programs = programs.max().context("PostgreSQL is missing: run `make test`")?;
    let program = |name: &str| programs.join(name).display().to_string();
    // Not below the host's directory, which is root's alone.
    let data = TempDir::new().context("create a directory for PostgreSQL")?;
    let directory = data.path().display().to_string();
    // It looks for itself through its working directory, which it must be able to read.
    let user = ["-C", "/", "setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"];
    host.exec_ok("chown", &["postgres", &directory])?;
    let initdb = program("initdb");
    host.exec_ok(
        "env",
        &[&user[..], &[&initdb, "-D", &directory, "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C"]].concat(),
    )?;
    fs::write(data.path().join("pg_hba.conf"), "host all all all trust\n").context("write pg_hba.conf")?;
    let (server, port) = (program("postgres"), POSTGRES.to_string());
    let args = [&server, "-D", &directory, "-k", "", "-h", "*", "-p", &port, "-F"];
    let mut process = host.spawn("env", &[&user[..], &args].concat(), &[])?;
    process.wait_for_output("ready to accept connections", DEADLINE)?;
    Ok(Postgres { process, _data: data })
}

/// `curl` on a host, silent, with errors shown; whatever the status. Its standard output.
///
/// Errors: no answer.
pub fn curl(host: &Host, args: &[&str]) -> Result<String> {
    host.exec_ok("curl", &[&["-sS", "--max-time", "20"], args].concat())
}

/// The status alone, as text: "200".
///
/// Errors: no answer.
pub fn status(host: &Host, url: &str) -> Result<String> {
    curl(host, &["-o", "/dev/null", "-w", "%{http_code}", url])
}

/// What the application saw of a request: the JSON of `/seen`.
///
/// Errors: no answer, or not that JSON.
pub fn seen(host: &Host, args: &[&str]) -> Result<Value> {
    let text = curl(host, args)?;
    serde_json::from_str(&text).with_context(|| format!("not a response of the application: {text:?}"))
}

/// One call of every sort by grpcio; what it printed.
///
/// Errors: one of them is not as it must be.
pub fn grpc_calls(host: &Host, target: &str) -> Result<String> {
    host.exec_ok(&python()?, &[&path("grpc_app.py"), "call", target])
}

/// A WebSocket conversation with a name or an address: one line per answer, then `closed`.
///
/// Errors: not upgraded, or cut.
pub fn websocket(host: &Host, at: &str, port: u16, messages: &[&str]) -> Result<String> {
    let (script, port) = (path("websocket.js"), port.to_string());
    let bare = at.trim_start_matches('[').trim_end_matches(']');
    host.exec_ok("node", &[&[script.as_str(), bare, &port, "/chat"], messages].concat())
}

/// Sends `text` over TLS with a certificate of one's own, without a proxy; the first bytes of the answer.
/// `certificate`: `None` shows none.
///
/// Errors: refused, by an alert or by closing; carries the reason.
pub fn tls_client(host: &Host, at: SocketAddr, alpn: &str, certificate: Option<&Files>, text: &str) -> Result<String> {
    let (address, port) = (at.ip().to_string(), at.port().to_string());
    let file = |path: fn(&Files) -> &PathBuf| {
        certificate.map_or_else(|| "none".to_owned(), |files| path(files).display().to_string())
    };
    let (certificate, key) = (file(|files| &files.certificate), file(|files| &files.private_key));
    host.exec_ok("python3", &[&path("tls_client.py"), &address, &port, alpn, &certificate, &key, text])
}

fn path(name: &str) -> String {
    programs::repository().join("e2e/apps").join(name).display().to_string()
}

/// The Python that has grpcio: `make test` installs it into .tools/venv.
fn python() -> Result<String> {
    let python: PathBuf = programs::repository().join(".tools/venv/bin/python");
    ensure!(python.exists(), "{} is missing: run `make test`, which installs it", python.display());
    Ok(python.display().to_string())
}
