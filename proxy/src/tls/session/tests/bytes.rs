//! Bytes pass whole and in order, whatever record layer is on the other side.

use std::process::Stdio;

use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;

#[tokio::test]
async fn bytes_of_any_size_pass_both_ways_and_keys_change_on_the_way() {
    for records in PAIRS {
        let (client, server) = pair(records).await;
        exchange(client, server, amount(records)).await;
        let (mut client, mut server) = pair(records).await;
        client.change_keys(3);
        server.change_keys(50);
        exchange(client, server, amount(records)).await;
    }
}

#[tokio::test]
async fn rustls_own_records_are_understood_and_understand_ours() {
    let tls = tls(Weft);
    let (client, server) = sockets().await;
    let (client, server) = tokio::join!(
        TlsConnector::from(client_config(&tls)).connect(name(), client),
        handshake::accept(Weft, tls.server.clone(), server, Bytes::new())
    );
    let (mut client, mut server) = (client.unwrap(), server.unwrap().session);
    client.get_mut().1.refresh_traffic_keys().unwrap();
    server.change_keys(20);
    exchange(client, server, amount([Weft, Weft])).await;

    let (client, server) = sockets().await;
    let (client, server) = tokio::join!(
        handshake::connect(Weft, client_config(&tls), name(), client),
        TlsAcceptor::from(tls.server.clone()).accept(server)
    );
    let (client, mut server) = (client.unwrap().session, server.unwrap());
    server.get_mut().1.refresh_traffic_keys().unwrap();
    exchange(client, server, amount([Weft, Weft])).await;
}

#[tokio::test]
async fn a_reader_that_does_not_read_stops_the_writer_and_nothing_is_lost() {
    for records in PAIRS {
        let (mut client, mut server) = pair(records).await;
        let content = content();
        let mut taken = 0;
        while let Ok(count) = timeout(Duration::from_millis(200), client.write(&content[taken..])).await {
            taken += count.unwrap();
            assert!(taken < content.len(), "the socket has no end");
        }
        let mut read = vec![0; taken];
        let (sent, _) = tokio::join!(client.flush(), server.read_exact(&mut read));
        sent.unwrap();
        assert!(read == content[..taken]);
    }
}

#[tokio::test]
async fn openssl_speaks_with_us_and_changes_keys() {
    for records in BOTH {
        openssl(records).await;
    }
}

/// Lets OpenSSL's client speak with a server, with each cipher suite.
async fn openssl(records: TlsRecords) {
    let tls = tls(records);
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, label: &str, der: &[u8]| {
        let path = directory.path().join(name);
        let body = data_encoding::BASE64.encode(der);
        let lines: Vec<_> = body.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
        std::fs::write(&path, format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n")))
            .unwrap();
        path
    };
    let certificate = write("cert.pem", "CERTIFICATE", &tls.svid.chain[0]);
    let key = write("key.pem", "PRIVATE KEY", tls.svid.key.secret_der());
    for suite in ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"] {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let mut client = tokio::process::Command::new("openssl")
            .args(["s_client", "-tls1_3", "-ciphersuites", suite, "-alpn", "weft-tcp", "-connect"])
            .arg(listener.local_addr().unwrap().to_string())
            .arg("-cert")
            .arg(&certificate)
            .arg("-key")
            .arg(&key)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("openssl, which the test set-up installs");
        let (tcp, _) = timeout(WAIT, listener.accept()).await.unwrap().unwrap();
        let established =
            timeout(WAIT, handshake::accept(records, tls.server.clone(), tcp, Bytes::new())).await.unwrap();
        let mut session = established.unwrap().session;
        session.change_keys(2);
        let (mut says, mut hears) = (client.stdin.take().unwrap(), client.stdout.take().unwrap());
        let mut line = [0; 6];
        for round in 0..4 {
            // K: a new key, and ours is asked for too.
            if round > 0 {
                says.write_all(b"K\n").await.unwrap();
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            says.write_all(b"hello\n").await.unwrap();
            timeout(WAIT, session.read_exact(&mut line)).await.unwrap().unwrap();
            assert_eq!(&line, b"hello\n", "{suite}");
            session.write_all(format!("answer {round}\n").as_bytes()).await.unwrap();
        }
        session.shutdown().await.unwrap();
        let mut heard = String::new();
        timeout(WAIT, hears.read_to_string(&mut heard)).await.unwrap().unwrap();
        assert!((0..4).all(|round| heard.contains(&format!("answer {round}\n"))), "{suite}: {heard}");
        assert!(heard.contains(suite), "{heard}");
    }
}
