//! HTTP/1 to the letter, through both proxies with raw sockets: framing, keep-alive, upgrades, and applications that close
//! connections when they like.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};

use crate::{
    apps::{Mesh, fixed_app, http2_client, mesh, once, raw, raw_app, read_head, until},
    traffic::{application, exchange, mirror},
};

const SECOND: Duration = Duration::from_secs(1);

async fn through(application: std::net::SocketAddr) -> Mesh {
    mesh(application, |_, _| {}).await
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let mesh = through(mirror().await).await;
    let two = "GET /one HTTP/1.1\r\nhost: a\r\n\r\nGET /two HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    let (answer, closed) = raw(mesh.address, two.as_bytes(), SECOND * 5).await;
    assert!(closed, "{answer}");
    let (one, two) = (answer.find("GET /one").expect("one"), answer.find("GET /two").expect("two"));
    assert!(one < two && answer.matches("HTTP/1.1 200 OK").count() == 2, "{answer}");
}

#[tokio::test]
async fn an_answer_does_not_wait_for_the_rest_of_the_next_request() {
    let mesh = through(mirror().await).await;
    let mut client = TcpStream::connect(mesh.address).await.unwrap();
    let request = "GET /one HTTP/1.1\r\nhost: a\r\n\r\nGET /two HTTP/1.1\r\nho";
    let answer = exchange(&mut client, request, "/sa/order").await;
    assert!(answer.contains("GET /one"), "{answer}");
    let answer = exchange(&mut client, "st: a\r\n\r\n", "/sa/order").await;
    assert!(answer.contains("GET /two"), "{answer}");
}

#[tokio::test]
async fn http10_is_answered_and_closed_with_and_without_a_host() {
    let mesh = through(mirror().await).await;
    for host in ["host: a\r\n", ""] {
        let request = format!("GET / HTTP/1.0\r\n{host}\r\n");
        let (answer, closed) = raw(mesh.address, request.as_bytes(), SECOND * 2).await;
        assert!(closed && answer.contains(" 200 OK\r\n"), "{host:?}: {answer}");
        assert!(answer.contains("GET / HTTP/1.0\r\n"), "the application is given the version: {answer}");
    }
    let mut client = TcpStream::connect(mesh.address).await.unwrap();
    for _ in 0..2 {
        let answer =
            exchange(&mut client, "GET / HTTP/1.0\r\nhost: a\r\nconnection: keep-alive\r\n\r\n", "/sa/order").await;
        assert!(answer.contains(" 200 OK\r\n"), "{answer}");
    }
}

#[tokio::test]
async fn answers_without_a_body_do_not_disturb_the_next_one() {
    let application = application(|request| {
        let request = String::from_utf8_lossy(request);
        let status = request.split([' ', '/']).nth(2).unwrap();
        let length = if status == "304" || request.starts_with("HEAD") { "content-length: 7\r\n" } else { "" };
        let (length, body) =
            if status == "200" && request.starts_with("GET") { ("content-length: 2\r\n", "ok") } else { (length, "") };
        format!("HTTP/1.1 {status} X\r\n{length}\r\n{body}").into_bytes()
    })
    .await;
    let mesh = through(application).await;
    let mut client = TcpStream::connect(mesh.address).await.unwrap();
    for (method, status, length) in
        [("HEAD", 200, Some(7)), ("GET", 204, None), ("GET", 304, None), ("HEAD", 404, Some(7))]
    {
        let request = format!("{method} /{status} HTTP/1.1\r\nhost: a\r\n\r\n");
        let answer = exchange(&mut client, &request, "\r\n\r\n").await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")) && answer.ends_with("\r\n\r\n"), "{answer}");
        let expected = length.map(|length| format!("content-length: {length}\r\n"));
        assert!(expected.is_none_or(|expected| answer.contains(&expected)), "{method} {status}: {answer}");
        assert!(!answer.contains("transfer-encoding"), "{method} {status}: {answer}");
        let answer = exchange(&mut client, "GET /200 HTTP/1.1\r\nhost: a\r\n\r\n", "ok").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "after {method} {status}: {answer}");
    }
}

#[tokio::test]
async fn declared_trailers_of_a_chunked_answer_arrive() {
    let application = application(|_| {
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n5\r\nhello\r\n0\r\nx-sum: 42\r\n\r\n"
            .to_vec()
    })
    .await;
    let mesh = through(application).await;
    let mut client = TcpStream::connect(mesh.address).await.unwrap();
    let request = "GET / HTTP/1.1\r\nhost: a\r\nte: trailers\r\nconnection: te\r\n\r\n";
    let answer = exchange(&mut client, request, "x-sum: 42\r\n\r\n").await;
    assert!(answer.ends_with("0\r\nx-sum: 42\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn expect_100_continue_is_answered_before_the_body_is_sent() {
    let application = raw_app(|mut stream| async move {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.unwrap();
        stream.read_exact(&mut [0; 4]).await.unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nread").await.unwrap();
        stream.read_u8().await.ok();
    })
    .await;
    let mesh = through(application).await;
    let mut client = TcpStream::connect(mesh.address).await.unwrap();
    let head = "POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n";
    let answer = exchange(&mut client, head, "\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 100 Continue\r\n\r\n"), "{answer}");
    let answer = exchange(&mut client, "body", "read").await;
    assert!(answer.contains("HTTP/1.1 200 OK") && answer.ends_with("read"), "{answer}");
}

#[tokio::test]
async fn an_answer_before_the_end_of_its_request_leaves_no_connection_open() {
    let (tell, mut told) = tokio::sync::mpsc::channel(1);
    let application = raw_app(move |mut stream| {
        let tell = tell.clone();
        async move {
            read_head(&mut stream).await;
            stream.write_all(b"HTTP/1.1 413 No\r\ncontent-length: 2\r\n\r\nno").await.unwrap();
            while stream.read(&mut [0; 100]).await.is_ok_and(|count| count > 0) {}
            tell.send(()).await.ok();
        }
    })
    .await;
    let mesh = through(application).await;
    let mut client = TcpStream::connect(mesh.address).await.unwrap();
    let answer = exchange(&mut client, "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n", "no").await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    // The caller stays and sends no more.
    timeout(SECOND * 5, told.recv()).await.expect("the application is let go");
    timeout(SECOND * 5, async {
        while client.write_all(b"x").await.is_ok() {
            sleep(SECOND / 10).await
        }
    })
    .await
    .expect("and so is the caller");
}

#[tokio::test]
async fn an_absolute_target_becomes_its_path() {
    let mesh = through(mirror().await).await;
    let mut client = TcpStream::connect(mesh.address).await.unwrap();
    let answer =
        exchange(&mut client, "GET http://product:80/x?y HTTP/1.1\r\nhost: product:80\r\n\r\n", "/sa/order").await;
    assert!(answer.contains("GET /x?y HTTP/1.1\r\nhost: product:80\r\n"), "{answer}");
    let answer = exchange(&mut client, "OPTIONS * HTTP/1.1\r\nhost: a:80\r\n\r\n", "/sa/order").await;
    assert!(answer.contains("OPTIONS * HTTP/1.1\r\nhost: a:80\r\n"), "{answer}");
}

#[tokio::test]
async fn fields_that_connection_names_go_no_further() {
    let mesh = through(mirror().await).await;
    let mut client = TcpStream::connect(mesh.address).await.unwrap();
    let request = "GET / HTTP/1.1\r\nhost: a\r\nconnection: x-mine, keep-alive\r\nx-mine: 1\r\nkeep-alive: timeout=5\r\n\
                   proxy-connection: keep-alive\r\nte: gzip\r\nhttp2-settings: AAMAAABk\r\nx-other: 2\r\n\r\n";
    let answer = exchange(&mut client, request, "/sa/order").await;
    let (_, seen) = answer.split_once("\r\n\r\n").unwrap();
    for gone in ["x-mine", "keep-alive", "proxy-connection", "te:", "http2-settings"] {
        assert!(!seen.contains(gone), "{gone}: {seen}");
    }
    assert!(seen.contains("x-other: 2"), "{seen}");
}

#[tokio::test]
async fn chunks_of_one_byte_arrive_whole() {
    let application = raw_app(|mut stream| async move {
        let mut bytes = Vec::new();
        while !bytes.ends_with(b"0\r\n\r\n") {
            if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
                return;
            }
        }
        // Our own reading of the chunks: what lies between the lines.
        let text = String::from_utf8(bytes).unwrap();
        let (_, mut rest) = text.split_once("\r\n\r\n").unwrap();
        let mut body = String::new();
        while let Some((size, more)) = rest.split_once("\r\n") {
            let size = usize::from_str_radix(size, 16).unwrap();
            body.push_str(&more[..size]);
            rest = &more[size + 2..];
        }
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        stream.write_all(answer.as_bytes()).await.unwrap();
        stream.read_u8().await.ok();
    })
    .await;
    let mesh = through(application).await;
    let mut client = TcpStream::connect(mesh.address).await.unwrap();
    client.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n").await.unwrap();
    let body: String = (0..500).map(|i| char::from(b'a' + (i % 26) as u8)).collect();
    for byte in body.chars() {
        client.write_all(format!("1\r\n{byte}\r\n").as_bytes()).await.unwrap();
        tokio::task::yield_now().await;
    }
    let answer = exchange(&mut client, "0\r\n\r\n", &body).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with(&body), "{answer}");
}

#[tokio::test]
async fn an_answer_without_a_length_ends_with_its_connection() {
    let application = raw_app(|mut stream| async move {
        read_head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nuntil the end").await.unwrap();
        sleep(SECOND / 20).await;
        stream.write_all(b", really").await.unwrap();
    })
    .await;
    let mesh = through(application).await;
    let mut client = TcpStream::connect(mesh.address).await.unwrap();
    let answer = exchange(&mut client, "GET / HTTP/1.1\r\nhost: a\r\n\r\n", "0\r\n\r\n").await;
    assert!(answer.contains("until the end") && answer.ends_with(", really\r\n0\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_never_made_to_look_whole() {
    for head in ["transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n", "content-length: 10\r\n\r\nhello"] {
        let application = raw_app(move |mut stream| async move {
            read_head(&mut stream).await;
            stream.write_all(format!("HTTP/1.1 200 OK\r\n{head}").as_bytes()).await.unwrap();
        })
        .await;
        let mesh = through(application).await;
        let (answer, closed) = raw(mesh.address, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", SECOND * 2).await;
        assert!(closed, "{answer}");
        assert!(!answer.contains("0\r\n\r\n") || head.starts_with("content"), "{answer}");
        assert!(mesh.outbound.metric("weft_failures_total", &["flag=\"UC\""]) == 1.0, "{}", mesh.outbound.metrics());
    }
}

#[tokio::test]
async fn interim_answers_do_not_replace_the_final_one() {
    let application = application(|_| {
        b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok".to_vec()
    })
    .await;
    let mesh = through(application).await;
    let answer = once(mesh.address, "GET", "/").await;
    assert!(answer.contains("HTTP/1.1 200 OK") && answer.ends_with("ok"), "{answer}");
}

/// An application that closes connections after some answers: with the answer, a moment later, or when the next request
/// arrives. Counts the requests that it has read whole.
async fn restless(seen: Arc<AtomicUsize>) -> std::net::SocketAddr {
    raw_app(move |mut stream| {
        let seen = seen.clone();
        async move {
            while read_head(&mut stream).await.is_some() {
                seen.fetch_add(1, Relaxed);
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.ok();
                match fastrand::u32(..6) {
                    0 => return,
                    1 => {
                        sleep(Duration::from_micros(fastrand::u64(..800))).await;
                        return;
                    }
                    2 => {
                        // As a server whose idle time is over does while a request is on its way.
                        let mut byte = [0];
                        if timeout(SECOND, stream.peek(&mut byte)).await.is_ok() {
                            return;
                        }
                    }
                    _ => {}
                }
            }
        }
    })
    .await
}

#[tokio::test]
async fn an_application_that_closes_idle_connections_costs_no_get() {
    let seen = Arc::new(AtomicUsize::new(0));
    let mesh = through(restless(seen).await).await;
    let mut client = TcpStream::connect(mesh.address).await.unwrap();
    let mut failed = Vec::new();
    for i in 0..2000 {
        let answer = exchange(&mut client, "GET / HTTP/1.1\r\nhost: a\r\n\r\n", "ok").await;
        if !answer.starts_with("HTTP/1.1 200 OK") {
            failed.push(format!("{i}: {answer}"));
            client = TcpStream::connect(mesh.address).await.unwrap();
        }
    }
    assert!(failed.is_empty(), "{} failed, first {}", failed.len(), failed[0]);
}

#[tokio::test]
async fn a_post_is_delivered_at_most_once_however_connections_end() {
    let seen = Arc::new(AtomicUsize::new(0));
    let mesh = through(restless(seen.clone()).await).await;
    let mut client = TcpStream::connect(mesh.address).await.unwrap();
    let mut good = 0;
    for _ in 0..1000 {
        let answer =
            exchange(&mut client, "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nbody", "\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200") || answer.starts_with("HTTP/1.1 502"), "{answer}");
        good += usize::from(answer.starts_with("HTTP/1.1 200"));
        if !answer.ends_with("ok") {
            client = TcpStream::connect(mesh.address).await.unwrap();
        }
    }
    assert_eq!(seen.load(Relaxed), good, "delivered and answered");
}

#[tokio::test]
async fn an_upload_that_the_caller_breaks_off_is_not_the_endpoints_fault() {
    let application = fixed_app(200, "ok").await;
    let mesh = through(application).await;
    for _ in 0..8 {
        let mut client = TcpStream::connect(mesh.address).await.unwrap();
        client.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\npart").await.unwrap();
        sleep(Duration::from_millis(20)).await;
    }
    sleep(Duration::from_millis(100)).await;
    assert_eq!(mesh.outbound.metric("weft_retries_total", &[]), 0.0, "{}", mesh.outbound.metrics());
    assert_eq!(mesh.outbound.metric("weft_failures_total", &["flag=\"UC\""]), 0.0, "{}", mesh.outbound.metrics());
    assert_eq!(mesh.inbound.metric("weft_failures_total", &["flag=\"UC\""]), 0.0, "{}", mesh.inbound.metrics());
}

#[tokio::test]
async fn a_server_that_gives_up_on_a_silent_connection_still_speaks_http() {
    let application = raw_app(|mut stream| async move {
        if timeout(SECOND / 5, stream.peek(&mut [0])).await.is_err() {
            stream.write_all(b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            return;
        }
        let head = read_head(&mut stream).await.unwrap();
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{head}", head.len());
        stream.write_all(answer.as_bytes()).await.unwrap();
    })
    .await;
    let mesh = through(application).await;
    let (answer, closed) = raw(mesh.address, b"", SECOND * 2).await;
    assert!(closed && answer.starts_with("HTTP/1.1 408"), "{answer}");
    let answer = once(mesh.address, "GET", "/").await;
    assert!(answer.contains("weft-client-id"), "the next one is no opaque connection: {answer}");
}

#[tokio::test]
async fn an_http1_caller_that_breaks_off_is_noticed_at_the_application() {
    let (told, mut ended) = tokio::sync::mpsc::channel(1);
    let application = raw_app(move |mut stream| {
        let told = told.clone();
        async move {
            read_head(&mut stream).await;
            told.send(()).await.unwrap();
            stream.read_u8().await.ok();
            told.send(()).await.unwrap();
        }
    })
    .await;
    let mesh = through(application).await;
    let mut client = TcpStream::connect(mesh.address).await.unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    timeout(SECOND, ended.recv()).await.expect("it arrives");
    client.set_zero_linger().unwrap();
    drop(client);
    timeout(SECOND * 2, ended.recv()).await.expect("its end arrives too");
    assert!(until(SECOND, || mesh.outbound.metric("weft_failures_total", &["flag=\"DC\""]) == 1.0).await.is_some());
}

#[tokio::test]
async fn a_caller_that_has_sent_all_still_gets_its_answer() {
    let application = raw_app(|mut stream| async move {
        read_head(&mut stream).await;
        sleep(SECOND / 5).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ndone").await.unwrap();
    })
    .await;
    let mesh = through(application).await;
    let mut client = TcpStream::connect(mesh.address).await.unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    client.shutdown().await.unwrap();
    let mut answer = String::new();
    timeout(SECOND * 2, client.read_to_string(&mut answer)).await.expect("closed").unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("done"), "{answer}");
}

#[tokio::test]
async fn trace_is_not_passed_on() {
    let mesh = through(fixed_app(200, "ok").await).await;
    for (method, status) in [("TRACE", "405"), ("GET", "200")] {
        let answer = once(mesh.address, method, "/").await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
    }
    let answer = http2_client(mesh.address).await.send_request(crate::apps::request("TRACE", "/")).await.unwrap();
    assert_eq!(answer.status(), 405);
}

#[tokio::test]
async fn an_application_that_closes_idle_connections_soon_costs_no_post() {
    let application = raw_app(|mut stream| async move {
        while timeout(SECOND * 3 / 2, stream.readable()).await.is_ok() && read_head(&mut stream).await.is_some() {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        }
    })
    .await;
    let mesh = through(application).await;
    // The first wait teaches; later ones end about when the application closes.
    for wait in [1700, 1450, 1490, 1500, 1510, 1550] {
        assert!(once(mesh.address, "POST", "/").await.starts_with("HTTP/1.1 200"));
        sleep(Duration::from_millis(wait)).await;
    }
    assert!(once(mesh.address, "POST", "/").await.starts_with("HTTP/1.1 200"));
}

crate::records::with_rustls! {
    an_answer_that_breaks_off_is_never_made_to_look_whole
    an_http1_caller_that_breaks_off_is_noticed_at_the_application
}
