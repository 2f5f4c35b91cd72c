//! A stand-in for the gateway: sends each path prefix to its service, so that one address serves the shop.

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use http::{StatusCode, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

#[derive(Clone)]
struct Edge {
    services: [(&'static str, String); 3],
    client: Client<HttpConnector, Body>,
}

/// Runs until the test program ends; returns `host:port`.
pub(crate) fn start(services: [(&'static str, String); 3]) -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let client = Client::builder(TokioExecutor::new()).build_http();
            let router = Router::new().fallback(forward).with_state(Edge { services, client });
            axum::serve(tokio::net::TcpListener::from_std(listener).unwrap(), router).await.unwrap();
        });
    });
    address
}

async fn forward(State(edge): State<Edge>, mut request: Request) -> Response {
    let path = request.uri().path_and_query().unwrap().clone();
    let Some((_, address)) = edge.services.iter().find(|(prefix, _)| path.path().starts_with(prefix)) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    *request.uri_mut() =
        Uri::builder().scheme("http").authority(address.as_str()).path_and_query(path).build().unwrap();
    match edge.client.request(request).await {
        Ok(response) => response.into_response(),
        Err(error) => (StatusCode::BAD_GATEWAY, error.to_string()).into_response(),
    }
}
