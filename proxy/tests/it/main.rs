//! Real proxies over loopback: traffic through pairs of them, and one against a fake control plane.

mod apps;
mod gateway;
mod grpc;
mod http1;
mod http2;
mod control;
mod files;
mod pair;
mod plane;
mod traffic;
mod upgrade;
