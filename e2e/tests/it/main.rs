//! The whole mesh in one kernel: real programs in network namespaces with real redirection. Needs root.
//! One file per subject; each test has a world of its own.

#![expect(clippy::indexing_slicing, reason = "shared bodies of tests look into JSON; a missing field fails the test")]

mod capture;
mod envoy;
mod failure;
mod guide;
mod lifecycle;
mod lost_store;
mod mesh;
mod outbound;
mod redirect;
mod routing;
mod traffic;
mod vanished;
mod world;
