//! Every route of the REST API, good and bad.

use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::{Mesh, exchange, request};

const TWO: &str = "
apiVersion: v1
kind: Service
metadata: {name: a, namespace: shop, labels: {team: red}}
spec: {selector: {app: a}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: b, namespace: shop}
spec: {selector: {app: b}, ports: [{port: 80}]}
";

fn service(name: &str, port: u16) -> String {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "shop"}, "spec": {"ports": [{"port": port}]}})
        .to_string()
}

fn fields(answer: &Value) -> Vec<String> {
    let details = answer["details"].as_array().cloned().unwrap_or_default();
    details.iter().map(|detail| detail["field"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn apply_answers_with_the_revision_and_each_object() {
    let mesh = Mesh::start().await;
    let answer = mesh.apply(TWO).await;
    assert_eq!(answer["revision"], 1);
    let object = |n: usize| {
        format!(
            "{} {}/{} {}",
            answer["objects"][n]["kind"],
            answer["objects"][n]["namespace"],
            answer["objects"][n]["name"],
            answer["objects"][n]["result"]
        )
        .replace('"', "")
    };
    assert_eq!((object(0), object(1)), ("Service shop/a created".into(), "Service shop/b created".into()));
    let answer = mesh.apply(&TWO.replace("app: b", "app: c")).await;
    assert_eq!(
        (&answer["revision"], &answer["objects"][0]["result"], &answer["objects"][1]["result"]),
        (&json!(2), &json!("unchanged"), &json!("configured"))
    );
    let (status, dry) = mesh.local(Method::POST, "/api/v1/apply?dryRun=true", service("x", 1)).await;
    assert_eq!(
        (status, &dry["dryRun"], &dry["objects"][0]["result"]),
        (StatusCode::OK, &json!(true), &json!("created"))
    );
    assert_eq!(mesh.get("/api/v1/services").await["items"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn objects_are_put_read_listed_and_deleted() {
    let mesh = Mesh::start().await;
    let path = "/api/v1/services/shop/a";
    assert_eq!(mesh.local(Method::GET, path, "").await.0, 404);
    let (status, made) = mesh.local(Method::PUT, path, service("a", 80)).await;
    assert_eq!(status, 201, "{made}");
    assert_eq!(made["metadata"]["generation"], 1);
    assert_eq!(made["spec"]["clusterIPs"].as_array().unwrap().len(), 2);
    assert_eq!(mesh.local(Method::PUT, path, service("a", 81)).await.0, 200);
    mesh.apply(TWO).await;
    let read = mesh.get(path).await;
    assert_eq!(read["spec"]["clusterIPs"], made["spec"]["clusterIPs"]);
    assert!(
        read["status"]["conditions"]
            .as_array()
            .unwrap()
            .iter()
            .any(|c| c["type"] == "Accepted" && c["status"] == "True")
    );
    let names = |list: Value| {
        list["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|o| o["metadata"]["name"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(names(mesh.get("/api/v1/services").await), ["a", "b"]);
    assert_eq!(names(mesh.get("/api/v1/services?label=team=red").await), ["a"]);
    assert!(names(mesh.get("/api/v1/services?namespace=other").await).is_empty());
    assert!(names(mesh.get("/api/v1/httproutes").await).is_empty());
    let (status, gone) = mesh.local(Method::DELETE, path, "").await;
    assert_eq!((status, &gone["objects"][0]["result"]), (StatusCode::OK, &json!("deleted")));
    assert_eq!(mesh.local(Method::DELETE, path, "").await.0, 404);
    let then = mesh.get("/api/v1/services/shop/a?revision=1").await;
    assert_eq!(then["spec"]["ports"][0]["port"], 80);
}

#[tokio::test]
async fn mistakes_name_document_object_and_field_and_change_nothing() {
    let mesh = Mesh::start().await;
    let text = "
{apiVersion: v1, kind: Service, metadata: {name: fine}, spec: {ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: bad}, spec: {ports: [{port: 0}], colour: red}}
---
{apiVersion: v1, kind: Pod, metadata: {name: pod}}
";
    let (status, answer) = mesh.local(Method::POST, "/api/v1/apply", text).await;
    assert_eq!(status, 422, "{answer}");
    let fields = fields(&answer);
    assert!(
        fields.contains(&"spec.ports[0].port".into())
            && fields.contains(&"spec.colour".into())
            && fields.contains(&"kind".into()),
        "{answer}"
    );
    assert_eq!(
        (&answer["details"][0]["document"], &answer["details"][0]["object"]),
        (&json!(1), &json!("Service/default/bad"))
    );
    assert_eq!(mesh.get("/api/v1/revisions").await["items"], json!([]));
    for (body, status) in [("{", 400), ("a: [b", 400), ("", 400), ("- 1", 422)] {
        let (found, answer) = mesh.local(Method::POST, "/api/v1/apply", body).await;
        assert!(found == status || found == 422 || found == 400, "{body}: {found} {answer}");
        assert!(answer["error"].is_string(), "{body}: {answer}");
    }
    let (status, answer) = mesh.local(Method::POST, "/api/v1/apply", vec![0xff, 0xfe]).await;
    assert_eq!(status, 400, "{answer}");
}

#[tokio::test]
async fn a_put_must_be_the_object_of_its_path() {
    let mesh = Mesh::start().await;
    for (path, field) in [
        ("/api/v1/services/shop/other", "metadata.name"),
        ("/api/v1/services/other/a", "metadata.namespace"),
        ("/api/v1/httproutes/shop/a", "kind"),
    ] {
        let (status, answer) = mesh.local(Method::PUT, path, service("a", 80)).await;
        assert_eq!((status, fields(&answer)), (StatusCode::BAD_REQUEST, vec![field.to_owned()]), "{answer}");
    }
    let (status, answer) = mesh.local(Method::PUT, "/api/v1/services/shop/a", TWO).await;
    assert_eq!((status, fields(&answer)), (StatusCode::BAD_REQUEST, vec!["body".to_owned()]));
}

#[tokio::test]
async fn old_ground_and_conflicts_are_409_with_the_field() {
    let mesh = Mesh::start().await;
    mesh.apply(TWO).await;
    let mut read = mesh.get("/api/v1/services/shop/a").await;
    mesh.local(Method::PUT, "/api/v1/services/shop/a", service("a", 81)).await;
    read["spec"]["ports"][0]["port"] = json!(82);
    let (status, answer) = mesh.local(Method::PUT, "/api/v1/services/shop/a", read.to_string()).await;
    assert_eq!(
        (status, fields(&answer)),
        (StatusCode::CONFLICT, vec!["metadata.resourceVersion".to_owned()]),
        "{answer}"
    );
    let (status, _) = mesh.local(Method::DELETE, "/api/v1/services/shop/a?resourceVersion=1", "").await;
    assert_eq!(status, 409);
    let mut stolen: Value = serde_json::from_str(&service("thief", 80)).unwrap();
    stolen["spec"]["clusterIPs"] = mesh.get("/api/v1/services/shop/b").await["spec"]["clusterIPs"].clone();
    let (status, answer) = mesh.local(Method::POST, "/api/v1/apply", stolen.to_string()).await;
    assert_eq!(status, 409);
    assert_eq!(fields(&answer), ["spec.clusterIPs[0]", "spec.clusterIPs[1]"]);
    let config = |namespace: &str| {
        json!({"apiVersion": "weft.dev/v1alpha1", "kind": "MeshConfig", "metadata": {"name": "default", "namespace": namespace}, "spec": {}}).to_string()
    };
    assert_eq!(mesh.local(Method::POST, "/api/v1/apply", config("default")).await.0, 200);
    assert!(matches!(mesh.local(Method::POST, "/api/v1/apply", config("other")).await.0.as_u16(), 409 | 422));
}

#[tokio::test]
async fn history_has_author_message_and_difference_and_leads_back() {
    let mesh = Mesh::start().await;
    mesh.apply(TWO).await;
    let (status, _) = mesh.local(Method::POST, "/api/v1/apply?message=more%20ports", service("a", 81)).await;
    assert_eq!(status, 200);
    let list = mesh.get("/api/v1/revisions?limit=1").await;
    let newest = &list["items"][0];
    assert_eq!(
        (&newest["number"], &newest["author"], &newest["message"]),
        (&json!(2), &json!("local"), &json!("more ports"))
    );
    assert_eq!(newest["changes"], json!([{"key": "Service/shop/a", "result": "configured"}]));
    let whole = mesh.get("/api/v1/revisions/2").await;
    let change = &whole["changes"][0];
    assert_eq!(
        (&change["before"]["spec"]["ports"][0]["port"], &change["after"]["spec"]["ports"][0]["port"]),
        (&json!(80), &json!(81))
    );
    let (status, answer) = mesh.local(Method::POST, "/api/v1/rollback/1?message=back", "").await;
    assert_eq!(
        (status, &answer["revision"], &answer["objects"][0]["result"]),
        (StatusCode::OK, &json!(3), &json!("configured"))
    );
    assert_eq!(mesh.get("/api/v1/services/shop/a").await["spec"]["ports"][0]["port"], 80);
    assert_eq!(mesh.get("/api/v1/revisions/3").await["rollbackTo"], 1);
    for path in ["/api/v1/revisions/0", "/api/v1/revisions/9"] {
        assert_eq!(mesh.local(Method::GET, path, "").await.0, 404, "{path}");
    }
    assert_eq!(mesh.local(Method::POST, "/api/v1/rollback/9", "").await.0, 404);
    for path in [
        "/api/v1/revisions/x",
        "/api/v1/revisions?limit=0",
        "/api/v1/revisions?limit=x",
        "/api/v1/services?colour=red",
        "/api/v1/services?label=x",
    ] {
        let (status, answer) = mesh.local(Method::GET, path, "").await;
        assert_eq!((status, fields(&answer).len()), (StatusCode::BAD_REQUEST, 1), "{path}: {answer}");
    }
}

#[tokio::test]
async fn a_dangling_reference_is_accepted_with_a_warning_that_goes_when_it_is_mended() {
    let mesh = Mesh::start().await;
    let route = "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r, namespace: shop}
spec: {parentRefs: [{group: '', kind: Service, name: a}], rules: [{backendRefs: [{name: b, port: 80}]}]}
";
    let answer = mesh.apply(route).await;
    assert_eq!(answer["objects"][0]["warnings"].as_array().unwrap().len(), 2, "{answer}");
    mesh.apply(TWO).await;
    let route = mesh.get("/api/v1/httproutes/shop/r").await;
    let conditions = route["status"]["parents"][0]["conditions"].as_array().unwrap();
    assert!(conditions.iter().all(|condition| condition["status"] == "True"), "{route}");
}

#[tokio::test]
async fn nothing_but_health_answers_without_a_credential() {
    let mesh = Mesh::start().await;
    let bearer = format!("Bearer {}", mesh.admin);
    let token = mesh.join_token("order", json!({})).await;
    let wrong = format!("{bearer}x");
    for path in [
        "/api/v1/services",
        "/api/v1/proxies",
        "/api/v1/bundle",
        "/api/v1/tokens",
        "/api/v1/revisions",
        "/",
        "/api/v1/nothing/a/b/c",
        "/metrics",
    ] {
        for credential in [
            None,
            Some("Bearer x"),
            Some("Bearer "),
            Some("Basic YTpi"),
            Some(wrong.as_str()),
            Some(mesh.admin.as_str()),
            Some(&format!("Bearer {token}")),
        ] {
            let (status, answer) = mesh.remote(Method::GET, path, credential, "").await;
            assert_eq!(status, 401, "{path} {credential:?}: {answer}");
        }
    }
    for (method, path) in [
        (Method::POST, "/api/v1/apply"),
        (Method::PUT, "/api/v1/services/shop/a"),
        (Method::DELETE, "/api/v1/services/shop/a"),
        (Method::POST, "/api/v1/rollback/0"),
        (Method::POST, "/api/v1/tokens"),
    ] {
        assert_eq!(mesh.remote(method, path, None, service("a", 1)).await.0, 401, "{path}");
    }
    for path in ["/healthz", "/readyz"] {
        assert_eq!(mesh.remote(Method::GET, path, None, "").await.0, 200);
    }
    let (status, answer) = mesh.remote(Method::POST, "/api/v1/apply", Some(&bearer), service("a", 80)).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(mesh.get("/api/v1/revisions/1").await["author"], "admin");
    let (status, pem) = mesh.remote(Method::GET, "/api/v1/bundle", Some(&bearer), "").await;
    assert!(status == 200 && pem.as_str().unwrap().starts_with("-----BEGIN CERTIFICATE"));
    assert_eq!(mesh.remote(Method::GET, "/nothing", Some(&bearer), "").await.0, 404);
    assert_eq!(mesh.remote(Method::PATCH, "/api/v1/apply", Some(&bearer), "").await.0, 405);
}

#[tokio::test]
async fn the_admin_token_survives_a_restart_and_is_told_once() {
    let mut mesh = Mesh::start().await;
    let bearer = format!("Bearer {}", mesh.admin);
    mesh.restart(&[]).await;
    assert!(mesh.running().admin_token().is_none());
    assert_eq!(mesh.remote(Method::GET, "/api/v1/services", Some(&bearer), "").await.0, 200);
    for file in std::fs::read_dir(mesh.dir.path().join("data")).unwrap() {
        let file = file.unwrap();
        if file.file_type().unwrap().is_file() && file.file_name() != "admin-token" {
            let content = std::fs::read(file.path()).unwrap();
            let secret = mesh.admin.rsplit('.').next().unwrap().as_bytes();
            assert!(!content.windows(secret.len()).any(|part| part == secret), "{:?}", file.path());
        }
    }
}

#[tokio::test]
async fn the_author_of_a_change_can_be_named() {
    let mesh = Mesh::start().await;
    let stream = tokio::net::UnixStream::connect(&mesh.running().addresses().api_socket).await.unwrap();
    let mut wish = request(Method::POST, "/api/v1/apply", None, service("a", 80));
    wish.headers_mut().insert("x-weft-author", "anna".parse().unwrap());
    assert_eq!(exchange(stream, wish).await.0, 200);
    assert_eq!(mesh.get("/api/v1/revisions/1").await["author"], "anna (local)");
}

#[tokio::test]
async fn a_large_body_is_refused_at_once_and_a_deep_one_soon() {
    let mesh = Mesh::start().await;
    let started = tokio::time::Instant::now();
    let (status, answer) = mesh.local(Method::POST, "/api/v1/apply", vec![b' '; (4 << 20) + 1]).await;
    assert_eq!(status, 413, "{answer}");
    for body in [
        "[".repeat(100_000),
        "{a: ".repeat(50_000),
        format!("a: &x [{}]\nb: [{}]", "1,".repeat(5_000), "*x,".repeat(5_000)),
    ] {
        let (status, answer) = mesh.local(Method::POST, "/api/v1/apply", body).await;
        assert!(status == 400 || status == 422, "{status} {answer}");
    }
    assert!(started.elapsed().as_secs() < 10, "{:?}", started.elapsed());
    assert_eq!(mesh.local(Method::GET, "/readyz", "").await.0, 200);
}

#[tokio::test]
async fn join_tokens_are_made_listed_without_secret_and_deleted() {
    let mesh = Mesh::start().await;
    let token = mesh.join_token("order", json!({"ttl": "10m", "reusable": true})).await;
    let id = token.split('.').nth(1).unwrap();
    let list = mesh.get("/api/v1/tokens").await;
    let told = &list["items"][0];
    assert_eq!(
        (&told["id"], &told["namespace"], &told["serviceAccount"], &told["usesLeft"]),
        (&json!(id), &json!("shop"), &json!("order"), &Value::Null)
    );
    assert!(told.get("token").is_none() && !list.to_string().contains(token.split('.').nth(2).unwrap()));
    let path = format!("/api/v1/tokens/{id}");
    assert_eq!(mesh.local(Method::DELETE, &path, "").await.0, 204);
    assert_eq!(mesh.local(Method::DELETE, &path, "").await.0, 404);
    for (wish, field) in [
        (json!({"namespace": "a/b", "serviceAccount": "x"}), "namespace"),
        (json!({"namespace": "a", "serviceAccount": ""}), "serviceAccount"),
        (json!({"namespace": "a", "serviceAccount": "x", "ttl": "5"}), "ttl"),
        (json!({"namespace": "a", "serviceAccount": "x", "ttl": "0s"}), "ttl"),
        (json!({"namespace": "a", "serviceAccount": "x", "ttl": "9999d"}), "ttl"),
        (json!({"namespace": "a", "serviceAccount": "x", "admin": true}), "body"),
        (json!({"namespace": "a"}), "body"),
        // With its certificate a workload could pose as the control plane before every proxy.
        (json!({"namespace": "weft-system", "serviceAccount": "control-plane"}), "serviceAccount"),
    ] {
        let (status, answer) = mesh.local(Method::POST, "/api/v1/tokens", wish.to_string()).await;
        assert_eq!((status, fields(&answer)), (StatusCode::BAD_REQUEST, vec![field.to_owned()]), "{wish}: {answer}");
    }
}

#[tokio::test]
async fn a_lost_admin_token_is_replaced_over_the_unix_socket_and_nowhere_else() {
    let mut mesh = Mesh::start().await;
    let old = format!("Bearer {}", mesh.admin);
    let path = "/api/v1/admin-token";
    let (status, answer) = mesh.remote(Method::POST, path, Some(&old), "").await;
    assert_eq!(status, 403, "{answer}");
    assert_eq!(mesh.remote(Method::POST, path, None, "").await.0, 401);
    assert_eq!(mesh.remote(Method::GET, "/api/v1/proxies", Some(&old), "").await.0, 200);
    let (status, answer) = mesh.local(Method::POST, path, "").await;
    assert_eq!(status, 201, "{answer}");
    let new = format!("Bearer {}", answer["token"].as_str().unwrap());
    assert_eq!(mesh.remote(Method::GET, "/api/v1/proxies", Some(&new), "").await.0, 200);
    assert_eq!(mesh.remote(Method::GET, "/api/v1/proxies", Some(&old), "").await.0, 401);
    mesh.restart(&[]).await;
    assert!(mesh.running().admin_token().is_none(), "the new one is kept");
    assert_eq!(mesh.remote(Method::GET, "/api/v1/proxies", Some(&new), "").await.0, 200);
}
