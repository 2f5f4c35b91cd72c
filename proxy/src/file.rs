//! Configuration from the proxy's file alone: its objects are compiled here, as the control plane would do it, so the whole
//! mesh is known from the start. The certificate's files are read again when they change, the objects on SIGHUP.
//! Invariant: an invalid new file or certificate changes nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::time::sleep;
use weft_core::{
    api::{
        Object, ObjectKey,
        proxy_config::{IdentityFiles, ProxyMode, TlsRecords},
    },
    compile::{InstancePort, Objects, Requester, Workloads, World, protocol},
    endpoint::EndpointSet,
    identity::TrustDomain,
    names::{ClusterName, ListenerName},
    snapshot::{IncompleteError, Resources},
};

use crate::{
    config::{Mode, Settings},
    identity::files::{Stamp, stamp},
    live::Live,
    status::{Applied, Status},
    tls::{CurrentTls, MeshTls, Svid, SvidError},
};

/// The trust domain without a certificate.
const TRUST_DOMAIN: &str = "weft.local";
/// How often the certificate's files are checked.
const POLL: Duration = Duration::from_secs(2);

/// Compiles the objects of a file for this proxy.
pub fn compile(
    settings: &Settings,
    objects: &BTreeMap<ObjectKey, Arc<Object>>,
    trust_domain: TrustDomain,
) -> (Resources, Vec<EndpointSet>) {
    let world = World::new(Arc::new(Objects::new(objects, trust_domain, 0)), Arc::new(Workloads::default()));
    let requester = requester(settings);
    let mut resources = Resources::default();
    let mut clusters: BTreeSet<ClusterName> = BTreeSet::new();
    for name in names(settings, objects, &world) {
        let Some(listener) = world.listener(&name, &requester) else {
            resources.absent.insert(name);
            continue;
        };
        clusters.extend(listener.clusters().into_iter().cloned());
        for route in listener.routes() {
            if let Some(table) = world.routes(route, &requester) {
                clusters.extend(table.clusters().into_iter().cloned());
                resources.routes.insert(route.clone(), table);
            }
        }
        resources.listeners.insert(name, listener);
    }
    let endpoints = clusters.iter().filter_map(|name| world.endpoints(name)).collect();
    resources.clusters = clusters.into_iter().filter_map(|name| Some((name.clone(), world.cluster(&name)?))).collect();
    (resources, endpoints)
}

/// Every listener that this proxy can have: its own, and every address of the mesh.
fn names(settings: &Settings, objects: &BTreeMap<ObjectKey, Arc<Object>>, world: &World) -> BTreeSet<ListenerName> {
    if let Mode::Gateway(name) = &settings.mode {
        return [ListenerName::Gateway { namespace: settings.namespace.clone(), name: name.clone() }].into();
    }
    let mut names = BTreeSet::from([ListenerName::Inbound, ListenerName::OutboundDefault]);
    names.extend(world.service_addresses().map(ListenerName::Outbound));
    for object in objects.values() {
        if let Object::Workload(workload) = &**object {
            let spec = &workload.spec;
            let ports = spec.ports.iter().map(|port| port.port.get());
            let all = ports.flat_map(|port| spec.addresses.iter().map(move |address| SocketAddr::new(*address, port)));
            names.extend(all.map(ListenerName::Outbound));
        }
    }
    names
}

fn requester(settings: &Settings) -> Requester {
    let ports = settings.workload.ports.iter().map(|port| InstancePort {
        name: port.name.clone().unwrap_or_default(),
        port: port.port,
        protocol: protocol(port.protocol()),
        proxy_port: port.proxy_port,
    });
    Requester {
        namespace: settings.namespace.clone(),
        name: settings.name.clone(),
        labels: settings.workload.labels.clone(),
        service_account: settings.workload.service_account().to_owned(),
        ports: ports.collect(),
        mode: match settings.mode {
            Mode::Sidecar => ProxyMode::Sidecar,
            Mode::Gateway(_) => ProxyMode::Gateway,
        },
    }
}

/// The source of a proxy's configuration that is its file.
#[derive(Debug)]
pub(crate) struct FileSource {
    settings: Settings,
    objects: BTreeMap<ObjectKey, Arc<Object>>,
    live: Arc<Live>,
    status: Arc<Status>,
    tls: Arc<CurrentTls>,
}

impl FileSource {
    pub(crate) fn new(
        settings: Settings,
        objects: BTreeMap<ObjectKey, Arc<Object>>,
        live: Arc<Live>,
        status: Arc<Status>,
        tls: Arc<CurrentTls>,
    ) -> Self {
        Self { settings, objects, live, status, tls }
    }

    /// Puts the objects in force.
    /// Errors: the compiled configuration is incomplete; nothing changes.
    pub(crate) fn apply(&self) -> Result<(), IncompleteError> {
        let domain = self.tls.load().as_ref().and_then(|tls| TrustDomain::parse(tls.identity.trust_domain()).ok());
        let Some(domain) = domain.or_else(|| TrustDomain::parse(TRUST_DOMAIN).ok()) else { return Ok(()) };
        let (resources, endpoints) = compile(&self.settings, &self.objects, domain);
        let (listeners, clusters) = (resources.listeners.len(), resources.clusters.len());
        self.live.replace(resources)?;
        endpoints.iter().for_each(|set| self.live.set_endpoints(set));
        self.status.swaps.fetch_add(1, Relaxed);
        self.status.applied.send_replace(Applied::default());
        tracing::info!(listeners, clusters, "configuration from the file in force");
        Ok(())
    }

    /// Applies the objects of a new version of the file.
    pub(crate) fn reload(&mut self, new: Settings, objects: BTreeMap<ObjectKey, Arc<Object>>) {
        if !self.settings.same_proxy(&new) {
            tracing::warn!("the ProxyConfig has changed, which needs a restart; the new objects are in force");
        }
        let before = std::mem::replace(&mut self.objects, objects);
        if let Err(error) = self.apply() {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "new objects rejected, keeping the current ones: the configuration made from them is incomplete"
            );
            self.objects = before;
        }
    }
}

/// Reads the certificate's files.
pub(crate) fn read_identity(files: &IdentityFiles, records: TlsRecords) -> Result<MeshTls, IdentityFilesError> {
    let svid = Svid::read(&files.certificate_file, &files.private_key_file, &files.trust_bundle_file);
    svid.and_then(|svid| MeshTls::new(svid, records)).map_err(|source| {
        let [certificate, key, bundle] =
            [&files.certificate_file, &files.private_key_file, &files.trust_bundle_file].map(|path| path.display());
        let files = format!("certificateFile {certificate}, privateKeyFile {key}, trustBundleFile {bundle}");
        IdentityFilesError { files, source }
    })
}

/// The files of `spec.identity` make no identity.
#[derive(Debug, thiserror::Error)]
#[error("spec.identity: {files}")]
pub struct IdentityFilesError {
    /// Their names, with their fields.
    files: String,
    source: SvidError,
}

/// Reads them again when they change; `on_change` is called with each new certificate.
pub(crate) async fn watch_identity(files: IdentityFiles, records: TlsRecords, mut on_change: impl FnMut(MeshTls)) {
    let mut known = stamps(&files);
    loop {
        sleep(POLL).await;
        let now = stamps(&files);
        if now == known {
            continue;
        }
        match read_identity(&files, records) {
            Ok(tls) => {
                tracing::info!(identity = %tls.identity, not_after = tls.not_after, "certificate reloaded");
                on_change(tls);
            }
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::error!(error, "new certificate files rejected, keeping the current certificate");
            }
        }
        known = now;
    }
}

fn stamps(files: &IdentityFiles) -> [Stamp; 3] {
    [&files.certificate_file, &files.private_key_file, &files.trust_bundle_file].map(|path| stamp(path))
}
