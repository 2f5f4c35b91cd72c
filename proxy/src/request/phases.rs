//! The phases of a request that directions share: strip -> (authorize) -> route -> filters -> attempt -> answer.
//! Docs: docs/reference/request.md lists the same phases.

use std::sync::Arc;

use weft_core::{
    failure::Failure,
    filter::Filters,
    retry::MAX_REPLAY,
    route::{Action, Forward},
};
use weft_http::{
    fields::{Fields, Name},
    head::{Response, Version},
};

use super::{
    attempt::{self, Target},
    exchange::Exchange,
    filter,
};
use crate::{
    http::{answer::Answer, body::Body, head::Head, hop, respond, upgrade},
    live::Routes,
    telemetry::{Direction, Protocol},
    upstream::cluster::Cluster,
    worker::Worker,
};

/// The rule that a request matched.
struct Matched<'a> {
    filters: &'a Filters,
    decision: Decision<'a>,
}

/// The decision of a rule.
enum Decision<'a> {
    /// Sent to an endpoint of this cluster.
    Forward(&'a Forward, &'a Arc<Cluster>),
    /// Answered by the proxy as the rule says. Not a failure.
    Answer(u16),
}

/// Strip: takes the reserved fields out of a request that did not come over the hop.
pub(crate) fn strip(head: &mut Head) {
    hop::strip(&mut head.request.fields);
    head.tell_tunnels_method();
}

/// The phases between strip and answer of a request that leaves the workload or enters at the edge. `routes`: the route table of
/// its destination, or why there is none.
pub(crate) async fn forward(
    worker: &Arc<Worker>,
    routes: Result<&Routes, Failure>,
    exchange: &mut Exchange,
    body: Body,
) -> Result<Answer, Failure> {
    // route
    let matched = route(routes?, exchange)?;
    // filters
    let body = filter::request(matched.filters, &mut exchange.head, body).await;
    // attempt
    let mut answer = attempt(worker, matched.decision, exchange, body).await?;
    // filters, on the way back
    filter::answer(matched.filters, &mut answer);
    Ok(answer)
}

/// Route: finds the rule of a request and picks a cluster by weight. Pure but for the dice; the exchange records both.
fn route<'a>(routes: &'a Routes, exchange: &mut Exchange) -> Result<Matched<'a>, Failure> {
    let (host, rule) = routes.matcher.find_index(&exchange.head).ok_or(Failure::NoRoute)?;
    let found = routes.matcher.table().hosts.get(host).and_then(|host| host.rules.get(rule)).ok_or(Failure::NoRoute)?;
    exchange.route = Some(found.name.clone());
    let matched = |decision| Matched { filters: &found.filters, decision };
    let forward = match &found.action {
        Action::Forward(forward) => forward,
        // A rule whose backends cannot be resolved answers 500 (Gateway API, `HTTPRouteRule.backendRefs`): an operator has
        // to see that as a failure.
        Action::Respond(status) if *status >= 500 => return Err(Failure::RouteAnswers(*status)),
        Action::Respond(status) => return Ok(matched(Decision::Answer(*status))),
        Action::Deliver => return Err(Failure::NoRoute),
    };
    let targets = routes.targets.get(host).and_then(|rules| rules.get(rule)).ok_or(Failure::NoRoute)?;
    let index = forward.pick(fastrand::f64()).ok_or(Failure::RouteAnswers(500))?;
    let cluster = targets.get(index).ok_or(Failure::RouteAnswers(500))?;
    exchange.called = Some(cluster.clone());
    Ok(matched(Decision::Forward(forward, cluster)))
}

/// Attempt: sends the request to the cluster, or answers as the rule says.
async fn attempt(
    worker: &Arc<Worker>,
    decision: Decision<'_>,
    exchange: &mut Exchange,
    body: Body,
) -> Result<Answer, Failure> {
    let (forward, cluster) = match decision {
        Decision::Forward(forward, cluster) => (forward, cluster),
        Decision::Answer(status) => return Ok(respond::configured(status, exchange.is_grpc())),
    };
    let body = known_length(&mut exchange.head, body).await?;
    let target = Target { worker, forward, cluster, direction: exchange.direction(), started: exchange.started };
    let attempted = attempt::run(target, &mut exchange.head, body, &mut exchange.progress).await;
    // Before the workload is answered, so that its own answer is known to come from here.
    if exchange.progress.retried && exchange.direction() == Direction::Outbound {
        let live = &worker.shared.live;
        live.behind.failed(exchange.head.request.fields.first(Name::Traceparent), live.now());
    }
    exchange.hold(attempted)
}

/// The body of a request that asks for another protocol, with a length that the hop can tell: a chunked one is kept whole.
async fn known_length(head: &mut Head, body: Body) -> Result<Body, Failure> {
    if head.upgrade.is_none() || body.exact().is_some() {
        return Ok(body);
    }
    // The body is needed here, so it is asked for here (RFC 9110 §10.1.1).
    if head.request.fields.has(Name::Expect)
        && let Some(caller) = &head.interim
    {
        caller.send(Response::new(Version::Http11, 100, Fields::default()));
        head.request.fields.remove(Name::Expect);
    }
    let body = body.collect(MAX_REPLAY).await?;
    head.upgrade_body = Some(body.len() as u64);
    Ok(Body::Full(body))
}

/// Answer: gives the caller outside the hop the upstream's answer, a switch of protocols, or the failure.
pub(crate) fn answer(exchange: Box<Exchange>, result: Result<Answer, Failure>) -> Answer {
    let upgrade = exchange.head.upgrade.is_some();
    let over_budget = exchange.progress.over_budget;
    match result {
        Ok(answer) if upgrade && upgrade::was_accepted(&answer.head) => {
            let http2 = exchange.connection.protocol == Protocol::Http2;
            exchange.switch(answer, if http2 { upgrade::To::Http2 } else { upgrade::To::Http1 })
        }
        Ok(mut answer) => {
            if upgrade {
                hop::reveal_success(&mut answer.head);
            }
            hop::receive_answer(&mut answer.head);
            tell_budget(over_budget, &mut answer);
            exchange.answer(answer)
        }
        Err(failure) => {
            let mut answer = exchange.fail(failure);
            tell_budget(over_budget, &mut answer);
            answer
        }
    }
}

/// Tells the caller that its request would have been tried again if the budget for retries had not been empty.
fn tell_budget(over_budget: bool, answer: &mut Answer) {
    if over_budget {
        answer.head.fields.push(hop::ERROR.as_bytes(), hop::OVER_BUDGET);
    }
}
