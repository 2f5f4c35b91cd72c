//! Handshakes over real sockets: the proxy's dialer on one side, a server of the mesh on the other.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::{
    ClientConnection,
    crypto::aws_lc_rs::Ticketer,
    pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName},
    server::ProducesTickets,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;
use crate::{telemetry::exposition::render, tls::svid::unix_now, upstream::dial::Dialer};

const LONG: Duration = Duration::from_secs(3600);
const SHORT: Duration = Duration::from_secs(3);
const WAIT: Duration = Duration::from_secs(10);

/// A certificate authority, and what leads from it to its own root.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    between: Vec<CertificateDer<'static>>,
}

fn authority(life: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.not_after = (SystemTime::now() + life).into();
    // Told apart by name, so that an unknown one is not taken for another's bad signature.
    params.distinguished_name.push(DnType::CommonName, fastrand::u64(..).to_string());
    params
}

impl Authority {
    pub(crate) fn new() -> Self {
        let issuer = CertifiedIssuer::self_signed(authority(LONG), KeyPair::generate().unwrap()).unwrap();
        Self { issuer, between: Vec::new() }
    }

    /// One below it.
    fn below(&self, life: Duration) -> Self {
        let issuer = CertifiedIssuer::signed_by(authority(life), KeyPair::generate().unwrap(), &self.issuer).unwrap();
        let between = vec![issuer.der().clone()];
        Self { issuer, between }
    }

    /// A certificate for an account, and the roots it trusts.
    fn svid(&self, account: &str, life: Duration, roots: &[&Self]) -> Svid {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(identity(account).as_str().try_into().unwrap())];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.not_after = (SystemTime::now() + life).into();
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        let chain = [leaf.der().clone()].into_iter().chain(self.between.clone()).collect();
        let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        Svid::new(chain, key, roots.iter().map(|root| root.issuer.der().clone()).collect()).unwrap()
    }

    pub(crate) fn tls(&self, account: &str, records: TlsRecords, provider: Arc<CryptoProvider>) -> MeshTls {
        MeshTls::with_provider(self.svid(account, LONG, &[self]), records, provider).unwrap()
    }
}

fn identity(account: &str) -> Identity {
    Identity::parse(&format!("spiffe://weft.local/ns/shop/sa/{account}")).unwrap()
}

/// A server whose configuration can be replaced, and what it saw of each connection: how the handshake went and with whom.
struct Server {
    config: Arc<ArcSwap<ServerConfig>>,
    address: SocketAddr,
    seen: mpsc::UnboundedReceiver<Result<(&'static str, Identity), String>>,
}

impl Server {
    async fn start(tls: &MeshTls) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let config = Arc::new(ArcSwap::new(tls.server.clone()));
        let (tell, seen) = mpsc::unbounded_channel();
        let current = config.clone();
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let mut stream = match TlsAcceptor::from(current.load_full()).accept(tcp).await {
                    Ok(stream) => stream,
                    Err(error) => {
                        tell.send(Err(error.to_string())).unwrap();
                        continue;
                    }
                };
                let connection = stream.get_ref().1;
                let kind = verify::kind(connection);
                let peer = verify::peer(connection).map(|peer| (kind, peer.identity));
                let is_fit = peer.is_ok();
                tell.send(peer.map_err(|error| format!("{kind}: {error}"))).unwrap();
                if is_fit {
                    stream.write_all(b"!").await.ok();
                    stream.shutdown().await.ok();
                }
            }
        });
        Self { config, address, seen }
    }

    async fn seen(&mut self) -> Result<(&'static str, Identity), String> {
        timeout(WAIT, self.seen.recv()).await.expect("a handshake").unwrap()
    }

    /// One connection as both sides saw it.
    async fn call(&mut self, client: &Dialer, account: &str) -> (Result<&'static str, String>, Result<String, String>) {
        let called = call(client, self.address, account).await;
        let seen = self.seen().await.map(|(kind, identity)| format!("{kind} {}", identity.service_account().unwrap()));
        (called, seen)
    }
}

fn dialer(tls: MeshTls) -> Dialer {
    let current = CurrentTls::empty();
    current.store(Some(Arc::new(tls)));
    Dialer { mark: None, tls: Arc::new(current), metrics: Arc::default(), shown: Arc::default() }
}

/// Connects and reads the server's byte, which comes after its ticket. Returns how the handshake went.
async fn call(client: &Dialer, address: SocketAddr, account: &str) -> Result<&'static str, String> {
    let before = shaken(client);
    let opened = client.handshake(address, &identity(account), &[ALPN_TCP], WAIT).await.map(|(stream, _)| stream);
    let mut stream = opened.map_err(|failure| format!("{failure:?}"))?;
    let kind = match (before, shaken(client)) {
        ([full, resumed], [after, same]) if (after, same) == (full + 1, resumed) => "full",
        ([full, resumed], [same, after]) if (same, after) == (full, resumed + 1) => "resumed",
        (before, after) => panic!("one handshake: {before:?}, {after:?}"),
    };
    timeout(WAIT, stream.read_u8()).await.expect("a byte").map_err(|error| error.to_string())?;
    Ok(kind)
}

/// Handshakes that a client has counted, full and resumed ones.
fn shaken(client: &Dialer) -> [u64; 2] {
    let text = render(std::slice::from_ref(&client.metrics), &[]);
    ["full", "resumed"].map(|kind| {
        let line = format!("weft_tls_handshakes_total{{direction=\"outbound\",kind=\"{kind}\"}} ");
        text.lines().find_map(|found| found.strip_prefix(&line)).map_or(0, |count| count.parse().unwrap())
    })
}

/// A client that keeps what it gets and looks at no date.
async fn careless(config: Arc<ClientConfig>, address: SocketAddr) -> bool {
    let name = ServerName::IpAddress(address.ip().into());
    let tcp = TcpStream::connect(address).await.unwrap();
    let Ok(mut stream) = TlsConnector::from(config).connect(name, tcp).await else { return false };
    timeout(WAIT, stream.read_u8()).await.expect("a byte or the end").is_ok()
}

fn kept(client: &Dialer) -> String {
    format!("{:?}", client.tls.load_full().unwrap().sessions)
}

fn both(kind: &'static str) -> (Result<&'static str, String>, Result<String, String>) {
    (Ok(kind), Ok(format!("{kind} order")))
}

/// Runs the tests below with a client of either record layer. The server's is tokio-rustls.
macro_rules! with_both {
    ($($name:ident)*) => {
        mod weft_records {
            $(#[tokio::test] async fn $name() { super::$name(super::TlsRecords::Weft).await; })*
        }
        mod rustls_records {
            $(#[tokio::test] async fn $name() { super::$name(super::TlsRecords::Rustls).await; })*
        }
    };
}
with_both! {
    a_second_connection_resumes_with_the_same_identity_on_both_sides
    a_client_keeps_so_many_sessions_for_a_peer
    another_identity_at_the_same_address_is_offered_no_session_and_refused
    a_client_whose_root_left_the_servers_trust_does_not_resume
    a_server_whose_root_left_the_clients_trust_is_offered_nothing
    a_new_certificate_of_either_side_begins_anew
    what_a_connection_of_an_old_generation_brings_is_not_kept
    a_client_whose_certificate_has_ended_does_not_resume
    a_server_whose_certificate_has_ended_is_offered_nothing
    a_resumed_connection_takes_no_early_data
    hostile_tickets_lead_to_a_full_handshake
    a_ticket_without_its_secret_is_refused
}

async fn a_second_connection_resumes_with_the_same_identity_on_both_sides(records: TlsRecords) {
    let mesh = Authority::new();
    let mut server = Server::start(&mesh.tls("product", records, provider())).await;
    let client = dialer(mesh.tls("order", records, provider()));
    assert_eq!(server.call(&client, "product").await, both("full"));
    for _ in 0..3 {
        assert_eq!(server.call(&client, "product").await, both("resumed"));
    }
    assert_eq!(kept(&client), "Sessions(1)", "each ticket is used once and brings another");
}

async fn a_client_keeps_so_many_sessions_for_a_peer(records: TlsRecords) {
    let mesh = Authority::new();
    let mut server = Server::start(&mesh.tls("product", records, provider())).await;
    let client = dialer(mesh.tls("order", records, provider()));
    let mut open = Vec::new();
    for _ in 0..12 {
        open.push(client.handshake(server.address, &identity("product"), &[ALPN_TCP], WAIT).await.unwrap().0);
        assert_eq!(server.seen().await.unwrap().0, "full", "nothing was read, so there is no ticket");
    }
    for stream in &mut open {
        timeout(WAIT, stream.read_u8()).await.unwrap().unwrap();
    }
    assert_eq!(kept(&client), "Sessions(8)");
}

async fn another_identity_at_the_same_address_is_offered_no_session_and_refused(records: TlsRecords) {
    let mesh = Authority::new();
    let mut server = Server::start(&mesh.tls("product", records, provider())).await;
    let client = dialer(mesh.tls("order", records, provider()));
    assert_eq!(server.call(&client, "product").await, both("full"));
    let (called, seen) = server.call(&client, "billing").await;
    let called = called.unwrap_err();
    assert!(called.contains("expected") && called.contains("sa/billing") && called.contains("sa/product"), "{called}");
    assert_eq!(seen, Ok("full order".to_owned()));
    assert_eq!(kept(&client), "Sessions(1)", "the refused connection left nothing");
    // Another server at the address, with the identity that is expected now: nothing of the first is offered to it.
    server.config.store(mesh.tls("billing", records, provider()).server.clone());
    assert_eq!(server.call(&client, "billing").await, both("full"));
    assert_eq!(server.call(&client, "billing").await, both("resumed"));
    let (called, seen) = server.call(&client, "product").await;
    assert!(called.unwrap_err().contains("sa/billing"));
    assert_eq!(seen, Ok("full order".to_owned()), "a ticket of the first server opens nothing here");
}

async fn a_client_whose_root_left_the_servers_trust_does_not_resume(records: TlsRecords) {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let server_svid = |roots: &[&Authority]| MeshTls::new(ours.svid("product", LONG, roots), records).unwrap();
    let mut server = Server::start(&server_svid(&[&ours, &theirs])).await;
    let client = dialer(MeshTls::new(theirs.svid("order", LONG, &[&ours]), records).unwrap());
    assert_eq!(server.call(&client, "product").await, both("full"));
    assert_eq!(server.call(&client, "product").await, both("resumed"));
    server.config.store(server_svid(&[&ours]).server.clone());
    let (called, seen) = server.call(&client, "product").await;
    assert!(seen.as_ref().is_err_and(|seen| seen.contains("UnknownIssuer")), "{seen:?}");
    assert!(called.is_err(), "{called:?}");
}

async fn a_server_whose_root_left_the_clients_trust_is_offered_nothing(records: TlsRecords) {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let svid = |roots: &[&Authority]| MeshTls::new(ours.svid("order", LONG, roots), records).unwrap();
    let mut server = Server::start(&MeshTls::new(theirs.svid("product", LONG, &[&ours]), records).unwrap()).await;
    let client = dialer(svid(&[&ours, &theirs]));
    assert_eq!(server.call(&client, "product").await, both("full"));
    assert_eq!(server.call(&client, "product").await, both("resumed"));
    client.tls.store(Some(Arc::new(svid(&[&ours]))));
    let (called, _) = server.call(&client, "product").await;
    assert!(called.as_ref().is_err_and(|called| called.contains("UnknownIssuer")), "{called:?}");
}

async fn a_new_certificate_of_either_side_begins_anew(records: TlsRecords) {
    let mesh = Authority::new();
    let mut server = Server::start(&mesh.tls("product", records, provider())).await;
    let client = dialer(mesh.tls("order", records, provider()));
    for side in ["none", "server", "client"] {
        match side {
            "server" => server.config.store(mesh.tls("product", records, provider()).server.clone()),
            "client" => client.tls.store(Some(Arc::new(mesh.tls("order", records, provider())))),
            _ => {}
        }
        assert_eq!(server.call(&client, "product").await, both("full"), "{side}");
        assert_eq!(server.call(&client, "product").await, both("resumed"), "{side}");
    }
}

async fn what_a_connection_of_an_old_generation_brings_is_not_kept(records: TlsRecords) {
    let mesh = Authority::new();
    let server = Server::start(&mesh.tls("product", records, provider())).await;
    let client = dialer(mesh.tls("order", records, provider()));
    let (mut old, _) = client.handshake(server.address, &identity("product"), &[ALPN_TCP], WAIT).await.unwrap();
    client.tls.store(Some(Arc::new(mesh.tls("order", records, provider()))));
    timeout(WAIT, old.read_u8()).await.unwrap().unwrap();
    assert_eq!(kept(&client), "Sessions(0)");
}

/// Waits until a certificate that was made before with a [`SHORT`] life has ended.
async fn expiry(not_after: i64) {
    while unix_now() <= not_after {
        sleep(Duration::from_millis(50)).await;
    }
}

async fn a_client_whose_certificate_has_ended_does_not_resume(records: TlsRecords) {
    let mesh = Authority::new();
    for name in ["leaf", "intermediate"] {
        let svid = match name {
            "leaf" => mesh.svid("order", SHORT, &[&mesh]),
            _ => mesh.below(SHORT).svid("order", LONG, &[&mesh]),
        };
        let end = unix_now() + i64::try_from(SHORT.as_secs()).unwrap();
        let mut server = Server::start(&mesh.tls("product", records, provider())).await;
        let client = dialer(MeshTls::new(svid, records).unwrap());
        let mut config = client.tls.load_full().unwrap().client.clone();
        config.alpn_protocols = vec![ALPN_TCP.to_vec()];
        config.resumption = Resumption::in_memory_sessions(8);
        let config = Arc::new(config);
        assert_eq!(server.call(&client, "product").await, both("full"), "{name}");
        assert!(careless(config.clone(), server.address).await, "{name}");
        assert_eq!(server.seen().await.map(|(kind, _)| kind), Ok("full"), "{name}");
        assert!(careless(config.clone(), server.address).await, "{name}");
        assert_eq!(server.seen().await.map(|(kind, _)| kind), Ok("resumed"), "{name}");
        expiry(end).await;
        // Ours offers nothing; one that offers what it has is refused all the same.
        let (called, seen) = server.call(&client, "product").await;
        assert!(called.is_err() && seen.as_ref().is_err_and(|seen| seen.contains("expired")), "{name}: {seen:?}");
        assert!(!careless(config, server.address).await, "{name}");
        let resumed = "resumed: a certificate of the chain is outside its dates";
        assert_eq!(server.seen().await, Err(resumed.to_owned()), "{name}");
    }
}

async fn a_server_whose_certificate_has_ended_is_offered_nothing(records: TlsRecords) {
    let mesh = Authority::new();
    let tls = MeshTls::new(mesh.svid("product", SHORT, &[&mesh]), records).unwrap();
    let mut server = Server::start(&tls).await;
    // Its tickets do not end with its certificate.
    let mut config = ServerConfig::clone(&tls.server);
    config.ticketer = Ticketer::new().unwrap();
    server.config.store(Arc::new(config));
    let client = dialer(mesh.tls("order", records, provider()));
    assert_eq!(server.call(&client, "product").await, both("full"));
    assert_eq!(server.call(&client, "product").await, both("resumed"));
    expiry(tls.not_after).await;
    let (called, _) = server.call(&client, "product").await;
    assert!(called.as_ref().is_err_and(|called| called.contains("Expired")), "{called:?}");
}

async fn a_resumed_connection_takes_no_early_data(records: TlsRecords) {
    let mesh = Authority::new();
    let mut server = Server::start(&mesh.tls("product", records, provider())).await;
    let tls = mesh.tls("order", records, provider());
    assert!(!tls.client.enable_early_data, "ours sends none");
    let mut config = tls.client.clone();
    config.alpn_protocols = vec![ALPN_TCP.to_vec()];
    config.resumption = Resumption::in_memory_sessions(8);
    config.enable_early_data = true;
    let config = Arc::new(config);
    for kind in ["full", "resumed"] {
        assert!(careless(config.clone(), server.address).await);
        assert_eq!(server.seen().await.map(|(kind, _)| kind), Ok(kind));
    }
    let name = ServerName::IpAddress(server.address.ip().into());
    let mut next = ClientConnection::new(config, name).unwrap();
    assert!(next.early_data().is_none(), "the ticket allows none");
}

/// Makes something else of a ticket.
type Mangle = fn(Vec<u8>) -> Vec<u8>;

/// Gives out something else than the ticket that was made.
#[derive(Debug)]
struct Mangled(Arc<dyn ProducesTickets>, Mangle);

impl ProducesTickets for Mangled {
    fn enabled(&self) -> bool {
        true
    }
    fn lifetime(&self) -> u32 {
        self.0.lifetime()
    }
    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.0.encrypt(plain).map(self.1)
    }
    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        self.0.decrypt(cipher)
    }
}

async fn hostile_tickets_lead_to_a_full_handshake(records: TlsRecords) {
    let mesh = Authority::new();
    let tls = mesh.tls("product", records, provider());
    let mut server = Server::start(&tls).await;
    let mangles: [(&str, Mangle); 6] = [
        ("one byte", |_| vec![0]),
        ("truncated", |ticket| ticket[..ticket.len() / 2].to_vec()),
        ("too long", |ticket| [ticket, vec![0; 1000]].concat()),
        ("another bit", |mut ticket| {
            let middle = ticket.len() / 2;
            ticket[middle] ^= 1;
            ticket
        }),
        ("random", |ticket| ticket.iter().map(|_| fastrand::u8(..)).collect()),
        ("large", |_| vec![7; 9000]),
    ];
    for (name, mangle) in mangles {
        let mut config = ServerConfig::clone(&tls.server);
        config.ticketer = Arc::new(Mangled(tls.server.ticketer.clone(), mangle));
        server.config.store(Arc::new(config));
        let client = dialer(mesh.tls("order", records, provider()));
        for _ in 0..2 {
            assert_eq!(server.call(&client, "product").await, both("full"), "{name}");
        }
        assert_eq!(kept(&client), "Sessions(1)", "{name}: a ticket was there to be offered");
    }
}

async fn a_ticket_without_its_secret_is_refused(records: TlsRecords) {
    static STOLEN: [parking_lot::Mutex<Option<Vec<u8>>>; 2] = [const { parking_lot::Mutex::new(None) }; 2];
    let mesh = Authority::new();
    let tls = mesh.tls("product", records, provider());
    let mut server = Server::start(&tls).await;
    let mut config = ServerConfig::clone(&tls.server);
    // Everybody gets the ticket that the first one got.
    let steal: Mangle = match records {
        TlsRecords::Weft => |ticket| STOLEN[0].lock().get_or_insert(ticket).clone(),
        TlsRecords::Rustls => |ticket| STOLEN[1].lock().get_or_insert(ticket).clone(),
    };
    config.ticketer = Arc::new(Mangled(tls.server.ticketer.clone(), steal));
    server.config.store(Arc::new(config));
    let owner = dialer(mesh.tls("owner", records, provider()));
    assert_eq!(server.call(&owner, "product").await.1, Ok("full owner".to_owned()));
    let thief = dialer(mesh.tls("order", records, provider()));
    assert_eq!(server.call(&thief, "product").await, both("full"));
    let (called, seen) = server.call(&thief, "product").await;
    assert!(called.is_err() && seen.as_ref().is_err_and(|seen| seen.contains("IncorrectBinder")), "{seen:?}");
    assert_eq!(server.call(&thief, "product").await, both("full"), "and the next one is without it");
}
