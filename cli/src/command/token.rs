//! `weft token`: join tokens, and replacement of the admin token. A token is printed once, alone on standard output, so that the
//! output can be redirected to a file.

use std::time::Duration;

use bytes::Bytes;
use http::Method;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{
    answer::{AdminToken, Answer, JoinToken, List},
    args::{Format, Token},
    client::{Client, ClientError, escape},
    kinds::{items, plain},
    output,
    style::Style,
    table::{Cell, Table, Tone},
};

/// Runs the command.
///
/// Errors: an unknown token, or a rejected request.
pub async fn run(client: &Client, args: &Token) -> anyhow::Result<()> {
    match args {
        Token::Create { namespace, service_account, ttl, reusable, output } => {
            let answer = create(client, namespace, service_account, *ttl, *reusable).await?;
            let token = answer.meaning.token.ok_or_else(|| client.unexpected("the answer has no token"))?;
            output::print(*output, &answer.json, |_| vec![token])?;
            if *output == Format::Table {
                let uses = if *reusable { "any number of proxies" } else { "one proxy" };
                let id = answer.meaning.id;
                eprintln!(
                    "{}",
                    Style::stderr()
                        .dim(&format!("token {id}: for {uses} of {namespace}/{service_account}; not shown again"))
                );
            }
        }
        Token::List { output } => {
            let response = client.read::<List<JoinToken>>("/api/v1/tokens").await?.json;
            output::print(*output, &response, |response| listed(response, Timestamp::now()))?;
        }
        Token::Revoke { id } => {
            client.request::<()>(Method::DELETE, &format!("/api/v1/tokens/{}", escape(id)), None).await?;
            output::lines(&[format!("token {id} revoked")])?;
        }
        Token::Admin => {
            let answer = client.request::<AdminToken>(Method::POST, "/api/v1/admin-token", None).await?;
            output::lines(&[answer.meaning.token])?;
            let note = "new admin token, also in admin-token of the control plane's data directory. The old one is no longer valid";
            eprintln!("{}", Style::stderr().dim(note));
        }
    }
    Ok(())
}

/// Creates a join token. The answer contains its text.
///
/// Errors: [`ClientError`].
pub async fn create(
    client: &Client,
    namespace: &str,
    service_account: &str,
    ttl: Duration,
    reusable: bool,
) -> Result<Answer<JoinToken>, ClientError> {
    let wanted = json!({
        "namespace": namespace,
        "serviceAccount": service_account,
        "ttl": format!("{}ms", ttl.as_millis()),
        "reusable": reusable,
    });
    let body = ("application/json", Bytes::from(wanted.to_string()));
    client.request(Method::POST, "/api/v1/tokens", Some(body)).await
}

fn listed(response: &Value, now: Timestamp) -> Vec<String> {
    let mut table = Table::new(&["ID", "NAMESPACE", "SERVICE-ACCOUNT", "USES", "EXPIRES", "AGE", "AUTHOR"]);
    for token in items(response, "/items") {
        let of = |pointer: &str| token.pointer(pointer).map(plain).unwrap_or_default();
        let of_purpose = |name: &str| {
            let nested = of(&format!("/purpose/{name}"));
            if nested.is_empty() { of(&format!("/{name}")) } else { nested }
        };
        let uses = match of("/usesLeft") {
            text if text.is_empty() => "any".to_owned(),
            text if text == "0" => "used up".to_owned(),
            text => text,
        };
        let expires = token.get("expires").map(|time| output::until(time, now)).unwrap_or_default();
        table.row([
            of("/id").into(),
            of_purpose("namespace").into(),
            of_purpose("serviceAccount").into(),
            uses.into(),
            match expires.as_str() {
                "" => Cell::from("never"),
                "expired" => Cell::toned(expires, Tone::Notice),
                _ => expires.into(),
            },
            token.get("created").map(|time| output::age(time, now)).unwrap_or_default().into(),
            of("/author").into(),
        ]);
    }
    output::table_or(&table, "no tokens: `weft token create` creates one")
}
