//! The embedded store against restarts, conflicts, damage and a full disk.

use jiff::Timestamp;
use serde_json::value::RawValue;

use super::*;
use crate::store::{Change, TokenPurpose};

fn batch(number: u64, key: &str, text: &str) -> Batch {
    let json = |value: &str| RawValue::from_string(serde_json::to_string(value).unwrap()).unwrap();
    Batch {
        revision: Revision {
            number,
            time: Timestamp::UNIX_EPOCH,
            author: "test".into(),
            message: String::new(),
            rollback_to: None,
            changes: vec![Change { key: key.into(), before: None, after: Some(json(text)) }],
        },
        addresses: [(
            key.to_owned(),
            ServiceAddresses { v4: [240, 0, 0, 1].into(), v6: "fd77:6566:7400::1".parse().unwrap() },
        )]
        .into(),
    }
}

#[test]
fn what_was_committed_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    let store = Embedded::open(&path).unwrap();
    store.commit(&batch(1, "Service/a/b", "one")).unwrap();
    store.commit(&batch(2, "Service/a/b", "two")).unwrap();
    drop(store);
    let store = Embedded::open(&path).unwrap();
    let loaded = store.load().unwrap();
    assert_eq!((loaded.revision, loaded.objects["Service/a/b"].get()), (2, "\"two\""));
    assert_eq!(loaded.addresses.len(), 1);
    assert_eq!(store.revision(1).unwrap().unwrap().changes[0].after.as_ref().unwrap().get(), "\"one\"");
    assert!(store.revision(3).unwrap().is_none());
    let newest_first: Vec<_> = store.revisions(0, 10).unwrap().iter().map(|r| r.number).collect();
    assert_eq!(newest_first, [2, 1]);
    assert_eq!(store.revisions(1, 10).unwrap().len(), 1);
}

#[test]
fn a_batch_for_another_revision_is_a_conflict_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(&dir.path().join("store.redb")).unwrap();
    store.commit(&batch(1, "a", "one")).unwrap();
    let error = store.commit(&batch(1, "a", "other")).unwrap_err();
    assert!(matches!(error, StoreError::Conflict { expected: 0, found: 1 }), "{error}");
    assert_eq!(store.load().unwrap().objects["a"].get(), "\"one\"");
}

#[test]
fn a_second_user_and_a_file_of_something_else_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    let store = Embedded::open(&path).unwrap();
    assert!(matches!(Embedded::open(&path).unwrap_err(), StoreError::InUse { .. }));
    drop(store);
    let text = dir.path().join("text");
    std::fs::write(&text, "this is no database at all, just some text").unwrap();
    assert!(Embedded::open(&text).is_err());
    assert_eq!(std::fs::read_to_string(&text).unwrap(), "this is no database at all, just some text");
}

#[test]
fn a_token_is_changed_in_one_step() {
    let dir = tempfile::tempdir().unwrap();
    let store = std::sync::Arc::new(Embedded::open(&dir.path().join("store.redb")).unwrap());
    let token = TokenRecord {
        id: "t".into(),
        hash: String::new(),
        purpose: TokenPurpose::Admin { name: "admin".into() },
        created: Timestamp::UNIX_EPOCH,
        expires: None,
        uses_left: Some(20),
        author: "test".into(),
        last_use: None,
    };
    store.put_token(&token).unwrap();
    let taken: u32 = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    (0..10)
                        .map(|_| {
                            let mut taken = false;
                            let mut decide = |found: Option<TokenRecord>| {
                                let token = found?;
                                let left = token.uses_left?.checked_sub(1);
                                taken = left.is_some();
                                left.map(|left| TokenRecord { uses_left: Some(left), ..token })
                            };
                            store.take_token("t", &mut decide).unwrap();
                            u32::from(taken)
                        })
                        .sum::<u32>()
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(taken, 20);
    assert_eq!(store.tokens().unwrap()[0].uses_left, Some(0));
    assert!(store.delete_token("t").unwrap() && !store.delete_token("t").unwrap());
}

#[test]
#[ignore = "root: mounts a file system"]
fn a_full_disk_is_an_error_and_room_on_it_is_the_end_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let mount = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=4m", "weft-test"])
        .arg(dir.path())
        .status();
    assert!(mount.unwrap().success(), "mount needs root");
    let unmount = scopeguard(dir.path());
    let store = Embedded::open(&dir.path().join("store.redb")).unwrap();
    store.commit(&batch(1, "kept", "one")).unwrap();
    let ballast = dir.path().join("ballast");
    let mut acknowledged = 1;
    std::fs::write(&ballast, vec![1; 1 << 20]).unwrap();
    let error = loop {
        match store.commit(&batch(acknowledged + 1, &format!("key{acknowledged}"), &"x".repeat(50_000))) {
            Ok(()) => acknowledged += 1,
            Err(error) => break error,
        }
        assert!(acknowledged < 1_000, "the disk never fills");
    };
    assert!(matches!(error, StoreError::Io { .. }), "{error}");
    assert!(store.commit(&batch(acknowledged + 1, "big", &"x".repeat(500_000))).is_err());
    std::fs::remove_file(&ballast).unwrap();
    assert_eq!(store.load().unwrap().revision, acknowledged);
    store.commit(&batch(acknowledged + 1, "after", "two")).unwrap();
    let loaded = store.load().unwrap();
    assert_eq!((loaded.revision, loaded.objects["kept"].get()), (acknowledged + 1, "\"one\""));
    drop(store);
    drop(unmount);
}

fn scopeguard(path: &Path) -> impl Drop {
    struct Unmount(PathBuf);
    impl Drop for Unmount {
        fn drop(&mut self) {
            let _unmounted = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
        }
    }
    Unmount(path.to_owned())
}
