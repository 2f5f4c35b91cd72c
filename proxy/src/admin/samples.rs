//! Metrics that are read at each scrape: certificate, configuration, streams, process.

use std::sync::atomic::Ordering::Relaxed;

use super::process;
use crate::{config::Source, control::View, status::Status, telemetry::exposition::Sample};

/// All of them.
#[expect(clippy::cast_precision_loss, reason = "gauges")]
pub(super) fn samples(view: &View) -> Vec<Sample> {
    let mut out = Vec::new();
    let mut add = |name, help, value: f64| out.push(Sample { name, help, labels: Vec::new(), value });
    let status = &view.status;
    // Absent without a certificate: a 0 would read as one that expired long ago.
    if let Some(tls) = view.tls.load().as_ref() {
        add("weft_certificate_not_after_seconds", "End of the certificate in force, Unix time.", tls.not_after as f64);
        add(
            "weft_certificate_not_before_seconds",
            "Start of the certificate in force, Unix time.",
            tls.svid.not_before as f64,
        );
    }
    add("weft_certificate_renewals_total", "Certificates that came into force.", *status.certificates.borrow() as f64);
    add(
        "weft_certificate_failures_total",
        "Tries to get a certificate that failed.",
        status.certificate_failures.load(Relaxed) as f64,
    );
    let live = view.live.load();
    add("weft_config_revision", "Revision wholly in force; 0 from a file.", status.applied.borrow().revision as f64);
    add("weft_config_swaps_total", "Configurations put in force.", status.swaps.load(Relaxed) as f64);
    let refusing = f64::from(u8::from(status.refused_origin.lock().is_some()));
    add("weft_config_control_plane_refused", "Whether the control plane is of another mesh, or older.", refusing);
    add("weft_config_refused_total", "Resources refused.", status.refused.load(Relaxed) as f64);
    for (kind, count) in [
        ("listener", live.resources.listeners.len()),
        ("route", live.resources.routes.len()),
        ("cluster", live.resources.clusters.len()),
    ] {
        out.push(Sample {
            name: "weft_config_resources",
            help: "Resources in force, by kind.",
            labels: vec![("kind", kind.to_owned())],
            value: count as f64,
        });
    }
    out.push(Sample {
        name: "weft_endpoints_withheld",
        help: "Endpoints that were in the mesh, have no identity now, and are not called.",
        labels: Vec::new(),
        value: view.live.withheld_sets().iter().map(|set| set.endpoints.len() as f64).sum(),
    });
    // From a file there is no stream whose loss could raise an alarm.
    if matches!(view.settings.source, Source::ControlPlane(_)) {
        out.extend(streams(status));
    }
    let captured = *status.captured.borrow();
    for (direction, redirected) in [("outbound", captured.outbound), ("inbound", captured.inbound)] {
        // Absent if it is not known: neither number would be true.
        out.extend(redirected.known().map(|redirected| Sample {
            name: "weft_redirected",
            help: "Whether connections are redirected to the proxy; absent if not known.",
            labels: vec![("direction", direction.to_owned())],
            value: f64::from(u8::from(redirected)),
        }));
    }
    let mut add = |name, help, value: f64| out.push(Sample { name, help, labels: Vec::new(), value });
    add("weft_ready", "Whether traffic can be taken.", f64::from(u8::from(view.not_ready().is_empty())));
    out.push(Sample {
        name: "weft_build_info",
        help: "Always 1; the version is a label.",
        labels: vec![("version", env!("CARGO_PKG_VERSION").to_owned())],
        value: 1.0,
    });
    out.extend(process::samples());
    out
}

/// The streams to the control plane; there are none when everything comes from a file.
#[expect(clippy::cast_precision_loss, reason = "gauges")]
fn streams(status: &Status) -> Vec<Sample> {
    let mut out = Vec::new();
    let mut add = |name, help, value: f64| out.push(Sample { name, help, labels: Vec::new(), value });
    add(
        "weft_discovery_connected",
        "Whether there is a discovery stream.",
        f64::from(u8::from(status.discovery.is_up())),
    );
    add(
        "weft_discovery_age_seconds",
        "Time since there was a discovery stream; 0 while there is one.",
        status.discovery.age(),
    );
    add("weft_discovery_connects_total", "Discovery streams opened.", *status.discovery.connects.borrow() as f64);
    add("weft_discovery_subscriptions", "Listeners asked for.", status.subscriptions.load(Relaxed) as f64);
    add(
        "weft_agent_connected",
        "Whether the control plane has this proxy registered.",
        f64::from(u8::from(status.agent.is_up())),
    );
    add("weft_agent_connects_total", "Registrations.", *status.agent.connects.borrow() as f64);
    out
}
