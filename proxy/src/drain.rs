//! Draining: everything that has to end hears of it. `app` waits until all has ended or the deadline is reached.

use std::sync::Arc;

use tokio::sync::watch;

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
