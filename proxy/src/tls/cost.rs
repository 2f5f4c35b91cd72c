//! What a handshake costs each side, in memory, without sockets: full and resumed, with and without post-quantum exchange.

use std::time::Duration;

use rustls::{ClientConnection, ServerConnection, crypto::aws_lc_rs::kx_group::X25519, pki_types::ServerName};
use tokio::time::Instant;

use super::{
    tests::{Authority, identity},
    *,
};

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
    let (config, offer) = client.client(ALPN_TCP, ([127, 0, 0, 1], 1).into(), &server.identity);
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
                offer.keep_until(verify::expect(&client, &server.identity).unwrap().not_after);
                judged.0 = true;
            }
        }
        cost.client += start.elapsed();
    }
    assert_eq!(judged, (true, true));
    verify::kind(&answering)
}

#[test]
#[ignore = "slow: a measurement, which wants release code and a quiet machine"]
fn a_resumed_handshake_costs_the_server_less_than_half() {
    const ROUNDS: u32 = 1000;
    let mesh = Authority::new();
    for hybrid in [true, false] {
        let mut provider = CryptoProvider::clone(&provider());
        if !hybrid {
            provider.kx_groups = vec![X25519];
        }
        let provider = Arc::new(provider);
        let name = if hybrid { "X25519MLKEM768" } else { "X25519" };
        let server = mesh.tls("product", provider.clone());
        let client = mesh.tls("order", provider);
        assert_eq!((client.identity.clone(), server.identity.clone()), (identity("order"), identity("product")));
        let mut sums = [Cost::default(), Cost::default()];
        for round in 0..ROUNDS {
            for (kind, sum) in ["full", "resumed"].into_iter().zip(&mut sums) {
                if kind == "full" {
                    client.sessions.clear();
                }
                let mut cost = Cost::default();
                assert_eq!(handshake(&client, &server, &mut cost), kind);
                if round >= ROUNDS / 10 {
                    *sum = Cost {
                        client: sum.client + cost.client,
                        server: sum.server + cost.server,
                        bytes: sum.bytes + cost.bytes,
                    };
                }
            }
        }
        let rounds = ROUNDS - ROUNDS / 10;
        for (kind, sum) in ["full", "resumed"].iter().zip(&sums) {
            let bytes = sum.bytes / usize::try_from(rounds).unwrap();
            println!(
                "{name} {kind}: server {:?}, client {:?}, {bytes} bytes",
                sum.server / rounds,
                sum.client / rounds
            );
        }
        let [full, resumed] = &sums;
        assert!(resumed.server * 2 < full.server, "{:?} of {:?}", resumed.server / rounds, full.server / rounds);
    }
}
