//! The hash of the revision barrier: all resources that a proxy is subscribed to, in one value that both sides can compute.
//! Spec: proto/weft/v1/revision.proto.

use sha2::{Digest, Sha256};

use super::ResourceType;

/// SHA-256 over `<type url>\0<name>\0<version>\n` of every resource, sorted bytewise. Endpoint sets and the revision
/// itself are left out, whatever the caller passes, because they change outside of revisions.
pub fn revision_hash<'a>(resources: impl IntoIterator<Item = (ResourceType, &'a str, &'a str)>) -> [u8; 32] {
    let mut lines: Vec<String> = resources
        .into_iter()
        .filter(|(kind, ..)| !matches!(kind, ResourceType::Endpoints | ResourceType::Revision))
        .map(|(kind, name, version)| format!("{}\0{name}\0{version}\n", kind.type_url()))
        .collect();
    lines.sort_unstable();
    let mut hash = Sha256::new();
    for line in lines {
        hash.update(line.as_bytes());
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_of_the_sorted_lines_without_endpoints_and_revision() {
        let expected: [u8; 32] = Sha256::digest(
            "type.googleapis.com/envoy.config.cluster.v3.Cluster\0svc/a/b:1\0v1\n\
             type.googleapis.com/envoy.config.listener.v3.Listener\0inbound\0v2\n",
        )
        .into();
        let hash = revision_hash([
            (ResourceType::Revision, "revision", "v9"),
            (ResourceType::Listener, "inbound", "v2"),
            (ResourceType::Endpoints, "svc/a/b:1", "v3"),
            (ResourceType::Cluster, "svc/a/b:1", "v1"),
        ]);
        assert_eq!(hash, expected);
        assert_eq!(revision_hash([]), <[u8; 32]>::from(Sha256::digest("")));
    }
}
