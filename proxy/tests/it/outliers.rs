//! Outlier detection: what counts as a failure of an endpoint is the same for every protocol, and a sign of life ends an ejection.

use std::{net::SocketAddr, time::Duration};

use http::{Request, Response};
use http_body::Frame;
use http_body_util::BodyExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    time::Instant,
};
use weft_core::{cluster::OutlierDetection, endpoint::Health, listener::InboundMode, policy::Authorization};

use crate::{
    apps::{channel, data, direct, fixed_app, full, http2_app, http2_client, once, raw_app, read_head, until},
    pair::{Authority, Proxy, endpoint_set, identity, inbound, outbound},
};

const SECOND: Duration = Duration::from_secs(1);

/// How an endpoint fails.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Bad {
    /// Takes the connection and closes it.
    Closes,
    /// Answers what no protocol has.
    Garbage,
    /// 503.
    Status,
    /// gRPC's UNAVAILABLE in a head without a body.
    TrailersOnly,
    /// gRPC's UNAVAILABLE after a message.
    Trailers,
    /// Resets the stream before the head.
    Resets,
    /// Breaks off in the body.
    Cut,
}

async fn good_grpc() -> SocketAddr {
    http2_app(|_| async {
        let (frames, body) = channel();
        tokio::spawn(async move {
            frames.send(data("\0\0\0\0\x01x")).await.ok();
            let trailers = [("grpc-status".parse().unwrap(), "0".parse().unwrap())].into_iter().collect();
            frames.send(Ok(Frame::trailers(trailers))).await.ok();
        });
        Response::builder().header("content-type", "application/grpc").body(body).unwrap()
    })
    .await
}

async fn bad_grpc(bad: Bad) -> SocketAddr {
    match bad {
        Bad::Closes => {
            raw_app(|mut stream| async move {
                stream.read_u8().await.ok();
            })
            .await
        }
        Bad::Garbage => {
            raw_app(|mut stream| async move {
                stream.read_u8().await.ok();
                stream.write_all(&[b'x'; 1000]).await.ok();
            })
            .await
        }
        Bad::Resets => {
            raw_app(|stream| async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((_request, mut answer))) = connection.accept().await {
                    answer.send_reset(h2::Reason::INTERNAL_ERROR);
                }
            })
            .await
        }
        Bad::Status => http2_app(|_| async { Response::builder().status(503).body(full("no")).unwrap() }).await,
        Bad::TrailersOnly => {
            http2_app(|_| async {
                let answer = Response::builder().header("content-type", "application/grpc").header("grpc-status", "14");
                answer.body(full("")).unwrap()
            })
            .await
        }
        Bad::Trailers | Bad::Cut => {
            http2_app(move |_| async move {
                let (frames, body) = channel();
                tokio::spawn(async move {
                    frames.send(data("\0\0\0\0\x01x")).await.ok();
                    let end = if bad == Bad::Cut {
                        Err(std::io::Error::other("cut"))
                    } else {
                        Ok(Frame::trailers(
                            [("grpc-status".parse().unwrap(), "14".parse().unwrap())].into_iter().collect(),
                        ))
                    };
                    frames.send(end).await.ok();
                });
                Response::builder().header("content-type", "application/grpc").body(body).unwrap()
            })
            .await
        }
    }
}

async fn bad_http1(bad: Bad) -> Option<SocketAddr> {
    let answer: &[u8] = match bad {
        Bad::Closes | Bad::Resets => b"",
        Bad::Garbage => b"what?\r\n\r\n",
        Bad::Status => b"HTTP/1.1 503 X\r\ncontent-length: 0\r\n\r\n",
        Bad::Cut => b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf",
        Bad::TrailersOnly | Bad::Trailers => return None,
    };
    let serve = move |mut stream| async move {
        read_head(&mut stream).await;
        stream.write_all(answer).await.ok();
    };
    Some(raw_app(serve).await)
}

/// Proxies before these applications, and one that calls them.
fn meshed(applications: &[SocketAddr]) -> (Vec<Proxy>, Proxy, SocketAddr) {
    let authority = Authority::new();
    let mut proxies = Vec::new();
    let mut endpoints = Vec::new();
    for application in applications {
        let svid = authority.svid("product", true);
        let (proxy, address) = inbound(svid, *application, InboundMode::Strict, Authorization::default());
        proxies.push(proxy);
        endpoints.push((address, Some(identity("product"))));
    }
    let (outbound, address) = outbound(Some(authority.svid("order", true)), &endpoints, |cluster, _| {
        cluster.outlier = Some(OutlierDetection { base_ejection: SECOND * 300, ..OutlierDetection::default() });
    });
    (proxies, outbound, address)
}

/// (4b)
#[tokio::test]
async fn a_grpc_endpoint_that_fails_is_ejected_however_it_fails() {
    for bad in [Bad::Closes, Bad::Garbage, Bad::Status, Bad::TrailersOnly, Bad::Trailers, Bad::Resets, Bad::Cut] {
        let (_proxies, outbound, address) = meshed(&[bad_grpc(bad).await, good_grpc().await, good_grpc().await]);
        let mut client = http2_client(address).await;
        let is_good = async || {
            let request = Request::post("http://product/x").header("content-type", "application/grpc");
            let answer = client.send_request(request.body(full("\0\0\0\0\0")).unwrap()).await;
            let answer = match answer {
                Ok(answer) => answer.into_body().collect().await.ok(),
                Err(_) => None,
            };
            answer.is_some_and(|answer| answer.trailers().is_some_and(|all| all["grpc-status"] == "0"))
        };
        five_failures_eject(&outbound, &format!("{bad:?}"), is_good).await;
    }
}

/// However rarely the one that fails is picked: the fifth failure is the last.
async fn five_failures_eject(outbound: &Proxy, what: &str, mut is_good: impl AsyncFnMut() -> bool) {
    let (mut failed, end) = (0, Instant::now() + SECOND * 90);
    while outbound.metric("weft_ejections_total", &[]) == 0.0 {
        assert!(Instant::now() < end, "{what}: {failed} failures and no ejection");
        failed += usize::from(!is_good().await);
        assert!(failed <= 5, "{what}: {failed} failures and no ejection");
    }
    for _ in 0..30 {
        assert!(is_good().await, "{what}: it is out");
    }
}

/// (4b)
#[tokio::test]
async fn an_http1_endpoint_that_fails_is_ejected_however_it_fails() {
    for bad in [Bad::Closes, Bad::Garbage, Bad::Status, Bad::Cut] {
        let application = bad_http1(bad).await.unwrap();
        let (_proxies, outbound, address) =
            meshed(&[application, fixed_app(200, "ok").await, fixed_app(200, "ok").await]);
        let is_good = async || once(address, "POST", "/").await.ends_with("\r\n\r\nok");
        five_failures_eject(&outbound, &format!("{bad:?}"), is_good).await;
    }
}

/// (4b)
#[tokio::test]
async fn a_caller_that_leaves_an_answer_does_not_eject_the_endpoint() {
    let endless = || {
        http2_app(|_| async {
            let (frames, body) = channel();
            tokio::spawn(async move { while frames.send(data("more")).await.is_ok() {} });
            Response::new(body)
        })
    };
    let (_proxies, outbound, address) = meshed(&[endless().await, endless().await]);
    for _ in 0..20 {
        let mut client = http2_client(address).await;
        let mut answer = client.send_request(crate::apps::get("/")).await.unwrap().into_body();
        assert!(answer.frame().await.unwrap().is_ok());
    }
    assert!(until(SECOND * 5, || outbound.metric("weft_failures_total", &["flag=\"DC\""]) == 20.0).await.is_some());
    assert_eq!(outbound.metric("weft_ejections_total", &[]), 0.0);
}

/// (4b) An application that sends REFUSED_STREAM or a GOAWAY below the stream has not processed the call (RFC 9113 §8.7).
#[tokio::test]
async fn a_grpc_call_that_the_application_refuses_unprocessed_is_retried_elsewhere() {
    let refusing = raw_app(|stream| async move {
        let mut connection = h2::server::handshake(stream).await.unwrap();
        while let Some(Ok((_request, mut answer))) = connection.accept().await {
            answer.send_reset(h2::Reason::REFUSED_STREAM);
        }
    })
    .await;
    let (_proxies, outbound, address) = meshed(&[refusing, good_grpc().await]);
    let mut client = http2_client(address).await;
    for _ in 0..50 {
        let request = Request::post("http://product/x").header("content-type", "application/grpc");
        let answer = client.send_request(request.body(full("\0\0\0\0\0")).unwrap()).await.unwrap();
        let answer = answer.into_body().collect().await.unwrap();
        assert_eq!(answer.trailers().unwrap()["grpc-status"], "0");
    }
    assert!(outbound.metric("weft_retries_total", &["cause=\"REFUSED\"", "result=\"tried\""]) > 0.0);
}

/// (4) The caller's proxy learns of a dead application before it sends a byte.
#[tokio::test]
async fn an_opaque_connection_goes_elsewhere_where_the_application_is_not_reached() {
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let greeting = raw_app(|mut stream| async move {
        let byte = stream.read_u8().await.unwrap_or(0);
        stream.write_all(&[byte; 3]).await.ok();
    })
    .await;
    let (_proxies, outbound, address) = meshed(&[gone, greeting]);
    // The balancer soon tries the dead one less often: its fifth failure takes some seconds.
    let (mut calls, end) = (0, Instant::now() + SECOND * 60);
    while calls < 20 || outbound.metric("weft_ejections_total", &[]) == 0.0 {
        assert!(Instant::now() < end, "no ejection");
        calls += 1;
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream.write_all(b"\x01").await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, [1; 3]);
    }
    assert_eq!(outbound.metric("weft_ejections_total", &[]), 1.0);
}

/// (4)
#[tokio::test]
async fn a_sign_of_life_ends_an_ejection_for_failed_connects() {
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let good = fixed_app(200, "good").await;
    let (proxy, address) = direct(&[gone, good], |cluster, _| {
        cluster.outlier = Some(OutlierDetection { base_ejection: SECOND * 300, ..OutlierDetection::default() });
    });
    let ejections = || proxy.metric("weft_ejections_total", &[]);
    let eject = async |times: f64| {
        while ejections() < times {
            assert!(once(address, "POST", "/").await.ends_with("good"));
        }
    };
    eject(1.0).await;
    let unhealthy = |mut set: weft_core::endpoint::EndpointSet, health| {
        set.endpoints[0].health = health;
        set
    };
    let set = || endpoint_set(&[(gone, None), (good, None)]);
    // A healthy heartbeat after one that was not, and a new registration after it had gone: five more tries, and ejected again.
    for (times, between) in [(2.0, unhealthy(set(), Health::Unhealthy)), (3.0, endpoint_set(&[(good, None)]))] {
        proxy.shared.live.set_endpoints(&between);
        assert_eq!(ejections(), times - 1.0);
        proxy.shared.live.set_endpoints(&set());
        tokio::time::timeout(SECOND * 20, eject(times)).await.expect("it is tried again");
    }
    // An answer ends it too: here it is the only one left.
    let listener = TcpListener::bind(gone).await.unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                while read_head(&mut stream).await.is_some() {
                    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nback").await.ok();
                }
            });
        }
    });
    proxy.shared.live.set_endpoints(&endpoint_set(&[(gone, None)]));
    assert!(once(address, "GET", "/").await.ends_with("back"));
    proxy.shared.live.set_endpoints(&set());
    let mut back = 0;
    for _ in 0..50 {
        back += usize::from(once(address, "GET", "/").await.ends_with("back"));
    }
    assert!(back > 0, "it is used beside the other one");
}
