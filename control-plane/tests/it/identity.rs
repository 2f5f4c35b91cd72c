//! Certificates: first contact, renewal, and everything that must not get one.

use std::time::{Duration, SystemTime};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use rustls_pki_types::CertificateDer;
use serde_json::json;
use sha2::{Digest, Sha256};
use tonic::Code;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::harness::{Mesh, Svid, key_and_csr};

fn uris(certificate: &CertificateDer<'_>) -> Vec<String> {
    let (_, certificate) = X509Certificate::from_der(certificate).unwrap();
    let names = certificate.subject_alternative_name().unwrap().unwrap().value.general_names.clone();
    names
        .into_iter()
        .map(|name| if let GeneralName::URI(uri) = name { uri.to_owned() } else { panic!("{name}") })
        .collect()
}

#[tokio::test]
async fn a_join_token_pins_the_root_and_gives_one_certificate() {
    let mesh = Mesh::start().await;
    let token = mesh.join_token("order", json!({})).await;
    let tls = mesh.tls(mesh.running().addresses().grpc, None, b"h2").await.unwrap();
    let chain = tls.get_ref().1.peer_certificates().unwrap();
    let sent_root = data_encoding::HEXLOWER.encode(&Sha256::digest(chain.last().unwrap()));
    assert_eq!((chain.len(), token.rsplit('.').next().unwrap()), (2, sent_root.as_str()));
    let (_, csr) = key_and_csr();
    let issued = mesh.issue(None, csr.clone(), &token).await.unwrap();
    let leaf = CertificateDer::from(issued.certificate_chain[0].to_vec());
    assert_eq!(uris(&leaf), ["spiffe://weft.local/ns/shop/sa/order"]);
    assert_eq!(issued.trust_bundle, [mesh.root().to_vec()]);
    // The answer was lost: the same key may ask again, no other may.
    let retried = mesh.issue(None, csr, &token).await.unwrap();
    assert_eq!(uris(&CertificateDer::from(retried.certificate_chain[0].to_vec())), uris(&leaf));
    let again = mesh.issue(None, key_and_csr().1, &token).await.unwrap_err();
    assert_eq!((again.code(), again.message()), (Code::Unauthenticated, "join_token: already used"));
}

#[tokio::test]
async fn a_certificate_renews_itself_and_stays_who_it_is() {
    let mesh = Mesh::start_with(&["--svid-ttl", "60s"]).await;
    let first = mesh.svid("order").await;
    let (key, csr) = key_and_csr();
    let issued = mesh.issue(Some(&first), csr, "").await.unwrap();
    let chain = vec![CertificateDer::from(issued.certificate_chain[0].to_vec())];
    assert_eq!(uris(&chain[0]), ["spiffe://weft.local/ns/shop/sa/order"]);
    let (_, leaf) = X509Certificate::from_der(&chain[0]).unwrap();
    let left = leaf.validity().not_after.timestamp() - jiff::Timestamp::now().as_second();
    assert!((50..=60).contains(&left), "{left}");
    let second = Svid { chain, key };
    assert!(mesh.issue(Some(&second), key_and_csr().1, "").await.is_ok());
}

#[tokio::test]
async fn the_root_and_its_certificates_survive_a_restart() {
    let mut mesh = Mesh::start().await;
    let svid = mesh.svid("order").await;
    let token = mesh.join_token("other", json!({})).await;
    let root = mesh.root();
    mesh.restart(&[]).await;
    assert_eq!(mesh.root(), root);
    assert!(mesh.issue(Some(&svid), key_and_csr().1, "").await.is_ok());
    assert!(mesh.issue(None, key_and_csr().1, &token).await.is_ok());
}

#[tokio::test]
async fn no_proof_and_wrong_proof_get_nothing() {
    let mesh = Mesh::start().await;
    let csr = || key_and_csr().1;
    let refused =
        |result: Result<_, tonic::Status>| result.map(|_: weft_proto::weft::v1::IssueResponse| ()).unwrap_err();
    let none = refused(mesh.issue(None, csr(), "").await);
    assert_eq!(none.code(), Code::Unauthenticated);
    assert!(none.message().starts_with("join_token: needed"));
    let long = "x".repeat(5_000);
    let good = mesh.join_token("order", json!({})).await;
    let altered = format!("{}00", &good[..good.len() - 2]);
    for token in ["x", "weft1.a.b.c", mesh.admin.as_str(), long.as_str(), altered.as_str()] {
        let status = refused(mesh.issue(None, csr(), token).await);
        assert_eq!(status.code(), Code::Unauthenticated, "{token:.30}");
        assert!(status.message().starts_with("join_token: "), "{}", status.message());
    }
    let short = mesh.join_token("order", json!({"ttl": "1ms"})).await;
    tokio::time::sleep(Duration::from_millis(5)).await;
    assert!(refused(mesh.issue(None, csr(), &short).await).message().starts_with("join_token: expired"));
    assert!(mesh.issue(None, csr(), &good).await.is_ok(), "failures used nothing up");
}

#[tokio::test]
async fn a_bad_request_is_named_and_uses_the_token_not_up() {
    let mesh = Mesh::start().await;
    let token = mesh.join_token("order", json!({})).await;
    let mut broken = key_and_csr().1;
    *broken.last_mut().unwrap() ^= 1;
    let weak = include_bytes!("../../src/ca/testdata/rsa1024.der").to_vec();
    for csr in [Vec::new(), b"nonsense".to_vec(), broken, vec![0x30; 20_000], weak] {
        let status = mesh.issue(None, csr, &token).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().starts_with("csr: "), "{}", status.message());
    }
    let huge = mesh.issue(None, vec![0x30; 1 << 20], &token).await.unwrap_err();
    assert!(matches!(huge.code(), Code::OutOfRange | Code::ResourceExhausted | Code::InvalidArgument), "{huge}");
    assert!(mesh.issue(None, key_and_csr().1, &token).await.is_ok());
}

#[tokio::test]
async fn only_the_proven_identity_is_certified_whatever_is_asked_for() {
    let mesh = Mesh::start().await;
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![
        SanType::URI("spiffe://weft.local/ns/shop/sa/payment".try_into().unwrap()),
        SanType::DnsName("payment".try_into().unwrap()),
    ];
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let csr = params.serialize_request(&key).unwrap().der().to_vec();
    let svid = mesh.svid("order").await;
    let by_token = mesh.issue(None, csr.clone(), &mesh.join_token("order", json!({})).await).await.unwrap();
    let by_svid = mesh.issue(Some(&svid), csr.clone(), "").await.unwrap();
    for issued in [by_token, by_svid] {
        let leaf = CertificateDer::from(issued.certificate_chain[0].to_vec());
        assert_eq!(uris(&leaf), ["spiffe://weft.local/ns/shop/sa/order"]);
        assert!(!X509Certificate::from_der(&leaf).unwrap().1.is_ca());
    }
    // A token goes before the connection's certificate.
    let other = mesh.issue(Some(&svid), csr, &mesh.join_token("other", json!({})).await).await.unwrap();
    assert_eq!(
        uris(&CertificateDer::from(other.certificate_chain[0].to_vec())),
        ["spiffe://weft.local/ns/shop/sa/other"]
    );
}

/// Signs a certificate with the mesh's own root, which nobody else can.
fn signed(mesh: &Mesh, change: impl FnOnce(&mut CertificateParams)) -> Svid {
    use rustls_pki_types::pem::PemObject;
    let pem = std::fs::read(mesh.dir.path().join("data/ca.pem")).unwrap();
    let key = KeyPair::try_from(&rustls_pki_types::PrivatePkcs8KeyDer::from_pem_slice(&pem).unwrap()).unwrap();
    signed_by(&Issuer::from_ca_cert_der(&mesh.root(), key).unwrap(), change)
}

fn signed_by(issuer: &Issuer<'_, KeyPair>, change: impl FnOnce(&mut CertificateParams)) -> Svid {
    let own = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI("spiffe://weft.local/ns/shop/sa/order".try_into().unwrap())];
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    params.not_before = (SystemTime::now() - Duration::from_secs(3600)).into();
    params.not_after = (SystemTime::now() + Duration::from_secs(3600)).into();
    change(&mut params);
    let certificate = params.signed_by(&own, issuer).unwrap();
    Svid { chain: vec![certificate.der().clone()], key: own.serialize_der() }
}

#[tokio::test]
async fn a_foreign_expired_or_misnamed_certificate_gets_no_connection() {
    let mesh = Mesh::start().await;
    let uri = |text: &str| SanType::URI(text.try_into().unwrap());
    let good = signed(&mesh, |_| {});
    assert!(mesh.issue(Some(&good), key_and_csr().1, "").await.is_ok(), "the table's own control");
    let foreign_key = KeyPair::generate().unwrap();
    let mut foreign = CertificateParams::default();
    foreign.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let foreign = Issuer::new(foreign, foreign_key);
    let now = SystemTime::now();
    let minute = Duration::from_secs(60);
    let table: Vec<(&str, Svid)> = vec![
        ("expired", signed(&mesh, |p| p.not_after = (now - minute).into())),
        ("not yet valid", signed(&mesh, |p| p.not_before = (now + minute).into())),
        ("another root", signed_by(&foreign, |_| {})),
        (
            "another trust domain",
            signed(&mesh, |p| p.subject_alt_names = vec![uri("spiffe://other.org/ns/shop/sa/order")]),
        ),
        ("no name", signed(&mesh, |p| p.subject_alt_names.clear())),
        (
            "a DNS name only",
            signed(&mesh, |p| p.subject_alt_names = vec![SanType::DnsName("order".try_into().unwrap())]),
        ),
        ("two names", signed(&mesh, |p| p.subject_alt_names.push(uri("spiffe://weft.local/ns/shop/sa/b")))),
        ("no SPIFFE ID", signed(&mesh, |p| p.subject_alt_names = vec![uri("https://weft.local/ns/shop/sa/order")])),
        ("upper case", signed(&mesh, |p| p.subject_alt_names = vec![uri("spiffe://WEFT.local/ns/shop/sa/order")])),
        ("an authority", signed(&mesh, |p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained))),
        (
            "for servers only",
            signed(&mesh, |p| p.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth]),
        ),
    ];
    for (what, svid) in table {
        assert!(mesh.issue(Some(&svid), key_and_csr().1, "").await.is_err(), "{what}");
    }
    assert!(mesh.issue(Some(&good), key_and_csr().1, "").await.is_ok(), "and nothing else noticed");
}

#[tokio::test]
async fn one_identity_cannot_ask_without_end() {
    let mesh = Mesh::start().await;
    let svid = mesh.svid("order").await;
    let channel = mesh.grpc(Some(&svid)).await.unwrap();
    let mut client = weft_proto::weft::v1::identity_client::IdentityClient::new(channel);
    let csr = bytes::Bytes::from(key_and_csr().1);
    let mut exhausted = false;
    for _ in 0..1_000 {
        let request = weft_proto::weft::v1::IssueRequest { csr: csr.clone(), ..Default::default() };
        if let Err(status) = client.issue(request).await {
            assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
            exhausted = true;
            break;
        }
    }
    assert!(exhausted);
    let other = mesh.svid("other").await;
    assert!(mesh.issue(Some(&other), key_and_csr().1, "").await.is_ok());
}
