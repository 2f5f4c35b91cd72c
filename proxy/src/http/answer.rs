//! The answer to a request on its way to the caller, and what follows an answer that switches the protocol.

use std::pin::Pin;

use weft_http::head::Response;

use super::body::Body;
use crate::stream::Duplex;

/// An answer on its way.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) head: Response,
    pub(crate) body: Body,
    /// The upstream has switched to another protocol, and the caller's connection is to be joined with it.
    pub(crate) switch: Option<Box<Switch>>,
}

/// A switch that the upstream has accepted. Dropped without a join where the caller is gone.
pub(crate) struct Switch {
    /// The protocol switched to.
    pub(crate) protocol: Vec<u8>,
    pub(crate) join: Join,
}

/// Joins the caller's connection with the upstream's; ready when both directions have ended.
pub(crate) type Join = Box<dyn FnOnce(Box<dyn Duplex>) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send>;

impl Answer {
    pub(crate) fn new(head: Response, body: Body) -> Self {
        Self { head, body, switch: None }
    }
}

impl std::fmt::Debug for Switch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Switch").field("protocol", &self.protocol).finish_non_exhaustive()
    }
}
