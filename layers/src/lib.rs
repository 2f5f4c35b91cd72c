//! The imports between the rooms of a crate. A room is a top-level module of `src/`.
//! Shape: [`Sources::read`] parses every file; [`Sources::violations`] compares its imports with the floors of the crate;
//! [`Sources::circles`] lists import circles between files of different rooms.
//! Imports are `use` items and paths in code that begin with `crate`, `super` or `self`. Items under `#[cfg(test)]` are
//! left out. Names that `lib.rs` re-exports count as imports from the room that defines them.

mod graph;
mod read;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
};

use read::File;

/// The name under which the crate's root (`lib.rs`, `main.rs`) appears as a room.
const ROOT: &str = "lib";

/// A source file could not be read.
#[derive(Debug, thiserror::Error)]
pub enum LayersError {
    /// A file or directory is not readable.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// The system error.
        source: io::Error,
    },
    /// A file is not Rust.
    #[error("cannot parse {}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// The parse error.
        source: proc_macro2::LexError,
    },
}

/// The files of one crate with their imports.
#[derive(Debug)]
pub struct Sources {
    files: Vec<File>,
}

/// An import from one room in another: where it stands first.
type Edges = BTreeMap<(String, String), String>;

impl Sources {
    /// Reads `src/` of the crate in `directory`, without `src/bin/`.
    ///
    /// Errors: [`LayersError`].
    pub fn read(directory: impl AsRef<Path>) -> Result<Self, LayersError> {
        Ok(Self { files: read::files(&directory.as_ref().join("src"))? })
    }

    /// How many files there are.
    pub fn files(&self) -> usize {
        self.files.len()
    }

    /// The top-level modules.
    pub fn rooms(&self) -> BTreeSet<&str> {
        self.files.iter().filter_map(|file| file.module.first()).map(String::as_str).collect()
    }

    /// Every way in which the crate departs from `floors`, one sentence each.
    ///
    /// `floors` go from the highest to the lowest. A room imports from lower floors, or from rooms of its own floor
    /// without a circle. `pending` are the imports (from, to) that are still to be removed: they are tolerated, and
    /// one that does not exist any more is a violation, so that the list only shrinks.
    pub fn violations(&self, floors: &[&[&str]], pending: &[(&str, &str)]) -> Vec<String> {
        let mut violations = Vec::new();
        let floor_of = |room: &str| floors.iter().position(|floor| floor.contains(&room));
        let rooms = self.rooms();
        let listed: BTreeSet<&str> = floors.iter().copied().flatten().copied().collect();
        violations.extend(rooms.difference(&listed).map(|room| format!("{room} is on no floor")));
        violations.extend(listed.difference(&rooms).map(|room| format!("{room} is on a floor, but is no room")));

        let edges = self.edges();
        let exists = |(from, to): &(&str, &str)| edges.contains_key(&((*from).to_owned(), (*to).to_owned()));
        let gone = pending.iter().filter(|edge| !exists(edge));
        violations.extend(gone.map(|(from, to)| format!("{from} -> {to} is pending, but exists no more")));

        let mut sideways: Vec<(&str, &str)> = Vec::new();
        for ((from, to), place) in &edges {
            if pending.contains(&(from, to)) {
                continue;
            }
            match (floor_of(from), floor_of(to)) {
                (Some(from_floor), Some(to_floor)) if from_floor == to_floor => sideways.push((from, to)),
                (Some(from_floor), Some(to_floor)) if from_floor < to_floor => {}
                (Some(_), _) if to == ROOT => violations.push(format!("{from} imports from the crate's root: {place}")),
                (Some(_), Some(_)) => violations.push(format!("{from} imports upwards from {to}: {place}")),
                // A room without a floor is named above.
                (None, _) | (_, None) => {}
            }
        }
        let circles = graph::circles(&sideways).into_iter();
        violations.extend(circles.map(|circle| format!("a circle on one floor: {}", circle.join(", "))));
        violations
    }

    /// The sets of files that import each other in a circle, as paths below `src/`, if they belong to several rooms.
    pub fn circles(&self) -> Vec<Vec<&str>> {
        let mut edges = Vec::new();
        for file in &self.files {
            edges.extend(self.targets(file).map(|(target, _)| (file.path.as_str(), target.path.as_str())));
        }
        edges.retain(|(from, to)| from != to);
        let room = |path: &str| path.split(['/', '.']).next().map(str::to_owned);
        let mut circles = graph::circles(&edges);
        circles.retain(|circle| circle.iter().map(|path| room(path)).collect::<BTreeSet<_>>().len() > 1);
        circles
    }

    /// All imports from one room in another. The root imports from all rooms and is not looked at.
    fn edges(&self) -> Edges {
        let mut edges = Edges::new();
        for file in &self.files {
            let Some(from) = file.module.first() else { continue };
            for (target, line) in self.targets(file) {
                let to = target.module.first().map_or(ROOT, String::as_str);
                if from != to {
                    let place = || format!("src/{}:{line}", file.path);
                    edges.entry((from.clone(), to.to_owned())).or_insert_with(place);
                }
            }
        }
        edges
    }

    /// The files that `file` imports from, with the line of each import.
    fn targets(&self, file: &File) -> impl Iterator<Item = (&File, usize)> {
        file.imports.iter().filter_map(|(path, line)| Some((self.file_of(path)?, *line)))
    }

    /// The file of the longest module in `path`; for a name that the root re-exports, that of its definition.
    fn file_of(&self, path: &[String]) -> Option<&File> {
        let longest = |path: &[String]| {
            let within = self.files.iter().filter(|file| path.starts_with(&file.module));
            within.max_by_key(|file| file.module.len())
        };
        let found = longest(path)?;
        let name = path.first();
        if !found.module.is_empty() || name.is_none() {
            return Some(found);
        }
        let exports = self.files.iter().filter(|file| file.module.is_empty()).flat_map(|file| &file.imports);
        let defined = exports.map(|(path, _)| path).find(|path| path.len() > 1 && path.last() == name);
        defined.map_or(Some(found), |path| longest(path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A crate with these files below `src/`.
    fn sources(files: &[(&str, &str)]) -> Sources {
        let directory = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = directory.path().join("src").join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        Sources::read(directory.path()).unwrap()
    }

    #[test]
    fn every_form_of_an_import_is_seen() {
        for text in [
            "use crate::low::Item;",
            "use crate::{high, low::{self, deep::Item}};",
            "use super::low;",
            "fn f() { g(vec![crate::low::Item { a: 1 }]) }",
            "mod inner { use super::super::low::Item; }",
            "use crate::Exported;",
        ] {
            let sources = sources(&[
                ("lib.rs", "mod high; mod low; pub use low::Exported;"),
                ("high.rs", text),
                ("low.rs", "pub(crate) mod deep;"),
                ("low/deep.rs", ""),
            ]);
            assert_eq!(sources.violations(&[&["high"], &["low"]], &[]), [""; 0], "{text}");
            let upwards = sources.violations(&[&["low"], &["high"]], &[]);
            assert_eq!(upwards, ["high imports upwards from low: src/high.rs:1"], "{text}");
            assert_eq!(sources.violations(&[&["low"], &["high"]], &[("high", "low")]), [""; 0], "{text}");
        }
    }

    #[test]
    fn tests_comments_strings_and_other_crates_are_left_out() {
        let sources = sources(&[
            ("lib.rs", "mod high; mod low;"),
            (
                "low.rs",
                "// use crate::high;\nuse high::Other; const A: &str = \"crate::high::B\"; #[cfg(test)] mod tests;",
            ),
            ("low/tests.rs", "use crate::high::B;"),
            ("high.rs", "#[cfg(test)]\nmod tests { use crate::low::A; }\n#[cfg(test)] use crate::low;"),
            ("bin/tool.rs", "use crate::low;"),
        ]);
        assert_eq!(sources.edges(), Edges::new());
        assert_eq!(sources.files(), 3);
    }

    #[test]
    fn circles_missing_rooms_and_what_is_pending_no_more_are_violations() {
        let sources = sources(&[
            ("lib.rs", "mod a; mod b; mod c;"),
            ("a.rs", "use crate::b::B;"),
            ("b.rs", "use crate::a::A;\nuse crate::root;"),
            ("c.rs", ""),
        ]);
        let violations = sources.violations(&[&["a", "b", "d"]], &[("a", "c")]);
        let expected = [
            "c is on no floor",
            "d is on a floor, but is no room",
            "a -> c is pending, but exists no more",
            "b imports from the crate's root: src/b.rs:2",
            "a circle on one floor: a, b",
        ];
        assert_eq!(violations, expected);
        assert_eq!(sources.violations(&[&["a", "b"], &["c"]], &[("b", "a"), ("b", "lib")]), [""; 0]);
        assert_eq!(sources.circles(), [["a.rs", "b.rs"]]);
    }
}
