//! The real `weft` against a real control plane on free loopback ports.
//! The control plane's program is found through `WEFT_BIN`, else beside this test's build: `make test` builds it first.

#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::disallowed_methods, reason = "tests")]

mod completion;
mod layers;
mod world;

use serde_json::Value;

use crate::world::World;

const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: product, namespace: shop, labels: {team: a}}\nspec:\n  selector: {app: product}\n  ports: [{name: http, port: 80, targetPort: 8080, appProtocol: http}]\n";
const ROUTE: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: product, namespace: shop}\nspec:\n  parentRefs: [{group: \"\", kind: Service, name: product}]\n  rules: [{backendRefs: [{name: product, port: 80, weight: 1}]}]\n";
/// The output of an apply of [`SERVICE`] while no workload is registered.
const NOBODY: &str = "  warning: NoWorkload: no workload of namespace shop has the labels app=product\n";

/// (24)
#[test]
fn a_selector_that_picks_nobody_is_a_warning_in_every_format_and_get_svc_counts_endpoints() {
    let world = World::start();
    let file = world.file("shop.yaml", SERVICE);
    let warning = "NoWorkload: no workload of namespace shop has the labels app=product";
    for dry in [&["--dry-run"][..], &[]] {
        let json: Value =
            serde_json::from_str(&world.weft(&[&["apply", "-f", &file, "-o", "json"], dry].concat()).ok()).unwrap();
        assert_eq!(json["objects"][0]["warnings"], serde_json::json!([warning]), "{json}");
    }
    let workload = |name: &str, more: &str| {
        format!(
            "---\napiVersion: weft.dev/v1alpha1\nkind: Workload\nmetadata: {{name: {name}, namespace: shop, labels: {{app: product}}}}\nspec: {{addresses: [192.0.2.{}], ports: [{{port: 8080}}]{more}}}\n",
            name.len()
        )
    };
    let workloads = [workload("p", ""), workload("pp", ""), workload("ppp", ", health: unhealthy")].concat();
    let file = world.file("workloads.yaml", &workloads);
    world.weft(&["apply", "-f", &file]).ok();
    let table = world.weft(&["get", "svc", "-n", "shop"]).ok();
    let words = |line: usize| table.lines().nth(line).unwrap().split_whitespace().collect::<Vec<_>>();
    assert_eq!((words(0)[3], words(1)[3]), ("ENDPOINTS", "2/3"), "{table}");
    let file = world.file("shop.yaml", SERVICE);
    assert!(!world.weft(&["apply", "-f", &file]).ok().contains("warning"));
}

#[test]
fn objects_are_applied_read_changed_and_deleted() {
    let world = World::start();
    let file = world.file("shop.yaml", &format!("# a comment\n{SERVICE}---\n{ROUTE}"));
    let applied = world.weft(&["apply", "-f", &file, "-m", "first"]).ok();
    assert_eq!(applied, format!("service shop/product created\n{NOBODY}httproute shop/product created\nrevision 1\n"));
    let again = world.weft(&["apply", "-f", &file]).ok();
    assert!(again.ends_with("no changes; still revision 1\n"), "{again}");

    let table = world.weft(&["get", "svc", "-n", "shop"]).ok();
    let row: Vec<&str> = table.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!((row[0], row[2], row[3], row[4]), ("product", "80->8080/http", "0/0", "app=product"), "{table}");
    assert!(row[1].starts_with("240.") && row[1].contains(",fd77:"), "{table}");
    for (labels, found) in [("team=a", true), ("team=b", false), ("team=a,x=y", false)] {
        let table = world.weft(&["get", "services", "-A", "-l", labels]).ok();
        assert_eq!(table.contains("product"), found, "{labels}: {table}");
    }
    let yaml = world.weft(&["get", "HTTPRoute", "product", "-n", "shop", "-o", "yaml"]).ok();
    assert!(yaml.contains("kind: HTTPRoute"), "{yaml}");
    let missing = world.weft(&["get", "route", "nothing", "-n", "shop"]);
    assert_eq!((missing.code, missing.out.as_str()), (1, ""));
    assert!(missing.err.contains("HTTPRoute/shop/nothing"), "{}", missing.err);

    // What is printed can be applied again.
    let printed = world.file("again.yaml", &yaml);
    assert!(world.weft(&["apply", "-f", &printed]).ok().contains("unchanged"));

    assert_eq!(
        world.weft(&["delete", "route", "product", "-n", "shop", "-m", "not needed", "--author", "anna"]).ok(),
        "httproute shop/product deleted\nrevision 2\n"
    );
    let history = world.weft(&["history", "--limit", "1"]).ok();
    assert!(history.contains("anna (local)") && history.contains("not needed"), "{history}");
    // A dry run says what would be; a missing object is a failure, with files and without, unless it may be missing. (26)
    let dry = world.weft(&["delete", "svc", "product", "-n", "shop", "--dry-run"]).ok();
    assert_eq!(dry, "service shop/product would be deleted\ndry run: nothing was changed\n");
    let partly = world.weft(&["delete", "-f", &file]);
    assert_eq!((partly.code, partly.out.as_str()), (1, "service shop/product deleted\nrevision 3\n"));
    assert!(partly.err.contains("HTTPRoute/shop/product"), "{}", partly.err);
    let gone = world.weft(&["delete", "-f", &file, "--ignore-not-found"]).ok();
    assert_eq!(gone, "httproute shop/product not found\nservice shop/product not found\n");
    assert_eq!(world.weft(&["delete", "svc", "product", "-n", "shop"]).code, 1);
    // For scripts: one answer for all objects. (20.26)
    world.weft(&["apply", "-f", &file]).ok();
    let deleted = |more: &[&str]| -> Value {
        let args = [&["delete", "-f", &file, "-o", "json", "--ignore-not-found"], more].concat();
        serde_json::from_str(&world.weft(&args).ok()).unwrap()
    };
    let dry = deleted(&["--dry-run"]);
    assert_eq!((&dry["dryRun"], dry["objects"].as_array().unwrap().len()), (&Value::Bool(true), 2), "{dry}");
    let gone = deleted(&[]);
    assert_eq!((&gone["objects"][0]["kind"], &gone["objects"][1]["result"]), (&"HTTPRoute".into(), &"deleted".into()));
    assert_eq!(deleted(&[]), serde_json::json!({"revision": gone["revision"], "objects": []}));
    assert!(world.weft(&["get", "svc", "-n", "shop"]).ok().starts_with("no services in the namespace shop"));
}

/// (21)
#[test]
fn what_get_and_export_print_can_be_applied_to_this_mesh_and_to_another() {
    let world = World::start();
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/demo");
    let others = world.file(
        "others.yaml",
        "apiVersion: weft.dev/v1alpha1\nkind: Workload\nmetadata: {name: db, namespace: shop, labels: {app: db}, annotations: {a/b: c}}\nspec: {addresses: [192.0.2.7], ports: [{port: 5432, protocol: tcp}], mesh: false}\n",
    );
    world.weft(&["apply", "-f", demo, "-f", &others]).ok();
    let objects = |world: &World| {
        let kinds = world.weft(&["get", "kinds"]).ok();
        let kinds: Vec<String> =
            kinds.lines().skip(1).map(|line| line.split_whitespace().nth(1).unwrap().to_owned()).collect();
        assert_eq!(kinds.len(), 7, "{kinds:?}");
        kinds
    };
    for kind in objects(&world) {
        for format in ["yaml", "json"] {
            let list = world.weft(&["get", &kind, "-A", "-o", format]).ok();
            let parsed: Value = if format == "json" { serde_json::from_str(&list).unwrap() } else { Value::Null };
            assert!(list.contains("List") && (parsed.is_null() || parsed["apiVersion"] == "v1"), "{list}");
            let file = world.file(&format!("{kind}.{format}"), &list);
            let again = world.weft(&["apply", "-f", &file]).ok();
            assert!(again.ends_with("no changes; still revision 1\n"), "{again}");
            let dry = world.weft(&["delete", "-f", &file, "--dry-run"]).ok();
            let results = again.lines().filter(|line| !line.starts_with("  warning: "));
            assert_eq!(dry.lines().count(), results.count(), "{dry}");
        }
    }

    let exported = world.weft(&["export"]).ok();
    for none in ["uid:", "resourceVersion:", "generation:", "creationTimestamp:", "status:", "weft.dev/source"] {
        assert!(!exported.contains(none), "{none}: {exported}");
    }
    let other = World::start();
    for format in ["yaml", "json"] {
        let text = world.weft(&["export", "-o", format]).ok();
        let file = other.file(&format!("mesh.{format}"), &text);
        other.weft(&["apply", "-f", &file]).ok();
    }
    let body = |text: &str| text.lines().skip(1).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(body(&other.weft(&["export"]).ok()), body(&exported), "addresses of services included");
    assert!(other.weft(&["history"]).ok().lines().count() == 2, "the second apply changed nothing");
    let some = world.weft(&["export", "svc", "-n", "shop", "-l", "app=product"]).ok();
    assert!(!some.contains("kind: Gateway"), "{some}");
    assert_eq!(world.weft(&["export", "pods"]).code, 64);
}

#[test]
fn a_mistake_names_file_line_object_and_field_and_changes_nothing() {
    let world = World::start();
    let bad = ROUTE.replace("weight: 1", "weight: many");
    let file = world.file("bad.yaml", &format!("{SERVICE}---\n{bad}"));
    let refused = world.weft(&["apply", "-f", &file]);
    assert_eq!(refused.code, 1);
    // The line of the field, not of the document. (26)
    let line = format!("{file}:13: HTTPRoute/shop/product: spec.rules[0].backendRefs[0].weight: ");
    assert!(refused.err.lines().any(|text| text.trim_start().starts_with(&line)), "{}", refused.err);
    assert!(world.weft(&["history"]).ok().starts_with("no revisions yet"));
    let syntax = world.file("syntax.yaml", "kind: Service\n---\nkind: Service\nmetadata: {\n\n");
    let refused = world.weft(&["apply", "-f", &syntax]);
    assert!(refused.err.contains("syntax.yaml:6: "), "{}", refused.err);
    assert_eq!(refused.code, 64, "the file is wrong, and nothing was sent");
    let unknown = world.file("unknown.yaml", &SERVICE.replace("selector", "selektor"));
    assert!(world.weft(&["apply", "-f", &unknown]).err.contains("spec.selektor"));
}

#[test]
fn a_dry_run_changes_nothing() {
    let world = World::start();
    let file = world.file("shop.yaml", SERVICE);
    let dry = world.weft(&["apply", "-f", &file, "--dry-run"]).ok();
    assert_eq!(dry, format!("service shop/product would be created\n{NOBODY}dry run: nothing was changed\n"));
    assert!(world.weft(&["get", "svc", "-A"]).ok().starts_with("no services"));
}

#[test]
fn history_shows_differences_and_rollback_restores() {
    let world = World::start();
    let file = world.file("shop.yaml", SERVICE);
    world.weft(&["apply", "-f", &file, "-m", "first"]).ok();
    let file = world.file("shop.yaml", &SERVICE.replace("8080", "9090"));
    world.weft(&["apply", "-f", &file, "-m", "another port"]).ok();
    let history = world.weft(&["history"]).ok();
    let second = history.lines().nth(1).unwrap();
    assert!(second.starts_with("2 ") && second.contains("another port"), "{history}");
    let shown = world.weft(&["history", "show", "2"]).ok();
    assert!(shown.contains("~ Service/shop/product changed"), "{shown}");
    let signs: Vec<&str> = shown.lines().map(str::trim_end).filter(|line| line.contains("targetPort")).collect();
    assert!(
        matches!(signs[..], [old, new] if old.starts_with('-') && old.ends_with("8080") && new.starts_with('+')),
        "{shown}"
    );
    let dry = world.weft(&["rollback", "1", "--dry-run"]).ok();
    assert_eq!(dry, format!("service shop/product would be configured\n{NOBODY}dry run: nothing was changed\n"));
    let back = world.weft(&["rollback", "1"]).ok();
    assert!(back.ends_with("revision 3\n"), "{back}");
    let json: Value =
        serde_json::from_str(&world.weft(&["get", "svc", "product", "-n", "shop", "-o", "json"]).ok()).unwrap();
    assert_eq!(json["spec"]["ports"][0]["targetPort"], 8080);
    assert!(world.weft(&["history", "--limit", "1"]).ok().contains("rollback to 1"));
    let missing = world.weft(&["rollback", "99"]);
    assert_eq!(missing.code, 1);
    assert!(missing.err.contains("revision 99"), "{}", missing.err);
}

#[test]
fn tokens_are_created_listed_without_secret_and_revoked() {
    let world = World::start();
    let made = world.weft(&["token", "create", "-n", "shop", "-s", "order", "--ttl", "2h"]);
    assert_eq!(made.out.lines().count(), 1);
    assert!(made.out.starts_with("weft1."), "{}", made.out);
    assert!(made.err.contains("not shown again"), "{}", made.err);
    let secret = made.out.trim().split('.').nth(2).unwrap();
    let list = world.weft(&["token", "list"]).ok();
    assert!(
        list.contains("order") && (list.contains("2h") || list.contains("1h59m")) && !list.contains(secret),
        "{list}"
    );
    let id = made.out.split('.').nth(1).unwrap();
    assert_eq!(world.weft(&["token", "revoke", id]).ok(), format!("token {id} revoked\n"));
    assert_eq!(world.weft(&["token", "revoke", id]).code, 1);
    assert!(world.weft(&["token", "list"]).ok().starts_with("no tokens"));
    // Names that no workload can have, and times that are none. (26)
    for (namespace, account, ttl, field) in [
        ("Shop", "order", "1h", "namespace"),
        ("shop.x", "order", "1h", "namespace"),
        ("-", "order", "1h", "namespace"),
        ("shop", "or_der", "1h", "serviceAccount"),
        ("shop", "..", "1h", "serviceAccount"),
        ("shop", "order", "0ns", "ttl"),
        ("shop", "order", "-0", "ttl"),
        ("shop", "order", "0s", "ttl"),
        ("shop", "order", "400d", "ttl"),
    ] {
        let refused = world.weft(&["token", "create", "-n", namespace, "-s", account, &format!("--ttl={ttl}")]);
        assert_eq!((refused.code, refused.out.as_str()), (64, ""), "{namespace} {account} {ttl}: {}", refused.err);
        assert!(refused.err.contains(field), "{}", refused.err);
        assert_eq!(refused.err.matches("error:").count(), 1, "{}", refused.err);
    }
    let many = world.weft(&["token", "create", "-n", "shop", "-s", "order", "--reusable", "-o", "json"]).ok();
    let many: Value = serde_json::from_str(&many).unwrap();
    assert_eq!(many["usesLeft"], Value::Null);
}

#[test]
fn status_reports_that_no_proxy_is_connected() {
    let world = World::start();
    assert_eq!(world.weft(&["status"]).ok(), "no proxy is connected\n");
    let of_one = world.weft(&["status", "-n", "nope"]).ok();
    assert!(of_one.starts_with("no proxy of the namespace nope is connected"), "{of_one}");
    let json: Value = serde_json::from_str(&world.weft(&["status", "-o", "json"]).ok()).unwrap();
    assert_eq!(json["items"], Value::Array(Vec::new()));
}

#[test]
fn remote_access_requires_tls_and_a_token() {
    let world = World::start();
    let url = format!("https://{}", world.api);
    let ca = world.path("data/root.pem");
    let token = world.admin_token();
    let args = |more: &[&str]| -> Vec<String> {
        ["--server", &url].iter().chain(more).chain(&["status"]).map(|word| (*word).to_owned()).collect()
    };
    let run = |more: &[&str]| world.program(&args(more).iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(run(&["--ca", &ca, "--token-file", &token]).ok(), "no proxy is connected\n");
    for (more, code, hint) in [
        (&["--ca", &ca][..], 1, "next: Give an admin token: --token-file"),
        (&["--ca", &ca, "--token", "weftadmin.x.y"], 1, "next: Give an admin token: --token-file"),
        (&["--token-file", &token], 64, "next: Give the mesh's root: --ca"),
        (&["--ca", &token], 64, "--ca"),
    ] {
        let refused = run(more);
        assert_eq!((refused.code, refused.out.as_str()), (code, ""), "{more:?}: {}", refused.err);
        assert!(refused.err.contains(hint), "{more:?}: {}", refused.err);
    }
    // Another mesh's root.
    let other = World::start();
    let refused = run(&["--ca", &other.path("data/root.pem"), "--token-file", &token]);
    assert!(refused.err.contains("the TLS handshake"), "{}", refused.err);
}

/// Every command that reads an answer.
const COMMANDS: &[&[&str]] = &[
    &["delete", "svc", "product"],
    &["delete", "svc", "product", "--ignore-not-found"],
    &["get", "svc"],
    &["get", "svc", "product"],
    &["history"],
    &["history", "show", "1"],
    &["rollback", "1"],
    &["status"],
    &["status", "-o", "json"],
    &["token", "create", "-n", "shop", "-s", "order"],
    &["token", "list"],
    &["token", "revoke", "1f0c5a"],
    &["token", "admin"],
];

/// The gRPC port has a certificate of the same root, and gRPC answers 200 to any path. (20)
#[test]
fn the_grpc_port_is_not_taken_for_the_api() {
    let world = World::start();
    let server = format!("https://{}", world.grpc);
    let (ca, token) = (world.path("data/root.pem"), world.admin_token());
    for command in COMMANDS {
        let said = world::program(&[&["--server", &server, "--ca", &ca, "--token-file", &token], *command].concat());
        assert_eq!((said.code, said.out.as_str()), (1, ""), "{command:?}: {}", said.err);
        assert!(said.err.contains("is not the API of a Weft control plane"), "{command:?}: {}", said.err);
        assert!(said.err.contains("next: Give --server the control plane's API"), "{command:?}: {}", said.err);
    }
}

/// (20)
#[test]
fn another_server_is_not_believed_whatever_it_answers() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("a.yaml");
    std::fs::write(&file, SERVICE).unwrap();
    let apply = ["apply", "-f", file.to_str().unwrap()];
    let answer = |status: &str, fields: &str, body: &str| {
        format!("HTTP/1.1 {status}\r\n{fields}content-length: {}\r\n\r\n{body}", body.len())
    };
    let api = "weft-api: v1\r\ncontent-type: application/json\r\n";
    let changed = r#"{"revision": 4, "objects": []}"#;
    let (stranger, odd) = ("is not the API of a Weft control plane", "unexpected response from");
    for (index, (text, what)) in [
        (answer("200 OK", "content-type: text/html\r\n", "<html>"), stranger),
        (answer("200 OK", "content-type: application/json\r\n", "{}"), stranger),
        (answer("204 No Content", "", ""), stranger),
        (answer("404 Not Found", "", r#"{"error": "there is none"}"#), stranger),
        (answer("200 OK", "weft-api: v2\r\n", changed), stranger),
        (answer("200 OK", api, "<html>"), odd),
        (answer("200 OK", api, "[]"), odd),
        (answer("200 OK", api, r#"{"revision": "4"}"#), odd),
    ]
    .into_iter()
    .enumerate()
    {
        let path = directory.path().join(format!("{index}.sock"));
        let server = format!("unix:{}", path.display());
        world::answer_always(&path, text.clone());
        for command in COMMANDS.iter().copied().chain([&apply[..]]) {
            let said = world::program(&[&["--server", &server], command].concat());
            assert_eq!((said.code, said.out.as_str()), (1, ""), "{command:?} {text}: {}", said.err);
            assert!(said.err.contains(what), "{command:?} {text}: {}", said.err);
        }
    }
    // Right in everything but the object.
    let path = directory.path().join("changed.sock");
    world::answer_always(&path, answer("200 OK", api, changed));
    let said = world::program(&["--server", &format!("unix:{}", path.display()), "delete", "svc", "product"]);
    assert_eq!((said.code, said.out.as_str()), (1, ""), "{}", said.err);
}

#[test]
fn an_unreachable_control_plane_is_reported_with_a_suggestion() {
    let directory = tempfile::tempdir().unwrap();
    let socket = format!("unix:{}", directory.path().join("api.sock").display());
    let refused = world::program(&["--server", &socket, "status"]);
    assert_eq!(refused.code, 1);
    assert!(
        refused.err.starts_with(&format!("error: cannot reach the control plane at {socket}: ")),
        "{}",
        refused.err
    );
    assert!(refused.err.contains("next: Is a control plane running on this machine?"), "{}", refused.err);
}

#[test]
fn a_wrong_command_line_ends_with_64() {
    for args in [
        &["get"][..],
        &["gett"],
        &["get", "pods"],
        &["get", "svc", "a", "-A"],
        &["--server", "cp:8080", "status"],
        &["--server", "http://cp:8080", "status"],
        &["rollback", "last"],
        &["history", "--limit", "0"],
    ] {
        let wrong = world::program(args);
        assert_eq!((wrong.code, wrong.out.as_str()), (64, ""), "{args:?}: {}", wrong.err);
        assert!(!wrong.err.is_empty(), "{args:?}");
    }
    assert_eq!(world::program(&["--help"]).code, 0);
    assert!(world::program(&["version"]).ok().starts_with("weft "));
    assert!(world::program(&["get", "kinds"]).ok().contains("httproutes"));
    // Scripts get JSON. (20.26)
    let kinds: Value = serde_json::from_str(&world::program(&["get", "kinds", "-o", "json"]).ok()).unwrap();
    assert_eq!(kinds[1]["shortNames"][0], "svc");
    let wrong = world::program(&["history", "show", "last"]);
    assert!(
        wrong.err.contains("must be the number of a revision, from 1, as `weft history` prints it"),
        "{}",
        wrong.err
    );
}

#[test]
fn the_demos_objects_are_applied() {
    let world = World::start();
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/demo");
    let applied = world.weft(&["apply", "-f", demo]).ok();
    assert!(applied.contains("httproute shop/product created") && applied.ends_with("revision 1\n"), "{applied}");
    // Nothing is missing but the workloads.
    let mut warnings = applied.lines().filter(|line| line.contains("warning: "));
    assert!(warnings.all(|line| line.contains("NoWorkload: ") || line.contains("UnknownAccount: ")), "{applied}");
    for file in ["canary/10.yaml", "canary/50.yaml"] {
        let applied = world.weft(&["apply", "-f", &format!("{demo}/{file}")]).ok();
        let wanted = "httproute shop/edge-products configured\nhttproute shop/product configured\nrevision ";
        assert!(applied.starts_with(wanted), "{applied}");
    }
}
