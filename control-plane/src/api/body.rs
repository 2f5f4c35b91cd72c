//! Bodies of requests: bounded texts, and the objects in them.

use std::sync::Arc;

use axum::body::Body;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use weft_core::api::{Object, parse_documents};

use super::{Api, Failure};

/// Maximum size of a body, in bytes.
pub(super) const MAX_BODY: usize = 4 << 20;

/// The body as text.
pub(super) async fn text(body: Body) -> Result<String, Failure> {
    // A body whose length is declared as too large is not read at all.
    if http_body::Body::size_hint(&body).lower() > MAX_BODY as u64 {
        return Err(Failure::TooLarge);
    }
    let collected = Limited::new(body, MAX_BODY).collect().await;
    let bytes = collected.map_err(|error| match error.downcast_ref::<LengthLimitError>() {
        Some(_) => Failure::TooLarge,
        None => Failure::BrokenBody,
    })?;
    String::from_utf8(bytes.to_bytes().into()).map_err(|_cause| Failure::NotText)
}

/// The objects in the body: YAML documents or JSON, each validated by itself.
pub(super) async fn objects(api: &Api, body: Body) -> Result<Vec<Object>, Failure> {
    let text = text(body).await?;
    let turn = Arc::clone(&api.parsing).acquire_owned().await.map_err(|_closed| Failure::Stopping)?;
    let parsed = tokio::task::spawn_blocking(move || {
        let parsed = parse_documents(&text);
        drop(turn);
        parsed
    })
    .await;
    parsed.map_err(|_cause| Failure::Stopping)?.map_err(Failure::Documents)
}
