//! The meaning of a mesh: the objects that users apply, the model that a proxy obeys, and how one becomes the other.
//! No socket, clock, task or lock in here; time and randomness are arguments.
//!
//! - [`api`]: the shapes of objects (Gateway API and `weft.dev`), parsing and validation.
//! - [`identity`], [`names`], [`listener`], [`route`], [`filter`], [`cluster`], [`endpoint`], [`policy`]: the model a proxy
//!   obeys.
//! - [`snapshot`]: the whole configuration of a proxy, and which parts of it need which.
//! - [`compile`]: objects and workloads -> model.
//! - [`wire`]: model <-> xDS messages.
//! - [`balancer`], [`outlier`], [`retry`], [`failure`]: decisions of the data path, without IO.
//! - [`text`]: what others wrote, for a terminal. [`answer`]: what the REST API answers.

pub mod answer;
pub mod api;
pub mod balancer;
pub mod cluster;
pub mod compile;
pub mod endpoint;
pub mod failure;
pub mod filter;
pub mod identity;
pub mod listener;
mod lookup;
pub mod names;
pub mod outlier;
pub mod policy;
pub mod retry;
pub mod route;
pub mod snapshot;
pub mod text;
pub mod wire;
