//! Records of TLS 1.3 (RFC 8446 §5.1 to §5.3): one key and one direction, no IO.
//! Invariant: a sequence number is used once for each key; a key ends long before its cipher's limit ([`REKEY`]).

use rustls::{ConnectionTrafficSecrets, ContentType, Error, PeerMisbehaved};

use super::aead::{self, Aead, NONCE, TAIL};

/// Header of a record, in bytes.
pub(super) const HEADER: usize = 5;
/// Most content of a record, in bytes.
pub(super) const MAX_CONTENT: usize = 1 << 14;
/// Bytes that a record has in addition to its content: header, type, tag. We add no padding.
pub(super) const OVERHEAD: usize = HEADER + TAIL;
/// Longest record that is accepted: its padding, type and tag may have 256 bytes (RFC 8446 §5.2).
pub(super) const MAX_RECORD: usize = HEADER + MAX_CONTENT + 256;
const _: () = assert!(MAX_RECORD <= crate::buffer::RECORD);
/// Records after which we change our key. AES-GCM must not protect more than 2^24.5 with one (RFC 8446 §5.5).
pub(super) const REKEY: u64 = 1 << 23;

/// The key of one direction.
pub(super) struct Key {
    aead: Aead,
    iv: [u8; NONCE],
    sequence: u64,
}

impl Key {
    /// From the secrets that rustls derived, with the number of the next record.
    /// Errors: a cipher suite that is not known here.
    pub(super) fn new((sequence, secrets): (u64, ConnectionTrafficSecrets)) -> Result<Self, Error> {
        let (cipher, key, iv) = match &secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&aead::AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&aead::AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (&aead::CHACHA20_POLY1305, key, iv),
            _ => return Err(Error::General("a cipher suite that records cannot be made with".into())),
        };
        let iv = iv.as_ref().try_into().map_err(|_length| Error::EncryptError)?;
        Ok(Self { aead: Aead::new(cipher, key.as_ref(), aead::prefers_ring())?, iv, sequence })
    }

    /// The number of the next record.
    pub(super) fn sequence(&self) -> u64 {
        self.sequence
    }

    fn nonce(&mut self) -> Result<[u8; NONCE], Error> {
        let mut nonce = self.iv;
        for (byte, number) in nonce.iter_mut().rev().zip(self.sequence.to_le_bytes()) {
            *byte ^= number;
        }
        self.sequence = self.sequence.checked_add(1).ok_or(Error::EncryptError)?;
        Ok(nonce)
    }

    /// Writes a record to the front of `out`: of `content`, or of the `length` bytes that stand in `out` behind the header's place.
    /// Returns the length of the record.
    /// Errors: no room, which is our own mistake.
    pub(super) fn seal(
        &mut self,
        kind: ContentType,
        length: usize,
        content: Option<&[u8]>,
        out: &mut [u8],
    ) -> Result<usize, Error> {
        let (header, rest) = out.split_first_chunk_mut().ok_or(Error::EncryptError)?;
        let sealed = rest.get_mut(..length + TAIL).ok_or(Error::EncryptError)?;
        let [high, low] = u16::try_from(length + TAIL).map_err(|_large| Error::EncryptError)?.to_be_bytes();
        *header = [ContentType::ApplicationData.into(), 3, 3, high, low];
        let nonce = self.nonce()?;
        self.aead.seal(nonce, *header, content, kind.into(), sealed)?;
        Ok(length + OVERHEAD)
    }

    /// Opens a whole record where it stands. Returns the type and the length of its content, which stands behind the head.
    /// Errors: it is not the peer's next record.
    pub(super) fn open(&mut self, record: &mut [u8]) -> Result<(ContentType, usize), Error> {
        let (header, sealed) = record.split_first_chunk_mut::<HEADER>().ok_or(Error::DecryptError)?;
        let nonce = self.nonce()?;
        let inner = self.aead.open(nonce, *header, sealed)?;
        // The type is the last byte that is not zero; behind it is padding.
        let Some(length) = inner.iter().rposition(|byte| *byte != 0) else {
            return Err(PeerMisbehaved::IllegalTlsInnerPlaintext.into());
        };
        if inner.len() > MAX_CONTENT + 1 {
            return Err(Error::PeerSentOversizedRecord);
        }
        Ok((inner.get(length).copied().unwrap_or_default().into(), length))
    }
}

/// The length of the record at the front of `bytes`, header included. `None`: it is incomplete.
/// Errors: a type or length that no record after the handshake has.
pub(super) fn length(bytes: &[u8]) -> Result<Option<usize>, Error> {
    let Some((&[kind, _, _, high, low], rest)) = bytes.split_first_chunk::<HEADER>() else { return Ok(None) };
    let got_type = ContentType::from(kind);
    if got_type != ContentType::ApplicationData {
        return Err(Error::InappropriateMessage { expect_types: vec![ContentType::ApplicationData], got_type });
    }
    let length = usize::from(u16::from_be_bytes([high, low]));
    if length > MAX_RECORD - HEADER {
        return Err(Error::PeerSentOversizedRecord);
    }
    Ok((rest.len() >= length).then_some(HEADER + length))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(key: &str, iv: &str) -> Key {
        let bytes = |hex: &str| data_encoding::HEXLOWER.decode(hex.as_bytes()).unwrap();
        let aead = Aead::new(&aead::AES_128_GCM, &bytes(key), aead::prefers_ring()).unwrap();
        Key { aead, iv: bytes(iv).try_into().unwrap(), sequence: 0 }
    }

    /// A client's of RFC 8448 §3, whose first record of data holds the bytes from 0 to 49.
    fn client() -> Key {
        key("17422dda596ed5d9acd890e3c63f5051", "5b78923dee08579033e523d9")
    }

    const RECORD: &str = "1703030043a23f7054b62c94d0affafe8228ba55cbefacea42f914aa66bcab3f2b9819a8a5b46b395bd54a9a20441e2b\
                          62974e1f5a6292a2977014bd1e3deae63aeebb21694915e4";

    #[test]
    fn a_record_is_that_of_the_rfc_and_opens_again() {
        let content: Vec<u8> = (0..50).collect();
        let mut sealed = vec![0; 100];
        let length = client().seal(ContentType::ApplicationData, 50, Some(&content), &mut sealed).unwrap();
        assert_eq!(data_encoding::HEXLOWER.encode(&sealed[..length]), RECORD);
        let mut in_place = [&[0; HEADER][..], &content, &[0; 40]].concat();
        assert_eq!(client().seal(ContentType::ApplicationData, 50, None, &mut in_place), Ok(length));
        assert_eq!(in_place[..length], sealed[..length]);
        assert_eq!(super::length(&sealed), Ok(Some(length)));
        assert_eq!(client().open(&mut sealed[..length]), Ok((ContentType::ApplicationData, 50)));
        assert_eq!(sealed[HEADER..HEADER + 50], content);
    }

    #[test]
    fn every_bit_of_a_record_and_its_number_count() {
        let mut sealed = vec![0; 100];
        let mut key = client();
        key.sequence = 7;
        let length = key.seal(ContentType::Alert, 2, Some(&[2, 20]), &mut sealed).unwrap();
        assert_eq!(key.sequence, 8);
        for bit in 0..length * 8 {
            let mut other = sealed[..length].to_vec();
            other[bit / 8] ^= 1 << (bit % 8);
            let mut key = client();
            key.sequence = 7;
            assert_eq!(key.open(&mut other), Err(Error::DecryptError), "bit {bit}");
        }
        assert_eq!(key.open(&mut sealed[..length].to_vec()), Err(Error::DecryptError), "the number");
        key.sequence = 7;
        assert_eq!(key.open(&mut sealed[..length]), Ok((ContentType::Alert, 2)));
    }

    #[test]
    fn there_is_no_number_behind_the_last() {
        let mut key = client();
        key.sequence = u64::MAX - 1;
        let mut place = [0; OVERHEAD];
        assert!(key.seal(ContentType::ApplicationData, 0, None, &mut place).is_ok());
        assert_eq!(key.seal(ContentType::ApplicationData, 0, None, &mut place), Err(Error::EncryptError));
    }

    #[test]
    fn heads_tell_what_is_no_record() {
        let head = |kind, length: u16| [&[kind, 3, 3][..], &length.to_be_bytes(), &[0; 20]].concat();
        assert_eq!(length(&head(23, 20)), Ok(Some(25)));
        assert_eq!(length(&head(23, 21)), Ok(None));
        assert_eq!(length(&head(23, 20)[..4]), Ok(None));
        assert_eq!(length(&head(23, 16_640)), Ok(None));
        assert_eq!(length(&head(23, 16_641)), Err(Error::PeerSentOversizedRecord));
        for kind in [0, 20, 21, 22, 24, 255] {
            assert!(matches!(length(&head(kind, 20)), Err(Error::InappropriateMessage { .. })), "{kind}");
        }
    }
}
