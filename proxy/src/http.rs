//! HTTP, and the only room that knows hyper's connections: heads and bodies as the request path sees them, serving and
//! calling, and the answers of the proxy itself.

pub(crate) mod body;
pub(crate) mod exchange;
pub(crate) mod head;
pub(crate) mod hop;
pub(crate) mod path;
pub(crate) mod respond;
pub(crate) mod serve;
pub(crate) mod upgrade;
