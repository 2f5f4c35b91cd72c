//! Everything that can fail when the rules and routes are written, removed or checked.

use std::io;
use std::process::ExitStatus;

/// A rule or route could not be written, removed or read.
#[derive(Debug, thiserror::Error)]
pub enum RedirectError {
    /// The program is not installed.
    #[error("the program {program} is missing: install the Debian package {package}")]
    MissingProgram {
        /// `nft` or `ip`.
        program: &'static str,
        /// The Debian package that contains it.
        package: &'static str,
    },
    /// The kernel refused for lack of a capability.
    #[error(
        "{program} is not permitted to change this network namespace: run as root or with CAP_NET_ADMIN ({detail})"
    )]
    NotPermitted {
        /// `nft` or `ip`.
        program: &'static str,
        /// Its error output, at most three lines.
        detail: String,
    },
    /// The program ran and failed.
    #[error("{program} {arguments} failed ({status}): {detail}")]
    Failed {
        /// `nft` or `ip`.
        program: &'static str,
        /// Its arguments.
        arguments: String,
        /// Its exit status.
        status: ExitStatus,
        /// Its error output, at most three lines.
        detail: String,
    },
    /// The program's output does not have the documented form.
    #[error("cannot read the output of {program}")]
    Unreadable {
        /// `nft` or `ip`.
        program: &'static str,
        /// The parse error.
        source: serde_json::Error,
    },
    /// The program could not be started, or its pipes failed.
    #[error("cannot run {program}")]
    Run {
        /// `nft` or `ip`.
        program: &'static str,
        /// The system error.
        source: io::Error,
    },
    /// A probe could not be set up.
    #[error("cannot set up the probe: {step}")]
    Probe {
        /// The step that failed.
        step: &'static str,
        /// The system error.
        source: io::Error,
    },
}
