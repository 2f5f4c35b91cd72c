//! Processor time and memory of processes, from /proc, and the arithmetic on rounds.
//!
//! CPU time is the sum over a process's threads of the first field of `schedstat`: nanoseconds on a CPU, where `stat` counts in
//! ticks of 10 ms. Memory is RssAnon + RssFile: what the process keeps in memory, without shared memory segments.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

/// CPU time of one process by thread.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuTime {
    threads: BTreeMap<i32, u64>,
}

impl CpuTime {
    /// Reads the threads of process `pid`.
    ///
    /// # Errors
    /// There is no such process, or the kernel has no schedstat.
    pub fn read(pid: i32) -> Result<Self> {
        let dir = format!("/proc/{pid}/task");
        let mut threads = BTreeMap::new();
        for entry in std::fs::read_dir(&dir).with_context(|| format!("read {dir}"))? {
            let entry = entry?;
            let thread = entry.file_name().to_str().and_then(|name| name.parse().ok()).context("a thread's id")?;
            let path = entry.path().join("schedstat");
            match std::fs::read_to_string(&path) {
                Ok(text) => {
                    let nanos = parse_schedstat(&text).with_context(|| format!("{}: {text:?}", path.display()))?;
                    threads.insert(thread, nanos);
                }
                // The thread ended between the two calls.
                Err(_) if !entry.path().exists() => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("read {}", path.display()));
                }
            }
        }
        Ok(Self { threads })
    }

    /// CPU time spent since `earlier`; of threads that ended meanwhile nothing is known.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Duration {
        let spent = |(thread, now): (&i32, &u64)| now.saturating_sub(*earlier.threads.get(thread).unwrap_or(&0));
        Duration::from_nanos(self.threads.iter().map(spent).sum())
    }
}

fn parse_schedstat(text: &str) -> Option<u64> {
    text.split_whitespace().next()?.parse().ok()
}

/// Bytes of RssAnon + RssFile of process `pid`.
///
/// # Errors
/// There is no such process.
pub fn resident_bytes(pid: i32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    parse_status(&text).with_context(|| format!("no RssAnon and RssFile in {path}"))
}

fn parse_status(text: &str) -> Option<u64> {
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    };
    Some((field("RssAnon:")? + field("RssFile:")?) * 1024)
}

/// What the whole machine did, from `/proc/stat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MachineTime {
    /// Time in processes, summed over all CPUs; interrupts left out.
    busy: Duration,
    /// Time that the hypervisor gave to others.
    stolen: Duration,
}

impl MachineTime {
    /// Reads it.
    ///
    /// # Errors
    /// There is no /proc/stat.
    pub fn read() -> Result<Self> {
        let text = std::fs::read_to_string("/proc/stat").context("read /proc/stat")?;
        parse_stat(&text, rustix::param::clock_ticks_per_second()).context("/proc/stat has no line of all CPUs")
    }

    /// Time since `earlier` that was neither idle nor ours.
    /// A lower bound: our own time contains interrupts served meanwhile, the machine's does not.
    #[must_use]
    pub fn foreign_since(&self, earlier: &Self, ours: Duration) -> Duration {
        let busy = self.busy.saturating_sub(earlier.busy).saturating_sub(ours);
        busy + self.stolen.saturating_sub(earlier.stolen)
    }
}

fn parse_stat(text: &str, ticks_per_second: u64) -> Option<MachineTime> {
    let line = text.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let mut fields = line.split_whitespace().map(str::parse::<u64>);
    let mut next = || fields.next()?.ok();
    let (user, nice, system) = (next()?, next()?, next()?);
    let (_idle, _iowait, _irq, _softirq, stolen) = (next()?, next()?, next()?, next()?, next()?);
    let time = |ticks: u64| Some(Duration::from_millis(ticks.checked_mul(1000)?.checked_div(ticks_per_second)?));
    Some(MachineTime { busy: time(user + nice + system)?, stolen: time(stolen)? })
}

/// Reads a small file of /proc as a version check of this kernel: schedstat must be there.
///
/// # Errors
/// The kernel was built without CONFIG_SCHED_INFO.
pub fn check_kernel() -> Result<()> {
    if !Path::new("/proc/self/schedstat").is_file() {
        anyhow::bail!("this kernel has no /proc/PID/schedstat (CONFIG_SCHED_INFO), which the bench measures with");
    }
    Ok(())
}

/// The middle value; of an even number the mean of the two in the middle; 0 of none.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let at = |index: usize| sorted.get(index).copied().unwrap_or(0.0);
    if sorted.len() % 2 == 1 { at(middle) } else { (at(middle.wrapping_sub(1)) + at(middle)) / 2.0 }
}

/// The smallest value that at least `percent` of all values do not exceed (nearest rank); `None` of none.
/// Sorts `values`.
#[must_use]
pub fn percentile(values: &mut [u64], percent: u8) -> Option<u64> {
    values.sort_unstable();
    let rank = (values.len() * usize::from(percent)).div_ceil(100).max(1);
    values.get(rank - 1).copied()
}

/// How far apart the rounds are: (largest - smallest) / median; 0 of none.
#[must_use]
pub fn spread(values: &[f64]) -> f64 {
    let largest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let smallest = values.iter().copied().fold(f64::INFINITY, f64::min);
    let median = median(values);
    if median > 0.0 { (largest - smallest) / median } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_counts_new_threads_whole_and_ended_threads_not_at_all() {
        let earlier = CpuTime { threads: BTreeMap::from([(1, 100), (2, 700)]) };
        let later = CpuTime { threads: BTreeMap::from([(1, 150), (3, 25)]) };
        assert_eq!(later.since(&earlier), Duration::from_nanos(75));
    }

    #[test]
    fn own_cpu_time_grows_with_work() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let before = CpuTime::read(pid).unwrap();
        let started = std::time::SystemTime::now();
        let mut sum = 0_u64;
        while started.elapsed().unwrap() < Duration::from_millis(50) {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        let spent = CpuTime::read(pid).unwrap().since(&before);
        assert!(spent > Duration::from_millis(5), "{spent:?}");
    }

    #[test]
    fn schedstat_is_nanoseconds_on_cpu_first() {
        assert_eq!(parse_schedstat("32905856 10694707 89\n"), Some(32_905_856));
        assert_eq!(parse_schedstat(""), None);
        assert_eq!(parse_schedstat("x 1 2"), None);
    }

    #[test]
    fn memory_is_anonymous_and_file_pages() {
        let text =
            "Name:\tenvoy\nVmRSS:\t   70000 kB\nRssAnon:\t   20480 kB\nRssFile:\t   40960 kB\nRssShmem:\t  8560 kB\n";
        assert_eq!(parse_status(text), Some(60 * 1024 * 1024));
        assert_eq!(parse_status("RssAnon:\t 1 kB\n"), None);
        let pid = i32::try_from(std::process::id()).unwrap();
        assert!(resident_bytes(pid).unwrap() > 100 * 1024);
    }

    #[test]
    fn the_machine_s_time_leaves_out_idle_and_interrupts() {
        let before = "cpu  100 10 50 9000 5 7 9 3 0 0\ncpu0 1 2 3 4 5 6 7 8 0 0\n";
        let after = "cpu  160 10 70 9500 5 17 19 5 0 0\n";
        let (before, after) = (parse_stat(before, 100).unwrap(), parse_stat(after, 100).unwrap());
        // 80 ticks of processes and 2 stolen; 30 of the 80 were ours.
        assert_eq!(after.foreign_since(&before, Duration::from_millis(300)), Duration::from_millis(520));
        assert_eq!(after.foreign_since(&before, Duration::from_secs(9)), Duration::from_millis(20));
        assert!(MachineTime::read().unwrap().busy > Duration::ZERO);
    }

    #[test]
    fn medians() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(&[7.0]), 7.0);
        assert_eq!(median(&[]), 0.0);
    }

    #[test]
    fn percentiles_by_nearest_rank() {
        let mut hundred: Vec<u64> = (1..=100).rev().collect();
        assert_eq!(percentile(&mut hundred, 50), Some(50));
        assert_eq!(percentile(&mut hundred, 99), Some(99));
        assert_eq!(percentile(&mut [5, 4, 3, 2, 1], 50), Some(3));
        assert_eq!(percentile(&mut [5, 4], 99), Some(5));
        assert_eq!(percentile(&mut [], 50), None);
    }

    #[test]
    fn spread_is_relative_to_the_median() {
        assert_eq!(spread(&[9.0, 10.0, 12.0]), 0.3);
        assert_eq!(spread(&[5.0]), 0.0);
        assert_eq!(spread(&[]), 0.0);
    }
}
