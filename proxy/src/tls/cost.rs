//! What a handshake costs each side, in memory, without sockets: full and resumed, with and without post-quantum exchange.

use std::time::Duration;

use rustls::{
    ClientConnection, ServerConnection,
    crypto::aws_lc_rs::kx_group::X25519,
    pki_types::{ServerName, UnixTime},
    server::{ProducesTickets, ServerSessionMemoryCache},
};
use tokio::time::Instant;

use super::{tests::Authority, verify::ChainVerifier, *};

/// Time that each side computed, and bytes on the wire in both directions.
#[derive(Default)]
struct Cost {
    client: Duration,
    server: Duration,
    bytes: usize,
}

/// One handshake and the ticket after it, up to where both proxies know whom they talk to.
fn handshake(client: &MeshTls, server: &MeshTls, cost: &mut Cost) -> &'static str {
    let start = Instant::now();
    let (config, offer) = client.client(&[ALPN_TCP], ([127, 0, 0, 1], 1).into(), &server.identity);
    let name = ServerName::IpAddress(std::net::Ipv4Addr::LOCALHOST.into());
    let mut client = ClientConnection::new(config, name).unwrap();
    cost.client += start.elapsed();
    let mut answering = ServerConnection::new(server.server.clone()).unwrap();
    let mut judged = (false, false);
    while client.wants_write() || answering.wants_write() {
        let mut flight = Vec::new();
        let start = Instant::now();
        while client.wants_write() {
            client.write_tls(&mut flight).unwrap();
        }
        cost.client += start.elapsed();
        cost.bytes += flight.len();
        let start = Instant::now();
        while answering.read_tls(&mut flight.as_slice()).unwrap() > 0 {
            answering.process_new_packets().unwrap();
            flight.clear();
        }
        if !judged.1 && !answering.is_handshaking() {
            verify::peer(&answering).unwrap();
            judged.1 = true;
        }
        let mut flight = Vec::new();
        while answering.wants_write() {
            answering.write_tls(&mut flight).unwrap();
        }
        cost.server += start.elapsed();
        cost.bytes += flight.len();
        let start = Instant::now();
        while client.read_tls(&mut flight.as_slice()).unwrap() > 0 {
            client.process_new_packets().unwrap();
            flight.clear();
            if !judged.0 && !client.is_handshaking() {
                offer.keep_until(verify::expect(verify::peer(&client), &server.identity).unwrap().not_after);
                judged.0 = true;
            }
        }
        cost.client += start.elapsed();
    }
    assert_eq!(judged, (true, true));
    verify::kind(&answering)
}

/// No tickets: the server keeps the sessions itself.
#[derive(Debug)]
struct Kept;

impl ProducesTickets for Kept {
    fn enabled(&self) -> bool {
        false
    }
    fn lifetime(&self) -> u32 {
        0
    }
    fn encrypt(&self, _plain: &[u8]) -> Option<Vec<u8>> {
        None
    }
    fn decrypt(&self, _cipher: &[u8]) -> Option<Vec<u8>> {
        None
    }
}

const ROUNDS: u32 = 2000;

/// Prints what full and resumed handshakes cost, and returns what they cost the server.
fn compare(name: &str, client: &MeshTls, server: &MeshTls) -> [Duration; 2] {
    let mut sums = [Cost::default(), Cost::default()];
    for round in 0..ROUNDS + ROUNDS / 10 {
        for (kind, sum) in ["full", "resumed"].into_iter().zip(&mut sums) {
            if kind == "full" {
                client.sessions.clear();
            }
            let mut cost = Cost::default();
            assert_eq!(handshake(client, server, &mut cost), kind);
            if round >= ROUNDS / 10 {
                sum.client += cost.client;
                sum.server += cost.server;
                sum.bytes += cost.bytes;
            }
        }
    }
    for (kind, Cost { client, server, bytes }) in ["full", "resumed"].iter().zip(&sums) {
        let bytes = bytes / usize::try_from(ROUNDS).unwrap();
        println!("{name} {kind}: server {:?}, client {:?}, {bytes} bytes", *server / ROUNDS, *client / ROUNDS);
    }
    sums.map(|sum| sum.server / ROUNDS)
}

#[test]
#[ignore = "slow: a measurement, which wants release code and a quiet machine"]
fn a_resumed_handshake_costs_the_server_half_of_a_full_one_at_most() {
    // Without optimisation it is not the cryptography that counts.
    let times = if cfg!(debug_assertions) { 1 } else { 2 };
    let mesh = Authority::new();
    for hybrid in [true, false] {
        let mut provider = CryptoProvider::clone(&provider());
        if !hybrid {
            provider.kx_groups = vec![X25519];
        }
        let provider = Arc::new(provider);
        let name = if hybrid { "X25519MLKEM768" } else { "X25519" };
        let client = mesh.tls("order", TlsRecords::Weft, provider.clone());
        let mut server = mesh.tls("product", TlsRecords::Weft, provider);
        let [full, resumed] = compare(name, &client, &server);
        assert!(resumed * times < full, "{name}: {resumed:?} of {full:?}");
        let mut config = ServerConfig::clone(&server.server);
        config.ticketer = Arc::new(Kept);
        config.session_storage = ServerSessionMemoryCache::new(1000);
        server.server = Arc::new(config);
        client.sessions.clear();
        compare(&format!("{name}, sessions kept at the server,"), &client, &server);
    }
}

#[test]
#[ignore = "slow: a measurement, which wants release code and a quiet machine"]
fn parts_of_a_handshake() {
    let mesh = Authority::new();
    let tls = mesh.tls("order", TlsRecords::Weft, provider());
    let chain = RootChain::new(Arc::new(tls.svid.roots().unwrap()), &provider());
    let leaf = &tls.svid.chain[0];
    let (config, _) = tls.client(&[ALPN_HTTP], ([127, 0, 0, 1], 1).into(), &tls.identity);
    let name = || ServerName::IpAddress(std::net::Ipv4Addr::LOCALHOST.into());
    let mut first = Vec::new();
    ClientConnection::new(config, name()).unwrap().write_tls(&mut first).unwrap();
    let tickets = Tickets::new(i64::MAX).unwrap();
    let sealed = tickets.encrypt(&[7; 600]).unwrap();
    let time = |what: &str, run: &dyn Fn()| {
        let start = Instant::now();
        (0..ROUNDS).for_each(|_| run());
        println!("{what}: {:?}", start.elapsed() / ROUNDS);
    };
    time("verify a chain of one", &|| chain.verify_chain(leaf, &[], UnixTime::now()).unwrap());
    time("read identity and dates", &|| drop(svid::leaf(leaf).unwrap()));
    time("tell a ClientHello", &|| assert_eq!(hello::sniff(&first), hello::Hello::Mesh));
    time("a client's configuration for one handshake", &|| {
        drop(tls.client(&[ALPN_HTTP], ([127, 0, 0, 1], 1).into(), &tls.identity));
    });
    time("seal a ticket", &|| drop(tickets.encrypt(&[7; 600]).unwrap()));
    time("open a ticket", &|| drop(tickets.decrypt(&sealed).unwrap()));
    println!("ClientConfig: {} bytes", size_of::<ClientConfig>());
}
