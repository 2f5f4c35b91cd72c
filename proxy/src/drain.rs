//! Draining: everything that has to end hears of it, and the program waits until all has ended or the deadline is reached.

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, time::timeout};

/// The listening end; cloned into every connection.
#[derive(Clone, Debug)]
pub struct Drain {
    begun: watch::Receiver<bool>,
}

/// The commanding end.
#[derive(Clone, Debug)]
pub struct Drainer {
    begin: Arc<watch::Sender<bool>>,
}

impl Drainer {
    /// A pair of ends.
    pub fn new() -> (Self, Drain) {
        let (begin, begun) = watch::channel(false);
        (Self { begin: Arc::new(begin) }, Drain { begun })
    }

    /// Tells everyone.
    pub fn begin(&self) {
        self.begin.send_replace(true);
    }

    /// Waits until nobody listens any more: all connections have ended. Returns whether that happened in time.
    pub async fn ended(&self, within: Duration) -> bool {
        timeout(within, self.begin.closed()).await.is_ok()
    }
}

impl Drain {
    /// Ends when draining begins.
    pub async fn begun(&self) {
        let mut begun = self.begun.clone();
        // The commanding end is gone only when the program ends.
        if begun.wait_for(|begun| *begun).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Whether draining has begun.
    pub fn has_begun(&self) -> bool {
        *self.begun.borrow()
    }
}
