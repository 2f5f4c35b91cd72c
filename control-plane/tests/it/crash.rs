//! BATTERY.md G8: the real program killed with -9 at random moments under writes. No acknowledged write is lost, every
//! start reads what is there, revisions have no gap.

use std::{
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use parking_lot::Mutex;
use serde_json::Value;
use tokio::time::Instant;

/// The real program.
pub(crate) struct Program {
    child: Child,
    socket: PathBuf,
    log: PathBuf,
}

impl Program {
    /// Starts it and waits until it says where it listens.
    pub(crate) fn start(dir: &Path) -> Self {
        Self::start_by(dir, &[])
    }

    /// The same, started by another program.
    pub(crate) fn start_by(dir: &Path, by: &[&str]) -> Self {
        let log = dir.join("log");
        let data = dir.join("data");
        let command = [by, &[env!("CARGO_BIN_EXE_weft-control-plane")]].concat();
        let (program, first) = command.split_first().unwrap();
        let mut child = Command::new(program)
            .args(first)
            .args(["--grpc", "127.0.0.1:0", "--api", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--data-dir"])
            .arg(&data)
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with('{'), "{line}{}", std::fs::read_to_string(&log).unwrap());
        Self { child, socket: data.join("api.sock"), log }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM: how it ended, and its log.
    pub(crate) fn terminate(&mut self) -> (ExitStatus, String) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        (self.child.wait().unwrap(), std::fs::read_to_string(&self.log).unwrap())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _already_ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// One request on a connection of its own; `None` when the program died before it answered.
pub(crate) fn ask(socket: &Path, method: &str, path: &str, body: &str) -> Option<Value> {
    let mut stream = UnixStream::connect(socket).ok()?;
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    )
    .ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    assert!(head.starts_with("HTTP/1.1 200") || head.starts_with("HTTP/1.1 201"), "{answer}");
    serde_json::from_str(body).ok()
}

fn rounds(rounds: u32, seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let dir = tempfile::tempdir().unwrap();
    // Everything acknowledged, over all rounds: the number written to each object, and the newest revision.
    let acknowledged: Arc<Mutex<std::collections::BTreeMap<u64, u64>>> = Arc::default();
    let newest = Arc::new(AtomicU64::new(0));
    let next = Arc::new(AtomicU64::new(1));
    let mut slowest = Duration::ZERO;
    for round in 0..rounds {
        let started = Instant::now();
        let mut program = Program::start(dir.path());
        slowest = slowest.max(started.elapsed());
        verify(&program, &acknowledged.lock(), newest.load(Ordering::SeqCst), round);
        let writers: Vec<_> = (0..3)
            .map(|writer| {
                let (socket, acknowledged) = (program.socket.clone(), Arc::clone(&acknowledged));
                let (newest, next) = (Arc::clone(&newest), Arc::clone(&next));
                thread::spawn(move || {
                    loop {
                        let number = next.fetch_add(1, Ordering::SeqCst);
                        // Each writer has its own twenty objects, so that the last acknowledged number must be there.
                        let object = writer * 20 + number % 20;
                        let body = format!(
                            "{{apiVersion: v1, kind: Service, metadata: {{name: s{object}, annotations: {{number: '{number}'}}}}, spec: {{ports: [{{port: 80}}]}}}}"
                        );
                        let Some(answer) = ask(&socket, "POST", "/api/v1/apply", &body) else { return };
                        acknowledged.lock().insert(object, number);
                        newest.fetch_max(answer["revision"].as_u64().unwrap(), Ordering::SeqCst);
                    }
                })
            })
            .collect();
        thread::sleep(Duration::from_micros(random.u64(0..150_000)));
        program.kill();
        writers.into_iter().for_each(|writer| writer.join().unwrap());
    }
    let program = Program::start(dir.path());
    verify(&program, &acknowledged.lock(), newest.load(Ordering::SeqCst), rounds);
    assert!(newest.load(Ordering::SeqCst) > u64::from(rounds), "there were writes to lose");
    assert!(slowest < Duration::from_secs(5), "ready after {slowest:?}");
}

fn verify(program: &Program, acknowledged: &std::collections::BTreeMap<u64, u64>, newest: u64, round: u32) {
    let list = ask(&program.socket, "GET", "/api/v1/services", "").unwrap();
    let stored: std::collections::BTreeMap<&str, u64> = list["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|object| {
            let number = object["metadata"]["annotations"]["number"].as_str().unwrap();
            (object["metadata"]["name"].as_str().unwrap(), number.parse().unwrap())
        })
        .collect();
    for (object, number) in acknowledged {
        let found = stored.get(format!("s{object}").as_str());
        // A write that was not acknowledged may be there all the same, but only a later one.
        assert!(
            found.is_some_and(|found| found >= number),
            "round {round}: s{object} is {found:?}, {number} was acknowledged"
        );
    }
    let revision = list["revision"].as_u64().unwrap();
    assert!(revision >= newest, "round {round}: revision {revision}, {newest} was acknowledged");
    let history = ask(&program.socket, "GET", "/api/v1/revisions?limit=1000", "").unwrap();
    let numbers: Vec<u64> =
        history["items"].as_array().unwrap().iter().map(|r| r["number"].as_u64().unwrap()).collect();
    assert!(
        numbers.iter().copied().eq((1..=revision).rev().take(numbers.len())),
        "round {round}: a gap in {numbers:?}"
    );
}

#[test]
fn fifty_kills_lose_no_acknowledged_write() {
    rounds(50, 1);
}

#[test]
#[ignore = "slow: about ten minutes"]
fn a_thousand_kills_lose_no_acknowledged_write() {
    rounds(1_000, 2);
}
