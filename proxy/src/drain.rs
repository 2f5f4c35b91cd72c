//! Draining: a signal to everything that has to end. `app` waits until all connections have ended or the drain timeout is over.

use std::sync::Arc;

use tokio::sync::watch;

/// The receiving end; cloned into every connection.
#[derive(Clone, Debug)]
pub struct Drain {
    begun: watch::Receiver<bool>,
}

/// The sending end.
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

    /// Begins to drain.
    pub fn begin(&self) {
        self.begin.send_replace(true);
    }
}

impl Drain {
    /// Ends when draining begins.
    pub async fn begun(&self) {
        let mut begun = self.begun.clone();
        // The sending end is dropped only when the program ends.
        if begun.wait_for(|begun| *begun).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Whether draining has begun.
    pub fn has_begun(&self) -> bool {
        *self.begun.borrow()
    }
}
