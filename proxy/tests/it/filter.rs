//! Filters of a rule: what the application and the caller see of them.

use http::{Request, Response};
use weft_core::{
    filter::{Filters, Header, HeaderModifier},
    route::{Action, Forward, Rule},
};

use crate::{
    apps::{empty, full, http1_app, http2_client, raw, text},
    gateway::gateway_with,
    pair::cluster_name,
};

fn filters() -> Filters {
    let modifier = |side: &str| HeaderModifier {
        remove: vec!["x-secret".into()],
        set: vec![Header::new("x-side", side)],
        add: vec![Header::new("x-trail", side)],
    };
    Filters { request_headers: modifier("request"), response_headers: modifier("answer") }
}

#[tokio::test]
async fn header_modifiers_change_what_the_application_and_the_caller_get() {
    let application = http1_app(|request| async move {
        let mut lines: Vec<String> = request
            .headers()
            .iter()
            .filter(|(name, _)| name.as_str().starts_with("x-s") || *name == "x-trail")
            .map(|(name, value)| format!("{name}={}", value.to_str().unwrap()))
            .collect();
        lines.sort();
        let answer = Response::builder().header("x-secret", "1").header("x-side", "app").header("x-trail", "app");
        answer.body(full(lines.join(" "))).unwrap()
    })
    .await;
    let rule = Rule { filters: filters(), ..Rule::all("shop/edge", Action::Forward(Forward::to(cluster_name()))) };
    let (_proxy, address) = gateway_with(application, vec![rule]);
    let request = "GET / HTTP/1.1\r\nhost: shop.example\r\nX-Secret: 1\r\nX-Side: a\r\nx-trail: caller\r\n\
                   connection: close\r\n\r\n";
    let (answer, _) = raw(address, request.as_bytes(), std::time::Duration::from_secs(5)).await;
    assert!(answer.ends_with("x-side=request x-trail=caller x-trail=request"), "{answer}");
    let mut client = http2_client(address).await;
    let request = Request::get("http://shop.example/").header("x-secret", "1").body(empty()).unwrap();
    let answer = client.send_request(request).await.unwrap();
    let all = |name: &str| answer.headers().get_all(name).iter().map(|v| v.to_str().unwrap()).collect::<Vec<_>>();
    assert_eq!((all("x-secret"), all("x-side"), all("x-trail")), (vec![], vec!["answer"], vec!["app", "answer"]));
    assert_eq!(text(answer).await.unwrap(), "x-side=request x-trail=request");
}

#[tokio::test]
async fn an_answer_that_a_rule_gives_is_no_failure_and_passes_the_filters() {
    let rules = vec![Rule { filters: filters(), ..Rule::all("shop/edge#0", Action::Respond(418)) }];
    let (proxy, address) = gateway_with(([127, 0, 0, 1], 1).into(), rules);
    let mut client = http2_client(address).await;
    let answer = client.send_request(Request::get("http://shop.example/").body(empty()).unwrap()).await.unwrap();
    assert_eq!(answer.status().as_u16(), 418);
    assert_eq!((answer.headers().get("weft-error"), &answer.headers()["x-side"]), (None, &"answer".parse().unwrap()));
    assert_eq!(text(answer).await.unwrap(), "");
    assert_eq!(proxy.metric("weft_failures_total", &["direction=\"gateway\""]), 0.0);
    assert_eq!(proxy.metric("weft_requests_total", &["direction=\"gateway\"", "status=\"4xx\""]), 1.0);
}

#[tokio::test]
async fn a_rule_without_a_backend_answers_500_and_is_a_failure() {
    let (proxy, address) =
        gateway_with(([127, 0, 0, 1], 1).into(), vec![Rule::all("shop/edge#0", Action::Respond(500))]);
    let mut client = http2_client(address).await;
    let answer = client.send_request(Request::get("http://shop.example/").body(empty()).unwrap()).await.unwrap();
    assert_eq!((answer.status().as_u16(), &answer.headers()["weft-error"]), (500, &"NC".parse().unwrap()));
    assert_eq!(proxy.metric("weft_failures_total", &["flag=\"NC\""]), 1.0);
}
