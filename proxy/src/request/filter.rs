//! The filters phase: the filters of the matched rule, on a request before its attempts and on the answer on its way back.
//! One file for each filter. A filter may wait; one that reads the body takes [`Body::replayable`], which keeps up to 64 KiB,
//! reads that, and passes on [`Body::again`].
//! Spec: Gateway API `HTTPRouteFilter`.

pub(crate) mod header_modifier;

use weft_core::filter::Filters;

use crate::http::{answer::Answer, body::Body, head::Head};

/// Runs the filters of a request. Gives back the body to send.
pub(crate) async fn request(filters: &Filters, head: &mut Head, body: Body) -> Body {
    header_modifier::apply(&filters.request_headers, &mut head.request.fields);
    body
}

/// Runs the filters of an answer, the application's or the rule's own. A failure of the proxy passes none.
pub(crate) fn answer(filters: &Filters, answer: &mut Answer) {
    header_modifier::apply(&filters.response_headers, &mut answer.head.fields);
}
