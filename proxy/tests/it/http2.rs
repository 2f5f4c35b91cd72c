//! HTTP/2 with prior knowledge through both proxies: streams at once, trailers, large bodies, back-pressure, cancellation,
//! and what an application does to its streams and connections.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, Version};
use http_body::Frame;
use http_body_util::BodyExt;
use sha2::{Digest, Sha256};
use tokio::{
    net::TcpStream,
    time::{sleep, timeout},
};
use weft_core::cluster::HttpVersion;

use crate::apps::{
    Ended, channel, data, direct, empty, full, get, http2_app, http2_client, mesh, once, raw_app, text, until,
};

const SECOND: Duration = Duration::from_secs(1);
/// In which a cancellation must have come through, with optimised code; tests run beside each other without it.
const AT_ONCE: Duration = Duration::from_millis(if cfg!(debug_assertions) { 500 } else { 100 });

#[tokio::test]
async fn streams_of_one_connection_run_at_once() {
    let barrier = Arc::new(tokio::sync::Barrier::new(50));
    let application = http2_app(move |request| {
        let barrier = barrier.clone();
        async move {
            assert_eq!(request.version(), Version::HTTP_2);
            barrier.wait().await;
            Response::new(full(request.uri().path().to_owned()))
        }
    })
    .await;
    let mesh = mesh(application, |_, _| {}).await;
    let client = http2_client(mesh.address).await;
    let calls: Vec<_> = (0..50)
        .map(|i| {
            let mut client = client.clone();
            tokio::spawn(async move { text(client.send_request(get(&format!("/{i}"))).await.unwrap()).await.unwrap() })
        })
        .collect();
    for (i, call) in calls.into_iter().enumerate() {
        assert_eq!(timeout(SECOND * 5, call).await.expect("none waits for another").unwrap(), format!("/{i}"));
    }
}

#[tokio::test]
async fn trailers_pass_both_ways() {
    let application = http2_app(|request| async move {
        let sent = request.into_body().collect().await.unwrap();
        let asked = sent.trailers().unwrap()["x-asked"].clone();
        let (frames, body) = channel();
        tokio::spawn(async move {
            frames.send(data("answer")).await.unwrap();
            let trailers: HeaderMap = [(http::HeaderName::from_static("x-told"), asked)].into_iter().collect();
            frames.send(Ok(Frame::trailers(trailers))).await.unwrap();
        });
        Response::new(body)
    })
    .await;
    let mesh = mesh(application, |_, _| {}).await;
    let mut client = http2_client(mesh.address).await;
    let (frames, body) = channel();
    tokio::spawn(async move {
        frames.send(data("question")).await.unwrap();
        let mut trailers = HeaderMap::new();
        trailers.insert("x-asked", "42".parse().unwrap());
        frames.send(Ok(Frame::trailers(trailers))).await.unwrap();
    });
    let response = client.send_request(Request::post("http://product/").body(body).unwrap()).await.unwrap();
    let answer = response.into_body().collect().await.unwrap();
    assert_eq!(answer.trailers().unwrap()["x-told"], "42");
    assert_eq!(answer.to_bytes(), "answer");
}

#[tokio::test]
async fn a_hundred_mebibytes_arrive_whole_both_ways() {
    const CHUNK: usize = 64 * 1024;
    const CHUNKS: usize = 1600;
    let application = http2_app(|request| async move {
        let (frames, body) = channel();
        tokio::spawn(async move {
            let mut asked = request.into_body();
            while let Some(Ok(frame)) = asked.frame().await {
                if frames.send(Ok(frame)).await.is_err() {
                    return;
                }
            }
        });
        Response::new(body)
    })
    .await;
    let mesh = mesh(application, |_, _| {}).await;
    let mut client = http2_client(mesh.address).await;
    let (frames, body) = channel();
    let sender = tokio::spawn(async move {
        let mut hash = Sha256::new();
        for i in 0..CHUNKS {
            let chunk = Bytes::from(vec![u8::try_from(i * 7 % 251).unwrap(); CHUNK]);
            hash.update(&chunk);
            frames.send(data(chunk)).await.unwrap();
        }
        hash.finalize()
    });
    let response = client.send_request(Request::post("http://product/").body(body).unwrap()).await.unwrap();
    let (mut hash, mut size, mut body) = (Sha256::new(), 0, response.into_body());
    while let Some(frame) = timeout(SECOND * 30, body.frame()).await.expect("it keeps moving") {
        if let Ok(bytes) = frame.unwrap().into_data() {
            size += bytes.len();
            hash.update(&bytes);
        }
    }
    assert_eq!(size, CHUNK * CHUNKS);
    assert_eq!(hash.finalize(), sender.await.unwrap());
    let bytes = (CHUNK * CHUNKS) as f64;
    assert!(
        until(SECOND, || mesh.outbound.metric("weft_response_bytes_total", &["destination=\"svc"]) == bytes)
            .await
            .is_some()
    );
    assert_eq!(mesh.inbound.metric("weft_request_bytes_total", &["source=\"shop/order\""]), bytes);
}

/// What may lie in both proxies and in the sockets between: windows of 256 KiB a stream, send buffers, kernel buffers.
const IN_BETWEEN: usize = 24 * 1024 * 1024;

/// Waits until a count stays as it is. Each proxy returns what credit is left once a second.
async fn standstill(count: &AtomicUsize) -> usize {
    for _ in 0..10 {
        let before = count.load(Relaxed);
        sleep(SECOND * 3 / 2).await;
        if count.load(Relaxed) == before {
            return before;
        }
    }
    panic!("it still sends");
}

#[tokio::test]
async fn a_slow_reader_makes_the_application_wait() {
    let produced = Arc::new(AtomicUsize::new(0));
    let count = produced.clone();
    let application = http2_app(move |_request| {
        let count = count.clone();
        async move {
            let (frames, body) = channel();
            tokio::spawn(async move {
                while frames.send(data(vec![0; 64 * 1024])).await.is_ok() {
                    count.fetch_add(64 * 1024, Relaxed);
                }
            });
            Response::new(body)
        }
    })
    .await;
    let mesh = mesh(application, |_, _| {}).await;
    let mut client = http2_client(mesh.address).await;
    let response = client.send_request(get("/")).await.unwrap();
    let before = standstill(&produced).await;
    assert!(before < IN_BETWEEN, "{before}");
    let mut body = response.into_body();
    let mut read = 0;
    while read < before + 1024 * 1024 {
        read += body.frame().await.unwrap().unwrap().into_data().unwrap().len();
    }
    assert!(produced.load(Relaxed) > before, "and goes on when it is read");
}

#[tokio::test]
async fn a_slow_application_makes_the_caller_wait() {
    let application = http2_app(|request| async move {
        sleep(SECOND * 60).await;
        drop(request);
        Response::new(empty())
    })
    .await;
    let mesh = mesh(application, |_, _| {}).await;
    let mut client = http2_client(mesh.address).await;
    let (frames, body) = channel();
    let sent = Arc::new(AtomicUsize::new(0));
    let count = sent.clone();
    tokio::spawn(async move {
        while frames.send(data(vec![0; 64 * 1024])).await.is_ok() {
            count.fetch_add(64 * 1024, Relaxed);
        }
    });
    let call = tokio::spawn(async move {
        client.send_request(Request::post("http://product/").body(body).unwrap()).await.map(drop)
    });
    let before = standstill(&sent).await;
    assert!(before < IN_BETWEEN, "{before}");
    call.abort();
}

#[tokio::test]
async fn a_cancelled_call_is_cancelled_at_the_application() {
    let (began, ended) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (started, dropped) = (began.clone(), ended.clone());
    let application = http2_app(move |_request| {
        let guard = Ended(dropped.clone());
        started.fetch_add(1, Relaxed);
        async move {
            let _guard = guard;
            std::future::pending().await
        }
    })
    .await;
    let mesh = mesh(application, |_, _| {}).await;
    let mut client = http2_client(mesh.address).await;
    // Without a body, and in the middle of sending one.
    let (frames, body) = channel();
    for request in [get("/"), Request::post("http://product/").body(body).unwrap()] {
        let before = began.load(Relaxed);
        let call = client.send_request(request);
        let call = tokio::spawn(async move { call.await.map(drop) });
        assert!(until(SECOND, || began.load(Relaxed) > before).await.is_some());
        call.abort();
        let took = until(SECOND, || ended.load(Relaxed) > before).await.expect("the application hears of it");
        assert!(took < AT_ONCE, "{took:?}");
    }
    drop(frames);
    assert!(until(SECOND, || mesh.outbound.metric("weft_failures_total", &["flag=\"DC\""]) == 2.0).await.is_some());
    assert_eq!(mesh.outbound.metric("weft_ejections_total", &[]), 0.0);
    // The connections survive it.
    let rows = mesh.inbound.worker.connections.rows(10);
    assert_eq!(rows.len(), 1, "{rows:?}");
}

#[tokio::test]
async fn an_answer_that_is_not_read_on_is_cancelled_too() {
    let ended = Arc::new(AtomicUsize::new(0));
    let dropped = ended.clone();
    let application = http2_app(move |_request| {
        let guard = Ended(dropped.clone());
        async move {
            let (frames, body) = channel();
            tokio::spawn(async move {
                let _guard = guard;
                while frames.send(data("tick")).await.is_ok() {
                    sleep(Duration::from_millis(5)).await;
                }
            });
            Response::new(body)
        }
    })
    .await;
    let mesh = mesh(application, |_, _| {}).await;
    let mut client = http2_client(mesh.address).await;
    let mut response = client.send_request(get("/")).await.unwrap();
    assert!(response.body_mut().frame().await.unwrap().is_ok());
    drop(response);
    let took = until(SECOND, || ended.load(Relaxed) == 1).await.expect("the application hears of it");
    assert!(took < AT_ONCE, "{took:?}");
}

/// An application that speaks raw HTTP/2 and does with each request what `act` says.
async fn h2_app(
    act: impl Fn(&mut h2::server::Connection<TcpStream, Bytes>, h2::server::SendResponse<Bytes>, usize)
    + Clone
    + Send
    + Sync
    + 'static,
) -> (std::net::SocketAddr, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let seen = count.clone();
    let address = raw_app(move |stream| {
        let (act, seen) = (act.clone(), seen.clone());
        async move {
            let Ok(mut connection) = h2::server::handshake(stream).await else { return };
            while let Some(Ok((_request, respond))) = connection.accept().await {
                let number = seen.fetch_add(1, Relaxed);
                act(&mut connection, respond, number);
            }
        }
    })
    .await;
    (address, count)
}

#[tokio::test]
async fn a_reset_by_the_application_is_an_error_and_a_post_is_not_repeated() {
    let (application, seen) = h2_app(|_, mut respond, _| respond.send_reset(h2::Reason::INTERNAL_ERROR)).await;
    let mesh = mesh(application, |_, _| {}).await;
    let mut client = http2_client(mesh.address).await;
    let response = client.send_request(Request::post("http://product/").body(full("x")).unwrap()).await.unwrap();
    assert_eq!(
        (response.status(), &response.headers()["weft-error"]),
        (http::StatusCode::BAD_GATEWAY, &"UC".parse().unwrap())
    );
    assert_eq!(seen.load(Relaxed), 1);
    let response = client.send_request(get("/")).await.unwrap();
    assert_eq!(response.status(), 502);
    assert_eq!(seen.load(Relaxed), 3, "a GET is tried twice");
}

#[tokio::test]
async fn a_reset_in_the_middle_of_an_answer_reaches_the_caller() {
    let (application, _) = h2_app(|_, mut respond, _| {
        let mut send = respond.send_response(Response::new(()), false).unwrap();
        send.send_data("part".into(), false).unwrap();
        tokio::spawn(async move {
            sleep(Duration::from_millis(50)).await;
            send.send_reset(h2::Reason::INTERNAL_ERROR);
        });
    })
    .await;
    let mesh = mesh(application, |_, _| {}).await;
    let mut client = http2_client(mesh.address).await;
    let response = client.send_request(get("/")).await.unwrap();
    assert_eq!(response.status(), 200);
    let broken = timeout(SECOND, response.into_body().collect()).await.expect("at once");
    assert!(broken.is_err(), "a part is not the whole");
}

#[tokio::test]
async fn goaway_lets_what_runs_finish_and_sends_the_rest_to_a_new_connection() {
    let (application, seen) = h2_app(|connection, mut respond, number| {
        if number == 0 {
            connection.graceful_shutdown();
        }
        tokio::spawn(async move {
            sleep(Duration::from_millis(100)).await;
            let mut send = respond.send_response(Response::new(()), false).unwrap();
            send.send_data("done".into(), true).unwrap();
        });
    })
    .await;
    let mesh = mesh(application, |_, _| {}).await;
    let mut client = http2_client(mesh.address).await;
    let first = tokio::spawn(client.send_request(get("/1")));
    assert!(until(SECOND, || seen.load(Relaxed) == 1).await.is_some());
    sleep(Duration::from_millis(30)).await;
    for path in ["/2", "/3"] {
        let request = Request::post(format!("http://product{path}")).body(full("x")).unwrap();
        let response = client.send_request(request).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(text(response).await.unwrap(), "done");
    }
    assert_eq!(text(first.await.unwrap().unwrap()).await.unwrap(), "done");
    assert_eq!(seen.load(Relaxed), 3);
}

#[tokio::test]
async fn a_post_that_the_application_took_before_it_broke_off_is_not_repeated() {
    let (application, seen) = h2_app(|connection, respond, _| {
        std::mem::forget(respond);
        connection.abrupt_shutdown(h2::Reason::ENHANCE_YOUR_CALM);
    })
    .await;
    let mesh = mesh(application, |_, _| {}).await;
    let mut client = http2_client(mesh.address).await;
    let response = client.send_request(Request::post("http://product/").body(full("x")).unwrap()).await.unwrap();
    assert_eq!(response.status(), 502);
    assert_eq!(seen.load(Relaxed), 1);
}

#[tokio::test]
async fn a_post_that_the_application_refused_unseen_is_repeated() {
    let (application, seen) = h2_app(|_, mut respond, number| {
        if number == 0 {
            respond.send_reset(h2::Reason::REFUSED_STREAM);
        } else {
            respond.send_response(Response::new(()), true).unwrap();
        }
    })
    .await;
    let (_outbound, address) = direct(&[application], |_, _| {});
    let mut client = http2_client(address).await;
    let response = client.send_request(Request::post("http://product/").body(full("x")).unwrap()).await.unwrap();
    assert_eq!((response.status().as_u16(), seen.load(Relaxed)), (200, 2));
}

#[tokio::test]
async fn an_http1_caller_reaches_an_application_that_speaks_http2_only() {
    let application = http2_app(|request| async move {
        assert_eq!(request.uri().authority().unwrap(), "product");
        Response::new(full(format!("{:?} {}", request.version(), request.method())))
    })
    .await;
    let mesh = mesh(application, |cluster, _| cluster.http = HttpVersion::Http2).await;
    let answer = once(mesh.address, "PUT", "/").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("HTTP/2.0 PUT"), "{answer}");
}

#[tokio::test]
async fn a_request_keeps_its_two_cookie_lines_together_for_an_http1_application() {
    let application = crate::apps::http1_app(|request| async move {
        let cookies: Vec<_> =
            request.headers().get_all("cookie").iter().map(|c| c.to_str().unwrap().to_owned()).collect();
        Response::new(full(cookies.join(" | ")))
    })
    .await;
    let (_proxy, address) = crate::gateway::gateway(application);
    let mut client = http2_client(address).await;
    let request =
        Request::get("http://shop.example/").header("cookie", "a=1").header("cookie", "b=2").body(empty()).unwrap();
    // RFC 9113 §8.2.3
    assert_eq!(text(client.send_request(request).await.unwrap()).await.unwrap(), "a=1; b=2");
}

crate::records::with_rustls! {
    streams_of_one_connection_run_at_once
    a_hundred_mebibytes_arrive_whole_both_ways
    a_slow_reader_makes_the_application_wait
    a_slow_application_makes_the_caller_wait
    a_cancelled_call_is_cancelled_at_the_application
}
