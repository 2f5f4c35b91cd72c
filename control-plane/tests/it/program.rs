//! The program itself: flags, output, a second one on the same data, the end.

use std::{
    os::unix::fs::PermissionsExt as _,
    process::{Command, Output},
};

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

/// (26)
#[test]
fn the_admin_token_is_in_a_private_file_and_never_in_the_log_and_a_second_program_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut program = Program::start(dir.path());
    let data = dir.path().join("data").display().to_string();
    let second =
        run(&["--data-dir", &data, "--grpc", "127.0.0.1:0", "--api", "127.0.0.1:0", "--metrics", "127.0.0.1:0"]);
    let text = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success() && text.contains("in use by another weft-control-plane"), "{text}");
    let (status, log) = program.terminate();
    assert!(status.success(), "{log}");
    let file = dir.path().join("data/admin-token");
    let token = std::fs::read_to_string(&file).unwrap();
    assert!(token.starts_with("weftadmin.") && token.ends_with('\n'), "{token}");
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert!(log.contains(&format!("The admin token of the API is in {}.", file.display())), "{log}");
    assert!(!log.contains("weftadmin."), "{log}");
    let (_, log) = Program::start(dir.path()).terminate();
    assert!(!log.contains("admin token") && !log.contains("weftadmin."), "{log}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), token, "the same token after a restart");
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
