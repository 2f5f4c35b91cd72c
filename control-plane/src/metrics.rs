//! Metrics and health on the metrics port: `/metrics` (Prometheus text), `/readyz`, `/livez`. No credential is needed, so no
//! label has a user, an address or a secret.

use std::{
    fmt::Write,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::SystemTime,
};

use axum::{Router, extract::State, http::StatusCode, response::IntoResponse, routing};

/// A number that only increases.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds to it.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// Its value.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counters that rooms write; gauges are read from the rooms on a scrape.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Certificates issued to workloads.
    pub certificates_issued: Counter,
    /// API answers by hundreds of the status: `[2xx, 3xx, 4xx, 5xx]`.
    pub api_answers: [Counter; 4],
    /// Workloads that expired.
    pub workloads_expired: Counter,
    /// Writes of the registry's file that failed.
    pub registry_write_failures: Counter,
    /// The last write of the registry's file failed.
    pub registry_file_failing: AtomicBool,
    /// Claims of addresses that were rejected.
    pub claims_refused: Counter,
    /// Listeners are open and state is loaded.
    pub ready: AtomicBool,
}

impl Metrics {
    /// Counts one answer of the API.
    pub fn api_answer(&self, status: StatusCode) {
        let class = usize::from(status.as_u16() / 100).saturating_sub(2).min(3);
        if let Some(counter) = self.api_answers.get(class) {
            counter.add(1);
        }
    }
}

/// The gauges, read on a scrape.
pub trait Gauges: Send + Sync + 'static {
    /// Their values now.
    fn read(&self) -> Readings;
}

/// The gauges at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Readings {
    /// The newest revision.
    pub revision: u64,
    /// Objects of desired state.
    pub objects: usize,
    /// Registered workloads.
    pub workloads: usize,
    /// Proxies with a configuration stream.
    pub proxies: usize,
    /// NACKs since the start.
    pub nacks: u64,
    /// Resources that some proxy rejects now.
    pub standing_nacks: usize,
    /// When the root expires.
    pub root_expires: Option<SystemTime>,
    /// When the control plane's own certificate expires.
    pub serving_expires: Option<SystemTime>,
}

/// The routes of the metrics port.
pub fn router(metrics: Arc<Metrics>, gauges: Arc<dyn Gauges>) -> Router {
    Router::new()
        .route("/metrics", routing::get(scrape))
        .route("/readyz", routing::get(ready))
        .route("/livez", routing::get(|| async { "ok\n" }))
        .with_state((metrics, gauges))
}

type MetricsState = (Arc<Metrics>, Arc<dyn Gauges>);

async fn ready(State((metrics, _)): State<MetricsState>) -> impl IntoResponse {
    if metrics.ready.load(Ordering::Acquire) {
        let degraded = metrics.registry_file_failing.load(Ordering::Relaxed);
        // The traffic and every change are served all the same, so this is no reason to restart it or to call another one.
        (
            StatusCode::OK,
            if degraded { "ready\ndegraded: the registry's file cannot be written, see the log\n" } else { "ready\n" },
        )
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
    }
}

async fn scrape(State((metrics, gauges)): State<MetricsState>) -> impl IntoResponse {
    ([(http::header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], render(&metrics, &gauges.read()))
}

fn render(metrics: &Metrics, now: &Readings) -> String {
    // The names and their help, in the order of the table in docs/guide/operating.md.
    let mut text = String::with_capacity(4096);
    let mut add = |name: &str, kind: &str, help: &str, samples: &[(&str, String)]| {
        let header = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        let samples = samples.iter().try_for_each(|(labels, value)| writeln!(text, "{name}{labels} {value}"));
        debug_assert!(header.is_ok() && samples.is_ok(), "writing to a string cannot fail");
    };
    let seconds = |at: Option<SystemTime>| {
        let since = at.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
        since.map_or(0, |since| since.as_secs()).to_string()
    };
    let one = |value: String| [("", value)];
    add(
        "weft_control_plane_info",
        "gauge",
        "The version of the program.",
        &[(concat!("{version=\"", env!("CARGO_PKG_VERSION"), "\"}"), "1".into())],
    );
    add("weft_store_revision", "gauge", "The newest revision of desired state.", &one(now.revision.to_string()));
    add("weft_store_objects", "gauge", "Objects of desired state.", &one(now.objects.to_string()));
    add("weft_registry_workloads", "gauge", "Registered workloads.", &one(now.workloads.to_string()));
    add(
        "weft_registry_expired_total",
        "counter",
        "Workloads that expired without heartbeats.",
        &one(metrics.workloads_expired.value().to_string()),
    );
    add(
        "weft_registry_claims_refused_total",
        "counter",
        "Claims of addresses that were refused.",
        &one(metrics.claims_refused.value().to_string()),
    );
    add(
        "weft_registry_write_failures_total",
        "counter",
        "Writes of the registry's file that failed.",
        &one(metrics.registry_write_failures.value().to_string()),
    );
    add(
        "weft_registry_file_failing",
        "gauge",
        "1 while the registry's file cannot be written.",
        &one(u8::from(metrics.registry_file_failing.load(Ordering::Relaxed)).to_string()),
    );
    add("weft_discovery_proxies", "gauge", "Proxies with a configuration stream.", &one(now.proxies.to_string()));
    add("weft_discovery_nacks_total", "counter", "NACKs by proxies.", &one(now.nacks.to_string()));
    add(
        "weft_discovery_standing_nacks",
        "gauge",
        "Resources with a NACK that still stands.",
        &one(now.standing_nacks.to_string()),
    );
    add(
        "weft_ca_certificates_issued_total",
        "counter",
        "Certificates issued to workloads.",
        &one(metrics.certificates_issued.value().to_string()),
    );
    add(
        "weft_ca_root_expiry_timestamp_seconds",
        "gauge",
        "When the root certificate expires.",
        &one(seconds(now.root_expires)),
    );
    add(
        "weft_ca_serving_expiry_timestamp_seconds",
        "gauge",
        "When the control plane's own certificate expires.",
        &one(seconds(now.serving_expires)),
    );
    let classes = ["{code=\"2xx\"}", "{code=\"3xx\"}", "{code=\"4xx\"}", "{code=\"5xx\"}"];
    let answers: Vec<_> = classes.into_iter().zip(metrics.api_answers.iter().map(|c| c.value().to_string())).collect();
    add("weft_api_answers_total", "counter", "Answers of the REST API.", &answers);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guide_has_every_figure_and_no_other() {
        let text = render(&Metrics::default(), &Readings::default());
        let ours: std::collections::BTreeSet<&str> =
            text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
        let guide = include_str!("../../docs/guide/operating.md");
        let table = guide.split("The control plane's own metrics").nth(1).unwrap().split("By default").next().unwrap();
        let told = table.split('`').skip(1).step_by(2).filter(|name| name.starts_with("weft_")).collect();
        assert_eq!(ours, told);
    }

    #[test]
    fn every_figure_has_help_a_type_and_a_value() {
        let metrics = Metrics::default();
        metrics.api_answer(StatusCode::CREATED);
        metrics.api_answer(StatusCode::NOT_FOUND);
        let text = render(&metrics, &Readings { revision: 7, ..Readings::default() });
        assert!(text.contains("\nweft_store_revision 7\n"), "{text}");
        assert!(text.contains("weft_api_answers_total{code=\"2xx\"} 1\n"), "{text}");
        let (help, types) = (text.matches("# HELP ").count(), text.matches("# TYPE ").count());
        assert_eq!(help, types);
        assert!(
            text.lines()
                .all(|line| line.starts_with('#')
                    || line.rsplit_once(' ').is_some_and(|(_, v)| v.parse::<f64>().is_ok()))
        );
    }
}
