//! The shop without a mesh: real services, real databases, loopback ports.
//!
//! Needs what the project's set-up installs: node, python3, redis-server, PostgreSQL and `.tools/venv` with grpcio.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "an integration test"
)]

mod edge;
mod world;

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::world::{Program, World, free_port, shop, venv_python, wait};

const TRACE: &str = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n";

#[test]
fn unit_tests_of_the_node_and_python_parts_pass() {
    for (program, arguments) in [
        ("node", vec!["--test".to_owned(), shop("user/resp.test.js")]),
        (&venv_python(), vec!["-B".to_owned(), shop("payment/test_messages.py")]),
    ] {
        let output = Command::new(program).args(&arguments).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {arguments:?}: {text}");
    }
}

#[test]
fn product_answers_with_its_version_and_instance() {
    let world = World::new();
    // Both at once on one new file, the second on both families.
    let v1 = world.product("product-1", "v1", "0.0.0.0:0", "product.db");
    let v2 = world.product("product-2", "v2", "[::]:0", "product.db");
    let (v1, mut v2) = (v1.ready(), v2.ready());
    v2.address = v2.address.replace("[::1]", "127.0.0.1");
    v2 = v2.ready();

    let one = v1.get("/products/p1");
    assert_eq!(one.status, 200);
    assert_eq!(one.body["version"], "v1");
    assert_eq!(one.body["instance"], "product-1");
    assert_eq!(one.body["price_cents"], 1890);
    assert!(one.body.get("recommended").is_none(), "{}", one.body);
    assert!(one.head.contains("x-instance: product-1"), "{}", one.head);

    let two = v2.get("/products/p1");
    assert_eq!(two.body["version"], "v2");
    assert_eq!(two.body["recommended"], json!(["p2", "p3"]));
    for program in [&v1, &v2] {
        let list = program.get("/products?page=1");
        assert_eq!(list.body["products"].as_array().unwrap().len(), 12);
        assert_eq!(list.body.get("recommended").is_some(), list.body["version"] == "v2");
    }

    for (method, path, status) in [
        ("GET", "/products/p99", 404),
        ("GET", "/products/..%2f", 404),
        ("GET", "/nothing", 404),
        ("POST", "/products", 405),
    ] {
        let answer = v1.ask(method, path, "", "");
        assert_eq!(answer.status, status, "{method} {path}");
        assert!(answer.body["error"].is_string(), "{}", answer.body);
    }
    let page = v1.get("/");
    assert!(page.body.as_str().is_some_and(|page| page.contains("<title>")), "{}", page.body);
    assert_two_requests_share_a_connection(&v1, "/products/p1");
    assert_ends_soon([v1, v2]);
}

#[test]
fn user_reads_and_writes_and_outlives_its_database() {
    let world = World::new();
    let port = free_port();
    let early = world.user("user-1", "[::]:0", &format!("127.0.0.1:{port}")).listening();
    assert_eq!(early.get("/healthz").status, 503);
    let redis = world.redis(port);
    let (mut one, two) = (early.ready(), world.user("user-2", "127.0.0.1:0", &redis.address).ready());

    one.address = one.address.replace("[::1]", "127.0.0.1");
    let ada = one.get("/users/u1");
    assert_eq!((ada.status, &ada.body["name"], &ada.body["instance"]), (200, &json!("Ada"), &json!("user-1")));
    let new = one.post("/users", &json!({"name": "Zoë", "email": "zoe@shop.example"}));
    assert_eq!(new.status, 201, "{}", new.body);
    let path = format!("/users/{}", new.body["id"].as_str().unwrap());
    assert!(new.head.contains(&format!("location: {path}")), "{}", new.head);
    assert_eq!(two.get(&path).body["name"], "Zoë");
    let other = two.post("/users", &json!({"name": "Yan", "email": "yan@shop.example"}));
    assert_ne!(other.body["id"], new.body["id"]);

    for (body, reason) in [
        ("{", "body:"),
        ("[]", "body:"),
        ("null", "body:"),
        (r#"{"name": "a"}"#, "email:"),
        (r#"{"name": "", "email": "e"}"#, "name:"),
        (r#"{"name": "a", "email": "e", "admin": true}"#, "admin:"),
    ] {
        let answer = one.ask("POST", "/users", "", body);
        assert_eq!(answer.status, 400, "{body}");
        assert!(answer.body["error"].as_str().unwrap().starts_with(reason), "{body}: {}", answer.body);
    }
    assert_eq!(one.ask("POST", "/users", "", &"x".repeat(20_000)).status, 413);
    assert_eq!(one.get("/users/u999999").status, 404);
    assert_eq!(one.get("/users").status, 405);
    assert_two_requests_share_a_connection(&one, "/users/u1");

    redis.kill();
    wait("user-1 sees that Redis is gone", || (one.get("/healthz").status == 503).then_some(()));
    assert_eq!(one.get("/users/u1").status, 503);
    let _redis = world.redis(port);
    let one = one.ready();
    assert_eq!(one.get(&path).body["name"], "Zoë", "an acknowledged user is gone");
    assert_ends_soon([one, two]);
}

#[test]
fn payment_charges_once_and_remembers() {
    let world = World::new();
    let one = world.payment("payment-1", "127.0.0.1:0", "payment.db").listening();
    let two = world.payment("payment-2", "[::]:0", "payment.db");
    let (one, two) = (one.listening(), two.listening());
    let two_by_ipv4 = two.address.replace("[::1]", "127.0.0.1");
    for address in [&one.address, &two.address, &two_by_ipv4] {
        wait("payment serves", || (call(address, &["check"])["serving"] == true).then_some(()));
    }

    let first = call(&one.address, &["charge", "o-1", "1890", "EUR"]);
    assert_eq!(
        (&first["status"], &first["accepted"], &first["instance"]),
        (&json!("OK"), &json!(true), &json!("payment-1"))
    );
    let again = call(&two_by_ipv4, &["charge", "o-1", "1890", "EUR"]);
    assert_eq!((&again["charge_id"], &again["instance"]), (&first["charge_id"], &json!("payment-2")));
    assert_eq!(call(&one.address, &["charge", "o-1", "1891"])["status"], "FAILED_PRECONDITION");
    let large = call(&one.address, &["charge", "o-2", "500001"]);
    assert_eq!((&large["status"], &large["accepted"]), (&json!("OK"), &json!(false)));
    for (arguments, field) in [
        (["charge", "o 3", "1", "EUR"], "order_id"),
        (["charge", "o-3", "0", "EUR"], "amount_cents"),
        (["charge", "o-3", "1", "eur"], "currency"),
    ] {
        let answer = call(&one.address, &arguments);
        assert_eq!(answer["status"], "INVALID_ARGUMENT", "{arguments:?}");
        assert!(answer["details"].as_str().unwrap().starts_with(field), "{answer}");
    }
    assert_eq!(call(&one.address, &["read", "o-3"])["status"], "NOT_FOUND");

    one.kill();
    let one = world.payment("payment-1", "127.0.0.1:0", "payment.db").listening();
    let read =
        wait("payment reads", || Some(call(&one.address, &["read", "o-1"])).filter(|read| read["status"] == "OK"));
    assert_eq!((&read["charge_id"], &read["amount_cents"]), (&first["charge_id"], &json!(1890)));
    assert_ends_soon([one, two]);
}

#[test]
fn an_order_goes_through_every_service_and_outlives_each() {
    let world = World::new();
    let data = world.initdb();
    let database_port = free_port();
    let redis = world.redis(free_port());
    let user = world.user("user-1", "127.0.0.1:0", &redis.address).ready();
    let product = world.product("product-1", "v2", "127.0.0.1:0", "product.db").ready();
    let payment = world.payment("payment-1", "127.0.0.1:0", "payment.db").listening();
    let database_address = format!("127.0.0.1:{database_port}");
    let env = [
        ("USER_ADDR", user.address.as_str()),
        ("PRODUCT_ADDR", &product.address),
        ("PAYMENT_ADDR", &payment.address),
        ("ORDER_DB_ADDR", &database_address),
    ];
    let order = |name: &str| {
        let bind = [("BIND", "[::]:0"), ("INSTANCE", name)];
        world.service(name, &[env!("CARGO_BIN_EXE_shop-order")], &[&env[..], &bind].concat())
    };

    let (one, two) = (order("order-1"), order("order-2"));
    let (one, two) = (one.listening(), two.listening());
    assert_eq!(one.get("/healthz").status, 503, "ready without a database");
    let postgres = world.postgres(&data, database_port);
    let (one, mut two) = (one.ready(), two.ready());
    two.address = two.address.replace("[::1]", "127.0.0.1");

    // Through every service, with its trace.
    let body = json!({"user": "u1", "product": "p1", "quantity": 2, "idempotency_key": "k1"});
    let placed = one.ask("POST", "/orders", TRACE, &body.to_string());
    assert_eq!(placed.status, 201, "{}", placed.body);
    let served_by = json!({"user": "user-1", "product": "product-1", "product_version": "v2", "payment": "payment-1"});
    assert_eq!((&placed.body["served_by"], &placed.body["amount_cents"]), (&served_by, &json!(3780)));
    assert!(placed.head.contains("x-instance: order-1"), "{}", placed.head);
    for program in [&user, &product, &payment] {
        wait("the trace is in the log", || {
            program
                .log_lines()
                .iter()
                .any(|line| format!("traceparent: {}\r\n", line["traceparent"].as_str().unwrap_or("")) == TRACE)
                .then_some(())
        });
    }
    let id = placed.body["id"].as_str().unwrap();
    let path = format!("/orders/{id}");
    assert!(placed.head.contains(&format!("location: {path}")), "{}", placed.head);
    assert_eq!(two.get(&path).body["charge_id"], placed.body["charge_id"]);
    assert_eq!(call(&payment.address, &["read", id])["amount_cents"], 3780);

    // The same key: one order, one charge, also when all come at once.
    let same = json!({"user": "u2", "product": "p2", "quantity": 1, "idempotency_key": "k2"});
    let ids: BTreeSet<String> = std::thread::scope(|scope| {
        let posts: Vec<_> = (0..8).map(|n| (if n % 2 == 0 { &one } else { &two }, &same)).collect();
        let threads: Vec<_> = posts
            .into_iter()
            .map(|(program, body)| {
                scope.spawn(move || {
                    let answer = program.post("/orders", body);
                    assert_eq!(answer.status, 201, "{}", answer.body);
                    format!("{} {}", answer.body["id"], answer.body["charge_id"])
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(ids.len(), 1, "{ids:?}");
    let list = one.get("/orders?limit=10").body;
    assert_eq!(list["orders"].as_array().unwrap().len(), 2, "{list}");
    assert_eq!(one.get("/orders?limit=1").body["orders"][0]["idempotency_key"], "k2");

    // Bad requests.
    for (body, status, reason) in [
        (json!({"user": "u1"}), 400, "missing field"),
        (json!({"user": "u1", "product": "p1", "quantity": "2"}), 400, "quantity"),
        (json!({"user": "u1", "product": "p1", "quantity": 0}), 400, "quantity"),
        (json!({"user": "u1", "product": "p1", "quantity": 1, "gift": true}), 400, "gift"),
        (json!({"user": "u999999", "product": "p1", "quantity": 1}), 422, "no user u999999"),
        (json!({"user": "u1", "product": "p99", "quantity": 1}), 422, "no product p99"),
        (json!({"user": "u1", "product": "p10", "quantity": 100}), 402, "declined"),
        (json!({"user": "u1", "product": "p1", "quantity": 3, "idempotency_key": "k1"}), 409, "used before"),
    ] {
        let answer = one.post("/orders", &body);
        assert_eq!(answer.status, status, "{body}: {}", answer.body);
        assert!(answer.body["error"].as_str().unwrap().contains(reason), "{body}: {}", answer.body);
    }
    for (method, path, status) in [
        ("GET", "/orders/o-0", 404),
        ("GET", "/orders?limit=0", 400),
        ("GET", "/orders?limit=x", 400),
        ("GET", "/x", 404),
        ("DELETE", "/orders", 405),
    ] {
        assert_eq!(one.ask(method, path, "", "").status, status, "{method} {path}");
    }
    assert_two_requests_share_a_connection(&one, &path);

    // An acknowledged order survives the order service and the database.
    one.kill();
    let one = order("order-1").ready();
    assert_eq!(one.get(&path).status, 200);
    postgres.kill();
    assert_eq!(one.get(&path).status, 503);
    wait("order-1 sees that PostgreSQL is gone", || (one.get("/healthz").status == 503).then_some(()));
    let postgres = world.postgres(&data, database_port);
    let (one, two) = (one.ready(), two.ready());
    assert_eq!(one.get(&path).body["charge_id"], placed.body["charge_id"]);

    // A restart of the database is waited for.
    postgres.kill();
    let fresh = json!({"user": "u3", "product": "p3", "quantity": 1, "idempotency_key": "k3"});
    let _postgres = std::thread::scope(|scope| {
        let post = scope.spawn(|| two.post("/orders", &fresh));
        std::thread::sleep(Duration::from_millis(300));
        let postgres = world.postgres(&data, database_port);
        assert_eq!(post.join().unwrap().status, 201);
        postgres
    });

    // Payment goes away and comes back at the same address.
    let payment_address = payment.address.clone();
    payment.kill();
    let fresh = json!({"user": "u4", "product": "p4", "quantity": 1});
    let answer = one.post("/orders", &fresh);
    assert_eq!(answer.status, 502, "{}", answer.body);
    assert!(answer.body["error"].as_str().unwrap().starts_with("payment cannot be reached"), "{}", answer.body);
    let _payment = world.payment("payment-1", &payment_address, "payment.db").listening();
    let answer = one.post("/orders", &fresh);
    assert_eq!(answer.status, 201, "{}", answer.body);
    assert_ends_soon([one, two]);
}

#[test]
fn the_load_generator_counts_what_happens() {
    let world = World::new();
    let data = world.initdb();
    let postgres = world.postgres(&data, free_port());
    let redis = world.redis(free_port());
    let user = world.user("user-1", "127.0.0.1:0", &redis.address).ready();
    let product = world.product("product-1", "v1", "127.0.0.1:0", "product.db").ready();
    let payment = world.payment("payment-1", "127.0.0.1:0", "payment.db").listening();
    let order = |bind: &str| {
        let env = [
            ("BIND", bind),
            ("INSTANCE", "order-1"),
            ("USER_ADDR", &user.address),
            ("PRODUCT_ADDR", &product.address),
            ("PAYMENT_ADDR", &payment.address),
            ("ORDER_DB_ADDR", &postgres.address),
        ];
        world.service("order-1", &[env!("CARGO_BIN_EXE_shop-order")], &env).ready()
    };
    let first = order("127.0.0.1:0");
    let order_address = first.address.clone();
    let edge = edge::start([
        ("/users", user.address.clone()),
        ("/products", product.address.clone()),
        ("/orders", order_address.clone()),
    ]);

    // A quiet run: everything succeeds and the sums agree.
    let flags = ["--edge", &format!("http://{edge}"), "--rps", "150", "--json-lines", "--verify"];
    let mut load = world.start(
        "load",
        &[&[env!("CARGO_BIN_EXE_shop-load"), "--seconds", "3"], &flags[..]].concat(),
        &[],
        "",
        Signal::KILL,
    );
    assert_eq!(load.finish(), Some(0));
    let lines = load.log_lines();
    let summary = lines.last().unwrap();
    assert_eq!(
        (&summary["kind"], &summary["failed"], &summary["sent"]),
        (&json!("summary"), &json!(0), &json!(450)),
        "{summary}"
    );
    assert_eq!(summary["ok"], 450, "{summary}");
    let posts: Vec<_> = lines.iter().filter(|line| line["kind"] == "request").collect();
    assert_eq!(json!(posts.len()), summary["acknowledged"], "{summary}");
    assert_eq!(summary["verified"], json!({"found": posts.len(), "missing": [], "unreadable": 0}));
    assert_eq!(posts.iter().map(|post| post["key"].to_string()).collect::<BTreeSet<_>>().len(), posts.len());
    assert!(posts.iter().all(|post| post["started_at"].as_u64() <= post["ended_at"].as_u64()));
    let of_product =
        ["GET /products", "GET /products/{id}"].map(|route| summary["routes"][route]["ok"].as_u64().unwrap());
    assert_eq!(json!(of_product.iter().sum::<u64>()), summary["versions"]["v1"], "{summary}");
    assert_eq!(summary["versions"]["v1"], summary["instances"]["product-1"]);
    let seconds: Vec<_> = lines.iter().filter(|line| line["kind"] == "second").collect();
    for field in ["sent", "ok", "failed"] {
        let sum: u64 = seconds.iter().map(|line| line[field].as_u64().unwrap()).sum();
        assert_eq!(json!(sum), summary[field], "{field}: {seconds:?}");
    }
    for line in &seconds[..2] {
        assert!(line["sent"].as_u64().unwrap().abs_diff(150) <= 50, "not an even rate: {line}");
    }

    // The order service is killed under load: what fails is named, what was acknowledged is there.
    let mut load =
        world.start("load", &[&[env!("CARGO_BIN_EXE_shop-load")], &flags[..]].concat(), &[], "", Signal::KILL);
    wait("orders are placed", || {
        (load.log_lines().iter().filter(|line| line["kind"] == "request").count() > 10).then_some(())
    });
    first.kill();
    wait("a POST fails", || {
        load.log_lines().iter().any(|line| line["method"] == "POST" && line["ok"] == false).then_some(())
    });
    let second = order(&order_address);
    let seen = load.log_lines().len();
    wait("a POST succeeds again", || {
        load.log_lines().iter().skip(seen).any(|line| line["method"] == "POST" && line["ok"] == true).then_some(())
    });
    load.signal(Signal::TERM);
    assert_eq!(load.finish(), Some(0));
    let lines = load.log_lines();
    let summary = lines.last().unwrap();
    let failed: Vec<_> = lines.iter().filter(|line| line["kind"] == "request" && line["ok"] == false).collect();
    assert_eq!(json!(failed.len()), summary["failed"], "{summary}");
    assert!(failed.iter().all(|line| line["path"].as_str().unwrap().starts_with("/orders")), "{failed:?}");
    assert_eq!(summary["verified"]["missing"], json!([]), "an acknowledged order is gone");
    assert_eq!(summary["verified"]["found"], summary["acknowledged"], "{summary}");
    assert_ends_soon([user, product, payment, second]);
}

/// Calls payment and returns the line that `charge.py` printed.
fn call(address: &str, arguments: &[&str]) -> Value {
    let output = Command::new(venv_python())
        .args(["-B", &shop("payment/charge.py"), "--to", address])
        .args(arguments)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text).unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)))
}

fn assert_two_requests_share_a_connection(program: &Program, path: &str) {
    let mut stream = TcpStream::connect(&program.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    for round in 0..2 {
        write!(stream, "GET {path} HTTP/1.1\r\nhost: shop\r\n\r\n").unwrap();
        let mut text = String::new();
        let mut part = [0; 4096];
        while !text.ends_with('}') {
            let count = stream.read(&mut part).unwrap();
            assert_ne!(count, 0, "closed in round {round} after {text}");
            text.push_str(str::from_utf8(&part[..count]).unwrap());
        }
        assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
    }
}

/// SIGTERM with an idle connection open: the program is gone within 2 s, with code 0.
fn assert_ends_soon<const N: usize>(programs: [Program; N]) {
    for program in programs {
        let idle = TcpStream::connect(&program.address).ok();
        let (took, code) = program.terminate();
        assert!(took < Duration::from_secs(2), "took {took:?}");
        assert_eq!(code, Some(0));
        drop(idle);
    }
}
