//! Required programs, files and tools. Everything that is missing is reported at once.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::embedded;
use weft::args::Demo;

/// The demo's own directory while it runs: data, sockets, configuration, lock.
pub(crate) const STATE: &str = "/run/weft-demo";
/// The logs of the last run.
pub(crate) const LOGS: &str = "/var/log/weft-demo";

/// Every path that the demo needs.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    /// `weft-proxy`
    pub(crate) proxy: String,
    /// `weft-control-plane`
    pub(crate) control_plane: String,
    /// `shop-order`
    pub(crate) order: String,
    /// `shop-load`
    pub(crate) load: String,
    /// The mesh's objects: `deploy/demo`, or the copy that the program contains.
    pub(crate) objects: PathBuf,
    /// The shop's scripts: `shop` in `objects`.
    pub(crate) shop: PathBuf,
    /// A Python with grpcio.
    pub(crate) python: String,
    /// Node.
    pub(crate) node: String,
    /// PostgreSQL's own directory of programs.
    pub(crate) postgres: PathBuf,
}

impl Places {
    /// Finds everything.
    ///
    /// Errors: each missing thing on a line, with its source.
    pub(crate) fn find(args: &Demo) -> Result<Self> {
        let mut missing = Vec::new();
        let here = std::env::current_exe().context("find this program")?;
        let bin = match &args.bin {
            Some(bin) => bin.clone(),
            None => here.parent().context("this program has no directory")?.to_owned(),
        };
        let bin = fs::canonicalize(&bin).with_context(|| format!("--bin {}", bin.display()))?;
        let mut program = |name: &str, package: &str| {
            let path = bin.join(name);
            if !path.is_file() {
                missing.push(format!(
                    "{}: cargo build --release -p {package}, or give its directory with --bin",
                    path.display()
                ));
            }
            path.display().to_string()
        };
        let proxy = program("weft-proxy", "weft-proxy");
        let control_plane = program("weft-control-plane", "weft-control-plane");
        let order = program("shop-order", "weft-demo-order");
        let load = program("shop-load", "weft-demo-order");

        let objects = match &args.shop {
            Some(directory) => {
                fs::canonicalize(directory).with_context(|| format!("--shop {}", directory.display()))?
            }
            None => Path::new(STATE).join("files"),
        };
        if args.shop.is_none() {
            embedded::unpack(&objects)?;
        } else if !objects.join("shop/product/product.py").is_file() {
            missing.push(format!("--shop {}: no shop/product/product.py in it", objects.display()));
        }

        for (tool, package) in [
            ("ip", "iproute2"),
            ("nft", "nftables"),
            ("setpriv", "util-linux"),
            ("tcpdump", "tcpdump"),
            ("redis-server", "redis-server"),
        ] {
            if on_path(tool).is_none() {
                missing.push(format!("{tool}: apt-get install {package}"));
            }
        }
        let node = on_path("node").unwrap_or_else(|| {
            missing.push("node: apt-get install nodejs".to_owned());
            PathBuf::new()
        });
        // `make demo` installs grpcio in a venv of the repository, because Debian's Python takes no packages from elsewhere.
        // The repository is found from the current directory or from the program, which is usually in its target/.
        let venv = look_for(".tools/venv/bin/python", &here);
        let python = venv.or_else(|| on_path("python3")).unwrap_or_default();
        let postgres = newest_postgres().unwrap_or_else(|| {
            missing.push("PostgreSQL: apt-get install postgresql".to_owned());
            PathBuf::new()
        });
        if !missing.is_empty() {
            bail!("missing for the demo (`make demo` installs it):\n  {}", missing.join("\n  "));
        }
        let text = |path: PathBuf| path.display().to_string();
        let places = Self {
            proxy,
            control_plane,
            order,
            load,
            shop: objects.join("shop"),
            objects,
            python: text(python),
            node: text(node),
            postgres,
        };
        places.python_has_grpc()?;
        Ok(places)
    }

    fn python_has_grpc(&self) -> Result<()> {
        let output = std::process::Command::new(&self.python).args(["-c", "import grpc"]).output();
        let output = output.with_context(|| format!("start {}", self.python))?;
        ensure!(
            output.status.success(),
            "{} has no grpcio, which payment requires: apt-get install python3-grpcio; in the repository `make demo` installs it \
             in .tools/venv",
            self.python
        );
        Ok(())
    }
}

/// `what` in a parent of the current directory, or of `from`.
fn look_for(what: &str, from: &Path) -> Option<PathBuf> {
    let current = std::env::current_dir().unwrap_or_default();
    let above = |path: &Path| path.ancestors().map(|directory| directory.join(what)).find(|path| path.exists());
    above(&current).or_else(|| above(from))
}

#[expect(clippy::disallowed_methods, reason = "the search path of programs, not a setting")]
fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let more = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(more).map(|directory| directory.join(program)).find(|path| path.is_file())
}

fn newest_postgres() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").ok()?;
    let newest = versions.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()).max()?;
    Some(format!("/usr/lib/postgresql/{newest}/bin").into()).filter(|path: &PathBuf| path.join("postgres").is_file())
}
