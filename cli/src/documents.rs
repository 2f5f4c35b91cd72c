//! Objects in files: `-f FILE`, `-f DIR`, `-f -`.
//! All given files become one text of YAML documents, so that the control plane applies all or none of them. Each document
//! keeps its file and line, for errors. A document may be a `v1 List` of objects.

use std::{
    fs, io,
    io::Read as _,
    path::{Path, PathBuf},
};

use serde::Deserialize as _;
use serde_json::Value;
use weft_core::api::{DEFAULT_NAMESPACE, Kind, ObjectKey, line_of};

/// The documents of all given files.
#[derive(Debug, Default)]
pub struct Documents {
    /// The documents, in order.
    pub sources: Vec<Source>,
}

/// One document and its origin.
#[derive(Debug, Clone, PartialEq)]
pub struct Source {
    /// Its file, or `-`.
    pub file: String,
    /// The line it starts on, from 1.
    pub line: usize,
    /// Its text.
    pub text: String,
    /// Its content.
    pub value: Value,
}

/// The full name of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectName {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace.
    pub namespace: String,
    /// Its name within the namespace.
    pub name: String,
}

/// The files contain no valid objects.
#[derive(Debug, thiserror::Error)]
pub enum DocumentsError {
    /// A file is unreadable.
    #[error("cannot read {file}")]
    Read {
        /// The file.
        file: String,
        /// The cause.
        source: io::Error,
    },
    /// A document is not YAML.
    #[error("{file}:{line}: {source}")]
    Syntax {
        /// The file.
        file: String,
        /// The line of the mistake, from 1.
        line: usize,
        /// The cause.
        source: serde_norway::Error,
    },
    /// There is no document.
    #[error("no objects in {0}")]
    Empty(String),
    /// A document has no kind or name.
    #[error("{file}:{line}: {reason}")]
    Shape {
        /// The file.
        file: String,
        /// The line of the mistake, from 1.
        line: usize,
        /// The missing or unknown field.
        reason: String,
    },
}

impl Documents {
    /// Reads all files; a directory stands for its `.yaml`, `.yml` and `.json` files by name, without those below.
    ///
    /// Errors: [`DocumentsError`] of the first invalid file.
    pub fn read(paths: &[PathBuf]) -> Result<Self, DocumentsError> {
        let mut documents = Self::default();
        for path in paths {
            for file in files(path)? {
                documents.add(&file)?;
            }
        }
        if documents.sources.is_empty() {
            let names: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
            return Err(DocumentsError::Empty(names.join(", ")));
        }
        Ok(documents)
    }

    fn add(&mut self, path: &Path) -> Result<(), DocumentsError> {
        let file = path.display().to_string();
        let read = |source| DocumentsError::Read { file: file.clone(), source };
        let text = if path == Path::new("-") {
            let mut text = String::new();
            io::stdin().lock().read_to_string(&mut text).map_err(read)?;
            text
        } else {
            fs::read_to_string(path).map_err(read)?
        };
        self.add_text(&file, &text)
    }

    /// Adds the documents of one text; empty ones are left out.
    ///
    /// Errors: [`DocumentsError::Syntax`].
    pub fn add_text(&mut self, file: &str, text: &str) -> Result<(), DocumentsError> {
        for (line, part) in split(text) {
            let value = read(part).map_err(|source| {
                // Its message tells lines too: those of the file, if the document is where it is in the file.
                let padded = "\n".repeat(line - 1) + part;
                let source = read(&padded).err().unwrap_or(source);
                let line = source.location().map_or(line, |place| place.line());
                DocumentsError::Syntax { file: file.to_owned(), line, source }
            })?;
            if !value.is_null() {
                self.sources.push(Source { file: file.to_owned(), line, text: part.to_owned(), value });
            }
        }
        Ok(())
    }

    /// One YAML text; document n of it, from 0, is `sources[n]`.
    pub fn text(&self) -> String {
        let mut all = String::new();
        for source in &self.sources {
            all.push_str("---\n");
            all.push_str(&source.text);
            if !source.text.ends_with('\n') {
                all.push('\n');
            }
        }
        all
    }

    /// The names of the objects, in order. `namespace` is the default of documents without one.
    ///
    /// Errors: a document without kind or name, or of a kind that does not exist.
    pub fn named(&self, namespace: &str) -> Result<Vec<ObjectName>, DocumentsError> {
        let sources = self.sources.iter().flat_map(|source| source.objects().map(move |object| (source, object)));
        sources.map(|(source, (path, object))| source.named(&path, object, namespace)).collect()
    }

    /// `FILE:LINE` of a field. `object`: `Kind/namespace/name`, if the mistake is in an object that could be read; otherwise
    /// the document tells where.
    pub fn place(&self, document: Option<usize>, object: Option<&str>, field: &str) -> Option<String> {
        let known = object.and_then(|wanted| {
            self.sources.iter().find_map(|source| {
                let mut objects = source.objects();
                let (path, _) = objects.find(|(path, object)| {
                    source.named(path, object, DEFAULT_NAMESPACE).is_ok_and(|named| named.key() == wanted)
                })?;
                Some((source, path))
            })
        });
        let (source, path) = known.or_else(|| Some((self.sources.get(document?)?, String::new())))?;
        let field = if field.starts_with(&path) { field.to_owned() } else { format!("{path}.{field}") };
        Some(format!("{}:{}", source.file, source.line_of(&field)))
    }
}

/// One document.
fn read(text: &str) -> Result<Value, serde_norway::Error> {
    Value::deserialize(serde_norway::Deserializer::from_str(text))
}

impl ObjectName {
    /// `Kind/namespace/name`.
    pub fn key(&self) -> String {
        ObjectKey::new(self.kind, &self.namespace, &self.name).to_string()
    }
}

impl Source {
    /// The objects in it, each with the path to it: itself, or the items of a List.
    fn objects(&self) -> impl Iterator<Item = (String, &Value)> {
        let text = |pointer: &str| self.value.pointer(pointer).and_then(Value::as_str);
        let is_list = (text("/apiVersion"), text("/kind")) == (Some("v1"), Some("List"));
        let items = self.value.get("items").and_then(Value::as_array).filter(|_| is_list);
        let items = items.into_iter().flatten().enumerate().map(|(index, item)| (format!("items[{index}]"), item));
        (!is_list).then(|| (String::new(), &self.value)).into_iter().chain(items)
    }

    /// The line of a field, from 1.
    fn line_of(&self, field: &str) -> usize {
        self.line + line_of(&self.text, field) - 1
    }

    fn named(&self, path: &str, object: &Value, namespace: &str) -> Result<ObjectName, DocumentsError> {
        let wrong = |field: &str, reason: String| {
            let path = if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") };
            let (line, reason) = (self.line_of(&path), format!("{path}: {reason}"));
            DocumentsError::Shape { file: self.file.clone(), line, reason }
        };
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
        let kind = text("/kind").ok_or_else(|| wrong("kind", "missing".into()))?;
        let kind = Kind::named(kind).ok_or_else(|| wrong("kind", format!("unknown kind {kind:?}")))?;
        let name = text("/metadata/name").ok_or_else(|| wrong("metadata.name", "missing".into()))?;
        let namespace = text("/metadata/namespace").unwrap_or(namespace);
        Ok(ObjectName { kind, namespace: namespace.to_owned(), name: name.to_owned() })
    }
}

/// The files that a path of the command line stands for.
fn files(path: &Path) -> Result<Vec<PathBuf>, DocumentsError> {
    if path == Path::new("-") || !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let read = |source| DocumentsError::Read { file: path.display().to_string(), source };
    let mut files = Vec::new();
    for entry in fs::read_dir(path).map_err(read)? {
        let file = entry.map_err(read)?.path();
        let known = file.extension().is_some_and(|end| end == "yaml" || end == "yml" || end == "json");
        if known && file.is_file() {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

/// The documents of a YAML stream with the line each starts on. A line that is `---`, or begins with it and a space,
/// starts one (YAML 1.2 §9.1.4; inside a block scalar such a line would have to be indented).
fn split(text: &str) -> Vec<(usize, &str)> {
    let mut parts = Vec::new();
    let (mut start, mut start_line, mut at) = (0, 1, 0);
    for (index, line) in text.split_inclusive('\n').enumerate() {
        let bare = line.trim_end();
        if bare == "---" || bare.starts_with("--- ") || bare == "..." {
            parts.extend(text.get(start..at).map(|part| (start_line, part)));
            // Text after the marker on its line belongs to the document.
            start = at + if bare.starts_with("--- ") { 4 } else { line.len() };
            start_line = if bare.starts_with("--- ") { index + 1 } else { index + 2 };
        }
        at += line.len();
    }
    parts.extend(text.get(start..).map(|part| (start_line, part)));
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: &str = "# first\nkind: Service\nmetadata: {name: a}\n---\n---\n# nothing\n---\nkind: Gateway\nmetadata:\n  name: b\n  namespace: shop\n";

    #[test]
    fn documents_keep_their_lines_and_empty_ones_vanish() {
        let mut documents = Documents::default();
        documents.add_text("a.yaml", TWO).unwrap();
        let lines: Vec<_> = documents.sources.iter().map(|source| source.line).collect();
        assert_eq!(lines, [1, 8]);
        let named = documents.named("default").unwrap();
        assert_eq!(
            (named[0].kind.plural(), named[0].namespace.as_str(), named[0].name.as_str()),
            ("services", "default", "a")
        );
        assert_eq!(
            (named[1].kind.plural(), named[1].namespace.as_str(), named[1].name.as_str()),
            ("gateways", "shop", "b")
        );
        assert_eq!(split(&documents.text()).len(), 3);
    }

    /// (26)
    #[test]
    fn errors_name_file_and_the_line_of_the_mistake() {
        for (text, place) in [("a: b\n---\n{\n\n", "a.yaml:5: "), ("a: b\n---\nc: d\n e: f\n", "a.yaml:4: ")] {
            let error = Documents::default().add_text("a.yaml", text).unwrap_err().to_string();
            assert!(error.starts_with(place), "{error}");
        }
        for (text, reason) in [
            ("metadata: {name: a}", "-:1: kind: missing"),
            ("# x\n\nkind: Sevice", "-:3: kind: unknown kind \"Sevice\""),
            ("kind: Service\nmetadata:\n  labels: {}", "-:3: metadata.name: missing"),
            (
                "apiVersion: v1\nkind: List\nitems:\n- kind: Service\n  metadata: {name: a}\n- kind: X",
                "-:6: items[1].kind: unknown kind \"X\"",
            ),
        ] {
            let mut documents = Documents::default();
            documents.add_text("-", text).unwrap();
            assert_eq!(documents.named("default").unwrap_err().to_string(), reason);
        }
    }

    /// (21) (26)
    #[test]
    fn a_list_is_its_items_and_each_has_its_place() {
        let mut documents = Documents::default();
        let list = "apiVersion: v1\nkind: List\nitems:\n- kind: Service\n  metadata: {name: a}\n- kind: Gateway\n  metadata: {name: b, namespace: shop}\n  spec:\n    x: 1\n";
        documents.add_text("a.yaml", &format!("# first\n---\n{list}")).unwrap();
        let names: Vec<_> = documents.named("default").unwrap().iter().map(ObjectName::key).collect();
        assert_eq!(names, ["Service/default/a", "Gateway/shop/b"]);
        for (object, field, place) in [
            (Some("Gateway/shop/b"), "items[1].spec.x", "a.yaml:11"),
            // The path of a mistake that shows only beside other objects begins at the object.
            (Some("Gateway/shop/b"), "spec.x", "a.yaml:11"),
            (None, "items[1].spec", "a.yaml:10"),
            (Some("Gateway/shop/c"), "items", "a.yaml:5"),
        ] {
            assert_eq!(documents.place(Some(0), object, field).as_deref(), Some(place), "{object:?} {field}");
        }
        assert_eq!(documents.place(None, None, ""), None);
    }

    #[test]
    fn a_directory_is_its_yaml_and_json_files() {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in [("b.yaml", "kind: B"), ("a.json", "{\"kind\": \"A\"}"), ("c.txt", "kind: C")] {
            fs::write(directory.path().join(name), text).unwrap();
        }
        let documents = Documents::read(&[directory.path().to_owned()]).unwrap();
        let kinds: Vec<_> = documents.sources.iter().map(|source| source.value["kind"].as_str().unwrap()).collect();
        assert_eq!(kinds, ["A", "B"]);
        let empty = tempfile::tempdir().unwrap();
        assert!(matches!(Documents::read(&[empty.path().to_owned()]), Err(DocumentsError::Empty(_))));
        assert!(matches!(Documents::read(&["/nonexistent/x.yaml".into()]), Err(DocumentsError::Read { .. })));
    }
}
