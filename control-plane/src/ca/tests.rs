//! The authority against abuse (BATTERY.md G2) and its own promises (E1: what a good certificate looks like).

use rcgen::{CustomExtension, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256, RsaKeySize};
use x509_parser::prelude::ParsedExtension;

use super::*;

fn domain() -> TrustDomain {
    TrustDomain::parse("weft.local").unwrap()
}

fn authority() -> (tempfile::TempDir, Authority) {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::open(dir.path(), &domain(), SystemTime::now()).unwrap();
    (dir, authority)
}

fn order() -> Identity {
    Identity::new(&domain(), "shop", "order").unwrap()
}

fn request(key: &KeyPair, change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
    let mut params = CertificateParams::default();
    change(&mut params);
    params.serialize_request(key).unwrap().der().to_vec()
}

#[test]
fn the_root_is_made_once_kept_private_and_reloaded() {
    use std::os::unix::fs::PermissionsExt;
    let (dir, first) = authority();
    let mode = std::fs::metadata(dir.path().join("ca.pem")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let second = Authority::open(dir.path(), &domain(), SystemTime::now()).unwrap();
    assert_eq!(first.root_hash(), second.root_hash());
    assert_eq!(std::fs::read_to_string(dir.path().join("root.pem")).unwrap(), second.root_pem());
    let years = second.expires().duration_since(SystemTime::now()).unwrap().as_secs() / 86_400 / 365;
    assert!((9..=10).contains(&years));
}

#[test]
fn a_root_of_another_mesh_or_a_damaged_or_expired_one_is_refused_with_the_reason() {
    let (dir, _) = authority();
    let open = |domain: &str, now| match Authority::open(dir.path(), &TrustDomain::parse(domain).unwrap(), now) {
        Ok(_) => panic!("opened"),
        Err(error) => error.to_string(),
    };
    let other = open("other.org", SystemTime::now());
    assert!(other.contains("spiffe://weft.local") && other.contains("--trust-domain"), "{other}");
    let later = SystemTime::now() + ROOT_TTL + Duration::from_secs(1);
    assert_eq!(open("weft.local", later), "the root certificate has expired");
    let path = dir.path().join("ca.pem");
    let good = std::fs::read_to_string(&path).unwrap();
    for bad in ["", "hello", &good[..good.len() / 2], good.split_inclusive("END PRIVATE KEY-----\n").next().unwrap()] {
        std::fs::write(&path, bad).unwrap();
        let error = open("weft.local", SystemTime::now());
        assert!(error.starts_with(path.to_str().unwrap()), "{error}");
    }
    let (another, _) = authority();
    let foreign = std::fs::read_to_string(another.path().join("ca.pem")).unwrap();
    let at = good.find("-----BEGIN CERTIFICATE").unwrap();
    let mixed = format!("{}{}", &good[..at], &foreign[foreign.find("-----BEGIN CERTIFICATE").unwrap()..]);
    std::fs::write(&path, mixed).unwrap();
    assert!(open("weft.local", SystemTime::now()).contains("do not belong together"));
}

#[test]
fn a_certificate_has_the_proven_identity_whatever_the_request_says() {
    let (_dir, authority) = authority();
    let key = KeyPair::generate().unwrap();
    let greedy = request(&key, |params| {
        params.subject_alt_names = vec![
            SanType::URI("spiffe://weft.local/ns/weft-system/sa/control-plane".try_into().unwrap()),
            SanType::URI("spiffe://weft.local/ns/shop/sa/payment".try_into().unwrap()),
            SanType::DnsName("payment.shop".try_into().unwrap()),
            SanType::IpAddress("10.0.0.1".parse().unwrap()),
        ];
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning, ExtendedKeyUsagePurpose::Any];
        params.custom_extensions = vec![CustomExtension::from_oid_content(&[2, 5, 29, 24], vec![5, 0])];
        params.not_after = SystemTime::now().checked_add(ROOT_TTL).unwrap().into();
    });
    let now = SystemTime::now();
    let ttl = Duration::from_secs(86_400);
    let requested = RequestedKey::from_csr(&greedy).unwrap();
    let issued = authority.issue(&requested, &order(), ttl, now).unwrap();
    let (rest, leaf) = X509Certificate::from_der(&issued.certificate).unwrap();
    assert!(rest.is_empty());
    assert_eq!(spiffe_id(&leaf), Some(order()));
    assert_eq!(leaf.subject_alternative_name().unwrap().unwrap().value.general_names.len(), 1);
    assert!(!leaf.is_ca());
    assert!(leaf.basic_constraints().unwrap().is_some_and(|c| c.critical));
    let usage = leaf.key_usage().unwrap().unwrap();
    assert!(
        usage.critical && usage.value.digital_signature() && !usage.value.key_cert_sign() && !usage.value.crl_sign()
    );
    let purposes = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(purposes.client_auth && purposes.server_auth && !purposes.any && !purposes.code_signing);
    let life = leaf.validity().not_after.timestamp() - leaf.validity().not_before.timestamp();
    assert_eq!(life, 86_400 + 60);
    assert_eq!(leaf.public_key().raw, key.subject_public_key_info());
    assert!(
        !leaf.extensions().iter().any(|e| matches!(e.parsed_extension(), ParsedExtension::UnsupportedExtension { .. }))
    );
    let serial = leaf.raw_serial();
    assert!(serial.len() == 16 && serial[0] < 0x80);
    leaf.verify_signature(Some(&X509Certificate::from_der(authority.root()).unwrap().1.tbs_certificate.subject_pki))
        .unwrap();
    let again = authority.issue(&requested, &order(), ttl, now).unwrap();
    assert_ne!(again.serial, issued.serial);
}

#[test]
fn a_life_time_never_passes_the_roots_end() {
    let (_dir, authority) = authority();
    let key = RequestedKey::from_csr(&request(&KeyPair::generate().unwrap(), |_| {})).unwrap();
    let soon = authority.expires() - Duration::from_secs(30);
    let issued = authority.issue(&key, &order(), Duration::from_secs(86_400), soon).unwrap();
    assert_eq!(issued.expires, authority.expires());
    let after = authority.expires() + Duration::from_secs(1);
    assert!(matches!(authority.issue(&key, &order(), Duration::from_secs(1), after), Err(CaError::Expired)));
}

#[test]
fn strong_keys_of_every_kind_are_accepted() {
    let (_dir, authority) = authority();
    let keys = [
        KeyPair::generate().unwrap(),
        KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap(),
        KeyPair::generate_for(&PKCS_ED25519).unwrap(),
        KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap(),
    ];
    for key in keys {
        let requested = RequestedKey::from_csr(&request(&key, |_| {})).unwrap();
        let issued = authority.issue(&requested, &order(), Duration::from_secs(60), SystemTime::now()).unwrap();
        let (_, leaf) = X509Certificate::from_der(&issued.certificate).unwrap();
        assert_eq!(leaf.public_key().raw, key.subject_public_key_info());
    }
}

#[test]
fn bad_requests_are_refused_with_the_reason() {
    let good = request(&KeyPair::generate().unwrap(), |_| {});
    let mut wrong_signature = good.clone();
    *wrong_signature.last_mut().unwrap() ^= 1;
    let mut wrong_key = good.clone();
    let at = good.windows(3).position(|w| w == [0x42, 0x00, 0x04]).unwrap() + 10;
    wrong_key[at] ^= 1;
    let trailing = [good.as_slice(), b"xx"].concat();
    assert_eq!(RequestedKey::from_csr(&wrong_signature).unwrap_err(), CsrError::Signature);
    assert_eq!(RequestedKey::from_csr(&wrong_key).unwrap_err(), CsrError::Signature);
    assert_eq!(RequestedKey::from_csr(&trailing).unwrap_err(), CsrError::Trailing(2));
    assert_eq!(RequestedKey::from_csr(&[]).unwrap_err(), CsrError::Empty);
    assert_eq!(RequestedKey::from_csr(&vec![0x30; 1 << 20]).unwrap_err(), CsrError::TooLong(1 << 20));
    assert_eq!(RequestedKey::from_csr(b"not DER").unwrap_err(), CsrError::Malformed);
    assert_eq!(RequestedKey::from_csr(&good[..good.len() - 1]).unwrap_err(), CsrError::Malformed);
    let weak = include_bytes!("testdata/rsa1024.der");
    assert_eq!(RequestedKey::from_csr(weak).unwrap_err(), CsrError::RsaBits(1024));
    let exponent = include_bytes!("testdata/rsa2048-e3.der");
    assert_eq!(RequestedKey::from_csr(exponent).unwrap_err(), CsrError::RsaExponent);
    let sha1 = include_bytes!("testdata/rsa2048-sha1.der");
    assert!(matches!(RequestedKey::from_csr(sha1), Err(CsrError::SignatureAlgorithm(_))));
    let dsa = include_bytes!("testdata/dsa.der");
    assert!(RequestedKey::from_csr(dsa).is_err());
    let curve = include_bytes!("testdata/secp256k1.der");
    assert!(RequestedKey::from_csr(curve).is_err());
}

#[test]
fn ten_thousand_broken_requests_hurt_nothing() {
    let mut random = fastrand::Rng::with_seed(1);
    let good = request(&KeyPair::generate().unwrap(), |_| {});
    let key = RequestedKey::from_csr(&good).unwrap().subject_public_key_info();
    for _ in 0..10_000 {
        let mut der = good.clone();
        for _ in 0..random.usize(1..8) {
            let at = random.usize(..der.len());
            match random.u8(..3) {
                0 => der[at] = random.u8(..),
                1 => drop(der.remove(at)),
                _ => der.insert(at, random.u8(..)),
            }
        }
        // A change of what is not signed may go unnoticed, but never gives another key.
        if let Ok(accepted) = RequestedKey::from_csr(&der) {
            assert_eq!(accepted.subject_public_key_info(), key);
        }
    }
}
