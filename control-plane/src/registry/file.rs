//! The registry's file, in redb. It only bridges a restart: a damaged file is renamed and a new one created.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    num::{NonZeroU16, NonZeroU32},
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};
use weft_core::{endpoint::Health, identity::Identity, listener::Protocol};

use super::{RegisteredPort, RegisteredWorkload, WorkloadKey};

const WORKLOADS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("workloads");
const CACHE: usize = 4 << 20;

/// A file. After an error of the disk redb rejects every transaction until the file is opened again, which the next write does.
pub struct RegistryFile {
    path: PathBuf,
    database: Mutex<Option<Database>>,
}

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RegistryFileError {
    /// The disk fails, or another process has the file.
    #[error("{path}: read or write failed")]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: Box<redb::Error>,
    },
    /// A damaged file cannot be renamed.
    #[error("{path} is damaged and cannot be renamed")]
    Aside {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The process is ending.
    #[error("the control plane is stopping")]
    Stopping,
}

/// A workload as it is written.
#[derive(Serialize, Deserialize)]
struct Record {
    identity: Identity,
    labels: BTreeMap<String, String>,
    addresses: Vec<IpAddr>,
    #[serde(default)]
    unproven: Vec<IpAddr>,
    ports: Vec<PortRecord>,
    #[serde(default)]
    skipped_ports: Vec<NonZeroU16>,
    weight: NonZeroU32,
    zone: String,
    gateway: bool,
    health: u8,
    incarnation: String,
    source: Option<IpAddr>,
}

#[derive(Serialize, Deserialize)]
struct PortRecord {
    name: String,
    port: NonZeroU16,
    protocol: u8,
    proxy_port: Option<NonZeroU16>,
}

const HEALTH: [Health; 3] = [Health::Healthy, Health::Draining, Health::Unhealthy];
const PROTOCOLS: [Protocol; 4] = [Protocol::Detect, Protocol::Http, Protocol::Http2, Protocol::Tcp];

impl RegistryFile {
    /// Opens the file, or creates it, and reads it. A damaged one is renamed to `….damaged`.
    /// Errors: another process has it; the disk fails.
    pub fn open(path: &Path) -> Result<(Self, Vec<RegisteredWorkload>), RegistryFileError> {
        match Self::try_open(path) {
            Err(RegistryFileError::File { source, .. }) if damaged(&source) => {
                tracing::error!(path = %path.display(), error = &*source as &dyn std::error::Error, "the registry's file is damaged; creating a new one");
                let mut aside = path.as_os_str().to_owned();
                aside.push(".damaged");
                std::fs::rename(path, aside)
                    .map_err(|source| RegistryFileError::Aside { path: path.to_owned(), source })?;
                Self::try_open(path)
            }
            other => other,
        }
    }

    fn try_open(path: &Path) -> Result<(Self, Vec<RegisteredWorkload>), RegistryFileError> {
        let at = |source: redb::Error| RegistryFileError::File { path: path.to_owned(), source: Box::new(source) };
        let file = Self { path: path.to_owned(), database: Mutex::new(None) };
        file.write(&BTreeMap::new())?;
        let workloads = file.database.lock().as_ref().map(read).transpose().map_err(at)?.unwrap_or_default();
        Ok((file, workloads))
    }

    fn database(&self) -> Result<Database, redb::Error> {
        Ok(Database::builder().set_cache_size(CACHE).create(&self.path)?)
    }
}

fn read(database: &Database) -> Result<Vec<RegisteredWorkload>, redb::Error> {
    let table = database.begin_read()?.open_table(WORKLOADS)?;
    let mut workloads = Vec::new();
    for entry in table.iter()? {
        let (key, value) = entry?;
        match workload(key.value(), value.value()) {
            Some(workload) => workloads.push(workload),
            None => tracing::warn!(workload = key.value(), "a registered workload cannot be read; left out"),
        }
    }
    Ok(workloads)
}

impl RegistryFile {
    /// Writes or removes workloads, in one step. Blocks until it is on disk.
    pub fn write(
        &self,
        changes: &BTreeMap<WorkloadKey, Option<Arc<RegisteredWorkload>>>,
    ) -> Result<(), RegistryFileError> {
        let result = || -> Result<(), redb::Error> {
            let mut slot = self.database.lock();
            let database = match slot.take() {
                Some(database) => database,
                None => self.database()?,
            };
            let tx = database.begin_write()?;
            {
                let mut table = tx.open_table(WORKLOADS)?;
                for (key, workload) in changes {
                    let key = key.to_string();
                    match workload.as_ref().and_then(|workload| serde_json::to_vec(&record(workload)).ok()) {
                        Some(json) => drop(table.insert(key.as_str(), json.as_slice())?),
                        None => drop(table.remove(key.as_str())?),
                    }
                }
            }
            tx.commit()?;
            // Kept only after a success.
            *slot = Some(database);
            Ok(())
        };
        result().map_err(|source| RegistryFileError::File { path: self.path.clone(), source: Box::new(source) })
    }
}

fn damaged(error: &redb::Error) -> bool {
    use redb::Error;
    if let Error::Io(error) = error {
        return matches!(error.kind(), std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof);
    }
    matches!(error, Error::Corrupted(_) | Error::UpgradeRequired(_) | Error::TableTypeMismatch { .. })
}

fn record(workload: &RegisteredWorkload) -> Record {
    let position = |index: Option<usize>| index.and_then(|index| u8::try_from(index).ok()).unwrap_or(0);
    let ports = workload.ports.iter().map(|port| PortRecord {
        name: port.name.clone(),
        port: port.port,
        protocol: position(PROTOCOLS.iter().position(|protocol| *protocol == port.protocol)),
        proxy_port: port.proxy_port,
    });
    Record {
        identity: workload.identity.clone(),
        labels: workload.labels.clone(),
        addresses: workload.addresses.clone(),
        unproven: workload.unproven.clone(),
        ports: ports.collect(),
        skipped_ports: workload.skipped_ports.clone(),
        weight: workload.weight,
        zone: workload.zone.clone(),
        gateway: workload.gateway,
        health: position(HEALTH.iter().position(|health| *health == workload.health)),
        incarnation: workload.incarnation.clone(),
        source: workload.source,
    }
}

fn workload(key: &str, json: &[u8]) -> Option<RegisteredWorkload> {
    let (namespace, name) = key.split_once('/')?;
    let record: Record = serde_json::from_slice(json).ok()?;
    let port = |port: PortRecord| {
        let protocol = *PROTOCOLS.get(usize::from(port.protocol))?;
        Some(RegisteredPort { name: port.name, port: port.port, protocol, proxy_port: port.proxy_port })
    };
    Some(RegisteredWorkload {
        key: WorkloadKey::new(namespace, name),
        service_account: record.identity.service_account()?.to_owned(),
        identity: record.identity,
        labels: record.labels,
        addresses: record.addresses,
        unproven: record.unproven,
        ports: record.ports.into_iter().map(port).collect::<Option<_>>()?,
        skipped_ports: record.skipped_ports,
        weight: record.weight,
        zone: record.zone,
        gateway: record.gateway,
        health: *HEALTH.get(usize::from(record.health))?,
        incarnation: record.incarnation,
        source: record.source,
    })
}
