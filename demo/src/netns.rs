//! Network namespaces `weft-demo-<host>` on one bridge, which has a namespace of its own (`weft-demo-wire`): nothing
//! appears on the machine's own network. The same mechanics as e2e's `world` and `host`.
//! [`Inside`] is a thread in a namespace: a socket made there stays there, whoever uses it afterwards.
//! Invariant: everything here is found again by its name, so a run that was killed is cleaned up by the next.

use std::{
    fmt::Write as _,
    fs::{self, File},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::{
    process::{Pid, Signal, kill_process},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};
use tokio::{net::TcpStream, process::Command, sync::oneshot};

use crate::{places::STATE, wait::until};

/// What every namespace of the demo begins with.
pub(crate) const PREFIX: &str = "weft-demo-";
const WIRE: &str = "weft-demo-wire";
const CONNECT: Duration = Duration::from_secs(5);

/// The namespace with the bridge.
#[derive(Debug)]
pub(crate) struct Wire;

/// One host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Host {
    /// Its short name.
    pub(crate) name: String,
    number: u8,
}

/// A thread inside a namespace that runs what it is given. It ends, and lets go of the namespace, with the last clone.
#[derive(Debug, Clone)]
pub(crate) struct Inside {
    jobs: Arc<mpsc::Sender<Job>>,
}

type Job = Box<dyn FnOnce() + Send>;

impl Wire {
    /// Makes the bridge.
    ///
    /// Errors: `ip` fails.
    pub(crate) async fn make() -> Result<Self> {
        ip(&["netns", "add", WIRE]).await?;
        ip(&["-n", WIRE, "link", "add", "wire0", "type", "bridge"]).await?;
        ip(&["-n", WIRE, "link", "set", "wire0", "up"]).await?;
        Ok(Self)
    }

    /// Its namespace.
    pub(crate) fn namespace(&self) -> &'static str {
        WIRE
    }

    /// Makes a host with one IPv4 and one IPv6 address on the bridge. `number`: 1 to 200, of no other host.
    ///
    /// Errors: `ip` fails.
    pub(crate) async fn host(&self, name: &str, number: u8) -> Result<Host> {
        let host = Host::new(name, number);
        host.write_hosts(&[])?;
        let namespace = host.namespace();
        ip(&["netns", "add", &namespace]).await?;
        // One ip program for the rest: a demo has many hosts.
        let port = format!("p{number}");
        batch(
            WIRE,
            &format!(
                "link add {port} type veth peer name eth0 netns {namespace}\nlink set {port} master wire0\nlink set {port} up\n"
            ),
        )
        .await?;
        let (v4, v6) = (host.ipv4(), host.ipv6());
        batch(
            &namespace,
            &format!(
                "link set lo up\nlink set eth0 up\naddress add {v4}/16 dev eth0\naddress add {v6}/64 dev eth0 nodad\n"
            ),
        )
        .await?;
        Ok(host)
    }
}

impl Host {
    /// Its name and addresses; nothing is made.
    pub(crate) fn new(name: &str, number: u8) -> Self {
        Self { name: name.to_owned(), number }
    }

    /// The network namespace.
    pub(crate) fn namespace(&self) -> String {
        format!("{PREFIX}{}", self.name)
    }

    /// 10.77.0.11 for number 1.
    pub(crate) fn ipv4(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, 10 + self.number)
    }

    /// fd00:77::11 for number 1: the same digits as in IPv4.
    pub(crate) fn ipv6(&self) -> Ipv6Addr {
        let number = 10 + u16::from(self.number);
        Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, ((number / 100) << 8) | ((number / 10 % 10) << 4) | (number % 10))
    }

    /// Both.
    pub(crate) fn addresses(&self) -> [IpAddr; 2] {
        [self.ipv4().into(), self.ipv6().into()]
    }

    /// Writes `/etc/hosts` of its programs: these names and addresses, and localhost. In place: running programs have
    /// this very file.
    ///
    /// Errors: the file cannot be written.
    pub(crate) fn write_hosts(&self, names: &[(String, IpAddr)]) -> Result<()> {
        let mut text = String::from("127.0.0.1 localhost\n::1 localhost\n");
        for (name, address) in names {
            writeln!(text, "{address} {name}")?;
        }
        let directory = files_of(&self.namespace());
        fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
        let path = directory.join("hosts");
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    }

    /// A thread inside.
    ///
    /// Errors: as [`Inside::enter`].
    pub(crate) fn enter(&self) -> Result<Inside> {
        Inside::enter(&self.namespace())
    }
}

impl Inside {
    /// Starts the thread.
    ///
    /// Errors: there is no such namespace, or no right to enter it.
    pub(crate) fn enter(namespace: &str) -> Result<Self> {
        let path = Path::new("/run/netns").join(namespace);
        let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        let (jobs, queue) = mpsc::channel::<Job>();
        let (entered, result) = mpsc::channel();
        std::thread::Builder::new()
            .name("inside".to_owned())
            .spawn(move || {
                let moved = move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network));
                let failed = moved.is_err();
                if entered.send(moved).is_err() || failed {
                    return;
                }
                while let Ok(job) = queue.recv() {
                    job();
                }
            })
            .context("start a thread")?;
        result.recv().context("the thread ended")?.with_context(|| format!("enter {namespace}"))?;
        Ok(Self { jobs: Arc::new(jobs) })
    }

    /// Runs something inside, and gives what it returns.
    ///
    /// Errors: the thread is gone.
    pub(crate) async fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
        let (done, result) = oneshot::channel();
        let gone = || io::Error::other("the thread in the namespace is gone");
        let job: Job = Box::new(move || drop(done.send(job())));
        self.jobs.send(job).map_err(|_gone| gone())?;
        result.await.map_err(|_gone| gone())
    }

    /// A connection from inside.
    ///
    /// Errors: it cannot be made within five seconds.
    pub(crate) async fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let stream = self
            .run(move || {
                let stream = std::net::TcpStream::connect_timeout(&to, CONNECT)?;
                stream.set_nonblocking(true)?;
                stream.set_nodelay(true)?;
                Ok::<_, io::Error>(stream)
            })
            .await??;
        TcpStream::from_std(stream)
    }

    /// Sends one datagram from inside.
    ///
    /// Errors: it cannot be sent.
    pub(crate) async fn datagram(&self, to: SocketAddr, bytes: Vec<u8>) -> io::Result<()> {
        self.run(move || {
            let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
            socket.send_to(&bytes, to).map(drop)
        })
        .await?
    }
}

/// Whether a link has a name that the demo gives: `wire0`, `p<number>`.
pub(crate) fn is_link_of_demo(name: &str) -> bool {
    name == "wire0" || name.strip_prefix('p').is_some_and(|number| number.parse::<u8>().is_ok())
}

/// The namespaces of the demo that are there now.
pub(crate) fn present() -> Vec<String> {
    let mut names: Vec<String> = ["/run/netns", "/etc/netns"]
        .iter()
        .filter_map(|directory| fs::read_dir(directory).ok())
        .flat_map(|entries| entries.flatten())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with(PREFIX))
        .collect();
    names.sort();
    names.dedup();
    names
}

/// Kills what runs in the demo's namespaces, waits for its end, removes the namespaces and their files. Says how many
/// namespaces and processes that were.
///
/// Errors: something stays.
pub(crate) async fn remove_all() -> Result<(usize, usize)> {
    let names = present();
    let mut killed = 0;
    for name in &names {
        let mut ours = 0;
        for pid in pids(name).await {
            ours += usize::from(kill_process(pid, Signal::KILL).is_ok());
        }
        if ours > 0 {
            until(&format!("the end of what runs in {name}"), Duration::from_secs(10), async || {
                let left = pids(name).await;
                ensure!(left.is_empty(), "{} processes run", left.len());
                Ok(())
            })
            .await?;
        }
        killed += ours;
        if Path::new("/run/netns").join(name).exists() {
            ip(&["netns", "del", name]).await?;
        }
        let files = files_of(name);
        if files.exists() {
            fs::remove_dir_all(&files).with_context(|| format!("remove {}", files.display()))?;
        }
    }
    Ok((names.len(), killed))
}

async fn pids(namespace: &str) -> Vec<Pid> {
    if !Path::new("/run/netns").join(namespace).exists() {
        return Vec::new();
    }
    let text = ip(&["netns", "pids", namespace]).await.unwrap_or_default();
    text.lines().filter_map(|line| line.trim().parse().ok().and_then(Pid::from_raw)).collect()
}

fn files_of(namespace: &str) -> PathBuf {
    Path::new("/etc/netns").join(namespace)
}

async fn ip(args: &[&str]) -> Result<String> {
    run("ip", args).await
}

/// Many `ip` commands in one program, inside a namespace.
async fn batch(namespace: &str, commands: &str) -> Result<String> {
    let file = Path::new(STATE).join("ip.batch");
    fs::write(&file, commands).with_context(|| format!("write {}", file.display()))?;
    let result = ip(&["-n", namespace, "-batch", &file.to_string_lossy()]).await;
    fs::remove_file(&file).context("remove the batch file")?;
    result.with_context(|| format!("in {namespace}: {commands}"))
}

/// Runs a program that must succeed; its standard output.
///
/// Errors: it cannot be started, or fails: then with what it said.
pub(crate) async fn run(program: &str, args: &[&str]) -> Result<String> {
    let output = Command::new(program).args(args).kill_on_drop(true).output();
    let output = output.await.with_context(|| format!("start {program}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{program} {} ended with {}: {}", args.join(" "), output.status, said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_of_the_demo_have_their_names() {
        for (name, ours) in
            [("wire0", true), ("p12", true), ("eth0", false), ("p", false), ("pan0", false), ("p2p0", false)]
        {
            assert_eq!(is_link_of_demo(name), ours, "{name}");
        }
    }

    #[test]
    fn addresses_have_the_same_digits_in_both_families() {
        for (number, digits) in [(1, "11"), (93, "103"), (200, "210")] {
            let host = Host::new("x", number);
            assert_eq!(host.ipv4().to_string(), format!("10.77.0.{digits}"));
            assert_eq!(host.ipv6().to_string(), format!("fd00:77::{digits}"));
        }
    }
}
