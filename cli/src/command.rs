//! One file a command. Each asks the control plane and prints the answer; the decisions are the control plane's.

pub mod apply;
pub mod completion;
pub mod delete;
pub mod demo;
pub mod get;
pub mod history;
pub mod rollback;
pub mod status;
pub mod token;
