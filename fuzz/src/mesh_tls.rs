//! A mesh TLS session whose peer's records are changed, removed, repeated, reordered and cut anywhere on their way. The first byte
//! of the input is made of the flags below, the rest is a script (`mesh_tls/script.rs`).
//! Oracle: rustls' own connection with the same keys and the same bytes. Our session gives the same plaintext; it ends only where
//! rustls saw close_notify, and fails where rustls fails. What our session seals, rustls opens.
//! Spec: RFC 8446 §5, §6.1.

mod ends;
mod script;

use std::{
    cell::RefCell,
    io::{self, Read, Write},
    net::Ipv4Addr,
    rc::Rc,
    time::Duration,
};

use rustls::{ClientConnection, Connection, ServerConnection, pki_types::ServerName};
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime::Runtime,
};

use self::{
    ends::{Ends, begin},
    script::{Script, Step},
};
use weft_proxy::fuzzing::Mesh;

use crate::{cuts, must};

/// Our session is the client's.
pub const CLIENT: u8 = 1;
/// The bytes come in small pieces, not in large ones.
pub const SMALL: u8 = 2;
/// Our session sends more before it reads.
pub const TALKS: u8 = 4;

/// Our session leaves its records to rustls (`spec.tls.records: rustls`).
pub const RUSTLS: u8 = 8;

/// How long a run may wait for a session that makes no progress.
const WAIT: Duration = Duration::from_secs(10);

/// Runs the target.
pub fn run(bytes: &[u8]) {
    let Some((flags, rest)) = bytes.split_first() else { return };
    let script = Script::read(rest);
    let world = WORLD.with_borrow_mut(|world| world.get_or_insert_with(|| Rc::new(World::new())).clone());
    let oracle = world.oracle(*flags, &script);
    let ours = world.runtime.block_on(async { tokio::time::timeout(WAIT, world.ours(*flags, &oracle)).await });
    must(ours, "a session that comes to an end").judge(oracle, *flags);
}

thread_local! {
    static WORLD: RefCell<Option<Rc<World>>> = const { RefCell::new(None) };
}

/// What runs share.
struct World {
    ends: Ends,
    runtime: Runtime,
    listener: TcpListener,
}

/// What rustls made of the bytes.
struct Oracle {
    sender: Connection,
    /// What the receiver was sent in the handshake, and what it sent.
    handshake: [Vec<u8>; 2],
    /// What the receiver is sent then.
    changed: Vec<u8>,
    plain: Vec<u8>,
    end: End,
}

/// How a direction ended.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    /// By close_notify.
    Closed,
    /// By the end of the bytes.
    Broken,
    Failed,
    /// In the handshake already.
    Unshaken,
}

/// What our session made of the same.
struct Ours {
    plain: Vec<u8>,
    end: End,
    wrote: Vec<u8>,
    sealed: Vec<u8>,
}

impl World {
    fn new() -> Self {
        let runtime = must(tokio::runtime::Builder::new_current_thread().enable_all().build(), "a runtime");
        let listener = must(runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))), "a listener");
        Self { ends: Ends::new(), runtime, listener }
    }

    fn receiver(&self, flags: u8) -> &Mesh {
        let [weft, rustls] = &self.ends.receivers;
        if flags & RUSTLS == 0 { weft } else { rustls }
    }

    /// Lets rustls shake hands with rustls, send, and receive what came of it.
    fn oracle(&self, flags: u8, script: &Script<'_>) -> Oracle {
        let name = ServerName::IpAddress(Ipv4Addr::LOCALHOST.into());
        begin();
        let (mut sender, mut receiver): (Connection, Connection) = if flags & CLIENT == 0 {
            let sender = ClientConnection::new(self.ends.sender.client(), name);
            let receiver = ServerConnection::new(self.receiver(flags).server());
            (must(sender, "a client").into(), must(receiver, "a server").into())
        } else {
            let receiver = ClientConnection::new(self.receiver(flags).client(), name);
            let sender = ServerConnection::new(self.ends.sender.server());
            (must(sender, "a server").into(), must(receiver, "a client").into())
        };
        let [mut up, mut down] = [Vec::new(), Vec::new()];
        while sender.is_handshaking() || receiver.is_handshaking() {
            let before = up.len() + down.len();
            carry(&mut sender, &mut receiver, &mut up);
            // A server's ticket comes behind the handshake and is sealed with numbers that do not repeat.
            if sender.is_handshaking() {
                carry(&mut receiver, &mut sender, &mut down);
            }
            assert!(up.len() + down.len() > before, "a handshake that stands still");
        }
        sender.set_buffer_limit(None);
        for step in &script.steps {
            match *step {
                Step::Data(length) => must(sender.writer().write_all(&vec![b'd'; length]), "room to send"),
                Step::Key => must(sender.refresh_traffic_keys(), "a new key"),
                Step::Close => sender.send_close_notify(),
            }
        }
        let mut sent = Vec::new();
        while sender.wants_write() {
            must(sender.write_tls(&mut sent), "a vector to write to");
        }
        let changed = script.change(&sent);
        let (plain, end) = open(&mut receiver, &changed);
        Oracle { sender, handshake: [up, down], changed, plain, end }
    }

    /// Gives the same bytes to a session of ours over a socket.
    async fn ours(&self, flags: u8, oracle: &Oracle) -> Ours {
        let address = must(self.listener.local_addr(), "an address");
        let (peer, accepted) = tokio::join!(TcpStream::connect(address), self.listener.accept());
        let (mut peer, (tcp, _)) = (must(peer, "a connection"), must(accepted, "a connection"));
        begin();
        let session = async {
            // rustls reads what stands behind the handshake with it, and a fault there fails the handshake.
            let failed = |error: io::Error| {
                assert!(
                    flags & RUSTLS != 0 && error.kind() == io::ErrorKind::InvalidData,
                    "a handshake that fails: {error}"
                );
                (Vec::new(), End::Unshaken, Vec::new())
            };
            if flags & CLIENT == 0 {
                match self.receiver(flags).accept(tcp).await {
                    Ok(session) => talk(session, flags).await,
                    Err(error) => failed(error),
                }
            } else {
                match self.receiver(flags).connect(tcp).await {
                    Ok(session) => talk(session, flags).await,
                    Err(error) => failed(error),
                }
            }
        };
        let [_, small, large] = cuts::ways(&oracle.changed);
        let pieces = if flags & SMALL == 0 { large } else { small };
        let network = async {
            let (mut from, mut to) = peer.split();
            let write = async {
                for piece in [&oracle.handshake[0][..]].iter().chain(&pieces) {
                    // A session that has failed need not listen.
                    if to.write_all(piece).await.is_err() {
                        return;
                    }
                    tokio::task::yield_now().await;
                }
                let _gone = to.shutdown().await;
            };
            let mut sealed = Vec::new();
            let read = async {
                // A session that fails with bytes unread resets the connection, and its last bytes may be lost.
                let _reset = from.read_to_end(&mut sealed).await;
            };
            tokio::join!(write, read);
            sealed
        };
        let ((plain, end, wrote), sealed) = tokio::join!(session, network);
        // No port is kept waiting after the connection: runs are many.
        must(SockRef::from(&peer).set_linger(Some(Duration::ZERO)), "a socket");
        Ours { plain, end, wrote, sealed }
    }
}

/// Sends a few bytes, reads to the end, sends more and says goodbye.
async fn talk(mut session: impl AsyncRead + AsyncWrite + Unpin, flags: u8) -> (Vec<u8>, End, Vec<u8>) {
    let mut wrote = Vec::new();
    let mut send = async |session: &mut (dyn AsyncWrite + Unpin), length: usize| {
        let bytes = vec![b'o'; length];
        if session.write_all(&bytes).await.is_ok() && session.flush().await.is_ok() {
            wrote.extend(bytes);
        }
    };
    send(&mut session, if flags & TALKS == 0 { 1 } else { 20_000 }).await;
    let (mut plain, mut buffer) = (Vec::new(), [0; 3000]);
    let end = loop {
        match session.read(&mut buffer).await {
            Ok(0) => break End::Closed,
            Ok(count) => plain.extend_from_slice(buffer.get(..count).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break End::Broken,
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
                break End::Failed;
            }
        }
    };
    if end == End::Closed {
        send(&mut session, 100).await;
        must(session.shutdown().await, "a farewell");
    }
    (plain, end, wrote)
}

impl Ours {
    fn judge(self, mut oracle: Oracle, flags: u8) {
        if self.end == End::Unshaken {
            assert_eq!(oracle.end, End::Failed, "a handshake failed without a fault behind it");
            return;
        }
        let same_heads = flags & RUSTLS != 0 || script::has_good_heads(&oracle.changed);
        if same_heads || self.end == End::Closed {
            assert_eq!(self.end, oracle.end, "our session ended otherwise than rustls' connection");
            assert!(self.plain == oracle.plain, "{} bytes, rustls has {}", self.plain.len(), oracle.plain.len());
        } else {
            assert!(oracle.plain.starts_with(&self.plain), "our session gave what rustls did not");
        }
        // What ours has sealed: its handshake is that of rustls' receiver, and the sender has seen that.
        let [_, handshake] = &oracle.handshake;
        let sealed = self.sealed.strip_prefix(&handshake[..]);
        let whole = self.end == End::Closed;
        let Some(sealed) = sealed else {
            assert!(!whole, "the handshakes differ");
            return;
        };
        let (plain, end) = open(&mut oracle.sender, sealed);
        assert!(self.wrote.starts_with(&plain), "rustls opens what ours has not sealed");
        if whole {
            assert_eq!(
                (plain.len(), end),
                (self.wrote.len(), End::Closed),
                "rustls does not open all that ours has sealed"
            );
        }
    }
}

/// Carries all that one end has to say to the other, and notes it.
fn carry(from: &mut Connection, to: &mut Connection, seen: &mut Vec<u8>) {
    let mut bytes = Vec::new();
    while from.wants_write() {
        must(from.write_tls(&mut bytes), "a vector to write to");
    }
    let (plain, _) = open(to, &bytes);
    assert!(plain.is_empty(), "data in a handshake");
    seen.extend_from_slice(&bytes);
}

/// Lets rustls open what came.
fn open(receiver: &mut Connection, mut bytes: &[u8]) -> (Vec<u8>, End) {
    let (mut plain, mut end) = (Vec::new(), End::Broken);
    while !bytes.is_empty() && end == End::Broken {
        let read = must(receiver.read_tls(&mut bytes), "room to read");
        end = match receiver.process_new_packets() {
            Ok(state) if state.peer_has_closed() => End::Closed,
            Ok(_) if read == 0 => break,
            Ok(_) => End::Broken,
            Err(_) => End::Failed,
        };
        // Would block, or the end, when all is read.
        let _end = receiver.reader().read_to_end(&mut plain);
    }
    (plain, end)
}
