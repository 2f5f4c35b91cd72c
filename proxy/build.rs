//! Puts the functions that a proxy executes side by side in the program (`build/layout.ld`), which maps less of it and finds them sooner (docs/adr/0013).

use std::{env, fs, io, path::Path};

#[expect(clippy::disallowed_methods, reason = "it is how cargo tells a build script what is built")]
fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=build/layout.ld");
    let is = |name: &str, value: &str| env::var(name).is_ok_and(|found| found == value);
    // Debug builds link often and are not measured; other linkers may not know such scripts.
    if is("PROFILE", "release") && is("CARGO_CFG_TARGET_OS", "linux") && is("CARGO_CFG_TARGET_ENV", "gnu") {
        // A copy beside what is built: cargo remembers its path, also for another checkout with the same target directory.
        let layout = Path::new(&env::var("OUT_DIR").map_err(io::Error::other)?).join("layout.ld");
        fs::copy("build/layout.ld", &layout)?;
        println!("cargo::rustc-link-arg-bins=-Wl,-T,{}", layout.display());
    }
    Ok(())
}
