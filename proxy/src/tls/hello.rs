//! Distinguishes mesh TLS from the application's own TLS by the ClientHello, without consuming it.
//! Shape: the bytes read so far in, a [`Hello`] out. rustls parses.

use rustls::server::Acceptor;

use super::ALPNS;

/// The first byte of a TLS handshake record (RFC 8446 §5.1).
pub(crate) const HANDSHAKE: u8 = 0x16;
/// Largest ClientHello looked at, in bytes; a larger one is the application's own.
pub const MAX_HELLO: usize = 16 * 1024;

/// Verdict on a ClientHello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hello {
    /// More bytes are needed.
    Partial,
    /// A proxy of the mesh.
    Mesh,
    /// The application's own TLS.
    Application,
    /// Not TLS.
    Malformed,
}

/// Bytes of the first record that have not arrived; 0 if it is complete, or no record with a ClientHello.
fn missing(bytes: &[u8]) -> usize {
    match bytes {
        // Type, legacy version, length; then the type of the message (RFC 8446 §5.1, §4).
        [HANDSHAKE, 3, _, high, low, rest @ ..] if matches!(rest.first(), None | Some(1)) => {
            let length = usize::from(u16::from_be_bytes([*high, *low]));
            if length > MAX_HELLO { 0 } else { length.saturating_sub(rest.len()) }
        }
        _ => 0,
    }
}

/// Classifies the first bytes of a connection.
pub(crate) fn sniff(bytes: &[u8]) -> Hello {
    // Parsing starts when the record is complete, not with each part of it.
    if missing(bytes) > 0 && bytes.len() < MAX_HELLO {
        return Hello::Partial;
    }
    let mut acceptor = Acceptor::default();
    let mut rest = bytes;
    while !rest.is_empty() {
        match acceptor.read_tls(&mut rest) {
            Ok(0) => break,
            Ok(_) => {}
            Err(_full) => return Hello::Malformed,
        }
        match acceptor.accept() {
            Ok(None) => {}
            Ok(Some(accepted)) => {
                let ours = |protocols: rustls::server::ClientHello<'_>| {
                    protocols.alpn().is_some_and(|mut names| names.any(|name| ALPNS.contains(&name)))
                };
                return if ours(accepted.client_hello()) { Hello::Mesh } else { Hello::Application };
            }
            Err(_refused) => return Hello::Malformed,
        }
    }
    if bytes.len() >= MAX_HELLO { Hello::Application } else { Hello::Partial }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use rustls::{ClientConfig, ClientConnection, RootCertStore};

    use super::*;

    fn hello(alpn: &[&[u8]]) -> Vec<u8> {
        let mut config = ClientConfig::builder_with_provider(super::super::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        let mut client = ClientConnection::new(Arc::new(config), "example.com".try_into().unwrap()).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn mesh_and_application_tls_are_told_apart_by_alpn() {
        assert_eq!(sniff(&hello(&[b"weft-h2"])), Hello::Mesh);
        assert_eq!(sniff(&hello(&[b"weft-tcp"])), Hello::Mesh);
        assert_eq!(sniff(&hello(&[b"weft-tcp-2"])), Hello::Mesh);
        assert_eq!(sniff(&hello(&[b"h2", b"http/1.1"])), Hello::Application);
        assert_eq!(sniff(&hello(&[])), Hello::Application);
    }

    #[test]
    fn every_part_of_a_hello_asks_for_more() {
        let bytes = hello(&[b"weft-h2"]);
        for end in 1..bytes.len() {
            assert_eq!(sniff(&bytes[..end]), Hello::Partial, "{end}");
        }
    }

    #[test]
    fn what_is_missing_of_a_hello_is_known_from_its_head_on() {
        let bytes = hello(&[b"weft-h2"]);
        for end in 0..=bytes.len() {
            assert_eq!(missing(&bytes[..end]), if end < 5 { 0 } else { bytes.len() - end }, "{end}");
        }
    }

    #[test]
    fn other_bytes_are_malformed() {
        for bytes in [&b"\x16\x03\x01\x00\x05hello and more"[..], b"\x16\x03\x01\xff\xff\x01"] {
            assert_eq!((missing(bytes), sniff(bytes)), (0, Hello::Malformed), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            sniff(&bytes);
        }
    }
}
