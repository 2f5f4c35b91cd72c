//! Mistakes: kind, spec, and the errors exactly as shown after the object's key.

use crate::{document, errors};

/// Kind, spec, errors.
type Case = (&'static str, &'static str, &'static [&'static str]);

#[test]
fn every_mistake_is_named_with_its_field_and_reason() {
    for (kind, spec, expected) in CASES {
        let key = if *kind == "MeshConfig" { "MeshConfig/default/default" } else { &format!("{kind}/shop/x") };
        let expected: Vec<String> = expected.iter().map(|error| format!("document 1, {key}: {error}")).collect();
        assert_eq!(errors(&document(kind, spec)), expected, "{kind} {spec}");
    }
}

#[rustfmt::skip]
const CASES: &[Case] = &[
    ("Service", "{}", &[
        "spec.ports: required",
    ]),
    ("Service", "{ports: []}", &[
        "spec.ports: must have at least one entry",
    ]),
    ("Service", "{ports: [{}]}", &[
        "spec.ports[0].port: required",
    ]),
    ("Service", "{ports: [{port: 0}, {port: 70000, name: b}, {port: abc}]}", &[
        "spec.ports[0].port: must be a number from 1 to 65535, not 0",
        "spec.ports[1].port: must be a number from 1 to 65535, not 70000",
        "spec.ports[2].port: must be a number from 1 to 65535, not \"abc\"",
    ]),
    ("Service", "{ports: [{port: 80}, {port: 80, name: A}]}", &[
        "spec.ports[1].port: appears twice",
        "spec.ports[0].name: required when there is more than one port",
        "spec.ports[1].name: \"A\" is not a name: use 1 to 63 lower-case letters, digits and '-', with a letter or digit at both ends",
    ]),
    ("Service", "{ports: [{name: a, port: 80, targetPort: 0}]}", &[
        "spec.ports[0].targetPort: must be a port number from 1 to 65535 or a port name, not 0",
    ]),
    ("Service", "{ports: [{name: a, port: 80, targetPort: Http}]}", &[
        "spec.ports[0].targetPort: \"Http\" is not a port name: use 1 to 15 lower-case letters, digits and '-', at least one letter, a letter or digit at both ends",
    ]),
    ("Service", "{ports: [{port: 53, protocol: UDP}]}", &[
        "spec.ports[0].protocol: not supported yet",
    ]),
    ("Service", "{ports: [{port: 53, protocol: tcp}]}", &[
        "spec.ports[0].protocol: must be one of TCP, UDP, SCTP, not \"tcp\"; did you mean \"TCP\"?",
    ]),
    ("Service", "{type: LoadBalancer, ports: [{port: 80, nodePort: 30000}]}", &[
        "spec.ports[0].nodePort: not supported yet",
    ]),
    ("Service", "{type: LoadBalancer, ports: [{port: 80}], clusterIP: None}", &[
        "spec.clusterIP: headless services are not supported yet",
    ]),
    ("Service", "{type: ExternalName, ports: [{port: 80}]}", &[
        "spec.type: not supported yet",
    ]),
    ("Service", "{ports: [{port: 80}], clusterIP: 10.0.0.300}", &[
        "spec.clusterIP: \"10.0.0.300\" is not an IP address",
    ]),
    ("Service", "{ports: [{port: 80}], clusterIP: 10.0.0.1, clusterIPs: [10.0.0.2, 10.0.0.1]}", &[
        "spec.clusterIPs[0]: must be clusterIP, which is 10.0.0.1",
        "spec.clusterIPs: must have at most one IPv4 address",
    ]),
    ("Service", "{selector: {app: 1}, ports: [{port: 80}]}", &[
        "spec.selector.app: must be a string, not 1 (put it in quotes)",
    ]),
    ("Service", "{selectors: {app: a}, ports: [{port: 80}]}", &[
        "spec.selectors: unknown field; did you mean \"selector\"?",
    ]),
    ("HTTPRoute", "{parentRef: [{name: edge}]}", &[
        "spec.parentRef: unknown field; did you mean \"parentRefs\"?",
    ]),
    ("HTTPRoute", "{parentRefs: [{name: product, kind: Service}]}", &[
        "spec.parentRefs[0].kind: a parent is a Gateway (group \"gateway.networking.k8s.io\") or a Service (group \"\"), not \"Service\" of group \"gateway.networking.k8s.io\"",
    ]),
    ("HTTPRoute", "{parentRefs: [{name: product, kind: Service, group: ''}, {name: product, kind: Service, group: ''}]}", &[
        "spec.parentRefs[1]: appears twice",
    ]),
    ("HTTPRoute", "{hostnames: ['a.*.b', 10.0.0.1, A.example, 'a.example:80', '*.ok.example']}", &[
        "spec.hostnames[0]: \"a.*.b\" is not a hostname: use a lower-case DNS name such as \"a.example\" or \"*.example\", no address and no port",
        "spec.hostnames[1]: \"10.0.0.1\" is not a hostname: use a lower-case DNS name such as \"a.example\" or \"*.example\", no address and no port",
        "spec.hostnames[2]: \"A.example\" is not a hostname: use a lower-case DNS name such as \"a.example\" or \"*.example\", no address and no port",
        "spec.hostnames[3]: \"a.example:80\" is not a hostname: use a lower-case DNS name such as \"a.example\" or \"*.example\", no address and no port",
    ]),
    ("HTTPRoute", "{rules: [{backendRefs: [{name: a, port: 80}]}, {backendRefs: [{name: a}, {port: 80}, {name: b, port: 80, weight: 1000001}]}]}", &[
        "spec.rules[1].backendRefs[1].name: required",
    ]),
    ("HTTPRoute", "{rules: [{backendRef: [{name: a, port: 80}]}]}", &[
        "spec.rules[0].backendRef: unknown field; did you mean \"backendRefs\"?",
    ]),
    ("HTTPRoute", "{rules: [{filters: [{type: RequestMirror, requestMirror: {}}], sessionPersistence: {}, matches: [{queryParams: [{name: a, value: b}]}], backendRefs: [{name: a, port: 80, filters: []}]}]}", &[
        "spec.rules[0].filters[0].requestMirror: not supported yet",
        "spec.rules[0].sessionPersistence: not supported yet",
        "spec.rules[0].matches[0].queryParams: not supported yet",
        "spec.rules[0].backendRefs[0].filters: not supported yet",
    ]),
    ("HTTPRoute", "{rules: [{filters: [{type: URLRewrite}, {type: RequestHeaderModifier}, {type: RequestHeaderModifier, responseHeaderModifier: {}}]}, {filters: [{type: RequestHeaders}]}]}", &[
        "spec.rules[1].filters[0].type: must be one of RequestHeaderModifier, ResponseHeaderModifier, RequestMirror, RequestRedirect, URLRewrite, CORS, ExternalAuth, ExtensionRef, not \"RequestHeaders\"",
    ]),
    ("HTTPRoute", "{rules: [{filters: [{type: URLRewrite}, {type: RequestHeaderModifier}, {type: RequestHeaderModifier, requestHeaderModifier: {}, responseHeaderModifier: {}}]}]}", &[
        "spec.rules[0].filters[0].type: not supported yet",
        "spec.rules[0].filters[1].requestHeaderModifier: required",
        "spec.rules[0].filters[2].responseHeaderModifier: is the field of another type of filter",
        "spec.rules[0].filters[2].type: appears twice",
    ]),
    ("HTTPRoute", "{rules: [{filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: weft-client-id, value: a}, {name: Host, value: a}], add: [{name: TE, value: a}, {name: 'a b', value: a}, {name: X-A, value: ''}, {name: x-a, value: ' a'}], remove: [X-B, x-b, content-length]}}]}]}", &[
        "spec.rules[0].filters[0].requestHeaderModifier.set[0].name: \"weft-client-id\" is reserved: Weft's proxies use names that start with \"weft-\" among themselves",
        "spec.rules[0].filters[0].requestHeaderModifier.set[1].name: \"Host\" cannot be changed by a header modifier: it takes part in routing",
        "spec.rules[0].filters[0].requestHeaderModifier.add[0].name: \"TE\" belongs to a connection and cannot be changed by a route (RFC 9110 §7.6.1)",
        "spec.rules[0].filters[0].requestHeaderModifier.add[1].name: \"a b\" is not a header name (RFC 9110 §5.6.2)",
        "spec.rules[0].filters[0].requestHeaderModifier.add[2].value: must not be empty",
        "spec.rules[0].filters[0].requestHeaderModifier.add[3].value: is not a header value (RFC 9110 §5.5)",
        "spec.rules[0].filters[0].requestHeaderModifier.add[3].name: appears twice",
        "spec.rules[0].filters[0].requestHeaderModifier.remove[2]: \"content-length\" belongs to a connection and cannot be changed by a route (RFC 9110 §7.6.1)",
        "spec.rules[0].filters[0].requestHeaderModifier.remove[1]: appears twice",
    ]),
    ("HTTPRoute", "{rules: [{filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: X-A, value: a}], add: [{name: x-a, value: b}], remove: [x-a]}}]}]}", &[
        "spec.rules[0].filters[0].responseHeaderModifier.remove[0]: \"x-a\" is also in set",
        "spec.rules[0].filters[0].responseHeaderModifier.remove[0]: \"x-a\" is also in add",
    ]),
    ("HTTPRoute", "{rules: [{matches: [{path: {value: v2}}, {path: {type: Prefix, value: /}}, {path: {type: Exact, value: '/a//b'}}, {path: {value: '/a/../b'}}, {path: {value: '/a%2fb'}}, {path: {value: '/a b'}}]}]}", &[
        "spec.rules[0].matches[1].path.type: must be one of Exact, PathPrefix, RegularExpression, not \"Prefix\"",
    ]),
    // (37)
    ("HTTPRoute", "{rules: [{matches: [{path: {value: '/a%0Ab'}}, {path: {type: Exact, value: '/a%7f'}}, {path: {type: Exact, value: \"/a\\tb\"}}, {path: {type: RegularExpression, value: \"/a\\u0001.*\"}}]}]}", &[
        "spec.rules[0].matches[0].path.value: \"/a%0Ab\" has a character that is not allowed in a path (RFC 3986 §3.3)",
        "spec.rules[0].matches[1].path.value: \"/a%7f\" has a character that is not allowed in a path (RFC 3986 §3.3)",
        "spec.rules[0].matches[2].path.value: \"/a\\tb\" has a character that is not allowed in a path (RFC 3986 §3.3)",
        "spec.rules[0].matches[3].path.value: has a control character, which no path has (RFC 3986 §3.3)",
    ]),
    ("AuthorizationPolicy", "{action: Allow, selector: {}, rules: [{to: [{paths: ['/a%00', '/a%1F*', '/a%20']}]}]}", &[
        "spec.rules[0].to[0].paths[0]: \"/a%00\" has a character that is not allowed in a path (RFC 3986 §3.3)",
        "spec.rules[0].to[0].paths[1]: \"/a%1F*\" has a character that is not allowed in a path (RFC 3986 §3.3)",
    ]),
    ("HTTPRoute", "{rules: [{matches: [{path: {type: RegularExpression, value: '/(a'}}]}]}", &[
        "spec.rules[0].matches[0].path.value: not a regular expression that Weft accepts: unclosed group",
    ]),
    ("HTTPRoute", "{rules: [{matches: [{path: {type: RegularExpression, value: 'a{1000}{1000}'}}]}]}", &[
        "spec.rules[0].matches[0].path.value: not a regular expression that Weft accepts: Compiled regex exceeds size limit of 1048576 bytes.",
    ]),
    ("HTTPRoute", "{rules: [{matches: [{headers: [{name: 'a b', value: x}, {name: ok, value: ''}, {name: OK, value: x}, {name: z, value: 1}]}]}]}", &[
        "spec.rules[0].matches[0].headers[3].value: must be a string, not 1 (put it in quotes)",
    ]),
    ("HTTPRoute", "{rules: [{matches: [{method: get}]}]}", &[
        "spec.rules[0].matches[0].method: must be one of GET, HEAD, POST, PUT, DELETE, CONNECT, OPTIONS, TRACE, PATCH, not \"get\"",
    ]),
    ("HTTPRoute", "{rules: [{timeouts: {request: 1s, backendRequest: 2s}}, {timeouts: {request: 10}}, {timeouts: {request: 1.5s}}]}", &[
        "spec.rules[1].timeouts.request: must be a duration such as \"10s\", \"500ms\" or \"1m30s\", not 10",
        "spec.rules[2].timeouts.request: must be a duration such as \"10s\", \"500ms\" or \"1m30s\" (units h, m, s, ms; no fractions)",
    ]),
    ("HTTPRoute", "{rules: [{retry: {codes: [200, 503, 503], attempts: 10}}]}", &[
        "spec.rules[0].retry.codes[2]: appears twice",
        "spec.rules[0].retry.codes[0]: must be from 400 to 599",
        "spec.rules[0].retry.attempts: must be at most 9 (tries after the first)",
    ]),
    ("HTTPRoute", "{rules: [{}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}]}", &[
        "spec.rules: must have at most 16 entries, not 17",
    ]),
    ("HTTPRoute", "{rules: [{name: a}, {name: a}]}", &[
        "spec.rules[1].name: appears twice",
    ]),
    ("HTTPRoute", "{rules: [{matches: }]}", &[
        "spec.rules[0].matches: has no value: give it one or remove the field",
    ]),
    ("HTTPRoute", "{rules: {}}", &[
        "spec.rules: must be a list, not a map",
    ]),
    ("Gateway", "{}", &[
        "spec.gatewayClassName: required",
        "spec.listeners: required",
    ]),
    ("Gateway", "{gatewayClassName: nginx, listeners: []}", &[
        "spec.gatewayClassName: must be \"weft\", not \"nginx\"",
        "spec.listeners: must have at least one entry",
    ]),
    ("Gateway", "{gatewayClassName: weft, listeners: [{name: a, port: 443, protocol: HTTPS, tls: {}}, {name: b, port: 80}, {name: c, port: 80, protocol: http}]}", &[
        "spec.listeners[0].tls: not supported yet",
        "spec.listeners[1].protocol: required",
        "spec.listeners[2].protocol: must be one of HTTP, HTTPS, TLS, TCP, UDP, not \"http\"; did you mean \"HTTP\"?",
    ]),
    ("Gateway", "{gatewayClassName: weft, listeners: [{name: a, port: 443, protocol: HTTPS}, {name: b, port: 5432, protocol: TCP}]}", &[
        "spec.listeners[0].protocol: not supported yet",
        "spec.listeners[1].protocol: not supported yet",
    ]),
    ("Gateway", "{gatewayClassName: weft, listeners: [{name: a, port: 80, protocol: HTTP}, {name: a, port: 80, protocol: HTTP}]}", &[
        "spec.listeners[1].name: appears twice",
        "spec.listeners[1].hostname: appears twice",
    ]),
    ("Gateway", "{gatewayClassName: weft, listeners: [{name: a, port: 80, protocol: HTTP, hostname: '*', allowedRoutes: {namespaces: {from: Selector}, kinds: [{kind: GRPCRoute}]}}]}", &[
        "spec.listeners[0].hostname: \"*\" is not a hostname: use a lower-case DNS name such as \"a.example\" or \"*.example\", no address and no port",
        "spec.listeners[0].allowedRoutes.kinds[0].kind: not supported yet",
        "spec.listeners[0].allowedRoutes.namespaces.selector: required",
    ]),
    ("Gateway", "{gatewayClassName: weft, listeners: [{name: a, port: 80, protocol: HTTP, allowedRoutes: {namespaces: {selector: {}}}}]}", &[
        "spec.listeners[0].allowedRoutes.namespaces.selector: only with `from: Selector`",
    ]),
    ("Gateway", "{gatewayClassName: weft, listeners: [{name: a, port: 80, protocol: HTTP}], addresses: [{value: x}, {type: Name, value: x}]}", &[
        "spec.addresses[0].value: must be an IP address",
        "spec.addresses[1].type: must be one of IPAddress, Hostname, not \"Name\"",
    ]),
    ("Workload", "{}", &[
        "spec.addresses: required",
    ]),
    ("Workload", "{addresses: []}", &[
        "spec.addresses: must have at least one entry",
    ]),
    ("Workload", "{addresses: [10.0.0.1, 10.0.0.1, 0.0.0.0], ports: [{port: 80, name: http}, {port: 80, name: http}], weight: 0}", &[
        "spec.weight: must be a number from 1 to 4294967295, not 0",
    ]),
    ("Workload", "{addresses: [10.0.0.1], weight: 1000001, serviceAccount: a/b, zone: 'a b', health: up}", &[
        "spec.health: must be one of healthy, draining, unhealthy, not \"up\"",
    ]),
    ("Workload", "{addresses: [10.0.0.1], ports: [{port: 80, protocol: HTTP}], mesh: maybe}", &[
        "spec.ports[0].protocol: must be one of detect, http, http2, grpc, tcp, not \"HTTP\"; did you mean \"http\"?",
        "spec.mesh: must be true or false, not \"maybe\"",
    ]),
    ("TrafficPolicy", "{}", &[
        "spec.targetRef: required",
    ]),
    ("TrafficPolicy", "{targetRef: {}, retry: {attempts: many}, limit: {}}", &[
        "spec.targetRef.kind: required",
        "spec.targetRef.name: required",
        "spec.retry.attempts: must be a number from 0 to 4294967295, not \"many\"",
        "spec.limit: unknown field; did you mean \"limits\"?",
    ]),
    ("TrafficPolicy", "{targetRef: {kind: Gateway, name: a}}", &[
        "spec.targetRef.kind: must be Service (group \"\"), not \"Gateway\" of group \"\"",
    ]),
    ("TrafficPolicy", "{targetRef: {kind: Service, name: a, port: 80}}", &[
        "spec.targetRef.port: unknown field; known are group, kind, name, sectionName",
    ]),
    ("TrafficPolicy", "{targetRef: {kind: Service, name: a}, timeouts: {connect: 0s, idle: 0s, tcpIdle: 0s, request: 1s, perTry: 2s}}", &[
        "spec.timeouts.connect: must be more than 0s",
        "spec.timeouts.idle: must be more than 0s",
        "spec.timeouts.tcpIdle: must be more than 0s",
        "spec.timeouts.perTry: must be at most the request's timeout, which is 1s",
    ]),
    ("TrafficPolicy", "{targetRef: {kind: Service, name: a}, retry: {attempts: 0, retryOn: [], statusCodes: [200], backoff: {base: 1s}, budget: {ratio: 1.5, minPerSecond: 2000000}}}", &[
        "spec.retry.attempts: must be from 1 to 10, the first try included; 1 is no retry",
        "spec.retry.retryOn: must not be empty; `attempts: 1` switches retries off",
        "spec.retry.statusCodes[0]: must be from 400 to 599",
        "spec.retry.backoff.max: must be at least base; they are 250ms and 1s",
        "spec.retry.budget.ratio: must be a ratio from 0 to 1",
        "spec.retry.budget.minPerSecond: must be at most 1000000",
    ]),
    ("TrafficPolicy", "{targetRef: {kind: Service, name: a}, retry: {on: [resets, reset, reset], retryOn: [reset]}}", &[
        "spec.retry.on[0]: must be one of connect-failure, refused-stream, gateway-error, reset, 5xx, not \"resets\"; did you mean \"reset\"?",
        "spec.retry: \"retryOn\" appears twice",
    ]),
    ("TrafficPolicy", "{targetRef: {kind: Service, name: a}, retry: {on: [reset, reset]}}", &[
        "spec.retry.retryOn[1]: appears twice",
    ]),
    ("TrafficPolicy", "{targetRef: {kind: Service, name: a}, outlierDetection: {baseEjection: 0s, maxEjected: -0.1}, limits: {connections: 0, pending: 0, requests: 0}, loadBalancer: {type: RoundRobin}}", &[
        "spec.loadBalancer.type: must be one of PeakEwma, not \"RoundRobin\"",
    ]),
    ("TrafficPolicy", "{targetRef: {kind: Service, name: a}, outlierDetection: {maxEjected: .nan}}", &[
        "spec.outlierDetection.maxEjected: must be a ratio from 0 to 1",
    ]),
    ("AuthorizationPolicy", "{}", &[
        "spec.action: required",
        "spec.rules: required",
    ]),
    ("AuthorizationPolicy", "{action: Allow, rules: []}", &[
        "spec: selector or targetRef is required",
    ]),
    ("AuthorizationPolicy", "{action: Audit, selector: {}, rules: []}", &[
        "spec.action: must be one of Allow, Deny, not \"Audit\"",
    ]),
    ("AuthorizationPolicy", "{action: Deny, selector: {}, targetRef: {kind: Service, name: a}, rules: []}", &[
        "spec.targetRef: not together with selector",
        "spec.rules: must have at least one entry with `action: Deny`",
    ]),
    ("AuthorizationPolicy", "{action: Allow, selector: {matchExpressions: []}, rules: []}", &[
        "spec.selector.matchExpressions: not supported yet",
    ]),
    ("AuthorizationPolicy", "{action: Allow, selector: {}, rules: [{from: [], to: []}, {from: [{}], to: [{}]}, {from: }]}", &[
        "spec.rules[2].from: has no value: give it one or remove the field",
    ]),
    ("AuthorizationPolicy", "{action: Allow, selector: {}, rules: [{from: [{identities: [], namespaces: [A]}], to: [{methods: [get], paths: [a, '/a*b'], ports: [0]}]}]}", &[
        "spec.rules[0].to[0].ports[0]: must be a number from 1 to 65535, not 0",
    ]),
    ("AuthorizationPolicy", "{action: Allow, selector: {}, rules: [{from: [{identities: [], namespaces: [A]}], to: [{methods: [get], paths: [a, '/a*b', '/a?b', '/ok*'], ports: []}]}]}", &[
        "spec.rules[0].from[0]: must name only one of identities, serviceAccounts and namespaces; use an entry for each",
        "spec.rules[0].from[0].identities: must not be empty: it would be nobody or anyone",
        "spec.rules[0].from[0].namespaces[0]: \"A\" is not a name: use 1 to 63 lower-case letters, digits and '-', with a letter or digit at both ends",
        "spec.rules[0].to[0].methods[0]: \"get\" is not a method: methods are compared exactly and written in upper case",
        "spec.rules[0].to[0].paths[0]: \"a\" must start with '/'",
        "spec.rules[0].to[0].paths[1]: '*' may be only at the end",
        "spec.rules[0].to[0].paths[2]: \"/a?b\" has a character that is not allowed in a path (RFC 3986 §3.3)",
        "spec.rules[0].to[0].ports: must not be empty: it would be nothing or everything; leave it out for everything",
    ]),
    ("AuthorizationPolicy", "{action: Allow, selector: {}, rules: [{from: [{identities: ['*', 'spiffe://*', 'spiffe://weft*', 'spiffe://a/*/b*', 'spiffe://a', 'http://a/b', 'spiffe://a/ns/shop*']}, {serviceAccounts: [user, shop/user]}]}]}", &[
        "spec.rules[0].from[0].identities[0]: a prefix must name the whole trust domain, such as \"spiffe://weft.local/*\"",
        "spec.rules[0].from[0].identities[1]: a prefix must name the whole trust domain, such as \"spiffe://weft.local/*\"",
        "spec.rules[0].from[0].identities[2]: a prefix must name the whole trust domain, such as \"spiffe://weft.local/*\"",
        "spec.rules[0].from[0].identities[3]: '*' may be only at the end",
        "spec.rules[0].from[0].identities[4]: \"spiffe://a\": the path is missing",
        "spec.rules[0].from[0].identities[5]: \"http://a/b\": a SPIFFE ID starts with \"spiffe://\"",
        "spec.rules[0].from[1].serviceAccounts[0]: \"user\" must be namespace/name",
    ]),
    ("MeshConfig", "{inbound: Strict, outbound: any, accessLog: off, defaultAuthorization: no}", &[
        "spec.inbound: must be one of permissive, strict, not \"Strict\"; did you mean \"strict\"?",
        "spec.outbound: must be one of allow-any, registered-only, not \"any\"",
        "spec.defaultAuthorization: must be one of allow, authenticated, deny, not \"no\"",
    ]),
    ("MeshConfig", "{inbound: strict, mtls: on}", &[
        "spec.mtls: unknown field; known are inbound, defaultAuthorization, outbound, accessLog, encodedSlashes",
    ]),
    ("MeshConfig", "{encodedSlashes: decode}", &[
        "spec.encodedSlashes: must be one of refuse, keep, not \"decode\"",
    ]),
    ("MeshConfig", "{accessLog: false}", &[
        "spec.accessLog: must be one of off, errors, all, not false",
    ]),
];
