//! The directory of the programs under test: `WEFT_BIN`, else the directory this test was built into (`target/debug`).

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// The path of one of our programs, such as `weft-proxy`.
///
/// Errors: it is not there: `make test` builds all of them first.
pub fn find(name: &str) -> Result<PathBuf> {
    let path = directory()?.join(name);
    ensure!(path.is_file(), "{} is missing: run `cargo build --workspace` first, or set WEFT_BIN", path.display());
    Ok(path)
}

/// `WEFT_BIN`, else the profile directory above the running test program.
#[expect(clippy::disallowed_methods, reason = "the harness is configured by this variable alone")]
fn directory() -> Result<PathBuf> {
    if let Some(directory) = std::env::var_os("WEFT_BIN") {
        return Ok(PathBuf::from(directory));
    }
    let test = std::env::current_exe().context("find the running test program")?;
    let profile = test.ancestors().nth(2).context("the test program is not in target/<profile>/deps")?;
    Ok(profile.to_owned())
}

/// The repository.
pub fn repository() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here)
}

/// `target/e2e-logs`: the output of every test's processes, kept until the same test runs again.
pub fn logs() -> PathBuf {
    repository().join("target/e2e-logs")
}
