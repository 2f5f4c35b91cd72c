//! The ciphers of records (RFC 8446 §5.2), from the library with the faster code for this processor (docs/adr/0016): AES-GCM from
//! ring on processors with VAES but without AVX-512, for which aws-lc has no code; everything else from aws-lc-rs.

use aws_lc_rs::aead as aws_lc;
use ring::aead as ring;
use rustls::Error;

use super::record::HEADER;

/// Length of a nonce, in bytes.
pub(super) const NONCE: usize = aws_lc::NONCE_LEN;
/// Bytes behind the content: its type and the tag.
pub(super) const TAIL: usize = 1 + 16;

/// A cipher in aws-lc-rs, and in ring where that may be faster.
pub(super) struct Cipher(&'static aws_lc::Algorithm, Option<&'static ring::Algorithm>);

pub(super) static AES_128_GCM: Cipher = Cipher(&aws_lc::AES_128_GCM, Some(&ring::AES_128_GCM));
pub(super) static AES_256_GCM: Cipher = Cipher(&aws_lc::AES_256_GCM, Some(&ring::AES_256_GCM));
pub(super) static CHACHA20_POLY1305: Cipher = Cipher(&aws_lc::CHACHA20_POLY1305, None);

/// A key and its cipher.
pub(super) enum Aead {
    AwsLc(aws_lc::LessSafeKey),
    Ring(Box<ring::LessSafeKey>),
}

/// Whether ring is the faster one for AES-GCM here.
pub(super) fn prefers_ring() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("vaes")
        && is_x86_feature_detected!("vpclmulqdq")
        && is_x86_feature_detected!("avx2")
        && !is_x86_feature_detected!("avx512bw");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

impl Aead {
    /// Errors: the key is not as long as the cipher's.
    pub(super) fn new(cipher: &Cipher, key: &[u8], prefers_ring: bool) -> Result<Self, Error> {
        if let Some(algorithm) = cipher.1.filter(|_| prefers_ring) {
            let key = ring::UnboundKey::new(algorithm, key).map_err(|_unspecified| Error::EncryptError)?;
            return Ok(Self::Ring(Box::new(ring::LessSafeKey::new(key))));
        }
        let key = aws_lc::UnboundKey::new(cipher.0, key).map_err(|_unspecified| Error::EncryptError)?;
        Ok(Self::AwsLc(aws_lc::LessSafeKey::new(key)))
    }

    /// Encrypts `content`, or the beginning of `sealed` in place, with `kind` behind it. `sealed` is [`TAIL`] bytes longer than the
    /// content.
    /// Errors: a length that does not fit.
    pub(super) fn seal(
        &self,
        nonce: [u8; NONCE],
        header: [u8; HEADER],
        content: Option<&[u8]>,
        kind: u8,
        sealed: &mut [u8],
    ) -> Result<(), Error> {
        let length = sealed.len().checked_sub(TAIL).ok_or(Error::EncryptError)?;
        if content.is_some_and(|content| content.len() != length) {
            return Err(Error::EncryptError);
        }
        match self {
            Self::AwsLc(key) => {
                let (nonce, aad) = (aws_lc::Nonce::assume_unique_for_key(nonce), aws_lc::Aad::from(header));
                let (body, tail) = sealed.split_at_mut(length);
                match content {
                    Some(content) => key.seal_out_of_place_scatter(nonce, aad, content, body, &[kind], tail),
                    None => key.seal_in_place_scatter(nonce, aad, body, &[kind], tail),
                }
                .map_err(|_unspecified| Error::EncryptError)
            }
            Self::Ring(key) => {
                let (nonce, aad) = (ring::Nonce::assume_unique_for_key(nonce), ring::Aad::from(header));
                let (inner, place) = sealed.split_at_mut(length + 1);
                let (body, last) = inner.split_at_mut(length);
                if let Some(content) = content {
                    body.copy_from_slice(content);
                }
                last.fill(kind);
                let tag =
                    key.seal_in_place_separate_tag(nonce, aad, inner).map_err(|_unspecified| Error::EncryptError)?;
                place.copy_from_slice(tag.as_ref());
                Ok(())
            }
        }
    }

    /// Decrypts in place. Returns the content, its type and its padding.
    /// Errors: `sealed` is not authentic.
    pub(super) fn open<'a>(
        &self,
        nonce: [u8; NONCE],
        header: [u8; HEADER],
        sealed: &'a mut [u8],
    ) -> Result<&'a mut [u8], Error> {
        match self {
            Self::AwsLc(key) => {
                let (nonce, aad) = (aws_lc::Nonce::assume_unique_for_key(nonce), aws_lc::Aad::from(header));
                key.open_in_place(nonce, aad, sealed).map_err(|_unspecified| Error::DecryptError)
            }
            Self::Ring(key) => {
                let (nonce, aad) = (ring::Nonce::assume_unique_for_key(nonce), ring::Aad::from(header));
                key.open_in_place(nonce, aad, sealed).map_err(|_unspecified| Error::DecryptError)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both of the same key.
    fn pair(cipher: &Cipher) -> [Aead; 2] {
        let key: Vec<u8> = (1..=u8::try_from(cipher.0.key_len()).unwrap()).collect();
        [false, true].map(|prefers_ring| Aead::new(cipher, &key, prefers_ring).unwrap())
    }

    #[test]
    fn both_libraries_make_the_same_of_all_lengths_and_read_each_other() {
        for cipher in [&AES_128_GCM, &AES_256_GCM] {
            let [one, other] = pair(cipher);
            assert!(matches!((&one, &other), (Aead::AwsLc(_), Aead::Ring(_))));
            for length in (0..600).chain([1 << 10, 5_000, (1 << 14) - 1, 1 << 14]) {
                let content: Vec<u8> = (0..length).map(|_| fastrand::u8(..)).collect();
                let (nonce, header) = ([fastrand::u8(..); NONCE], [fastrand::u8(..); 5]);
                let seal = |aead: &Aead, content: Option<&[u8]>, mut place: Vec<u8>| {
                    aead.seal(nonce, header, content, 23, &mut place).unwrap();
                    place
                };
                let sealed = seal(&one, Some(&content), vec![0; length + TAIL]);
                let standing = [&content[..], &[0; TAIL]].concat();
                assert_eq!(seal(&other, Some(&content), vec![0; length + TAIL]), sealed, "{length}");
                assert_eq!(seal(&one, None, standing.clone()), sealed, "{length}");
                assert_eq!(seal(&other, None, standing), sealed, "{length}");
                for aead in [&one, &other] {
                    let inner = [&content[..], &[23]].concat();
                    assert_eq!(aead.open(nonce, header, &mut sealed.clone()).unwrap(), inner, "{length}");
                    for at in [0, length, length + TAIL - 1] {
                        let mut changed = sealed.clone();
                        changed[at] ^= 0x80;
                        assert_eq!(aead.open(nonce, header, &mut changed), Err(Error::DecryptError), "{length}");
                    }
                    let mut other_header = header;
                    other_header[3] ^= 1;
                    assert_eq!(aead.open(nonce, other_header, &mut sealed.clone()), Err(Error::DecryptError));
                }
            }
        }
    }

    #[test]
    fn a_place_or_content_of_another_length_is_an_error() {
        for aead in pair(&AES_128_GCM).iter().chain(&pair(&CHACHA20_POLY1305)) {
            let (nonce, header) = ([7; NONCE], [0; 5]);
            assert_eq!(aead.seal(nonce, header, None, 23, &mut [0; TAIL - 1]), Err(Error::EncryptError));
            for content in [9, 11] {
                let sealed = aead.seal(nonce, header, Some(&vec![0; content]), 23, &mut [0; 10 + TAIL]);
                assert_eq!(sealed, Err(Error::EncryptError), "{content}");
            }
            for short in 0..TAIL - 1 {
                assert_eq!(aead.open(nonce, header, &mut vec![0; short]), Err(Error::DecryptError));
            }
        }
        assert!(Aead::new(&AES_256_GCM, &[0; 16], false).is_err());
        assert!(Aead::new(&AES_256_GCM, &[0; 16], true).is_err());
    }

    #[test]
    fn what_ring_does_not_make_aws_lc_does() {
        assert!(pair(&CHACHA20_POLY1305).iter().all(|aead| matches!(aead, Aead::AwsLc(_))));
    }
}
