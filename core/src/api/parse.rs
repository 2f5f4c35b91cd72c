//! Text -> objects: YAML documents or JSON, every mistake at once, each with its document, object and field.
//! How: text is cut into documents, each becomes a bounded tree, each part of it (`metadata`, `spec`, `status`) a type.
//! A part that does not fit is named and cut out of the tree, and the rest is read again, until nothing is wrong; a missing
//! field gets a stand-in.
//! Invariant: the time is linear in the text for at most [`MAX_ERRORS`] mistakes, whatever the text.

mod budget;
mod text;
mod words;

use std::collections::HashSet;

use serde::de::DeserializeOwned;

use super::{
    error::{ApiError, Fault, FieldError},
    meta::DEFAULT_NAMESPACE,
    node::{Node, Step, path_text},
    object::{Kind, Object, ObjectKey, Resource, kind_names},
    proxy_config::ProxyConfig,
    shape::{Problem, ShapeError},
};

pub use self::budget::{MAX_DIRECTIVES, MAX_DOCUMENTS, MAX_PIECES};

/// Largest text that is read, in bytes.
pub const MAX_TEXT: usize = 4 * 1024 * 1024;
/// Most mistakes that are named; with more, the last one says so.
pub const MAX_ERRORS: usize = 100;
/// Longest path or reason of one mistake, in characters; the rest is cut off.
const MAX_MESSAGE: usize = 2000;

const PROXY_CONFIG: (&str, &str) = ("weft.dev/v1alpha1", "ProxyConfig");

/// Reads and validates all documents of a text: YAML, JSON, and `v1 List` in either. Empty documents are skipped.
/// Errors: every mistake in every document, in their order, at most [`MAX_ERRORS`].
pub fn parse_documents(text: &str) -> Result<Vec<Object>, Vec<ApiError>> {
    let mut all = Documents::default();
    for (index, node) in text::documents(text).enumerate() {
        if all.is_full() {
            break;
        }
        match node {
            Ok(node) => all.document(index, node),
            Err(reason) => all.syntax(index, reason),
        }
    }
    all.finish()
}

/// Reads and validates a proxy's file: a `ProxyConfig`, then any objects.
/// Errors: as [`parse_documents`]; also when the first document is no `ProxyConfig` or a later one is.
pub fn parse_proxy_file(text: &str) -> Result<(ProxyConfig, Vec<Object>), Vec<ApiError>> {
    let mut all = Documents::default();
    let mut config = None;
    for (index, node) in text::documents(text).enumerate() {
        if all.is_full() {
            break;
        }
        match node {
            Ok(node) if index == 0 => match proxy_config(node) {
                Ok(read) => config = Some(read),
                Err(errors) => all.errors(index, None, errors),
            },
            Ok(node) => all.document(index, node),
            Err(reason) => all.syntax(index, reason),
        }
    }
    if config.is_none() && all.errors.is_empty() {
        let reason = "the file is empty; its first document must be a ProxyConfig";
        all.errors(0, None, vec![FieldError::invalid("", reason)]);
    }
    let objects = all.finish()?;
    config.map(|config| (config, objects)).ok_or_else(Vec::new)
}

/// The line, from 1, of a mistake in a text of documents.
pub fn line_of_error(text: &str, error: &ApiError) -> usize {
    line_in(text, error.document, if error.error.fault == Fault::Syntax { NOWHERE } else { &error.error.path })
}

/// The line, from 1, of a field in one document of a text (from 0, empty ones do not count).
pub fn line_in(text: &str, document: usize, path: &str) -> usize {
    text::document(text, document).map_or(1, |(before, document)| before + super::line_of(document, path))
}

/// A path that no field has: the search for it ends where the document cannot be read.
const NOWHERE: &str = ".";

/// Reads one document that is no List. Does not validate.
pub(super) fn object(node: Node) -> Result<Object, Vec<FieldError>> {
    let mut reader = Reader::new(node, &[]);
    let object = reader.object();
    reader.finish(object)
}

fn proxy_config(node: Node) -> Result<ProxyConfig, Vec<FieldError>> {
    let mut reader = Reader::new(node, &[]);
    let (version, kind) = reader.type_meta();
    if kind.as_deref().is_some_and(|kind| kind != PROXY_CONFIG.1) {
        let reason = format!("the first document must be a ProxyConfig, not {:?}", kind.unwrap_or_default());
        return Err(vec![FieldError::invalid("kind", reason)]);
    }
    reader.check_version(version.as_deref(), PROXY_CONFIG.1, PROXY_CONFIG.0);
    reader.only(&["apiVersion", "kind", "metadata", "spec"]);
    let metadata = reader.part("metadata");
    let spec = reader.part("spec");
    let config = metadata.zip(spec).map(|(metadata, spec)| ProxyConfig { metadata, spec });
    let config = reader.finish(config)?;
    match super::validate::proxy_config(&config) {
        errors if errors.is_empty() => Ok(config),
        errors => Err(errors),
    }
}

/// What has been read so far.
#[derive(Default)]
struct Documents {
    objects: Vec<Object>,
    errors: Vec<ApiError>,
    seen: HashSet<ObjectKey>,
}

impl Documents {
    fn document(&mut self, index: usize, mut node: Node) {
        let is_list = node.field("kind").and_then(Node::text) == Some("List")
            && node.field("apiVersion").and_then(Node::text) == Some("v1");
        if !is_list {
            return self.one(index, node, &[]);
        }
        let items = if let Node::Map(fields) = &mut node {
            fields.iter_mut().find(|(key, _)| key == "items").map(|(_, items)| items)
        } else {
            None
        };
        match items {
            Some(Node::List(items)) => {
                for (position, item) in std::mem::take(items) {
                    if self.is_full() {
                        return;
                    }
                    self.one(index, item, &[Step::Field("items".to_owned()), Step::Index(position)]);
                }
            }
            Some(_) => self.errors(index, None, vec![FieldError::invalid("items", "must be a list")]),
            None => self.errors(index, None, vec![FieldError::required("items")]),
        }
    }

    fn one(&mut self, index: usize, node: Node, under: &[Step]) {
        let mut reader = Reader::new(node, under);
        let key = reader.key();
        let object = reader.object();
        match reader.finish(object) {
            Ok(object) => {
                let mut errors = super::validate::validate(&object);
                let key = object.key();
                if !self.seen.insert(key.clone()) {
                    errors.push(FieldError::invalid("metadata.name", "the same object is already in this text"));
                }
                let prefix = path_text(under);
                for error in errors.iter_mut().filter(|_| !prefix.is_empty()) {
                    error.path = format!("{prefix}.{}", error.path);
                }
                self.errors(index, Some(key), errors);
                self.objects.push(object);
            }
            Err(errors) => self.errors(index, key, errors),
        }
    }

    fn syntax(&mut self, index: usize, reason: String) {
        self.errors(index, None, vec![FieldError { path: String::new(), fault: Fault::Syntax, reason }]);
    }

    fn errors(&mut self, document: usize, object: Option<ObjectKey>, errors: Vec<FieldError>) {
        for error in errors {
            if self.is_full() {
                return;
            }
            let error = FieldError { path: shortened(error.path), reason: shortened(error.reason), ..error };
            self.errors.push(ApiError { document, object: object.clone(), error });
            if self.is_full() {
                let error = FieldError::invalid("", "too many errors; the rest is not shown");
                self.errors.push(ApiError { document, object: None, error });
            }
        }
    }

    fn is_full(&self) -> bool {
        self.errors.len() >= MAX_ERRORS
    }

    fn finish(self) -> Result<Vec<Object>, Vec<ApiError>> {
        if self.errors.is_empty() { Ok(self.objects) } else { Err(self.errors) }
    }
}

/// A message must not repeat a text of megabytes.
fn shortened(mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().nth(MAX_MESSAGE) {
        text.truncate(end);
        text.push('…');
    }
    text
}

/// Reads one document part by part and collects what is wrong.
pub(super) struct Reader<'a> {
    node: Node,
    /// Where the document is in its text: `items[3]` for a member of a List.
    under: &'a [Step],
    kind: Option<Kind>,
    errors: Vec<FieldError>,
}

impl<'a> Reader<'a> {
    fn new(node: Node, under: &'a [Step]) -> Self {
        Self { node, under, kind: None, errors: Vec::new() }
    }

    fn finish<T>(self, value: Option<T>) -> Result<T, Vec<FieldError>> {
        match value {
            Some(value) if self.errors.is_empty() => Ok(value),
            _ => Err(self.errors),
        }
    }

    fn object(&mut self) -> Option<Object> {
        let (version, kind) = self.type_meta();
        let (version, mut kind) = (version?, kind?);
        if let Some((end, _)) = kind.char_indices().nth(80) {
            kind.truncate(end); // no kind is that long, and the message repeats it
        }
        let kind = match kind.parse::<Kind>() {
            Ok(kind) => kind,
            Err(_) if kind == PROXY_CONFIG.1 => {
                let reason = "a ProxyConfig is a proxy's own file and cannot be applied";
                self.errors.push(FieldError::invalid(self.path(&[], "kind"), reason));
                return None;
            }
            Err(error) => {
                let reason = match words::nearest(&kind, Kind::ALL.iter().map(|kind| kind.as_str())) {
                    Some(near) => format!("{kind:?} is not a kind that Weft knows; did you mean {near:?}?"),
                    None => error.to_string(),
                };
                self.errors.push(FieldError { path: self.path(&[], "kind"), fault: Fault::Unknown, reason });
                return None;
            }
        };
        self.check_version(Some(&version), kind.as_str(), kind.api_version());
        self.kind = Some(kind);
        self.only(&["apiVersion", "kind", "metadata", "spec", "status"]);
        Object::from_parts(kind, self)
    }

    /// Metadata, spec and status of a known kind.
    pub(super) fn resource<S: DeserializeOwned>(&mut self) -> Option<Resource<S>> {
        let metadata = self.part("metadata");
        let spec = self.part("spec");
        let status = if self.node.field("status").is_some() { Some(self.part("status")?) } else { None };
        Some(Resource { metadata: metadata?, spec: spec?, status })
    }

    fn type_meta(&mut self) -> (Option<String>, Option<String>) {
        if !matches!(self.node, Node::Map(_)) {
            let reason = format!("an object must be a map with apiVersion, kind, metadata and spec ({})", kind_names());
            self.errors.push(FieldError::invalid(path_text(self.under), reason));
            return (None, None);
        }
        let mut text = |name: &str| {
            let error = match self.node.field(name) {
                Some(Node::Text(text)) => return Some(text.clone()),
                Some(_) => FieldError::invalid(self.path(&[], name), "must be a text"),
                None => FieldError::required(self.path(&[], name)),
            };
            self.errors.push(error);
            None
        };
        (text("apiVersion"), text("kind"))
    }

    fn check_version(&mut self, version: Option<&str>, kind: &str, wanted: &str) {
        if let Some(version) = version
            && version != wanted
        {
            let reason = format!("must be {wanted:?} for a {kind}, not {version:?}");
            self.errors.push(FieldError::invalid(self.path(&[], "apiVersion"), reason));
        }
    }

    fn only(&mut self, known: &[&str]) {
        let Node::Map(fields) = &self.node else { return };
        let unknown: Vec<String> =
            fields.iter().map(|(key, _)| key).filter(|key| !known.contains(&key.as_str())).cloned().collect();
        for field in unknown {
            let reason = words::unknown_field(&field, known);
            self.errors.push(FieldError { path: self.path(&[], &field), fault: Fault::Unknown, reason });
        }
    }

    /// The object's key, when the document says enough.
    fn key(&self) -> Option<ObjectKey> {
        let kind = self.node.field("kind")?.text()?.parse().ok()?;
        let metadata = self.node.field("metadata")?;
        let namespace = metadata.field("namespace").and_then(Node::text).unwrap_or(DEFAULT_NAMESPACE);
        Some(ObjectKey::new(kind, namespace, metadata.field("name")?.text()?))
    }

    fn path(&self, steps: &[Step], field: &str) -> String {
        let steps: Vec<Step> = self.under.iter().chain(steps).cloned().chain([Step::Field(field.to_owned())]).collect();
        path_text(&steps)
    }

    /// Reads one part; `None` after naming every mistake in it.
    fn part<T: DeserializeOwned>(&mut self, name: &str) -> Option<T> {
        let Some(part) = self.node.field(name) else {
            self.errors.push(FieldError::required(self.path(&[], name)));
            return None;
        };
        let mut part = part.clone();
        if name != "spec" {
            part.drop_nulls(); // generated manifests are full of `creationTimestamp: null`; nothing hangs on it there
        }
        let mut removed: HashSet<String> = HashSet::new();
        let mut holes: HashSet<String> = HashSet::new();
        let mut good = true;
        // serde stops at the first error. To find the next one, the place of each error is filled by a hole that fits most
        // types, or else cut out, and the part is read again.
        for _ in 0..MAX_ERRORS {
            let error: ShapeError = match T::deserialize(&part) {
                Ok(value) => return good.then_some(value),
                Err(error) => error,
            };
            good = false;
            let mut steps = error.steps();
            let mut full = vec![Step::Field(name.to_owned())];
            full.extend(steps.iter().cloned());
            let mistake = if let Problem::MissingField(field) = &error.problem {
                FieldError::required(self.path(&full, field))
            } else {
                let all: Vec<Step> = self.under.iter().chain(&full).cloned().collect();
                let not_yet = self.kind.is_some_and(|kind| words::not_yet(kind, &full));
                words::explain(path_text(&all), &error.problem, not_yet)
            };
            // What is missing because it was cut out has been named already, and a hole that fits nowhere too.
            if !removed.contains(&mistake.path) && !holes.contains(&mistake.path) {
                self.errors.push(mistake.clone());
            }
            if let Problem::MissingField(field) = &error.problem
                && part.dig(&steps, field)
            {
                holes.insert(mistake.path);
                continue;
            }
            if holes.contains(&mistake.path) && steps.pop().is_none_or(|_| steps.is_empty()) {
                return None; // nothing stands in for this one, so what holds it goes
            }
            removed.insert(path_text(&self.under.iter().chain(&full).cloned().collect::<Vec<_>>()));
            if !part.remove(&steps) {
                return None;
            }
        }
        None
    }
}
