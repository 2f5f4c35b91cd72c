//! Completion as shells ask for it, and in a real bash. (20.26)

use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixListener,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use crate::{
    SERVICE,
    world::{self, World},
};

const WEFT: &str = env!("CARGO_BIN_EXE_weft");

/// The completions of the last word of a line, as a shell's script asks for them.
fn completed(shell: &str, words: &[&str], more: &[(&str, &str)]) -> Vec<String> {
    let mut command = Command::new(WEFT);
    command.env_clear().env("COMPLETE", shell).envs(more.iter().copied());
    command.env("_CLAP_COMPLETE_INDEX", (words.len() - 1).to_string());
    let output = command.arg("--").args(words).stdin(Stdio::null()).output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]), "{words:?}");
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// A mesh with services in two namespaces, two revisions and a token.
fn shop() -> World {
    let world = World::start();
    let workload = "---\napiVersion: weft.dev/v1alpha1\nkind: Workload\nmetadata: {name: p1, namespace: shop}\nspec: {addresses: [192.0.2.1], serviceAccount: seller, ports: [{port: 8080}]}\n";
    let first = world.file("first.yaml", &format!("{SERVICE}{workload}"));
    let second =
        world.file("second.yaml", &SERVICE.replace("shop", "office").replace("name: product", "name: printer"));
    world.weft(&["apply", "-f", &first, "-m", "the shop"]).ok();
    world.weft(&["apply", "-f", &second]).ok();
    world
}

#[test]
fn each_shell_is_told_kinds_names_namespaces_accounts_revisions_and_tokens() {
    let world = shop();
    let token = world.weft(&["token", "create", "-n", "shop", "-s", "seller"]).ok();
    let token = token.split('.').nth(1).unwrap();
    let server = format!("unix:{}", world.path("data/api.sock"));
    for shell in ["bash", "zsh", "fish"] {
        // Zsh and fish show descriptions, too.
        let values = |words: &[&str]| -> Vec<String> {
            let found = completed(shell, &[&["weft"], words].concat(), &[("WEFT_SERVER", &server)]);
            let value = |line: &String| line.split(['\t', ':']).next().unwrap().to_owned();
            found.iter().map(value).filter(|value| !value.starts_with('-')).collect()
        };
        assert_eq!(values(&["hist"]), ["history"], "{shell}");
        for kind in ["services", "svc", "httproutes", "route"] {
            assert!(values(&["get", ""]).contains(&kind.to_owned()), "{shell}: {kind}");
        }
        assert_eq!(values(&["delete", "SV"]), ["svc"], "{shell}");
        assert_eq!(values(&["export", "svc", "gat"]), ["gateways"], "{shell}");
        assert_eq!(values(&["get", "svc", "-n", "shop", ""]), ["product"], "{shell}");
        assert_eq!(values(&["get", "Service", "--namespace", "office", "p"]), ["printer"], "{shell}");
        assert!(values(&["get", "svc", "p"]).is_empty(), "{shell}: none in the namespace default");
        assert_eq!(values(&["delete", "wl", "-n", "shop", ""]), ["p1"], "{shell}");
        for command in [&["get", "svc"][..], &["status"], &["export"], &["token", "create"]] {
            let found = values(&[command, &["-n", ""]].concat());
            assert!(found.contains(&"office".to_owned()) && found.contains(&"shop".to_owned()), "{shell}: {found:?}");
        }
        assert_eq!(values(&["token", "create", "-n", "shop", "-s", ""]), ["seller"], "{shell}");
        assert_eq!(values(&["rollback", ""]), ["2", "1"], "{shell}");
        assert_eq!(values(&["history", "show", ""]), ["2", "1"], "{shell}");
        assert_eq!(values(&["token", "revoke", ""]), [token], "{shell}");
        // The flags of the line count too, wherever they are, and files are files.
        let found = completed(shell, &["weft", "--server", &server, "get", "svc", "-n", "shop", ""], &[]);
        assert!(found.iter().any(|value| value.starts_with("product")), "{shell}: {found:?}");
        assert!(values(&["apply", "-f", &world.path("fir")])[0].ends_with("first.yaml"), "{shell}");
    }
    // The description of a revision is its message.
    let found = completed("fish", &["weft", "rollback", "1"], &[("WEFT_SERVER", &server)]);
    assert_eq!(found, ["1\tthe shop"]);
}

/// A control plane that is away, refuses, stalls or lies costs a second at most, and nothing is said.
#[test]
fn without_a_control_plane_completion_is_quick_and_silent() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let names = |name: &str| {
        let server = format!("unix:{}", path(name).display());
        let found = completed("fish", &["weft", "get", "svc", ""], &[("WEFT_SERVER", &server)]);
        found.into_iter().filter(|value| !value.starts_with('-')).collect::<Vec<_>>()
    };
    assert!(names("nobody.sock").is_empty());
    assert!(completed("bash", &["weft", "get", "svc", "a"], &[("WEFT_SERVER", "http://wrong")]).is_empty());
    assert!(completed("bash", &["weft", "get", "svc", "a"], &[("WEFT_SERVER", "https://127.0.0.1:1")]).is_empty());
    // Accepts, and says nothing.
    let stalled = UnixListener::bind(path("stalled.sock")).unwrap();
    let before = Instant::now();
    assert!(names("stalled.sock").is_empty());
    let took = before.elapsed();
    assert!(took >= Duration::from_millis(900), "it waits, {took:?}");
    assert!(took < Duration::from_secs(4), "a second, and a busy machine: {took:?}");
    drop(stalled);
    // Names that would be more than one word, and characters that a terminal obeys.
    let object =
        |name: &str| serde_json::json!({"kind": "Service", "metadata": {"name": name, "namespace": "default"}});
    let bad = ["good-1", "a b", "$(touch x)", "`x`", "a;b", "*", "a\u{1b}[2Jb", "a\u{202e}b", "-rf", "a\nb", ""];
    let body = serde_json::json!({"revision": 1, "items": bad.map(object)}).to_string();
    let answer = format!("HTTP/1.1 200 OK\r\nweft-api: v1\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    world::answer_always(&path("hostile.sock"), answer);
    assert_eq!(names("hostile.sock"), ["good-1"]);
    let unknown = Command::new(WEFT).env_clear().env("COMPLETE", "tcsh").output().unwrap();
    assert_eq!(unknown.status.code(), Some(64));
}

/// A person types in an interactive bash on a terminal.
#[test]
fn a_real_bash_completes_a_word_on_tab() {
    let world = shop();
    let server = format!("unix:{}", world.path("data/api.sock"));
    let directory = Path::new(WEFT).parent().unwrap().display();
    // `script` runs it on a terminal of its own.
    let mut bash = Command::new("script")
        .args(["-q", "-c", "bash --norc --noprofile -i", "/dev/null"])
        .env_clear()
        .env("PATH", format!("{directory}:/usr/bin:/bin"))
        .env("TERM", "dumb")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let (mut keys, mut screen) = (bash.stdin.take().unwrap(), bash.stdout.take().unwrap());
    let mut until = |text: &str| {
        let mut seen = Vec::new();
        while !String::from_utf8_lossy(&seen).contains(text) {
            let mut bytes = [0; 4096];
            let read = screen.read(&mut bytes).unwrap();
            assert!(read > 0, "bash ended: {}", String::from_utf8_lossy(&seen));
            seen.extend(&bytes[..read]);
        }
        String::from_utf8_lossy(&seen).into_owned()
    };
    // The prompt of a shell that is set up; the quotes keep it from being seen when it is echoed.
    keys.write_all(b"source <(weft completion bash); PS1='rea''dy> '\n").unwrap();
    until("ready> ");
    // bash breaks the words at `:` and `=`.
    let line = format!("weft --server {server} get svc --namespace=sh\t prod\t-o json; PS1='do''ne> '\n");
    keys.write_all(line.as_bytes()).unwrap();
    let screen = until("done> ");
    assert!(screen.contains("\"name\": \"product\""), "{screen}");
    keys.write_all(b"exit\n").unwrap();
    drop(keys);
    assert!(bash.wait().unwrap().code().is_some());
}
