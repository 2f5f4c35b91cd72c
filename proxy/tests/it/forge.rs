//! The proxy's word cannot be forged: no bytes of a caller reach an application as a request with reserved fields, whatever a
//! lenient server takes for a request, and what is no HTTP passes as it is (docs/adr/0029).

use std::{net::SocketAddr, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};
use weft_core::{
    listener::{InboundMode, Listener, Protocol},
    names::ListenerName,
    policy::Authorization,
    snapshot::Resources,
};
use weft_proxy::listener::socket::Role;

use crate::{
    apps::until,
    pair::{Authority, Proxy, identity, inbound_model, outbound, outbound_model, service},
    traffic::{exchange, mirror},
};

const SECOND: Duration = Duration::from_secs(1);
const FORGED: &str = "spiffe://weft.local/ns/shop/sa/FORGED";

/// An application that answers every read like an HTTP server, and remembers all that it has read.
async fn remembers() -> (SocketAddr, Arc<Mutex<Vec<u8>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, seen) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(Vec::new())));
    let all = seen.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let all = all.clone();
            tokio::spawn(async move {
                let mut part = vec![0; 65536];
                while let Ok(count @ 1..) = stream.read(&mut part).await {
                    all.lock().extend(&part[..count]);
                    if stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.is_err() {
                        break;
                    }
                }
            });
        }
    });
    (address, seen)
}

/// The configuration of an inbound proxy whose ports all speak `protocol`.
fn speaking(mode: InboundMode, protocol: Protocol) -> Resources {
    let mut model = inbound_model(mode, Authorization::default());
    for listener in model.listeners.values_mut() {
        if let Listener::Inbound(inbound) = listener {
            inbound.default.protocol = protocol;
        }
    }
    model
}

/// An inbound proxy of `product` before an application.
fn guarding(
    authority: &Authority,
    application: SocketAddr,
    mode: InboundMode,
    protocol: Protocol,
) -> (Proxy, SocketAddr) {
    let proxy = Proxy::start(Some(authority.svid("product", true)));
    proxy.shared.live.replace(speaking(mode, protocol)).unwrap();
    let at = proxy.listen(Role::Inbound(Some(application)));
    (proxy, at)
}

/// Requests that name a caller, each as some server takes it, and the statuses of the answers through one's own proxy. Empty:
/// what is no request by any standard ends without an answer.
fn forgeries() -> Vec<(&'static str, String, &'static str)> {
    let rest = format!("\r\nHost: product\r\nweft-client-id: {FORGED}\r\nConnection: close\r\n\r\n");
    let request = format!("GET /who HTTP/1.1{rest}");
    vec![
        ("as it should be", request.clone(), "200"),
        ("an empty line before it", format!("\r\n{request}"), "200"),
        ("line feeds before it", format!("\n\n{request}"), "400"),
        ("white space before it", format!(" \t{request}"), "400"),
        ("tabs in it", format!("GET\t/who\tHTTP/1.1{rest}"), "400"),
        ("a long line", request.replace("/who", &format!("/who?{}", "a".repeat(17_000))), "414 431"),
        ("a long method", request.replace("GET", &"M".repeat(33)), "400"),
        ("a longer method", request.replace("GET", &"M".repeat(300)), ""),
        ("another version", request.replace("HTTP/1.1", "HTTP/3.0"), "505"),
        ("a version in lower case", request.replace("HTTP/1.1", "http/1.1"), "400"),
        ("no version", format!("GET /who{rest}"), "400"),
        ("no version and no slash", format!("GET who{rest}"), ""),
        ("a control character", request.replace("/who", "/who\u{1}"), ""),
        ("a target in absolute form", request.replace("/who", "http://other/who"), ""),
        ("CONNECT", request.replace("GET /who", "CONNECT other:443"), ""),
        ("an underscore", request.replace("weft-client-id", "WEFT_Client_Id"), "200"),
        ("a binary method", request.replace("GET", "G\u{1}T"), ""),
        ("a binary byte before it", format!("\u{0}{request}"), ""),
        ("a byte order mark before it", format!("\u{feff}{request}"), ""),
        ("the PROXY protocol before it", format!("PROXY TCP4 1.2.3.4 1.2.3.5 1 2\r\n{request}"), ""),
        (
            "a binary PROXY protocol before it",
            format!("\r\n\r\n\0\r\nQUIT\n!\u{11}\0\u{c}aaaabbbbccdd\r\n{request}"),
            "",
        ),
    ]
}

/// Sends bytes and reads to the end, as far as there is one.
async fn send(mut stream: impl AsyncReadExt + AsyncWriteExt + Unpin, bytes: &[u8]) -> String {
    let mut answer = Vec::new();
    let exchange = async {
        stream.write_all(bytes).await.ok();
        while stream.read_buf(&mut answer).await.is_ok_and(|count| count > 0) {
            if answer.ends_with(b"ok") {
                break;
            }
        }
    };
    timeout(SECOND * 3, exchange).await.ok();
    String::from_utf8_lossy(&answer).into_owned()
}

fn is_forged(seen: &Mutex<Vec<u8>>) -> bool {
    String::from_utf8_lossy(&seen.lock()).contains("FORGED")
}

/// (29)
#[tokio::test]
async fn nobody_is_forged_through_ones_own_proxy() {
    for (what, request, statuses) in forgeries() {
        let authority = Authority::new();
        let (application, seen) = remembers().await;
        let (_inbound, at) = guarding(&authority, application, InboundMode::Strict, Protocol::Detect);
        let endpoints = [(at, Some(identity("product")))];
        let (_outbound, address) = outbound(Some(authority.svid("order", true)), &endpoints, |_, _| {});
        let answer = send(TcpStream::connect(address).await.unwrap(), request.as_bytes()).await;
        assert!(!is_forged(&seen), "{what}: {answer}");
        let status = answer.get(9..12).unwrap_or_default();
        assert!(statuses.contains(status) && statuses.is_empty() == answer.is_empty(), "{what}: {answer}");
    }
}

/// (29)
#[tokio::test]
async fn nobody_is_forged_by_a_caller_in_plaintext() {
    for (what, request, _) in forgeries() {
        let authority = Authority::new();
        let (application, seen) = remembers().await;
        let (_inbound, at) = guarding(&authority, application, InboundMode::Permissive, Protocol::Detect);
        let answer = send(TcpStream::connect(at).await.unwrap(), request.as_bytes()).await;
        assert!(!is_forged(&seen), "{what}: {answer}");
    }
}

/// (29)
#[tokio::test]
async fn nobody_is_forged_by_a_proxy_that_calls_a_request_opaque() {
    for protocol in [Protocol::Detect, Protocol::Http, Protocol::Http2] {
        for (what, request, _) in forgeries() {
            let authority = Authority::new();
            let (application, seen) = remembers().await;
            let (inbound, at) = guarding(&authority, application, InboundMode::Strict, protocol);
            let stream = authority.dial("mallory", at, b"weft-tcp").await;
            let answer = send(stream, request.as_bytes()).await;
            assert!(!is_forged(&seen), "{protocol:?}, {what}: {answer}");
            if protocol == Protocol::Detect {
                let honest = what != "as it should be" || String::from_utf8_lossy(&seen.lock()).contains("/sa/mallory");
                assert!(honest, "{what}: the proxy says who calls");
            } else {
                assert!(answer.is_empty() && seen.lock().is_empty(), "{protocol:?}, {what}: {answer}");
                let refused = || inbound.metric("weft_failures_total", &["flag=\"PROTOCOL\""]) == 1.0;
                assert!(until(SECOND * 5, refused).await.is_some(), "{protocol:?}, {what}");
            }
        }
    }
}

/// (29) Fields of the hop in a request that the peer calls opaque are its caller's, not the proxy's.
#[tokio::test]
async fn the_fields_of_the_hop_are_believed_on_the_hop_only() {
    let authority = Authority::new();
    let (_inbound, at) = guarding(&authority, mirror().await, InboundMode::Strict, Protocol::Detect);
    let stream = authority.dial("mallory", at, b"weft-tcp").await;
    let answer = send(stream, b"GET / HTTP/1.1\r\nhost: a\r\nweft-version: 2\r\nweft-method: POST\r\n\r\n").await;
    assert!(answer.contains("GET / HTTP/1.1") && !answer.contains("weft-version"), "{answer}");
}

/// (29) Some servers read trailers as if they stood in the head.
#[tokio::test]
async fn trailers_carry_no_reserved_field() {
    let authority = Authority::new();
    let (application, seen) = remembers().await;
    let (_inbound, at) = guarding(&authority, application, InboundMode::Permissive, Protocol::Detect);
    let (_outbound, address) =
        outbound(Some(authority.svid("order", true)), &[(at, Some(identity("product")))], |_, _| {});
    for at in [at, address] {
        seen.lock().clear();
        let request = format!(
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nX-Honest: 1\r\n\
             weft-client-id: {FORGED}\r\n\r\n"
        );
        let mut client = TcpStream::connect(at).await.unwrap();
        client.write_all(request.as_bytes()).await.unwrap();
        let honest = || String::from_utf8_lossy(&seen.lock()).to_lowercase().contains("x-honest: 1\r\n");
        assert!(until(SECOND * 5, honest).await.is_some(), "{}", String::from_utf8_lossy(&seen.lock()));
        assert!(!is_forged(&seen), "{}", String::from_utf8_lossy(&seen.lock()));
    }
}

/// (29) What an application says in reserved fields is not a proxy's word.
#[tokio::test]
async fn an_application_says_nothing_in_reserved_fields() {
    let authority = Authority::new();
    let application = crate::traffic::application(|_| {
        b"HTTP/1.1 200 OK\r\nX-A: 1\r\nweft-names: l\r\nweft-reason: Forged\r\nweft-upgraded: x\r\ncontent-length: 2\r\n\r\nok"
            .to_vec()
    })
    .await;
    let (_inbound, at) = guarding(&authority, application, InboundMode::Permissive, Protocol::Detect);
    for endpoint in [(at, Some(identity("product"))), (at, None), (application, None)] {
        let (_outbound, address) = outbound(Some(authority.svid("order", true)), &[endpoint], |_, _| {});
        let mut client = TcpStream::connect(address).await.unwrap();
        let answer = exchange(&mut client, "GET / HTTP/1.1\r\nhost: a\r\n\r\n", "ok").await;
        assert_eq!(answer, "HTTP/1.1 200 OK\r\nX-A: 1\r\ncontent-length: 2\r\n\r\nok");
    }
}

/// (29) The honest twins: protocols whose first line looks like a request's beginning, in both directions and from each side.
#[tokio::test]
async fn other_protocols_pass_as_they_are() {
    let authority = Authority::new();
    let (_inbound, at) = guarding(&authority, mirror().await, InboundMode::Strict, Protocol::Detect);
    let endpoints = [(at, Some(identity("product")))];
    let (_outbound, address) = outbound(Some(authority.svid("order", true)), &endpoints, |_, _| {});
    for line in [
        "PING\r\n",
        "GET key\r\n",
        "SET key value\r\n",
        "*2\r\n$3\r\nGET\r\n$14\r\nweft-client-id\r\n",
        "get foo\r\n",
        "set k 0 0 8\r\nweft-abc\r\n",
        "EHLO a.example\r\n",
        "SSH-2.0-OpenSSH_9.6 Ubuntu-3\r\n",
        "NICK x\r\nUSER x 0 * :x\r\n",
        "CONNECT {\"verbose\": false}\r\nPING\r\n",
        "CONNECT\naccept-version:1.2\nhost:a\n\n\0",
        "{\"id\": 1, \"method\": \"a\"}",
        "0032git-upload-pack /a.git\0host=b\0",
        "INVITE sip:a@b SIP/2.0\r\n\r\n",
        "\u{0}\u{0}\u{0}\u{8}\u{4}",
    ] {
        for _ in 0..2 {
            let mut client = TcpStream::connect(address).await.unwrap();
            let answer = exchange(&mut client, line, line).await;
            assert!(answer.ends_with(line) && answer.starts_with("HTTP/1.1 200"), "{line:?}: {answer:?}");
            let answer = exchange(&mut client, "\r\nmore\r\n", "more").await;
            assert!(answer.ends_with("\r\n\r\n\r\nmore\r\n"), "{line:?}: {answer:?}");
        }
    }
}

/// (29) The empty line that some clients write between two requests, and before the first.
#[tokio::test]
async fn empty_lines_between_requests_are_skipped() {
    let authority = Authority::new();
    let (_inbound, at) = guarding(&authority, mirror().await, InboundMode::Strict, Protocol::Detect);
    let endpoints = [(at, Some(identity("product")))];
    let (_outbound, address) = outbound(Some(authority.svid("order", true)), &endpoints, |_, _| {});
    let mut client = TcpStream::connect(address).await.unwrap();
    for path in ["/1", "/2"] {
        let request = format!("\r\nGET {path} HTTP/1.1\r\nhost: a\r\n\r\n");
        let answer = exchange(&mut client, &request, "/sa/order").await;
        assert!(answer.contains(&format!("GET {path} HTTP/1.1")), "{answer}");
    }
}

/// (29) A request line without a version is answered at once, not when its time is over.
#[tokio::test]
async fn a_request_without_a_version_is_answered() {
    let authority = Authority::new();
    let (_inbound, at) = guarding(&authority, mirror().await, InboundMode::Permissive, Protocol::Http);
    for (line, status) in [("GET /\r\n", "505"), ("GET / HTTP/3.0\r\n\r\n", "505"), ("GET / HTTP/x\r\n\r\n", "400")] {
        let answer = send(TcpStream::connect(at).await.unwrap(), line.as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{line:?}: {answer}");
    }
}

/// (29) RFC 9113 §8.3.1: as a request of HTTP/1.1 without Host.
#[tokio::test]
async fn a_request_of_http2_for_nobody_is_malformed() {
    let authority = Authority::new();
    let (_inbound, at) = guarding(&authority, mirror().await, InboundMode::Permissive, Protocol::Http);
    let (_outbound, address) =
        outbound(Some(authority.svid("order", true)), &[(at, Some(identity("product")))], |_, _| {});
    for at in [at, address] {
        let mut client = TcpStream::connect(at).await.unwrap();
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
        // :method GET, :scheme http, :path /
        bytes.extend(b"\0\0\x03\x01\x05\0\0\0\x01\x82\x86\x84");
        client.write_all(&bytes).await.unwrap();
        let answer = exchange(&mut client, "", "neither :authority nor Host").await;
        assert!(answer.contains("malformed request: neither :authority nor Host"), "{answer}");
    }
}

/// (29), (32)
#[tokio::test]
#[ignore = "slow: a head has ten seconds"]
async fn a_request_that_stays_incomplete_is_answered_and_its_connection_closed() {
    let authority = Authority::new();
    let (application, seen) = remembers().await;
    let (_inbound, at) = guarding(&authority, application, InboundMode::Strict, Protocol::Detect);
    let endpoints = [(at, Some(identity("product")))];
    let (outbound, address) = outbound(Some(authority.svid("order", true)), &endpoints, |_, _| {});
    let whole = "GET /a HTTP/1.1\r\nhost: a\r\n\r\n";
    let starts =
        ["GET /wh", "GET", "\r\nGET / HTTP/1.1\r\nhost: a\r\n", &format!("{whole}GET /b HT"), &format!("{whole}G")];
    let calls = starts.map(|start| {
        let start = start.to_owned();
        async move {
            let mut client = TcpStream::connect(address).await.unwrap();
            client.write_all(start.as_bytes()).await.unwrap();
            let mut answer = String::new();
            let closed = timeout(SECOND * 25, client.read_to_string(&mut answer)).await;
            assert!(closed.is_ok(), "{start:?} is never closed: {answer}");
            assert!(answer.contains("HTTP/1.1 408 "), "{start:?}: {answer}");
        }
    });
    // The honest twin: an empty line is no beginning of a request.
    let idle = async {
        let mut client = TcpStream::connect(address).await.unwrap();
        exchange(&mut client, &format!("{whole}\r\n"), "ok").await;
        sleep(SECOND * 13).await;
        let answer = exchange(&mut client, whole, "ok").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    };
    tokio::join!(futures_util::future::join_all(calls), idle);
    assert!(!is_forged(&seen));
    assert!(until(SECOND * 5, || outbound.worker.connections.is_empty()).await.is_some(), "nothing holds the drain");
}

/// (13) A forward proxy in the mesh is called through requests that are not for the mesh to read.
#[tokio::test]
async fn a_forward_proxy_on_an_undeclared_port_is_called_as_without_the_mesh() {
    let authority = Authority::new();
    let (_inbound, at) = guarding(&authority, mirror().await, InboundMode::Strict, Protocol::Detect);
    let endpoints = [(at, Some(identity("product")))];
    let (_outbound, address) = outbound(Some(authority.svid("order", true)), &endpoints, |_, _| {});
    for request in [
        "CONNECT example.test:443 HTTP/1.1\r\nHost: example.test:443\r\nProxy-Connection: Keep-Alive\r\n\r\n",
        "GET http://example.test/x?y HTTP/1.1\r\nHost: example.test\r\nProxy-Authorization: x\r\n\r\n",
    ] {
        let mut client = TcpStream::connect(address).await.unwrap();
        let answer = exchange(&mut client, request, request).await;
        assert!(answer.ends_with(request), "{answer}");
        let answer = exchange(&mut client, "\u{16}\u{3}\u{1}hello", "hello").await;
        assert!(answer.ends_with("\u{16}\u{3}\u{1}hello"), "{answer}");
    }
    // The honest twin: a target in absolute form that names the service itself.
    for authority in ["product", "product:80", "product.shop.svc.weft.internal", "240.0.0.1"] {
        let mut client = TcpStream::connect(address).await.unwrap();
        let request = format!("GET http://{authority}/x HTTP/1.1\r\nhost: {authority}\r\n\r\n");
        let answer = exchange(&mut client, &request, "/sa/order").await;
        assert!(answer.contains("GET /x HTTP/1.1"), "{answer}");
    }
}

/// (13)
#[tokio::test]
async fn a_forward_proxy_on_an_http_port_is_refused_with_the_cure() {
    let authority = Authority::new();
    let proxy = Proxy::start(Some(authority.svid("order", true)));
    let mut model = outbound_model(|_, _| {});
    if let Some(Listener::Outbound(listener)) = model.listeners.get_mut(&ListenerName::Outbound(service())) {
        listener.protocol = Protocol::Http;
        listener.tcp.clear();
    }
    proxy.shared.live.replace(model).unwrap();
    let address = proxy.listen(Role::Outbound(Some(service())));
    for target in ["CONNECT example.test:443", "GET http://example.test/x"] {
        let host = target.split("//").last().unwrap().trim_end_matches("/x").trim_start_matches("CONNECT ");
        let mut client = TcpStream::connect(address).await.unwrap();
        let answer = exchange(&mut client, &format!("{target} HTTP/1.1\r\nhost: {host}\r\n\r\n"), "DPE)\n").await;
        assert!(answer.starts_with("HTTP/1.1 501 ") && answer.contains("appProtocol: tcp"), "{answer}");
    }
}

/// (37) The metric of a caller from another trust domain under the same root shows its domain.
#[tokio::test]
async fn a_caller_of_another_trust_domain_is_shown_with_its_domain() {
    let authority = Authority::new();
    let (inbound, at) = guarding(&authority, mirror().await, InboundMode::Strict, Protocol::Detect);
    for (account, source) in [
        ("order", "source=\"shop/order\""),
        ("spiffe://other.example/ns/shop/sa/order", "source=\"spiffe://other.example/ns/shop/sa/order\""),
    ] {
        let stream = authority.dial(account, at, b"weft-h2").await;
        let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        let (answer, _) = client.send_request(http::Request::get("http://product/").body(()).unwrap(), true).unwrap();
        assert_eq!(answer.await.unwrap().status(), 200);
        let counted = || inbound.metric("weft_requests_total", &[source]) == 1.0;
        assert!(until(SECOND * 5, counted).await.is_some(), "{}", inbound.metrics());
    }
}
