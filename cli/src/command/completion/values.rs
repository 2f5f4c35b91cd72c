//! The values that a word may have: kinds, and what the control plane has. A shell waits for them, so they take at most a
//! second, and are none if the control plane cannot be reached or refuses. Names that would not be one plain word on a command
//! line are left out: whatever answers, nothing in it reaches the terminal or the shell.

use std::{collections::BTreeSet, ffi::OsStr, ffi::OsString, sync::Arc, time::Duration};

use clap::{Arg, ArgMatches, Command, FromArgMatches as _};
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate};
use serde_json::Value;
use tokio::{task::JoinSet, time::timeout};
use weft_core::{api::Kind, text::clean};

use crate::{
    answer::{JoinToken, List},
    args::Connection,
    client::{Client, ClientError},
    command::{client, get, history},
    kinds::{items, plain},
};

/// The time in which the control plane has to answer.
const ANSWER: Duration = Duration::from_secs(1);
/// Revisions that are offered, from the newest.
const REVISIONS: u32 = 20;

/// The meaning of a word, by the id of its argument.
#[derive(Debug, Clone, Copy)]
enum Wanted {
    Kind,
    Name,
    Namespace,
    Account,
    Revision,
    Token,
}

/// A value and its description.
type Found = Vec<(String, String)>;

/// The command line with the values of its arguments, when `words` have been typed and the one at `index` is to be completed.
pub(super) fn completed(command: Command, mut words: Vec<OsString>, index: usize) -> Command {
    // A neutral value where the current word is: what is missing or half typed must not hide the flags behind it.
    if let Some(word) = words.get_mut(index) {
        let flag = word.to_str().and_then(|text| text.starts_with("--").then(|| text.split_once('=')).flatten());
        *word = flag.map_or_else(|| "0".into(), |(flag, _)| format!("{flag}=0").into());
    }
    let typed = command.clone().ignore_errors(true).try_get_matches_from(words).ok();
    with_values(command, &Arc::new(typed.unwrap_or_default()))
}

fn with_values(command: Command, typed: &Arc<ArgMatches>) -> Command {
    let add = |arg: Arg| {
        let wanted = match arg.get_id().as_str() {
            "kind" | "kinds" => Wanted::Kind,
            "name" => Wanted::Name,
            "namespace" => Wanted::Namespace,
            "service_account" => Wanted::Account,
            "revision" => Wanted::Revision,
            "id" => Wanted::Token,
            _ => return arg,
        };
        let typed = Arc::clone(typed);
        arg.add(ArgValueCompleter::new(move |current: &OsStr| candidates(wanted, &typed, current)))
    };
    command.mut_args(add).mut_subcommands(|sub| with_values(sub, typed))
}

/// The values of one argument that begin with what has been typed of it.
fn candidates(wanted: Wanted, typed: &ArgMatches, current: &OsStr) -> Vec<CompletionCandidate> {
    let Some(current) = current.to_str() else { return Vec::new() };
    let (found, prefix) = match wanted {
        Wanted::Kind => (kinds(), current.to_lowercase()),
        Wanted::Name | Wanted::Namespace | Wanted::Account | Wanted::Revision | Wanted::Token => {
            (ask(wanted, typed).unwrap_or_default(), current.to_owned())
        }
    };
    let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    let begins = |value: &str| value.starts_with(&prefix) && !value.is_empty() && !value.starts_with('-');
    let found = found.into_iter().filter(|(value, _)| begins(value) && plain(value));
    found
        .map(|(value, help)| {
            let help = Some(clean(&help).into_owned()).filter(|help| !help.is_empty());
            CompletionCandidate::new(value).help(help.map(Into::into))
        })
        .collect()
}

fn kinds() -> Found {
    let long = Kind::ALL.iter().map(|kind| (kind.plural().to_owned(), kind.short_names().join(", ")));
    let short = Kind::ALL
        .iter()
        .flat_map(|kind| kind.short_names().iter().map(|short| ((*short).to_owned(), kind.as_str().to_owned())));
    long.chain(short).collect()
}

/// Asks the control plane. `None` if it does not answer in time, or if the command line does not say what is wanted.
fn ask(wanted: Wanted, typed: &ArgMatches) -> Option<Found> {
    let connection = Connection::from_arg_matches(typed).ok()?;
    let mut command = typed;
    while let Some((_, sub)) = command.subcommand() {
        command = sub;
    }
    let text = |id| command.try_get_one::<String>(id).ok().flatten().cloned();
    let (kind, namespace) = (text("kind").and_then(|kind| Kind::named(&kind)), text("namespace"));
    let client = client(&connection).ok()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    let question = async {
        match wanted {
            Wanted::Kind => Ok(kinds()),
            Wanted::Name => match kind {
                Some(kind) => objects(&client, kind, namespace.as_deref(), "/metadata/name").await,
                None => Ok(Vec::new()),
            },
            Wanted::Account => objects(&client, Kind::Workload, namespace.as_deref(), "/spec/serviceAccount").await,
            Wanted::Namespace => namespaces(&client).await,
            Wanted::Revision => revisions(&client).await,
            Wanted::Token => tokens(&client).await,
        }
    };
    let answer = runtime.block_on(async { timeout(ANSWER, question).await });
    // A look-up of the host's name may still be waiting in a thread.
    runtime.shutdown_background();
    answer.ok()?.ok()
}

/// The texts at a path of all objects of a kind, each once.
async fn objects(client: &Client, kind: Kind, namespace: Option<&str>, path: &str) -> Result<Found, ClientError> {
    let list = get::all(client, kind, namespace, None).await?.json;
    let values: BTreeSet<String> =
        items(&list, "/items").filter_map(|object| object.pointer(path)?.as_str().map(str::to_owned)).collect();
    Ok(values.into_iter().map(|value| (value, String::new())).collect())
}

/// The namespaces that have objects of any kind.
async fn namespaces(client: &Client) -> Result<Found, ClientError> {
    let mut lists = JoinSet::new();
    for kind in Kind::ALL {
        let client = client.clone();
        lists.spawn(async move { objects(&client, *kind, None, "/metadata/namespace").await });
    }
    let found: BTreeSet<_> = lists.join_all().await.into_iter().flatten().flatten().collect();
    Ok(found.into_iter().collect())
}

async fn revisions(client: &Client) -> Result<Found, ClientError> {
    let list = history::revisions(client, REVISIONS).await?.json;
    let of = |revision: &Value, name: &str| revision.get(name).map(plain).unwrap_or_default();
    Ok(items(&list, "/items").map(|revision| (of(revision, "number"), of(revision, "message"))).collect())
}

async fn tokens(client: &Client) -> Result<Found, ClientError> {
    let list = client.read::<List<JoinToken>>("/api/v1/tokens").await?.meaning;
    let of = |token: JoinToken| (token.id, format!("{}/{}", token.namespace, token.service_account));
    Ok(list.items.into_iter().map(of).collect())
}
