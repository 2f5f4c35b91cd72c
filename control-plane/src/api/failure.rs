//! Every way in which a request can fail, and its answer: `{"error": …, "details": [{field, reason, object, document}]}`.

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use weft_core::{
    answer::{Detail, Refused},
    api::{ApiError, Fault, ObjectKey},
};

use crate::{
    desired::{ChangeError, Refusal},
    store::StoreError,
    tokens::TokenError,
};

/// Why a request failed. Nothing was changed.
#[derive(Debug)]
pub(super) enum Failure {
    NoCredential,
    WrongCredential,
    NotLocal,
    NoPath,
    Method,
    Busy,
    Slow,
    Stopping,
    TooLarge,
    BrokenBody,
    NotText,
    /// A wrong parameter of the path, the query or a header, or field of a small body.
    Field {
        field: String,
        reason: String,
    },
    Documents(Vec<ApiError>),
    NoKind(String),
    NoObject(ObjectKey),
    NoToken(String),
    NoRevision(String),
    Change(ChangeError),
    Token(TokenError),
    Store(StoreError),
}

impl Failure {
    pub(super) fn field(field: &str, reason: impl Into<String>) -> Self {
        Self::Field { field: field.to_owned(), reason: reason.into() }
    }

    fn parts(self) -> (StatusCode, String, Vec<Detail>) {
        let plain = |status, text: &str| (status, text.to_owned(), Vec::new());
        match self {
            Self::NoCredential => {
                plain(StatusCode::UNAUTHORIZED, "an admin token is needed: \"Authorization: Bearer weftadmin.…\"")
            }
            Self::WrongCredential => plain(StatusCode::UNAUTHORIZED, "this admin token is unknown"),
            Self::NotLocal => plain(
                StatusCode::FORBIDDEN,
                "a new admin token is made only over the Unix socket, on the control plane's machine",
            ),
            Self::NoPath => plain(StatusCode::NOT_FOUND, "there is no such path"),
            Self::Method => plain(StatusCode::METHOD_NOT_ALLOWED, "this path does not take this method"),
            Self::Busy => plain(StatusCode::SERVICE_UNAVAILABLE, "too many requests at once; try again"),
            Self::Slow => plain(StatusCode::REQUEST_TIMEOUT, "the request took longer than 30 s"),
            Self::Stopping => plain(StatusCode::SERVICE_UNAVAILABLE, "the control plane is stopping"),
            Self::TooLarge => plain(StatusCode::PAYLOAD_TOO_LARGE, "the body is larger than 4 MiB"),
            Self::BrokenBody => plain(StatusCode::BAD_REQUEST, "the body broke off"),
            Self::NotText => plain(StatusCode::BAD_REQUEST, "the body is not UTF-8 text"),
            Self::Field { field, reason } => {
                let text = format!("{field}: {reason}");
                (StatusCode::BAD_REQUEST, text, vec![Detail { field, reason, object: None, document: None }])
            }
            Self::Documents(errors) => {
                let syntax = errors.iter().any(|error| error.error.fault == Fault::Syntax);
                let status = if syntax { StatusCode::BAD_REQUEST } else { StatusCode::UNPROCESSABLE_ENTITY };
                (
                    status,
                    "nothing was changed: the objects have mistakes".to_owned(),
                    errors.into_iter().map(of_api).collect(),
                )
            }
            Self::NoKind(kind) => (StatusCode::NOT_FOUND, format!("there is no kind {kind:.60?}"), Vec::new()),
            Self::NoObject(key) | Self::Change(ChangeError::NoObject(key)) => {
                (StatusCode::NOT_FOUND, format!("there is no {key}"), Vec::new())
            }
            Self::NoToken(id) => (StatusCode::NOT_FOUND, format!("there is no join token {id:.60?}"), Vec::new()),
            Self::NoRevision(number) => (
                StatusCode::NOT_FOUND,
                format!("there is no revision {number:.30}, or it is not kept any more"),
                Vec::new(),
            ),
            Self::Change(ChangeError::NoRevision(number)) => Self::NoRevision(number.to_string()).parts(),
            Self::Change(ChangeError::Conflict(refusals)) => (
                StatusCode::CONFLICT,
                "nothing was changed: it conflicts with desired state".to_owned(),
                refusals.into_iter().map(of_refusal).collect(),
            ),
            Self::Change(error @ (ChangeError::TooMany | ChangeError::NoAddress)) => {
                (StatusCode::INSUFFICIENT_STORAGE, error.to_string(), Vec::new())
            }
            Self::Change(ChangeError::Stopping)
            | Self::Token(TokenError::Store(StoreError::Stopping))
            | Self::Store(StoreError::Stopping) => Self::Stopping.parts(),
            Self::Change(ChangeError::Store(error)) | Self::Token(TokenError::Store(error)) | Self::Store(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "the store failed");
                plain(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "nothing was changed: the store failed; see the control plane's log",
                )
            }
            Self::Change(error @ (ChangeError::Stored { .. } | ChangeError::Random(_))) => {
                tracing::error!(error = &error as &dyn std::error::Error, "a change failed");
                (StatusCode::INTERNAL_SERVER_ERROR, error.to_string(), Vec::new())
            }
            Self::Token(error @ TokenError::TooMany) => {
                (StatusCode::INSUFFICIENT_STORAGE, error.to_string(), Vec::new())
            }
            Self::Token(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "a token cannot be made");
                (StatusCode::INTERNAL_SERVER_ERROR, error.to_string(), Vec::new())
            }
        }
    }
}

fn of_api(error: ApiError) -> Detail {
    Detail {
        field: error.error.path,
        reason: error.error.reason,
        object: error.object.map(|key| key.to_string()),
        document: Some(error.document),
    }
}

fn of_refusal(refusal: Refusal) -> Detail {
    Detail {
        field: refusal.error.path,
        reason: refusal.error.reason,
        object: refusal.object.map(|key| key.to_string()),
        document: refusal.index,
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let challenge = matches!(self, Self::NoCredential | Self::WrongCredential);
        let again = matches!(self, Self::Busy | Self::Store(_) | Self::Change(ChangeError::Store(_)));
        let (status, error, details) = self.parts();
        let mut response = (status, axum::Json(Refused { error, details })).into_response();
        if challenge {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if again {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

impl From<ChangeError> for Failure {
    fn from(error: ChangeError) -> Self {
        Self::Change(error)
    }
}

impl From<TokenError> for Failure {
    fn from(error: TokenError) -> Self {
        Self::Token(error)
    }
}
