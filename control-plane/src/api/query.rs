//! Parameters of the query: closed sets, so that a mistyped one is an error and is not ignored.

use axum::extract::{FromRequestParts, Query};
use http::request::Parts;

use super::Failure;

/// The parameters, in their order.
pub(super) struct Parameters(Vec<(String, String)>);

impl<S: Send + Sync> FromRequestParts<S> for Parameters {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let query = Query::<Vec<(String, String)>>::from_request_parts(parts, state).await;
        let Query(all) = query.map_err(|_cause| Failure::field("query", "is not of the form name=value&name=value"))?;
        Ok(Self(all))
    }
}

impl Parameters {
    /// Rejects every parameter that is not one of these.
    pub(super) fn only(&self, known: &[&str]) -> Result<(), Failure> {
        match self.0.iter().find(|(name, _)| !known.contains(&name.as_str())) {
            None => Ok(()),
            Some((name, _)) => {
                let known = if known.is_empty() {
                    "there is none here".to_owned()
                } else {
                    format!("there are {}", known.join(", "))
                };
                Err(Failure::field(&format!("query.{name:.60}"), format!("no such parameter; {known}")))
            }
        }
    }

    /// Every value of a parameter.
    pub(super) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// The value of a parameter.
    pub(super) fn one(&self, name: &str) -> Option<&str> {
        self.0.iter().rfind(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// Whether a parameter is `true`.
    pub(super) fn flag(&self, name: &str) -> Result<bool, Failure> {
        match self.one(name) {
            None | Some("false") => Ok(false),
            Some("true" | "") => Ok(true),
            Some(_) => Err(Failure::field(&format!("query.{name}"), "must be true or false")),
        }
    }

    /// A number.
    pub(super) fn number(&self, name: &str) -> Result<Option<u64>, Failure> {
        let parse = |text: &str| {
            text.parse().map_err(|_cause| Failure::field(&format!("query.{name}"), "must be a whole number"))
        };
        self.one(name).map(parse).transpose()
    }

    /// The message of a change.
    pub(super) fn message(&self) -> Result<String, Failure> {
        let message = self.one("message").unwrap_or_default();
        if message.len() > crate::desired::MAX_TEXT {
            return Err(Failure::field("query.message", format!("longer than {} bytes", crate::desired::MAX_TEXT)));
        }
        Ok(message.to_owned())
    }
}
