//! Clients of scenarios that count bytes: streams of gRPC messages, bodies of 1 MiB, opaque bytes. They run in the bench's own
//! thread, on the load's CPU, as fast as responses arrive; received bytes are counted in the server's [`Tally`].

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as Poller, Poll};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::app::{LARGE, MESSAGE, Tally};
use crate::scenario::Scenario;

/// Streams of the one connection of `grpc-stream`.
const STREAMS: usize = 8;
/// Messages in flight on one stream. So few that no receiver takes them for a flood of small frames: the h2 crate closes a
/// connection on which many accumulate.
const IN_FLIGHT: usize = 32;

/// Messages as they are handed over.
struct Messages(mpsc::Receiver<Bytes>);

impl Body for Messages {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, poller: &mut Poller<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(poller).map(|message| message.map(|message| Ok(Frame::data(message))))
    }
}

/// Starts the clients of `scenario`. They run until dropped; one that ends before has failed.
///
/// # Errors
/// The scenario has no such clients.
pub fn start(scenario: Scenario, entry: SocketAddr, tally: &Arc<Tally>) -> Result<JoinSet<Result<()>>> {
    let mut clients = JoinSet::new();
    for _ in 0..scenario.connections() {
        let tally = Arc::clone(tally);
        match scenario {
            Scenario::GrpcStream => clients.spawn(streams(entry, tally)),
            Scenario::Bodies => clients.spawn(bodies(entry, tally)),
            Scenario::TcpBulk => clients.spawn(opaque(entry, tally)),
            _ => bail!("{scenario} is not counted in bytes"),
        };
    }
    Ok(clients)
}

async fn connect(entry: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(entry).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn streams(entry: SocketAddr, tally: Arc<Tally>) -> Result<()> {
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(connect(entry).await?)).await?;
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { connection.await.context("the connection") });
    for _ in 0..STREAMS {
        let (send, messages) = mpsc::channel(IN_FLIGHT);
        for _ in 0..IN_FLIGHT {
            send.send(Bytes::from_static(MESSAGE)).await?;
        }
        let call = Request::post(format!("http://{entry}/bench.Echo/Stream"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Messages(messages))?;
        let answer = sender.send_request(call);
        let tally = Arc::clone(&tally);
        tasks.spawn(async move {
            let answer = answer.await?;
            ensure!(answer.status() == StatusCode::OK, "a stream was answered {}", answer.status());
            let (mut body, mut pending) = (answer.into_body(), 0);
            while let Some(frame) = body.frame().await {
                let length = frame?.data_ref().map_or(0, Bytes::len);
                pending += length;
                let whole = pending / MESSAGE.len();
                pending %= MESSAGE.len();
                // They went both ways.
                tally.add(whole as u64, 2 * length);
                for _ in 0..whole {
                    send.send(Bytes::from_static(MESSAGE)).await?;
                }
            }
            bail!("a stream without end has ended")
        });
    }
    match tasks.join_next().await {
        Some(ended) => ended?,
        None => bail!("no stream"),
    }
}

async fn bodies(entry: SocketAddr, tally: Arc<Tally>) -> Result<()> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(connect(entry).await?)).await?;
    let mut tasks = JoinSet::new();
    tasks.spawn(connection);
    loop {
        let get = Request::get("/large").header("host", entry.to_string()).body(Full::new(Bytes::new()))?;
        let answer = sender.send_request(get).await?;
        ensure!(answer.status() == StatusCode::OK, "GET was answered {}", answer.status());
        let (mut body, mut length) = (answer.into_body(), 0);
        while let Some(frame) = body.frame().await {
            let part = frame?.data_ref().map_or(0, Bytes::len);
            length += part;
            tally.add(0, part);
        }
        ensure!(length == LARGE.len(), "GET brought {length} bytes");
        tally.add(1, 0);
        let body = Full::new(Bytes::from_static(LARGE));
        let post = Request::post("/").header("host", entry.to_string()).body(body)?;
        // Counted by the server.
        let answer = sender.send_request(post).await?;
        ensure!(answer.status() == StatusCode::OK, "POST was answered {}", answer.status());
        answer.into_body().collect().await?;
    }
}

async fn opaque(entry: SocketAddr, tally: Arc<Tally>) -> Result<()> {
    let (mut reader, mut writer) = connect(entry).await?.into_split();
    let write = async {
        let chunk = vec![0; 64 * 1024];
        loop {
            writer.write_all(&chunk).await?;
        }
    };
    let read = async {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let length = reader.read(&mut buffer).await?;
            ensure!(length > 0, "the connection was closed");
            // It went both ways.
            tally.add(0, 2 * length);
        }
    };
    tokio::select! { end = write => end, end = read => end }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::app::App;

    #[tokio::test]
    async fn every_kind_of_bytes_arrives_and_nothing_ends() {
        let app = App::start().await.unwrap();
        for scenario in [Scenario::GrpcStream, Scenario::Bodies, Scenario::TcpBulk] {
            let (_, before) = app.tally().read();
            let mut clients = start(scenario, app.address(scenario.protocol()), app.tally()).unwrap();
            tokio::time::sleep(Duration::from_millis(700)).await;
            let (_, after) = app.tally().read();
            assert!(after - before > 1_000_000, "{scenario}: {} bytes", after - before);
            assert!(clients.try_join_next().is_none(), "{scenario}");
        }
        start(Scenario::Http1One, app.address(Scenario::Http1One.protocol()), app.tally()).unwrap_err();
    }
}
