//! The whole mesh in one kernel: real programs in network namespaces with real redirection. Needs root.
//! One file per subject; each test has a world of its own.

mod redirect;
mod world;
