//! Telemetry: what the proxy reports of the traffic it carries. One [`Metrics`] per worker, merged on scrape.
//!
//! - [`outcome`]: the one record of how a request or connection ended; the others are its sinks.
//! - [`metrics`] and their [`exposition`]; the [`access_log`].

pub mod access_log;
pub mod exposition;
pub mod metrics;
pub(crate) mod outcome;

pub(crate) use self::outcome::{Outcome, Subject};
pub use self::{
    access_log::AccessLog,
    metrics::{Direction, Flow, Metrics, Protocol, RequestLabels, RequestSeries, Security},
};
