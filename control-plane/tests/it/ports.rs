//! Hostile bytes and the metrics port.

use std::time::Duration;

use http::Method;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::harness::{Mesh, exchange, request};

#[tokio::test]
async fn metrics_and_health_answer_and_nothing_else_is_there() {
    let mesh = Mesh::start().await;
    mesh.apply("{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {ports: [{port: 80}]}}").await;
    let address = mesh.running().addresses().metrics;
    let get = async |path: &str| {
        exchange(TcpStream::connect(address).await.unwrap(), request(Method::GET, path, None, "")).await
    };
    let (status, text) = get("/metrics").await;
    let text = text.as_str().unwrap().to_owned();
    assert_eq!(status, 200);
    for line in ["weft_store_revision 1", "weft_store_objects 1", "weft_api_answers_total{code=\"2xx\"} 1"] {
        assert!(text.lines().any(|found| found == line), "{line}: {text}");
    }
    assert_eq!(get("/readyz").await.0, 200);
    assert_eq!(get("/livez").await.0, 200);
    for path in ["/", "/api/v1/services", "/api/v1/bundle"] {
        assert_eq!(get(path).await.0, 404, "{path}");
    }
}

#[tokio::test]
async fn garbage_on_every_port_closes_that_connection_and_nothing_else() {
    let mesh = Mesh::start().await;
    let addresses = mesh.running().addresses().clone();
    let mut random = fastrand::Rng::with_seed(7);
    for address in [addresses.grpc, addresses.api, addresses.metrics] {
        for _ in 0..50 {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let bytes: Vec<u8> = (0..random.usize(1..4_096)).map(|_| random.u8(..)).collect();
            let _sent = stream.write_all(&bytes).await;
            let _ended = stream.shutdown().await;
            let mut answer = Vec::new();
            let read = tokio::time::timeout(Duration::from_secs(15), stream.read_to_end(&mut answer)).await;
            assert!(read.is_ok(), "{address}: the connection stays open");
        }
    }
    let mut inside = mesh.tls(addresses.grpc, None, b"h2").await.unwrap();
    inside.write_all(&[0xff; 2_000]).await.unwrap();
    let mut answer = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(15), inside.read_to_end(&mut answer)).await;
    assert!(read.is_ok(), "garbage inside TLS");
    assert_eq!(mesh.local(Method::GET, "/readyz", "").await.0, 200);
    mesh.svid("order").await;
}

#[tokio::test]
async fn only_tls_1_3_is_spoken() {
    let mesh = Mesh::start().await;
    let addresses = mesh.running().addresses().clone();
    // A TLS 1.2 ClientHello as OpenSSL 1.0 sends it, by hand: version, random, one suite, no extensions.
    let mut hello = vec![0x03, 0x03];
    hello.extend([7; 32]);
    hello.extend([0, 0, 2, 0xc0, 0x2f, 1, 0]);
    let mut record =
        vec![0x16, 3, 1, 0, u8::try_from(hello.len() + 4).unwrap(), 1, 0, 0, u8::try_from(hello.len()).unwrap()];
    record.extend(hello);
    for address in [addresses.grpc, addresses.api] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(&record).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer.first(), Some(&0x15), "an alert: {answer:?}");
    }
}
