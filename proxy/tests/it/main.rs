//! Real proxies over loopback: traffic through pairs of them, and one against a fake control plane.

mod apps;
mod balance;
mod control;
mod files;
mod gateway;
mod grpc;
mod http1;
mod http2;
mod pair;
mod plane;
mod retry;
mod traffic;
mod upgrade;
