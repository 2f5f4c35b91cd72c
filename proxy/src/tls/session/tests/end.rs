//! How connections end: close_notify, a FIN, an alert.

use rustls::{AlertDescription, ContentType};

use super::*;

#[tokio::test]
async fn close_notify_ends_one_direction_and_a_fin_without_one_is_an_error() {
    for records in PAIRS {
        let (mut client, mut server) = pair(records).await;
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        assert_eq!(client.write(b"more").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        let (question, end) = read_all(&mut server).await;
        assert_eq!((&question[..], end.unwrap()), (&b"question"[..], 8));
        assert_eq!(server.read(&mut [0; 10]).await.unwrap(), 0, "the end stays");
        server.write_all(b"answer").await.unwrap();
        server.shutdown().await.unwrap();
        assert_eq!(read_all(&mut client).await.0, b"answer");
    }
    for records in BOTH {
        let (mut client, mut server) = pair([Weft, records]).await;
        client.write_all(b"question").await.unwrap();
        client.weft().tcp.shutdown().await.unwrap();
        let (question, end) = read_all(&mut server).await;
        assert_eq!(question, b"question");
        assert_eq!(end.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        let again = server.read(&mut [0; 10]).await.unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::UnexpectedEof, "the error stays");
    }
}

#[tokio::test]
async fn a_fin_inside_a_record_is_an_error_behind_the_whole_ones() {
    for records in BOTH {
        let (mut client, mut server) = pair([Weft, records]).await;
        client.write_all(b"whole").await.unwrap();
        let part = client.weft().seal_raw(ContentType::ApplicationData, b"part");
        let tcp = &mut client.weft().tcp;
        tcp.write_all(&part[..part.len() - 1]).await.unwrap();
        tcp.shutdown().await.unwrap();
        let (read, end) = read_all(&mut server).await;
        assert_eq!(read, b"whole");
        assert_eq!(end.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}

#[tokio::test]
async fn an_alert_raises_the_flag() {
    for records in BOTH {
        let (mut client, mut server) = pair([records, Weft]).await;
        let flag = client.alerted();
        server.weft().send_raw(ContentType::Alert, &[1, 90]).await;
        server.weft().send_raw(ContentType::ApplicationData, b"x").await;
        assert_eq!(client.read_u8().await.unwrap(), b'x');
        assert!(!flag.load(Relaxed), "user_canceled means nothing");
        server.weft().send_raw(ContentType::Alert, &[2, 42]).await;
        let error = client.read_u8().await.unwrap_err();
        let bad_certificate = Error::AlertReceived(AlertDescription::BadCertificate);
        assert_eq!(crate::stream::tls_error(&error), Some(&bad_certificate));
        assert!(flag.load(Relaxed));
    }
}
