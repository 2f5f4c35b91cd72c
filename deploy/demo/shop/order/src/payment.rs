//! The payment service over gRPC: `payment.Payment/Charge`. Messages by hand, as `payment/messages.py` has them.

use std::time::Duration;

use http::uri::PathAndQuery;
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

use crate::trace::Trace;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const CALL_TIMEOUT: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(100);

#[derive(Clone, PartialEq, prost::Message)]
struct ChargeRequest {
    #[prost(string, tag = "1")]
    order_id: String,
    #[prost(int64, tag = "2")]
    amount_cents: i64,
    #[prost(string, tag = "3")]
    currency: String,
}

/// The response of payment.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Charge {
    /// The charge's id at payment.
    #[prost(string, tag = "1")]
    pub(crate) charge_id: String,
    /// Whether the money moves.
    #[prost(bool, tag = "2")]
    pub(crate) accepted: bool,
    /// The instance that responded.
    #[prost(string, tag = "3")]
    pub(crate) instance: String,
}

/// A charge without a response.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChargeError {
    #[error("payment refused: {}: {}", .0.code().description(), .0.message())]
    Refused(Status),
    #[error("payment cannot be reached after {attempts} attempts: {}", .status.message())]
    Unreachable { attempts: u32, status: Status },
    #[error("payment has no usable address")]
    Address(#[from] tonic::transport::Error),
}

/// A client with one HTTP/2 connection, opened on first use and again when it is lost.
#[derive(Debug)]
pub(crate) struct Payment {
    channel: Channel,
    attempts: u32,
}

impl Payment {
    /// `address` is `host:port`. Needs a running tokio; connects later.
    pub(crate) fn new(address: &str, attempts: u32) -> Result<Self, ChargeError> {
        let channel = Endpoint::from_shared(format!("http://{address}"))?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(Duration::from_secs(20))
            .keep_alive_timeout(Duration::from_secs(5))
            .connect_lazy();
        Ok(Self { channel, attempts })
    }

    /// Charges an order. Payment is idempotent by `order_id`, so a call that got lost is made again.
    pub(crate) async fn charge(
        &self,
        order_id: &str,
        amount_cents: i64,
        currency: &str,
        trace: &Trace,
    ) -> Result<Charge, ChargeError> {
        let message = ChargeRequest { order_id: order_id.to_owned(), amount_cents, currency: currency.to_owned() };
        let mut attempt = 1;
        loop {
            match self.call(message.clone(), trace).await {
                Ok(charge) => return Ok(charge),
                Err(status) if !lost(status.code()) => return Err(ChargeError::Refused(status)),
                Err(status) if attempt >= self.attempts => {
                    return Err(ChargeError::Unreachable { attempts: attempt, status });
                }
                Err(status) => {
                    tracing::warn!(service = "order", order_id, attempt, code = ?status.code(), "charge without a response, retrying");
                    tokio::time::sleep(PAUSE * attempt).await;
                    attempt += 1;
                }
            }
        }
    }

    async fn call(&self, message: ChargeRequest, trace: &Trace) -> Result<Charge, Status> {
        let mut request = Request::new(message);
        *request.metadata_mut() = MetadataMap::from_headers(trace.headers());
        request.set_timeout(CALL_TIMEOUT);
        let mut grpc = tonic::client::Grpc::new(self.channel.clone());
        let exchange = async {
            grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
            let codec = ProstCodec::<ChargeRequest, Charge>::default();
            grpc.unary(request, PathAndQuery::from_static("/payment.Payment/Charge"), codec).await
        };
        let reply = tokio::time::timeout(CALL_TIMEOUT, exchange)
            .await
            .map_err(|_elapsed| Status::deadline_exceeded("timeout"))??;
        Ok(reply.into_inner())
    }
}

/// Whether the answer is missing, rather than a no. A broken connection shows up as any of these.
fn lost(code: Code) -> bool {
    matches!(code, Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown | Code::Internal)
}
