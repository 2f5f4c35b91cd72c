//! A control plane of one's own, and the `weft` program. Both end with the test.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use serde_json::Value;
use tempfile::TempDir;

/// A running control plane.
pub(crate) struct World {
    /// `127.0.0.1:port` of its API.
    pub(crate) api: String,
    /// `127.0.0.1:port` of its gRPC.
    pub(crate) grpc: String,
    directory: TempDir,
    process: Child,
}

/// What a program said and how it ended.
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl World {
    /// Starts one and waits until it has told its addresses.
    pub(crate) fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let program = beside("weft-control-plane");
        let any = "127.0.0.1:0";
        let mut process = Command::new(&program)
            .args(["--grpc", any, "--api", any, "--metrics", any, "--data-dir"])
            .arg(directory.path().join("data"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(directory.path().join("log")).unwrap())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}; run `cargo build --workspace` first", program.display()));
        let mut out = BufReader::new(process.stdout.take().unwrap());
        let mut addresses = Value::Null;
        while !addresses["api"].is_string() {
            let mut line = String::new();
            if out.read_line(&mut line).unwrap() == 0 {
                process.kill().unwrap();
                panic!("it ended: {}", fs::read_to_string(directory.path().join("log")).unwrap());
            }
            addresses = serde_json::from_str(&line).unwrap_or_default();
        }
        std::thread::spawn(move || out.read_to_end(&mut Vec::new()));
        let of = |name: &str| addresses[name].as_str().unwrap().to_owned();
        Self { api: of("api"), grpc: of("grpc"), directory, process }
    }

    /// The file of the admin token, which the first start writes.
    pub(crate) fn admin_token(&self) -> String {
        self.path("data/admin-token")
    }

    /// Runs `weft` through the Unix socket.
    pub(crate) fn weft(&self, args: &[&str]) -> Said {
        let server = format!("unix:{}", self.path("data/api.sock"));
        program(&[&["--server", &server], args].concat())
    }

    /// Runs `weft` with just these arguments.
    pub(crate) fn program(&self, args: &[&str]) -> Said {
        program(args)
    }

    /// A path of this world.
    pub(crate) fn path(&self, name: &str) -> String {
        self.directory.path().join(name).to_str().unwrap().to_owned()
    }

    /// Writes a file; its path.
    pub(crate) fn file(&self, name: &str, text: &str) -> String {
        fs::write(self.path(name), text).unwrap();
        self.path(name)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Said {
    /// Its output; it must have succeeded.
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, 0, "{}{}", self.out, self.err);
        self.out
    }
}

/// Runs `weft` with nothing from the environment.
pub(crate) fn program(args: &[&str]) -> Said {
    let output = Command::new(env!("CARGO_BIN_EXE_weft")).args(args).env_clear().stdin(Stdio::null()).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Said { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
}

/// A server of no kind: gives the same bytes to everyone, until the test ends.
pub(crate) fn answer_always(path: &Path, answer: String) {
    let listener = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut head = [0; 4096];
            // One read holds the head of every request here.
            if stream.read(&mut head).is_ok_and(|read| read > 0) {
                stream.write_all(answer.as_bytes()).unwrap();
            }
        }
    });
}

fn beside(name: &str) -> PathBuf {
    let directory = std::env::var_os("WEFT_BIN").map(PathBuf::from);
    directory.unwrap_or_else(|| Path::new(env!("CARGO_BIN_EXE_weft")).parent().unwrap().to_owned()).join(name)
}
