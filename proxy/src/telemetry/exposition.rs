//! The Prometheus text format, over the metrics of all workers (Prometheus exposition format 0.0.4).

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use super::metrics::{BUCKETS, Direction, Metrics, RequestLabels};

/// One number that is read at scrape time, such as a certificate's end.
#[derive(Clone, Debug)]
pub struct Sample {
    /// The metric's name.
    pub name: &'static str,
    /// Its HELP text.
    pub help: &'static str,
    /// Labels.
    pub labels: Vec<(&'static str, String)>,
    /// The value.
    pub value: f64,
}

/// Help texts of the counters of events.
const EVENTS: [(&str, &str); 11] = [
    ("weft_access_log_dropped_total", "Access log lines that were not written because the reader was slow."),
    ("weft_denied_total", "Requests and connections refused by authorization, by rule."),
    ("weft_ejections_total", "Endpoints ejected by outlier detection."),
    ("weft_failures_total", "Requests and connections that failed, by flag."),
    ("weft_panics_total", "Panics caught."),
    ("weft_retries_total", "Retries, by what came of them."),
    ("weft_tcp_bytes_total", "Bytes of opaque connections."),
    ("weft_tls_failures_total", "TLS handshakes that failed, by reason."),
    ("weft_tls_handshakes_total", "TLS handshakes that succeeded."),
    ("weft_discovery_waits_total", "Connections that waited for the control plane, by result."),
    ("weft_loops_refused_total", "Connections to the proxy's own ports that were closed."),
];

#[derive(Default)]
struct Sum {
    by_class: [u64; 6],
    buckets: [u64; BUCKETS.len() + 1],
    micros: u64,
    sent: u64,
    received: u64,
}

/// Writes everything.
pub fn render(workers: &[Arc<Metrics>], samples: &[Sample]) -> String {
    let mut out = String::with_capacity(16 * 1024);
    requests(&mut out, workers);
    connections(&mut out, workers);
    events(&mut out, workers);
    let mut headed = BTreeSet::new();
    for sample in samples {
        if headed.insert(sample.name) {
            head(&mut out, sample.name, sample.help, if sample.name.ends_with("_total") { "counter" } else { "gauge" });
        }
        line(&mut out, sample.name, &labels(&sample.labels), sample.value);
    }
    out
}

fn requests(out: &mut String, workers: &[Arc<Metrics>]) {
    // Workers count apart, so that none waits for another; a scrape adds them up.
    let mut sums: BTreeMap<RequestLabels, Sum> = BTreeMap::new();
    for worker in workers {
        worker.visit_requests(|labels, series| {
            let sum = sums.entry(labels.clone()).or_default();
            for (total, part) in sum.by_class.iter_mut().zip(&series.by_class) {
                *total += part.load(Relaxed);
            }
            for (total, part) in sum.buckets.iter_mut().zip(&series.buckets) {
                *total += part.load(Relaxed);
            }
            sum.micros += series.micros.load(Relaxed);
            sum.sent += series.sent.load(Relaxed);
            sum.received += series.received.load(Relaxed);
        });
    }
    let sums: Vec<(String, Sum)> = sums.into_iter().map(|(key, sum)| (request_labels(&key), sum)).collect();
    head(out, "weft_requests_total", "HTTP requests, by hundreds of the status; none = no status was sent.", "counter");
    for (labels, sum) in &sums {
        for (class, count) in ["none", "1xx", "2xx", "3xx", "4xx", "5xx"].iter().zip(sum.by_class) {
            if count != 0 {
                line(out, "weft_requests_total", &format!("{labels},status=\"{class}\""), count as f64);
            }
        }
    }
    let name = "weft_request_duration_seconds";
    head(out, name, "Time from the head of a request to the end of its answer.", "histogram");
    for (labels, sum) in &sums {
        // Buckets are cumulative in the text format, and counted one by one here.
        let mut total = 0;
        for (index, count) in sum.buckets.iter().enumerate() {
            total += count;
            let bound = BUCKETS.get(index).map_or("+Inf".to_owned(), |micros| (*micros as f64 / 1e6).to_string());
            line(out, &format!("{name}_bucket"), &format!("{labels},le=\"{bound}\""), total as f64);
        }
        line(out, &format!("{name}_sum"), labels, sum.micros as f64 / 1e6);
        line(out, &format!("{name}_count"), labels, total as f64);
    }
    for (name, help, value) in [
        ("weft_request_bytes_total", "Bytes of request bodies.", (|sum| sum.sent) as fn(&Sum) -> u64),
        ("weft_response_bytes_total", "Bytes of response bodies.", |sum| sum.received),
    ] {
        head(out, name, help, "counter");
        for (labels, sum) in &sums {
            line(out, name, labels, value(sum) as f64);
        }
    }
}

fn connections(out: &mut String, workers: &[Arc<Metrics>]) {
    head(out, "weft_connections_open", "Open connections from callers.", "gauge");
    for (index, direction) in [Direction::Inbound, Direction::Outbound, Direction::Gateway].iter().enumerate() {
        let open: i64 =
            workers.iter().filter_map(|worker| worker.connections.get(index)).map(|gauge| gauge.load(Relaxed)).sum();
        line(out, "weft_connections_open", &format!("direction=\"{}\"", direction.as_str()), open as f64);
    }
}

fn events(out: &mut String, workers: &[Arc<Metrics>]) {
    let mut sums: BTreeMap<(&'static str, String), u64> = BTreeMap::new();
    for worker in workers {
        worker.visit_events(|(name, values), count| *sums.entry((name, labels(values))).or_default() += count);
    }
    let mut headed = "";
    for ((name, labels), count) in &sums {
        if headed != *name {
            let help = EVENTS.iter().find(|(event, _)| event == name).map_or("", |(_, help)| help);
            head(out, name, help, "counter");
            headed = name;
        }
        line(out, name, labels, *count as f64);
    }
}

fn request_labels(labels: &RequestLabels) -> String {
    format!(
        "direction=\"{}\",destination=\"{}\",source=\"{}\",security=\"{}\"",
        labels.direction.as_str(),
        escape(&labels.destination),
        escape(&labels.source),
        labels.security.as_str(),
    )
}

fn labels(pairs: &[(&'static str, String)]) -> String {
    pairs.iter().map(|(name, value)| format!("{name}=\"{}\"", escape(value))).collect::<Vec<_>>().join(",")
}

fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn head(out: &mut String, name: &str, help: &str, kind: &str) {
    out.push_str(&format!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
}

fn line(out: &mut String, name: &str, labels: &str, value: f64) {
    let result =
        if labels.is_empty() { writeln!(out, "{name} {value}") } else { writeln!(out, "{name}{{{labels}}} {value}") };
    debug_assert!(result.is_ok(), "writing to a String cannot fail");
}
