//! Processor time and memory of processes, from /proc, and the arithmetic on rounds.
//!
//! CPU time is the sum over a process's threads of the first field of `schedstat`: nanoseconds on a CPU, where `stat` counts in
//! ticks of 10 ms. Memory is RssAnon + RssFile: what the process keeps in memory, without shared memory segments.

use std::collections::BTreeMap;
use std::net::SocketAddrV4;
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

/// How the CPU time since `earlier` is shared between the threads of process `pid` whose names begin with `prefix`: the largest
/// share, 0..=1; `None` when there is no such thread or none ran.
#[must_use]
pub fn largest_share(pid: i32, prefix: &str, earlier: &CpuTime, later: &CpuTime) -> Option<f64> {
    let of_thread = |thread: &i32| {
        let name = std::fs::read_to_string(format!("/proc/{pid}/task/{thread}/comm")).ok()?;
        let now = later.threads.get(thread)?;
        name.starts_with(prefix).then(|| now.saturating_sub(*earlier.threads.get(thread).unwrap_or(&0)))
    };
    let times: Vec<u64> = later.threads.keys().filter_map(of_thread).collect();
    let (largest, all) = (*times.iter().max()?, times.iter().sum::<u64>());
    (all > 0).then(|| largest as f64 / all as f64)
}

/// Open TCP connections of this machine whose far end is `address`.
///
/// # Errors
/// There is no /proc.
pub fn connections_to(address: SocketAddrV4) -> Result<u32> {
    let text = std::fs::read_to_string("/proc/net/tcp").context("read /proc/net/tcp")?;
    Ok(count_established(&text, address))
}

/// Columns: number, own address, far address, state (01: established).
fn count_established(text: &str, address: SocketAddrV4) -> u32 {
    let far = format!("{:08X}:{:04X}", u32::from_ne_bytes(address.ip().octets()), address.port());
    let is_ours = |line: &&str| {
        let mut columns = line.split_whitespace().skip(2);
        columns.next() == Some(far.as_str()) && columns.next() == Some("01")
    };
    u32::try_from(text.lines().filter(is_ours).count()).unwrap_or(u32::MAX)
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

/// CPU time that did not go to the measurement, since the machine's start.
///
/// It is the time of all other processes and of their ended children (so a compiler that ends in between is counted), and
/// what the hypervisor gave to others. Processes in other process-id namespaces are not seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForeignTime(Duration);

impl ForeignTime {
    /// Reads the machine's time without the processes `ours`.
    ///
    /// # Errors
    /// There is no /proc.
    pub fn read(ours: &[i32]) -> Result<Self> {
        let stat = std::fs::read_to_string("/proc/stat").context("read /proc/stat")?;
        let mut ticks = parse_stolen(&stat).context("/proc/stat has no line of all CPUs")?;
        for entry in std::fs::read_dir("/proc").context("read /proc")? {
            let entry = entry?;
            let pid = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok());
            if pid.is_some_and(|pid| !ours.contains(&pid)) {
                // A process that ended since the directory was read has its time in its parent's.
                let text = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
                ticks += parse_process_stat(&text).unwrap_or(0);
            }
        }
        let millis = ticks.saturating_mul(1000).checked_div(rustix::param::clock_ticks_per_second());
        Ok(Self(Duration::from_millis(millis.context("the kernel's clock has no ticks")?)))
    }

    /// What was spent since `earlier`.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

/// The eighth number of the line of all CPUs, in ticks.
fn parse_stolen(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("cpu "))?;
    line.split_whitespace().nth(7)?.parse().ok()
}

/// utime + stime + cutime + cstime in ticks. The name before may itself hold spaces and parentheses.
fn parse_process_stat(text: &str) -> Option<u64> {
    let (_, fields) = text.rsplit_once(')')?;
    let times = fields.split_whitespace().skip(11).take(4).map(|field| field.parse::<u64>().ok());
    times.sum()
}

/// How long the file is that process `pid` prints to, bytes.
///
/// # Errors
/// There is no such process.
pub fn printed_bytes(pid: i32) -> Result<u64> {
    let output = format!("/proc/{pid}/fd/1");
    Ok(std::fs::metadata(&output).with_context(|| format!("look at {output}"))?.len())
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
    fn process_times_include_ended_children() {
        let text = "3303 (a) b (c) S 3300 3303 3303 0 -1 4194560 3171 159385 0 80 1 2 519 138 20 0 1 0 48257 5124096";
        assert_eq!(parse_process_stat(text), Some(1 + 2 + 519 + 138));
        assert_eq!(parse_process_stat("3303 (bash) S 1 2"), Some(0));
        assert_eq!(parse_process_stat(""), None);
        assert_eq!(parse_stolen("cpu  100 10 50 9000 5 7 9 3 0 0\ncpu0 1 2 3 4 5 6 7 8 0 0\n"), Some(3));
    }

    #[test]
    fn foreign_time_sees_a_busy_child_and_not_what_is_ours() {
        let own = i32::try_from(std::process::id()).unwrap();
        let (with, without) = (ForeignTime::read(&[]).unwrap(), ForeignTime::read(&[own]).unwrap());
        // 0.3 s of work in a process that has ended, and was waited for, by the second reading.
        let script = "end=$(($(date +%s%N) + 300000000)); while [ $(date +%s%N) -lt $end ]; do :; done";
        assert!(std::process::Command::new("/bin/sh").args(["-c", script]).status().unwrap().success());
        let (with, without) =
            (ForeignTime::read(&[]).unwrap().since(with), ForeignTime::read(&[own]).unwrap().since(without));
        assert!(with > without + Duration::from_millis(30), "{with:?} {without:?}");
    }

    #[test]
    fn connections_are_told_by_their_far_end() {
        let text = "  sl  local_address rem_address   st\n\
                    0: 0100007F:1F90 00000000:0000 0A\n\
                    1: 0100007F:C001 0100007F:1F90 01\n\
                    2: 0100007F:1F90 0100007F:C001 01\n\
                    3: 0100007F:C002 0100007F:1F90 06\n";
        assert_eq!(count_established(text, "127.0.0.1:8080".parse().unwrap()), 1);
        assert_eq!(count_established(text, "127.0.0.1:1".parse().unwrap()), 0);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let std::net::SocketAddr::V4(address) = listener.local_addr().unwrap() else { panic!() };
        let _connections = [(); 3].map(|()| std::net::TcpStream::connect(address).unwrap());
        assert_eq!(connections_to(address).unwrap(), 3);
    }

    #[test]
    fn the_largest_share_is_of_threads_with_the_name() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let threads = |time| CpuTime { threads: BTreeMap::from([(pid, time)]) };
        let name = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/comm")).unwrap();
        assert_eq!(largest_share(pid, name.trim(), &threads(5), &threads(25)), Some(1.0));
        assert_eq!(largest_share(pid, name.trim(), &threads(25), &threads(25)), None);
        assert_eq!(largest_share(pid, "no such name", &threads(5), &threads(25)), None);
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
