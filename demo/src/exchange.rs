//! Single requests over connections that the caller made: HTTP/1.1, and unary gRPC over HTTP/2.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::{net::TcpStream, time::timeout};

const ANSWER: Duration = Duration::from_secs(10);
const MAX_BODY: usize = 4 << 20;

/// One answer.
#[derive(Debug)]
pub(crate) struct Answer {
    /// Its status.
    pub(crate) status: StatusCode,
    /// Its body.
    pub(crate) body: Bytes,
}

/// The end of a gRPC call.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    /// The code (`grpc-status`); for a refusal without gRPC, the code that its HTTP status maps to.
    pub(crate) code: u32,
    /// In words.
    pub(crate) message: String,
    /// The reply, when the code is 0.
    pub(crate) reply: Bytes,
}

impl Answer {
    /// The body as JSON.
    ///
    /// Errors: it is none.
    pub(crate) fn json(&self) -> Result<Value> {
        serde_json::from_slice(&self.body)
            .with_context(|| format!("{}: {}", self.status, String::from_utf8_lossy(&self.body)))
    }
}

/// One request and its whole answer, over a connection that is closed afterwards.
///
/// Errors: no answer, or none within ten seconds.
pub(crate) async fn http(
    stream: TcpStream,
    method: Method,
    host: &str,
    path: &str,
    json: Option<String>,
) -> Result<Answer> {
    let mut request = Request::builder().method(method).uri(path).header(header::HOST, host);
    if json.is_some() {
        request = request.header(header::CONTENT_TYPE, "application/json");
    }
    let request = request.body(Full::new(Bytes::from(json.unwrap_or_default()))).context("make a request")?;
    let exchange = async {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let driver = tokio::spawn(connection);
        let response = sender.send_request(request).await?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, MAX_BODY).collect().await.map_err(anyhow::Error::from_boxed)?.to_bytes();
        driver.abort();
        Ok(Answer { status: head.status, body })
    };
    timeout(ANSWER, exchange).await.with_context(|| format!("no answer within {} s", ANSWER.as_secs()))?
}

/// One unary call, as gRPC over HTTP/2 defines it.
///
/// Errors: no answer, or one that is not gRPC's.
pub(crate) async fn grpc(stream: TcpStream, authority: &str, path: &str, message: &[u8]) -> Result<Ended> {
    let mut frame = BytesMut::with_capacity(message.len() + 5);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).context("a message below 4 GiB")?);
    frame.put_slice(message);
    let request = Request::builder()
        .method(Method::POST)
        .uri(format!("http://{authority}{path}"))
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .body(Full::new(frame.freeze()))
        .context("make a call")?;
    let exchange = async {
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        let driver = tokio::spawn(connection);
        let response = sender.send_request(request).await?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, MAX_BODY).collect().await.map_err(anyhow::Error::from_boxed)?;
        driver.abort();
        let trailers = body.trailers().cloned().unwrap_or_default();
        ended(head.status, &head.headers, &trailers, &body.to_bytes())
    };
    timeout(ANSWER, exchange).await.with_context(|| format!("no answer within {} s", ANSWER.as_secs()))?
}

fn ended(status: StatusCode, head: &HeaderMap, trailers: &HeaderMap, body: &Bytes) -> Result<Ended> {
    let of = |name: &str| trailers.get(name).or_else(|| head.get(name)).and_then(|value| value.to_str().ok());
    let message = of("grpc-message").unwrap_or_default().to_owned();
    match of("grpc-status") {
        Some(code) => {
            let code = code.parse().with_context(|| format!("grpc-status {code:?}"))?;
            let reply =
                if code == 0 { body.get(5..).map(Bytes::copy_from_slice).unwrap_or_default() } else { Bytes::new() };
            Ok(Ended { code, message, reply })
        }
        // gRPC's http-grpc-status-mapping.
        None if status == StatusCode::FORBIDDEN => {
            Ok(Ended { code: 7, message: String::from_utf8_lossy(body).into_owned(), reply: Bytes::new() })
        }
        None => bail!("no gRPC answer: {status} {}", String::from_utf8_lossy(body)),
    }
}

/// A protobuf message of texts and integers: (field number, value).
pub(crate) fn message(fields: &[(u8, Field<'_>)]) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    for (number, value) in fields {
        ensure!((1..16).contains(number), "field numbers above 15 take more bytes");
        match value {
            Field::Text(text) => {
                out.push(number << 3 | 2);
                varint(&mut out, text.len() as u64);
                out.extend_from_slice(text.as_bytes());
            }
            Field::Integer(integer) => {
                out.push(number << 3);
                varint(&mut out, *integer);
            }
        }
    }
    Ok(out)
}

/// A value of a protobuf field.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Field<'a> {
    /// `string`
    Text(&'a str),
    /// `int64`, not negative
    Integer(u64),
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        #[expect(clippy::cast_possible_truncation, reason = "the low seven bits")]
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    #[expect(clippy::cast_possible_truncation, reason = "below 128")]
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_protobuf() {
        // protobuf encoding guide: field 1 "testing" is 0a 07 …; field 1 = 150 is 08 96 01.
        assert_eq!(message(&[(1, Field::Text("testing"))]).unwrap(), b"\x0a\x07testing");
        assert_eq!(message(&[(1, Field::Integer(150))]).unwrap(), b"\x08\x96\x01");
        assert!(message(&[(16, Field::Integer(1))]).is_err());
    }

    #[test]
    fn a_refusal_is_read_with_or_without_grpc() {
        let (none, mut refused) = (HeaderMap::new(), HeaderMap::new());
        refused.insert("grpc-status", "7".parse().unwrap());
        refused.insert("grpc-message", "denied".parse().unwrap());
        let body = Bytes::from_static(b"no");
        assert_eq!(ended(StatusCode::OK, &refused, &none, &Bytes::new()).unwrap().message, "denied");
        assert_eq!(ended(StatusCode::FORBIDDEN, &none, &none, &body).unwrap().code, 7);
        assert!(ended(StatusCode::BAD_GATEWAY, &none, &none, &body).is_err());
        let mut good = HeaderMap::new();
        good.insert("grpc-status", "0".parse().unwrap());
        let reply = ended(StatusCode::OK, &none, &good, &Bytes::from_static(b"\0\0\0\0\x01x")).unwrap();
        assert_eq!((reply.code, &reply.reply[..]), (0, &b"x"[..]));
    }
}
