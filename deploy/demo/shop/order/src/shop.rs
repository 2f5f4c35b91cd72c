//! Reads of the user and the product service: HTTP/1.1 with kept connections. No retries here.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::trace::Trace;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const READ_TIMEOUT: Duration = Duration::from_secs(3);
const MAX_BODY: usize = 64 * 1024;

/// A user, as far as an order needs it.
#[derive(Debug, Deserialize)]
pub(crate) struct User {
    pub(crate) id: String,
    /// Which instance answered.
    pub(crate) instance: String,
}

/// A product, as far as an order needs it.
#[derive(Debug, Deserialize)]
pub(crate) struct Product {
    pub(crate) id: String,
    /// Price of one, in hundredths of `currency`.
    pub(crate) price_cents: i64,
    /// ISO 4217.
    pub(crate) currency: String,
    /// Version of the service that answered.
    pub(crate) version: String,
    /// Which instance answered.
    pub(crate) instance: String,
}

/// A read that gave nothing. `service` is `user` or `product`.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    #[error("no {service} {id}")]
    Missing { service: &'static str, id: String },
    #[error("{service} responded with {status}")]
    Status { service: &'static str, status: StatusCode },
    #[error("cannot connect to {service}")]
    Unreachable { service: &'static str, source: hyper_util::client::legacy::Error },
    #[error("{service} timed out after {READ_TIMEOUT:?}")]
    Slow { service: &'static str },
    #[error("the response of {service} is incomplete or too long")]
    Body { service: &'static str, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("the response of {service} is malformed")]
    Shape { service: &'static str, source: serde_json::Error },
    #[error("{service} has no usable address")]
    Address { service: &'static str, source: http::Error },
}

/// The two services and one pool of connections.
#[derive(Debug)]
pub(crate) struct Shop {
    client: Client<HttpConnector, Empty<Bytes>>,
    user: String,
    product: String,
}

impl Shop {
    /// `user` and `product` are `host:port`.
    pub(crate) fn new(user: &str, product: &str) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .pool_max_idle_per_host(16)
            .build(connector);
        Self { client, user: user.to_owned(), product: product.to_owned() }
    }

    /// `GET /users/{id}`. `id` is already checked to be a plain path segment.
    pub(crate) async fn user(&self, id: &str, trace: &Trace) -> Result<User, ReadError> {
        self.read("user", &self.user, "users", id, trace).await
    }

    /// `GET /products/{id}`. `id` is already checked to be a plain path segment.
    pub(crate) async fn product(&self, id: &str, trace: &Trace) -> Result<Product, ReadError> {
        self.read("product", &self.product, "products", id, trace).await
    }

    async fn read<T: DeserializeOwned>(
        &self,
        service: &'static str,
        address: &str,
        folder: &str,
        id: &str,
        trace: &Trace,
    ) -> Result<T, ReadError> {
        let uri = Uri::builder().scheme("http").authority(address).path_and_query(format!("/{folder}/{id}")).build();
        let mut request = Request::new(Empty::new());
        *request.uri_mut() = uri.map_err(|source| ReadError::Address { service, source })?;
        *request.headers_mut() = trace.headers();
        let exchange = async {
            let response =
                self.client.request(request).await.map_err(|source| ReadError::Unreachable { service, source })?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_BODY)
                .collect()
                .await
                .map_err(|source| ReadError::Body { service, source })?;
            Ok((status, body.to_bytes()))
        };
        let (status, body) =
            tokio::time::timeout(READ_TIMEOUT, exchange).await.map_err(|_elapsed| ReadError::Slow { service })??;
        match status {
            StatusCode::OK => serde_json::from_slice(&body).map_err(|source| ReadError::Shape { service, source }),
            StatusCode::NOT_FOUND => Err(ReadError::Missing { service, id: id.to_owned() }),
            status => Err(ReadError::Status { service, status }),
        }
    }
}
