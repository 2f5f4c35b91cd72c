//! Every manifest of the conformance suite that speaks of kinds we know is read, or refused only for what is named.

use std::path::Path;

use weft_core::api::{Fault, parse_documents};

const UNKNOWN: [&str; 8] =
    ["Namespace", "Deployment", "Pod", "ReferenceGrant", "GRPCRoute", "TCPRoute", "ConfigMap", "Secret"];

#[test]
fn manifests_of_the_gateway_api_are_read_or_refused_for_a_named_reason() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/gateway-api");
    let mut seen = [0usize; 3];
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        // The suite puts the class under test in here.
        let text = std::fs::read_to_string(&path).unwrap().replace("\"{GATEWAY_CLASS_NAME}\"", "weft");
        let text = text.replace("{GATEWAY_CLASS_NAME}", "weft");
        for document in text.split("\n---") {
            match parse_documents(document) {
                Ok(objects) => seen[0] += objects.len(),
                Err(errors) => {
                    for error in errors {
                        let field = &error.error;
                        let shown = format!("{}: {error}", path.display());
                        match field.fault {
                            Fault::NotSupported => {
                                assert!(field.path.starts_with("spec."), "{shown}");
                                assert_eq!(field.reason, "not supported yet", "{shown}");
                                seen[1] += 1;
                            }
                            Fault::Unknown => {
                                assert_eq!(field.path, "kind", "{shown}");
                                let known =
                                    UNKNOWN.iter().any(|kind| field.reason.starts_with(&format!("{kind:?} is not")));
                                assert!(known, "{shown}");
                                seen[2] += 1;
                            }
                            _ => panic!("{shown}"),
                        }
                    }
                }
            }
        }
    }
    let [good, not_yet, unknown] = seen;
    println!("{good} read, {not_yet} not supported yet, {unknown} unknown");
    assert!(good >= 30 && not_yet >= 10 && unknown >= 5, "{good} read, {not_yet} not supported yet, {unknown} unknown");
}
