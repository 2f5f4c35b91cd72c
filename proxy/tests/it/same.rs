//! Messages arrive through a pair of proxies as they do without one: generated messages are sent both ways, and what arrives is
//! compared, but for what docs/reference/request.md lists under "What a message keeps".

use std::{net::SocketAddr, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use weft_core::{listener::InboundMode, policy::Authorization};

use crate::{
    apps::raw_app,
    pair::{Authority, Proxy, identity, inbound, outbound},
};

/// A message of HTTP/1.
#[derive(Clone, Debug, Default, PartialEq)]
struct Message {
    /// Method, target and version, or status and reason.
    start: String,
    /// Interim answers before it.
    interim: Vec<Message>,
    fields: Vec<(String, Vec<u8>)>,
    body: Vec<u8>,
    trailers: Vec<(String, Vec<u8>)>,
}

/// How a generated body is framed.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Framing {
    None,
    Length,
    Chunked,
    Close,
}

const CONNECTION: [&str; 5] = ["connection", "keep-alive", "proxy-connection", "transfer-encoding", "te"];

/// A generated message as it is written.
struct Generated {
    bytes: Vec<u8>,
    head_only: bool,
}

struct Generator(fastrand::Rng);

impl Generator {
    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.0.usize(..of.len())]
    }

    fn name(&mut self) -> String {
        let usual = [
            "User-Agent",
            "accept",
            "Accept-Encoding",
            "X-Request-ID",
            "ETag",
            "WWW-Authenticate",
            "DNT",
            "content-type",
            "Content-Type",
            "CONTENT-MD5",
            "X-b3-TraceId",
            "x_under_score",
            "Set-Cookie",
            "Date",
            "Server",
            "X-A",
            "x-a",
            "X-a",
            "Trailer",
            "Via",
            "Upgrade-Insecure-Requests",
            "x!#$%&'*+.^`|~y",
            "1",
            "Authorization",
            "grpc-Status",
            "From",
        ];
        if self.0.u8(..4) > 0 {
            return self.pick(&usual).to_owned();
        }
        let letters: String = (0..self.0.usize(1..9)).map(|_| self.pick(b"aAbZ-9") as char).collect();
        format!("q{letters}")
    }

    fn value(&mut self) -> Vec<u8> {
        let inner: Vec<u8> = (0..self.0.usize(..40)).map(|_| self.pick(b"abcXYZ019 \t,;=:\"()%\xe9\xff/")).collect();
        inner.trim_ascii().to_vec()
    }

    fn fields(&mut self, out: &mut Vec<u8>) {
        for _ in 0..self.0.usize(..12) {
            let (name, value) = (self.name(), self.value());
            let space = self.pick(&["", " ", "\t", "  "]);
            out.extend([name.as_bytes(), b":", space.as_bytes(), &value, space.as_bytes(), b"\r\n"].concat());
        }
    }

    /// Appends the framing, the end of the head and the body.
    fn body(&mut self, framing: Framing, out: &mut Vec<u8>) {
        let body: Vec<u8> = (0..self.pick(&[0, 1, 10, 3_000, 70_000])).map(|index: u32| (index % 251) as u8).collect();
        let name = |lower: &str, text: &str| if self.0.bool() { lower.to_owned() } else { text.to_owned() };
        match framing {
            Framing::None => out.extend(b"\r\n"),
            Framing::Close => out.extend([b"\r\n", &body[..]].concat()),
            Framing::Length => {
                let mut name = name;
                out.extend(format!("{}: {}\r\n\r\n", name("content-length", "Content-LENGTH"), body.len()).bytes());
                out.extend(body);
            }
            Framing::Chunked => {
                let mut name = name;
                out.extend(format!("{}: chunked\r\n\r\n", name("transfer-encoding", "Transfer-Encoding")).bytes());
                for chunk in body.chunks(self.0.usize(1..5_000)) {
                    out.extend(format!("{:X}\r\n", chunk.len()).bytes());
                    out.extend(chunk);
                    out.extend(b"\r\n");
                }
                out.extend(b"0\r\n");
                if self.0.bool() {
                    out.extend(b"X-Sum: 1\r\nx-Other:  2\r\n");
                }
                out.extend(b"\r\n");
            }
        }
    }

    fn request(&mut self) -> Generated {
        let method = self.pick(&["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "PROPFIND", "get", "x!y"]);
        let target =
            self.pick(&["/", "/a?b=c&d", "/%41/./b;c//d", "/\u{e4}?\u{20ac}", "/a|b^{c}\"", "/?http://a/", "/..%2f"]);
        let version = self.pick(&["HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.0"]);
        let mut bytes = format!("{method} {target} {version}\r\n").into_bytes();
        let host =
            format!("{}: {}\r\n", self.pick(&["Host", "host", "HOST", "hOsT"]), self.pick(&["a", "a.example:80"]));
        let before = self.0.bool();
        if before {
            bytes.extend(host.bytes());
        }
        self.fields(&mut bytes);
        if self.0.u8(..4) == 0 {
            bytes.extend(b"Cookie: a=1\r\nX-Between: 1\r\nCookie: b=2; c=3\r\n");
        }
        if !before {
            bytes.extend(host.bytes());
        }
        bytes.extend(b"TE: trailers\r\nConnection: close, TE\r\n");
        let framing = match version {
            "HTTP/1.0" => self.pick(&[Framing::None, Framing::Length]),
            _ => self.pick(&[Framing::None, Framing::Length, Framing::Chunked]),
        };
        self.body(framing, &mut bytes);
        Generated { bytes, head_only: method == "HEAD" }
    }

    fn response(&mut self, to: &Generated, http10: bool) -> Generated {
        let status = self.pick(&[
            200, 201, 203, 204, 206, 299, 301, 304, 400, 401, 404, 418, 426, 429, 451, 499, 500, 501, 507, 599,
        ]);
        let reason =
            self.pick(&["OK", "", "Fine  by me", "\u{e9}t\u{e9}", "Unprocessable Entity", "I'm a teapot", "ok"]);
        let version = self.pick(&["HTTP/1.1", "HTTP/1.1", "HTTP/1.0"]);
        let mut bytes = Vec::new();
        // HTTP/1.0 has no interim answers.
        for _ in 0..if http10 { 0 } else { self.pick(&[0, 0, 0, 1, 2]) } {
            let early = self.pick(&["103 Early Hints", "103 ", "102 Processing", "199 Odd  words"]);
            bytes.extend(format!("HTTP/1.1 {early}\r\nLink: </a>; rel=preload\r\n").bytes());
            self.fields(&mut bytes);
            bytes.extend(b"\r\n");
        }
        bytes.extend(format!("{version} {status} {reason}\r\n").bytes());
        self.fields(&mut bytes);
        if status == 426 {
            bytes.extend(b"Upgrade: TLS/1.2, HTTP/1.1\r\nConnection: Upgrade\r\n");
        }
        let head_only = to.head_only || matches!(status, 204 | 304);
        let framing = match version {
            _ if head_only => Framing::None,
            "HTTP/1.0" => self.pick(&[Framing::Length, Framing::Close]),
            // A caller of HTTP/1.0 does not know chunks.
            _ if http10 => self.pick(&[Framing::Length, Framing::Close]),
            _ => self.pick(&[Framing::Length, Framing::Chunked, Framing::Close]),
        };
        self.body(framing, &mut bytes);
        Generated { bytes, head_only }
    }
}

fn fields(lines: &[u8]) -> Vec<(String, Vec<u8>)> {
    let line = |line: &[u8]| {
        let colon = line.iter().position(|byte| *byte == b':').unwrap();
        let name = String::from_utf8(line[..colon].to_vec()).unwrap();
        (name, line[colon + 1..].trim_ascii().to_vec())
    };
    lines.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii_end).filter(|text| !text.is_empty()).map(line).collect()
}

fn end_of_head(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4)
}

/// Parses a whole head.
fn head(bytes: &[u8]) -> Message {
    let line = bytes.iter().position(|byte| *byte == b'\n').unwrap();
    let start = String::from_utf8_lossy(&bytes[..line]).trim_end_matches('\r').to_owned();
    Message { start, fields: fields(&bytes[line + 1..]), ..Message::default() }
}

/// Parses a message; `None`: it is not whole. `ended`: no more bytes come.
fn parse(bytes: &[u8], head_only: bool, ended: bool, request: bool) -> Option<(Message, usize)> {
    let end = end_of_head(bytes)?;
    if !request && bytes.get(9) == Some(&b'1') {
        let interim = head(&bytes[..end]);
        let (mut message, taken) = parse(&bytes[end..], head_only, ended, request)?;
        message.interim.insert(0, interim);
        return Some((message, end + taken));
    }
    let mut message = head(&bytes[..end]);
    let value =
        |name: &str| message.fields.iter().find(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value);
    if head_only && !request {
        return Some((message, end));
    }
    let mut at = end;
    if value("transfer-encoding").is_some() {
        loop {
            let line = bytes.get(at..)?.iter().position(|byte| *byte == b'\n')?;
            let size = usize::from_str_radix(std::str::from_utf8(&bytes[at..at + line]).unwrap().trim(), 16).unwrap();
            at += line + 1;
            if size == 0 {
                let rest = bytes.get(at - 2..)?;
                let end = end_of_head(rest)?;
                message.trailers = fields(&rest[2..end]);
                return Some((message, at - 2 + end));
            }
            message.body.extend(bytes.get(at..at + size)?);
            at += size + 2;
        }
    }
    let length = match value("content-length") {
        Some(length) => std::str::from_utf8(length).unwrap().parse().unwrap(),
        None if request => 0,
        None if ended => bytes.len() - end,
        None => return None,
    };
    message.body = bytes.get(at..at + length)?.to_vec();
    Some((message, at + length))
}

/// What is compared: a message without what docs/reference/request.md allows to differ. `sent`: as it was written at first.
fn normal(mut message: Message, sent: &Message, request: bool) -> Message {
    if !request {
        // The version is that of each connection.
        let after = message.start.split_once(' ').unwrap().1.to_owned();
        message.start = after.trim_end().to_owned();
        let interim = std::mem::take(&mut message.interim).into_iter();
        message.interim = interim.map(|interim| normal(interim.clone(), &interim, false)).collect();
    }
    let length =
        |fields: &[(String, Vec<u8>)]| fields.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let had_length = length(&sent.fields);
    let asks = !request && message.start.starts_with("426");
    message.fields.retain(|(name, _)| {
        let lower = name.to_ascii_lowercase();
        !CONNECTION.contains(&lower.as_str())
            && (lower != "upgrade" || asks)
            && !lower.starts_with("weft-")
            && (lower != "content-length" || had_length)
    });
    if request {
        let cookies: Vec<Vec<u8>> =
            message.fields.iter().filter(|(name, _)| name == "Cookie").map(|(_, value)| value.clone()).collect();
        let mut first = true;
        message.fields.retain(|(name, _)| name != "Cookie" || std::mem::take(&mut first));
        message
            .fields
            .iter_mut()
            .filter(|(name, _)| name == "Cookie")
            .for_each(|(_, value)| *value = cookies.join(&b"; "[..]));
        message.fields.sort_by_key(|(name, _)| !name.eq_ignore_ascii_case("host"));
    }
    if asks {
        message.fields.sort_by_key(|(name, _)| name.eq_ignore_ascii_case("upgrade"));
    }
    message.trailers.iter_mut().for_each(|(name, _)| name.make_ascii_lowercase());
    message
}

/// An application that remembers the request that it got last, and gives the answer that it is told to.
#[derive(Clone, Default)]
struct Application {
    answer: Arc<Mutex<Vec<u8>>>,
    request: Arc<Mutex<Option<Message>>>,
}

impl Application {
    async fn start(&self) -> SocketAddr {
        let application = self.clone();
        raw_app(move |mut stream| {
            let application = application.clone();
            async move {
                let mut bytes = Vec::new();
                let (message, _) = loop {
                    if let Some(parsed) = parse(&bytes, false, false, true) {
                        break parsed;
                    }
                    if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
                        return;
                    }
                };
                *application.request.lock() = Some(message);
                let answer = application.answer.lock().clone();
                stream.write_all(&answer).await.ok();
            }
        })
        .await
    }

    /// Sends a request on a connection of its own; what arrived at both ends.
    async fn call(&self, at: SocketAddr, request: &Generated, answer: &Generated) -> (Message, Message) {
        *self.request.lock() = None;
        self.answer.lock().clone_from(&answer.bytes);
        let mut client = TcpStream::connect(at).await.unwrap();
        let mut bytes = Vec::new();
        let exchange = async {
            client.write_all(&request.bytes).await.unwrap();
            client.read_to_end(&mut bytes).await.ok();
        };
        timeout(Duration::from_secs(20), exchange).await.expect("an answer");
        let answer = parse(&bytes, answer.head_only, true, false);
        let (answer, _) = answer.unwrap_or_else(|| panic!("no whole answer: {}", bytes.escape_ascii()));
        let request = self.request.lock().take();
        (request.unwrap_or_else(|| panic!("no request: {answer:?}")), answer)
    }
}

struct Mesh {
    address: SocketAddr,
    _proxies: [Proxy; 2],
}

async fn through(application: SocketAddr) -> Mesh {
    let authority = Authority::new();
    let (inbound, at) =
        inbound(authority.svid("product", true), application, InboundMode::Strict, Authorization::default());
    let endpoints = [(at, Some(identity("product")))];
    let (outbound, address) = outbound(Some(authority.svid("order", true)), &endpoints, |_, forward| {
        forward.retry.attempts = 1;
    });
    Mesh { address, _proxies: [inbound, outbound] }
}

async fn messages_are_the_same(count: u64) {
    let application = Application::default();
    let direct = application.start().await;
    let mesh = through(direct).await;
    for seed in 0..count {
        let mut generator = Generator(fastrand::Rng::with_seed(seed));
        let request = generator.request();
        let http10 = request.bytes.windows(10).take(100).any(|ten| ten == b" HTTP/1.0\r");
        let answer = generator.response(&request, http10);
        let text = format!(
            "seed {seed}\n{}\n{}",
            request.bytes[..end_of_head(&request.bytes).unwrap()].escape_ascii(),
            answer.bytes[..end_of_head(&answer.bytes).unwrap()].escape_ascii()
        );
        let (sent, answered) = application.call(direct, &request, &answer).await;
        let (came, returned) = application.call(mesh.address, &request, &answer).await;
        for (what, there, mut here) in [("request", sent, came), ("answer", answered, returned)] {
            let is_request = what == "request";
            assert!(here.body == there.body, "the body of the {what}, {text}");
            here.body.clear();
            let expected = Message { body: Vec::new(), ..there.clone() };
            assert_eq!(normal(here, &there, is_request), normal(expected, &there, is_request), "{what}, {text}");
        }
    }
}

/// (12)
#[tokio::test]
async fn messages_arrive_as_without_proxies() {
    messages_are_the_same(300).await;
}

/// (12)
#[tokio::test]
#[ignore = "slow: ten thousand messages"]
async fn ten_thousand_messages_arrive_as_without_proxies() {
    messages_are_the_same(10_000).await;
}
