//! A whole proxy from its file alone: reloads, certificates that change, the ports of a gateway, the command line.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Output},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{Instant, sleep, timeout},
};
use weft_proxy::{
    app::App,
    config::{Overrides, SettingsArgs},
};

use crate::{
    apps::{raw_app, read_head},
    plane::{Ca, PATIENCE, Plane},
};

/// Answers a GET of one of the proxy's own ports: status and body.
pub(crate) async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    ask(address, "GET", path).await
}

/// The same for a POST.
pub(crate) async fn post(address: SocketAddr, path: &str) -> (u16, String) {
    ask(address, "POST", path).await
}

async fn ask(address: SocketAddr, method: &str, path: &str) -> (u16, String) {
    let host = SocketAddr::new([127, 0, 0, 1].into(), address.port());
    let mut stream = TcpStream::connect(host).await.unwrap();
    let request = format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut answer)).await.expect("an answer in time").unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// A file with these parts; the path is in `directory`.
pub(crate) fn write(directory: &Path, spec: &str, objects: &str) -> SettingsArgs {
    let config = directory.join("proxy.yaml");
    let text = format!(
        "apiVersion: weft.dev/v1alpha1\nkind: ProxyConfig\nmetadata: {{name: a-1, namespace: shop}}\nspec:\n  mark: 0\n  \
         ports: {{outbound: 0, inbound: 0, admin: 0, metrics: 0}}\n{spec}{objects}"
    );
    fs::write(&config, text).unwrap();
    SettingsArgs { config, overrides: Overrides::default() }
}

pub(crate) fn service(target: u16) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: s, namespace: shop}}\n\
         spec: {{selector: {{app: s}}, clusterIPs: [240.0.0.1], ports: [{{port: 80, targetPort: {target}, appProtocol: tcp}}]}}\n\
         ---\napiVersion: weft.dev/v1alpha1\nkind: Workload\nmetadata: {{name: s-1, namespace: shop, labels: {{app: s}}}}\n\
         spec: {{mesh: false, addresses: [127.0.0.1], ports: [{{port: {target}}}]}}\n"
    )
}

const SIDECAR: &str = "  mode: sidecar\n  workload: {serviceAccount: a, addresses: [127.0.0.1]}\n  \
                       forward: {outbound: [{listen: \"127.0.0.1:0\", destination: \"240.0.0.1:80\"}]}\n";

async fn says(name: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _closed = stream.write_all(name.as_bytes()).await;
        }
    });
    port
}

async fn hear(address: SocketAddr) -> String {
    let mut heard = String::new();
    let mut stream = TcpStream::connect(address).await.unwrap();
    timeout(PATIENCE, stream.read_to_string(&mut heard)).await.expect("an end").unwrap();
    heard
}

#[tokio::test]
async fn a_reload_takes_new_objects_and_a_bad_file_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (one, two) = (says("one").await, says("two").await);
    let args = write(directory.path(), SIDECAR, &service(one));
    let mut app = App::start(args.read().unwrap()).await.unwrap();
    assert_eq!(app.not_ready(), Vec::<&str>::new());
    let address = app.addresses.forward_outbound[0];
    assert_eq!(hear(address).await, "one");
    write(directory.path(), SIDECAR, &service(two).replace("port: 80", "port: 80000"));
    app.reload(&args);
    assert_eq!(hear(address).await, "one");
    write(directory.path(), SIDECAR, &service(two));
    app.reload(&args);
    assert_eq!(hear(address).await, "two");
    assert!(app.shutdown().await);
}

/// How many connections each of three workers has open.
async fn by_worker(app: &App) -> [usize; 3] {
    let (_, body) = get(app.addresses.admin, "/connections").await;
    let body: serde_json::Value = serde_json::from_str(&body).unwrap();
    let rows = body["connections"].as_array().unwrap();
    [0, 1, 2].map(|worker| rows.iter().filter(|row| row["worker"] == worker).count())
}

#[tokio::test]
async fn wherever_the_kernel_puts_them_connections_are_spread_evenly_over_the_workers() {
    let answering = raw_app(|mut stream| async move {
        while read_head(&mut stream).await.is_some() {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.ok();
        }
    })
    .await;
    for protocol in ["http", "tcp"] {
        let directory = tempfile::tempdir().unwrap();
        let spec = format!("{SIDECAR}  workers: 3\n");
        let objects = service(answering.port()).replace("appProtocol: tcp", &format!("appProtocol: {protocol}"));
        let app = App::start(write(directory.path(), &spec, &objects).read().unwrap()).await.unwrap();
        let address = app.addresses.forward_outbound[0];
        for count in [12, 3] {
            let mut open = Vec::new();
            for _ in 0..count {
                let mut stream = TcpStream::connect(address).await.unwrap();
                stream.write_all(b"GET / HTTP/1.1\r\nhost: s\r\n\r\n").await.unwrap();
                let answer = timeout(PATIENCE, read_head(&mut stream)).await.expect("an answer in time").unwrap();
                assert!(answer.starts_with("HTTP/1.1 200"), "{protocol}: {answer}");
                open.push(stream);
            }
            assert_eq!(by_worker(&app).await, [count / 3; 3], "{protocol}");
            drop(open);
            let deadline = Instant::now() + PATIENCE;
            while by_worker(&app).await != [0; 3] {
                assert!(Instant::now() < deadline, "{protocol}: the connections have not ended");
                sleep(Duration::from_millis(20)).await;
            }
        }
        assert!(app.shutdown().await);
    }
}

#[tokio::test]
async fn certificate_files_are_read_again_when_they_change_and_bad_ones_are_not_taken() {
    let directory = tempfile::tempdir().unwrap();
    let ca = Ca::new();
    let put = |ca: &Ca, life: u64| {
        let (chain, key) = ca.pem("spiffe://weft.local/ns/shop/sa/a", Duration::from_secs(life));
        for (name, text) in [("key.pem", &key), ("cert.pem", &chain), ("ca.pem", &ca.root_pem())] {
            fs::write(directory.path().join(name), text).unwrap();
        }
    };
    put(&ca, 1_000);
    let path = |name: &str| directory.path().join(name).display().to_string();
    let identity = format!(
        "  identity: {{certificateFile: {}, privateKeyFile: {}, trustBundleFile: {}}}\n",
        path("cert.pem"),
        path("key.pem"),
        path("ca.pem")
    );
    let args = write(directory.path(), &format!("{SIDECAR}{identity}"), "");
    let app = App::start(args.read().unwrap()).await.unwrap();
    let admin = app.addresses.admin;
    let end_of = |body: String| {
        let dump: serde_json::Value = serde_json::from_str(&body).unwrap();
        dump["certificate"]["not_after"].as_i64().unwrap()
    };
    let first = end_of(get(admin, "/config_dump").await.1);
    fs::write(directory.path().join("cert.pem"), "nothing").unwrap();
    sleep(Duration::from_millis(2_500)).await;
    assert_eq!(end_of(get(admin, "/config_dump").await.1), first);
    put(&ca, 5_000);
    let end = Instant::now() + PATIENCE;
    while end_of(get(admin, "/config_dump").await.1) < first + 3_000 {
        assert!(Instant::now() < end, "the new certificate is not taken");
        sleep(Duration::from_millis(50)).await;
    }
    fs::remove_file(directory.path().join("key.pem")).unwrap();
    let again = App::start(args.read().unwrap()).await.err().expect("no proxy without its key");
    assert!(again.to_string().contains("spec.identity"), "{again}");
}

#[tokio::test]
async fn the_ports_of_a_gateway_come_and_go_with_its_object() {
    let directory = tempfile::tempdir().unwrap();
    let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let gateway = |port: u16| {
        format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: edge, namespace: shop}}\n\
             spec: {{gatewayClassName: weft, listeners: [{{name: http, port: {port}, protocol: HTTP}}]}}\n"
        )
    };
    let spec = "  mode: gateway\n  gateway: edge\n  workers: 2\n";
    let args = write(directory.path(), spec, "");
    let mut app = App::start(args.read().unwrap()).await.unwrap();
    assert!(app.not_ready().contains(&"no configuration"), "there is no such Gateway");
    for _ in 0..2 {
        let port = free();
        write(directory.path(), spec, &gateway(port));
        app.reload(&args);
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let end = Instant::now() + PATIENCE;
        while TcpStream::connect(address).await.is_err() || !app.not_ready().is_empty() {
            assert!(Instant::now() < end, "{:?}", app.not_ready());
            sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(get(address, "/").await.0, 404);
        write(directory.path(), spec, "");
        app.reload(&args);
        while TcpStream::connect(address).await.is_ok() {
            assert!(Instant::now() < end, "the port stays open");
            sleep(Duration::from_millis(10)).await;
        }
    }
}

#[tokio::test]
async fn the_ports_of_a_proxy_answer_as_documented_and_a_second_proxy_does_not_start_on_them() {
    let directory = tempfile::tempdir().unwrap();
    let args = write(directory.path(), SIDECAR, &service(says("one").await));
    let app = App::start(args.read().unwrap()).await.unwrap();
    let (admin, metrics) = (app.addresses.admin, app.addresses.metrics);
    for (address, path, status) in [
        (admin, "/config_dump", 200),
        (admin, "/connections", 200),
        (admin, "/quit", 405),
        (admin, "/drain", 405),
        (admin, "/undrain", 405),
        (admin, "/metrics", 404),
        (metrics, "/metrics", 200),
        (metrics, "/readyz", 200),
        (metrics, "/readyz/workload", 200),
        (metrics, "/livez", 200),
        (metrics, "/config_dump", 404),
    ] {
        assert_eq!(get(address, path).await.0, status, "{path}");
    }
    let dump: serde_json::Value = serde_json::from_str(&get(admin, "/config_dump").await.1).unwrap();
    assert_eq!(dump["listeners"]["outbound/240.0.0.1:80"]["Outbound"]["address"], "240.0.0.1:80");
    assert_eq!(dump["endpoints"]["svc/shop/s:80"].as_array().unwrap().len(), 1);
    let mut settings = args.read().unwrap();
    settings.ports.admin = admin.port();
    let error = App::start(settings).await.err().expect("the port is taken");
    assert!(error.to_string().contains("spec.ports.admin"), "{error}");
}

/// Names of metrics in a text, as `weft_…` or `process_…` up to the first other character.
fn metric_names<'a>(text: &'a str, before: &str) -> Vec<&'a str> {
    let starts = ["weft_", "process_"];
    let found = starts
        .iter()
        .flat_map(|start| text.match_indices(&format!("{before}{start}")).map(|(at, _)| at).collect::<Vec<_>>());
    found
        .map(|at| {
            let name = &text[at + before.len()..];
            &name[..name.find(|c: char| !c.is_ascii_lowercase() && c != '_').unwrap_or(name.len())]
        })
        .collect()
}

#[tokio::test]
async fn the_page_of_metrics_names_every_metric_and_no_other() {
    let page = include_str!("../../../docs/reference/metrics.md");
    let documented = metric_names(page, "| `");
    let plane = Plane::start().await;
    let app = App::start(crate::control::settings(&plane, &plane.ca.token("client"), &[], "")).await.unwrap();
    let (_, rendered) = get(app.addresses.metrics, "/metrics").await;
    let rendered = metric_names(&rendered, "# TYPE ");
    assert!(rendered.len() > 20, "{rendered:?}");
    // Events are rendered once they have happened: their names are taken from where they are counted.
    let mut counted = Vec::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.file_name().unwrap() != "exposition.rs" {
                let text = fs::read_to_string(&path).unwrap();
                counted.extend(metric_names(&text, "\"").into_iter().map(str::to_owned));
            }
        }
    }
    counted.retain(|name| name != "weft_proxy");
    let known: Vec<&str> = rendered.iter().copied().chain(counted.iter().map(String::as_str)).collect();
    let missing: Vec<_> = known.iter().filter(|name| !documented.contains(name)).collect();
    assert!(missing.is_empty(), "not on the page: {missing:?}");
    let unknown: Vec<_> = documented.iter().filter(|name| !known.contains(name)).collect();
    assert!(unknown.is_empty(), "on the page only: {unknown:?}");
}

#[tokio::test]
async fn a_forward_listener_to_a_port_that_was_picked_for_the_proxy_itself_is_refused_at_the_start() {
    let directory = tempfile::tempdir().unwrap();
    // A port that is free now, and taken for `inbound` by the proxy: 0 would be another one each time.
    let picked = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let spec = format!(
        "  mode: sidecar\n  workload: {{serviceAccount: a, addresses: [127.0.0.1]}}\n  \
         forward: {{inbound: [{{listen: \"127.0.0.1:0\", destination: \"{picked}\"}}]}}\n"
    );
    let mut settings = write(directory.path(), &spec, "").read().unwrap();
    settings.ports.metrics = picked.port();
    let error = App::start(settings).await.err().expect("a refusal").to_string();
    assert!(error.contains("spec.forward.inbound[0].destination") && error.contains("spec.ports.metrics"), "{error}");
}

fn weft_proxy(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_weft-proxy")).args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn the_page_of_the_proxy_names_every_flag_and_field() {
    let page = include_str!("../../../docs/reference/proxy.md");
    for (command, least) in [("run", 8), ("redirect", 13)] {
        let help = text(&weft_proxy(&[command, "--help"]).stdout);
        let flags: Vec<&str> = help.split_whitespace().filter(|word| word.starts_with("--")).collect();
        assert!(flags.len() > least, "{help}");
        for flag in flags.iter().map(|flag| flag.trim_end_matches(['.', ',', ':'])).filter(|flag| *flag != "--help") {
            assert!(page.contains(&format!("`{flag}")), "{flag} is not on the page");
        }
    }
    for command in ["run", "redirect", "identity", "ready", "drain", "undrain", "completion"] {
        assert!(page.contains(&format!("weft-proxy {command}")), "{command} is not on the page");
    }
    let fields = include_str!("../../../core/src/api/proxy_config.rs");
    let of_spec = fields.split("pub struct ProxyConfigSpec {").nth(1).unwrap().split("\n}").next().unwrap();
    for field in of_spec.lines().filter_map(|line| line.trim().strip_prefix("pub ")?.split(':').next()) {
        let mut words = field.split('_');
        let mut name = words.next().unwrap().to_owned();
        words.for_each(|word| name.push_str(&format!("{}{}", word[..1].to_uppercase(), &word[1..])));
        assert!(page.contains(&format!("`spec.{name}")), "spec.{name} is not on the page");
    }
}

#[test]
fn a_wrong_file_or_flag_exits_with_64_and_every_mistake() {
    let directory = tempfile::tempdir().unwrap();
    let good = write(directory.path(), SIDECAR, "").config.display().to_string();
    let output = weft_proxy(&["run", "--config", &good, "--check"]);
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(0), format!("{good}: OK\n")));
    let bad = write(directory.path(), "  mode: sidecars\n  colour: red\n", "").config.display().to_string();
    let output = weft_proxy(&["run", "--config", &bad]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(64), "{said}");
    assert!(said.contains("spec.mode") && said.contains("colour"), "{said}");
    for args in
        [&["run"][..], &["run", "--config", "/nowhere"], &["identity", "--config", &bad, "--out", "x"], &["fly"]]
    {
        assert_eq!(weft_proxy(args).status.code(), Some(64), "{args:?}");
    }
    // What the file and the flags refer to is checked too, and a --url that is none is no failure of the proxy. (26)
    let pem = |name: &str, text: &str| {
        fs::write(directory.path().join(name), text).unwrap();
        directory.path().join(name).display().to_string()
    };
    let pair = || {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        let id = rcgen::string::Ia5String::try_from("spiffe://weft.local/ns/shop/sa/a").unwrap();
        params.subject_alt_names = vec![rcgen::SanType::URI(id)];
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    };
    let (certificate, key) = pair();
    let (certificate, key, other) = (pem("c.pem", &certificate), pem("k.pem", &key), pem("o.pem", &pair().1));
    for (key, code, word) in
        [(&key, 0, ""), (&other, 64, "KeyMismatch"), (&"/nowhere.pem".to_owned(), 64, "cannot read")]
    {
        let identity = format!(
            "{SIDECAR}  identity: {{certificateFile: {certificate}, privateKeyFile: {key}, trustBundleFile: {certificate}}}\n"
        );
        let file = write(directory.path(), &identity, "").config.display().to_string();
        let output = weft_proxy(&["run", "--config", &file, "--check"]);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(code == 0 || (said.contains("privateKeyFile") && said.contains(key) && said.contains(word)), "{said}");
    }
    let good = write(directory.path(), SIDECAR, "").config.display().to_string();
    for args in [
        &["run", "--config", &good, "--check", "--log", "a=b=c"][..],
        &["ready", "--url", "foo"],
        &["ready", "--url", "foo", "--wait", "30s"],
        &["ready", "--url", "https://127.0.0.1:15020/readyz"],
        &["drain", "--url", "foo"],
        &["ready", "--wait", "0ns"],
        &["ready", "--wait=-0"],
    ] {
        let output = weft_proxy(args);
        assert_eq!((output.status.code(), text(&output.stdout)), (Some(64), String::new()), "{args:?}");
    }
    let output = weft_proxy(&["ready", "--url", "http://127.0.0.1:1/readyz"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("is the proxy running?"), "{}", text(&output.stderr));
    assert!(text(&weft_proxy(&["completion", "bash"]).stdout).contains("weft-proxy"));
}

/// Any server answers 200 to something. (20)
#[tokio::test]
async fn ready_believes_only_a_proxy() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    for (status, body) in
        [("200 OK", "ok"), ("200 OK", "{}"), ("204 No Content", ""), ("200 OK", r#"{"ready": false, "reasons": []}"#)]
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/readyz", listener.local_addr().unwrap());
        let answering = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let read = stream.read(&mut [0; 4096]).await.unwrap();
            assert!(read > 0);
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            stream.write_all(answer.as_bytes()).await.unwrap();
        });
        let output = tokio::task::spawn_blocking(move || weft_proxy(&["ready", "--url", &url])).await.unwrap();
        answering.await.unwrap();
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{body}: {said}");
        assert!(said.contains("is not the readiness of a proxy of Weft"), "{body}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn identity_writes_a_certificate_into_files_and_renews_it_without_the_token() {
    let directory = tempfile::tempdir().unwrap();
    let plane = Plane::start().await;
    let plan = format!(
        "  mode: sidecar\n  workload: {{serviceAccount: client}}\n  controlPlane: {{address: \"{}\"}}\n",
        plane.address
    );
    let config = write(directory.path(), &plan, "").config.display().to_string();
    let token = directory.path().join("token");
    fs::write(&token, plane.ca.token("client")).unwrap();
    let (out, token) = (directory.path().join("svid"), token.display().to_string());
    let folder = out.display().to_string();
    for _ in 0..2 {
        let args = ["identity", "--config", &config, "--out", &folder, "--once", "--join-token-file", &token];
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let output =
            tokio::task::spawn_blocking(move || weft_proxy(&args.iter().map(String::as_str).collect::<Vec<_>>()));
        let output = output.await.unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        let svid = weft_proxy::identity::files::read(&out).unwrap();
        assert_eq!(svid.identity.as_str(), "spiffe://weft.local/ns/shop/sa/client");
        let mode = fs::metadata(out.join("key.pem")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        fs::write(&token, "used").unwrap();
    }
    let asked = plane.asked.lock().clone();
    assert_eq!((asked[0].by_certificate, asked[1].by_certificate, asked[1].token.as_str()), (false, true, ""));
    assert_eq!(fs::read_dir(&out).unwrap().count(), 3, "nothing else is left behind");
}

/// The program, and where its forward listener is, from its own log.
fn run(config: &str) -> (std::process::Child, SocketAddr) {
    run_in("exec \"$0\" \"$@\"", config)
}

/// The same, started by a line of shell.
fn run_in(shell: &str, config: &str) -> (std::process::Child, SocketAddr) {
    use std::io::BufRead as _;
    let mut child = Command::new("sh")
        .args(["-c", shell, env!("CARGO_BIN_EXE_weft-proxy"), "run", "--config", config])
        .stderr(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufReader::new(child.stderr.take().unwrap()).lines();
    let line = lines.find_map(|line| line.ok().filter(|line| line.contains("started"))).expect("it starts");
    // Somebody has to read the rest, or it would be told that nobody does.
    std::thread::spawn(move || lines.for_each(drop));
    let address = line.split("forward outbound ").nth(1).unwrap().trim().parse().unwrap();
    (child, address)
}

fn terminate(child: &std::process::Child) {
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
}

async fn ends(child: &mut std::process::Child, within: Duration) -> Option<i32> {
    let end = Instant::now() + within;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        assert!(Instant::now() < end, "it does not end");
        sleep(Duration::from_millis(10)).await;
    }
}

/// (27.5)
#[test]
fn the_soft_limit_of_open_files_is_raised_to_the_hard_one() {
    let directory = tempfile::tempdir().unwrap();
    let config = write(directory.path(), SIDECAR, "").config.display().to_string();
    let (mut child, _) = run_in("ulimit -Sn 64 && ulimit -Hn 400 && exec \"$0\" \"$@\"", &config);
    let limits = fs::read_to_string(format!("/proc/{}/limits", child.id())).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(files.split_whitespace().skip(3).take(2).collect::<Vec<_>>(), ["400", "400"]);
}

#[tokio::test]
async fn a_signal_waits_for_the_last_connection_and_a_second_one_does_not() {
    let directory = tempfile::tempdir().unwrap();
    let application = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let spec = SIDECAR.replace("240.0.0.1:80", &application.local_addr().unwrap().to_string());
    let config = write(directory.path(), &spec, "").config.display().to_string();
    for second in [false, true] {
        let (mut child, address) = run(&config);
        let caller = TcpStream::connect(address).await.unwrap();
        let (mut callee, _) = timeout(PATIENCE, application.accept()).await.unwrap().unwrap();
        callee.write_all(b"x").await.unwrap();
        let mut byte = [0];
        let mut caller = caller;
        timeout(PATIENCE, caller.read_exact(&mut byte)).await.unwrap().unwrap();
        terminate(&child);
        sleep(Duration::from_millis(500)).await;
        assert!(child.try_wait().unwrap().is_none(), "a connection is open");
        if second {
            terminate(&child);
        } else {
            drop((caller, callee));
        }
        assert_eq!(ends(&mut child, Duration::from_secs(2)).await, Some(0), "second: {second}");
    }
}
