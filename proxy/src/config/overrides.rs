//! Flags and environment that replace parts of the file, so that one file can serve many instances.

use std::{fmt, net::IpAddr, path::PathBuf};

use clap::{Args, ValueHint};
use serde::Deserialize;
use serde_json::{Value, json};

/// The flags and environment variables that replace parts of the file.
#[derive(Args, Clone, Default)]
pub struct Overrides {
    /// The proxy's name, instead of metadata.name
    #[arg(long, env = "WEFT_NAME", value_name = "NAME")]
    pub name: Option<String>,

    /// The workload's addresses, instead of spec.workload.addresses
    #[arg(long, env = "WEFT_ADDRESSES", value_name = "IP,…", value_delimiter = ',')]
    pub addresses: Vec<IpAddr>,

    /// The control plane, instead of spec.controlPlane.address
    #[arg(long, env = "WEFT_CONTROL_PLANE", value_name = "HOST:PORT")]
    pub control_plane: Option<String>,

    /// A file with a join token, instead of the one in spec.controlPlane
    #[arg(long, env = "WEFT_JOIN_TOKEN_FILE", value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub join_token_file: Option<PathBuf>,

    /// A join token, instead of the one in spec.controlPlane; better by the environment, where `ps` does not show it
    #[arg(
        long,
        env = "WEFT_JOIN_TOKEN",
        value_name = "TOKEN",
        hide_env_values = true,
        conflicts_with = "join_token_file"
    )]
    pub join_token: Option<String>,
}

impl Overrides {
    fn is_empty(&self) -> bool {
        self.name.is_none()
            && self.addresses.is_empty()
            && self.control_plane.is_none()
            && self.join_token_file.is_none()
            && self.join_token.is_none()
    }

    /// The file's text with the overrides in its first document. A text that is not YAML is left as it is, so that the
    /// parser of the file reports the mistake.
    pub(super) fn apply(&self, text: &str) -> String {
        if self.is_empty() {
            return text.to_owned();
        }
        let mut documents = Vec::new();
        for document in serde_norway::Deserializer::from_str(text) {
            match Value::deserialize(document) {
                // The parser of the file leaves out empty documents, which would not be empty any more.
                Ok(Value::Null) => {}
                Ok(value) => documents.push(value),
                Err(_malformed) => return text.to_owned(),
            }
        }
        if let Some(first) = documents.first_mut() {
            self.put(first);
        }
        documents.iter().map(|document| format!("{document}\n---\n")).collect()
    }

    fn put(&self, config: &mut Value) {
        let mut set = |pointer: &[&str], value: Value| {
            let mut at = &mut *config;
            for part in pointer {
                if !at.is_object() {
                    if !at.is_null() {
                        return;
                    }
                    *at = json!({});
                }
                let Some(map) = at.as_object_mut() else { return };
                at = map.entry(*part).or_insert(Value::Null);
            }
            *at = value;
        };
        if let Some(name) = &self.name {
            set(&["metadata", "name"], json!(name));
        }
        if !self.addresses.is_empty() {
            set(&["spec", "workload", "addresses"], json!(self.addresses));
        }
        if let Some(address) = &self.control_plane {
            set(&["spec", "controlPlane", "address"], json!(address));
        }
        let (own, other, value) = match (&self.join_token, &self.join_token_file) {
            (Some(token), _) => ("joinToken", "joinTokenFile", json!(token)),
            (None, Some(file)) => ("joinTokenFile", "joinToken", json!(file)),
            (None, None) => return,
        };
        set(&["spec", "controlPlane", own], value);
        if let Some(plane) = config.pointer_mut("/spec/controlPlane").and_then(Value::as_object_mut) {
            plane.remove(other);
        }
    }
}

impl fmt::Debug for Overrides {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Overrides")
            .field("name", &self.name)
            .field("addresses", &self.addresses)
            .field("control_plane", &self.control_plane)
            .field("join_token_file", &self.join_token_file)
            .field("join_token", &self.join_token.as_ref().map(|_| "(hidden)"))
            .finish()
    }
}
