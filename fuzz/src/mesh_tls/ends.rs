//! Ends of mesh TLS whose handshakes can be repeated: two that begin with the same numbers agree on the same keys with one peer,
//! so that one stream of records can be given to both. The key exchange is a constant and signatures are Ed25519, which has no
//! nonce. Never a provider for anything else.

use std::{cell::Cell, sync::Arc};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ED25519,
    SanType,
};
use rustls::{
    Error, NamedGroup,
    crypto::{ActiveKeyExchange, CryptoProvider, GetRandomFailed, SecureRandom, SharedSecret, SupportedKxGroup},
    pki_types::PrivateKeyDer,
};
use weft_core::api::proxy_config::TlsRecords;
use weft_proxy::{
    fuzzing::Mesh,
    tls::{Svid, provider},
};

use crate::must;

/// Public key and shared secret of every exchange.
const KEY: [u8; 32] = [7; 32];

/// The ends of the runs; made once a thread, as certificates cost time.
pub(super) struct Ends {
    /// Sends what is mutated; its numbers are random.
    pub(super) sender: Mesh,
    /// Receives, by our own records and by rustls'; two of their handshakes are the same if [`begin`] comes before each.
    pub(super) receivers: [Mesh; 2],
}

impl Ends {
    pub(super) fn new() -> Self {
        let authority = must(KeyPair::generate_for(&PKCS_ED25519), "a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let root = must(params.self_signed(&authority), "a root");
        let issuer = Issuer::new(params, authority);
        let key = must(KeyPair::generate_for(&PKCS_ED25519), "a key");
        let end = |provider: CryptoProvider, records| {
            let mut params = CertificateParams::default();
            params.distinguished_name = DistinguishedName::new();
            let id = must("spiffe://weft.local/ns/fuzz/sa/end".try_into(), "a URI");
            params.subject_alt_names = vec![SanType::URI(id)];
            let leaf = must(params.signed_by(&key, &issuer), "a certificate");
            let key = must(PrivateKeyDer::try_from(key.serialize_der()), "a key in PKCS #8");
            let svid = must(Svid::new(vec![leaf.der().clone()], key, vec![root.der().clone()]), "an SVID");
            must(Mesh::new(svid, records, Arc::new(provider)), "an end")
        };
        let sender = CryptoProvider { kx_groups: vec![&Constant], ..(*provider()).clone() };
        let receiver = CryptoProvider { secure_random: &Repeated, ..sender.clone() };
        let receivers = [TlsRecords::Weft, TlsRecords::Rustls].map(|records| end(receiver.clone(), records));
        Self { sender: end(sender, TlsRecords::Weft), receivers }
    }
}

thread_local! {
    static NEXT: Cell<u8> = const { Cell::new(0) };
}

/// The next handshake of a receiver begins with the first number.
pub(super) fn begin() {
    NEXT.set(0);
}

/// Numbers that repeat from [`begin`] on.
#[derive(Debug)]
struct Repeated;

impl SecureRandom for Repeated {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), GetRandomFailed> {
        let number = NEXT.get().wrapping_add(1);
        NEXT.set(number);
        bytes.fill(number);
        Ok(())
    }
}

/// A key exchange without a secret.
#[derive(Debug)]
struct Constant;

impl SupportedKxGroup for Constant {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, Error> {
        Ok(Box::new(Self))
    }

    fn name(&self) -> NamedGroup {
        NamedGroup::X25519
    }
}

impl ActiveKeyExchange for Constant {
    fn complete(self: Box<Self>, _peer: &[u8]) -> Result<SharedSecret, Error> {
        Ok(SharedSecret::from(&KEY[..]))
    }

    fn pub_key(&self) -> &[u8] {
        &KEY
    }

    fn group(&self) -> NamedGroup {
        NamedGroup::X25519
    }
}
