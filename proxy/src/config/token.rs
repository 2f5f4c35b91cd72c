//! Join tokens: `weft1.<id>.<secret>.<SHA-256 of the mesh's root, hex>`, as the control plane makes them.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

use data_encoding::HEXLOWER;

/// Longest token, in bytes.
const MAX: usize = 1024;
/// Largest token file, in bytes.
const MAX_TOKEN_FILE: u64 = 4096;

/// The place of the join token.
#[derive(Clone, Debug)]
pub enum TokenSource {
    /// In a file, read when the token is needed.
    File(PathBuf),
    /// In the settings.
    Given(JoinToken),
}

/// A join token cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TokenSourceError {
    /// The file cannot be read.
    #[error("cannot read the join token from {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file holds no token.
    #[error("no join token in {path}")]
    Token {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: TokenError,
    },
}

/// A join token. Its `Debug` hides the secret.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    text: String,
    root: [u8; 32],
}

/// A text that is no join token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Another form.
    #[error("must be of the form weft1.<id>.<secret>.<SHA-256 of the root>, as `weft token create` prints it")]
    Form,
    /// The last part is no SHA-256.
    #[error("its last part must be 64 hexadecimal digits: the SHA-256 of the mesh's root")]
    Root,
}

impl TokenSource {
    /// Reads the token.
    pub(crate) fn token(&self) -> Result<JoinToken, TokenSourceError> {
        match self {
            Self::Given(token) => Ok(token.clone()),
            Self::File(path) => {
                let text = read_small(path).map_err(|source| TokenSourceError::Read { path: path.clone(), source })?;
                JoinToken::parse(text.trim()).map_err(|source| TokenSourceError::Token { path: path.clone(), source })
            }
        }
    }
}

fn read_small(path: &Path) -> io::Result<String> {
    use io::Read as _;
    let mut text = String::new();
    fs::File::open(path)?.take(MAX_TOKEN_FILE).read_to_string(&mut text)?;
    Ok(text)
}

impl JoinToken {
    /// Parses the text of a token.
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let mut parts = text.split('.');
        let root = match (parts.next(), parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some("weft1"), Some(id), Some(secret), Some(root), None) if !id.is_empty() && !secret.is_empty() => root,
            _ => return Err(TokenError::Form),
        };
        if text.len() > MAX || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(TokenError::Form);
        }
        let root = HEXLOWER.decode(root.to_ascii_lowercase().as_bytes()).ok().and_then(|root| root.try_into().ok());
        Ok(Self { text: text.to_owned(), root: root.ok_or(TokenError::Root)? })
    }

    /// The text, for the control plane.
    pub(crate) fn reveal(&self) -> &str {
        &self.text
    }

    /// The SHA-256 of the root that the control plane's certificate must lead to.
    pub(crate) fn root(&self) -> &[u8; 32] {
        &self.root
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken(root {}, secret hidden)", HEXLOWER.encode(&self.root))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_forms_are_refused() {
        let root = "00".repeat(32);
        let good = JoinToken::parse(&format!("weft1.id.secret.{root}")).unwrap();
        assert_eq!((good.root(), format!("{good:?}").contains("secret.")), (&[0; 32], false));
        for bad in ["", "weft1", "weft1.id.secret", "weft2.id.secret.00", "weft1..secret.00", "weft1.id.sec ret.00"] {
            assert!(JoinToken::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(JoinToken::parse(&format!("weft1.id.secret.{root}00")), Err(TokenError::Root));
        assert_eq!(JoinToken::parse(&format!("weft1.id.secret.{root}.x")), Err(TokenError::Form));
    }
}
