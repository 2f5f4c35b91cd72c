//! The data directory: whether it was used before, and whether its parts belong together. A lost part is an error and never
//! reads as a new mesh, which would have no policies (docs/adr/0034).
//! Shape: [`inspect`] before anything is created, then [`bind`] with the root and the store; [`move_aside`] for `--new-mesh`.
//! `mesh.json` has the mesh's id and the hash of its root; the store has the same. It is written first, without the hash, so a
//! first start that was interrupted is told from a used directory.
//! Invariant: nothing is deleted.

use std::{
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    crypto, files,
    store::{Embedded, MeshIdentity, Older, Origin, StoreError},
};

const IDENTITY: &str = "mesh.json";
const STORE: &str = "store.redb";
const ROOT: &str = "ca.pem";
/// The files that a start creates, besides the lock. Each shows that the directory was used; a `ca.pem` alone may be the operator's own.
const PARTS: [&str; 8] =
    [IDENTITY, STORE, ROOT, "store.redb.mark", "registry.redb", "root.pem", "admin-token", "addresses.json"];
const REMEDY: &str = "Restore ca.pem and store.redb from a backup, or begin a new mesh with --new-mesh, which moves the old \
                      files aside (docs/guide/operating.md#a-lost-or-damaged-data-directory)";

/// The content of `mesh.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Recorded {
    mesh: String,
    /// `None` until the first start has written root and store.
    root: Option<String>,
}

/// The state of a data directory.
#[derive(Debug)]
pub struct Found(Option<Recorded>);

/// Why a data directory is not used.
#[derive(Debug, thiserror::Error)]
pub enum UnusableError {
    /// A part is missing or empty.
    #[error("{path} is {state}, but the data directory was used before: it has {signs}. {REMEDY}")]
    Missing {
        /// The file.
        path: PathBuf,
        /// `missing` or `empty`.
        state: &'static str,
        /// The parts that are there.
        signs: String,
    },
    /// The identity cannot be read.
    #[error(
        "{path} is damaged. If {STORE} and {ROOT} are those of this mesh, move it away: it is written again. Else: {REMEDY}"
    )]
    Identity {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
    /// A part is of another mesh.
    #[error("{path} is not of this mesh: it has {found}, {other} has {expected}. {REMEDY}")]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What it contains.
        found: String,
        /// What is expected.
        expected: String,
        /// The file that says so.
        other: &'static str,
    },
    /// The store has no identity although the directory has one.
    #[error(
        "{path} has no mesh id, but {IDENTITY} has: it is a copy by an earlier version, or of another mesh. Start once with \
         --accept-older-store if it is a backup of this mesh. Else: {REMEDY}"
    )]
    Anonymous {
        /// The file.
        path: PathBuf,
    },
    /// A file cannot be read, written or moved.
    #[error("{path}: read, write or rename failed")]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The system has no random numbers.
    #[error("generating a mesh id failed")]
    Random(#[from] crypto::RandomError),
}

/// Looks at a directory before anything is opened or created. A new one gets its identity.
/// Errors: it was used, and a part is missing or empty.
pub fn inspect(dir: &Path) -> Result<Found, UnusableError> {
    let identity = dir.join(IDENTITY);
    let recorded = match std::fs::read(&identity) {
        Ok(text) => Some(
            serde_json::from_slice::<Recorded>(&text)
                .map_err(|source| UnusableError::Identity { path: identity, source })?,
        ),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(source) => return Err(UnusableError::File { path: identity, source }),
    };
    if recorded.as_ref().is_some_and(|recorded| recorded.root.is_none()) {
        return Ok(Found(recorded));
    }
    let mut signs = Vec::new();
    let mut gap = None;
    for name in PARTS {
        let path = dir.join(name);
        let length = match path.metadata() {
            Ok(metadata) => Some(metadata.len()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(source) => return Err(UnusableError::File { path, source }),
        };
        signs.extend(length.is_some().then_some(name));
        if gap.is_none() && matches!(name, STORE | ROOT) && length.unwrap_or(0) == 0 {
            gap = Some((path, if length.is_some() { "empty" } else { "missing" }));
        }
    }
    match gap {
        // A root alone is one that the operator brought along.
        Some((path, "missing")) if signs.is_empty() || (signs == [ROOT] && path.ends_with(STORE)) => {
            let new = Recorded { mesh: crypto::hex::<16>()?, root: None };
            write(dir, &new)?;
            Ok(Found(Some(new)))
        }
        Some((path, state)) => Err(UnusableError::Missing { path, state, signs: signs.join(", ") }),
        None => Ok(Found(recorded)),
    }
}

/// Compares the parts, and completes the identities of a new directory, of one by an earlier version, and of one that was put
/// together from a backup. `now`: seconds since 1970.
/// Errors: a part is of another mesh.
pub fn bind(
    dir: &Path,
    Found(recorded): Found,
    store: &Embedded,
    root: &str,
    older: Older,
    now: u64,
) -> Result<Origin, UnusableError> {
    let foreign = |name: &str, what: &str, found: &str, expected: &str, other| UnusableError::Foreign {
        path: dir.join(name),
        found: format!("{what} {found}"),
        expected: expected.to_owned(),
        other,
    };
    let mut renew = older == Older::Accept;
    let stored = store.identity()?;
    if let Some(stored) = &stored {
        match &recorded {
            Some(recorded) if recorded.mesh != stored.mesh => {
                return Err(foreign(STORE, "mesh id", &stored.mesh, &recorded.mesh, IDENTITY));
            }
            Some(_) => {}
            None => {
                tracing::info!("the data directory is put together from a backup: {IDENTITY} is written again");
                renew = true;
            }
        }
        if stored.root != root {
            return Err(foreign(ROOT, "the root with SHA-256", root, &stored.root, STORE));
        }
    } else if let Some(Recorded { root: Some(expected), .. }) = &recorded {
        if expected != root {
            return Err(foreign(ROOT, "the root with SHA-256", root, expected, IDENTITY));
        }
        if older == Older::Refuse {
            return Err(UnusableError::Anonymous { path: dir.join(STORE) });
        }
    } else if recorded.is_none() {
        tracing::info!("a data directory of an earlier version; it gets a mesh id");
    }
    let mesh = match (&stored, &recorded) {
        (Some(stored), _) => stored.mesh.clone(),
        (None, Some(recorded)) => recorded.mesh.clone(),
        (None, None) => crypto::hex::<16>()?,
    };
    let identity = MeshIdentity { mesh: mesh.clone(), root: root.to_owned() };
    if stored.is_none() {
        store.set_identity(&identity)?;
    }
    let complete = Recorded { mesh, root: Some(root.to_owned()) };
    if recorded.as_ref() != Some(&complete) {
        write(dir, &complete)?;
    }
    if renew {
        tracing::warn!("proxies accept revisions of this store that are older than theirs");
    }
    Ok(store.origin(identity, renew.then_some(now))?)
}

/// Moves what a former mesh left into a directory beside it; returns that directory, or `None` if there was nothing.
pub fn move_aside(dir: &Path, now: u64) -> Result<Option<PathBuf>, UnusableError> {
    let there: Vec<_> = PARTS.into_iter().filter(|name| dir.join(name).exists()).collect();
    if there.is_empty() {
        return Ok(None);
    }
    let aside = dir.join(format!("old-mesh-{now}"));
    let at = |path: &Path| {
        let path = path.to_owned();
        |source| UnusableError::File { path, source }
    };
    std::fs::create_dir_all(&aside).map_err(at(&aside))?;
    for name in there {
        let from = dir.join(name);
        std::fs::rename(&from, aside.join(name)).map_err(at(&from))?;
    }
    Ok(Some(aside))
}

fn write(dir: &Path, recorded: &Recorded) -> Result<(), UnusableError> {
    let path = dir.join(IDENTITY);
    let text = serde_json::json!({"mesh": recorded.mesh, "root": recorded.root}).to_string();
    files::write_private(&path, format!("{text}\n").as_bytes()).map_err(|source| UnusableError::File { path, source })
}

#[cfg(test)]
mod tests;
