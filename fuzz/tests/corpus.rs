//! Replays the committed corpora: every seed once, through the same body that libFuzzer calls.

use std::{collections::BTreeSet, fs, panic, path::Path};

use weft_fuzz::TARGETS;

/// Bytes that the corpus of one target may have.
const MOST: usize = 200 * 1024;

#[test]
fn every_seed_of_every_corpus_passes() {
    let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let folders: BTreeSet<String> =
        fs::read_dir(&corpora).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    let names: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(folders, names, "each target has a corpus, each corpus a target");

    for (target, run) in TARGETS {
        let (mut seeds, mut bytes) = (0, 0);
        for entry in fs::read_dir(corpora.join(target)).unwrap() {
            let path = entry.unwrap().path();
            let seed = fs::read(&path).unwrap();
            (seeds, bytes) = (seeds + 1, bytes + seed.len());
            if panic::catch_unwind(|| run(&seed)).is_err() {
                panic!("{target} failed on {}", path.display());
            }
        }
        assert!(seeds >= 12, "{target} has {seeds} seeds only");
        assert!(bytes <= MOST, "the seeds of {target} have {bytes} bytes, allowed are {MOST}");
    }
}

#[test]
fn every_target_survives_nothing_and_noise() {
    for (_, run) in TARGETS {
        run(b"");
        for first in 0..=255_u8 {
            run(&[first]);
            run(&[first, 0, 0xff, 0x80, b'\r', b'\n', b'\r', b'\n', first]);
        }
    }
}
