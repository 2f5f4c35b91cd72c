//! HTTP: connections of both versions on a stream, heads and bodies as the request path sees them, and the answers of the proxy
//! itself. The bytes are `weft-http`'s.

pub(crate) mod answer;
pub(crate) mod body;
pub(crate) mod head;
pub(crate) mod hop;
pub(crate) mod http1;
pub(crate) mod http2;
pub(crate) mod interim;
pub(crate) mod limits;
pub(crate) mod muxes;
pub(crate) mod path;
pub(crate) mod respond;
pub(crate) mod serve;
pub(crate) mod stall;
pub(crate) mod upgrade;

use std::task::{Context, Waker};

/// Notes the task to wake, without cloning the same waker again.
fn remember(waiting: &mut Option<Waker>, cx: &Context<'_>) {
    match waiting {
        Some(waker) if waker.will_wake(cx.waker()) => {}
        waiting => *waiting = Some(cx.waker().clone()),
    }
}
