//! Tests of the proxy's settings.

use serde_json::json;

use super::*;

const TOKEN: &str = "weft1.0123456789abcdef.c2VjcmV0.e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn file(rest: &str) -> String {
    format!(
        "apiVersion: weft.dev/v1alpha1\nkind: ProxyConfig\nmetadata: {{name: a-1, namespace: shop}}\n\
         spec:\n  mode: sidecar\n  workload: {{serviceAccount: a, addresses: [10.0.0.1]}}\n{rest}"
    )
}

#[test]
fn what_is_not_said_has_the_documented_defaults() {
    let settings = Settings::parse(&file(""), &Overrides::default()).unwrap();
    assert_eq!((settings.mark, settings.workers, settings.max_connections), (Some(0x7765_6674), 1, 10_000));
    assert_eq!(
        (settings.max_streams, settings.stalled, settings.paused, settings.half_closed),
        (None, Duration::from_secs(60), Duration::ZERO, Duration::from_secs(30))
    );
    assert_eq!((settings.ports.outbound, settings.ports.metrics), (15001, 15020));
    assert_eq!((settings.drain, settings.mesh_ranges.len()), (Duration::from_secs(30), 2));
    assert!(matches!(settings.source, Source::File { identity: None, .. }));
    assert_eq!(settings.effective.pointer("/spec/ports/inbound"), Some(&json!(15006)));
}

#[test]
fn every_mistake_is_named_at_once() {
    let text = file("  mark: x\n  colour: red\n  ports: {admin: 1, metrics: 1}\n---\nkind: Nothing\n");
    let path = PathBuf::from("p.yaml");
    let mistakes = Settings::parse(&text, &Overrides::default()).unwrap_err();
    let mistakes = ConfigError::Mistakes { path, mistakes }.to_string();
    for part in ["spec.mark", "colour", "p.yaml:11: apiVersion"] {
        assert!(mistakes.contains(part), "{part}: {mistakes}");
    }
}

#[test]
fn the_environment_completes_a_file_and_secrets_are_hidden() {
    let overrides = Overrides {
        name: Some("a-2".into()),
        addresses: vec!["10.0.0.9".parse().unwrap()],
        control_plane: Some("10.0.0.2:15012".into()),
        join_token: Some(TOKEN.into()),
        ..Overrides::default()
    };
    let settings = Settings::parse(&file(""), &overrides).unwrap();
    assert_eq!((settings.name.as_str(), settings.workload.addresses[0].to_string()), ("a-2", "10.0.0.9".into()));
    assert!(matches!(&settings.source, Source::ControlPlane(join) if join.address == "10.0.0.2:15012"));
    for shown in [settings.effective.to_string(), format!("{settings:?}"), format!("{overrides:?}")] {
        assert!(!shown.contains("c2VjcmV0"), "{shown}");
    }
    let with_file = Overrides { join_token_file: Some("/run/token".into()), ..Overrides::default() };
    let text = file(&format!("  controlPlane: {{address: \"a:1\", joinToken: {TOKEN}}}\n"));
    let settings = Settings::parse(&text, &with_file).unwrap();
    assert!(matches!(&settings.source, Source::ControlPlane(Join { token: TokenSource::File(_), .. })));
}

#[test]
fn a_forward_listener_to_a_port_of_the_proxy_itself_is_refused_with_its_field() {
    let mistakes = |forward: &str| {
        Settings::parse(&file(&format!("  forward: {{{forward}}}\n")), &Overrides::default()).err().unwrap_or_default()
    };
    for (forward, port) in [
        ("inbound: [{listen: \"127.0.0.1:9002\", destination: \"127.0.0.1:9002\"}]", "spec.forward.inbound[0].listen"),
        ("inbound: [{listen: \"0.0.0.0:9002\", destination: \"10.0.0.1:9002\"}]", "spec.forward.inbound[0].listen"),
        (
            "inbound: [{listen: \"[::]:9002\", destination: \"[::ffff:127.0.0.1]:9002\"}]",
            "spec.forward.inbound[0].listen",
        ),
        ("inbound: [{listen: \"127.0.0.1:9002\", destination: \"0.0.0.0:9002\"}]", "spec.forward.inbound[0].listen"),
        ("inbound: [{listen: \"127.0.0.1:9002\", destination: \"10.0.0.1:15006\"}]", "spec.ports.inbound"),
        ("inbound: [{listen: \"127.0.0.1:9002\", destination: \"127.0.0.1:15000\"}]", "spec.ports.admin"),
        ("inbound: [{listen: \"127.0.0.1:9002\", destination: \"10.0.0.1:15020\"}]", "spec.ports.metrics"),
    ] {
        let mistakes = mistakes(forward);
        let [mistake] = &mistakes[..] else { panic!("{forward}: {mistakes:?}") };
        let field = "spec.forward.inbound[0].destination: ";
        assert!(mistake.text.starts_with(field) && mistake.text.contains(port), "{forward}: {mistake:?}");
        assert!(mistake.line.is_some_and(|line| line > 1), "{mistake:?}");
    }
    let two = "outbound: [{listen: \"127.0.0.1:9001\", destination: \"127.0.0.1:9002\"}], \
               inbound: [{listen: \"127.0.0.1:9002\", destination: \"127.0.0.1:9001\"}]";
    assert_eq!(mistakes(two).len(), 2);
    for good in [
        "inbound: [{listen: \"127.0.0.1:9002\", destination: \"127.0.0.1:8080\"}]",
        "inbound: [{listen: \"127.0.0.1:9002\", destination: \"127.0.0.2:9002\"}]",
        "outbound: [{listen: \"127.0.0.1:9001\", destination: \"10.0.0.7:15006\"}]",
    ] {
        assert_eq!(mistakes(good), Vec::<Mistake>::new(), "{good}");
    }
}

/// The kernel would spread connections over both.
#[test]
fn two_forward_listeners_with_one_address_are_refused() {
    let forward = "outbound: [{listen: \"127.0.0.1:9001\", destination: \"10.0.0.1:80\"}], inbound: [{listen: \
                   \"127.0.0.1:9001\", destination: \"127.0.0.1:8080\"}, {listen: \"127.0.0.1:0\", destination: \
                   \"127.0.0.1:8081\"}, {listen: \"127.0.0.1:0\", destination: \"127.0.0.1:8082\"}]";
    let mistakes = Settings::parse(&file(&format!("  forward: {{{forward}}}\n")), &Overrides::default()).unwrap_err();
    assert_eq!(
        mistakes.into_iter().map(|mistake| mistake.text).collect::<Vec<_>>(),
        ["spec.forward.inbound[0].listen: 127.0.0.1:9001 is in use by spec.forward.outbound[0].listen \
             (127.0.0.1:9001): choose another port"]
    );
    // The same address in other words, or all addresses. (26)
    for other in ["[::ffff:127.0.0.1]:9001", "0.0.0.0:9001", "[::]:9001"] {
        let forward = format!(
            "outbound: [{{listen: \"127.0.0.1:9001\", destination: \"10.0.0.1:80\"}}, {{listen: \"{other}\", destination: \"10.0.0.2:80\"}}]"
        );
        let mistakes =
            Settings::parse(&file(&format!("  forward: {{{forward}}}\n")), &Overrides::default()).unwrap_err();
        assert!(mistakes[0].text.contains("spec.forward.outbound[1].listen: "), "{mistakes:?}");
        assert!(mistakes[0].text.contains("spec.forward.outbound[0].listen"), "{mistakes:?}");
    }
}

#[test]
fn a_bad_token_and_objects_beside_a_control_plane_are_refused() {
    let text = file(
        "  controlPlane: {address: \"a:1\", joinToken: hello}\n---\napiVersion: v1\nkind: Service\n\
         metadata: {name: s, namespace: shop}\nspec: {selector: {app: s}, ports: [{port: 80}]}\n",
    );
    let mistakes = Settings::parse(&text, &Overrides::default()).unwrap_err();
    assert_eq!(mistakes.len(), 2, "{mistakes:?}");
    assert!(mistakes.iter().any(|mistake| mistake.text.contains("joinToken")), "{mistakes:?}");
}

/// (20.26)
#[test]
fn every_mistake_has_the_line_of_its_field_in_the_file_also_when_flags_replace_parts_of_it() {
    let text = "# the proxy of a\napiVersion: weft.dev/v1alpha1\nkind: ProxyConfig\nmetadata: {name: a, namespace: shop}\nspec:\n  \
                mode: sidecarr\n  workload:\n    addresses: [10.0.0.1]\n    ports:\n    - port: 99999\n  bogus: 1\n---\n---\n# \
                nothing\n---\napiVersion: v1\nkind: Service\nmetadata: {name: p}\nspec:\n  ports:\n  - port: http\n---\nkind: [\n";
    let of = |text: &str, overrides: &Overrides| {
        let mistakes = Settings::parse(text, overrides).unwrap_err();
        ConfigError::Mistakes { path: "p.yaml".into(), mistakes }.to_string()
    };
    let all = of(text, &Overrides::default());
    let lines: Vec<&str> = all.lines().collect();
    for (line, start) in lines.iter().zip([
        "5 mistakes:",
        "  p.yaml:6: spec.mode: must be one of ",
        "  p.yaml:10: spec.workload.ports[0].port: must be ",
        "  p.yaml:11: spec.bogus: unknown field",
        "  p.yaml:21: Service/default/p: spec.ports[0].port: must be ",
        "  p.yaml:24: ",
    ]) {
        assert!(line.starts_with(start), "{start}: {all}");
    }
    assert_eq!(lines.len(), 6, "{all}");
    // Flags rewrite the document that is parsed; the lines stay those of the file.
    let overrides = Overrides { name: Some("b".to_owned()), ..Overrides::default() };
    let text = text.replace("---\nkind: [\n", "").replace("port: http", "port: 80").replace("  bogus: 1\n", "");
    let text = text.replace("sidecarr", "sidecar");
    let one = of(&text, &overrides);
    assert!(one.starts_with("p.yaml:10: spec.workload.ports[0].port: must be "), "{one}");
}
