//! The bench's programs as they run: children pinned and gone, errors that say what to do.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use weft_bench::process::Launcher;

fn bench() -> PathBuf {
    env!("CARGO_BIN_EXE_weft-bench").into()
}

/// Waits until `condition` holds, at most 10 s.
async fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(tokio::time::Instant::now() < deadline, "{what}: not within 10 s");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn state(pid: i32) -> Option<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    Some(text.lines().find_map(|line| line.strip_prefix("State:"))?.trim().to_owned())
}

fn gone(pid: i32) -> bool {
    state(pid).is_none_or(|state| state.starts_with('Z'))
}

#[tokio::test]
async fn a_child_is_pinned_and_dies_with_its_handle() {
    let dir = tempfile::tempdir().unwrap();
    let launcher = Launcher::new(bench(), dir.path().to_owned());
    let child = launcher.start("sleeper", 0, Path::new("/bin/sh"), ["-c", "sleep 600 & echo $!; wait"]).unwrap();
    let (pid, log) = (child.pid(), dir.path().join("sleeper.log"));
    wait_until("the shell runs", || std::fs::read_to_string(&log).is_ok_and(|text| text.ends_with('\n'))).await;
    let grandchild: i32 = std::fs::read_to_string(&log).unwrap().trim().parse().unwrap();
    for process in [pid, grandchild] {
        let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
        let cpus = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap();
        assert_eq!(cpus.trim(), "0");
    }
    drop(child);
    wait_until("the whole group is gone", || gone(pid) && gone(grandchild)).await;
}

#[tokio::test]
async fn a_child_that_ends_is_reported_with_its_log() {
    let dir = tempfile::tempdir().unwrap();
    let launcher = Launcher::new(bench(), dir.path().to_owned());
    let child = launcher.start("failing", 0, Path::new("/bin/sh"), ["-c", "echo no such luck >&2; exit 3"]).unwrap();
    let error = child.finish().await.unwrap_err().to_string();
    assert!(error.contains("failing exited with exit status: 3"), "{error}");
    assert!(error.contains("no such luck"), "{error}");

    let child = launcher.start("absent", 0, Path::new("/does/not/exist"), ["x"]).unwrap();
    let error = child.finish().await.unwrap_err().to_string();
    assert!(error.contains("cannot execute /does/not/exist"), "{error}");
}

/// Killed with -9, a bench has no chance to stop its children; the kernel does.
#[tokio::test]
async fn children_die_with_a_killed_parent() {
    let dir = tempfile::tempdir().unwrap();
    let pid_file = dir.path().join("pid");
    // The shell stands for the bench: it starts a child in the bench's way, then waits to be killed.
    let script = "\"$0\" child --cpu 0 --parent $$ -- /bin/sh -c 'echo $$ > \"$0\"; exec sleep 600' \"$1\" & wait";
    let mut parent =
        tokio::process::Command::new("/bin/sh").args(["-c", script]).arg(bench()).arg(&pid_file).spawn().unwrap();
    wait_until("the child runs", || std::fs::read_to_string(&pid_file).is_ok_and(|text| text.ends_with('\n'))).await;
    let child: i32 = std::fs::read_to_string(&pid_file).unwrap().trim().parse().unwrap();
    assert!(!gone(child));
    parent.kill().await.unwrap();
    wait_until("the child is gone", || gone(child)).await;
}

#[test]
fn a_missing_weft_proxy_is_an_error_that_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new(bench()).arg("--weft-bin").arg(dir.path()).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    // On a machine without wrk and nginx those are named first.
    assert!(text.contains("cargo build --release -p weft-proxy") || text.contains("apt-get install"), "{text}");
}

#[test]
fn wrong_flags_are_named() {
    for (args, named) in [
        (vec!["--only", "foo"], "foo"),
        (vec!["--rounds", "0"], "--rounds"),
        (vec!["--seconds", "x"], "--seconds"),
        (vec!["relay", "--side", "up"], "up"),
    ] {
        let output = Command::new(bench()).args(&args).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {text}");
        assert!(text.contains(named), "{args:?}: {text}");
    }
}
