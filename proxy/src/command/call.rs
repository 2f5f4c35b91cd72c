//! `weft-proxy ready`, `drain` and `undrain`: calls to the proxy on this host, over HTTP.

use std::{fmt, net::SocketAddr, process::ExitCode, time::Duration};

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use clap::Args;
use http::{Method, Request, StatusCode, Uri, header, uri::Authority};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::{
    net::TcpStream,
    time::{Instant, sleep, timeout},
};
use weft_core::api::duration::parse_time;

use super::runtime;

/// The admin port where the file does not say another.
const ADMIN: &str = "http://127.0.0.1:15000";
/// Longest time for one call.
const CALL: Duration = Duration::from_secs(5);
/// Largest answer, in bytes.
const ANSWER: usize = 4 << 20;
/// Time between calls.
const AGAIN: Duration = Duration::from_millis(50);

/// Check whether the proxy on this host and its workload take traffic
///
/// Exits 0 if they do, or 1 with the reasons: no certificate, no configuration, a listener is not open, draining, or a health check
/// of the workload fails. Without `spec.workload.health` one of the workload's declared ports must be open.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  weft-proxy ready
  weft-proxy ready --proxy --wait 30s && exec ./application")]
pub struct ReadyArgs {
    /// The readiness URL of the proxy
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:15020/readyz")]
    url: Uri,

    /// Check the proxy alone, for example because the application starts later
    #[arg(long)]
    proxy: bool,

    /// Repeat the check until it succeeds, for at most this long
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    wait: Option<Duration>,
}

/// Drain the proxy on this host: refuse new connections
///
/// Readiness fails and the control plane is told; open connections continue, the workload may still call, and the proxy keeps
/// running. Prints what is open. `weft-proxy undrain` takes it back.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  weft-proxy drain
  weft-proxy drain --wait 30s")]
pub struct DrainArgs {
    /// The admin port of the proxy
    #[arg(long, value_name = "URL", default_value = ADMIN)]
    url: Uri,

    /// Wait, for at most this long, until no connection from outside is open and none of the workload is active (a request in
    /// flight, or bytes within 3 s); exit 1 if some still are
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    wait: Option<Duration>,
}

/// Take back a drain of the proxy on this host: accept new connections again
///
/// The listeners open again, then readiness returns and the control plane is told. Prints what is open.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  weft-proxy undrain
  weft-proxy undrain --url http://127.0.0.1:15000")]
pub struct UndrainArgs {
    /// The admin port of the proxy
    #[arg(long, value_name = "URL", default_value = ADMIN)]
    url: Uri,
}

/// Checks readiness, once or until the wait is over.
pub(super) fn ready(args: &ReadyArgs) -> anyhow::Result<ExitCode> {
    let url = if args.proxy { args.url.clone() } else { endpoint(&args.url, "workload")? };
    authority(&url)?;
    runtime()?.block_on(async {
        let until = Instant::now() + args.wait.unwrap_or_default();
        loop {
            let reason = match readiness(&url).await {
                Ok(Readiness { ready: true, .. }) => return Ok(ExitCode::SUCCESS),
                Ok(Readiness { reasons, .. }) => reasons.join("; "),
                Err(error) => format!("{error:#}"),
            };
            if Instant::now() >= until {
                bail!("not ready: {reason}");
            }
            sleep(AGAIN).await;
        }
    })
}

/// What is open, as the admin port says it.
#[derive(Deserialize)]
struct Answer {
    by: Open,
    waits_for: usize,
}

/// Connections by what a drain makes of them.
#[derive(Deserialize)]
struct Open {
    inbound: usize,
    outbound_active: usize,
    outbound_idle: usize,
    requests: u64,
}

impl fmt::Display for Open {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { inbound, outbound_active, outbound_idle, requests } = self;
        write!(
            f,
            "open: {inbound} from outside, {outbound_active} active and {outbound_idle} idle of the workload; requests in flight: {requests}"
        )
    }
}

/// Starts draining, and waits for the end of connections if `--wait` is given.
pub(super) fn drain(args: &DrainArgs) -> anyhow::Result<ExitCode> {
    let connections = endpoint(&args.url, "connections")?;
    let drain = endpoint(&args.url, "drain")?;
    runtime()?.block_on(async {
        let mut open = open(Method::POST, &drain).await?;
        let until = Instant::now() + args.wait.unwrap_or_default();
        while args.wait.is_some() && open.waits_for > 0 {
            ensure!(Instant::now() < until, "not drained; {}", open.by);
            sleep(AGAIN).await;
            open = self::open(Method::GET, &connections).await?;
        }
        println!("{}; {}", if args.wait.is_some() { "drained" } else { "draining" }, open.by);
        Ok(ExitCode::SUCCESS)
    })
}

/// Takes a drain back.
pub(super) fn undrain(args: &UndrainArgs) -> anyhow::Result<ExitCode> {
    let undrain = endpoint(&args.url, "undrain")?;
    runtime()?.block_on(async {
        let open = open(Method::POST, &undrain).await?;
        println!("accepting connections; {}", open.by);
        Ok(ExitCode::SUCCESS)
    })
}

fn endpoint(base: &Uri, path: &str) -> anyhow::Result<Uri> {
    authority(base)?;
    Ok(format!("{}/{path}", base.to_string().trim_end_matches('/')).parse()?)
}

async fn open(method: Method, url: &Uri) -> anyhow::Result<Answer> {
    let (status, body) = call(method, url).await?;
    ensure!(status == StatusCode::OK, "{status}: {}", String::from_utf8_lossy(&body));
    serde_json::from_slice(&body)
        .with_context(|| format!("{url} does not say what is open; is it the proxy's admin port?"))
}

async fn call(method: Method, url: &Uri) -> anyhow::Result<(StatusCode, Bytes)> {
    timeout(CALL, exchange(method, url)).await.with_context(|| format!("no answer from {url} within {CALL:?}"))?
}

/// The answer of `/readyz`.
#[derive(Deserialize)]
struct Readiness {
    ready: bool,
    reasons: Vec<String>,
}

/// Errors: also an answer of another server than the proxy, whatever its status.
async fn readiness(url: &Uri) -> anyhow::Result<Readiness> {
    let (status, body) = call(Method::GET, url).await?;
    let answer: Option<Readiness> = serde_json::from_slice(&body).ok();
    let answer = answer.filter(|answer| {
        (status, answer.ready) == (StatusCode::OK, true)
            || (status, answer.ready) == (StatusCode::SERVICE_UNAVAILABLE, false)
    });
    answer.with_context(|| format!("{url} is not the readiness of a proxy of Weft: it answered {status}"))
}

/// A `--url` that is none.
#[derive(Debug, thiserror::Error)]
#[error("--url {0}: expected http://HOST[:PORT][/PATH]")]
pub(super) struct UrlError(Uri);

fn authority(url: &Uri) -> Result<&Authority, UrlError> {
    let authority =
        url.authority().filter(|authority| url.scheme_str() == Some("http") && !authority.host().is_empty());
    authority.ok_or_else(|| UrlError(url.clone()))
}

async fn exchange(method: Method, url: &Uri) -> anyhow::Result<(StatusCode, Bytes)> {
    let authority = authority(url)?;
    let host = authority.host();
    let port = authority.port_u16().unwrap_or(80);
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let stream = match bare.parse() {
        Ok(address) => TcpStream::connect(SocketAddr::new(address, port)).await,
        Err(_name) => TcpStream::connect((bare, port)).await,
    };
    let stream = stream.with_context(|| format!("no connection to {authority}; is the proxy running?"))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let path = url.path_and_query().map_or("/", |path| path.as_str());
    let request = Request::builder().method(method).uri(path).header(header::HOST, authority.as_str());
    let answer = sender.send_request(request.body(Empty::<Bytes>::new())?).await?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), ANSWER).collect().await;
    connection.abort();
    Ok((status, body.map_err(|error| anyhow::anyhow!("the answer broke off: {error}"))?.to_bytes()))
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use weft_core::api::duration::parse_time_within;
    use weft_redirect::RedirectArgs;

    use super::*;

    #[derive(Parser)]
    struct Waiting {
        #[command(flatten)]
        ready: ReadyArgs,
    }

    #[derive(Parser)]
    struct Redirecting {
        #[command(flatten)]
        redirect: RedirectArgs,
    }

    const TIMES: &[&str] = &[
        "1s",
        "90s",
        "1m30s",
        "1d",
        "24h",
        "23h60m",
        "1500ms",
        "0d2m",
        "999ms",
        "24h1ms",
        "2d",
        "0s",
        "0ns",
        "-0",
        "-1s",
        "+1s",
        "",
        "5",
        "s",
        "1.5h",
        "1w",
        "1 s",
        "1S",
        "１s",
        "1s5",
        "99999999999999999999s",
        "18446744073709551615d",
    ];

    /// (20.26)
    #[test]
    fn a_wait_and_the_undo_of_a_redirect_have_the_one_grammar_of_all_programs() {
        let bounds = Duration::from_secs(1)..=Duration::from_secs(86_400);
        for text in TIMES {
            let wait = Waiting::try_parse_from(["ready", &format!("--wait={text}")]).map(|args| args.ready.wait);
            match parse_time(text) {
                Ok(time) => assert_eq!(wait.unwrap(), Some(time), "{text}"),
                Err(reason) => assert!(wait.unwrap_err().to_string().contains(&reason.to_string()), "{text}"),
            }
            let flag = format!("--undo-after={text}");
            let undo = Redirecting::try_parse_from(["redirect", &flag]).map(|args| args.redirect.undo_after);
            match parse_time_within(text, bounds.clone()) {
                Ok(time) => assert_eq!(undo.unwrap(), Some(time), "{text}"),
                // clap says of an empty value what it says of every flag.
                Err(reason) => {
                    let error = undo.unwrap_err().to_string();
                    assert!(error.contains(&reason) || text.is_empty(), "{text}: {error}");
                }
            }
        }
    }
}
