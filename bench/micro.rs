//! The harness of micro-benchmarks: instructions per operation, counted by valgrind, which are reproducible unlike times.
//! Shape: a `benches/micro.rs` with `harness = false` includes this file by `#[path]`, lists its [`Case`]s and calls [`run`].
//! How: the program runs itself once per case under callgrind, which counts only inside [`measured`]; the time in
//! nanoseconds is measured without valgrind, for information. Counts are compared with `baseline.txt` beside the bench: a
//! case that takes over [`LIMIT`] more instructions fails, until `--accept` rewrites the baseline.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs, io,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

/// Permitted growth over the baseline, as a ratio.
const LIMIT: f64 = 0.05;
/// The same if another compiler made the baseline: inlining differs, but a scan in place of a look-up still shows.
const LIMIT_OTHER_COMPILER: f64 = 0.25;
/// Counted operations; as many uncounted ones run first, for caches that fill at first use.
const OPERATIONS: usize = 1000;
const BATCHES: usize = 20;

/// One operation on one input.
pub(crate) struct Case {
    /// `<room>/<what>-<size>`.
    pub(crate) name: &'static str,
    /// Creates the input, which is not counted, and returns the operation; its argument counts up, to vary the input.
    pub(crate) make: fn() -> Box<dyn FnMut(usize)>,
}

/// Runs the cases whose names contain one of the arguments (all without any). `directory`: where `baseline.txt` is.
pub(crate) fn run(directory: &str, cases: &[Case]) -> ExitCode {
    let (flags, wanted): (Vec<String>, Vec<String>) = std::env::args()
        .skip(1)
        .filter(|argument| argument != "--bench")
        .partition(|argument| argument.starts_with("--"));
    match flags.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["--child"] => {
            for case in cases.iter().filter(|case| wanted.iter().any(|name| name == case.name)) {
                let mut operation = (case.make)();
                (0..OPERATIONS).for_each(&mut operation);
                measured(&mut operation);
            }
            return ExitCode::SUCCESS;
        }
        [] | ["--accept"] => {}
        _ => {
            eprintln!("usage: [--accept] [NAME...]   --accept: make the current counts the new baseline");
            return ExitCode::from(64);
        }
    }
    let cases: Vec<&Case> =
        cases.iter().filter(|case| wanted.is_empty() || wanted.iter().any(|part| case.name.contains(part))).collect();
    match compare(&PathBuf::from(directory).join("baseline.txt"), &cases, !flags.is_empty()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(70)
        }
    }
}

/// Only instructions in this function are counted; callgrind looks for its name.
#[inline(never)]
fn measured(operation: &mut dyn FnMut(usize)) {
    for index in 0..OPERATIONS {
        operation(std::hint::black_box(index));
    }
}

fn compare(path: &Path, cases: &[&Case], accept: bool) -> io::Result<bool> {
    let compiler = compiler()?;
    let baseline = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error),
    };
    let made_by = baseline.lines().find_map(|line| line.strip_prefix("# compiler: ")).unwrap_or(&compiler);
    let architecture = |text: &str| text.split(' ').next().map(str::to_owned);
    let is_comparable = architecture(made_by) == architecture(&compiler);
    let limit = if made_by == compiler { LIMIT } else { LIMIT_OTHER_COMPILER };
    if !is_comparable {
        println!("The baseline is of another architecture ({made_by}): nothing is compared.");
    } else if made_by != compiler {
        println!(
            "The baseline is of {made_by}, this compiler is {compiler}: only growth by more than {:.0} % fails.",
            limit * 100.0
        );
    }
    let mut known: BTreeMap<String, u64> = baseline
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once(' '))
        .filter_map(|(name, count)| Some((name.to_owned(), count.trim().parse().ok()?)))
        .collect();
    let mut good = true;
    println!("{:<28} {:>12} {:>12} {:>8} {:>9}", "case", "instructions", "baseline", "change", "ns");
    for case in cases {
        let (count, time) = (instructions(case)?, nanoseconds(case));
        let before = known.insert(case.name.to_owned(), count);
        let change = before.map(|before| count as f64 / before.max(1) as f64 - 1.0);
        let verdict = match change {
            _ if accept || !is_comparable => "",
            None => "  no baseline",
            Some(change) if change > limit => "  GREW",
            Some(change) if change < -limit => "  fewer than the baseline: accept them to guard the improvement",
            Some(_) => "",
        };
        good &= !matches!(verdict, "  GREW" | "  no baseline");
        let before = before.map_or("-".to_owned(), |before| before.to_string());
        let change = change.map_or("-".to_owned(), |change| format!("{:+.1} %", change * 100.0));
        println!("{:<28} {count:>12} {before:>12} {change:>8} {time:>9.1}{verdict}", case.name);
    }
    if accept {
        let mut text = format!(
            "# Instructions for one operation of each micro-benchmark. Written by `make bench-micro ARGS=--accept`.\n# compiler: {compiler}\n"
        );
        for (name, count) in &known {
            writeln!(text, "{name} {count}").map_err(io::Error::other)?;
        }
        fs::write(path, text)?;
        println!("Written to {}.", path.display());
    } else if !good {
        println!("To accept these counts: make bench-micro ARGS=--accept, and give the reason in the commit.");
    }
    Ok(good)
}

/// Instructions for one operation.
fn instructions(case: &Case) -> io::Result<u64> {
    let report =
        std::env::temp_dir().join(format!("weft-micro-{}-{}", std::process::id(), case.name.replace('/', "-")));
    let status = Command::new("valgrind")
        .args(["--tool=callgrind", "--quiet", "--collect-atstart=no", "--toggle-collect=*micro*::measured*"])
        .arg(format!("--callgrind-out-file={}", report.display()))
        .arg(std::env::current_exe()?)
        .args(["--child", case.name])
        .stdin(Stdio::null())
        .status()
        .map_err(|error| io::Error::new(error.kind(), format!("valgrind: {error}")))?;
    let text = fs::read_to_string(&report);
    fs::remove_file(&report)
        .or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })?;
    let total = text?.lines().find_map(|line| line.strip_prefix("totals: ")?.trim().parse::<u64>().ok());
    match total {
        Some(total) if status.success() && total > 0 => Ok(total / OPERATIONS as u64),
        _ => Err(io::Error::other(format!("{}: valgrind counted nothing ({status})", case.name))),
    }
}

/// The time of one operation: the best batch.
fn nanoseconds(case: &Case) -> f64 {
    let mut operation = (case.make)();
    let batch = |operation: &mut dyn FnMut(usize)| {
        #[expect(clippy::disallowed_methods, reason = "real time is what is measured")]
        let start = Instant::now();
        measured(operation);
        start.elapsed()
    };
    let best = (0..BATCHES).map(|_| batch(&mut operation)).min().unwrap_or(Duration::ZERO);
    best.as_nanos() as f64 / OPERATIONS as f64
}

/// Architecture and version of the compiler.
fn compiler() -> io::Result<String> {
    let output = Command::new("rustc").arg("--version").stdin(Stdio::null()).output()?;
    Ok(format!("{} {}", std::env::consts::ARCH, String::from_utf8_lossy(&output.stdout).trim()))
}
