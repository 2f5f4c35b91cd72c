//! An open-loop HTTP/1.1 client: one line per request on standard output, `<at> <took> <status or error>`, in
//! milliseconds; `at` is Unix time. A kept-alive connection that was closed while it was idle is replaced; the request is not repeated.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How long a request may take before it is an error.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is asked for, again and again.
#[derive(Clone)]
pub(crate) struct Request {
    pub(crate) address: SocketAddr,
    pub(crate) authority: String,
    pub(crate) path: String,
    /// POST with a short body instead of GET.
    pub(crate) post: bool,
}

/// Starts a request every `1 / rate` seconds, does not return. Requests that find no idle worker get a new one.
#[expect(clippy::disallowed_methods, reason = "real time, no runtime")]
pub(crate) fn run(request: &Request, rate: u32) -> io::Result<()> {
    let interval = Duration::from_secs(1) / rate.max(1);
    let (idle_sender, idle) = mpsc::channel::<mpsc::Sender<()>>();
    let mut due = Instant::now();
    loop {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        due += interval;
        let worker = match idle.try_recv() {
            Ok(worker) => worker,
            Err(_) => worker(request.clone(), idle_sender.clone()),
        };
        if worker.send(()).is_err() {
            return Err(io::Error::other("a worker is gone"));
        }
    }
}

/// A thread with a connection: one request per message, back on the idle list after each.
#[expect(clippy::disallowed_methods, reason = "real time, no runtime")]
fn worker(request: Request, idle: mpsc::Sender<mpsc::Sender<()>>) -> mpsc::Sender<()> {
    let (sender, orders) = mpsc::channel();
    let own = sender.clone();
    thread::spawn(move || {
        let mut connection = None;
        while orders.recv().is_ok() {
            let began = Instant::now();
            let result = match exchange(&mut connection, &request) {
                Ok(status) => status,
                Err(error) => {
                    connection = None;
                    format!("error: {:?}", error.kind())
                }
            };
            let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            println!("{} {} {result}", at.as_millis(), began.elapsed().as_millis());
            if idle.send(own.clone()).is_err() {
                return;
            }
        }
    });
    sender
}

fn exchange(connection: &mut Option<BufReader<TcpStream>>, request: &Request) -> io::Result<String> {
    // Closed by the server while idle: nothing was sent on it, so a new one is no repetition.
    if connection.as_ref().is_some_and(is_closed) {
        *connection = None;
    }
    let mut stream = match connection.take() {
        Some(stream) => stream,
        None => {
            let stream = TcpStream::connect_timeout(&request.address, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_nodelay(true)?;
            BufReader::new(stream)
        }
    };
    let Request { path, authority, .. } = request;
    let (method, rest) = if request.post { ("POST", "content-length: 5\r\n\r\norder") } else { ("GET", "\r\n") };
    // In one write: a connection that breaks in between would make half a request.
    stream.get_mut().write_all(format!("{method} {path} HTTP/1.1\r\nhost: {authority}\r\n{rest}").as_bytes())?;

    let status_line = line(&mut stream)?;
    let status = status_line.split(' ').nth(1).ok_or(io::ErrorKind::InvalidData)?.to_owned();
    let (mut length, mut chunked, mut close) = (None, false, false);
    loop {
        let field = line(&mut stream)?.to_ascii_lowercase();
        if field.is_empty() {
            break;
        }
        let (name, value) = field.split_once(':').ok_or(io::ErrorKind::InvalidData)?;
        match (name, value.trim()) {
            ("content-length", value) => length = value.parse::<u64>().ok(),
            ("transfer-encoding", "chunked") => chunked = true,
            ("connection", "close") => close = true,
            _ => {}
        }
    }
    match (chunked, length) {
        (true, _) => while skip_chunk(&mut stream)? {},
        (false, Some(length)) => skip(&mut stream, length)?,
        (false, None) => close = true,
    }
    if !close {
        *connection = Some(stream);
    }
    Ok(status)
}

fn is_closed(stream: &BufReader<TcpStream>) -> bool {
    let stream = stream.get_ref();
    let peek = |stream: &TcpStream| {
        stream.set_nonblocking(true)?;
        let seen = stream.peek(&mut [0]);
        stream.set_nonblocking(false)?;
        seen
    };
    !matches!(peek(stream), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

fn line(stream: &mut BufReader<TcpStream>) -> io::Result<String> {
    let mut line = String::new();
    if stream.read_line(&mut line)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(line.trim_end().to_owned())
}

fn skip(stream: &mut BufReader<TcpStream>, length: u64) -> io::Result<()> {
    match io::copy(&mut stream.take(length), &mut io::sink())? {
        read if read == length => Ok(()),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// False for the last one, whose trailers are read too.
fn skip_chunk(stream: &mut BufReader<TcpStream>) -> io::Result<bool> {
    let head = line(stream)?;
    let size = head.split(';').next().and_then(|size| u64::from_str_radix(size, 16).ok());
    match size.ok_or(io::ErrorKind::InvalidData)? {
        0 => {
            while !line(stream)?.is_empty() {}
            Ok(false)
        }
        size => skip(stream, size + 2).map(|()| true),
    }
}
