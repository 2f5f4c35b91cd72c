//! The running shop: hosts, control plane, proxies, applications; how each is started.
//! Every proxy enrols with a join token; the applications get plain names and know nothing of the mesh.

use std::{
    collections::BTreeMap,
    fs::{self, Permissions},
    net::{IpAddr, SocketAddr},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use http::Method;
use rustix::process::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use weft::{
    client::Client,
    command::{apply, get, history, status, token},
    config::{Server, Settings},
    documents::Documents,
    kinds::{self, Kind, items, plain},
    output,
};

use crate::{
    exchange::{self, Answer},
    metrics,
    netns::{Host, Inside, Wire, run},
    places::{LOGS, Places, STATE},
    plan::{App, CONTROL, EDGE, MEMBERS, Member, NAMESPACE},
    process::{Process, Program},
    wait::{DEADLINE, until},
};

/// How long a join token of the demo is good.
const TOKEN_TTL: Duration = Duration::from_secs(24 * 3600);

/// Everything that runs. Dropping it kills all of it; the namespaces stay until they are removed by name.
#[derive(Debug)]
pub(crate) struct Shop {
    /// Where things are.
    pub(crate) places: Places,
    /// For requests to the control plane, through its socket.
    pub(crate) client: Client,
    /// The addresses that the control plane gave each service.
    pub(crate) addresses: BTreeMap<String, Vec<IpAddr>>,
    state: PathBuf,
    logs: PathBuf,
    hosts: BTreeMap<&'static str, Host>,
    inside: BTreeMap<&'static str, Inside>,
    control: Option<Process>,
    proxies: BTreeMap<&'static str, Process>,
    apps: BTreeMap<&'static str, Process>,
    wire: Wire,
}

impl Shop {
    /// Makes the hosts; nothing runs yet.
    ///
    /// Errors: `ip` fails, or the demo's directories cannot be written.
    pub(crate) async fn make(places: Places) -> Result<Self> {
        let (state, logs) = (PathBuf::from(STATE), PathBuf::from(LOGS));
        let wire = Wire::make().await?;
        let (mut hosts, mut inside) = (BTreeMap::new(), BTreeMap::new());
        let names = std::iter::once(CONTROL).chain(MEMBERS.iter().map(|member| member.name));
        for (name, number) in names.zip(1..) {
            let host = wire.host(name, number).await?;
            inside.insert(name, host.enter()?);
            hosts.insert(name, host);
            directory(&state.join(name))?;
        }
        let server = Server::Unix(state.join(CONTROL).join("api.sock"));
        let client = Client::new(&Settings { server, token: None, ca: None, author: Some("demo".to_owned()) })?;
        Ok(Self {
            places,
            client,
            addresses: BTreeMap::new(),
            state,
            logs,
            hosts,
            inside,
            control: None,
            proxies: BTreeMap::new(),
            apps: BTreeMap::new(),
            wire,
        })
    }

    /// Starts the control plane, or starts it again on its data, and waits until its API answers.
    ///
    /// Errors: it ends or does not answer.
    pub(crate) async fn start_control_plane(&mut self) -> Result<()> {
        let host = self.host(CONTROL)?;
        let data = self.state.join(CONTROL).display().to_string();
        let address = host.ipv4().to_string();
        let words =
            [&self.places.control_plane, "--data-dir", &data, "--advertise", &address, "--heartbeat-interval", "1s"];
        let program = self.program("control-plane", CONTROL, words.map(str::to_owned).into())?;
        let mut process = program.start(&self.logs)?;
        let client = self.client.clone();
        process
            .until("the control plane's API", DEADLINE, async || Ok(history::newest(&client).await.map(drop)?))
            .await?;
        self.control = Some(process);
        Ok(())
    }

    /// The control plane's process.
    ///
    /// Errors: it does not run.
    pub(crate) fn control_plane(&mut self) -> Result<&mut Process> {
        self.control.as_mut().context("the control plane does not run")
    }

    /// Applies files of `deploy/demo`; the revision.
    ///
    /// Errors: the control plane refuses.
    pub(crate) async fn apply(&self, file: &str, message: &str) -> Result<u64> {
        let documents = Documents::read(&[self.places.objects.join(file)])?;
        let answer = apply::send(&self.client, &documents, Some(message), false).await?;
        Ok(answer.meaning.revision)
    }

    /// Reads the services' addresses and makes their names known on every host.
    ///
    /// Errors: a service has none.
    pub(crate) async fn name_services(&mut self) -> Result<()> {
        let list = get::all(&self.client, Kind::Service, Some(NAMESPACE), None).await?.json;
        let mut names = Vec::new();
        for service in items(&list, "/items") {
            let name = service.pointer("/metadata/name").map(plain).unwrap_or_default();
            let addresses: Vec<IpAddr> =
                kinds::addresses(service).iter().map(|text| text.parse()).collect::<Result<_, _>>()?;
            ensure!(addresses.len() == 2, "{name} has {addresses:?}, not one address of each family");
            names.extend(addresses.iter().map(|address| (name.clone(), *address)));
            self.addresses.insert(name, addresses);
        }
        ensure!(!names.is_empty(), "there is no service");
        self.hosts.values().try_for_each(|host| host.write_hosts(&names))
    }

    /// Starts every proxy, with redirection where there is an application, and waits until all are ready.
    ///
    /// Errors: one is not.
    pub(crate) async fn start_proxies(&mut self) -> Result<()> {
        let mut tokens: BTreeMap<&str, PathBuf> = BTreeMap::new();
        for member in MEMBERS {
            let account = member.app.service();
            if !tokens.contains_key(account) {
                let answer = token::create(&self.client, NAMESPACE, account, TOKEN_TTL, true).await?;
                let text = answer.meaning.token.context("an answer with a token")?;
                let file = self.state.join(format!("{account}.token"));
                fs::write(&file, text).and_then(|()| fs::set_permissions(&file, Permissions::from_mode(0o600)))?;
                tokens.insert(account, file);
            }
            let token = tokens.get(account).context("a token")?.display().to_string();
            self.start_proxy(member, &token).await?;
        }
        for member in MEMBERS {
            let inside = self.inside(member.name)?.clone();
            let process = self.proxies.get_mut(member.name).context("a proxy")?;
            let what = format!("the proxy of {} to be ready", member.name);
            process.until(&what, DEADLINE, async || ready(&inside).await).await?;
        }
        Ok(())
    }

    async fn start_proxy(&mut self, member: &Member, token: &str) -> Result<()> {
        let (host, control) = (self.host(member.name)?, self.host(CONTROL)?);
        let config = output::yaml(&member.proxy_config(&host, &control, token))?;
        let file = self.state.join(member.name).join("proxy.yaml");
        fs::write(&file, config).with_context(|| format!("write {}", file.display()))?;
        if member.app != App::Edge {
            run("ip", &["netns", "exec", &host.namespace(), &self.places.proxy, "redirect"]).await?;
        }
        let words = [&self.places.proxy, "run", "--config", &file.display().to_string()].map(|word| word.to_owned());
        let program = self.program(&format!("{}-proxy", member.name), member.name, words.into())?;
        self.proxies.insert(member.name, program.start(&self.logs)?);
        Ok(())
    }

    /// Prepares PostgreSQL's files.
    ///
    /// Errors: `initdb` fails.
    pub(crate) async fn make_database(&self) -> Result<()> {
        let holder = self.state.join("order-db");
        run("chown", &["postgres:postgres", &holder.display().to_string()]).await?;
        let data = holder.join("data").display().to_string();
        let initdb = self.places.postgres.join("initdb").display().to_string();
        let words =
            ["--reuid=postgres", "--regid=postgres", "--clear-groups", "--", &initdb, "-D", &data, "-U", "postgres"];
        let more = ["-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync", "--wal-segsize=1"];
        run("setpriv", &[&words[..], &more[..]].concat()).await?;
        // Connections come from the proxy beside it, from the host's own addresses.
        let rules = holder.join("data/pg_hba.conf");
        let text = "local all all trust\nhost all all 127.0.0.1/32 trust\nhost all all 10.77.0.0/16 trust\nhost all all fd00:77::/64 trust\n";
        fs::write(&rules, text).with_context(|| format!("write {}", rules.display()))
    }

    /// Starts every application, databases first, and waits until each service answers through the mesh.
    ///
    /// Errors: one does not.
    pub(crate) async fn start_apps(&mut self) -> Result<()> {
        let (databases, others): (Vec<&Member>, Vec<&Member>) =
            MEMBERS.iter().partition(|member| member.app.database());
        for member in databases.into_iter().chain(others) {
            self.start_app(member.name)?;
        }
        for member in MEMBERS {
            self.until_healthy(member.name).await?;
        }
        Ok(())
    }

    /// Starts the application of a host.
    ///
    /// Errors: it cannot be started.
    pub(crate) fn start_app(&mut self, name: &str) -> Result<()> {
        let member = MEMBERS.iter().find(|member| member.name == name).with_context(|| format!("no host {name}"))?;
        let own = self.state.join(member.name);
        let places = &self.places;
        let shop = |file: &str| places.shop.join(file).display().to_string();
        let shared = |file: &str| -> Result<String> {
            let directory_of_service = self.state.join(member.app.service());
            directory(&directory_of_service)?;
            Ok(directory_of_service.join(file).display().to_string())
        };
        let mut env = vec![("INSTANCE", member.name.to_owned()), ("LOG", "warn".to_owned())];
        let mut user = None;
        let mut stop = Signal::TERM;
        let command: Vec<String> = match member.app {
            App::Edge => return Ok(()),
            App::User => {
                env.push(("BIND", "[::]:8080".to_owned()));
                vec![places.node.clone(), shop("user/user.js")]
            }
            App::Product(version) => {
                env.push(("BIND", "[::]:8080".to_owned()));
                env.push(("VERSION", version.to_owned()));
                env.push(("DATABASE", shared("product.db")?));
                vec![places.python.clone(), "-B".into(), shop("product/product.py")]
            }
            App::Order => {
                env.push(("BIND", "[::]:8080".to_owned()));
                vec![places.order.clone()]
            }
            App::Payment => {
                env.push(("BIND", "[::]:50051".to_owned()));
                env.push(("DATABASE", shared("payment.db")?));
                vec![places.python.clone(), "-B".into(), shop("payment/payment.py")]
            }
            App::OrderDb => {
                // PostgreSQL does not run as root, and removes its shared memory only on an orderly end.
                user = Some("postgres");
                stop = Signal::INT;
                let program = places.postgres.join("postgres").display().to_string();
                let data = own.join("data").display().to_string();
                let words = [&program, "-D", &data, "-h", "*", "-p", "5432", "-k", "", "-c", "max_wal_size=32MB"];
                words.map(str::to_owned).into()
            }
            App::UserDb => {
                let data = own.display().to_string();
                let words = ["redis-server", "--bind", "0.0.0.0", "::", "--port", "6379", "--protected-mode", "no"];
                let more = ["--dir", &data, "--save", "", "--appendonly", "yes", "--appendfsync", "always"];
                words.iter().chain(&more).map(|word| (*word).to_owned()).collect()
            }
        };
        let mut program = self.program(&format!("{}-app", member.name), member.name, command)?;
        program.env = env.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        (program.user, program.stop, program.directory) = (user, stop, own);
        if user.is_some() {
            program.directory = "/".into();
        }
        self.apps.insert(member.name, program.start(&self.logs)?);
        Ok(())
    }

    /// Waits until the application of a host answers on its own port, and its proxy says so.
    async fn until_healthy(&mut self, name: &'static str) -> Result<()> {
        let inside = self.inside(name)?.clone();
        let host = self.host(name)?;
        let member = MEMBERS.iter().find(|member| member.name == name).context("a member")?;
        let (Some((port, _)), Some(process)) = (member.app.port(), self.apps.get_mut(name)) else { return Ok(()) };
        let http = matches!(member.app, App::User | App::Product(_) | App::Order);
        let what = format!("{name} to answer");
        process
            .until(&what, DEADLINE, async || {
                let stream = inside.connect((host.ipv4(), port).into()).await?;
                if http {
                    let answer = exchange::http(stream, Method::GET, name, "/healthz", None).await?;
                    ensure!(answer.status.is_success(), "/healthz answers {}", answer.status);
                }
                Ok(())
            })
            .await
    }

    /// The application of a host.
    ///
    /// Errors: none runs there.
    pub(crate) fn app(&mut self, name: &str) -> Result<&mut Process> {
        self.apps.get_mut(name).with_context(|| format!("no application on {name}"))
    }

    /// The proxy of a host.
    ///
    /// Errors: none runs there.
    pub(crate) fn proxy(&mut self, name: &str) -> Result<&mut Process> {
        self.proxies.get_mut(name).with_context(|| format!("no proxy on {name}"))
    }

    /// A host.
    ///
    /// Errors: there is none of this name.
    pub(crate) fn host(&self, name: &str) -> Result<Host> {
        self.hosts.get(name).cloned().with_context(|| format!("no host {name}"))
    }

    /// A thread on a host.
    ///
    /// Errors: there is none of this name.
    pub(crate) fn inside(&self, name: &str) -> Result<&Inside> {
        self.inside.get(name).with_context(|| format!("no host {name}"))
    }

    /// The namespace with the bridge.
    pub(crate) fn wire(&self) -> &Wire {
        &self.wire
    }

    /// Where the demo keeps its files.
    pub(crate) fn state(&self) -> &Path {
        &self.state
    }

    /// Where the programs' output goes.
    pub(crate) fn logs(&self) -> &Path {
        &self.logs
    }

    /// An address of a service: IPv4 or IPv6.
    ///
    /// Errors: it has none.
    pub(crate) fn address(&self, service: &str, v6: bool, port: u16) -> Result<SocketAddr> {
        let addresses = self.addresses.get(service).with_context(|| format!("no service {service}"))?;
        let address = addresses.iter().find(|address| address.is_ipv6() == v6);
        Ok((*address.with_context(|| format!("{service} has no such address"))?, port).into())
    }

    /// An HTTP request as an application on `from` makes it: to the address of a service, by its name.
    ///
    /// Errors: no answer.
    pub(crate) async fn call(&self, from: &str, service: &str, v6: bool, path: &str) -> Result<Answer> {
        let stream = self.inside(from)?.connect(self.address(service, v6, 80)?).await?;
        exchange::http(stream, Method::GET, service, path, None).await
    }

    /// Bytes to a service and the first bytes back, as an application on `from` sends them.
    ///
    /// Errors: no connection, or nothing back.
    pub(crate) async fn talk(&self, from: &str, to: SocketAddr, bytes: &[u8]) -> Result<Vec<u8>> {
        let mut stream = self.inside(from)?.connect(to).await?;
        let talk = async {
            stream.write_all(bytes).await?;
            let mut answer = vec![0; 512];
            let length = stream.read(&mut answer).await?;
            answer.truncate(length);
            std::io::Result::Ok(answer)
        };
        let answer = tokio::time::timeout(Duration::from_secs(5), talk).await.context("no answer within 5 s")??;
        ensure!(!answer.is_empty(), "the connection was closed");
        Ok(answer)
    }

    /// Waits until every proxy has applied this revision or a later one.
    ///
    /// Errors: one has not within the deadline.
    pub(crate) async fn until_applied(&self, revision: u64) -> Result<()> {
        until(&format!("every proxy to apply revision {revision}"), DEADLINE, async || {
            let answer = status::proxies(&self.client).await?;
            let behind: Vec<String> = items(&answer, "/items")
                .filter(|proxy| status::applied(proxy).is_none_or(|applied| applied < revision))
                .map(|proxy| format!("{} has {:?}", status::name(proxy), status::applied(proxy)))
                .collect();
            let count = items(&answer, "/items").count();
            ensure!(behind.is_empty(), "{}", behind.join(", "));
            ensure!(count >= MEMBERS.len(), "{count} of {} proxies are connected", MEMBERS.len());
            Ok(())
        })
        .await
    }

    /// Threads in the namespaces of a service's workloads.
    pub(crate) fn members_of(&self, service: &str) -> Vec<Inside> {
        let these = MEMBERS.iter().filter(|member| member.app.service() == service);
        these.filter_map(|member| self.inside.get(member.name)).cloned().collect()
    }

    /// The gateway's address, for the relay.
    ///
    /// Errors: there is no gateway.
    pub(crate) fn gateway(&self) -> Result<(Inside, SocketAddr)> {
        let address = self.host(EDGE)?.ipv4();
        Ok((self.inside(EDGE)?.clone(), (address, crate::plan::EDGE_PORT).into()))
    }

    /// Ends every program: PostgreSQL in order, all others at once.
    ///
    /// Errors: one survives.
    pub(crate) async fn stop(&mut self) -> Result<()> {
        if let Some(database) = self.apps.get_mut("order-db") {
            // It has memory segments to give back.
            database.end(Duration::from_secs(5)).await?;
        }
        let all = self.apps.values_mut().chain(self.proxies.values_mut()).chain(self.control.iter_mut());
        let mut all: Vec<&mut Process> = all.collect();
        all.iter_mut().for_each(|process| process.signal(Signal::KILL));
        for process in all {
            process.kill().await?;
        }
        Ok(())
    }

    /// The numbers of all programs, to see afterwards that they are gone.
    pub(crate) fn process_ids(&self) -> Vec<i32> {
        let all = self.apps.values().chain(self.proxies.values()).chain(self.control.iter());
        all.map(Process::id).collect()
    }

    fn program(&self, name: &str, host: &str, command: Vec<String>) -> Result<Program> {
        Ok(Program {
            name: name.to_owned(),
            namespace: Some(self.host(host)?.namespace()),
            user: None,
            command,
            env: Vec::new(),
            directory: self.state.join(host),
            stop: Signal::TERM,
        })
    }
}

/// Whether a proxy is ready.
async fn ready(inside: &Inside) -> Result<()> {
    let stream = inside.connect(([127, 0, 0, 1], metrics::PORT).into()).await?;
    let answer = exchange::http(stream, Method::GET, "localhost", "/readyz", None).await?;
    ensure!(answer.status.is_success(), "/readyz answers {}: {}", answer.status, String::from_utf8_lossy(&answer.body));
    Ok(())
}

/// A directory that every user can pass.
fn directory(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("create {}", path.display()))?;
    fs::set_permissions(path, Permissions::from_mode(0o755)).with_context(|| format!("open up {}", path.display()))
}
