//! The address and credentials of the control plane, from flags and environment. The only reader of the environment besides clap.

use std::{fmt, path::PathBuf};

use crate::args::Connection;

/// The socket of a control plane on this machine with its default data directory.
pub const DEFAULT_SOCKET: &str = "/var/lib/weft/api.sock";

/// The API's port when the URL has none.
const DEFAULT_PORT: u16 = 8080;

/// The address of the control plane's API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Server {
    /// Its Unix socket, on which no token is needed.
    Unix(PathBuf),
    /// TLS.
    Https {
        /// Name or address, without brackets.
        host: String,
        /// Port.
        port: u16,
    },
}

/// The settings of a client.
#[derive(Clone, PartialEq, Eq)]
pub struct Settings {
    /// The control plane.
    pub server: Server,
    /// Admin token.
    pub token: Option<String>,
    /// PEM file with the root that verifies the control plane.
    pub ca: Option<PathBuf>,
    /// Author of changes, for the history: printable ASCII.
    pub author: Option<String>,
}

/// An invalid setting.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not an address.
    #[error("--server {0:?}: expected https://host[:port] or unix:PATH")]
    Server(String),
    /// The API carries secrets and is never served in plaintext.
    #[error("--server {0:?}: the API requires TLS: use https://, or unix:PATH for its socket")]
    Plaintext(String),
    /// The token file is unreadable or empty.
    #[error("--token-file {}: {reason}", path.display())]
    TokenFile {
        /// The file.
        path: PathBuf,
        /// The reason.
        reason: String,
    },
    /// The token cannot be sent in a header.
    #[error("the token contains invalid characters; it may have been copied incompletely")]
    Token,
}

impl Settings {
    /// Validates the flags. Without a server, the local socket.
    ///
    /// Errors: [`ConfigError`].
    pub fn of(connection: &Connection) -> Result<Self, ConfigError> {
        let server = match connection.server.as_deref().filter(|server| !server.is_empty()) {
            Some(text) => Server::parse(text)?,
            None => Server::Unix(DEFAULT_SOCKET.into()),
        };
        let token = match (&connection.token, &connection.token_file) {
            (Some(token), _) if !token.trim().is_empty() => Some(token.trim().to_owned()),
            (_, Some(path)) => {
                let wrong = |reason: String| ConfigError::TokenFile { path: path.clone(), reason };
                let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
                Some(text.trim().to_owned())
                    .filter(|token| !token.is_empty())
                    .ok_or_else(|| wrong("is empty".into()))?
            }
            .into(),
            _ => None,
        };
        if token.as_ref().is_some_and(|token| !token.bytes().all(|byte| byte.is_ascii_graphic())) {
            return Err(ConfigError::Token);
        }
        let author = connection.author.clone().or_else(user);
        let author: Option<String> =
            author.map(|name| name.chars().filter(|c| c.is_ascii_graphic() || *c == ' ').take(100).collect());
        let author = author.map(|name| name.trim().to_owned()).filter(|name| !name.is_empty());
        Ok(Self { server, token, ca: connection.ca.clone(), author })
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let token = self.token.as_ref().map(|_| "hidden");
        f.debug_struct("Settings")
            .field("server", &self.server)
            .field("token", &token)
            .field("ca", &self.ca)
            .field("author", &self.author)
            .finish()
    }
}

impl Server {
    /// `https://host[:port][/]` or `unix:PATH`.
    ///
    /// Errors: something else.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let wrong = || ConfigError::Server(text.to_owned());
        if let Some(path) = text.strip_prefix("unix:") {
            // Both unix:///path and unix:/path are common.
            let path = path.strip_prefix("//").unwrap_or(path);
            return if path.is_empty() { Err(wrong()) } else { Ok(Self::Unix(path.into())) };
        }
        let uri: http::Uri = text.parse().map_err(|_not_a_uri| wrong())?;
        match uri.scheme_str() {
            Some("https") => {}
            Some("http") => return Err(ConfigError::Plaintext(text.to_owned())),
            _ => return Err(wrong()),
        }
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(wrong)?;
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(wrong());
        }
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host).to_owned();
        // `Uri` reads a port above 65535 as no port.
        let port = match uri.authority().and_then(|all| all.as_str().strip_prefix(uri.host()?)).unwrap_or_default() {
            "" => DEFAULT_PORT,
            port => port.strip_prefix(':').and_then(|port| port.parse().ok()).ok_or_else(wrong)?,
        };
        Ok(Self::Https { host, port })
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Https { host, port } if host.contains(':') => write!(f, "https://[{host}]:{port}"),
            Self::Https { host, port } => write!(f, "https://{host}:{port}"),
        }
    }
}

/// The name of the user, also under sudo.
#[expect(clippy::disallowed_methods, reason = "this is the file that reads the environment")]
fn user() -> Option<String> {
    ["SUDO_USER", "USER", "LOGNAME"].iter().find_map(|name| std::env::var(name).ok().filter(|user| !user.is_empty()))
}

/// The variable by which a shell asks for completions.
pub(crate) const COMPLETE: &str = "COMPLETE";

/// A shell's question for completions.
pub(crate) struct Completing {
    /// Its name.
    pub(crate) shell: String,
    /// Index of the word to complete; fish completes the last one.
    pub(crate) index: Option<usize>,
    /// The separator of completions that bash expects.
    pub(crate) separator: Option<String>,
}

/// The question of a shell, if it is one that runs this program. The names of the variables are clap_complete's.
#[expect(clippy::disallowed_methods, reason = "this is the file that reads the environment")]
pub(crate) fn completing() -> Option<Completing> {
    let set = |name| std::env::var(name).ok();
    let shell = set(COMPLETE).filter(|shell| !matches!(shell.as_str(), "" | "0"))?;
    let index = set("_CLAP_COMPLETE_INDEX").and_then(|index| index.parse().ok());
    Some(Completing { shell, index, separator: set("_CLAP_IFS") })
}

/// Whether the user's environment allows colour (<https://no-color.org>).
#[expect(clippy::disallowed_methods, reason = "this is the file that reads the environment")]
pub(crate) fn colour_wanted() -> bool {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    !set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(server: &str) -> Connection {
        Connection { server: Some(server.to_owned()), ..Connection::default() }
    }

    #[test]
    fn servers_are_urls_or_sockets() {
        let https = |host: &str, port| Server::Https { host: host.into(), port };
        for (text, server) in [
            ("https://cp.example:9", https("cp.example", 9)),
            ("https://cp.example/", https("cp.example", 8080)),
            ("https://[fd00::1]:8443", https("fd00::1", 8443)),
            ("unix:/run/a.sock", Server::Unix("/run/a.sock".into())),
            ("unix:///run/a.sock", Server::Unix("/run/a.sock".into())),
            ("unix:a.sock", Server::Unix("a.sock".into())),
        ] {
            assert_eq!(Server::parse(text).unwrap(), server, "{text}");
        }
        for text in ["", "cp:8080", "ftp://a", "https://", "https://a/b", "https://a?b", "unix:", "https://a:99999"] {
            assert!(matches!(Server::parse(text), Err(ConfigError::Server(_))), "{text}");
        }
        assert!(matches!(Server::parse("http://a"), Err(ConfigError::Plaintext(_))));
    }

    #[test]
    fn the_default_is_the_local_socket() {
        let settings = Settings::of(&Connection::default()).unwrap();
        assert_eq!((settings.server, settings.token), (Server::Unix(DEFAULT_SOCKET.into()), None));
    }

    #[test]
    fn an_author_is_printable() {
        let mut given = connection("unix:x");
        given.author = Some(" Änna\r\nX: y ".into());
        assert_eq!(Settings::of(&given).unwrap().author.as_deref(), Some("nnaX: y"));
        given.author = Some("Ä".into());
        assert_eq!(Settings::of(&given).unwrap().author, None);
    }

    #[test]
    fn tokens_come_from_flag_or_file_and_are_not_printed() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("token");
        std::fs::write(&file, "secret\n").unwrap();
        let mut given = connection("unix:x");
        given.token_file = Some(file.clone());
        let settings = Settings::of(&given).unwrap();
        assert_eq!(settings.token.as_deref(), Some("secret"));
        assert!(!format!("{settings:?}").contains("secret"));
        given.token = Some("first".into());
        assert_eq!(Settings::of(&given).unwrap().token.as_deref(), Some("first"));
        std::fs::write(&file, " \n").unwrap();
        given.token = None;
        assert!(Settings::of(&given).unwrap_err().to_string().ends_with("is empty"));
        given.token = Some("a\nb".into());
        assert!(matches!(Settings::of(&given), Err(ConfigError::Token)));
    }
}
