//! An SVID as files: `cert.pem`, `key.pem` and `bundle.pem`, for programs outside the mesh, and the proxy's own files where
//! there is no control plane.
//! Invariant: each file is replaced by a rename, so it is never seen half written; the key is readable by its owner only.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use data_encoding::BASE64;

use crate::tls::{Svid, SvidError};

/// A file could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {path}")]
pub struct WriteError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Writes the three files into a directory, which is created if it is missing. The certificate comes last.
pub fn write(svid: &Svid, out: &Path) -> Result<(), WriteError> {
    let wrong = |path: &Path| {
        let path = path.to_owned();
        move |source| WriteError { path, source }
    };
    fs::create_dir_all(out).map_err(wrong(out))?;
    let chain: String = svid.chain.iter().map(|certificate| pem("CERTIFICATE", certificate)).collect();
    let bundle: String = svid.bundle.iter().map(|certificate| pem("CERTIFICATE", certificate)).collect();
    let key = pem("PRIVATE KEY", svid.key.secret_der());
    for (name, text, mode) in [("bundle.pem", bundle, 0o644), ("key.pem", key, 0o600), ("cert.pem", chain, 0o644)] {
        let path = out.join(name);
        replace(&path, text.as_bytes(), mode).map_err(wrong(&path))?;
    }
    Ok(())
}

/// Reads the files that [`write`] has written.
pub fn read(out: &Path) -> Result<Svid, SvidError> {
    Svid::read(&out.join("cert.pem"), &out.join("key.pem"), &out.join("bundle.pem"))
}

fn replace(path: &Path, text: &[u8], mode: u32) -> io::Result<()> {
    let new = path.with_extension("pem.new");
    // A file left behind by a crash may have another mode.
    match fs::remove_file(&new) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?;
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(text)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    // The rename itself has to survive a crash too.
    path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
}

fn pem(label: &str, der: &[u8]) -> String {
    let base64 = BASE64.encode(der);
    let lines: Vec<&str> = base64.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

/// A version of a file: modification time, size, inode. `None`: the file does not exist.
pub(crate) type Stamp = Option<(i64, i64, u64, u64)>;

/// The stamp of a file.
pub(crate) fn stamp(path: &Path) -> Stamp {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.mtime(), metadata.mtime_nsec(), metadata.size(), metadata.ino()))
}
