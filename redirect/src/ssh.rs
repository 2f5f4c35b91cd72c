//! The ports of SSH on this host, as far as they can be told: whoever redirects a machine over SSH must not lock it out.
//! Sources: port 22, the session of the caller (`SSH_CONNECTION`, and its server's sockets, because sudo removes the
//! variable), and the sockets on which a server of root's listens.
//! Only a process of root's counts, so that no other user can exempt a port.

use std::fs;
use std::os::unix::fs::MetadataExt;

/// The port of SSH (RFC 4253 §4.1).
pub(crate) const PORT: u16 = 22;
/// Maximum number of ports: the comment of a table, which lists them, has at most 128 bytes.
const MOST: usize = 8;
/// Names of programs that serve SSH: OpenSSH's listener and, since 9.8, its sessions; Dropbear.
const SERVERS: [&str; 3] = ["sshd", "sshd-session", "dropbear"];

/// Port 22 first, then those found, sorted. `session`: the value of `SSH_CONNECTION`.
pub(crate) fn ports(session: Option<&str>) -> Vec<u16> {
    let sockets: Vec<Socket> = ["/proc/self/net/tcp", "/proc/self/net/tcp6"]
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .flat_map(|table| table.lines().filter_map(Socket::parse).collect::<Vec<_>>())
        .collect();
    let ancestors = ancestors();
    let mut ports: Vec<u16> = session.and_then(server_port).into_iter().collect();
    for process in servers() {
        let own = inodes(&process);
        let serving = |socket: &&Socket| socket.listens || ancestors.contains(&process);
        ports.extend(
            sockets.iter().filter(|socket| own.contains(&socket.inode)).filter(serving).map(|socket| socket.port),
        );
    }
    ports.retain(|port| *port != PORT);
    ports.sort_unstable();
    ports.dedup();
    ports.insert(0, PORT);
    ports.truncate(MOST);
    ports
}

/// The server's port in `CLIENT CLIENT-PORT SERVER SERVER-PORT`.
fn server_port(session: &str) -> Option<u16> {
    session.split_whitespace().nth(3)?.parse().ok().filter(|port| *port != 0)
}

/// A TCP socket of this network namespace that listens to other hosts, or is connected.
struct Socket {
    port: u16,
    inode: String,
    listens: bool,
}

impl Socket {
    /// One line of `/proc/net/tcp` (proc_pid_net(5)): addresses and ports in hexadecimal, the fourth field the state, the tenth
    /// the inode.
    fn parse(line: &str) -> Option<Self> {
        const LOOPBACK: [&str; 2] = ["0100007F", "00000000000000000000000001000000"];
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (address, port) = fields.get(1)?.split_once(':')?;
        let listens = match *fields.get(3)? {
            "0A" => true,
            "01" => false,
            _ => return None,
        };
        if LOOPBACK.contains(&address) {
            return None;
        }
        Some(Self { port: u16::from_str_radix(port, 16).ok()?, inode: (*fields.get(9)?).to_owned(), listens })
    }
}

/// The processes of root's that serve SSH.
fn servers() -> Vec<String> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let processes = names.filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()));
    let serves = |process: &String| {
        let name = fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
        SERVERS.contains(&name.trim()) && fs::metadata(format!("/proc/{process}")).is_ok_and(|it| it.uid() == 0)
    };
    processes.filter(serves).collect()
}

/// This process, its parent, and so on to the first.
fn ancestors() -> Vec<String> {
    let parent = |process: &String| {
        let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().to_owned();
        (parent != "0").then_some(parent)
    };
    std::iter::successors(Some(std::process::id().to_string()), parent).collect()
}

/// The sockets that a process has open.
fn inodes(process: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(format!("/proc/{process}/fd")) else { return Vec::new() };
    let targets =
        entries.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok()?.into_os_string().into_string().ok());
    targets.filter_map(|target| Some(target.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (16)
    #[test]
    fn the_port_of_the_session_is_the_servers() {
        assert_eq!(server_port("192.0.2.1 50000 198.51.100.7 2222"), Some(2222));
        for wrong in ["", "192.0.2.1 50000 198.51.100.7", "a b c d", "a b c 0", "a b c 70000"] {
            assert_eq!(server_port(wrong), None, "{wrong:?}");
        }
        assert_eq!(ports(None).first(), Some(&PORT));
        let found = ports(Some("192.0.2.1 50000 198.51.100.7 2222"));
        assert!(found.starts_with(&[PORT]) && found.contains(&2222), "{found:?}");
    }

    #[test]
    fn sockets_are_read_from_the_kernels_table() {
        let line = |local: &str, state: &str| {
            format!(
                "   0: {local} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0"
            )
        };
        let read =
            |local, state| Socket::parse(&line(local, state)).map(|socket| (socket.port, socket.inode, socket.listens));
        assert_eq!(read("00000000:08AE", "0A"), Some((2222, "4711".to_owned(), true)));
        assert_eq!(read("0100000A:0016", "01"), Some((22, "4711".to_owned(), false)));
        assert_eq!(read("00000000:0016", "06"), None, "closing");
        assert_eq!(read("0100007F:0016", "0A"), None, "loopback");
        assert!(Socket::parse("  sl  local_address rem_address   st tx_queue").is_none());
    }
}
