//! Micro-benchmarks of what is counted: once for each request, once for each connection, and rare events.
//! Run: `make bench-micro`; the harness and its options are in `bench/micro.rs`.

#[path = "../../bench/micro.rs"]
mod micro;

use std::{hint::black_box, process::ExitCode, time::Duration};

use micro::Case;
use weft_proxy::telemetry::{Direction, Metrics, RequestLabels, Security};

const CASES: &[Case] = &[
    Case { name: "metrics/record", make: record },
    Case { name: "metrics/series-10", make: || series(10) },
    Case { name: "metrics/series-1000", make: || series(1_000) },
    Case { name: "metrics/event", make: event },
];

fn main() -> ExitCode {
    micro::run(concat!(env!("CARGO_MANIFEST_DIR"), "/benches"), CASES)
}

fn labels(number: usize) -> RequestLabels {
    RequestLabels {
        direction: Direction::Outbound,
        destination: format!("svc/shop/service-{number}:80").into(),
        source: "".into(),
        security: Security::Mtls,
    }
}

/// A finished request.
fn record() -> Box<dyn FnMut(usize)> {
    let series = Metrics::default().series(&labels(0));
    Box::new(move |index| {
        let duration = Duration::from_micros(300 + (index as u64 % 64) * 1_000);
        black_box(&series).record(200, duration, 0, 128);
    })
}

/// The handle of one series among many.
fn series(size: usize) -> Box<dyn FnMut(usize)> {
    let metrics = Metrics::default();
    let all: Vec<_> = (0..size).map(labels).collect();
    all.iter().for_each(|labels| drop(metrics.series(labels)));
    Box::new(move |index| {
        if let Some(labels) = all.get(index % size) {
            drop(black_box(metrics.series(labels)));
        }
    })
}

/// A retry.
fn event() -> Box<dyn FnMut(usize)> {
    let metrics = Metrics::default();
    Box::new(move |_| {
        let labels = [("cluster", "svc/shop/user:80"), ("cause", "UF"), ("result", "tried")];
        black_box(&metrics).event("weft_retries_total", &labels);
    })
}
