//! What some resources look like: a change of the encoding shows here, and must be one on purpose, since every proxy
//! that runs reads the old one. The texts live in `golden/`; `WEFT_GOLDEN=write cargo test -p weft-core golden` renews them.

use std::fmt::Write as _;

use super::super::*;
use crate::{
    endpoint::{Endpoint, Health},
    filter::{Filters, Header, HeaderModifier},
    identity::Identity,
    listener::{Inbound, InboundMode, InboundPort, Outbound, Protocol},
    names::{ClusterName, RouteName},
    policy::{Authorization, Operation, PathPattern, Principal, Rule as PolicyRule},
    route::{Action, Forward, Match, PathMatch, RouteTable, Rule, VirtualHost, WeightedCluster},
};

/// The resource as text: its messages, with every `Any` opened.
fn show(encoded: &Encoded) -> String {
    let mut text = format!("# {} {:?}\n", encoded.resource_type.noun(), encoded.name);
    let descriptors = Descriptors::load();
    descriptors.show(encoded.resource_type.type_url().rsplit('/').next().unwrap(), &encoded.value, 0, &mut text);
    text
}

/// A printer of protobuf text from our descriptors: enough for these tests.
pub(super) struct Descriptors(std::collections::HashMap<String, prost_types::DescriptorProto>);

impl Descriptors {
    pub(super) fn load() -> Self {
        fn add(
            scope: &str,
            message: &prost_types::DescriptorProto,
            all: &mut std::collections::HashMap<String, prost_types::DescriptorProto>,
        ) {
            let name = format!("{scope}.{}", message.name());
            message.nested_type.iter().for_each(|nested| add(&name, nested, all));
            all.insert(name, message.clone());
        }
        let set = prost_types::FileDescriptorSet::decode(weft_proto::DESCRIPTORS).unwrap();
        let mut all = std::collections::HashMap::new();
        for file in &set.file {
            file.message_type.iter().for_each(|message| add(file.package(), message, &mut all));
        }
        Self(all)
    }

    /// Every `Any` in a message, at any depth.
    pub(super) fn visit(&self, name: &str, bytes: &[u8], found: &mut dyn FnMut(&Any)) {
        use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
        let mut rest = bytes;
        while !rest.is_empty() {
            let (number, wire_type) = decode_key(&mut rest).unwrap();
            if wire_type != WireType::LengthDelimited {
                skip_field(wire_type, number, &mut rest, DecodeContext::default()).unwrap();
                continue;
            }
            let length = usize::try_from(decode_varint(&mut rest).unwrap()).unwrap();
            let (content, after) = rest.split_at(length);
            rest = after;
            let field = self.0[name].field.iter().find(|field| field.number() == number as i32).unwrap();
            match field.type_name().trim_start_matches('.') {
                "" => {}
                "google.protobuf.Any" => {
                    let any = Any::decode(content).unwrap();
                    found(&any);
                    self.visit(any.type_url.rsplit('/').next().unwrap(), &any.value, found);
                }
                inner => self.visit(inner, content, found),
            }
        }
    }

    /// The same message with an unknown field in the message number `place`, counted from the outside in, and the name
    /// of that message; `None` when there are not so many.
    pub(super) fn inject(&self, name: &str, bytes: &[u8], place: usize) -> Option<(String, Vec<u8>)> {
        let (mut place, mut hit) = (place, None);
        let changed = self.inject_into(name, bytes, &mut place, &mut hit);
        Some((hit?, changed))
    }

    fn inject_into(&self, name: &str, bytes: &[u8], place: &mut usize, hit: &mut Option<String>) -> Vec<u8> {
        use prost::encoding::{
            DecodeContext, WireType, decode_key, decode_varint, encode_key, encode_varint, skip_field,
        };
        let mut out = Vec::new();
        if hit.is_none() {
            match place.checked_sub(1) {
                Some(rest) => *place = rest,
                None => {
                    *hit = Some(name.to_owned());
                    encode_key(999, WireType::LengthDelimited, &mut out);
                    encode_varint(0, &mut out);
                }
            }
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            let start = rest;
            let (number, wire_type) = decode_key(&mut rest).unwrap();
            if wire_type != WireType::LengthDelimited {
                skip_field(wire_type, number, &mut rest, DecodeContext::default()).unwrap();
                out.extend_from_slice(&start[..start.len() - rest.len()]);
                continue;
            }
            let length = usize::try_from(decode_varint(&mut rest).unwrap()).unwrap();
            let (content, after) = rest.split_at(length);
            rest = after;
            let field = self.0[name].field.iter().find(|field| field.number() == number as i32).unwrap();
            let content = match field.type_name().trim_start_matches('.') {
                "" => content.to_vec(),
                "google.protobuf.Any" => {
                    let Any { type_url, value } = Any::decode(content).unwrap();
                    let value = self.inject_into(type_url.rsplit('/').next().unwrap(), &value, place, hit);
                    Any { type_url, value }.encode_to_vec()
                }
                inner => self.inject_into(inner, content, place, hit),
            };
            encode_key(number, wire_type, &mut out);
            encode_varint(content.len() as u64, &mut out);
            out.extend(content);
        }
        out
    }

    fn show(&self, name: &str, bytes: &[u8], depth: usize, out: &mut String) {
        use prost::encoding::{WireType, decode_key, decode_varint};
        use prost_types::field_descriptor_proto::Type;
        let pad = "  ".repeat(depth);
        let mut rest = bytes;
        while !rest.is_empty() {
            let (number, wire_type) = decode_key(&mut rest).unwrap();
            let field = self.0[name].field.iter().find(|field| field.number() == number as i32).unwrap();
            let label = field.name();
            match wire_type {
                WireType::Varint => writeln!(out, "{pad}{label}: {}", decode_varint(&mut rest).unwrap()).unwrap(),
                WireType::SixtyFourBit => {
                    let (value, after) = rest.split_first_chunk::<8>().unwrap();
                    rest = after;
                    writeln!(out, "{pad}{label}: {}", f64::from_le_bytes(*value)).unwrap();
                }
                WireType::LengthDelimited => {
                    let length = usize::try_from(decode_varint(&mut rest).unwrap()).unwrap();
                    let (content, after) = rest.split_at(length);
                    rest = after;
                    let inner = field.type_name().trim_start_matches('.');
                    let kind = field.r#type();
                    if kind == Type::Message {
                        let any = (inner == "google.protobuf.Any").then(|| Any::decode(content).unwrap());
                        let inner = any.as_ref().map_or(inner, |any| any.type_url.rsplit('/').next().unwrap());
                        let title = if any.is_some() { format!(" [{inner}]") } else { String::new() };
                        writeln!(out, "{pad}{label}{title} {{").unwrap();
                        self.show(inner, any.as_ref().map_or(content, |any| &any.value), depth + 1, out);
                        writeln!(out, "{pad}}}").unwrap();
                    } else if kind == Type::String {
                        writeln!(out, "{pad}{label}: {:?}", std::str::from_utf8(content).unwrap()).unwrap();
                    } else {
                        writeln!(out, "{pad}{label}: {content:02x?}").unwrap();
                    }
                }
                WireType::ThirtyTwoBit | WireType::StartGroup | WireType::EndGroup => panic!("{wire_type:?}"),
            }
        }
    }
}

fn check(file: &str, encoded: &Encoded) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/wire/tests/golden").join(file);
    let text = show(encoded);
    #[expect(clippy::disallowed_methods, reason = "a switch of this test, not a setting")]
    if std::env::var("WEFT_GOLDEN").is_ok_and(|value| value == "write") {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &text).unwrap();
    }
    let wanted = std::fs::read_to_string(&path).unwrap();
    assert_eq!(text, wanted, "{file}");
}

fn id(account: &str) -> Identity {
    Identity::parse(&format!("spiffe://weft.local/ns/shop/sa/{account}")).unwrap()
}

fn policy() -> Authorization {
    let get = Operation {
        methods: vec!["GET".into()],
        paths: vec![PathPattern::Exact("/a".into()), PathPattern::Prefix("/b/".into())],
        ports: vec![8080],
    };
    Authorization {
        deny: vec![PolicyRule {
            name: "shop/no-user#0".into(),
            from: vec![Principal::Identity(id("user"))],
            to: vec![Operation::default()],
        }],
        allow: Some(vec![PolicyRule {
            name: "shop/read#0".into(),
            from: vec![Principal::Authenticated],
            to: vec![get],
        }]),
    }
}

/// A listener with a strict port with a policy, and a permissive default.
pub(super) fn guarded_listener() -> Listener {
    let permissive = InboundPort {
        mode: InboundMode::Permissive,
        protocol: Protocol::Detect,
        routes: RouteName::Inbound(None),
        authorization: Authorization::default(),
    };
    let strict = InboundPort {
        mode: InboundMode::Strict,
        protocol: Protocol::Http,
        routes: RouteName::Inbound(Some(8080.try_into().unwrap())),
        authorization: policy(),
    };
    let ports = [(8080.try_into().unwrap(), strict)].into();
    Listener::Inbound(Inbound { ports, default: permissive, access_log: Default::default() })
}

#[test]
fn inbound_listener() {
    check("inbound.txt", &render_listener(&guarded_listener(), ClientClass::Weft).unwrap());
}

#[test]
fn outbound_listener() {
    let cluster = ClusterName::parse("svc/shop/product:80").unwrap();
    let listener = Outbound {
        address: "240.0.0.1:80".parse().unwrap(),
        protocol: Protocol::Detect,
        http: Some(RouteName::parse("svc/shop/product:80").unwrap()),
        tcp: vec![WeightedCluster { cluster, weight: 1 }],
    };
    check("outbound.txt", &render_listener(&Listener::Outbound(listener), ClientClass::Weft).unwrap());
}

/// A table with a split, a policy, and a share that cannot be resolved.
pub(super) fn split_table() -> RouteTable {
    let [v1, v2] = ["svc/shop/product-v1:80", "svc/shop/product-v2:80"].map(|name| ClusterName::parse(name).unwrap());
    let clusters =
        vec![WeightedCluster { cluster: v1.clone(), weight: 90 }, WeightedCluster { cluster: v2, weight: 10 }];
    let split = Forward { clusters, unresolved: 5, ..Forward::to(v1) };
    let matches = Match { path: PathMatch::Prefix("/v2".into()), method: Some("GET".into()), headers: Vec::new() };
    let filters = Filters {
        request_headers: HeaderModifier {
            remove: vec!["x-debug".into()],
            set: vec![Header::new("x-stage", "100%")],
            add: vec![Header::new("x-seen", "")],
        },
        response_headers: HeaderModifier { set: vec![Header::new("server", "shop")], ..HeaderModifier::default() },
    };
    RouteTable {
        name: RouteName::Inbound(None),
        hosts: vec![VirtualHost {
            name: "all".into(),
            domains: vec!["*".into()],
            rules: vec![
                Rule { matches, ..Rule::all("shop/split#0", Action::Forward(split)) },
                Rule { filters, ..Rule::all("shop/rest#0", Action::Deliver) },
            ],
        }],
        authorization: policy(),
    }
}

#[test]
fn routes() {
    check("routes.txt", &render_route(&split_table(), ClientClass::Weft).unwrap());
}

#[test]
fn cluster_and_endpoints() {
    let name = ClusterName::parse("svc/shop/product:80").unwrap();
    let cluster = Cluster::new(name.clone());
    check("cluster.txt", &render_cluster(&cluster, ClientClass::Weft));
    check("cluster-envoy.txt", &render_cluster(&cluster, ClientClass::Envoy { plaintext_to_mesh: false }));
    let endpoint = |address: &str, identity, zone: &str| Endpoint {
        address: address.parse().unwrap(),
        workload: "shop/product-1".into(),
        identity,
        weight: 1.try_into().unwrap(),
        zone: zone.into(),
        health: Health::Healthy,
    };
    let endpoints = vec![endpoint("10.0.0.1:8080", Some(id("product")), "a"), endpoint("10.0.0.2:8080", None, "b")];
    let set = EndpointSet { cluster: name, endpoints };
    check("endpoints.txt", &render_endpoints(&set, ClientClass::Weft));
    check("endpoints-envoy.txt", &render_endpoints(&set, ClientClass::Envoy { plaintext_to_mesh: false }));
}
