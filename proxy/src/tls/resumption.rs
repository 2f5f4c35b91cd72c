//! Resumption between proxies: a later handshake with the same peer without certificates and signatures (RFC 8446 §2.2),
//! always with a fresh key exchange (psk_dhe_ke) and never with early data.
//! Shape: a client keeps [`Sessions`], a server gives out [`Tickets`]. Both are made with a [`super::MeshTls`] and die with
//! it: every certificate, renewed or with other roots, begins a generation in which nothing of the one before resumes.
//! The server keeps nothing per peer; the client's certificate travels in the ticket.
//! Invariant: a session is offered only to the identity and the address it was made with. rustls calls no verifier when it
//! resumes, so `verify::peer` checks the peer's certificates again after every handshake.
//!
//! # Defaults
//! One ticket a handshake, used once. It ends after an hour, or with the first certificate of either side if that is
//! sooner. Its keys change every six hours. Cache at a client: 1,024, of them 8 per peer. Largest ticket 8 KiB.

use std::{
    collections::VecDeque,
    fmt,
    net::SocketAddr,
    sync::{
        Arc, Weak,
        atomic::{AtomicI64, Ordering::Relaxed},
    },
};

use parking_lot::Mutex;
use rustls::{
    Error, NamedGroup,
    client::{ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue},
    crypto::aws_lc_rs::Ticketer,
    pki_types::ServerName,
    server::ProducesTickets,
};
use weft_core::identity::Identity;

use super::svid::unix_now;

/// Longest life of a ticket, in seconds.
const LIFETIME: u32 = 3600;
/// Most sessions that a client keeps.
const MAX: usize = 1024;
/// Most sessions that a client keeps for one peer.
const MAX_PER_PEER: usize = 8;
/// Largest content of a ticket, in bytes. It comes back in a ClientHello, which must stay below `hello::MAX_HELLO`.
const MAX_CONTENT: usize = 8 * 1024;
/// Tickets sent with each handshake. One is used up by the next handshake, which brings another.
pub(super) const TICKETS: usize = 1;

/// The sessions of a client, for all its workers. Locked once before and once after a handshake, never by a request.
pub(crate) struct Sessions {
    kept: Mutex<Cache<Tls13ClientSessionValue>>,
    /// End of our own chain, Unix seconds.
    not_after: i64,
}

/// The peer of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Peer {
    address: SocketAddr,
    identity: Identity,
}

/// Sessions, the oldest first.
struct Cache<T>(VecDeque<(Peer, i64, T)>);

/// The sessions as one handshake sees them: those with the peer that is expected.
#[derive(Debug)]
pub(crate) struct Offer {
    /// Weak: a connection that outlives its generation does not keep the others' sessions.
    sessions: Weak<Sessions>,
    peer: Peer,
    /// End of use of the tickets from this connection, Unix seconds; 0 until the peer's identity was checked.
    until: AtomicI64,
}

impl Sessions {
    /// None yet. `not_after`: end of our own chain, Unix seconds.
    pub(super) fn new(not_after: i64) -> Arc<Self> {
        Arc::new(Self { kept: Mutex::default(), not_after })
    }

    /// Those with one peer.
    pub(super) fn with(self: &Arc<Self>, address: SocketAddr, identity: &Identity) -> Arc<Offer> {
        let peer = Peer { address, identity: identity.clone() };
        Arc::new(Offer { sessions: Arc::downgrade(self), peer, until: AtomicI64::new(0) })
    }

    /// Forgets all.
    #[cfg(test)]
    pub(super) fn clear(&self) {
        self.kept.lock().0.clear();
    }
}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sessions({})", self.kept.lock().0.len())
    }
}

impl Offer {
    /// The peer has the expected identity, and its certificates are valid until then: its tickets are kept from now on.
    pub(crate) fn keep_until(&self, until: i64) {
        self.until.store(until, Relaxed);
    }
}

impl ClientSessionStore for Offer {
    fn insert_tls13_ticket(&self, _name: ServerName<'static>, value: Tls13ClientSessionValue) {
        let now = unix_now();
        let until = self.until.load(Relaxed).min(now.saturating_add(LIFETIME.into()));
        if let Some(sessions) = self.sessions.upgrade() {
            let until = until.min(sessions.not_after);
            sessions.kept.lock().put(self.peer.clone(), until, value, now);
        }
    }

    fn take_tls13_ticket(&self, _name: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.sessions.upgrade()?.kept.lock().take(&self.peer, unix_now())
    }

    // All proxies of the mesh prefer the same group, which is always offered.
    fn set_kx_hint(&self, _name: ServerName<'static>, _group: NamedGroup) {}

    fn kx_hint(&self, _name: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }

    // TLS 1.2 is not spoken.
    fn set_tls12_session(&self, _name: ServerName<'static>, _value: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _name: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _name: &ServerName<'static>) {}
}

impl<T> Default for Cache<T> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<T> Cache<T> {
    /// Keeps a session that may be used until then; the oldest goes where a bound is reached. Cost: O(sessions kept).
    fn put(&mut self, peer: Peer, until: i64, value: T, now: i64) {
        if until <= now {
            return;
        }
        self.0.retain(|(_, until, _)| now < *until);
        let (mut with_peer, mut oldest) = (0, None);
        for (index, (known, ..)) in self.0.iter().enumerate() {
            if *known == peer {
                with_peer += 1;
                oldest.get_or_insert(index);
            }
        }
        if let Some(oldest) = oldest.filter(|_| with_peer >= MAX_PER_PEER) {
            self.0.remove(oldest);
        } else if self.0.len() >= MAX {
            self.0.pop_front();
        }
        self.0.push_back((peer, until, value));
    }

    /// Takes the newest session with a peer out, if it may still be used.
    fn take(&mut self, peer: &Peer, now: i64) -> Option<T> {
        let index = self.0.iter().rposition(|(known, until, _)| known == peer && now < *until)?;
        self.0.remove(index).map(|(.., value)| value)
    }
}

/// Makes and opens a server's tickets: sealed by rustls' ticketer, with their end inside.
#[derive(Debug)]
pub(super) struct Tickets {
    seal: Arc<dyn ProducesTickets>,
    /// End of our own chain, Unix seconds.
    not_after: i64,
}

impl Tickets {
    /// With keys of its own.
    /// Errors: no randomness.
    pub(super) fn new(not_after: i64) -> Result<Self, Error> {
        Ok(Self { seal: Ticketer::new()?, not_after })
    }

    fn life(&self, now: i64) -> u32 {
        u32::try_from(self.not_after.saturating_sub(now).max(0)).unwrap_or(u32::MAX).min(LIFETIME)
    }

    fn encrypt_at(&self, plain: &[u8], now: i64) -> Option<Vec<u8>> {
        let life = self.life(now);
        if life == 0 || plain.len() > MAX_CONTENT {
            return None;
        }
        let until = now.saturating_add(life.into());
        self.seal.encrypt(&[&until.to_be_bytes(), plain].concat())
    }

    fn decrypt_at(&self, cipher: &[u8], now: i64) -> Option<Vec<u8>> {
        let mut plain = self.seal.decrypt(cipher)?;
        let until = i64::from_be_bytes(*plain.first_chunk()?);
        (now < until).then(|| plain.split_off(size_of::<i64>()))
    }
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        self.life(unix_now())
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.encrypt_at(plain, unix_now())
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        self.decrypt_at(cipher, unix_now())
    }
}

#[cfg(test)]
mod tests;
