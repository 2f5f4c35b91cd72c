//! Calling: connections to endpoints, pools of them, and the tries of one request.

pub(crate) mod attempt;
pub(crate) mod dial;
pub(crate) mod pool;
