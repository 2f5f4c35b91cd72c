//! Tests of the wire: what is rendered is read back exactly, other implementations read the same, and nothing that a
//! peer sends does harm.

mod arbitrary;
mod envoy;
mod foreign;
mod golden;
mod hostile;

use proptest::prelude::*;

use super::*;
use crate::names::ClusterName;

proptest! {
    #[test]
    fn a_listener_is_read_back_exactly(listener in arbitrary::listener()) {
        let encoded = render_listener(&listener, ClientClass::Weft).unwrap();
        let (name, read) = parse_listener(&encoded.name, &encoded.to_any()).unwrap();
        prop_assert_eq!(name, listener_name(&listener));
        prop_assert_eq!(read, listener);
    }

    #[test]
    fn a_route_table_is_read_back_exactly(table in arbitrary::table()) {
        let encoded = render_route(&table, ClientClass::Weft).unwrap();
        prop_assert_eq!(parse_route(&encoded.name, &encoded.to_any()).unwrap(), table);
    }

    #[test]
    fn a_cluster_is_read_back_exactly(cluster in arbitrary::cluster()) {
        let encoded = render_cluster(&cluster, ClientClass::Weft);
        prop_assert_eq!(parse_cluster(&encoded.name, &encoded.to_any()).unwrap(), cluster);
    }

    #[test]
    fn an_endpoint_set_is_read_back_exactly(set in arbitrary::endpoints()) {
        let encoded = render_endpoints(&set, ClientClass::Weft);
        prop_assert_eq!(parse_endpoints(&encoded.name, &encoded.to_any()).unwrap(), set);
    }

    #[test]
    fn a_revision_is_read_back_exactly(number: u64, hash: [u8; 32]) {
        let revision = Revision { number, hash };
        let encoded = render_revision(&revision);
        prop_assert_eq!(parse_revision(&encoded.name, &encoded.to_any()).unwrap(), revision);
    }
}

#[test]
fn a_version_is_the_hash_of_the_bytes() {
    let encoded = render_revision(&Revision { number: 7, hash: [1; 32] });
    assert_eq!(encoded.version, version(&encoded.value));
    assert_eq!(encoded.version.len(), 16);
    assert_eq!(version(b""), "e3b0c44298fc1c14");
    let resource = encoded.to_resource();
    assert_eq!((resource.name.as_str(), &resource.version), ("revision", &encoded.version));
}

#[test]
fn a_resource_under_another_name_or_type_is_refused() {
    let cluster = Cluster::new(ClusterName::parse("svc/a/b:80").unwrap());
    let any = render_cluster(&cluster, ClientClass::Weft).to_any();
    let error = parse_cluster("svc/a/c:80", &any).unwrap_err().to_string();
    assert_eq!(error, "cluster \"svc/a/c:80\": name: must be the resource's name, not \"svc/a/b:80\"");
    assert!(parse_endpoints("svc/a/b:80", &any).unwrap_err().to_string().contains("ClusterLoadAssignment, not"));
    for kind in ResourceType::ALL {
        assert_eq!(ResourceType::from_type_url(kind.type_url()), Some(kind));
    }
}
