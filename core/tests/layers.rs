//! The floors of the crate: which rooms (top-level modules) may import which. A new import across rooms is a decision, and
//! is made here.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// From high to low; a room imports only rooms of lower floors.
const FLOORS: &[&[&str]] = &[
    &["compile", "wire"],
    &["api", "snapshot"],
    &["failure", "listener", "outlier"],
    &["route"],
    &["endpoint", "policy", "retry"],
    &["balancer", "cluster", "filter"],
    &["identity", "lookup", "names"],
];

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// The rooms that a text names: `crate::a::…`, and each first word of `use crate::{a::…, b}`.
fn imports(text: &str) -> BTreeSet<String> {
    let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut found = BTreeSet::new();
    for rest in text.split("crate::").skip(1) {
        let Some(list) = rest.strip_prefix('{') else {
            found.insert(word(rest));
            continue;
        };
        let (mut depth, mut is_start) = (0usize, true);
        for (at, letter) in list.char_indices() {
            match letter {
                '}' if depth == 0 => break,
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 0 => is_start = true,
                letter if is_start && letter.is_alphabetic() => {
                    found.insert(word(&list[at..]));
                    is_start = false;
                }
                _ => {}
            }
        }
    }
    found
}

#[test]
fn a_room_imports_only_rooms_below_it() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let floor: BTreeMap<&str, usize> =
        FLOORS.iter().enumerate().flat_map(|(floor, rooms)| rooms.iter().map(move |room| (*room, floor))).collect();
    let mut seen = BTreeSet::new();
    for path in files(&source) {
        let inside = path.strip_prefix(&source).unwrap();
        let room = inside.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs").to_owned();
        // Tests may build what they test from any room.
        if room == "lib" || inside.iter().any(|part| part == "tests" || part == "tests.rs") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        let own = *floor.get(room.as_str()).unwrap_or_else(|| panic!("{room} is on no floor"));
        for import in imports(code).into_iter().filter(|import| *import != room) {
            let other = *floor.get(import.as_str()).unwrap_or_else(|| panic!("{import} is on no floor"));
            assert!(other > own, "{}: {room} imports {import}, which is not below it", inside.display());
        }
        seen.insert(room);
    }
    assert_eq!(seen.len(), floor.len(), "every room has a file");
}
