//! Who is in the shop: hosts, what runs on each, as whom.

use serde_json::{Value, json};

use crate::netns::Host;

/// The namespace (of objects and identities) of the shop.
pub(crate) const NAMESPACE: &str = "shop";
/// The host of the control plane.
pub(crate) const CONTROL: &str = "control";
/// The host of the gateway.
pub(crate) const EDGE: &str = "edge";
/// The port of the edge, as `edge.yaml` has it.
pub(crate) const EDGE_PORT: u16 = 8080;

/// What runs on a host beside its proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum App {
    /// Nothing: the proxy is a gateway.
    Edge,
    /// Node.
    User,
    /// Python, of this version.
    Product(&'static str),
    /// Rust.
    Order,
    /// Python with gRPC.
    Payment,
    /// PostgreSQL.
    OrderDb,
    /// Redis.
    UserDb,
}

/// One workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Member {
    /// Its host, and its name in the mesh.
    pub(crate) name: &'static str,
    /// What runs there.
    pub(crate) app: App,
}

/// All of them.
pub(crate) const MEMBERS: &[Member] = &[
    Member { name: EDGE, app: App::Edge },
    Member { name: "user-db", app: App::UserDb },
    Member { name: "order-db", app: App::OrderDb },
    Member { name: "user-1", app: App::User },
    Member { name: "user-2", app: App::User },
    Member { name: "product-v1-1", app: App::Product("v1") },
    Member { name: "product-v1-2", app: App::Product("v1") },
    Member { name: "product-v2-1", app: App::Product("v2") },
    Member { name: "product-v2-2", app: App::Product("v2") },
    Member { name: "payment-1", app: App::Payment },
    Member { name: "payment-2", app: App::Payment },
    Member { name: "order-1", app: App::Order },
    Member { name: "order-2", app: App::Order },
];

/// The rows of the live table, in the order in which a request meets them.
pub(crate) const ROWS: &[&str] = &[EDGE, "user", "product v1", "product v2", "order", "payment", "user-db", "order-db"];

impl App {
    /// Its service, service account and label `app`.
    pub(crate) fn service(self) -> &'static str {
        match self {
            Self::Edge => EDGE,
            Self::User => "user",
            Self::Product(_) => "product",
            Self::Order => "order",
            Self::Payment => "payment",
            Self::OrderDb => "order-db",
            Self::UserDb => "user-db",
        }
    }

    /// Its row in the live table: versions apart.
    pub(crate) fn row(self) -> &'static str {
        match self {
            Self::Product("v1") => "product v1",
            Self::Product(_) => "product v2",
            Self::Edge | Self::User | Self::Order | Self::Payment | Self::OrderDb | Self::UserDb => self.service(),
        }
    }

    /// Port and protocol; none at the edge.
    pub(crate) fn port(self) -> Option<(u16, &'static str)> {
        match self {
            Self::Edge => None,
            Self::User | Self::Product(_) | Self::Order => Some((8080, "http")),
            Self::Payment => Some((50051, "grpc")),
            Self::OrderDb => Some((5432, "tcp")),
            Self::UserDb => Some((6379, "tcp")),
        }
    }

    /// Whether it is a database.
    pub(crate) fn database(self) -> bool {
        matches!(self, Self::OrderDb | Self::UserDb)
    }
}

impl Member {
    /// The proxy's file.
    pub(crate) fn proxy_config(&self, host: &Host, control: &Host, token_file: &str) -> Value {
        let labels = match self.app {
            App::Product(version) => json!({"app": self.app.service(), "version": version}),
            App::Edge | App::User | App::Order | App::Payment | App::OrderDb | App::UserDb => {
                json!({"app": self.app.service()})
            }
        };
        let ports = self.app.port().map(|(port, name)| json!({"name": name, "port": port, "protocol": name}));
        let health = self.app.port().map(|(port, protocol)| match protocol {
            "http" => json!({"type": "http", "port": port, "path": "/healthz"}),
            _ => json!({"type": "tcp", "port": port}),
        });
        let workload = json!({
            "serviceAccount": self.app.service(),
            "labels": labels,
            "addresses": host.addresses(),
            "ports": Vec::from_iter(ports),
            "health": Vec::from_iter(health),
        });
        let control_plane = json!({"address": format!("{}:15012", control.ipv4()), "joinTokenFile": token_file});
        let spec = match self.app {
            App::Edge => json!({
                "mode": "gateway",
                "gateway": EDGE,
                "workload": {"serviceAccount": EDGE},
                "controlPlane": control_plane,
            }),
            App::User | App::Product(_) | App::Order | App::Payment | App::OrderDb | App::UserDb => {
                json!({"mode": "sidecar", "workload": workload, "controlPlane": control_plane})
            }
        };
        json!({
            "apiVersion": "weft.dev/v1alpha1",
            "kind": "ProxyConfig",
            "metadata": {"name": self.name, "namespace": NAMESPACE},
            "spec": spec,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_proxies_files_are_what_a_proxy_reads() {
        let host = Host::new("x", 7);
        for member in MEMBERS {
            let text = weft::output::yaml(&member.proxy_config(&host, &host, "/run/token")).unwrap();
            let (config, others) =
                weft_core::api::parse_proxy_file(&text).unwrap_or_else(|error| panic!("{text}{error:?}"));
            assert_eq!((config.metadata.name.as_str(), others.len()), (member.name, 0));
        }
    }

    #[test]
    fn every_row_has_members_and_instances_come_in_pairs() {
        let rows: BTreeSet<_> = MEMBERS.iter().map(|member| member.app.row()).collect();
        assert_eq!(rows, ROWS.iter().copied().collect());
        for app in [App::User, App::Product("v1"), App::Product("v2"), App::Order, App::Payment] {
            assert_eq!(MEMBERS.iter().filter(|member| member.app == app).count(), 2, "{app:?}");
        }
    }
}
