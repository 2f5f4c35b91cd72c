//! Step 7: the control plane is killed with -9; traffic goes on, and nothing is lost when it is back.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use serde_json::Value;

use super::Story;
use weft::{
    client::Client,
    command::{get, history},
    kinds::{Kind, items, plain},
};

use crate::load::Mark;

/// Without a control plane.
const SECONDS: usize = 5;

/// The data of the control plane, for comparison.
#[derive(Debug, PartialEq)]
struct Known {
    revisions: BTreeMap<String, Value>,
    objects: BTreeMap<String, Value>,
    workloads: BTreeMap<String, Value>,
}

impl Story {
    pub(super) async fn outage(&mut self) {
        self.stage.step("7. The control plane crashes");
        self.stage.say(
            "The control plane is killed (kill -9). The proxies keep their configuration, identities and endpoints in memory, so no\n\
             request fails. Then the control plane restarts with its data.",
        );
        let before = self.known().await;
        let mark = match self.mark() {
            Ok(mark) => mark,
            Err(error) => return self.stage.check("outage: load", Err(error)),
        };
        let without = self.without(mark).await;
        self.stage.check(&format!("outage: no request fails in {SECONDS} s without a control plane"), without);
        let back = self.back_again(before).await;
        self.stage
            .check("outage: after the restart, revisions, objects, addresses and registrations are unchanged", back);
        let proxies = self.reconnected().await;
        self.stage.check("outage: every proxy has reconnected with the newest revision", proxies);
        let after = match self.mark() {
            Ok(after) => self.quiet(after, 2).await.and_then(|_| self.load()?.since(mark).none_failed()),
            Err(error) => Err(error),
        };
        self.stage.check("outage: no request failed during the restart", after.map(|()| String::new()));
    }

    async fn without(&mut self, mark: Mark) -> Result<String> {
        self.shop_mut()?.control_plane()?.kill().await?;
        let answer = history::newest(&self.shop()?.client).await;
        ensure!(answer.is_err(), "the control plane still responds");
        let since = self.quiet(mark, SECONDS).await?;
        Ok(format!("{} requests", since.ok))
    }

    async fn back_again(&mut self, before: Result<Known>) -> Result<String> {
        self.shop_mut()?.start_control_plane().await?;
        let (before, after) = (before?, self.known().await?);
        for (what, before, after) in [
            ("revision", &before.revisions, &after.revisions),
            ("object", &before.objects, &after.objects),
            ("workload", &before.workloads, &after.workloads),
        ] {
            for (name, value) in before {
                let now = after.get(name);
                ensure!(now == Some(value), "{what} {name}: was {value}, is {}", now.unwrap_or(&Value::Null));
            }
            let more: Vec<&String> = after.keys().filter(|name| !before.contains_key(*name)).collect();
            ensure!(more.is_empty(), "new {what}s: {more:?}");
        }
        let count = |map: &BTreeMap<String, Value>, what: &str| format!("{} {what}", map.len());
        Ok([
            count(&after.revisions, "revisions"),
            count(&after.objects, "objects"),
            count(&after.workloads, "registered workloads"),
        ]
        .join(", "))
    }

    async fn reconnected(&self) -> Result<String> {
        let shop = self.shop()?;
        let newest = history::newest(&shop.client).await?;
        shop.until_applied(newest).await?;
        Ok(format!("revision {newest}"))
    }

    async fn known(&self) -> Result<Known> {
        let client = &self.shop()?.client;
        let mut objects = BTreeMap::new();
        // Workloads are listed with those that are registered, which are compared by themselves.
        for kind in Kind::ALL.iter().copied().filter(|kind| *kind != Kind::Workload) {
            let list = get::all(client, kind, None, None).await?.json;
            objects.extend(named(&list, kind.as_str()));
        }
        let mut revisions = BTreeMap::new();
        for revision in items(&history::revisions(client, 100).await?.json, "/items") {
            let number = revision.get("number").map(plain).unwrap_or_default();
            revisions.insert(number, revision.clone());
        }
        Ok(Known { revisions, objects, workloads: registered(client).await? })
    }
}

/// Objects by kind, namespace and name, without their status: that is what the mesh observes at the moment.
fn named(list: &Value, kind: &str) -> BTreeMap<String, Value> {
    let name = |object: &Value| {
        let of = |pointer: &str| object.pointer(pointer).map(plain).unwrap_or_default();
        format!("{kind} {}/{}", of("/metadata/namespace"), of("/metadata/name"))
    };
    let without = |object: &Value| {
        let mut object = object.clone();
        // The addresses that a service was given do count; those of a Gateway are of its proxies that are connected now.
        let given = object.pointer("/status/addresses").filter(|_| kind == Kind::Service.as_str());
        let addresses = given.cloned();
        if let Some(fields) = object.as_object_mut() {
            fields.remove("status");
            fields.extend(addresses.map(|addresses| ("addresses".to_owned(), addresses)));
        }
        object
    };
    items(list, "/items").map(|object| (name(object), without(object))).collect()
}

/// The registered workloads, by name: labels and spec.
async fn registered(client: &Client) -> Result<BTreeMap<String, Value>> {
    let list = get::all(client, Kind::Workload, None, None).await?.json;
    Ok(named(&list, "Workload"))
}
