//! Every protocol between two workloads: without a mesh (so that the tests are known to be right), then through two
//! proxies. The same bodies run both times.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use serde_json::Value;
use weft_e2e::load::Load;
use weft_e2e::{DEADLINE, Host, app, test, until};

/// HTTP/1.1: heads both ways, bodies, streaming, trailers, statuses, keep-alive.
pub(crate) fn http1(client: &Host, at: &str, port: u16) -> Result<()> {
    let url = |path: &str| format!("http://{at}:{port}{path}");
    let seen = app::seen(client, &["-d", "some body", "-H", "X-Sent: it", &url("/seen?a=b&c")])?;
    assert_eq!(seen["method"], "POST");
    assert_eq!(seen["path"], "/seen?a=b&c");
    assert_eq!(seen["version"], "1.1");
    assert_eq!(seen["headers"]["x-sent"], "it");
    assert_eq!(seen["headers"]["host"], format!("{at}:{port}"));
    assert_eq!(seen["body"], "some body");
    // Whether as written or in lower case (docs/adr/0004): once, and nothing of the hop's own.
    let names: Vec<String> = seen["raw"].as_array().into_iter().flatten().step_by(2).map(lower_case).collect();
    assert_eq!(names.iter().filter(|name| *name == "x-sent").count(), 1, "{seen}");
    assert!(names.iter().all(|name| !name.starts_with("weft-") || name == "weft-client-id"), "{seen}");

    for code in ["204", "404", "418", "500"] {
        assert_eq!(app::status(client, &url(&format!("/status/{code}")))?, code);
    }
    let big = client.file("big", vec![b'x'; 3_000_000])?.display().to_string();
    let echoed = app::curl(client, &["--data-binary", &format!("@{big}"), &url("/echo")])?;
    assert_eq!(echoed.len(), 3_000_000);
    let chunked =
        app::curl(client, &["-H", "Transfer-Encoding: chunked", "--data-binary", &format!("@{big}"), &url("/echo")])?;
    assert_eq!(chunked.len(), 3_000_000);
    assert_eq!(app::curl(client, &[&url("/bytes/5000000")])?.len(), 5_000_000);
    // Only who asks for trailers is sure to get them (RFC 9110 §6.5.1).
    let trailers = app::curl(client, &["-i", "--raw", "-H", "TE: trailers", &url("/trailers")])?.to_ascii_lowercase();
    assert!(trailers.contains("first ") && trailers.contains("x-checksum: 12345"), "{trailers}");
    // Two requests on one connection.
    let connections = app::curl(
        client,
        &["-o", "/dev/null", "-o", "/dev/null", "-w", "%{num_connects} ", &url("/seen"), &url("/seen")],
    )?;
    assert_eq!(connections, "1 0 ");
    assert_eq!(app::curl(client, &["-I", "-o", "/dev/null", "-w", "%{http_code}", &url("/seen")])?, "200");
    Ok(())
}

fn lower_case(name: &Value) -> String {
    name.as_str().unwrap_or_default().to_ascii_lowercase()
}

/// HTTP/2 with prior knowledge.
pub(crate) fn http2(client: &Host, at: &str, port: u16) -> Result<()> {
    let url = |path: &str| format!("http://{at}:{port}{path}");
    let h2 = "--http2-prior-knowledge";
    let seen = app::seen(client, &[h2, "-d", "some body", "-H", "x-sent: it", &url("/seen?a")])?;
    assert_eq!(seen["version"], "2.0");
    assert_eq!(seen["method"], "POST");
    assert_eq!(seen["headers"]["x-sent"], "it");
    assert_eq!(seen["headers"][":authority"], format!("{at}:{port}"));
    assert_eq!(seen["body"], "some body");
    assert_eq!(
        app::curl(client, &[h2, "-o", "/dev/null", "-w", "%{http_code} %{http_version}", &url("/status/404")])?,
        "404 2"
    );
    let big = client.file("big", vec![b'x'; 3_000_000])?.display().to_string();
    assert_eq!(app::curl(client, &[h2, "--data-binary", &format!("@{big}"), &url("/echo")])?.len(), 3_000_000);
    assert_eq!(app::curl(client, &[h2, &url("/trailers")])?, "first second");
    Ok(())
}

/// Opaque bytes: client first with half-close, and server first.
pub(crate) fn tcp(client: &Host, address: std::net::IpAddr, tcp: u16, greet: u16, name: &str) -> Result<()> {
    let connect = |port: u16, send: &str| {
        client.exec_ok("weft-e2e-probe", &["connect", &SocketAddr::new(address, port).to_string(), "--send", send])
    };
    assert_eq!(connect(tcp, "\u{1}hello\n")?, format!("\u{1}hello\nbye from {name}\n"));
    assert_eq!(connect(tcp, "")?, format!("bye from {name}\n"));
    assert_eq!(connect(greet, "")?, format!("220 {name} ready\nbye from {name}\n"));
    assert_eq!(connect(greet, "QUIT\n")?, format!("220 {name} ready\nQUIT\nbye from {name}\n"));
    Ok(())
}

/// gRPC of every sort, and WebSocket.
pub(crate) fn grpc_and_websocket(client: &Host, at: &str, name: &str, grpc: u16, http: u16) -> Result<()> {
    let said = app::grpc_calls(client, &format!("{at}:{grpc}"))?;
    assert_eq!(said.lines().count(), 9, "{said}");
    let long = "x".repeat(5000);
    let said = app::websocket(client, at, http, &["hello", &long])?;
    assert_eq!(said, format!("{name}: hello\n{name}: {long}\nclosed\n"));
    Ok(())
}

/// A real database protocol: commands, a pipeline, large values, a blocking command that another client ends.
pub(crate) fn redis(client: &Host, at: &str) -> Result<()> {
    let redis = |script: &str| client.exec_ok("sh", &["-c", script, "sh", at]);
    assert_eq!(redis("redis-cli -h $1 SET basket 'two apples'")?, "OK\n");
    assert_eq!(redis("redis-cli -h $1 GET basket")?, "two apples\n");
    assert_eq!(redis("seq 1000 | sed 's/.*/INCR counter/' | redis-cli -h $1 | tail -n 1")?, "1000\n");
    assert_eq!(
        redis("seq 1000 | sed 's/.*/INCR piped/' | redis-cli -h $1 --pipe | tail -n 1")?,
        "errors: 0, replies: 1000\n"
    );
    assert_eq!(redis("head -c 5000000 /dev/zero | redis-cli -h $1 -x SET large")?, "OK\n");
    assert_eq!(redis("redis-cli -h $1 GET large | wc -c")?, "5000001\n");
    let waits = "redis-cli -h $1 BLPOP queue 20 & \
                 until redis-cli -h $1 CLIENT LIST | grep -q cmd=blpop; do :; done; \
                 redis-cli -h $1 RPUSH queue parcel >/dev/null; wait";
    assert_eq!(redis(waits)?, "queue\nparcel\n");
    Ok(())
}

/// The other database: its own negotiation of TLS first, transactions, bulk data, notification from another session.
pub(crate) fn postgres(client: &Host, at: &str) -> Result<()> {
    let psql = |script: &str| {
        client.exec_ok("sh", &["-ec", &format!("PG=\"psql -qAtX -h $1 -U postgres\"; {script}"), "sh", at])
    };
    assert_eq!(psql("$PG -c 'SELECT 40 + 2'")?, "42\n");
    psql("$PG -c 'DROP TABLE IF EXISTS parcel; CREATE TABLE parcel (id int, content text)'")?;
    assert_eq!(
        psql(
            "seq 20000 | sed 's/$/,some content/' | $PG -c 'COPY parcel FROM STDIN CSV'; $PG -c 'SELECT count(*) FROM parcel'"
        )?,
        "20000\n"
    );
    assert_eq!(psql("$PG -c 'BEGIN; DELETE FROM parcel; ROLLBACK; SELECT count(*) FROM parcel'")?, "20000\n");
    assert_eq!(psql("$PG -c 'SELECT id, content FROM parcel ORDER BY id' | tail -n 1")?, "20000|some content\n");
    assert_eq!(psql("$PG -c \"SELECT length(repeat('x', 5000000)), repeat('y', 3000000)\" | wc -c")?, "3000009\n");
    assert_eq!(psql("$PG -c 'SELECT 1/0' 2>&1 || echo status $?")?, "ERROR:  division by zero\nstatus 1\n");
    Ok(())
}

#[test]
fn every_protocol_works_without_a_mesh() {
    test("traffic-plain", |world| {
        let (client, server) = (world.host("client")?, world.host("server")?);
        let _app = app::start(&server)?;
        http1(&client, "server", app::HTTP)?;
        http2(&client, "server", app::HTTP2)?;
        for address in server.addresses() {
            tcp(&client, address, app::TCP, app::GREET, "server")?;
        }
        let _redis = app::start_redis(&server)?;
        redis(&client, "server")?;
        let _postgres = app::start_postgres(&server)?;
        postgres(&client, "server")?;
        grpc_and_websocket(&client, "server", "server", app::GRPC, app::HTTP)
    });
}

/// The load sees what fails and what does not: an application killed under it, and back.
#[test]
fn load_counts_what_a_killed_application_costs() {
    test("load-plain", |world| {
        let (client, server) = (world.host("client")?, world.host("server")?);
        let first = app::start(&server)?;
        let at = SocketAddr::new(server.ipv4().into(), app::HTTP);
        let mut load = Load::start(&client, at, "server", "/seen", 100)?;
        load.wait_for_more(50)?;
        assert_eq!(load.tally()?.keys().collect::<Vec<_>>(), ["200"]);
        drop(first);
        until("the outage to be seen", DEADLINE, || {
            ensure!(load.tally()?.contains_key("error: ConnectionRefused"), "no request failed with ConnectionRefused");
            Ok(())
        })?;
        let _second = app::start(&server)?;
        load.wait_for_more(50)
    });
}
