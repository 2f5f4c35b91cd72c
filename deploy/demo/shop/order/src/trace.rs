//! The W3C trace context of a request, passed on unchanged to what the request calls.

use http::{HeaderMap, HeaderValue};

const NAMES: [&str; 2] = ["traceparent", "tracestate"];

/// `traceparent` and `tracestate` as they came, or nothing.
#[derive(Debug, Clone, Default)]
pub(crate) struct Trace(HeaderMap);

impl Trace {
    /// Takes the trace headers out of a request's head.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let mut trace = HeaderMap::new();
        for name in NAMES {
            for value in headers.get_all(name) {
                trace.append(name, value.clone());
            }
        }
        Self(trace)
    }

    /// The headers to send along.
    pub(crate) fn headers(&self) -> HeaderMap {
        self.0.clone()
    }

    /// The `traceparent`, for the log.
    pub(crate) fn parent(&self) -> Option<&str> {
        self.0.get("traceparent").map(HeaderValue::to_str)?.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_only_the_trace_headers() {
        let mut headers = HeaderMap::new();
        headers.insert("traceparent", HeaderValue::from_static("00-aa-bb-01"));
        headers.append("tracestate", HeaderValue::from_static("a=1"));
        headers.append("tracestate", HeaderValue::from_static("b=2"));
        headers.insert("cookie", HeaderValue::from_static("secret"));
        let trace = Trace::of(&headers);
        assert_eq!(trace.parent(), Some("00-aa-bb-01"));
        assert_eq!(trace.headers().len(), 3);
        assert!(!trace.headers().contains_key("cookie"));
    }
}
