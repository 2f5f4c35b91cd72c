//! Step 3: what is on the wire, and what the application sees.

use std::{net::IpAddr, time::Duration};

use anyhow::{Result, bail, ensure};
use http::Method;

use super::Story;
use crate::{
    capture::{Capture, Packets},
    wait::until,
};

/// Whose loopback is watched.
const HOST: &str = "product-v1-1";
/// Texts that occur in plaintext HTTP and not in TLS.
const PLAIN: [&[u8]; 4] = [b"HTTP/1.1", b"GET /", b"POST /", b"\"price_cents\""];

impl Story {
    pub(super) async fn wire(&mut self) {
        self.stage.step("3. Encryption on the wire");
        self.stage.say(
            "tcpdump captures on the bridge that connects all workloads, and on the loopback of one product instance. A request\n\
             carries a marker. The marker must not be readable between the hosts, and must be readable at the application.",
        );
        match self.captured().await {
            Ok((marker, wire, loopback, addresses)) => {
                self.stage.check(
                    "wire: between hosts neither the marker nor other plaintext is readable",
                    unreadable(&marker, &wire),
                );
                let records = wire.application_data(&addresses, 8080);
                let encrypted = || {
                    ensure!(records > 0, "no TLS application data to or from {addresses:?} on port 8080");
                    Ok(format!("{records} of {} packets start a TLS record of the hop to {HOST}", wire.all().len()))
                };
                self.stage.check("wire: the hop is TLS application data", encrypted());
                let seen = || {
                    ensure!(loopback.contain(marker.as_bytes()), "{marker} is not in the capture");
                    let line = loopback.all().iter().find(|packet| packet.contains(marker.as_bytes()));
                    let line = line.map(|packet| {
                        String::from_utf8_lossy(&packet.payload).lines().next().unwrap_or_default().to_owned()
                    });
                    Ok(line.unwrap_or_default())
                };
                self.stage.check("wire: at the application the marker is plaintext", seen());
            }
            Err(error) => self.stage.check("wire: capture", Err(error)),
        }
    }

    async fn captured(&mut self) -> Result<(String, Packets, Packets, [IpAddr; 2])> {
        let marker = format!("weft-marker-{:016x}", fastrand::u64(..));
        let edge = self.edge()?;
        let shop = self.shop()?;
        let (host, other) = (shop.host(HOST)?, shop.host("product-v1-2")?);
        let wire = Capture::start(shop.wire().namespace(), "wire0", shop.state(), shop.logs()).await?;
        let loopback = Capture::start(&host.namespace(), "lo", shop.state(), shop.logs()).await?;
        // There is no such product: the 404 response contains the marker. Either instance may receive the request.
        let asked = until("the marker at the application", Duration::from_secs(15), async || {
            let answer = Self::customer(edge, Method::GET, &format!("/products/{marker}"), None).await?;
            let said = String::from_utf8_lossy(&answer.body).into_owned();
            ensure!(answer.status == 404 && said.contains(&marker), "the edge returns {}: {said}", answer.status);
            if loopback.so_far()?.contain(marker.as_bytes()) { Ok(()) } else { bail!("not on the loopback") }
        })
        .await;
        // The captures are stopped in any case; a failure of the request is reported first.
        let inside = shop.inside(HOST)?;
        let loopback = loopback.stop(inside, host.ipv4().into()).await?;
        let wire = wire.stop(inside, other.ipv4().into()).await?;
        asked?;
        Ok((marker, wire, loopback, host.addresses()))
    }
}

fn unreadable(marker: &str, wire: &Packets) -> Result<String> {
    ensure!(!wire.contain(marker.as_bytes()), "{marker} is readable on the wire");
    let mut bytes = 0;
    for packet in wire.all() {
        bytes += packet.payload.len();
        if let Some(text) = PLAIN.iter().find(|text| packet.contains(text)) {
            let (from, to) = (packet.source, packet.destination);
            bail!("{:?} is readable from {from} to {to}", String::from_utf8_lossy(text));
        }
    }
    ensure!(bytes > 0, "nothing was captured");
    Ok(format!("{} packets, {bytes} bytes", wire.all().len()))
}
