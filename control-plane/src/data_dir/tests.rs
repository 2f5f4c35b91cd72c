use super::*;

const HASH: &str = "aa";

/// A start: what is there is looked at, a root and a store are opened.
fn start(dir: &Path, root: &str, older: Older, now: u64) -> Result<Origin, UnusableError> {
    let found = inspect(dir)?;
    if !dir.join(ROOT).exists() {
        std::fs::write(dir.join(ROOT), root).unwrap();
    }
    bind(dir, found, &Embedded::open(&dir.join(STORE), older)?, root, older, now)
}

fn used() -> (tempfile::TempDir, Origin) {
    let dir = tempfile::tempdir().unwrap();
    let origin = start(dir.path(), HASH, Older::Refuse, 0).unwrap();
    (dir, origin)
}

fn refused(dir: &Path, root: &str, name: &str) -> String {
    let text = start(dir, root, Older::Refuse, 0).unwrap_err().to_string();
    assert!(text.contains(name) && text.contains("--new-mesh"), "{text}");
    text
}

/// (27.1)
#[test]
fn a_directory_that_was_used_and_has_lost_a_part_is_no_new_mesh() {
    for name in [STORE, ROOT] {
        let (dir, _) = used();
        std::fs::write(dir.path().join(name), "").unwrap();
        assert!(refused(dir.path(), HASH, name).contains("is empty"));
        std::fs::remove_file(dir.path().join(name)).unwrap();
        assert!(refused(dir.path(), HASH, name).contains("is missing"));
        // The identity is not the only sign.
        std::fs::remove_file(dir.path().join(IDENTITY)).unwrap();
        std::fs::write(dir.path().join("admin-token"), "").unwrap();
        refused(dir.path(), HASH, name);
        assert!(!dir.path().join(name).exists(), "nothing was created");
    }
    let (dir, _) = used();
    std::fs::write(dir.path().join(IDENTITY), "").unwrap();
    refused(dir.path(), HASH, IDENTITY);
}

/// (27.1)
#[test]
fn a_store_or_a_root_of_another_mesh_is_refused() {
    let ((dir, _), (other, _)) = (used(), used());
    refused(other.path(), "bb", ROOT);
    std::fs::copy(other.path().join(STORE), dir.path().join(STORE)).unwrap();
    refused(dir.path(), HASH, STORE);
}

/// (27.1)
#[test]
fn a_new_mesh_keeps_the_files_of_the_old_one() {
    let (dir, origin) = used();
    let store = std::fs::read(dir.path().join(STORE)).unwrap();
    std::fs::remove_file(dir.path().join(ROOT)).unwrap();
    let aside = move_aside(dir.path(), 7).unwrap().unwrap();
    assert_eq!(std::fs::read(aside.join(STORE)).unwrap(), store);
    let new = start(dir.path(), "bb", Older::Refuse, 0).unwrap();
    assert_ne!(new.mesh, origin.mesh);
    assert_eq!(move_aside(tempfile::tempdir().unwrap().path(), 7).unwrap(), None);
}

/// (27.1)
#[test]
fn a_first_start_that_was_interrupted_and_a_root_brought_along_are_new() {
    let dir = tempfile::tempdir().unwrap();
    inspect(dir.path()).unwrap();
    std::fs::write(dir.path().join(STORE), "").unwrap();
    std::fs::write(dir.path().join("root.pem"), HASH).unwrap();
    let first = start(dir.path(), HASH, Older::Refuse, 0).unwrap();
    assert_eq!(start(dir.path(), HASH, Older::Refuse, 0).unwrap(), first);
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(ROOT), HASH).unwrap();
    start(dir.path(), HASH, Older::Refuse, 0).unwrap();
}

/// (27.1)
#[test]
fn a_directory_of_an_earlier_version_is_adopted() {
    let dir = tempfile::tempdir().unwrap();
    drop(Embedded::open(&dir.path().join(STORE), Older::Refuse).unwrap());
    // The earlier version had neither a mark nor an identity.
    std::fs::remove_file(dir.path().join("store.redb.mark")).unwrap();
    std::fs::write(dir.path().join(ROOT), HASH).unwrap();
    std::fs::write(dir.path().join("admin-token"), "").unwrap();
    let origin = start(dir.path(), HASH, Older::Refuse, 0).unwrap();
    assert_eq!(start(dir.path(), HASH, Older::Refuse, 0).unwrap(), origin);
    assert!(dir.path().join(IDENTITY).exists());
}

/// (27.1)
#[test]
fn an_older_store_is_refused_until_an_operator_accepts_it_and_then_has_a_newer_generation() {
    let (dir, origin) = used();
    let path = dir.path().join(STORE);
    let copy = std::fs::read(&path).unwrap();
    // Each start writes.
    start(dir.path(), HASH, Older::Refuse, 0).unwrap();
    std::fs::write(&path, &copy).unwrap();
    let text = start(dir.path(), HASH, Older::Refuse, 0).unwrap_err().to_string();
    assert!(text.contains("--accept-older-store"), "{text}");
    let accepted = start(dir.path(), HASH, Older::Accept, 5).unwrap();
    assert_eq!(accepted, Origin { mesh: origin.mesh.clone(), generation: 5 });
    assert_eq!(start(dir.path(), HASH, Older::Refuse, 6).unwrap(), accepted);
    // The documented restoration: both files in an empty directory.
    let empty = tempfile::tempdir().unwrap();
    std::fs::write(empty.path().join(STORE), &copy).unwrap();
    std::fs::write(empty.path().join(ROOT), HASH).unwrap();
    assert_eq!(start(empty.path(), HASH, Older::Refuse, 9).unwrap(), Origin { mesh: origin.mesh, generation: 9 });
}
