//! Real proxies over loopback: traffic through pairs of them, and one against a fake control plane.

mod pair;
mod traffic;
