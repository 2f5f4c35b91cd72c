//! Random bytes for keys, tokens and serial numbers, and digests.

use rustls::crypto::aws_lc_rs;

/// The system has no random numbers.
#[derive(Debug, thiserror::Error)]
#[error("the system has no random numbers")]
pub struct RandomError;

/// SHA-256.
pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    use sha2::Digest;
    sha2::Sha256::digest(bytes).into()
}

/// `N` random bytes, fit for secrets.
pub fn bytes<const N: usize>() -> Result<[u8; N], RandomError> {
    let mut bytes = [0; N];
    aws_lc_rs::default_provider().secure_random.fill(&mut bytes).map_err(|_cause| RandomError)?;
    Ok(bytes)
}

/// `N` random bytes in lower-case hexadecimal.
pub fn hex<const N: usize>() -> Result<String, RandomError> {
    Ok(data_encoding::HEXLOWER.encode(&bytes::<N>()?))
}

/// A random (version 4) UUID (RFC 9562 §5.4).
pub fn uuid() -> Result<String, RandomError> {
    let value = u128::from_be_bytes(bytes()?);
    let value = (value & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
    let text = format!("{value:032x}");
    let part = |range| text.get(range).unwrap_or_default();
    Ok([part(0..8), part(8..12), part(12..16), part(16..20), part(20..32)].join("-"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_uuid_has_its_version_and_variant() {
        let uuid = super::uuid().unwrap();
        assert_eq!((uuid.len(), &uuid[14..15]), (36, "4"), "{uuid}");
        assert!("89ab".contains(&uuid[19..20]), "{uuid}");
        assert_ne!(uuid, super::uuid().unwrap());
    }
}
