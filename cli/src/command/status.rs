//! `weft status`: every proxy with its applied revision, certificate lifetime and workload health.

use jiff::Timestamp;
use serde_json::Value;
use weft_core::text::clean;

use crate::{
    answer::{List, Proxy},
    args::{Format, Status},
    client::{Client, ClientError},
    command::history,
    kinds::{items, plain},
    output,
    table::{Cell, Table, Tone},
};

/// Runs the command.
///
/// Errors: a failed request.
pub async fn run(client: &Client, args: &Status) -> anyhow::Result<()> {
    let mut response = proxies(client).await?;
    if let (Some(namespace), Some(Value::Array(items))) = (&args.namespace, response.get_mut("items")) {
        let prefix = format!("{namespace}/");
        items.retain(|proxy| proxy.pointer("/key/name").is_some_and(|name| plain(name).starts_with(&prefix)));
    }
    let newest = match response.get("revision").and_then(Value::as_u64) {
        Some(revision) => revision,
        None => history::newest(client).await?,
    };
    if let (Format::Table, Some(namespace)) = (args.output, &args.namespace)
        && items(&response, "/items").next().is_none()
    {
        let nothing = format!("no proxy of the namespace {namespace} is connected; without -n, weft status shows all");
        return Ok(output::lines(&[nothing])?);
    }
    output::print(args.output, &response, |response| proxy_lines(response, newest, Timestamp::now()))?;
    Ok(())
}

/// `{items: [...]}`: the connected proxies.
///
/// Errors: [`ClientError`].
pub async fn proxies(client: &Client) -> Result<Value, ClientError> {
    Ok(client.read::<List<Proxy>>("/api/v1/proxies").await?.json)
}

/// The last revision that a proxy of the list has applied.
pub fn applied(proxy: &Value) -> Option<u64> {
    let applied = proxy.pointer("/discovery/applied_revision").or_else(|| proxy.pointer("/discovery/appliedRevision"));
    applied.and_then(Value::as_u64)
}

/// Its name, `<namespace>/<name>`.
pub fn name(proxy: &Value) -> String {
    proxy.pointer("/key/name").map(plain).unwrap_or_default()
}

fn proxy_lines(response: &Value, newest: u64, now: Timestamp) -> Vec<String> {
    let mut table = Table::new(&["WORKLOAD", "IDENTITY", "REVISION", "CERTIFICATE", "HEALTH", "HEARTBEAT", "VERSION"]);
    let mut rejections = Vec::new();
    let (mut total, mut current) = (0, 0);
    for proxy in items(response, "/items") {
        let of = |pointer: &str| proxy.pointer(pointer).map(plain).unwrap_or_default();
        let applied = applied(proxy);
        total += 1;
        if let Some(lost) = proxy.get("lost").filter(|lost| !lost.is_null()) {
            let since = output::age(lost.get("since").unwrap_or(&Value::Null), now);
            table.row([
                of("/key/name").into(),
                of("/key/identity").into(),
                Cell::toned(format!("lost {since} ago"), Tone::Bad),
                certificate(lost.get("certificateExpiry").unwrap_or(&Value::Null), now),
                Cell::default(),
                Cell::default(),
                of("/lost/version").into(),
            ]);
            continue;
        }
        current += usize::from(applied == Some(newest));
        table.row([
            of("/key/name").into(),
            of("/key/identity").into(),
            revision(applied, newest, proxy.get("discovery").is_some_and(|stream| !stream.is_null())),
            certificate(either(proxy, "/agent/certificate_expiry", "/agent/certificateExpiry"), now),
            health(&of("/agent/health"), &of("/agent/reason")),
            heartbeat(either(proxy, "/agent/last_heartbeat", "/agent/lastHeartbeat"), now),
            version(&of("/agent/version"), &of("/discovery/client")).into(),
        ]);
        let nacks = proxy.pointer("/discovery/nacks").and_then(Value::as_object);
        for (resource, nack) in nacks.into_iter().flatten() {
            let message = nack.get("message").map(plain).unwrap_or_default();
            rejections.push(format!("{} rejects {}: {message}", of("/key/name"), clean(resource)));
        }
        for claim in items(proxy, "/agent/refusedAddresses") {
            let of_claim = |name: &str| claim.get(name).map(plain).unwrap_or_default();
            let (address, reason) = (of_claim("address"), of_claim("reason"));
            rejections.push(format!("{}: address {address} refused, because it {reason}", of("/key/name")));
        }
    }
    let mut lines = output::table_or(&table, "no proxy is connected");
    lines.extend(rejections);
    if total > 0 {
        lines.push(format!("{current} of {total} proxies have revision {newest}"));
    }
    lines
}

/// The version of a Weft proxy; for another xDS client, the name that it gives itself.
fn version(agent: &str, client: &str) -> String {
    if agent.is_empty() { client.to_owned() } else { agent.to_owned() }
}

fn either<'a>(proxy: &'a Value, one: &str, other: &str) -> &'a Value {
    proxy.pointer(one).or_else(|| proxy.pointer(other)).unwrap_or(&Value::Null)
}

fn revision(applied: Option<u64>, newest: u64, connected: bool) -> Cell {
    match applied {
        _ if !connected => Cell::toned("disconnected", Tone::Bad),
        Some(applied) if applied >= newest => Cell::toned(applied.to_string(), Tone::Good),
        Some(applied) => Cell::toned(format!("{applied}, {newest} is newer"), Tone::Notice),
        None => Cell::toned("none yet", Tone::Notice),
    }
}

fn certificate(expiry: &Value, now: Timestamp) -> Cell {
    match output::until(expiry, now) {
        text if text == "expired" => Cell::toned(text, Tone::Bad),
        text => text.into(),
    }
}

fn health(health: &str, reason: &str) -> Cell {
    match (health, reason) {
        ("healthy", _) => Cell::toned(health, Tone::Good),
        ("unhealthy", "") => Cell::toned(health, Tone::Bad),
        ("unhealthy", reason) => Cell::toned(format!("{health} ({reason})"), Tone::Bad),
        (other, _) => Cell::toned(other, Tone::Notice),
    }
}

fn heartbeat(last: &Value, now: Timestamp) -> Cell {
    match output::age(last, now) {
        text if text.is_empty() => Cell::default(),
        text => format!("{text} ago").into(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_refused_address_is_reported() {
        let claim = json!({"address": "fd00::1", "reason": "is claimed at the same port by shop/b"});
        let agent = json!({"health": "healthy", "refusedAddresses": [claim]});
        let response = json!({"items": [{"key": {"name": "shop/a"}, "discovery": null, "agent": agent}]});
        let lines = proxy_lines(&response, 4, Timestamp::UNIX_EPOCH);
        assert_eq!(lines[2], "shop/a: address fd00::1 refused, because it is claimed at the same port by shop/b");
    }

    /// A lost proxy stands out and counts (19); nothing that it said moves the cursor (35).
    #[test]
    fn a_lost_proxy_counts_and_what_peers_say_is_clean() {
        let now: Timestamp = "2026-01-10T12:00:12Z".parse().unwrap();
        let lost = json!({"since": "2026-01-10T12:00:00Z", "version": "0.1.0"});
        let nacks = json!({"a\u{1b}[2Jb": {"message": "bad\u{1b}]0;x\u{7}\u{202e}"}});
        let response = json!({"items": [
            {"key": {"name": "shop/a", "identity": "spiffe://x/a"}, "discovery": null, "agent": null, "lost": lost},
            {"key": {"name": "shop/b"}, "discovery": {"appliedRevision": 4, "nacks": nacks},
             "agent": {"health": "unhealthy", "reason": "r\u{9b}31m"}},
        ]});
        let lines = proxy_lines(&response, 4, now);
        assert_eq!(
            lines[1].split_whitespace().collect::<Vec<_>>().join(" "),
            "shop/a spiffe://x/a lost 12s ago - - - 0.1.0"
        );
        assert_eq!(lines[3], "shop/b rejects a?[2Jb: bad?]0;x??");
        assert_eq!(lines[4], "1 of 2 proxies have revision 4");
        assert!(lines.iter().all(|line| !line.contains(weft_core::text::is_unprintable)), "{lines:?}");
    }

    #[test]
    fn an_outdated_proxy_a_rejected_resource_and_a_lost_stream_stand_out() {
        let now: Timestamp = "2026-01-10T12:00:00Z".parse().unwrap();
        let agent = json!({"health": "healthy", "reason": "", "version": "0.1.0",
            "certificate_expiry": "2026-01-11T11:00:00Z", "last_heartbeat": "2026-01-10T11:59:59Z"});
        let discovery = |revision| json!({"applied_revision": revision, "nacks": {}});
        let response = json!({"items": [
            {"key": {"name": "shop/a", "identity": "spiffe://x/a"}, "discovery": discovery(4), "agent": agent},
            {"key": {"name": "shop/b", "identity": "spiffe://x/b"}, "agent": agent,
             "discovery": {"applied_revision": 3, "nacks": {"svc/shop/a:80": {"message": "too new"}}}},
            {"key": {"name": "shop/c", "identity": "spiffe://x/c"}, "discovery": null, "agent": agent},
        ]});
        let lines = proxy_lines(&response, 4, now);
        let row = |index: usize| lines[index].split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(row(1), "shop/a spiffe://x/a 4 23h healthy 1s ago 0.1.0");
        assert_eq!(row(2), "shop/b spiffe://x/b 3, 4 is newer 23h healthy 1s ago 0.1.0");
        assert_eq!(row(3), "shop/c spiffe://x/c disconnected 23h healthy 1s ago 0.1.0");
        assert_eq!(lines[4], "shop/b rejects svc/shop/a:80: too new");
        assert_eq!(lines[5], "1 of 3 proxies have revision 4");
    }
}
