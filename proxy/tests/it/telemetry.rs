//! What a proxy tells: counts equal to what was sent, one log line per request with the fields that the reference page
//! lists, and nothing that a caller sends can add a line, a field or a series without bound.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use serde_json::Value;
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    time::sleep,
};
use weft_core::{
    listener::{AccessLog as LogPolicy, InboundMode, Listener, OutboundDefault, OutboundPolicy},
    names::ListenerName,
    policy::{Authorization, Operation, PathPattern, Principal, Rule},
};
use weft_proxy::listener::socket::Role;

use crate::{
    apps::{fixed_app, http2_client, once, raw, until},
    pair::{Authority, Proxy, endpoint_set, identity, inbound_model, outbound_model, service},
    traffic::{application, exchange, mirror},
};

const SECOND: Duration = Duration::from_secs(1);
const PAGE: &str = include_str!("../../../docs/reference/access-log.md");

struct Logged {
    outbound: Proxy,
    inbound: Proxy,
    address: SocketAddr,
}

/// A pair of proxies that log everything; `/secret` is denied, and with it what is not HTTP.
fn logged(application: SocketAddr) -> Logged {
    let secret = Rule {
        name: "shop/secret#0".into(),
        from: vec![Principal::Any],
        to: vec![Operation { paths: vec![PathPattern::Prefix("/secret".into())], ..Operation::default() }],
    };
    logged_with(application, Authorization { deny: vec![secret], allow: None })
}

fn logged_with(application: SocketAddr, policy: Authorization) -> Logged {
    let authority = Authority::new();
    let all = |account: &str| {
        Proxy::start_with(Some(authority.svid(account, true)), |shared| shared.access_log = Some(LogPolicy::All))
    };
    let (inbound, outbound) = (all("product"), all("order"));
    inbound.shared.live.replace(inbound_model(InboundMode::Strict, policy)).unwrap();
    let at = inbound.listen(Role::Inbound(Some(application)));
    outbound.shared.live.replace(outbound_model(|_, _| {})).unwrap();
    outbound.shared.live.set_endpoints(&endpoint_set(&[(at, Some(identity("product")))]));
    let address = outbound.listen(Role::Outbound(Some(service())));
    Logged { outbound, inbound, address }
}

/// The lines of a log, once there are as many as expected and no more come.
async fn lines(proxy: &Proxy, expected: usize) -> Vec<Value> {
    until(SECOND * 2, || proxy.log().lines().count() >= expected).await;
    sleep(Duration::from_millis(50)).await;
    let log = proxy.log();
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), expected, "{log}");
    lines
}

#[tokio::test]
async fn every_request_is_one_line_at_each_proxy_with_the_fields_of_the_reference_page() {
    let application = mirror().await;
    let mesh = logged(application);
    let mut client = TcpStream::connect(mesh.address).await.unwrap();
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let request =
        format!("POST /a?b=c HTTP/1.1\r\nhost: product:80\r\ntraceparent: {trace}\r\ncontent-length: 4\r\n\r\nbody");
    let answer = exchange(&mut client, &request, "body").await;
    assert!(answer.contains(&format!("traceparent: {trace}")), "{answer}");
    let answer = exchange(&mut client, "GET /secret HTTP/1.1\r\nhost: product:80\r\n\r\n", "policy").await;
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");

    let outbound = lines(&mesh.outbound, 2).await;
    let inbound = lines(&mesh.inbound, 2).await;
    let first = &outbound[0];
    for (field, value) in [
        ("direction", "outbound"),
        ("protocol", "http1"),
        ("method", "POST"),
        ("authority", "product:80"),
        ("path", "/a"),
        ("destination", "240.0.0.1:80"),
        ("cluster", "svc/shop/product:80"),
        ("route", "shop/product#0"),
        ("security", "mtls"),
        ("traceparent", trace),
        ("source", &client.local_addr().unwrap().to_string()),
    ] {
        assert_eq!(first[field], value, "{field}: {first}");
    }
    assert_eq!((&first["status"], &first["attempts"], &first["bytes_sent"]), (&200.into(), &1.into(), &4.into()));
    assert!(first["bytes_received"].as_u64().unwrap() > 100, "{first}");
    assert!(first["time"].as_str().unwrap().parse::<jiff::Timestamp>().is_ok(), "{first}");
    assert_eq!(inbound[0]["source_identity"], "spiffe://weft.local/ns/shop/sa/order");
    assert_eq!(inbound[0]["destination"], application.to_string());
    assert_eq!(
        (&inbound[1]["status"], &inbound[1]["flag"], &inbound[1]["reason"]),
        (&403.into(), &"RBAC".into(), &"denied by policy rule shop/secret#0".into())
    );

    // Every field that is written is on the page, and the page lists no other.
    let documented: BTreeSet<&str> =
        PAGE.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`').map(|(name, _)| name)).collect();
    let all = ["source_identity", "endpoint", "flag", "reason"].into_iter();
    let written: BTreeSet<&str> = outbound
        .iter()
        .chain(&inbound)
        .flat_map(|line| line.as_object().unwrap().keys().map(String::as_str))
        .chain(all)
        .collect();
    assert_eq!(written, documented);
}

#[tokio::test]
async fn requests_that_go_nowhere_and_connections_that_are_not_http_have_their_line_too() {
    let application = application(|bytes| [b"+", bytes].concat()).await;
    let mesh = logged_with(application, Authorization::default());
    let (answer, _) = raw(mesh.address, b"GET / HTTP/1.1\r\nconnection: close\r\n\r\n", SECOND).await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    let line = &lines(&mesh.outbound, 1).await[0];
    assert_eq!((&line["status"], &line["flag"], &line["protocol"]), (&400.into(), &"DPE".into(), &"http1".into()));
    assert_eq!(mesh.outbound.metric("weft_requests_total", &["status=\"4xx\""]), 1.0);

    let mut client = TcpStream::connect(mesh.address).await.unwrap();
    assert_eq!(exchange(&mut client, "\0\x01binary", "binary").await, "+\0\x01binary");
    drop(client);
    let line = &lines(&mesh.outbound, 2).await[1];
    assert_eq!(
        (&line["protocol"], &line["bytes_sent"], &line["bytes_received"]),
        (&"tcp".into(), &8.into(), &9.into())
    );
    let line = &lines(&mesh.inbound, 1).await[0];
    assert_eq!((&line["protocol"], &line["security"]), (&"tcp".into(), &"mtls".into()));

    let mesh = logged(application);
    let mut client = TcpStream::connect(mesh.address).await.unwrap();
    assert_eq!(exchange(&mut client, "\0\x01binary", "binary").await, "", "nobody knows its path");
    let line = &lines(&mesh.inbound, 1).await[0];
    assert_eq!((&line["protocol"], &line["flag"]), (&"tcp".into(), &"RBAC".into()));
}

#[tokio::test]
async fn what_a_caller_sends_cannot_break_out_of_its_line() {
    let mesh = logged(fixed_app(200, "ok").await);
    let mut sent = 0;
    for (path, extra) in [
        (r#"/"},{"status":500"#, ""),
        ("/a\\u000a{\"direction\":\"inbound\"}", ""),
        ("/%0d%0a%00%1b[31m", ""),
        ("/a'b", "traceparent: 00-\"\\-x\r\n"),
    ] {
        let mut client = TcpStream::connect(mesh.address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: product\r\n{extra}\r\n");
        let answer = exchange(&mut client, &request, "\r\n\r\n").await;
        sent += 1;
        let line = &lines(&mesh.outbound, sent).await[sent - 1];
        assert_eq!(line["direction"], "outbound", "{line}");
        assert!(line["path"] == path || answer.starts_with("HTTP/1.1 400"), "{path}: {line} {answer}");
    }
    // Raw CR, LF and ESC never become part of a request at all.
    for path in ["/a\rb", "/a\nb", "/a\x1b[31m"] {
        let request = format!("GET {path} HTTP/1.1\r\nhost: product\r\nconnection: close\r\n\r\n");
        raw(mesh.address, request.as_bytes(), SECOND).await;
    }
    let log = mesh.outbound.log() + &mesh.inbound.log();
    assert!(log.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "{log}");
    assert!(!log.contains(['\r', '\x1b']), "{log}");
}

#[tokio::test]
async fn counts_are_what_was_sent() {
    let application = application(|request| {
        let status = String::from_utf8_lossy(request).split([' ', '/']).nth(2).unwrap().to_owned();
        format!("HTTP/1.1 {status} X\r\ncontent-length: 10\r\n\r\n0123456789").into_bytes()
    })
    .await;
    let mesh = logged(application);
    let mut client = TcpStream::connect(mesh.address).await.unwrap();
    for (status, times) in [(200, 7), (302, 2), (404, 3), (500, 4)] {
        for _ in 0..times {
            let request = format!("POST /{status} HTTP/1.1\r\nhost: product\r\ncontent-length: 3\r\n\r\nabc");
            exchange(&mut client, &request, "0123456789").await;
        }
    }
    for proxy in [&mesh.outbound, &mesh.inbound] {
        lines(proxy, 16).await;
        for (class, times) in [("2xx", 7.0), ("3xx", 2.0), ("4xx", 3.0), ("5xx", 4.0)] {
            assert_eq!(proxy.metric("weft_requests_total", &[&format!("status=\"{class}\"")]), times, "{class}");
        }
        assert_eq!(proxy.metric("weft_request_duration_seconds_count", &[]), 16.0);
        assert_eq!(proxy.metric("weft_request_duration_seconds_bucket", &["le=\"+Inf\""]), 16.0);
        assert_eq!(proxy.metric("weft_request_bytes_total", &[]), 48.0);
        assert_eq!(proxy.metric("weft_response_bytes_total", &[]), 160.0);
        assert_eq!(proxy.metric("weft_connections_open", &[]), 1.0);
        assert_eq!(proxy.metric("weft_failures_total", &[]), 0.0);
    }
    drop(client);
    assert!(until(SECOND, || mesh.outbound.metric("weft_connections_open", &[]) == 0.0).await.is_some());
}

#[tokio::test]
async fn series_do_not_grow_with_what_callers_send() {
    let mesh = logged(fixed_app(200, "ok").await);
    let mut client = TcpStream::connect(mesh.address).await.unwrap();
    exchange(&mut client, "GET / HTTP/1.1\r\nhost: product\r\n\r\n", "ok").await;
    lines(&mesh.inbound, 1).await;
    let before = (mesh.outbound.metrics().lines().count(), mesh.inbound.metrics().lines().count());
    for i in 0..300 {
        let request = format!("M{i} /{i} HTTP/1.1\r\nhost: h{i}\r\nx-{i}: {i}\r\nuser-agent: {i}\r\n\r\n");
        let answer = exchange(&mut client, &request, "ok").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    lines(&mesh.inbound, 301).await;
    assert_eq!((mesh.outbound.metrics().lines().count(), mesh.inbound.metrics().lines().count()), before);
}

#[tokio::test]
async fn a_failure_is_counted_once_under_its_flag() {
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let mesh = logged(gone);
    let answer = once(mesh.address, "POST", "/").await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    let line = &lines(&mesh.outbound, 1).await[0];
    assert_eq!((&line["flag"], &line["attempts"]), (&"REFUSED".into(), &2.into()), "{line}");
    assert_eq!(mesh.outbound.metric("weft_failures_total", &["flag=\"REFUSED\""]), 1.0);
    lines(&mesh.inbound, 2).await;
    assert_eq!(mesh.inbound.metric("weft_failures_total", &["flag=\"UF\""]), 2.0);
    assert_eq!(mesh.inbound.metric("weft_requests_total", &["status=\"none\""]), 2.0);
    let mut client = http2_client(mesh.address).await;
    assert_eq!(client.send_request(crate::apps::get("/")).await.unwrap().status(), 503);
    lines(&mesh.outbound, 2).await;
}

#[tokio::test]
async fn a_caller_that_goes_away_is_logged_as_such() {
    let silent = crate::apps::raw_app(|mut stream| async move {
        crate::apps::read_head(&mut stream).await;
        sleep(SECOND * 20).await;
        stream.write_all(b"late").await.ok();
    })
    .await;
    let mesh = logged(silent);
    let mut client = http2_client(mesh.address).await;
    let call = tokio::spawn(client.send_request(crate::apps::get("/")));
    sleep(Duration::from_millis(100)).await;
    call.abort();
    for proxy in [&mesh.outbound, &mesh.inbound] {
        let line = &lines(proxy, 1).await[0];
        assert_eq!(line["flag"], "DC", "{line}");
    }
}

/// (34)
#[tokio::test]
async fn a_port_scan_makes_one_series_and_the_declared_port_keeps_its_own() {
    let application = fixed_app(200, "ok").await;
    let proxy = Proxy::start_with(None, |shared| shared.declared = vec![application.port()]);
    proxy.shared.live.replace(inbound_model(InboundMode::Permissive, Authorization::default())).unwrap();
    let honest = proxy.listen(Role::Inbound(Some(application)));
    for port in 1..=60 {
        let scanned = proxy.listen(Role::Inbound(Some(([127, 0, 0, 1], port).into())));
        once(scanned, "GET", "/").await;
    }
    for _ in 0..3 {
        assert!(once(honest, "GET", "/").await.starts_with("HTTP/1.1 200"));
    }
    let metrics = proxy.metrics();
    let labels = metrics.lines().filter(|line| line.starts_with("weft_request_duration_seconds_count"));
    assert_eq!(labels.count(), 2, "{metrics}");
    let port = format!("destination=\"{}\"", application.port());
    assert_eq!(proxy.metric("weft_requests_total", &[&port, "status=\"2xx\""]), 3.0);
    assert_eq!(proxy.metric("weft_requests_total", &["destination=\"other\""]), 60.0);
}

/// (25)
#[tokio::test]
async fn an_outbound_connection_is_not_logged_as_one_of_its_callee() {
    let application = application(|bytes| bytes.to_vec()).await;
    let mesh = logged_with(application, Authorization::default());
    let mut client = TcpStream::connect(mesh.address).await.unwrap();
    client.write_all(b"\x01opaque").await.unwrap();
    let mut back = [0; 7];
    tokio::io::AsyncReadExt::read_exact(&mut client, &mut back).await.unwrap();
    drop(client);
    let line = &lines(&mesh.outbound, 1).await[0];
    assert_eq!((&line["source_identity"], &line["security"]), (&Value::Null, &"mtls".into()), "{line}");
    let line = &lines(&mesh.inbound, 1).await[0];
    assert_eq!(line["source_identity"], "spiffe://weft.local/ns/shop/sa/order", "{line}");
}

/// (25) Endpoints that arrive after the request decide how it was protected.
#[tokio::test]
async fn the_first_request_is_labelled_as_it_was_sent() {
    let authority = Authority::new();
    let (_inbound, at) = crate::pair::inbound(
        authority.svid("product", true),
        fixed_app(200, "ok").await,
        InboundMode::Strict,
        Authorization::default(),
    );
    let outbound = Proxy::start(Some(authority.svid("order", true)));
    outbound.shared.live.replace(outbound_model(|_, _| {})).unwrap();
    let address = outbound.listen(Role::Outbound(Some(service())));
    let first = tokio::spawn(async move { once(address, "GET", "/").await });
    sleep(Duration::from_millis(100)).await;
    outbound.shared.live.set_endpoints(&endpoint_set(&[(at, Some(identity("product")))]));
    assert!(first.await.unwrap().starts_with("HTTP/1.1 200"));
    assert!(once(address, "GET", "/").await.starts_with("HTTP/1.1 200"));
    assert_eq!(outbound.metric("weft_requests_total", &["security=\"mtls\""]), 2.0, "{}", outbound.metrics());
    assert_eq!(outbound.metric("weft_requests_total", &["security=\"plain\""]), 0.0);
}

/// (25)
#[tokio::test]
async fn a_refused_grpc_call_does_not_count_as_a_success() {
    let mesh = logged_with(mirror().await, Authorization { deny: Vec::new(), allow: Some(Vec::new()) });
    let mut client = http2_client(mesh.address).await;
    let call = || {
        let request = http::Request::post("http://product/x").header("content-type", "application/grpc");
        request.body(crate::apps::full("\0\0\0\0\0")).unwrap()
    };
    let answer = client.send_request(call()).await.unwrap();
    assert_eq!((answer.status().as_u16(), &answer.headers()["grpc-status"]), (200, &"7".parse().unwrap()));
    let nowhere = Proxy::start(None);
    nowhere.shared.live.replace(outbound_model(|_, _| {})).unwrap();
    nowhere.shared.live.set_endpoints(&endpoint_set(&[]));
    let mut client = http2_client(nowhere.listen(Role::Outbound(Some(service())))).await;
    assert_eq!(client.send_request(call()).await.unwrap().headers()["grpc-status"], "14");
    for (proxy, class) in [(&mesh.outbound, "4xx"), (&mesh.inbound, "4xx"), (&nowhere, "5xx")] {
        let status = format!("status=\"{class}\"");
        assert!(
            until(SECOND * 5, || proxy.metric("weft_requests_total", &[&status]) == 1.0).await.is_some(),
            "{class}"
        );
        assert_eq!(proxy.metric("weft_requests_total", &["status=\"2xx\""]), 0.0);
    }
}

/// (20.26) Over the hop the request of a tunnel is a CONNECT, which its caller never sent.
#[tokio::test]
async fn a_tunnel_is_logged_with_its_callers_method_on_both_sides() {
    let application = crate::apps::raw_app(|mut stream| async move {
        crate::apps::read_head(&mut stream).await;
        let answer = b"HTTP/1.1 101 X\r\nconnection: upgrade\r\nupgrade: tcp\r\n\r\n";
        stream.write_all(answer).await.ok();
    })
    .await;
    let mesh = logged_with(application, Authorization::default());
    for (number, method) in ["GET", "POST"].into_iter().enumerate() {
        let request = format!("{method} /ws HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: tcp\r\n\r\n");
        let (answer, closed) = raw(mesh.address, request.as_bytes(), SECOND * 5).await;
        assert!(closed && answer.starts_with("HTTP/1.1 101"), "{answer}");
        for proxy in [&mesh.outbound, &mesh.inbound] {
            let line = &lines(proxy, number + 1).await[number];
            assert_eq!((&line["method"], &line["status"]), (&Value::from(method), &Value::from(101)), "{line}");
        }
    }
}

/// (20.26) Where no route exists, no service was chosen: the caller is told what it has asked for.
#[tokio::test]
async fn a_failure_before_any_route_names_the_destination_in_http_and_grpc() {
    let outside = "192.0.2.7:81";
    for (flag, status, destination) in [
        ("NS", "503", "240.0.0.9:80"),
        ("REG", "502", outside),
        ("DISC", "503", "240.0.0.9:80"),
        ("NR", "404", "240.0.0.1:80"),
    ] {
        // Nobody answers the questions of this discovery.
        let (interest, _asked) = tokio::sync::mpsc::channel(8);
        let proxy = Proxy::start_with(None, |shared| {
            shared.interest = (flag == "DISC").then_some(interest);
            shared.discovery_wait = Duration::from_millis(50);
        });
        let mut model = outbound_model(|_, _| {});
        model.routes.values_mut().for_each(|table| table.hosts.clear());
        let default = OutboundDefault { policy: OutboundPolicy::RegisteredOnly };
        model.listeners.insert(ListenerName::OutboundDefault, Listener::OutboundDefault(default));
        proxy.shared.live.replace(model).unwrap();
        let address = proxy.listen(Role::Outbound(Some(destination.parse().unwrap())));
        let named = format!(" (host product, destination {destination}) ({flag})");
        let error = format!("{flag};host=\"product\";destination=\"{destination}\"");
        let answer = once(address, "GET", "/").await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
        assert!(answer.contains(&named) && answer.contains(&format!("weft-error: {error}\r\n")), "{answer}");
        let mut client = http2_client(address).await;
        let mut call = crate::apps::request("POST", "/a.B/C");
        call.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
        let answer = client.send_request(call).await.unwrap();
        let message = answer.headers()["grpc-message"].to_str().unwrap();
        assert!(message.ends_with(&named), "{message}");
        assert_eq!(answer.headers()["weft-error"], error.as_str());
    }
}
