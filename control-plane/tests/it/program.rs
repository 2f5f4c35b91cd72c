//! The program itself: flags, output, a second one on the same data, the end.

use std::process::{Command, Output};

use crate::crash::Program;

fn run(flags: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_weft-control-plane")).args(flags).output().unwrap()
}

#[test]
fn wrong_flags_are_all_told_with_exit_code_64() {
    let output = run(&["--grpc", "x", "--svid-ttl", "1s", "--trust-domain", "A B"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(64));
    assert!(["--grpc", "--svid-ttl", "--trust-domain"].iter().all(|flag| text.contains(flag)), "{text}");
    assert_eq!(run(&["--colour"]).status.code(), Some(64));
    assert_eq!(run(&["--help"]).status.code(), Some(0));
}

#[test]
fn the_token_is_told_once_and_a_second_program_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut program = Program::start(dir.path());
    let data = dir.path().join("data").display().to_string();
    let second =
        run(&["--data-dir", &data, "--grpc", "127.0.0.1:0", "--api", "127.0.0.1:0", "--metrics", "127.0.0.1:0"]);
    let text = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success() && text.contains("in use by another weft-control-plane"), "{text}");
    let (status, log) = program.terminate();
    assert!(status.success(), "{log}");
    assert_eq!(log.matches("weftadmin.").count(), 1, "{log}");
    let (_, log) = Program::start(dir.path()).terminate();
    assert_eq!(log.matches("weftadmin.").count(), 0, "{log}");
}

#[test]
fn an_address_in_use_and_a_foreign_root_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data").display().to_string();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = run(&["--data-dir", &data, "--grpc", &address, "--api", "127.0.0.1:0", "--metrics", "127.0.0.1:0"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && text.contains(&format!("--grpc {address}: cannot listen")), "{text}");
    let output = run(&["--data-dir", &data, "--trust-domain", "other.org"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && text.contains("--trust-domain"), "{text}");
}
