//! Nothing that a peer sends panics, recurses without bound, or makes a long error.

use proptest::{collection::vec, prelude::*, sample::Index};
use prost::Message;
use prost_types::Any;
use weft_proto::envoy::config::{
    listener::v3::{Filter, FilterChain, Listener},
    route::v3::{FilterConfig, RouteConfiguration},
};

use super::{
    super::{
        error::{MAX_ERRORS, MAX_TEXT},
        types::pack,
        *,
    },
    arbitrary,
};

/// Parses under a good name of each type; whatever comes out, an error's text is bounded.
fn feed(kind: ResourceType, name: &str, value: Vec<u8>) -> Result<Parsed, String> {
    let result = parse(kind, name, &Any { type_url: kind.type_url().into(), value });
    result.map_err(|error| {
        let text = error.to_string();
        assert!(text.len() <= MAX_TEXT && error.errors.len() <= MAX_ERRORS, "{} bytes", text.len());
        text
    })
}

const NAMES: [(ResourceType, &str); 7] = [
    (ResourceType::Listener, "inbound"),
    (ResourceType::Listener, "outbound"),
    (ResourceType::Listener, "outbound/240.0.0.1:80"),
    (ResourceType::Listener, "gateway/a/b"),
    (ResourceType::Route, "svc/a/b:80"),
    (ResourceType::Cluster, "svc/a/b:80"),
    (ResourceType::Endpoints, "svc/a/b:80"),
];

#[derive(Clone, Debug)]
enum Mutation {
    Set(Index, u8),
    Insert(Index, Vec<u8>),
    Remove(Index, usize),
    Cut(Index),
    Repeat(Index, Index),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    prop_oneof![
        any::<(Index, u8)>().prop_map(|(at, byte)| Mutation::Set(at, byte)),
        (any::<Index>(), vec(any::<u8>(), 1..8)).prop_map(|(at, bytes)| Mutation::Insert(at, bytes)),
        (any::<Index>(), 1usize..8).prop_map(|(at, count)| Mutation::Remove(at, count)),
        any::<Index>().prop_map(Mutation::Cut),
        any::<(Index, Index)>().prop_map(|(a, b)| Mutation::Repeat(a, b)),
    ]
}

fn mutate(mut bytes: Vec<u8>, mutations: &[Mutation]) -> Vec<u8> {
    for mutation in mutations {
        let length = bytes.len() + 1;
        match mutation {
            Mutation::Set(at, byte) => {
                if let Some(place) = bytes.get_mut(at.index(length)) {
                    *place = *byte;
                }
            }
            Mutation::Insert(at, inserted) => drop(bytes.splice(at.index(length)..at.index(length), inserted.clone())),
            Mutation::Remove(at, count) => {
                let start = at.index(length);
                drop(bytes.drain(start..(start + count).min(length - 1)));
            }
            Mutation::Cut(at) => bytes.truncate(at.index(length)),
            Mutation::Repeat(a, b) => {
                let (start, end) = (a.index(length).min(b.index(length)), a.index(length).max(b.index(length)));
                bytes.extend_from_within(start..end);
            }
        }
    }
    bytes
}

fn encoded() -> impl Strategy<Value = Encoded> {
    prop_oneof![
        2 => arbitrary::listener().prop_map(|listener| render_listener(&listener, ClientClass::Weft).unwrap()),
        2 => arbitrary::table().prop_map(|table| render_route(&table, ClientClass::Weft).unwrap()),
        1 => arbitrary::cluster().prop_map(|cluster| render_cluster(&cluster, ClientClass::Weft)),
        1 => arbitrary::endpoints().prop_map(|set| render_endpoints(&set, ClientClass::Weft)),
        1 => any::<(u64, [u8; 32])>().prop_map(|(number, hash)| render_revision(&Revision { number, hash })),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn random_bytes_are_refused_or_read_without_harm(bytes in vec(any::<u8>(), 0..200)) {
        for (kind, name) in NAMES {
            feed(kind, name, bytes.clone()).ok();
        }
        feed(ResourceType::Revision, REVISION_NAME, bytes).ok();
    }

    #[test]
    fn a_damaged_resource_is_refused_or_read_without_harm(encoded in encoded(), mutations in vec(mutation(), 1..6)) {
        let bytes = mutate(encoded.value.to_vec(), &mutations);
        if let Ok(parsed) = feed(encoded.resource_type, &encoded.name, bytes) {
            // What is accepted is a model value that can be said and read again.
            let again = match &parsed {
                Parsed::Listener(_, listener) => render_listener(listener, ClientClass::Weft).unwrap(),
                Parsed::Route(table) => render_route(table, ClientClass::Weft).unwrap(),
                Parsed::Cluster(cluster) => render_cluster(cluster, ClientClass::Weft),
                Parsed::Endpoints(set) => render_endpoints(set, ClientClass::Weft),
                Parsed::Revision(revision) => render_revision(revision),
            };
            prop_assert_eq!(parse(again.resource_type, &again.name, &again.to_any()).unwrap(), parsed);
        }
    }
}

#[test]
fn nesting_is_bounded_also_through_any() {
    let mut config = pack(&FilterConfig::default());
    for _ in 0..20_000 {
        config = pack(&FilterConfig { config: Some(config), ..FilterConfig::default() });
    }
    let table = RouteConfiguration {
        name: "inbound".into(),
        typed_per_filter_config: [("x".to_owned(), config)].into(),
        ..RouteConfiguration::default()
    };
    let error = feed(ResourceType::Route, "inbound", table.encode_to_vec()).unwrap_err();
    assert!(error.contains("nested too deeply"), "{error}");

    // not_rule { not_rule { … as raw bytes: field 8, length-delimited.
    let mut rule = Vec::new();
    for _ in 0..5_000 {
        let mut outer = vec![0x42];
        prost::encoding::encode_varint(rule.len() as u64, &mut outer);
        outer.append(&mut rule);
        rule = outer;
    }
    let rbac = [prefixed(0x12, &[prefixed(0x0a, b"p"), prefixed(0x12, &prefixed(0x0a, &rule))].concat())].concat();
    let per_route = prefixed(0x12, &prefixed(0x0a, &rbac));
    let any = Any {
        type_url: "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBACPerRoute".into(),
        value: per_route,
    };
    let table = RouteConfiguration {
        name: "inbound".into(),
        typed_per_filter_config: [("weft.rbac.deny".to_owned(), any)].into(),
        ..RouteConfiguration::default()
    };
    let error = feed(ResourceType::Route, "inbound", table.encode_to_vec()).unwrap_err();
    assert!(error.contains("nested too deeply"), "{error}");
}

fn prefixed(key: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![key];
    prost::encoding::encode_varint(content.len() as u64, &mut out);
    out.extend_from_slice(content);
    out
}

#[test]
fn the_text_of_many_errors_is_bounded_and_counts_the_rest() {
    let chain = FilterChain { name: "x".repeat(10_000), filters: vec![Filter::default(); 3], ..FilterChain::default() };
    let listener = Listener { name: "ü".repeat(9_000), filter_chains: vec![chain; 500], ..Listener::default() };
    let error = feed(ResourceType::Listener, "gateway/a/b", listener.encode_to_vec()).unwrap_err();
    assert!(error.starts_with("listener \"gateway/a/b\": name: must be the resource's name, not \"ü"), "{error}");
    let listener_filters = vec![Default::default(); 500];
    let listener = Listener { name: "outbound".into(), listener_filters, ..Listener::default() };
    let any = pack(&listener);
    let error = parse_listener("outbound", &any).unwrap_err();
    assert_eq!((error.errors.len(), error.more), (MAX_ERRORS, 500 - MAX_ERRORS));
    assert!(error.to_string().len() <= MAX_TEXT);
}
