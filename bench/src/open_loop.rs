//! The open loop: requests at a fixed rate, whether or not earlier ones were answered.
//!
//! Request n is due at `start + n / rate` and goes to lane `n % lanes`. A lane sends one request at a time; one that is due
//! while the lane still waits is sent late, and its latency counts from when it was due. So a server that stalls for a second
//! shows that second in all requests that would have been sent meanwhile (the omission is corrected).
//!
//! The clock is a timerfd, because tokio's timers are a millisecond coarse.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::unix::AsyncFd;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::measure::percentile;
use crate::scenario::Protocol;
use crate::stolen::Stolen;

/// Lanes of an HTTP/2 connection: requests in flight.
const LANES_PER_HTTP2: u32 = 64;

/// When each request is due.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    start: Instant,
    rate: u32,
}

impl Schedule {
    /// `rate` requests per second from `start` on; a rate of 0 counts as 1.
    #[must_use]
    pub fn new(start: Instant, rate: u32) -> Self {
        Self { start, rate: rate.max(1) }
    }

    /// When request `number` (from 0) is due.
    #[must_use]
    pub fn due(&self, number: u64) -> Instant {
        let (rate, seconds) = (u64::from(self.rate), number / u64::from(self.rate));
        self.start + Duration::from_secs(seconds) + Duration::from_nanos(number % rate * 1_000_000_000 / rate)
    }
}

/// One request that was answered.
#[derive(Clone, Copy, Debug)]
struct Sample {
    due: Instant,
    latency: Duration,
}

/// A load at work; it ends when dropped.
#[derive(Debug)]
pub struct OpenLoop {
    tasks: JoinSet<Result<()>>,
    samples: Arc<Mutex<Vec<Sample>>>,
    schedule: Schedule,
}

/// What the requests of a window took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Seen {
    /// Requests that were due in the window and were answered.
    pub requests: u64,
    /// Half of them took no longer.
    pub p50: Duration,
    /// 99 of 100 took no longer.
    pub p99: Duration,
    /// The share of requests that neither of the two counts, because little more is known of them than that a CPU was stolen
    /// while they were under way; 0..=1.
    pub left_out: f64,
}

impl OpenLoop {
    /// Opens `connections` to `entry` and begins to send `rate` requests per second.
    ///
    /// # Errors
    /// A connection cannot be opened, or there is no timer.
    pub async fn start(entry: SocketAddr, protocol: Protocol, connections: u32, rate: u32) -> Result<Self> {
        let samples = Arc::new(Mutex::new(Vec::new()));
        let (mut tasks, mut lanes) = (JoinSet::new(), Vec::new());
        let mut lane = |tasks: &mut JoinSet<Result<()>>, sender: Sender| {
            let (send, receive) = mpsc::unbounded_channel();
            lanes.push(send);
            tasks.spawn(serve_lane(sender, receive, entry, Arc::clone(&samples)));
        };
        for _ in 0..connections {
            let stream = TcpStream::connect(entry).await?;
            stream.set_nodelay(true)?;
            match protocol {
                Protocol::Http1 => {
                    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
                    tasks.spawn(async move { connection.await.context("a connection") });
                    lane(&mut tasks, Sender::Http1(sender));
                }
                Protocol::Http2 => {
                    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
                    tasks.spawn(async move { connection.await.context("a connection") });
                    for _ in 0..LANES_PER_HTTP2 {
                        lane(&mut tasks, Sender::Http2(sender.clone()));
                    }
                }
                Protocol::Tcp => bail!("opaque bytes have no requests"),
            }
        }
        let schedule = Schedule::new(Instant::now() + Duration::from_millis(10), rate);
        tasks.spawn(pace(schedule, lanes));
        Ok(Self { tasks, samples, schedule })
    }

    /// Stops, and tells of the requests that were due from `from` to `to`. `to` must be long enough ago for their answers:
    /// one that is missing counts as having waited until now. Time in which a CPU was `stolen` is left out of the
    /// latencies.
    ///
    /// # Errors
    /// A request failed, or nothing was answered at all.
    pub async fn finish(mut self, from: Instant, to: Instant, stolen: &Stolen) -> Result<Seen> {
        if let Some(ended) = self.tasks.try_join_next() {
            ended??;
            bail!("a connection was closed");
        }
        self.tasks.shutdown().await;
        let now = Instant::now();
        let answered: HashMap<Instant, Duration> = self.samples.lock().iter().map(|s| (s.due, s.latency)).collect();
        let (mut latencies, mut requests, mut left_out) = (Vec::new(), 0, 0.0);
        let due =
            (0..).map(|number| self.schedule.due(number)).skip_while(|due| *due < from).take_while(|due| *due < to);
        for due in due {
            requests += u64::from(answered.contains_key(&due));
            let latency = answered.get(&due).copied().unwrap_or(now - due);
            match stolen.without(due, due + latency) {
                Some(latency) => latencies.push(micros(latency)),
                None => left_out += 1.0,
            }
        }
        ensure!(requests > 0, "no request was answered inside the window");
        left_out /= left_out + latencies.len() as f64;
        let mut percentile = |percent| percentile(&mut latencies, percent).context("the CPUs were away all the time");
        let (p50, p99) = (percentile(50)?, percentile(99)?);
        Ok(Seen { requests, p50: Duration::from_micros(p50), p99: Duration::from_micros(p99), left_out })
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Hands each request to its lane when it is due.
async fn pace(schedule: Schedule, lanes: Vec<mpsc::UnboundedSender<Instant>>) -> Result<()> {
    let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
    #[expect(deprecated, reason = "it is unsound for types that let go of their descriptor; an OwnedFd keeps it")]
    let timer = AsyncFd::new(timer)?;
    for (number, lane) in (0..).zip(lanes.iter().cycle()) {
        let due = schedule.due(number);
        loop {
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let nothing = Timespec { tv_sec: 0, tv_nsec: 0 };
            let left = Timespec { tv_sec: i64::try_from(left.as_secs())?, tv_nsec: left.subsec_nanos().into() };
            let once = Itimerspec { it_interval: nothing, it_value: left };
            timerfd_settime(&timer, TimerfdTimerFlags::empty(), &once)?;
            timer.readable().await?.clear_ready();
        }
        lane.send(due).context("a lane has ended")?;
        // So many can be late at once that the answers would have to wait for all of them to be handed out.
        if number % 256 == 0 {
            tokio::task::yield_now().await;
        }
    }
    Ok(())
}

enum Sender {
    Http1(http1::SendRequest<Empty<Bytes>>),
    Http2(http2::SendRequest<Empty<Bytes>>),
}

async fn serve_lane(
    mut sender: Sender,
    mut due: mpsc::UnboundedReceiver<Instant>,
    entry: SocketAddr,
    samples: Arc<Mutex<Vec<Sample>>>,
) -> Result<()> {
    let (host, url) = (entry.to_string(), format!("http://{entry}/"));
    while let Some(due) = due.recv().await {
        let answer = match &mut sender {
            Sender::Http1(sender) => {
                let request = Request::get("/").header(http::header::HOST, &host).body(Empty::new())?;
                sender.ready().await?;
                sender.send_request(request).await?
            }
            Sender::Http2(sender) => sender.send_request(Request::get(&url).body(Empty::new())?).await?,
        };
        ensure!(answer.status() == StatusCode::OK, "a request was answered {}", answer.status());
        answer.into_body().collect().await?;
        samples.lock().push(Sample { due, latency: due.elapsed() });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
