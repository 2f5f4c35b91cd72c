//! The embedded store against restarts, conflicts, damage and a full disk.

use futures_util::{FutureExt, StreamExt};
use jiff::Timestamp;
use serde_json::value::RawValue;

use super::*;
use crate::store::{Change, TokenPurpose};

fn batch(number: u64, key: &str, text: &str) -> Batch {
    let json = |value: &str| RawValue::from_string(serde_json::to_string(value).unwrap()).unwrap();
    Batch {
        revision: Arc::new(Revision {
            number,
            time: Timestamp::UNIX_EPOCH,
            author: "test".into(),
            message: String::new(),
            rollback_to: None,
            changes: vec![Change { key: key.into(), before: None, after: Some(json(text)) }],
        }),
        addresses: [(
            key.to_owned(),
            ServiceAddresses { v4: [240, 0, 0, 1].into(), v6: "fd77:6566:7400::1".parse().unwrap() },
        )]
        .into(),
    }
}

#[tokio::test]
async fn what_was_committed_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    let store = Embedded::open(&path, Older::Refuse).unwrap();
    store.commit(batch(1, "Service/a/b", "one")).await.unwrap();
    store.commit(batch(2, "Service/a/b", "two")).await.unwrap();
    drop(store);
    let store = Embedded::open(&path, Older::Refuse).unwrap();
    let loaded = store.load().await.unwrap();
    assert_eq!((loaded.revision, loaded.objects["Service/a/b"].get()), (2, "\"two\""));
    assert_eq!(loaded.addresses.len(), 1);
    assert_eq!(store.revision(1).await.unwrap().unwrap().changes[0].after.as_ref().unwrap().get(), "\"one\"");
    assert!(store.revision(3).await.unwrap().is_none());
    let newest_first: Vec<_> = store.revisions(1..=u64::MAX, 10).await.unwrap().iter().map(|r| r.number).collect();
    assert_eq!(newest_first, [2, 1]);
    assert_eq!(store.revisions(2..=u64::MAX, 10).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_batch_for_another_revision_is_a_conflict_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(&dir.path().join("store.redb"), Older::Refuse).unwrap();
    store.commit(batch(1, "a", "one")).await.unwrap();
    let error = store.commit(batch(1, "a", "other")).await.unwrap_err();
    assert!(matches!(error, StoreError::Conflict { expected: 0, found: 1 }), "{error}");
    assert_eq!(store.load().await.unwrap().objects["a"].get(), "\"one\"");
}

#[test]
fn a_second_user_and_a_file_of_something_else_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    let store = Embedded::open(&path, Older::Refuse).unwrap();
    assert!(matches!(Embedded::open(&path, Older::Refuse).unwrap_err(), StoreError::InUse { .. }));
    drop(store);
    let text = dir.path().join("text");
    std::fs::write(&text, "this is no database at all, just some text").unwrap();
    assert!(Embedded::open(&text, Older::Refuse).is_err());
    assert_eq!(std::fs::read_to_string(&text).unwrap(), "this is no database at all, just some text");
}

#[tokio::test]
async fn a_token_is_changed_in_one_step() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(Embedded::open(&dir.path().join("store.redb"), Older::Refuse).unwrap());
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
    store.put_token(token).await.unwrap();
    let tasks: Vec<_> = (0..4)
        .map(|_| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                let mut taken = 0;
                for _ in 0..10 {
                    // Tried again when another task came between, as `tokens` does.
                    while let Some(found) = store.token("t").await.unwrap()
                        && let Some(left) = found.uses_left.unwrap().checked_sub(1)
                    {
                        let new = TokenRecord { uses_left: Some(left), ..found.clone() };
                        if store.replace_token(found, new).await.unwrap() {
                            taken += 1;
                            break;
                        }
                    }
                }
                taken
            })
        })
        .collect();
    let mut taken = 0;
    for task in tasks {
        taken += task.await.unwrap();
    }
    assert_eq!(taken, 20);
    assert_eq!(store.tokens().await.unwrap()[0].uses_left, Some(0));
    assert!(store.delete_token("t").await.unwrap() && !store.delete_token("t").await.unwrap());
}

#[tokio::test]
async fn a_watch_yields_the_revisions_that_are_there_and_then_each_new_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    let store = Embedded::open(&path, Older::Refuse).unwrap();
    for number in 1..=250 {
        store.commit(batch(number, "a", "x")).await.unwrap();
    }
    drop(store);
    let store = Embedded::open(&path, Older::Refuse).unwrap();
    let mut watch = store.watch(1);
    for number in 2..=250 {
        assert_eq!(watch.next().await.unwrap().unwrap().number, number);
    }
    assert!(watch.next().now_or_never().is_none(), "it waits for the next one");
    store.commit(batch(251, "a", "y")).await.unwrap();
    store.commit(batch(252, "a", "z")).await.unwrap();
    for (number, text) in [(251, "\"y\""), (252, "\"z\"")] {
        let revision = watch.next().await.unwrap().unwrap();
        assert_eq!((revision.number, revision.changes[0].after.as_ref().unwrap().get()), (number, text));
    }
    drop(store);
}

#[tokio::test]
async fn a_watch_behind_the_oldest_revision_ends_with_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(&dir.path().join("store.redb"), Older::Refuse).unwrap();
    for number in 1..=3 {
        store.commit(batch(number, "a", "x")).await.unwrap();
    }
    // As if 10,000 more had followed.
    let evicted = |tx: &WriteTransaction| Ok(tx.open_table(REVISIONS)?.retain_in(..=2, |_, _| false)?);
    store.file.write(evicted).unwrap();
    let mut watch = store.watch(1);
    assert!(matches!(watch.next().await, Some(Err(StoreError::Evicted(2)))));
    assert!(watch.next().await.is_none());
    assert_eq!(store.watch(2).next().await.unwrap().unwrap().number, 3);
}

#[tokio::test]
#[ignore = "root: mounts a file system"]
async fn a_full_disk_is_an_error_and_room_on_it_is_the_end_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let mount = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=4m", "weft-test"])
        .arg(dir.path())
        .status();
    assert!(mount.unwrap().success(), "mount needs root");
    let unmount = scopeguard(dir.path());
    let store = Embedded::open(&dir.path().join("store.redb"), Older::Refuse).unwrap();
    store.commit(batch(1, "kept", "one")).await.unwrap();
    let ballast = dir.path().join("ballast");
    let mut acknowledged = 1;
    std::fs::write(&ballast, vec![1; 1 << 20]).unwrap();
    let error = loop {
        match store.commit(batch(acknowledged + 1, &format!("key{acknowledged}"), &"x".repeat(50_000))).await {
            Ok(()) => acknowledged += 1,
            Err(error) => break error,
        }
        assert!(acknowledged < 1_000, "the disk never fills");
    };
    assert!(matches!(error, StoreError::Io { .. }), "{error}");
    assert!(store.commit(batch(acknowledged + 1, "big", &"x".repeat(500_000))).await.is_err());
    std::fs::remove_file(&ballast).unwrap();
    assert_eq!(store.load().await.unwrap().revision, acknowledged);
    store.commit(batch(acknowledged + 1, "after", "two")).await.unwrap();
    let loaded = store.load().await.unwrap();
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

/// (27.1) One byte is another one, anywhere in the file, after a stop and after a crash.
#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_byte_is_refused_or_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    let store = Embedded::open(&path, Older::Refuse).unwrap();
    for number in 1..=40 {
        store.commit(batch(number, &format!("Service/shop/s{number}"), &"x".repeat(300))).await.unwrap();
    }
    let content = |loaded: &Loaded| {
        let objects: Vec<_> = loaded.objects.iter().map(|(key, json)| (key.clone(), json.get().to_owned())).collect();
        (loaded.revision, objects, loaded.addresses.clone())
    };
    let crashed = std::fs::read(&path).unwrap();
    let expected = content(&store.load().await.unwrap());
    drop(store);
    let stopped = std::fs::read(&path).unwrap();
    let mark = std::fs::read(mark::path(&path)).unwrap();
    let (mut refused, mut same) = (0, 0);
    for (bytes, step) in [(stopped, 9973), (crashed, 19_997)] {
        let positions = (0..320).step_by(2).chain((320..bytes.len()).step_by(step));
        // The pages in use are a small part of the file: look at those in particular.
        let used = (4096..bytes.len()).filter(|at| bytes[*at] != 0).step_by(step / 60);
        for at in positions.chain(used) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << (at % 8);
            std::fs::write(&path, &damaged).unwrap();
            std::fs::write(mark::path(&path), &mark).unwrap();
            match Embedded::open(&path, Older::Refuse) {
                Err(error) => {
                    assert!(
                        matches!(error, StoreError::Damaged { .. } | StoreError::Older { .. }),
                        "byte {at}: {error:?}"
                    );
                    refused += 1;
                }
                Ok(store) => {
                    assert_eq!(content(&store.load().await.unwrap()), expected, "byte {at}");
                    same += 1;
                }
            }
        }
    }
    assert!(refused > 50 && same > 10, "{refused} {same}");
}
