//! Orders in PostgreSQL: a bounded pool, opened on demand and again when the database went away.
//!
//! Every statement here may run twice without harm, so a lost connection is answered by another try until
//! `PATIENCE` is over. What `insert` returns is committed (`synchronous_commit` is on).

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, NoTls, Row};

use crate::config::Config;

/// How long one statement may take, waiting for a connection and trying again included.
const PATIENCE: Duration = Duration::from_secs(4);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// `CREATE TABLE IF NOT EXISTS` alone can fail when two run at once, hence the lock; it ends with the transaction.
const SCHEMA: &str = "BEGIN;
    SELECT pg_advisory_xact_lock(7310042);
    CREATE TABLE IF NOT EXISTS orders (
        id text PRIMARY KEY,
        idempotency_key text,
        user_id text NOT NULL,
        product_id text NOT NULL,
        quantity integer NOT NULL CHECK (quantity > 0),
        amount_cents bigint NOT NULL CHECK (amount_cents > 0),
        currency text NOT NULL,
        charge_id text NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now());
    CREATE INDEX IF NOT EXISTS orders_created_at ON orders (created_at);
    COMMIT";

const COLUMNS: &str = "id, idempotency_key, user_id, product_id, quantity, amount_cents, currency, charge_id, \
    (extract(epoch FROM created_at) * 1000)::bigint AS created_ms";

/// One order: a row, and the JSON object of an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Order {
    pub(crate) id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) idempotency_key: Option<String>,
    pub(crate) user: String,
    pub(crate) product: String,
    pub(crate) quantity: i32,
    pub(crate) amount_cents: i64,
    pub(crate) currency: String,
    pub(crate) charge_id: String,
    /// Unix milliseconds, by the database's clock; 0 before the insert.
    pub(crate) created_ms: i64,
}

/// A statement that has no result.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("cannot connect to the database")]
    Unreachable(#[source] tokio_postgres::Error),
    #[error("the database timed out after {PATIENCE:?}")]
    Slow,
    #[error("the database rejected a statement")]
    Statement(#[source] tokio_postgres::Error),
    #[error("the database lost order {0} right after its insert")]
    Vanished(String),
}

/// The pool. At most `connections` at once; idle ones are kept.
pub(crate) struct Store {
    server: tokio_postgres::Config,
    slots: Semaphore,
    idle: Mutex<Vec<Connection>>,
    ready: AtomicBool,
}

/// A connection and the task that moves its bytes; the task ends with it.
struct Connection {
    client: Client,
    driver: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Store {
    /// Errors: the address is not `host:port`.
    pub(crate) fn new(config: &Config) -> anyhow::Result<Self> {
        let (host, port) = config
            .order_db_addr
            .rsplit_once(':')
            .and_then(|(host, port)| Some((host.trim_matches(['[', ']']), port.parse().ok()?)))
            .filter(|(host, _)| !host.is_empty())
            .ok_or_else(|| anyhow::anyhow!("ORDER_DB_ADDR: expected host:port, not {:?}", config.order_db_addr))?;
        let mut server = tokio_postgres::Config::new();
        server
            .host(host)
            .port(port)
            .user(&config.order_db_user)
            .dbname(&config.order_db_name)
            .application_name(&config.instance)
            .options("-c synchronous_commit=on")
            .ssl_mode(tokio_postgres::config::SslMode::Disable)
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_user_timeout(PATIENCE)
            .keepalives_idle(Duration::from_secs(30));
        if let Some(password) = &config.order_db_password {
            server.password(password);
        }
        Ok(Self {
            server,
            slots: Semaphore::new(usize::from(config.order_db_connections)),
            idle: Mutex::new(Vec::new()),
            ready: AtomicBool::new(false),
        })
    }

    /// Whether the database answered when last asked.
    pub(crate) fn ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }

    /// Asks the database once a second (five times while it is away) and keeps `ready` true to it. Never returns.
    pub(crate) async fn keep_ready(&self) {
        loop {
            let answer = self.rows_once("SELECT 1 FROM orders LIMIT 1", &[], Instant::now() + PATIENCE).await;
            let was = self.ready.swap(answer.is_ok(), Ordering::Relaxed);
            match answer {
                Ok(_) if was => {}
                Ok(_) => tracing::info!(service = "order", "database ready"),
                Err(error) if was => {
                    tracing::warn!(service = "order", error = &error as &dyn std::error::Error, "database lost");
                }
                Err(_) => {}
            }
            sleep(Duration::from_millis(if self.ready() { 1000 } else { 200 })).await;
        }
    }

    /// Inserts an order, or finds the one with the same id. Returns the row as it is in the database.
    pub(crate) async fn insert(&self, order: &Order) -> Result<Order, StoreError> {
        let sql = format!(
            "INSERT INTO orders (id, idempotency_key, user_id, product_id, quantity, amount_cents, currency, charge_id) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (id) DO NOTHING RETURNING {COLUMNS}"
        );
        let rows = self
            .rows(
                &sql,
                &[
                    (&order.id, Type::TEXT),
                    (&order.idempotency_key, Type::TEXT),
                    (&order.user, Type::TEXT),
                    (&order.product, Type::TEXT),
                    (&order.quantity, Type::INT4),
                    (&order.amount_cents, Type::INT8),
                    (&order.currency, Type::TEXT),
                    (&order.charge_id, Type::TEXT),
                ],
            )
            .await?;
        match rows.first() {
            Some(row) => parse(row),
            None => self.read(&order.id).await?.ok_or_else(|| StoreError::Vanished(order.id.clone())),
        }
    }

    /// The order with this id.
    pub(crate) async fn read(&self, id: &str) -> Result<Option<Order>, StoreError> {
        let rows = self.rows(&format!("SELECT {COLUMNS} FROM orders WHERE id = $1"), &[(&id, Type::TEXT)]).await?;
        rows.first().map(parse).transpose()
    }

    /// The newest orders, newest first.
    pub(crate) async fn newest(&self, limit: i64) -> Result<Vec<Order>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM orders ORDER BY created_at DESC LIMIT $1");
        self.rows(&sql, &[(&limit, Type::INT8)]).await?.iter().map(parse).collect()
    }

    async fn rows(&self, sql: &str, values: &[(&(dyn ToSql + Sync), Type)]) -> Result<Vec<Row>, StoreError> {
        let deadline = Instant::now() + PATIENCE;
        let mut pause = Duration::from_millis(25);
        loop {
            match self.rows_once(sql, values, deadline).await {
                Err(StoreError::Unreachable(_)) if Instant::now() + pause < deadline => {
                    sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_millis(400));
                }
                result => return result,
            }
        }
    }

    async fn rows_once(
        &self,
        sql: &str,
        values: &[(&(dyn ToSql + Sync), Type)],
        deadline: Instant,
    ) -> Result<Vec<Row>, StoreError> {
        let exchange = async {
            let Ok(_slot) = self.slots.acquire().await else {
                return Err(StoreError::Slow);
            };
            let idle = self.idle.lock().pop();
            let connection = match idle {
                Some(connection) if !connection.client.is_closed() => connection,
                _ => self.connect().await?,
            };
            let result = connection.client.query_typed(sql, values).await;
            match result {
                Ok(rows) => {
                    self.idle.lock().push(connection);
                    Ok(rows)
                }
                // The others in the pool are as old as this one; after a restart all of them are dead.
                Err(error) if gone(&error) => {
                    self.idle.lock().clear();
                    Err(StoreError::Unreachable(error))
                }
                Err(error) => Err(StoreError::Statement(error)),
            }
        };
        // Dropping the exchange drops its connection, so that no half-read answer is left in the pool.
        timeout_at(deadline, exchange).await.map_err(|_elapsed| StoreError::Slow)?
    }

    async fn connect(&self) -> Result<Connection, StoreError> {
        let (client, connection) = self.server.connect(NoTls).await.map_err(StoreError::Unreachable)?;
        // How it ended shows in the statements that it cut off.
        let driver = tokio::spawn(async move { drop(connection.await) });
        let connection = Connection { client, driver };
        // On every connection: a database that came back empty gets its table again.
        connection.client.batch_execute(SCHEMA).await.map_err(StoreError::Unreachable)?;
        Ok(connection)
    }
}

/// Whether the connection is of no more use and another one may do better.
fn gone(error: &tokio_postgres::Error) -> bool {
    error.is_closed()
        || match error.code() {
            None => std::error::Error::source(error).is_some_and(|source| source.is::<std::io::Error>()),
            Some(code) => [
                SqlState::ADMIN_SHUTDOWN,
                SqlState::CRASH_SHUTDOWN,
                SqlState::CANNOT_CONNECT_NOW,
                SqlState::TOO_MANY_CONNECTIONS,
                SqlState::UNDEFINED_TABLE,
            ]
            .contains(code),
        }
}

fn parse(row: &Row) -> Result<Order, StoreError> {
    let read = || {
        Ok(Order {
            id: row.try_get("id")?,
            idempotency_key: row.try_get("idempotency_key")?,
            user: row.try_get("user_id")?,
            product: row.try_get("product_id")?,
            quantity: row.try_get("quantity")?,
            amount_cents: row.try_get("amount_cents")?,
            currency: row.try_get("currency")?,
            charge_id: row.try_get("charge_id")?,
            created_ms: row.try_get("created_ms")?,
        })
    };
    read().map_err(StoreError::Statement)
}
