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

    /// Takes it back.
    pub fn end(&self) {
        self.begin.send_replace(false);
    }
}

impl Drain {
    /// Ready when draining begins.
    pub async fn begun(&self) {
        self.is(true).await;
    }

    /// Ready when it was taken back.
    pub async fn ended(&self) {
        self.is(false).await;
    }

    async fn is(&self, draining: bool) {
        let mut begun = self.begun.clone();
        // The sending end is dropped only when the program ends.
        if begun.wait_for(|begun| *begun == draining).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
