//! The verdict on an opaque connection over the hop: with ALPN `weft-tcp-2` the first byte from the callee's proxy, before those of
//! the application, says whether the application was reached. The caller's proxy sends none of its caller's bytes before, so
//! that it may go elsewhere after a refusal.
//!
//! | byte | meaning |
//! |---|---|
//! | 0 | connected: the application's bytes follow |
//! | 1 | the application was not reached, or a limit is: another instance may do better |
//! | any other | refused, by policy for one: another instance would refuse too |

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};
use weft_core::{cluster::CONNECT_TIMEOUT, failure::Failure};

use crate::stream::Stream;

const CONNECTED: u8 = 0;
const NOT_REACHED: u8 = 1;
const REFUSED: u8 = 2;

/// The longest wait for a verdict, where no policy says how long connecting may take. The peer waits for its application until
/// this one gives up.
const WAIT: Duration = Duration::from_secs(10);
/// The longest time that a refusal takes to be sent.
const SEND: Duration = Duration::from_millis(2_500);

/// Waits for the peer's verdict. `within`: the policy's time to connect.
/// Errors: the application was not reached. Nothing was sent to it.
pub(super) async fn read(stream: &mut Stream, within: Duration) -> Result<(), Failure> {
    let within = if within == CONNECT_TIMEOUT { WAIT } else { within };
    match timeout(within, stream.read_u8()).await {
        Ok(Ok(CONNECTED)) => Ok(()),
        Ok(Ok(NOT_REACHED)) => Err(Failure::RefusedStream),
        Ok(Ok(_other)) => Err(Failure::DeniedByPeer),
        Ok(Err(error)) => Err(Failure::connect(error)),
        Err(_elapsed) => Err(Failure::ConnectTimeout),
    }
}

/// Tells the peer that the application is connected.
/// Errors: the peer is gone.
pub(crate) async fn connected(stream: &mut Stream) -> std::io::Result<()> {
    stream.write_u8(CONNECTED).await?;
    stream.flush().await
}

/// Tells the peer that the application was not reached, and ends the stream.
pub(crate) async fn refuse(mut stream: Stream, failure: &Failure) {
    let elsewhere = matches!(failure, Failure::Connect(_) | Failure::ConnectTimeout | Failure::Overloaded(_));
    let send = async {
        stream.write_u8(if elsewhere { NOT_REACHED } else { REFUSED }).await?;
        stream.shutdown().await
    };
    if !matches!(timeout(SEND, send).await, Ok(Ok(()))) {
        tracing::debug!("a peer did not wait for the verdict");
    }
}
