//! From the files below `src/` to their imports, by tokens: no type is resolved and no macro expanded.

use std::{fs, path::Path, str::FromStr as _};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

use crate::LayersError;

/// One source file.
#[derive(Debug)]
pub(crate) struct File {
    /// Below `src/`, with slashes.
    pub(crate) path: String,
    /// Its module: empty for `lib.rs` and `main.rs`.
    pub(crate) module: Vec<String>,
    /// Absolute paths within the crate, each with its line.
    pub(crate) imports: Vec<(Vec<String>, usize)>,
}

/// Reads all files but those of test modules and of `bin/`, sorted by path.
pub(crate) fn files(src: &Path) -> Result<Vec<File>, LayersError> {
    let mut paths = Vec::new();
    list(src, "", &mut paths)?;
    let mut files = Vec::new();
    let mut tests = Vec::new();
    for path in paths {
        let stem = path.trim_end_matches(".rs");
        let module: Vec<String> = match stem {
            "lib" | "main" => Vec::new(),
            _ => stem.split('/').map(str::to_owned).collect(),
        };
        let place = src.join(&path);
        let text = fs::read_to_string(&place).map_err(|source| LayersError::Read { path: place.clone(), source })?;
        let tokens =
            TokenStream::from_str(&text).map_err(|source| LayersError::Parse { path: place.clone(), source })?;
        let mut walk = Walk { module: module.clone(), imports: Vec::new(), tests: Vec::new() };
        walk.tokens(tokens);
        tests.extend(walk.tests);
        files.push(File { path, module, imports: walk.imports });
    }
    files.retain(|file| !tests.iter().any(|test| file.module.starts_with(test)));
    // A path that begins with a plain name is one of this crate only if the name is a module below.
    let modules: Vec<Vec<String>> = files.iter().map(|file| file.module.clone()).collect();
    for file in &mut files {
        let depth = file.module.len();
        let module = file.module.clone();
        file.imports.retain_mut(|(path, _)| {
            let relative = path.first().is_some_and(|first| first == RELATIVE);
            if relative {
                path.splice(..1, module.iter().cloned());
            }
            !relative || path.get(..=depth).is_some_and(|child| modules.iter().any(|module| module == child))
        });
    }
    Ok(files)
}

/// Stands before a path that begins with a plain name.
const RELATIVE: &str = "?";

fn list(src: &Path, below: &str, paths: &mut Vec<String>) -> Result<(), LayersError> {
    let directory = src.join(below);
    let failed = |source| LayersError::Read { path: directory.clone(), source };
    let entries: Result<Vec<_>, _> = fs::read_dir(&directory).map_err(failed)?.collect();
    let mut names: Vec<String> =
        entries.map_err(failed)?.iter().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    for name in names {
        let path = if below.is_empty() { name } else { format!("{below}/{name}") };
        if src.join(&path).is_dir() {
            if path != "bin" {
                list(src, &path, paths)?;
            }
        } else if path.ends_with(".rs") {
            paths.push(path);
        }
    }
    Ok(())
}

/// One file while it is read.
struct Walk {
    /// The module of the tokens that are being read.
    module: Vec<String>,
    imports: Vec<(Vec<String>, usize)>,
    /// Modules under `#[cfg(test)]`.
    tests: Vec<Vec<String>>,
}

impl Walk {
    fn tokens(&mut self, tokens: TokenStream) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let mut rest = tokens.as_slice();
        while let Some((token, after)) = rest.split_first() {
            rest = match (token, after) {
                (TokenTree::Punct(hash), [TokenTree::Group(attribute), item @ ..])
                    if hash.as_char() == '#' && is_cfg_test(attribute.stream()) =>
                {
                    self.test_item(item)
                }
                (TokenTree::Ident(word), [TokenTree::Ident(name), TokenTree::Group(body), after @ ..])
                    if word == "mod" =>
                {
                    self.module.push(name.to_string());
                    self.tokens(body.stream());
                    self.module.pop();
                    after
                }
                (TokenTree::Ident(word), [TokenTree::Ident(first), ..])
                    if word == "use" && !matches!(first.to_string().as_str(), "crate" | "self" | "super") =>
                {
                    self.path(after, vec![RELATIVE.to_owned()])
                }
                (TokenTree::Ident(word), after) if is_path(after) => match word.to_string().as_str() {
                    "crate" => self.path(skip_colons(after), Vec::new()),
                    "self" => self.path(skip_colons(after), self.module.clone()),
                    "super" => self.parent(after),
                    _ => after,
                },
                (TokenTree::Group(group), after) => {
                    self.tokens(group.stream());
                    after
                }
                (_, after) => after,
            };
        }
    }

    /// `super::…`, also several times.
    fn parent<'t>(&mut self, mut rest: &'t [TokenTree]) -> &'t [TokenTree] {
        let mut module = self.module.clone();
        module.pop();
        while let [_, _, TokenTree::Ident(word), after @ ..] = rest
            && word == "super"
        {
            module.pop();
            rest = after;
        }
        self.path(skip_colons(rest), module)
    }

    /// Records the paths that `rest` begins with, below `prefix`: `a::b`, `a::{b, c::*}`, `self`.
    fn path<'t>(&mut self, mut rest: &'t [TokenTree], mut prefix: Vec<String>) -> &'t [TokenTree] {
        let line = rest.first().map_or(0, |token| token.span().start().line);
        while let [token, after @ ..] = rest {
            match token {
                TokenTree::Ident(name) => {
                    if name != "self" {
                        prefix.push(name.to_string());
                    }
                    if !is_path(after) {
                        rest = after;
                        break;
                    }
                    rest = skip_colons(after);
                }
                TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => {
                    let inside: Vec<TokenTree> = group.stream().into_iter().collect();
                    let comma = |token: &TokenTree| matches!(token, TokenTree::Punct(punct) if punct.as_char() == ',');
                    for part in inside.split(comma).filter(|part| !part.is_empty()) {
                        self.path(part, prefix.clone());
                    }
                    return after;
                }
                // `*`, and what no `use` has, such as the `<` of type arguments.
                TokenTree::Group(_) | TokenTree::Punct(_) | TokenTree::Literal(_) => break,
            }
        }
        self.imports.push((prefix, line));
        rest
    }

    /// Skips the item behind `#[cfg(test)]`; remembers it if it is a module.
    fn test_item<'t>(&mut self, item: &'t [TokenTree]) -> &'t [TokenTree] {
        let mut rest = item;
        while let [token, after @ ..] = rest {
            if let [TokenTree::Ident(word), TokenTree::Ident(name), ..] = rest
                && word == "mod"
            {
                self.tests.push(self.module.iter().cloned().chain([name.to_string()]).collect());
            }
            rest = after;
            match token {
                TokenTree::Punct(punct) if punct.as_char() == ';' => break,
                TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => break,
                TokenTree::Punct(_) | TokenTree::Group(_) | TokenTree::Ident(_) | TokenTree::Literal(_) => {}
            }
        }
        rest
    }
}

fn is_path(after: &[TokenTree]) -> bool {
    matches!(after, [TokenTree::Punct(one), TokenTree::Punct(two), ..] if one.as_char() == ':' && two.as_char() == ':')
}

fn skip_colons(after: &[TokenTree]) -> &[TokenTree] {
    after.get(2..).unwrap_or_default()
}

fn is_cfg_test(attribute: TokenStream) -> bool {
    let text: String = attribute.to_string().split_whitespace().collect();
    text == "cfg(test)" || text.starts_with("cfg(all(test,")
}
