//! A mesh in a world: workloads with a proxy and redirection beside them, services with addresses and names, and what
//! people ask of it as documents. Two ways to run the same test: every proxy from its own file with all documents in
//! it ([`Mesh::from_files`]), or from a control plane that enrols them ([`Mesh::with_control_plane`]).
//!
//! ```no_run
//! # use weft_e2e::{test, mesh::{Mesh, Workload}};
//! test("shape", |world| {
//!     let mut mesh = Mesh::from_files(world)?;
//!     let server = mesh.workload(Workload::of("server").port(8080, "http"))?;
//!     let client = mesh.workload(Workload::of("client"))?;
//!     mesh.service("server", &[(80, 8080)])?;
//!     mesh.up()?;
//!     let _application = server.spawn("python3", &["-m", "http.server", "8080", "--bind", "::"], &[])?;
//!     client.exec_ok("curl", &["-sS", "http://server/"])?;
//!     Ok(())
//! });
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};

use crate::certificate::{Authority, Files, Svid};
use crate::document::yaml;
use crate::host::Host;
use crate::process::Process;
use crate::wait::{DEADLINE, until};
use crate::world::{World, test};

/// The namespace of everything in a test mesh.
pub const NAMESPACE: &str = "shop";
/// The trust domain of a test mesh.
pub const TRUST_DOMAIN: &str = "mesh.test";

/// The SPIFFE ID of a service account in a test mesh.
pub fn spiffe_id(service_account: &str) -> String {
    format!("spiffe://{TRUST_DOMAIN}/ns/{NAMESPACE}/sa/{service_account}")
}

/// Runs `body` in two worlds: in a mesh from files, then in one with a control plane.
pub fn both_ways(name: &str, body: impl Fn(&mut Mesh<'_>) -> Result<()>) {
    test(&format!("{name}-files"), |world| body(&mut Mesh::from_files(world)?));
    test(&format!("{name}-control-plane"), |world| body(&mut Mesh::with_control_plane(world)?));
}

/// One workload to be: a host, an identity, ports. [`Workload::of`] says what is usual.
#[derive(Debug, Clone)]
pub struct Workload {
    name: String,
    account: String,
    labels: BTreeMap<String, String>,
    ports: Vec<Value>,
    svid: Option<Svid>,
    stranger: bool,
    unready: Option<&'static str>,
    gateway: Option<String>,
    proxied: bool,
    redirect: Vec<String>,
    spec: Map<String, Value>,
}

impl Workload {
    /// A workload with a sidecar, service account and label `app` of the same name, and no port.
    pub fn of(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            account: name.to_owned(),
            labels: BTreeMap::from([("app".to_owned(), name.to_owned())]),
            ports: Vec::new(),
            svid: None,
            stranger: false,
            unready: None,
            gateway: None,
            proxied: true,
            redirect: Vec::new(),
            spec: Map::new(),
        }
    }

    /// A gateway that serves the Gateway object `gateway`: a proxy alone on its host, without redirection.
    pub fn gateway(name: &str, gateway: &str) -> Self {
        Self { gateway: Some(gateway.to_owned()), ..Self::of(name) }
    }

    /// A host without a proxy, unknown to the mesh.
    pub fn outside(name: &str) -> Self {
        Self { proxied: false, ..Self::of(name) }
    }

    /// Another service account; the label `app` follows it.
    #[must_use]
    pub fn account(mut self, account: &str) -> Self {
        account.clone_into(&mut self.account);
        self.label("app", account)
    }

    /// One more label.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    /// One more port. `protocol`: http, http2, grpc, tcp or detect.
    #[must_use]
    pub fn port(mut self, port: u16, protocol: &str) -> Self {
        self.ports.push(json!({"name": format!("{protocol}-{port}"), "port": port, "protocol": protocol}));
        self
    }

    /// Another certificate than the right one. Files only: a control plane signs its own.
    #[must_use]
    pub fn svid(mut self, svid: Svid) -> Self {
        self.svid = Some(svid);
        self
    }

    /// The right names, signed by an authority that nobody trusts. Files only.
    #[must_use]
    pub fn stranger(mut self) -> Self {
        self.stranger = true;
        self
    }

    /// Its proxy never becomes ready, and says this: that is what starting it waits for.
    #[must_use]
    pub fn unready(mut self, reason: &'static str) -> Self {
        self.unready = Some(reason);
        self
    }

    /// More flags for `weft-proxy redirect`.
    #[must_use]
    pub fn redirect(mut self, flags: &[&str]) -> Self {
        self.redirect.extend(flags.iter().map(|flag| (*flag).to_owned()));
        self
    }

    /// One more field of the proxy's `spec`, or another value for one.
    #[must_use]
    pub fn spec(mut self, field: &str, value: Value) -> Self {
        self.spec.insert(field.to_owned(), value);
        self
    }
}

/// Workloads, services and documents, and the programs that make a mesh of them.
#[derive(Debug)]
pub struct Mesh<'world> {
    world: &'world mut World,
    source: Source,
    members: BTreeMap<String, Member>,
    documents: Vec<Value>,
    services: u8,
    up: bool,
}

/// Where proxies have their identity and configuration from.
#[derive(Debug)]
enum Source {
    Files(Box<Authorities>),
    ControlPlane { host: Host, flags: Vec<String>, process: Option<Process> },
}

/// Who signs: the mesh's root, and one of the same name that nobody trusts.
#[derive(Debug)]
struct Authorities {
    mesh: Authority,
    stranger: Authority,
}

#[derive(Debug)]
struct Member {
    workload: Workload,
    host: Host,
    proxy: Option<Process>,
}

impl<'world> Mesh<'world> {
    /// A mesh without a control plane.
    ///
    /// Errors: no certificates can be made.
    pub fn from_files(world: &'world mut World) -> Result<Self> {
        let authorities = Authorities { mesh: Authority::new(TRUST_DOMAIN)?, stranger: Authority::new(TRUST_DOMAIN)? };
        Ok(Self::new(world, Source::Files(Box::new(authorities))))
    }

    /// A mesh with a control plane on the host `control`, which is started here.
    ///
    /// Errors: it does not become ready.
    pub fn with_control_plane(world: &'world mut World) -> Result<Self> {
        Self::with_control_plane_flags(world, &[])
    }

    /// The same, with more flags for the control plane.
    ///
    /// Errors: it does not become ready.
    pub fn with_control_plane_flags(world: &'world mut World, flags: &[&str]) -> Result<Self> {
        let host = world.host("control")?;
        let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let mut mesh = Self::new(world, Source::ControlPlane { host, flags, process: None });
        mesh.start_control_plane()?;
        Ok(mesh)
    }

    fn new(world: &'world mut World, source: Source) -> Self {
        Self { world, source, members: BTreeMap::new(), documents: Vec::new(), services: 0, up: false }
    }

    /// The world it is in.
    pub fn world(&mut self) -> &mut World {
        self.world
    }

    /// Adds a workload on a host of its own, whose name is the workload's. Its proxy starts with [`Mesh::up`], or
    /// now when the mesh is up.
    ///
    /// Errors: the host cannot be made, or the proxy does not become ready.
    pub fn workload(&mut self, workload: Workload) -> Result<Host> {
        let host = self.world.host(&workload.name)?;
        let name = workload.name.clone();
        self.members.insert(name.clone(), Member { workload, host: host.clone(), proxy: None });
        if self.up {
            match self.source {
                // The others must learn of it.
                Source::Files(_) => self.restart_all()?,
                Source::ControlPlane { .. } => self.start_proxy(&name)?,
            }
        }
        Ok(host)
    }

    /// Adds a Service: workloads with the label `app: <name>`, on (port, target port) pairs, with one IPv4 and one
    /// IPv6 address, known by its name on every host.
    ///
    /// Errors: as [`Mesh::apply`].
    pub fn service(&mut self, name: &str, ports: &[(u16, u16)]) -> Result<[std::net::IpAddr; 2]> {
        self.services = self.services.checked_add(1).context("too many services")?;
        let v4 = Ipv4Addr::new(240, 0, 1, self.services);
        let v6 = Ipv6Addr::new(0xfd77, 0x6566, 0x7400, 0, 0, 0, 1, u16::from(self.services));
        let ports: Vec<Value> = ports
            .iter()
            .map(|(port, target)| json!({"name": format!("p{port}"), "port": port, "targetPort": target}))
            .collect();
        // A workload of the same name had it for its host; people call services.
        self.world.rename(name, &[&v4.to_string(), &v6.to_string()])?;
        self.apply(json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {"selector": {"app": name}, "clusterIPs": [v4, v6], "ports": ports},
        }))?;
        Ok([v4.into(), v6.into()])
    }

    /// Sets the mesh-wide settings to these fields of `MeshConfig.spec`; the rest has its defaults.
    ///
    /// Errors: as [`Mesh::apply`].
    pub fn settings(&mut self, spec: &Value) -> Result<()> {
        self.apply(json!({
            "apiVersion": "weft.dev/v1alpha1",
            "kind": "MeshConfig",
            "metadata": {"name": "default"},
            "spec": spec,
        }))
    }

    /// Adds or replaces one document. When the mesh is up it comes into force: `weft apply`, or new files and a
    /// restart of every proxy.
    ///
    /// Errors: it is refused, or a proxy does not come back.
    pub fn apply(&mut self, document: Value) -> Result<()> {
        self.apply_all([document])
    }

    /// The same with several at once: one revision.
    ///
    /// Errors: as [`Mesh::apply`].
    pub fn apply_all(&mut self, documents: impl IntoIterator<Item = Value>) -> Result<()> {
        let key = |document: &Value| {
            let field = |pointer| document.pointer(pointer).cloned().unwrap_or_default();
            (field("/kind"), field("/metadata/namespace"), field("/metadata/name"))
        };
        for document in documents {
            self.documents.retain(|known| key(known) != key(&document));
            self.documents.push(document);
        }
        if !self.up {
            return Ok(());
        }
        match self.source {
            Source::Files(_) => self.restart_all(),
            Source::ControlPlane { .. } => self.apply_documents(),
        }
    }

    /// Writes files or applies the documents, redirects, and starts every proxy; returns when all are ready.
    ///
    /// Errors: something is refused or does not become ready.
    pub fn up(&mut self) -> Result<()> {
        if matches!(self.source, Source::ControlPlane { .. }) {
            self.apply_documents()?;
        }
        self.up = true;
        self.restart_all()
    }

    /// The host of a workload.
    ///
    /// Errors: there is no such workload.
    pub fn host(&self, name: &str) -> Result<Host> {
        Ok(self.member(name)?.host.clone())
    }

    /// The running proxy of a workload, to signal or to read its log.
    ///
    /// Errors: there is none.
    pub fn proxy(&mut self, name: &str) -> Result<&mut Process> {
        let member = self.members.get_mut(name).with_context(|| format!("no workload {name}"))?;
        member.proxy.as_mut().with_context(|| format!("{name} has no running proxy"))
    }

    /// Starts the proxy of a workload, killing one that runs, and waits until it is ready. Redirects first where
    /// that was not done yet.
    ///
    /// Errors: it does not become ready.
    pub fn start_proxy(&mut self, name: &str) -> Result<()> {
        self.launch_proxy(name)?;
        self.await_proxy(name)
    }

    /// The control plane's process, to signal or to read its log.
    ///
    /// Errors: there is none.
    pub fn control_plane(&mut self) -> Result<&mut Process> {
        match &mut self.source {
            Source::Files(_) => bail!("this mesh has no control plane: it runs from files"),
            Source::ControlPlane { process, .. } => process.as_mut().context("the control plane is not started"),
        }
    }

    /// Starts the control plane on its data, killing one that runs, and waits until it is ready.
    ///
    /// Errors: it does not become ready, or this mesh has none.
    pub fn start_control_plane(&mut self) -> Result<()> {
        let Source::ControlPlane { host, flags, process } = &mut self.source else {
            bail!("this mesh has no control plane: it runs from files")
        };
        *process = None;
        let data = host.directory().join("data");
        fs::create_dir_all(&data).with_context(|| format!("create {}", data.display()))?;
        let (data, address) = (data.display().to_string(), host.ipv4().to_string());
        let mut args = vec!["--data-dir", &data, "--trust-domain", TRUST_DOMAIN, "--advertise", &address];
        args.extend(flags.iter().map(String::as_str));
        let running = process.insert(host.spawn("weft-control-plane", &args, &[])?);
        let host = host.clone();
        until("the control plane to be ready", DEADLINE, || {
            if let Some(status) = running.ended()? {
                bail!("weft-control-plane exited ({status}): {}", running.output()?);
            }
            host.exec_ok("curl", &["-sSf", "http://127.0.0.1:15014/readyz"]).map(drop)
        })
    }

    /// The control plane's host.
    ///
    /// Errors: this mesh has none.
    pub fn control(&self) -> Result<Host> {
        match &self.source {
            Source::Files(_) => bail!("this mesh has no control plane: it runs from files"),
            Source::ControlPlane { host, .. } => Ok(host.clone()),
        }
    }

    /// Runs `weft` beside the control plane, through its Unix socket; its standard output.
    ///
    /// Errors: this mesh has no control plane, or the command failed, with what it said.
    pub fn weft(&self, args: &[&str]) -> Result<String> {
        weft(&self.control()?, args)
    }

    /// Signs a certificate with the mesh's root, or with the stranger's, and writes it into a host's directory.
    ///
    /// Errors: this mesh has a control plane, or as [`Authority::write`].
    pub fn sign(&self, svid: &Svid, stranger: bool, host: &Host) -> Result<Files> {
        let Source::Files(authorities) = &self.source else {
            bail!("the control plane of this mesh signs the certificates")
        };
        let signer = if stranger { &authorities.stranger } else { &authorities.mesh };
        signer.write(svid, host.directory())
    }

    /// What a proxy's metrics port answers to `path`, such as `/metrics`.
    ///
    /// Errors: no answer, or not 2xx.
    pub fn metrics(&self, name: &str, path: &str) -> Result<String> {
        self.member(name)?.host.exec_ok("curl", &["-sSf", &format!("http://127.0.0.1:15020{path}")])
    }

    /// What a proxy's admin port answers to `path`, such as `/config_dump`.
    ///
    /// Errors: no answer, or not 2xx.
    pub fn admin(&self, name: &str, path: &str) -> Result<String> {
        self.member(name)?.host.exec_ok("curl", &["-sSf", &format!("http://127.0.0.1:15000{path}")])
    }

    fn member(&self, name: &str) -> Result<&Member> {
        self.members.get(name).with_context(|| format!("no workload {name}"))
    }

    fn restart_all(&mut self) -> Result<()> {
        let names: Vec<String> = self
            .members
            .values()
            .filter(|member| member.workload.proxied)
            .map(|member| member.workload.name.clone())
            .collect();
        for name in &names {
            self.launch_proxy(name)?;
        }
        names.iter().try_for_each(|name| self.await_proxy(name))
    }

    fn launch_proxy(&mut self, name: &str) -> Result<()> {
        let member = self.member(name)?;
        ensure!(member.workload.proxied, "{name} is outside the mesh");
        if member.workload.gateway.is_none() {
            let flags: Vec<&str> = member.workload.redirect.iter().map(String::as_str).collect();
            member.host.redirect(&flags)?;
        }
        let config = self.write_config(name)?.display().to_string();
        let member = self.members.get_mut(name).with_context(|| format!("no workload {name}"))?;
        member.proxy = None;
        member.proxy = Some(member.host.spawn("weft-proxy", &["run", "--config", &config], &[])?);
        Ok(())
    }

    fn await_proxy(&mut self, name: &str) -> Result<()> {
        let host = self.host(name)?;
        let unready = self.member(name)?.workload.unready;
        let proxy = self.proxy(name)?;
        let what = format!("the proxy of {name} to be {}", unready.unwrap_or("ready"));
        crate::wait::until_some(what, DEADLINE, || {
            if let Some(status) = proxy.ended()? {
                bail!("the proxy of {name} exited ({status})");
            }
            let answer = host.exec("curl", &["-sS", "-w", "%{http_code}", "http://127.0.0.1:15020/readyz"])?;
            let text = String::from_utf8_lossy(&answer.stdout);
            let wanted = match unready {
                Some(reason) => text.ends_with("503") && text.contains(&format!("[\"{reason}\"]")),
                None => text.ends_with("200"),
            };
            Ok(wanted.then_some(()))
        })
    }

    fn apply_documents(&mut self) -> Result<()> {
        if self.documents.is_empty() {
            return Ok(());
        }
        let Source::ControlPlane { host, .. } = &self.source else {
            bail!("this mesh has no control plane: it runs from files")
        };
        let file = host.file("documents.yaml", yaml(&self.documents)?)?.display().to_string();
        self.weft(&["apply", "-f", &file]).map(drop)
    }

    /// Writes the proxy's file, with its certificate or join token beside it; [`Mesh::up`] does it for all.
    ///
    /// Errors: there is no such workload, a file cannot be written, or the control plane gives no token.
    pub fn write_config(&self, name: &str) -> Result<PathBuf> {
        let Member { workload, host, .. } = self.member(name)?;
        let mut spec = Map::new();
        let mut set = |field: &str, value: Value| spec.insert(field.to_owned(), value);
        match &workload.gateway {
            Some(gateway) => {
                set("mode", json!("gateway"));
                set("gateway", json!(gateway));
                set("workload", json!({"serviceAccount": workload.account}));
            }
            None => {
                set("mode", json!("sidecar"));
                set(
                    "workload",
                    json!({
                        "serviceAccount": workload.account,
                        "labels": workload.labels,
                        "addresses": host.addresses(),
                        "ports": workload.ports,
                    }),
                );
            }
        }
        let mut documents = Vec::new();
        match &self.source {
            Source::Files(authorities) => {
                let svid = workload.svid.clone();
                let svid = svid.unwrap_or_else(|| Svid::of(TRUST_DOMAIN, NAMESPACE, &workload.account));
                let files = self.sign(&svid, workload.stranger, host)?;
                // It trusts the others all the same: they must be the ones to refuse.
                fs::write(&files.trust_bundle, authorities.mesh.root()).context("write the trust bundle")?;
                set(
                    "identity",
                    json!({
                        "certificateFile": files.certificate,
                        "privateKeyFile": files.private_key,
                        "trustBundleFile": files.trust_bundle,
                    }),
                );
                documents.extend(self.documents.iter().cloned());
                documents.extend(self.members.values().filter_map(workload_document));
            }
            Source::ControlPlane { host: control, .. } => {
                ensure!(
                    workload.svid.is_none() && !workload.stranger,
                    "{name}: a control plane signs the certificates, so they cannot be chosen"
                );
                let args = ["token", "create", "-n", NAMESPACE, "-s", &workload.account];
                let token = host.file("join-token", self.weft(&args)?)?;
                set("controlPlane", json!({"address": format!("{}:15012", control.ipv4()), "joinTokenFile": token}));
            }
        }
        for (field, value) in &workload.spec {
            set(field, value.clone());
        }
        let config = json!({
            "apiVersion": "weft.dev/v1alpha1",
            "kind": "ProxyConfig",
            "metadata": {"name": workload.name, "namespace": NAMESPACE},
            "spec": spec,
        });
        documents.insert(0, config);
        host.file("proxy.yaml", yaml(&documents)?)
    }
}

/// Runs `weft` on the control plane's host, as [`Mesh::weft`]: for threads of their own.
///
/// Errors: the command failed, with what it said.
pub fn weft(control: &Host, args: &[&str]) -> Result<String> {
    let socket = format!("unix:{}", control.directory().join("data/api.sock").display());
    let program = crate::programs::find("weft")?.display().to_string();
    control.exec_ok(&program, &[&["--server", &socket], args].concat())
}

/// How the others know of a sidecar, when no registry tells them.
fn workload_document(member: &Member) -> Option<Value> {
    let workload = &member.workload;
    (workload.proxied && workload.gateway.is_none()).then(|| {
        json!({
            "apiVersion": "weft.dev/v1alpha1",
            "kind": "Workload",
            "metadata": {"name": workload.name, "namespace": NAMESPACE, "labels": workload.labels},
            "spec": {
                "addresses": member.host.addresses(),
                "serviceAccount": workload.account,
                "ports": workload.ports,
            },
        })
    })
}
