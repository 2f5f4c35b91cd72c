//! Few files: the limit is raised, and connections leave the API, health and metrics alone.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use weft_control_plane::app::Addresses;

use crate::crash::{Program, ask};

/// The status line and body of a request without a credential.
fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// (27.5) More connections than there are files: health, metrics and the API answer, a change is written, nothing spins.
#[test]
fn a_program_with_few_files_raises_its_limit_and_keeps_files_for_health_the_api_and_the_store() {
    // This side needs more files than the program may open.
    weft_control_plane::files::raise_file_limit().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let program = Program::start_by(dir.path(), &["sh", "-c", "ulimit -Sn 64 && ulimit -Hn 400 && exec \"$0\" \"$@\""]);
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", program.id())).unwrap();
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(files.split_whitespace().skip(3).take(2).collect::<Vec<_>>(), ["400", "400"]);

    let text = std::fs::read(dir.path().join("data/addresses.json")).unwrap();
    let addresses: Addresses = serde_json::from_slice(&text).unwrap();
    let mut held = Vec::new();
    for address in [addresses.grpc, addresses.api, addresses.metrics] {
        held.extend((0..400).map(|_| TcpStream::connect(address).unwrap()));
    }
    let ready = get(addresses.metrics, "/readyz");
    assert!(ready.starts_with("HTTP/1.1 200") && ready.ends_with("ready\n"), "{ready}");
    assert!(get(addresses.metrics, "/metrics").contains("weft_store_revision"));
    let service = "{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {ports: [{port: 80}]}}";
    let answer = ask(program.socket(), "POST", "/api/v1/apply", service).unwrap();
    assert_eq!(answer["revision"], 1);
    let open = std::fs::read_dir(format!("/proc/{}/fd", program.id())).unwrap().count();
    assert!(open < 400, "{open} files are open");
    let log = program.log();
    assert!(!log.contains("accepting a connection failed"), "{log}");
    drop(held);
}

/// (27.7) A disk that is full: said once, tried again, and written without a restart when there is room.
#[test]
#[ignore = "root: mounts a file system"]
fn the_registrys_file_recovers_from_a_full_disk_without_a_restart() {
    use weft_control_plane::registry::RegistryFile;
    let dir = tempfile::tempdir().unwrap();
    let run = |program: &str, arguments: &[&str]| {
        assert!(std::process::Command::new(program).args(arguments).status().unwrap().success(), "{program}");
    };
    let path = dir.path().display().to_string();
    run("mount", &["-t", "tmpfs", "-o", "size=8m", "tmpfs", &path]);
    let (file, loaded) = RegistryFile::open(&dir.path().join("registry.redb")).unwrap();
    assert!(loaded.is_empty());
    let ballast = dir.path().join("ballast");
    let mut filler = std::fs::File::create(&ballast).unwrap();
    while filler.write_all(&[1; 4096]).is_ok() {}
    drop(filler);
    let many = |count: u32| {
        let workloads = (0..count).map(crate::agent::registered);
        workloads.map(|workload| (workload.key.clone(), Some(std::sync::Arc::new(workload)))).collect()
    };
    let full = (0..3).map(|_| file.write(&many(20_000)).is_err()).collect::<Vec<_>>();
    std::fs::remove_file(&ballast).unwrap();
    let healed = file.write(&many(20));
    drop(file);
    let read = RegistryFile::open(&dir.path().join("registry.redb")).map(|(_, workloads)| workloads.len());
    run("umount", &["-l", &path]);
    assert_eq!(full, [true; 3]);
    healed.unwrap();
    assert_eq!(read.unwrap(), 20);
}
