//! Step 1: everything comes up, and every service is healthy through the mesh.

use anyhow::{Context as _, Result, ensure};
use tokio::time::Instant;

use super::{Story, fresh_logs};
use crate::{
    exchange::{self, Field},
    plan::{CONTROL, MEMBERS},
    relay::Relay,
    shop::Shop,
};

impl Story {
    pub(super) async fn up(&mut self) -> Result<()> {
        self.stage.step("1. The shop starts");
        self.stage.say(
            "Thirteen workloads, each in a network namespace with a proxy beside it: a gateway; user (Node), product v1 and v2\n\
             (Python), order (Rust) and payment (Python, gRPC), two instances each; Redis and PostgreSQL. None of them\n\
             contains code for a mesh: they use plain HTTP, gRPC and database protocols, and plain names.",
        );
        // Order matters: the control plane first, then objects, so that proxies start with a complete configuration.
        fresh_logs()?;
        let start = Instant::now();
        self.shop = Some(Shop::make(self.places.clone()).await.context("create the network namespaces")?);
        let database = self.shop()?.make_database();
        database.await.context("create PostgreSQL's files")?;
        self.shop_mut()?.start_control_plane().await?;
        self.stage.say(&format!("The control plane runs in {}.", self.shop()?.host(CONTROL)?.namespace()));
        let result = self.shop()?.apply("", "the shop").await;
        let revision = *result.as_ref().unwrap_or(&0);
        let failed = result.is_err();
        self.stage.check(
            "up: the control plane accepts the shop's objects",
            result.map(|revision| format!("revision {revision}")),
        );
        ensure!(!failed, "the shop cannot start without its objects");
        self.shop_mut()?.name_services().await?;
        let proxies = self.shop_mut()?.start_proxies().await.map(|()| format!("{} proxies", MEMBERS.len()));
        let failed = proxies.is_err();
        self.stage.check("up: every proxy has enrolled and is ready", proxies);
        ensure!(!failed, "the mesh cannot work without its proxies");
        let applied = self.shop()?.until_applied(revision).await.map(|()| format!("revision {revision}"));
        self.stage.check("up: every proxy has applied the revision", applied);
        self.shop_mut()?.start_apps().await.context("start the applications")?;

        let (inside, gateway) = self.shop()?.gateway()?;
        let listener = self.listener.take().context("the relay runs already")?;
        self.relay = Some(Relay::start(listener, inside, gateway)?);
        for (service, result) in self.healthy().await {
            self.stage.check(&format!("up: {service} is healthy through the mesh, by IPv4 and IPv6"), result);
        }
        self.stage.say(&format!("That took {:.0} s.", start.elapsed().as_secs_f64()));
        Ok(())
    }

    /// Every service, asked as an application of another host asks it.
    async fn healthy(&self) -> Vec<(&'static str, Result<String>)> {
        let mut results = Vec::new();
        for service in ["user", "product", "order"] {
            results.push((service, self.http_healthy(service).await));
        }
        results.push(("payment", self.grpc_healthy().await));
        results.push(("user-db", self.talks("user-1", "user-db", 6379, b"PING\r\n", b"+PONG").await));
        // SSLRequest; N is PostgreSQL's no (protocol §55.2.10).
        let request = [0, 0, 0, 8, 4, 210, 22, 47];
        results.push(("order-db", self.talks("order-1", "order-db", 5432, &request, b"N").await));
        results
    }

    async fn http_healthy(&self, service: &str) -> Result<String> {
        let shop = self.shop()?;
        for v6 in [false, true] {
            let ask = async || {
                let answer = shop.call("order-1", service, v6, "/healthz").await?;
                ensure!(
                    answer.status.is_success(),
                    "/healthz answers {}: {}",
                    answer.status,
                    String::from_utf8_lossy(&answer.body)
                );
                Ok(())
            };
            crate::wait::until("it", crate::wait::DEADLINE, ask).await?;
        }
        Ok(shop.address(service, false, 80)?.ip().to_string())
    }

    async fn grpc_healthy(&self) -> Result<String> {
        let shop = self.shop()?;
        for v6 in [false, true] {
            let address = shop.address("payment", v6, 50051)?;
            let ask = async || {
                let stream = shop.inside("order-1")?.connect(address).await?;
                let wanted = exchange::message(&[(1, Field::Text("payment.Payment"))])?;
                let ended = exchange::grpc(stream, "payment:50051", "/grpc.health.v1.Health/Check", &wanted).await?;
                ensure!(ended.code == 0 && ended.reply[..] == [8, 1], "Check ends with {ended:?}");
                Ok(())
            };
            crate::wait::until("it", crate::wait::DEADLINE, ask).await?;
        }
        Ok(shop.address("payment", false, 50051)?.ip().to_string())
    }

    async fn talks(&self, from: &str, service: &str, port: u16, say: &[u8], expected: &[u8]) -> Result<String> {
        let shop = self.shop()?;
        for v6 in [false, true] {
            let address = shop.address(service, v6, port)?;
            let ask = async || {
                let reply = shop.talk(from, address, say).await?;
                ensure!(reply.starts_with(expected), "the reply is {:?}", String::from_utf8_lossy(&reply));
                Ok(())
            };
            crate::wait::until("it", crate::wait::DEADLINE, ask).await?;
        }
        Ok(shop.address(service, false, port)?.ip().to_string())
    }
}
