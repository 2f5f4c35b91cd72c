//! What is kept and for how long. Handshakes over sockets are in `tls/tests.rs`.

use super::*;

fn peer(port: u16, account: &str) -> Peer {
    let identity = Identity::parse(&format!("spiffe://weft.local/ns/shop/sa/{account}")).unwrap();
    Peer { address: ([127, 0, 0, 1], port).into(), identity }
}

#[test]
fn a_session_is_for_one_identity_at_one_address_once_and_until_its_end() {
    let mut kept = Cache::default();
    kept.put(peer(1, "a"), 10, "first", 0);
    kept.put(peer(1, "a"), 20, "second", 0);
    for other in [peer(1, "b"), peer(2, "a")] {
        assert_eq!(kept.take(&other, 0), None);
    }
    assert_eq!(kept.take(&peer(1, "a"), 5), Some("second"), "the newest");
    assert_eq!(kept.take(&peer(1, "a"), 10), None, "the first has ended");
    kept.put(peer(1, "a"), 11, "third", 11);
    assert_eq!(kept.0.len(), 1, "what has ended is not kept");
    kept.put(peer(1, "b"), 12, "fourth", 11);
    assert_eq!(kept.0.len(), 1, "and goes when there is something new");
}

#[test]
fn sessions_are_bounded_for_a_peer_and_for_all() {
    let mut kept = Cache::default();
    for number in 0..20 {
        kept.put(peer(1, "a"), 10, number, 0);
    }
    assert_eq!(kept.0.iter().map(|(.., number)| *number).collect::<Vec<_>>(), (12..20).collect::<Vec<_>>());
    for port in 2..2000 {
        kept.put(peer(port, "a"), 10, 0, 0);
    }
    assert_eq!((kept.0.len(), kept.take(&peer(1, "a"), 0)), (MAX, None));
}

#[test]
fn a_ticket_ends_with_our_certificate_or_after_an_hour() {
    for (not_after, life) in [(1_000_100, 100), (2_000_000, 3600)] {
        let tickets = Tickets::new(not_after).unwrap();
        let now = 1_000_000;
        assert_eq!(i64::from(tickets.life(now)), life);
        let ticket = tickets.encrypt_at(b"session", now).unwrap();
        assert_eq!(tickets.decrypt_at(&ticket, now + life - 1).as_deref(), Some(&b"session"[..]));
        assert_eq!(tickets.decrypt_at(&ticket, now + life), None);
    }
    let tickets = Tickets::new(1_000_000).unwrap();
    assert_eq!(tickets.encrypt_at(b"session", 1_000_000), None, "nothing is left");
    assert_eq!(Tickets::new(i64::MAX).unwrap().encrypt_at(&[0; MAX_CONTENT + 1], 0), None, "too large for a hello");
}

#[test]
fn only_whole_tickets_of_the_same_generation_open() {
    let (tickets, others) = (Tickets::new(i64::MAX).unwrap(), Tickets::new(i64::MAX).unwrap());
    let ticket = tickets.encrypt_at(b"session", 0).unwrap();
    assert_eq!(others.encrypt_at(b"session", 0).and_then(|ticket| tickets.decrypt_at(&ticket, 0)), None);
    assert_eq!(others.decrypt_at(&ticket, 0), None);
    for end in 0..ticket.len() {
        assert_eq!(tickets.decrypt_at(&ticket[..end], 0), None, "{end}");
    }
    for at in 0..ticket.len() {
        let mut changed = ticket.clone();
        changed[at] ^= 1;
        assert_eq!(tickets.decrypt_at(&changed, 0), None, "{at}");
    }
    // Sealed with the right keys, but no room for the end: never made, and still no panic.
    let short = tickets.seal.encrypt(b"1234567").unwrap();
    assert_eq!(tickets.decrypt_at(&short, 0), None);
}
