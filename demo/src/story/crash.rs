//! Step 5: an application is killed with -9 under load; what it had in hand is counted and named, nothing else fails.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, bail, ensure};
use http::Method;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::Story;
use crate::wait::until;

/// The host whose application is killed.
const VICTIM: &str = "order-1";
/// Concurrent customers; each places its orders one after the other.
const CUSTOMERS: usize = 10;
/// Orders before the kill, and after it.
const BEFORE: usize = 30;
const AFTER: usize = 60;

/// One POST of the demo.
#[derive(Debug, Clone)]
struct Post {
    key: String,
    started_at: u64,
    ended_at: u64,
    failure: Option<String>,
}

impl Story {
    pub(super) async fn crash(&mut self) {
        self.stage.step("5. An application crashes");
        self.stage.say(&format!(
            "{CUSTOMERS} more customers place orders as fast as possible; then the order service on {VICTIM} is killed (kill -9). Its POSTs in\n\
             flight may fail, because a proxy cannot know whether they took effect. No GET and no later POST may fail."
        ));
        match self.killed().await {
            Ok(killed) => {
                self.stage.check("crash: no GET fails at the edge", killed.gets);
                let (new, old): (Vec<&Post>, Vec<&Post>) =
                    killed.posts.iter().partition(|post| post.started_at > killed.at);
                self.stage.check("crash: no POST started after the kill fails", all_placed(&new));
                let (in_flight, before): (Vec<&Post>, Vec<&Post>) =
                    old.iter().partition(|post| post.ended_at >= killed.from);
                self.stage.check("crash: the failed POSTs in flight are counted and named", named(&in_flight, &before));
                let keys =
                    in_flight.iter().filter(|post| post.failure.is_some()).map(|post| post.key.clone()).collect();
                let again = self.again(keys).await;
                self.stage.check("crash: retried with their idempotency key, they are placed exactly once", again);
            }
            Err(error) => self.stage.check("crash: kill -9 under load", Err(error)),
        }
        let back = self.restarted().await;
        self.stage.check(&format!("crash: {VICTIM} restarts and receives traffic again"), back);
    }

    async fn killed(&mut self) -> Result<Killed> {
        let edge = self.edge()?;
        let mark = self.mark()?;
        let burst = Burst::start(edge);
        let some = until("orders before the kill", Duration::from_secs(20), async || {
            let count = burst.posts.lock().len();
            ensure!(count >= BEFORE, "{count} so far");
            Ok(())
        });
        some.await?;
        let from = unix_ms();
        self.shop_mut()?.app(VICTIM)?.kill().await?;
        // The process has ended: a request that starts later cannot be in flight on it.
        let at = unix_ms();
        let count = burst.posts.lock().len();
        until("orders after the kill", Duration::from_secs(30), async || {
            let now = burst.posts.lock().len();
            ensure!(now >= count + AFTER, "{} so far", now - count);
            Ok(())
        })
        .await?;
        let mut posts = burst.end().await?;
        let since = self.load()?.seconds(mark, 4).await?;
        let gets: Vec<String> = since
            .requests
            .iter()
            .filter(|request| !request.ok && request.method == "GET")
            .map(|request| request.summary())
            .collect();
        let gets = match gets.first() {
            None => Ok(format!("{} requests of the load", since.ok)),
            Some(first) => Err(anyhow::anyhow!("{} failed, the first: {first}", gets.len())),
        };
        posts.extend(since.requests.iter().filter(|request| request.method == "POST").map(|request| Post {
            key: request.key.clone().unwrap_or_default(),
            started_at: request.started_at,
            ended_at: request.ended_at,
            failure: (!request.ok).then(|| request.error.clone().unwrap_or_default()),
        }));
        Ok(Killed { from, at, gets, posts })
    }

    /// Sends the demo's failed POSTs again; each order must exist once.
    async fn again(&self, keys: Vec<String>) -> Result<String> {
        let edge = self.edge()?;
        let ours: Vec<&String> = keys.iter().filter(|key| key.starts_with("demo-")).collect();
        for key in &ours {
            let answer = Self::customer(edge, Method::POST, "/orders", Some(order(key))).await?;
            ensure!(answer.status == 201, "{key}: {} {}", answer.status, String::from_utf8_lossy(&answer.body));
        }
        let list = Self::customer(edge, Method::GET, "/orders?limit=1000", None).await?.json()?;
        let mut found: BTreeMap<&str, usize> = BTreeMap::new();
        for stored in list.get("orders").and_then(Value::as_array).context("a list of orders")? {
            *found.entry(stored.get("idempotency_key").and_then(Value::as_str).unwrap_or_default()).or_default() += 1;
        }
        for key in &ours {
            let count = found.get(key.as_str()).copied().unwrap_or(0);
            ensure!(count == 1, "{key} is stored {count} times");
        }
        Ok(if ours.is_empty() { "none failed".to_owned() } else { format!("{} orders", ours.len()) })
    }

    async fn restarted(&mut self) -> Result<String> {
        self.shop_mut()?.start_app(VICTIM)?;
        let mark = self.mark()?;
        for _ in 0..30 {
            let now = self.mark()?;
            self.load()?.seconds(now, 0).await?;
            let since = self.load()?.since(mark);
            if let Some(count) = since.instances.get(VICTIM).filter(|count| **count > 0) {
                since.none_failed()?;
                return Ok(format!("{count} requests"));
            }
        }
        bail!("no request in 30 s")
    }
}

struct Killed {
    /// Just before the signal, and when the process was gone. Unix milliseconds.
    from: u64,
    at: u64,
    gets: Result<String>,
    posts: Vec<Post>,
}

/// Fails when a POST failed, or there was none.
fn all_placed(posts: &[&Post]) -> Result<String> {
    ensure!(!posts.is_empty(), "none failed");
    let failed: Vec<String> = posts.iter().filter_map(|post| post.summary()).collect();
    ensure!(failed.is_empty(), "{} of {}: {}", failed.len(), posts.len(), failed.join(", "));
    Ok(format!("{} placed", posts.len()))
}

/// Names the failures among those that were in flight at the kill; those that had ended before it may not have failed.
fn named(in_flight: &[&Post], before: &[&Post]) -> Result<String> {
    all_placed(before).context("before the kill")?;
    ensure!(!in_flight.is_empty(), "no POST was in flight: nothing was tested");
    let failed: Vec<String> = in_flight.iter().filter_map(|post| post.summary()).collect();
    let names = if failed.is_empty() { String::new() } else { format!(": {}", failed.join(", ")) };
    Ok(format!("of {} in flight at the edge {} failed{names}", in_flight.len(), failed.len()))
}

impl Post {
    /// Its key and how it failed.
    fn summary(&self) -> Option<String> {
        self.failure.as_ref().map(|failure| format!("{} ({failure})", self.key))
    }
}

/// Customers who place orders, each on a connection of its own, until the burst ends.
struct Burst {
    posts: Arc<Mutex<Vec<Post>>>,
    end: Arc<std::sync::atomic::AtomicBool>,
    tasks: JoinSet<()>,
}

impl Burst {
    fn start(edge: SocketAddr) -> Self {
        let posts = Arc::new(Mutex::new(Vec::new()));
        let end = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let run = fastrand::u32(..);
        let mut tasks = JoinSet::new();
        for customer in 0..CUSTOMERS {
            let (posts, end) = (Arc::clone(&posts), Arc::clone(&end));
            tasks.spawn(async move {
                let mut number = 0;
                while !end.load(std::sync::atomic::Ordering::Relaxed) {
                    number += 1;
                    let key = format!("demo-{run:08x}-{customer}-{number}");
                    let started_at = unix_ms();
                    let failure = match Story::customer(edge, Method::POST, "/orders", Some(order(&key))).await {
                        Ok(answer) if answer.status == 201 => None,
                        Ok(answer) => Some(answer.status.as_str().to_owned()),
                        Err(error) => Some(format!("{error:#}")),
                    };
                    posts.lock().push(Post { key, started_at, ended_at: unix_ms(), failure });
                }
            });
        }
        Self { posts, end, tasks }
    }

    async fn end(mut self) -> Result<Vec<Post>> {
        self.end.store(true, std::sync::atomic::Ordering::Relaxed);
        while let Some(task) = self.tasks.join_next().await {
            task.context("a customer broke")?;
        }
        Ok(std::mem::take(&mut self.posts.lock()))
    }
}

fn order(key: &str) -> String {
    json!({"user": "u1", "product": "p2", "quantity": 1, "idempotency_key": key}).to_string()
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
