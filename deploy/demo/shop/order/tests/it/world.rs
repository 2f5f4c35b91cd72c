//! Programs for the tests: each on a free loopback port, each ended with the test, whatever happens.
//!
//! `setpriv --pdeathsig` has the kernel end a program when the test's thread is gone, so nothing stays behind.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use tokio::time::Instant;

/// Longest wait for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(15);

/// A directory for one test's files, and the starting of programs.
pub(crate) struct World {
    pub(crate) dir: TempDir,
}

/// A running program. Killed when dropped.
pub(crate) struct Program {
    name: String,
    child: Child,
    log: PathBuf,
    stop: Signal,
    /// Where it listens.
    pub(crate) address: String,
}

/// One HTTP answer.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Value,
}

impl World {
    pub(crate) fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("weft-shop-").tempdir().unwrap();
        // PostgreSQL runs as another user and must be able to reach its folder.
        fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        Self { dir }
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    /// A service of the shop, not waited for.
    pub(crate) fn service(&self, name: &str, command: &[&str], env: &[(&str, &str)]) -> Program {
        self.start(name, command, env, "", Signal::KILL)
    }

    pub(crate) fn product(&self, name: &str, version: &str, bind: &str, database: &str) -> Program {
        let database = self.path(database);
        self.service(
            name,
            &["python3", &shop("product/product.py")],
            &[("BIND", bind), ("VERSION", version), ("INSTANCE", name), ("DATABASE", &database)],
        )
    }

    pub(crate) fn user(&self, name: &str, bind: &str, redis: &str) -> Program {
        let env = [("BIND", bind), ("INSTANCE", name), ("USER_DB_ADDR", redis)];
        self.service(name, &["node", &shop("user/user.js")], &env)
    }

    pub(crate) fn payment(&self, name: &str, bind: &str, database: &str) -> Program {
        let database = self.path(database);
        self.service(
            name,
            &[&venv_python(), &shop("payment/payment.py")],
            &[("BIND", bind), ("INSTANCE", name), ("DATABASE", &database)],
        )
    }

    pub(crate) fn redis(&self, port: u16) -> Program {
        let (dir, port_text) = (self.path("redis"), port.to_string());
        fs::create_dir_all(&dir).unwrap();
        let command = [
            "redis-server",
            "--bind",
            "127.0.0.1",
            "--port",
            &port_text,
            "--dir",
            &dir,
            "--save",
            "",
            "--appendonly",
            "yes",
            "--appendfsync",
            "always",
        ];
        self.start("redis", &command, &[], &format!("127.0.0.1:{port}"), Signal::KILL)
    }

    /// Makes an empty database cluster, and returns its folder.
    pub(crate) fn initdb(&self) -> String {
        let (holder, data) = (self.path("postgres"), self.path("postgres/data"));
        fs::create_dir(&holder).unwrap();
        if root() {
            let done = Command::new("chown").args(["postgres:postgres", &holder]).status().unwrap();
            assert!(done.success(), "chown: {done}");
        }
        let mut command = as_postgres(&postgres_bin("initdb"));
        let output = command
            .args(["-D", &data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"])
            .current_dir("/")
            .output()
            .unwrap();
        assert!(output.status.success(), "initdb: {}", String::from_utf8_lossy(&output.stderr));
        data
    }

    pub(crate) fn postgres(&self, data: &str, port: u16) -> Program {
        let mut command = as_postgres(&postgres_bin("postgres"));
        command.args(["-D", data, "-h", "127.0.0.1", "-p", &port.to_string(), "-k", ""]).current_dir("/");
        // SIGQUIT: immediate shutdown, children included.
        self.spawn("postgres", command, &format!("127.0.0.1:{port}"), Signal::QUIT)
    }

    pub(crate) fn start(
        &self,
        name: &str,
        command: &[&str],
        env: &[(&str, &str)],
        address: &str,
        stop: Signal,
    ) -> Program {
        let mut child = Command::new("setpriv");
        child.args(["--pdeathsig", "KILL", "--"]).args(command).envs(env.iter().copied());
        self.spawn(name, child, address, stop)
    }

    fn spawn(&self, name: &str, mut command: Command, address: &str, stop: Signal) -> Program {
        let log = (0..).map(|n| self.dir.path().join(format!("{name}.{n}.log"))).find(|path| !path.exists()).unwrap();
        let out = File::create(&log).unwrap();
        command.stdin(Stdio::null()).stderr(out.try_clone().unwrap()).stdout(out);
        let child = command.spawn().unwrap_or_else(|error| panic!("{name}: {error}"));
        Program { name: name.to_owned(), child, log, stop, address: address.to_owned() }
    }
}

impl Program {
    /// The JSON lines that it wrote so far.
    pub(crate) fn log_lines(&self) -> Vec<Value> {
        let text = fs::read_to_string(&self.log).unwrap();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Waits until it has told its address in its log.
    pub(crate) fn listening(mut self) -> Self {
        let found = wait(&format!("{} listens", self.name), || {
            self.log_lines().iter().find(|line| line["message"] == "listening").cloned()
        });
        let address = found["address"].as_str().unwrap();
        self.address = address.replace("0.0.0.0", "127.0.0.1").replace("[::]", "[::1]");
        self
    }

    /// Waits until it listens and its database answers.
    pub(crate) fn ready(self) -> Self {
        let program = if self.address.is_empty() { self.listening() } else { self };
        program.wait_ready()
    }

    fn wait_ready(self) -> Self {
        wait(&format!("{} is ready", self.name), || (self.get("/healthz").status == 200).then_some(()));
        self
    }

    pub(crate) fn kill(mut self) {
        self.end(self.stop);
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Sends SIGTERM and returns how long the end took and the exit code.
    pub(crate) fn terminate(mut self) -> (Duration, Option<i32>) {
        let started = Instant::now();
        self.signal(Signal::TERM);
        let code = wait(&format!("{} ends", self.name), || self.child.try_wait().unwrap()).code();
        (started.elapsed(), code)
    }

    /// Waits for its own end.
    pub(crate) fn finish(&mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, "", "")
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Answer {
        self.ask("POST", path, "content-type: application/json\r\n", &body.to_string())
    }

    /// One request on its own connection. Panics without an answer.
    pub(crate) fn ask(&self, method: &str, path: &str, headers: &str, body: &str) -> Answer {
        self.try_ask(method, path, headers, body)
            .unwrap_or_else(|error| panic!("{} {method} {path}: {error}", self.name))
    }

    pub(crate) fn try_ask(&self, method: &str, path: &str, headers: &str, body: &str) -> std::io::Result<Answer> {
        let mut stream = TcpStream::connect(&self.address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let length = if method == "GET" { String::new() } else { format!("content-length: {}\r\n", body.len()) };
        write!(stream, "{method} {path} HTTP/1.1\r\nhost: shop\r\nconnection: close\r\n{headers}{length}\r\n{body}")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let cut = || std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
        let (head, body) = text.split_once("\r\n\r\n").ok_or_else(cut)?;
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(cut)?;
        let head = head.to_ascii_lowercase();
        // A page is a text, everything else JSON.
        let body =
            if head.contains("content-type: text/html") { Ok(Value::from(body)) } else { serde_json::from_str(body) };
        let body = body.map_err(std::io::Error::other)?;
        Ok(Answer { status, head, body })
    }

    fn end(&mut self, signal: Signal) {
        if matches!(self.child.try_wait(), Ok(None)) {
            kill_process(Pid::from_child(&self.child), signal).unwrap();
            self.child.wait().unwrap();
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.end(self.stop);
        if std::thread::panicking() {
            let text = fs::read_to_string(&self.log).unwrap_or_default();
            let lines = text.lines().rev().take(12).collect::<Vec<_>>();
            eprintln!("--- {} wrote last:\n{}", self.name, lines.into_iter().rev().collect::<Vec<_>>().join("\n"));
        }
    }
}

/// Asks until there is an answer.
pub(crate) fn wait<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = ask() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} in vain until {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A port that was free a moment ago, for programs that cannot pick one themselves.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A file of the shop.
pub(crate) fn shop(path: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join(path).to_str().unwrap().to_owned()
}

/// The Python with grpcio.
pub(crate) fn venv_python() -> String {
    let python = shop("../../../.tools/venv/bin/python");
    assert!(
        Path::new(&python).exists(),
        "{python} is missing; make it with: python3 -m venv .tools/venv && \
         .tools/venv/bin/pip install -r deploy/demo/shop/payment/requirements.txt"
    );
    python
}

fn root() -> bool {
    rustix::process::geteuid().is_root()
}

/// PostgreSQL refuses root.
fn as_postgres(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    if root() {
        command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]);
    }
    command.args(["--pdeathsig", "QUIT", "--"]).arg(program);
    command
}

/// A program of the newest PostgreSQL that Debian installed.
fn postgres_bin(name: &str) -> PathBuf {
    let versions =
        fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL is not installed: apt-get install postgresql");
    let newest = versions
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse::<u32>().ok())
        .max()
        .expect("no version in /usr/lib/postgresql");
    PathBuf::from(format!("/usr/lib/postgresql/{newest}/bin/{name}"))
}
