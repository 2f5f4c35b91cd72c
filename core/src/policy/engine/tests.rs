use proptest::prelude::*;

use super::*;

const METHODS: [&str; 3] = ["GET", "POST", "PUT"];
const IDENTITIES: [&str; 6] = [
    "spiffe://weft.local/ns/shop/sa/order",
    "spiffe://weft.local/ns/shop/sa/user",
    "spiffe://weft.local/ns/shop2/sa/order",
    "spiffe://other.local/ns/shop/sa/order",
    "spiffe://weft.local/a",
    "spiffe://weft.local/a/b/c",
];
const PREFIXES: [&str; 7] = [
    "",
    "spiffe://",
    "spiffe://weft.local/",
    "spiffe://weft.local/ns/shop/",
    "spiffe://weft.local/ns/shop",
    "spiffe://weft.local/ns/shop/sa/o",
    "spiffe://none.local/",
];

fn principal() -> impl Strategy<Value = Principal> {
    prop_oneof![
        1 => Just(Principal::Any),
        1 => Just(Principal::Authenticated),
        4 => prop::sample::select(&IDENTITIES[..]).prop_map(|text| Principal::Identity(Identity::parse(text).unwrap())),
        3 => prop::sample::select(&PREFIXES[..]).prop_map(|text| Principal::Prefix(text.into())),
    ]
}

fn path() -> impl Strategy<Value = String> {
    "(/[ab]{0,2}){0,3}"
}

fn pattern() -> impl Strategy<Value = PathPattern> {
    (any::<bool>(), path()).prop_map(|(exact, path)| match exact {
        true => PathPattern::Exact(path.into()),
        false => PathPattern::Prefix(path.into()),
    })
}

fn operation() -> impl Strategy<Value = Operation> {
    (
        prop::collection::vec(prop::sample::select(&METHODS[..2]), 0..2),
        prop_oneof![3 => Just(0..1), 3 => Just(1..4), 1 => Just(20..40)]
            .prop_flat_map(|some| prop::collection::vec(pattern(), some)),
        prop_oneof![2 => prop::collection::vec(80..83_u16, 0..1), 1 => prop::collection::vec(80..83_u16, 1..3)],
    )
        .prop_map(|(methods, paths, ports)| Operation {
            methods: methods.into_iter().map(Into::into).collect(),
            paths,
            ports,
        })
}

fn rules() -> impl Strategy<Value = Vec<Rule>> {
    let from =
        prop_oneof![5 => prop::collection::vec(principal(), 0..4), 1 => prop::collection::vec(principal(), 8..12)];
    let rule = (from, prop::collection::vec(operation(), 0..4));
    prop::collection::vec(rule, 0..12).prop_map(|rules| {
        let named = |(index, (from, to))| Rule { name: format!("rule {index}").into(), from, to };
        rules.into_iter().enumerate().map(named).collect()
    })
}

fn request() -> impl Strategy<Value = (Option<Identity>, u16, Option<(String, String)>)> {
    (
        prop::option::weighted(0.8, prop::sample::select(&IDENTITIES[..]))
            .prop_map(|text| text.map(|text| Identity::parse(text).unwrap())),
        80..84_u16,
        prop::option::weighted(0.8, (prop::sample::select(&METHODS[..]).prop_map(str::to_owned), path())),
    )
}

proptest! {
    #[test]
    fn the_judge_says_and_names_what_the_scan_does(
        deny in rules(),
        allow in prop::option::weighted(0.8, rules()),
        requests in prop::collection::vec(request(), 20),
    ) {
        let authorization = Authorization { deny, allow };
        let engine = Engine::new(&authorization);
        prop_assert_eq!(engine.reads_paths(), authorization.reads_paths());
        prop_assert_eq!(engine.allows_all(), authorization.allows_all());
        for (identity, port, http) in &requests {
            let http = http.as_ref().map(|(method, path)| (method.as_str(), path.as_str()));
            let request = Request { identity: identity.as_ref(), port: *port, http };
            prop_assert_eq!(engine.check(&request), authorization.check(&request), "{:?}", request);
        }
    }
}

/// A rule about many callers and many paths does not take memory for every pair of them.
#[test]
fn a_wide_rule_is_filed_by_its_callers_only() {
    let callers = (0..300)
        .map(|n| Principal::Identity(Identity::parse(&format!("spiffe://weft.local/ns/shop/sa/s{n}")).unwrap()));
    let paths = (0..300).map(|n| PathPattern::Exact(format!("/p{n}").into())).collect();
    let to = vec![Operation { paths, ..Operation::default() }];
    let wide = Rule { name: "wide".into(), from: callers.collect(), to };
    let authorization = Authorization { deny: vec![wide], allow: None };
    let engine = Engine::new(&authorization);
    assert!(engine.http.deny.identities.values().all(|file| file.narrow.is_none() && file.open.len() == 1));
    let identity = Identity::parse("spiffe://weft.local/ns/shop/sa/s299").unwrap();
    let check = |path| engine.check(&Request { identity: Some(&identity), port: 80, http: Some(("GET", path)) });
    assert_eq!((check("/p299"), check("/p300")), (Decision::DeniedBy("wide"), Decision::Allow(None)));
}
