//! What the proxy tells about itself: metrics and access log. One [`Metrics`] per worker, merged on scrape.

pub mod access_log;
pub mod exposition;
pub mod metrics;

pub use self::{
    access_log::{AccessLog, Entry},
    metrics::{Direction, Metrics, RequestLabels, RequestSeries, Security},
};
