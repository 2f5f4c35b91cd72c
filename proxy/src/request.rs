//! One connection and one request on their way through the proxy, top to bottom.
//!
//! - [`inbound`], [`outbound`], [`gateway`]: a connection, then ONE request each, as the phases
//!   strip -> authorize -> route -> filters -> attempt -> answer. They only decide.
//! - [`prelude`]: what a connection speaks, by its first bytes, its silence, or the first speaker; for every direction.
//! - [`phases`]: the phases that directions share. [`refuse`]: what is not served at all.
//! - [`authorize`]: whether policy allows it, now and while it lasts.
//! - [`filter`]: the filters of a rule, one file each.
//! - [`attempt`]: the tries of a request. [`deliver`]: the workload beside this proxy.
//! - [`exchange`]: the record of a request from its head to the end of its answer. [`tunnel`]: after a protocol switch.
//! - [`http`]: serving the connection whose requests these are.
//! - [`opaque`]: a connection whose bytes are not HTTP.

pub(crate) mod attempt;
pub(crate) mod authorize;
pub(crate) mod deliver;
pub(crate) mod exchange;
pub(crate) mod filter;
pub(crate) mod gateway;
pub(crate) mod http;
pub(crate) mod inbound;
pub(crate) mod opaque;
pub(crate) mod outbound;
pub(crate) mod phases;
pub(crate) mod prelude;
pub(crate) mod refuse;
pub(crate) mod tunnel;
mod verdict;
