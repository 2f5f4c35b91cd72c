//! Measurements without a load through a pair: handshakes, memory, and scenarios with a control plane.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::time::{Instant, sleep};

use super::traffic::mib;
use super::{Bench, Round};
use crate::handshakes;
use crate::measure::{ForeignTime, median, resident_bytes};
use crate::memory::{self, SETTLE};
use crate::mesh::Mesh;
use crate::pairs::{Contestant, Pair, Variant};
use crate::scenario::Scenario;

/// Starts of the proxy in one round.
const STARTS: usize = 5;
/// All but this share of the connections must have resumed for the figure to be one of resumption.
const FULL_AT_MOST: f64 = 0.01;
/// Peers with `--quick`.
const FEW_PEERS: usize = 1000;

impl Bench<'_> {
    /// Connections to the inbound proxy, full and then resumed.
    pub(super) async fn handshakes(&self, pair: &Pair) -> Result<Round> {
        let [outbound, inbound] = pair.pids();
        let alpn = pair.hop().map_or("h2", |hop| hop.alpn);
        let time = Duration::from_secs(self.settings.seconds);
        let ours = [i32::try_from(std::process::id())?, self.server.pid(), outbound, inbound];
        let (start, foreign) = (Instant::now(), ForeignTime::read(&ours)?);
        let certs = &self.place.certs;
        let full = handshakes::measure(pair.middle(), inbound, certs, alpn, false, time).await.context("full")?;
        let resumed = handshakes::measure(pair.middle(), inbound, certs, alpn, true, time).await.context("resumed")?;
        let foreign = ForeignTime::read(&ours)?.since(foreign).as_secs_f64() / (2.0 * start.elapsed().as_secs_f64());
        let mut round = Round { foreign, ..Round::default() };
        round.extra.insert("handshakes_per_cpu_second", full.per_cpu_second);
        round.extra.insert("handshakes_per_second", full.rate);
        round.extra.insert("resumed_share", resumed.resumed);
        if resumed.resumed >= 1.0 - FULL_AT_MOST {
            round.extra.insert("resumed_handshakes_per_cpu_second", resumed.per_cpu_second);
        }
        Ok(round)
    }

    /// Memory of a pair that has just been started and answered one request, or with idle connections.
    pub(super) async fn memory(&self, scenario: Scenario, pair: &Pair) -> Result<Round> {
        let [outbound, inbound] = pair.pids();
        let read = || anyhow::Ok([mib(resident_bytes(outbound)?), mib(resident_bytes(inbound)?)]);
        sleep(SETTLE).await;
        let mut round = Round { rss_mib: Some(read()?), ..Round::default() };
        match scenario {
            Scenario::MemoryClients => {
                let held = memory::clients(pair.entry(), scenario.connections() as usize).await?;
                sleep(SETTLE).await;
                round.rss_mib = Some(read()?);
                round.extra.insert("clients", held.len() as f64);
            }
            Scenario::MemoryPeers => {
                let hop = pair.hop().context("nothing is known of how the inbound proxy is spoken to")?;
                let count = if self.settings.quick { FEW_PEERS } else { scenario.connections() as usize };
                let [_, before] = read()?;
                let held = memory::peers(pair.middle(), hop, &self.place.certs, count).await?;
                sleep(SETTLE).await;
                let [outbound, after] = read()?;
                round.rss_mib = Some([outbound, after]);
                round.extra.insert("peers", held.len() as f64);
                round.extra.insert("kib_per_peer", (after - before) * 1024.0 / held.len() as f64);
            }
            _ => {}
        }
        Ok(round)
    }

    /// What needs a control plane.
    pub(super) async fn mesh(&self, scenario: Scenario, contestant: Contestant, mesh: &mut Mesh) -> Result<Round> {
        match (scenario, contestant.variant) {
            (Scenario::Services, _) => {
                sleep(SETTLE).await;
                let [proxy, plane, ..] = mesh.pids()?[..] else { bail!("no control plane") };
                let mut round = Round::default();
                round.extra.insert("proxy_mib", mib(resident_bytes(proxy)?));
                round.extra.insert("control_plane_mib", mib(resident_bytes(plane)?));
                Ok(round)
            }
            (Scenario::Start, _) => {
                let mut times = Vec::new();
                for _ in 0..STARTS {
                    times.push(mesh.start_proxy(&self.place).await?.as_secs_f64() * 1e3);
                }
                let mut round = Round::default();
                round.extra.insert("start_ms", median(&times));
                round.extra.insert("binary_mib", mib(std::fs::metadata(&self.place.weft)?.len()));
                Ok(round)
            }
            (Scenario::Churn, Variant::ChangesPerSecond(rate) | Variant::ChangesBeside(rate)) => {
                self.churn(rate, mesh).await
            }
            (scenario, _) => bail!("{scenario} needs no control plane"),
        }
    }
}
