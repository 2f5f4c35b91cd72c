//! The worker threads: each a runtime of one thread that serves the listeners it is given.

use std::{collections::HashMap, io, sync::Arc, thread};

use tokio::{
    net::TcpListener,
    runtime,
    sync::{mpsc, oneshot},
    task::AbortHandle,
};

use super::ports::Opened;
use crate::{
    control::Command,
    listener::{socket::Role, spread::Handed},
    serve::{self, serve},
    worker::Worker,
};

/// Most commands that wait for a worker.
const COMMANDS: usize = 256;

/// The worker threads.
#[derive(Debug)]
pub(super) struct Threads {
    pub(super) commands: Vec<mpsc::Sender<Command>>,
    stop: Vec<oneshot::Sender<()>>,
    ended: Vec<oneshot::Receiver<()>>,
}

impl Threads {
    /// Starts one thread for each worker. To be called on the control thread's runtime.
    pub(super) fn start(workers: &[Arc<Worker>], handed: Vec<mpsc::Receiver<Handed>>) -> io::Result<Self> {
        let mut threads = Self { commands: Vec::new(), stop: Vec::new(), ended: Vec::new() };
        for (worker, handed) in workers.iter().zip(handed) {
            // Its clock ticks on this thread: a worker without timers sleeps without one, and wakes up cheaper.
            worker.start();
            let (commands, received) = mpsc::channel(COMMANDS);
            let (stop, stopped) = oneshot::channel();
            let (end, ended) = oneshot::channel();
            let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
            let worker = worker.clone();
            let name = format!("weft-worker-{}", worker.index);
            thread::Builder::new().name(name).spawn(move || {
                runtime.block_on(work(worker, received, handed, stopped));
                // Every connection ends here; nothing waits for what blocks.
                runtime.shutdown_background();
                drop(end);
            })?;
            threads.commands.push(commands);
            threads.stop.push(stop);
            threads.ended.push(ended);
        }
        Ok(threads)
    }

    /// Gives each worker its sockets.
    pub(super) async fn listen(&self, opened: Vec<Opened>) {
        for Opened { role, sockets } in opened {
            for (commands, socket) in self.commands.iter().zip(sockets) {
                tell(commands, Command::Listen(0, socket, role)).await;
            }
        }
    }

    /// Ends them, and every connection with them.
    pub(super) async fn stop(self) {
        drop(self.stop);
        for ended in self.ended {
            // An error is the end: the other side was dropped.
            if ended.await.is_ok() {
                tracing::debug!("a worker ended");
            }
        }
    }
}

/// Sends a command to a worker, unless its thread has ended.
pub(super) async fn tell(commands: &mpsc::Sender<Command>, command: Command) {
    if commands.send(command).await.is_err() {
        tracing::error!("a worker has ended");
    }
}

async fn work(
    worker: Arc<Worker>,
    mut commands: mpsc::Receiver<Command>,
    mut handed: mpsc::Receiver<Handed>,
    mut stopped: oneshot::Receiver<()>,
) {
    let mut ports: HashMap<u16, AbortHandle> = HashMap::new();
    loop {
        let command = tokio::select! {
            Some(command) = commands.recv() => command,
            Some(connection) = handed.recv() => {
                serve::handed(&worker, connection);
                continue;
            }
            _ = &mut stopped => return,
        };
        match command {
            Command::Listen(number, socket, role) => match TcpListener::from_std(socket) {
                Ok(listener) => {
                    let task = tokio::spawn(serve(worker.clone(), listener, role));
                    if matches!(role, Role::Gateway(_)) {
                        ports.insert(number, task.abort_handle());
                    }
                }
                Err(error) => tracing::error!(error = &error as &dyn std::error::Error, "a socket cannot be served"),
            },
            Command::Close(number) => {
                if let Some(task) = ports.remove(&number) {
                    task.abort();
                }
            }
            Command::Ping(answer) => {
                if answer.send(()).is_err() {
                    tracing::debug!("a ping was answered too late");
                }
            }
        }
    }
}
