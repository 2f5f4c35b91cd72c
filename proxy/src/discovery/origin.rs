//! Where configuration comes from: the mesh, the generation and the revision that a Weft control plane says in the headers of
//! its response. Another mesh, or an older state of the same one, is refused before anything of it is taken: a control plane
//! that lost its store has no policies, and taking them away is never a mistake's effect (docs/adr/0034).
//! A proxy with nothing in force compares nothing; it begins anew with each start.

use tonic::metadata::MetadataMap;

use super::Discovery;

/// Longest mesh id that is taken, in bytes.
const MAX_MESH: usize = 64;

/// The origin of a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    mesh: String,
    generation: u64,
    revision: u64,
}

/// Why an origin is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum OriginError {
    #[error(
        "this control plane is of mesh {offered}, the configuration in force is of mesh {held}: keeping it. If the new mesh is \
         intended, restart the proxy"
    )]
    OtherMesh { offered: String, held: String },
    #[error(
        "this control plane does not say its mesh, the configuration in force is of mesh {held}: keeping it. If the change is \
         intended, restart the proxy"
    )]
    NoMesh { held: String },
    #[error(
        "this control plane has revision {offered}, older than revision {held} in force: keeping it. If its store was restored \
         from a backup, start the control plane once with --accept-older-store"
    )]
    Older { offered: u64, held: u64 },
}

impl Origin {
    /// The origin in the headers of a response; `None` if it is not all there, as with other servers than Weft's.
    pub(super) fn read(headers: &MetadataMap) -> Option<Self> {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let mesh = text("weft-mesh").filter(|mesh| !mesh.is_empty() && mesh.len() <= MAX_MESH)?;
        let number = |name| text(name).and_then(|value| value.parse().ok());
        Some(Self { mesh: mesh.to_owned(), generation: number("weft-generation")?, revision: number("weft-revision")? })
    }

    /// Whether a server with this origin may replace the configuration of `held`.
    fn may_follow(offered: Option<&Self>, held: &Self) -> Result<(), OriginError> {
        let Some(offered) = offered else { return Err(OriginError::NoMesh { held: held.mesh.clone() }) };
        if offered.mesh != held.mesh {
            return Err(OriginError::OtherMesh { offered: offered.mesh.clone(), held: held.mesh.clone() });
        }
        if (offered.generation, offered.revision) < (held.generation, held.revision) {
            return Err(OriginError::Older { offered: offered.revision, held: held.revision });
        }
        Ok(())
    }
}

impl Discovery {
    /// Compares the server of a new stream with what is in force.
    pub(super) fn compare(&mut self, offered: Option<Origin>) {
        let result = self.origin.as_ref().map_or(Ok(()), |held| Origin::may_follow(offered.as_ref(), held));
        self.offered = offered;
        self.refusing = result.is_err();
        let refusal = result.err().map(|error| error.to_string());
        if let Some(reason) = &refusal {
            tracing::error!(control_plane = self.plane.address, reason, "configuration refused");
        }
        *self.status.refused_origin.lock() = refusal;
    }

    /// Why the server of this stream is refused.
    pub(super) fn refusal(&self) -> Option<String> {
        if self.refusing { self.status.refused_origin.lock().clone() } else { None }
    }

    /// A revision of the server of this stream comes into force.
    pub(super) fn note_origin(&mut self, revision: u64) {
        if let Some(offered) = &self.offered {
            self.origin = Some(Origin { revision, ..offered.clone() });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(mesh: &str, generation: u64, revision: u64) -> Origin {
        Origin { mesh: mesh.into(), generation, revision }
    }

    /// (27.1)
    #[test]
    fn another_mesh_and_an_older_state_are_refused_and_a_newer_generation_may_go_back() {
        let held = origin("a", 1, 120);
        let table = [
            (Some(origin("a", 1, 120)), true),
            (Some(origin("a", 1, 121)), true),
            (Some(origin("a", 2, 3)), true),
            (Some(origin("a", 1, 119)), false),
            (Some(origin("a", 0, 500)), false),
            (Some(origin("b", 9, 500)), false),
            (None, false),
        ];
        for (offered, good) in table {
            assert_eq!(Origin::may_follow(offered.as_ref(), &held).is_ok(), good, "{offered:?}");
        }
    }

    /// (27.1)
    #[test]
    fn headers_that_are_not_whole_are_no_origin() {
        let mut headers = MetadataMap::new();
        headers.insert("weft-mesh", "a".parse().unwrap());
        headers.insert("weft-generation", "7".parse().unwrap());
        assert_eq!(Origin::read(&headers), None);
        headers.insert("weft-revision", "x".parse().unwrap());
        assert_eq!(Origin::read(&headers), None);
        headers.insert("weft-revision", "9".parse().unwrap());
        assert_eq!(Origin::read(&headers), Some(origin("a", 7, 9)));
        headers.insert("weft-mesh", "a".repeat(65).parse().unwrap());
        assert_eq!(Origin::read(&headers), None);
    }
}
