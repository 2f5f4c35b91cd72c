//! The revision barrier <-> `weft.v1.Revision`.

use prost_types::Any;
use weft_proto::weft::v1;

use super::{
    Encoded, ResourceType, WireError,
    error::{At, Errors, Reason},
    read::{check_name, parse_with},
};

/// The name of the one revision resource of a proxy.
pub const REVISION_NAME: &str = "revision";

/// The revision barrier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Revision {
    /// The revision of the desired state.
    pub number: u64,
    /// What the proxy must hold at this point: see [`revision_hash`](super::revision_hash).
    pub hash: [u8; 32],
}

/// Renders the barrier.
pub fn render_revision(revision: &Revision) -> Encoded {
    let message = v1::Revision { number: revision.number, hash: revision.hash.to_vec().into() };
    Encoded::new(ResourceType::Revision, REVISION_NAME.into(), &message)
}

/// Parses the barrier.
/// Errors: another name, or a hash that is not 32 bytes.
pub fn parse_revision(name: &str, any: &Any) -> Result<Revision, WireError> {
    parse_with(ResourceType::Revision, name, any, |message: &v1::Revision, at: &At<'_>, errors: &mut Errors| {
        check_name(REVISION_NAME, name, at, errors);
        match <[u8; 32]>::try_from(&*message.hash) {
            Ok(hash) => Some(Revision { number: message.number, hash }),
            Err(_) => {
                errors.refuse(&at.field("hash"), Reason::expected(format!("{} bytes", message.hash.len()), "32 bytes"))
            }
        }
    })
}
