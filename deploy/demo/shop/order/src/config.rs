//! Settings of the order service: environment or flags, read once.

use std::net::SocketAddr;

use clap::{Parser, ValueEnum};
use tracing_subscriber::EnvFilter;

/// The demo shop's order service.
#[derive(Debug, Parser)]
#[command(name = "shop-order", version)]
pub(crate) struct Config {
    /// Address to listen on.
    #[arg(long, env = "BIND", default_value = "0.0.0.0:8080")]
    pub(crate) bind: SocketAddr,
    /// Name of this instance, in every response.
    #[arg(long, env = "INSTANCE", default_value_t = host_name())]
    pub(crate) instance: String,
    /// The user service, `host:port`.
    #[arg(long, env = "USER_ADDR", default_value = "user:80")]
    pub(crate) user_addr: String,
    /// The product service, `host:port`.
    #[arg(long, env = "PRODUCT_ADDR", default_value = "product:80")]
    pub(crate) product_addr: String,
    /// The payment service, `host:port`.
    #[arg(long, env = "PAYMENT_ADDR", default_value = "payment:50051")]
    pub(crate) payment_addr: String,
    /// Attempts of a charge, the first one included. Charges are idempotent by order id.
    #[arg(long, env = "PAYMENT_ATTEMPTS", default_value = "3", value_parser = clap::value_parser!(u32).range(1..=10))]
    pub(crate) payment_attempts: u32,
    /// PostgreSQL, `host:port`.
    #[arg(long, env = "ORDER_DB_ADDR", default_value = "order-db:5432")]
    pub(crate) order_db_addr: String,
    /// PostgreSQL role.
    #[arg(long, env = "ORDER_DB_USER", default_value = "postgres")]
    pub(crate) order_db_user: String,
    /// PostgreSQL database.
    #[arg(long, env = "ORDER_DB_NAME", default_value = "postgres")]
    pub(crate) order_db_name: String,
    /// PostgreSQL password, if the server requires one.
    #[arg(long, env = "ORDER_DB_PASSWORD", hide_env_values = true)]
    pub(crate) order_db_password: Option<String>,
    /// Maximum number of connections to PostgreSQL.
    #[arg(long, env = "ORDER_DB_CONNECTIONS", default_value = "8", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) order_db_connections: u16,
    /// `info` logs each request, `warn` only problems.
    #[arg(long, env = "LOG", value_enum, default_value = "info")]
    pub(crate) log: Log,
}

/// The log level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Log {
    /// A line for each request.
    Info,
    /// No line for each request.
    Warn,
}

impl Log {
    /// The filter for `tracing`.
    pub(crate) fn filter(self) -> EnvFilter {
        EnvFilter::new(match self {
            Self::Info => "warn,shop_order=info,request=info",
            Self::Warn => "warn,shop_order=info",
        })
    }
}

fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_unreadable| "order".to_owned(), |name| name.trim().to_owned())
}
