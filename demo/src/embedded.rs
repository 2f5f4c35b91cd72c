//! The demo's files, part of the program: the mesh's objects and the shop's scripts of `deploy/demo`. They are written to
//! the demo's own directory at its start, so that the demo needs no copy of the repository.

use std::{
    fs,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::Path,
};

use anyhow::{Context as _, Result};

macro_rules! files {
    ($($path:literal),+ $(,)?) => {
        /// Every file: its path below `deploy/demo`, and its text.
        const FILES: &[(&str, &str)] = &[$(($path, include_str!(concat!("../../deploy/demo/", $path)))),+];
    };
}

files![
    "mesh.yaml",
    "services.yaml",
    "edge.yaml",
    "product-route.yaml",
    "policies.yaml",
    "resilience.yaml",
    "canary/10.yaml",
    "canary/50.yaml",
    "shop/user/user.js",
    "shop/user/resp.js",
    "shop/product/product.py",
    "shop/product/page.html",
    "shop/payment/payment.py",
    "shop/payment/messages.py",
    "shop/payment/charge.py",
];

/// Writes every file below `directory`, which must not exist yet. Its owner alone can change them.
///
/// Errors: a file cannot be written.
pub(crate) fn unpack(directory: &Path) -> Result<()> {
    for (path, text) in FILES {
        let path = directory.join(path);
        let parent = path.parent().context("a file has a directory")?;
        let make = fs::DirBuilder::new().recursive(true).mode(0o755).create(parent);
        make.with_context(|| format!("create {}", parent.display()))?;
        let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(&path);
        file.and_then(|mut file| std::io::Write::write_all(&mut file, text.as_bytes()))
            .with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn walk(directory: &Path, below: &Path, found: &mut BTreeSet<String>) {
        for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
            let (path, name) = (entry.path(), entry.file_name().into_string().unwrap());
            let kind = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
            if path.is_dir() && name != "order" && name != "__pycache__" {
                walk(&path, below, found);
            } else if ["yaml", "js", "py", "html"].contains(&kind) && !name.contains("test") {
                found.insert(path.strip_prefix(below).unwrap().display().to_string());
            }
        }
    }

    /// A script or an object that is added to `deploy/demo` and forgotten here would be missing without the repository. (27)
    #[test]
    fn the_program_contains_every_file_of_the_demo_and_writes_it_unchanged() {
        let original = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/demo"));
        let mut wanted = BTreeSet::new();
        walk(original, original, &mut wanted);
        let directory = tempfile::tempdir().unwrap();
        let copy = directory.path().join("files");
        unpack(&copy).unwrap();
        let mut written = BTreeSet::new();
        walk(&copy, &copy, &mut written);
        assert_eq!(written, wanted);
        for path in &wanted {
            assert_eq!(fs::read(copy.join(path)).unwrap(), fs::read(original.join(path)).unwrap(), "{path}");
        }
        unpack(&copy).expect_err("files of somebody else are not used");
    }
}
