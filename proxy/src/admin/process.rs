//! Metrics of this process from the kernel. Spec: proc(5); the names are those of Prometheus' client libraries.

use std::fs;

use crate::telemetry::exposition::Sample;

/// Field numbers of /proc/self/stat, counted from the one after the command's name.
const USER_TIME: usize = 11;
const SYSTEM_TIME: usize = 12;
const START_TIME: usize = 19;

/// Memory, CPU, descriptors and start; a value that cannot be read is left out.
pub(super) fn samples() -> Vec<Sample> {
    let mut out = Vec::new();
    let mut add = |name, help, value: Option<f64>| {
        out.extend(value.map(|value| Sample { name, help, labels: Vec::new(), value }));
    };
    add("process_resident_memory_bytes", "Memory in use.", resident());
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name of the command may hold blanks and brackets.
    let fields: Vec<&str> = stat.rsplit_once(") ").map(|(_, rest)| rest.split(' ').collect()).unwrap_or_default();
    let ticks = |index: usize| fields.get(index).and_then(|text| text.parse::<f64>().ok());
    #[expect(clippy::cast_precision_loss, reason = "100")]
    let second = rustix::param::clock_ticks_per_second() as f64;
    let cpu = ticks(USER_TIME).zip(ticks(SYSTEM_TIME)).map(|(user, system)| (user + system) / second);
    add("process_cpu_seconds_total", "CPU time spent.", cpu);
    let start = ticks(START_TIME).zip(boot_time()).map(|(start, boot)| boot + start / second);
    add("process_start_time_seconds", "Start of the process, Unix time.", start);
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let open = fs::read_dir("/proc/self/fd").ok().map(|entries| entries.count().saturating_sub(1) as f64);
    add("process_open_fds", "Open file descriptors.", open);
    let threads = fs::read_dir("/proc/self/task").ok().map(|entries| {
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let count = entries.count() as f64;
        count
    });
    add("process_threads", "Threads.", threads);
    out
}

#[expect(clippy::cast_precision_loss, reason = "a page size")]
fn resident() -> Option<f64> {
    let pages: f64 = fs::read_to_string("/proc/self/statm").ok()?.split(' ').nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as f64)
}

fn boot_time() -> Option<f64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_time_and_files() {
        let samples = samples();
        let value = |name: &str| samples.iter().find(|sample| sample.name == name).unwrap().value;
        assert!(value("process_resident_memory_bytes") > 1e6);
        assert!(value("process_open_fds") >= 3.0 && value("process_threads") >= 1.0);
        let since = crate::tls::unix_now() as f64 - value("process_start_time_seconds");
        assert!((-2.0..36_000.0).contains(&since), "{since}");
        assert!(value("process_cpu_seconds_total") < 36_000.0);
    }
}
