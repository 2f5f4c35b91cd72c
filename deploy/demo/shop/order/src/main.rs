//! `shop-order`: the demo shop's order service. It contains no code for a mesh.
//!
//! `POST /orders` reads the user and the product over HTTP, charges over gRPC, inserts into PostgreSQL and only
//! then answers 201. `GET /orders/{id}`, `GET /orders?limit=`, `GET /healthz`.
//!
//! Map: `config` reads the environment; `api` is HTTP in; `place` is one order from top to bottom; `shop` (HTTP),
//! `payment` (gRPC) and `store` (PostgreSQL) are what it calls; `trace` passes the trace context on.

mod api;
mod config;
mod payment;
mod place;
mod shop;
mod store;
mod trace;

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context as _;
use axum::serve::ListenerExt as _;
use clap::Parser as _;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::config::Config;

/// How long requests may take to finish after SIGTERM.
const DRAIN: Duration = Duration::from_millis(1500);

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let config = Config::parse();
    tracing_subscriber::fmt().json().flatten_event(true).with_target(false).with_env_filter(config.log.filter()).init();

    let app = Arc::new(api::App::new(&config)?);
    let listener =
        TcpListener::bind(config.bind).await.with_context(|| format!("BIND: cannot listen on {}", config.bind))?;
    let address = listener.local_addr().context("local address")?;
    // A small answer must not wait for the acknowledgement of the one before. Fails only on a dead socket.
    let listener = listener.tap_io(|stream| drop(stream.set_nodelay(true)));
    tracing::info!(service = "order", instance = %config.instance, address = %address, "listening");

    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
    let (stop, mut stopped) = tokio::sync::watch::channel(false);
    let serve = axum::serve(listener, api::router(Arc::clone(&app))).with_graceful_shutdown(async move {
        // An error means that the sender is gone, which is the same news.
        drop(stopped.wait_for(|stop| *stop).await);
    });
    let mut serve = pin!(serve.into_future());
    tokio::select! {
        result = &mut serve => return result.context("serve"),
        () = app.store.keep_ready() => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!(service = "order", instance = %config.instance, "stopping");
    app.draining.store(true, Ordering::Relaxed);
    stop.send_replace(true);
    if tokio::time::timeout(DRAIN, serve).await.is_err() {
        tracing::warn!(service = "order", instance = %config.instance, "requests still in flight at the deadline were dropped");
    }
    tracing::info!(service = "order", instance = %config.instance, "stopped");
    Ok(())
}
