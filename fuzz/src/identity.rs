//! SPIFFE IDs and certificates. The first byte of the input chooses: `t` the text of an ID, `c` a certificate in DER.
//! Oracles: the grammar of SPIFFE-ID, read naively; the URI names that webpki, another reader, finds in the certificate.
//! Spec: SPIFFE-ID §2, X.509-SVID §2, §4.

use webpki::EndEntityCert;
use weft_core::identity::{Identity, MAX_LENGTH, MAX_TRUST_DOMAIN_LENGTH, TrustDomain};
use weft_proxy::fuzzing;

use crate::must;

/// Runs the target.
pub fn run(bytes: &[u8]) {
    match bytes.split_first() {
        Some((b't', text)) => {
            if let Ok(text) = std::str::from_utf8(text) {
                id(text);
            }
        }
        Some((b'c', der)) => certificate(der),
        _ => {}
    }
}

fn id(text: &str) {
    let parsed = Identity::parse(text);
    assert_eq!(parsed.is_ok(), is_spiffe_id(text), "{parsed:?}");
    let Ok(identity) = parsed else { return };
    assert_eq!(identity.as_str(), text, "an ID was changed");
    let (domain, path) = text.trim_start_matches("spiffe://").split_once('/').unwrap_or_default();
    assert_eq!(identity.trust_domain(), domain);
    // Weft's own form is told apart, and only that form: policies by namespace rest on it.
    let expected = match path.split('/').collect::<Vec<_>>()[..] {
        ["ns", namespace, "sa", account] => (Some(namespace), Some(account)),
        _ => (None, None),
    };
    assert_eq!((identity.namespace(), identity.service_account()), expected);
    if let (Some(namespace), Some(account)) = expected {
        let domain = must(TrustDomain::parse(domain), "the trust domain of an ID");
        assert_eq!(Identity::new(&domain, namespace, account), Ok(identity), "made of its parts it is another");
    }
}

/// SPIFFE-ID §2.1 to §2.3, with a path.
fn is_spiffe_id(text: &str) -> bool {
    let Some((domain, path)) = text.strip_prefix("spiffe://").and_then(|rest| rest.split_once('/')) else {
        return false;
    };
    let domain_ok = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_".contains(&byte);
    let path_ok = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    text.len() <= MAX_LENGTH
        && (1..=MAX_TRUST_DOMAIN_LENGTH).contains(&domain.len())
        && domain.bytes().all(domain_ok)
        && path.split('/').all(|segment| !["", ".", ".."].contains(&segment) && segment.bytes().all(path_ok))
}

fn certificate(der: &[u8]) {
    let Some(identity) = fuzzing::leaf(der) else { return };
    assert!(is_spiffe_id(identity.as_str()), "{} was accepted", identity);
    // A handshake reads a certificate with webpki first; what webpki refuses never gets here.
    let der = rustls::pki_types::CertificateDer::from(der);
    let Ok(other) = EndEntityCert::try_from(&der) else { return };
    let names: Vec<&str> = other.valid_uri_names().collect();
    // webpki stops at a name in an encoding that it does not take, such as a primitive x400Address.
    assert!(names.is_empty() || names == [identity.as_str()], "another reader finds {names:?}, ours {identity}");
}
