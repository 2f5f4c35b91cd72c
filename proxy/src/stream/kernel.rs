//! What the kernel keeps of a connection: bytes that we have not read, and bytes that it has not sent.

use std::{os::fd::AsFd, time::Duration};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{SockRef, TcpKeepalive};
use tokio::{net::TcpStream, time::sleep};

/// SO_RCVBUF towards a workload, in bytes: room for one segment of loopback (64 KiB) and not for two. With less, segments are
/// broken up.
const UNREAD: usize = 72 * 1024;

/// Bounds what the kernel keeps for us of what the workload has sent and we have not read; the rest stays with the workload.
/// By itself the kernel lets that grow to net.ipv4.tcp_rmem, many megabytes a connection, for the sake of long paths. The path
/// to the workload has no length: there it costs memory, what comes out of a long queue is no longer in the CPU's cache, and
/// where the workload's congestion control paces (BBR) each segment takes a timer, which none needs that waits for its window.
/// What cannot be bounded works as well.
pub(crate) fn bound_unread(workload: &TcpStream) {
    if let Err(error) = SockRef::from(workload).set_recv_buffer_size(UNREAD) {
        tracing::debug!(%error, "SO_RCVBUF");
    }
}

/// TCP keep-alive: idle time before the first probe, time between probes, and probes without an answer.
const IDLE: Duration = Duration::from_secs(30);
const PROBE: Duration = Duration::from_secs(10);
const PROBES: u32 = 3;
/// TCP_USER_TIMEOUT of the proxy's own exchanges: time without an acknowledgement of what was sent. It replaces the number of
/// probes, so that it is as long as they take.
const UNACKNOWLEDGED: Duration = Duration::from_secs(60);

/// Lets the kernel find out that the peer is gone. On a listener: for the connections that it accepts, which inherit it.
/// No TCP_USER_TIMEOUT: since 5.11 Linux would also end a peer that lives, acknowledges and takes no more bytes, as an application
/// in a debugger or behind a pager does, and keep-alive would wait as long. A peer that goes while bytes are on their way is found
/// by net.ipv4.tcp_retries2.
pub(crate) fn notice_gone(socket: &impl AsFd) {
    let keepalive = TcpKeepalive::new().with_time(IDLE).with_interval(PROBE).with_retries(PROBES);
    if let Err(error) = SockRef::from(socket).set_tcp_keepalive(&keepalive) {
        tracing::debug!(%error, "TCP keep-alive");
    }
}

/// The same for the proxy's own exchanges, whose peers have no reason to pause.
pub(crate) fn notice_stuck(socket: &impl AsFd) {
    notice_gone(socket);
    if let Err(error) = SockRef::from(socket).set_tcp_user_timeout(Some(UNACKNOWLEDGED)) {
        tracing::debug!(%error, "TCP user timeout");
    }
}

/// Pauses between two looks at whether the kernel has sent what was written: the first and the longest.
const LOOK: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(50));

/// Zero: closing the connection resets it.
pub(crate) fn linger(socket: Option<&TcpStream>, time: Option<Duration>) {
    if let Some(socket) = socket
        && let Err(error) = SockRef::from(socket).set_linger(time)
    {
        tracing::debug!(%error, "SO_LINGER");
    }
}

/// Ready when the kernel has sent what was written, or the connection is gone. The kernel discards the rest when a connection
/// is reset.
pub(super) async fn sent(socket: &TcpStream) {
    // Writable from now on means: nothing is left to be sent, and all but some last bytes were acknowledged.
    let options = SockRef::from(socket);
    if options.set_tcp_notsent_lowat(1).and_then(|()| options.set_send_buffer_size(1)).is_err() {
        return;
    }
    let (mut pause, longest) = LOOK;
    loop {
        let mut look = [PollFd::new(socket, PollFlags::OUT)];
        if !matches!(poll(&mut look, Some(&Timespec::default())), Ok(0)) {
            return;
        }
        sleep(pause).await;
        pause = longest.min(pause * 2);
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpSocket},
        time::timeout,
    };

    use super::*;

    /// (32, 27.4) A user timeout would end a reader that pauses.
    #[tokio::test]
    async fn a_listener_hands_its_options_to_its_connections() {
        for (set, unacknowledged) in [(notice_gone as fn(&TcpListener), None), (notice_stuck, Some(UNACKNOWLEDGED))] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            set(&listener);
            let _peer = TcpSocket::new_v4().unwrap().connect(listener.local_addr().unwrap()).await.unwrap();
            let (accepted, _) = listener.accept().await.unwrap();
            let options = SockRef::from(&accepted);
            assert!(options.keepalive().unwrap());
            assert_eq!(
                (options.tcp_keepalive_time().unwrap(), options.tcp_keepalive_interval().unwrap()),
                (IDLE, PROBE)
            );
            assert_eq!(options.tcp_user_timeout().unwrap().filter(|timeout| !timeout.is_zero()), unacknowledged);
        }
    }

    #[tokio::test]
    async fn what_is_not_read_stays_with_the_workload() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let workload = TcpSocket::new_v4().unwrap();
        workload.set_send_buffer_size(64 * 1024).unwrap();
        let mut workload = workload.connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut ours, _) = listener.accept().await.unwrap();
        bound_unread(&ours);
        // What is read fast makes the kernel keep more and more, where nothing bounds it.
        let (content, mut much) = (vec![b'x'; 64 << 20], vec![0; 64 << 20]);
        let (written, read) = tokio::join!(workload.write_all(&content), ours.read_exact(&mut much));
        assert!(written.is_ok() && read.is_ok());
        let mut sent = 0;
        // Written until the kernel takes no more, not even after a moment.
        while let Ok(written) = timeout(Duration::from_millis(200), workload.write(&[b'x'; 16 * 1024])).await {
            sent += written.unwrap();
        }
        assert!((UNREAD..4 * UNREAD).contains(&sent), "{sent} bytes");
        // Nothing is lost by it.
        workload.shutdown().await.unwrap();
        assert_eq!(ours.read_to_end(&mut Vec::new()).await.unwrap(), sent);
    }
}
