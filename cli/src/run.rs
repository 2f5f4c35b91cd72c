//! From the command line to the exit code. The only place that prints errors.

use std::process::ExitCode;

use clap::Parser;
use weft_core::text::{clean, clean_lines};

use crate::{
    answer::Detail,
    args::{Args, Command},
    client::ClientError,
    command::{self, Reported, UsageError, client},
    config::ConfigError,
    documents::DocumentsError,
    output,
    style::Style,
};

/// Exit code for a wrong command line, setting or file (sysexits.h `EX_USAGE`).
const USAGE: u8 = 64;

/// The program `weft`.
pub fn main() -> ExitCode {
    match command::completion::answer() {
        Ok(false) => program(run),
        Ok(true) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{} {error}", Style::stderr().red("error:"));
            ExitCode::from(USAGE)
        }
    }
}

/// Parses the command line as `P`, runs the program with it, prints its error, and returns the exit code.
pub fn program<P: Parser>(run: impl AsyncFnOnce(P) -> anyhow::Result<()>) -> ExitCode {
    let args = match P::try_parse() {
        Ok(args) => args,
        Err(error) => {
            let code = if error.use_stderr() { USAGE } else { 0 };
            return if error.print().is_ok() { ExitCode::from(code) } else { ExitCode::FAILURE };
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("weft: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(Box::pin(run(args))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if !error.is::<Reported>() {
                for line in error_lines(&error, Style::stderr()) {
                    eprintln!("{line}");
                }
            }
            ExitCode::from(if is_usage(&error) { USAGE } else { 1 })
        }
    }
}

/// The one rule of exit codes: 64 if the command line, a setting or a file is wrong, so that no attempt with the same ones can
/// succeed; 1 for any other failure.
fn is_usage(error: &anyhow::Error) -> bool {
    let of_client = error.chain().find_map(|cause| cause.downcast_ref::<ClientError>());
    error.is::<UsageError>()
        || error.is::<ConfigError>()
        || error.is::<DocumentsError>()
        || of_client.is_some_and(ClientError::is_usage)
}

async fn run(args: Args) -> anyhow::Result<()> {
    let connection = args.connection;
    match args.command {
        Command::Apply(args) => command::apply::run(&client(&connection)?, &args).await,
        Command::Export(args) => command::export::run(&client(&connection)?, &args).await,
        Command::Get(args) => command::get::run(&connection, &args).await,
        Command::Delete(args) => command::delete::run(&client(&connection)?, &args).await,
        Command::History(args) => command::history::run(&client(&connection)?, &args).await,
        Command::Rollback(args) => command::rollback::run(&client(&connection)?, &args).await,
        Command::Status(args) => command::status::run(&client(&connection)?, &args).await,
        Command::Token(args) => command::token::run(&client(&connection)?, &args).await,
        Command::Demo(args) => command::demo::run(&args),
        Command::Completion(args) => Ok(command::completion::run(&args)?),
        Command::Version => Ok(output::lines(&[format!("weft {}", env!("CARGO_PKG_VERSION"))])?),
    }
}

/// The lines of an error: the failure and its causes, one line per mistake, and a suggestion.
fn error_lines(error: &anyhow::Error, style: Style) -> Vec<String> {
    let mut message = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        if !message.contains(&cause) {
            message.push_str(": ");
            message.push_str(&cause);
        }
    }
    let mut lines = vec![format!("{} {}", style.red("error:"), clean_lines(&message))];
    let known = error.chain().find_map(|cause| cause.downcast_ref::<ClientError>());
    if let Some(ClientError::Rejected { details, .. }) = known {
        // A wrong parameter is both the message and the only detail.
        let mistakes = details.iter().map(mistake).filter(|mistake| !message.contains(mistake));
        lines.extend(mistakes.map(|mistake| format!("  {}", clean(&mistake))));
    }
    if let Some(hint) = known.and_then(ClientError::hint) {
        lines.push(format!("{} {hint}", style.bold("next:")));
    }
    lines
}

/// One mistake: `HTTPRoute shop/product: spec.rules[0]: required`.
fn mistake(detail: &Detail) -> String {
    let parts = [detail.object.as_deref().unwrap_or_default(), &detail.field, &detail.reason];
    parts.iter().filter(|part| !part.is_empty()).copied().collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;

    #[test]
    fn mistakes_take_one_line_each_and_a_suggestion_follows() {
        let detail = Detail {
            field: "spec.ports[0].port".into(),
            reason: "must be 1 to 65535".into(),
            object: Some("Service shop/a".into()),
            document: Some(1),
        };
        let rejected = |status| ClientError::Rejected {
            status,
            message: "2 mistakes".into(),
            details: vec![detail.clone(), Detail { object: None, ..detail.clone() }],
        };
        let error = anyhow::Error::from(rejected(StatusCode::UNPROCESSABLE_ENTITY));
        assert_eq!(
            error_lines(&error, Style::PLAIN),
            [
                "error: 2 mistakes",
                "  Service shop/a: spec.ports[0].port: must be 1 to 65535",
                "  spec.ports[0].port: must be 1 to 65535",
            ]
        );
        // Nothing of what the server says moves the cursor. (35)
        let hostile = Detail { object: None, reason: "bad\x1b[2J\u{202e}".into(), ..detail.clone() };
        let message = "no\x1b]0;title\x07".to_owned();
        let error = ClientError::Rejected { status: StatusCode::CONFLICT, message, details: vec![hostile] };
        assert_eq!(
            error_lines(&error.into(), Style::PLAIN)[..2],
            ["error: no?]0;title?", "  spec.ports[0].port: bad?[2J?"]
        );
        // No message twice. (26)
        let repeated = Detail { field: "ttl".into(), reason: "must be short".into(), object: None, document: None };
        let message = "ttl: must be short".to_owned();
        let error = ClientError::Rejected { status: StatusCode::BAD_REQUEST, message, details: vec![repeated] };
        assert_eq!(error_lines(&error.into(), Style::PLAIN), ["error: ttl: must be short"]);
        let error = anyhow::Error::from(rejected(StatusCode::UNAUTHORIZED)).context("apply");
        assert!(error_lines(&error, Style::PLAIN).last().unwrap().starts_with("next: Give an admin token"));
    }
}
