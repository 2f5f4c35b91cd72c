//! The status of an object: the Gateway API's conditions, as compile treats the object.
//! Times are left out: compile has no clock and no memory of the status before; the control plane adds them.

use super::{
    World,
    gateway::{NotAttached, allows_http_routes, attach, usable},
    objects::age,
    route::{BackendError, request_match},
};
use crate::api::{
    AuthorizationPolicy, Condition, ConditionStatus, Gateway, HttpRoute, Object, ObjectKey, Status, TrafficPolicy,
    gateway::{GATEWAY_CLASS, Listener, ListenerProtocol},
    http_route::{GATEWAY_GROUP, ParentReference, RefKind},
    meta::{ListenerStatus, ParentStatus, RouteKind},
    traffic_policy::PolicyTarget,
};

/// The controller that writes our conditions.
pub const CONTROLLER: &str = "weft.dev/control-plane";

/// What is wrong: one word of the Gateway API, and a sentence.
type Problem = (&'static str, String);

impl World {
    /// What became of an object; `None` when there is no such object. Kinds that depend on nothing have no conditions.
    pub fn status(&self, key: &ObjectKey) -> Option<Status> {
        let object = self.objects.find(key)?;
        let generation = object.metadata().generation;
        let mut status = match &**object {
            Object::HttpRoute(route) => Status {
                parents: route.spec.parent_refs.iter().map(|parent| self.parent_status(route, parent)).collect(),
                ..Status::default()
            },
            Object::Gateway(gateway) => self.gateway_status(gateway),
            Object::TrafficPolicy(policy) => accepted(self.traffic_problem(policy)),
            Object::AuthorizationPolicy(policy) => {
                let mut status = accepted(self.authorization_problem(policy));
                status.conditions.push(selected(self.unselected_policy(policy)));
                status
            }
            Object::Service(service) => {
                let selected = selected(self.unselected_service(service));
                Status { conditions: vec![selected], ..Status::default() }
            }
            Object::MeshConfig(_) | Object::Workload(_) => Status::default(),
        };
        let parents = status.parents.iter_mut().flat_map(|parent| &mut parent.conditions);
        let listeners = status.listeners.iter_mut().flat_map(|listener| &mut listener.conditions);
        for condition in status.conditions.iter_mut().chain(parents).chain(listeners) {
            condition.observed_generation = generation;
        }
        Some(status)
    }

    /// Every condition of an object, those of its parents and listeners included.
    pub fn conditions(&self, key: &ObjectKey) -> Vec<Condition> {
        let Some(status) = self.status(key) else { return Vec::new() };
        let parents = status.parents.into_iter().flat_map(|parent| parent.conditions);
        let listeners = status.listeners.into_iter().flat_map(|listener| listener.conditions);
        status.conditions.into_iter().chain(parents).chain(listeners).collect()
    }

    fn parent_status(&self, route: &HttpRoute, parent: &ParentReference) -> ParentStatus {
        let problem = match parent.target() {
            Some(RefKind::Service) => self.service_parent_problem(route, parent),
            Some(RefKind::Gateway) => self.gateway_parent_problem(route, parent),
            None => Some(("InvalidKind", "a parent is a Gateway or a Service".into())),
        };
        let problem = problem.or_else(|| expression_problem(route));
        let resolved = self.backend_problem(route);
        let mut conditions =
            vec![condition("Accepted", "Accepted", problem), condition("ResolvedRefs", "ResolvedRefs", resolved)];
        // As the Gateway API's `PartiallyInvalid`: there only while it is true.
        conditions.extend(self.shadowed_rules(route, parent).map(|message| Condition {
            status: status(true),
            ..condition("Shadowed", "", Some(("RulesShadowed", message)))
        }));
        ParentStatus { parent_ref: parent.clone(), controller_name: CONTROLLER.into(), conditions }
    }

    fn service_parent_problem(&self, route: &HttpRoute, parent: &ParentReference) -> Option<Problem> {
        let namespace = parent.namespace(&route.metadata.namespace);
        let Some(service) = self.objects.service(namespace, &parent.name) else {
            return Some(("NoMatchingParent", format!("there is no Service {namespace}/{}", parent.name)));
        };
        if namespace != route.metadata.namespace {
            let message = "routes for clients of one namespace only are not supported yet: a route of a Service has to be \
                           in the Service's namespace";
            return Some(("UnsupportedValue", message.into()));
        }
        let fits = service.spec.ports.iter().any(|port| {
            parent.port.is_none_or(|wanted| wanted == port.port)
                && parent.section_name.as_ref().is_none_or(|wanted| port.name.as_ref() == Some(wanted))
        });
        (!fits).then(|| ("NoMatchingParent", format!("Service {namespace}/{} has no such port", parent.name)))
    }

    fn gateway_parent_problem(&self, route: &HttpRoute, parent: &ParentReference) -> Option<Problem> {
        let namespace = parent.namespace(&route.metadata.namespace);
        let Some(gateway) = self.objects.gateway(namespace, &parent.name) else {
            return Some(("NoMatchingParent", format!("there is no Gateway {namespace}/{}", parent.name)));
        };
        // The listener that came closest says why.
        let tried = usable(gateway).map(|listener| attach(gateway, listener, route, parent).err());
        let closest = tried.max_by_key(|error| error.map_or((1, None), |error| (0, Some(error))));
        Some(match closest.unwrap_or(Some(NotAttached::NoMatchingParent))? {
            NotAttached::NoMatchingParent => {
                ("NoMatchingParent", format!("Gateway {namespace}/{} has no such listener", parent.name))
            }
            NotAttached::NotAllowedByListeners => {
                ("NotAllowedByListeners", "the listener's allowedRoutes do not let this route in".into())
            }
            NotAttached::NoMatchingListenerHostname => {
                ("NoMatchingListenerHostname", "no hostname of the route is one of the listener's".into())
            }
        })
    }

    fn backend_problem(&self, route: &HttpRoute) -> Option<Problem> {
        let namespace = &route.metadata.namespace;
        let backends = route.spec.rules.iter().flat_map(|rule| &rule.backend_refs);
        let problems = backends.filter_map(|backend| {
            let error = self.backend(namespace, backend).err()?;
            let name = format!("{}/{}", backend.namespace(namespace), backend.name);
            let message = match error {
                BackendError::InvalidKind => format!("backend {name} is not a Service"),
                BackendError::NotPermitted => {
                    format!("backend {name} is in another namespace, which is not supported yet")
                }
                BackendError::NotFound => match backend.port {
                    Some(port) => format!("there is no Service {name} with port {port}"),
                    None => format!("backend {name} names no port"),
                },
            };
            Some((error, message))
        });
        let (error, message) = problems.min_by_key(|(error, _)| *error)?;
        let reason = match error {
            BackendError::InvalidKind => "InvalidKind",
            BackendError::NotPermitted => "RefNotPermitted",
            BackendError::NotFound => "BackendNotFound",
        };
        Some((reason, message))
    }

    fn gateway_status(&self, gateway: &Gateway) -> Status {
        let served: Vec<&Listener> = usable(gateway).collect();
        let (namespace, name) = (&gateway.metadata.namespace, &gateway.metadata.name);
        let mut problem: Option<Problem> = None;
        if gateway.spec.gateway_class_name != GATEWAY_CLASS {
            problem = Some(("Invalid", format!("gatewayClassName is not {GATEWAY_CLASS}")));
        }
        let listeners = gateway.spec.listeners.iter().map(|listener| {
            // By identity: two listeners may be equal, and then only the first of them is served.
            let is_served = served.iter().any(|other| std::ptr::eq(*other, listener));
            let routes = self.objects.gateway_routes(namespace, name).filter(|route| {
                is_served
                    && route.spec.parent_refs.iter().any(|parent| attach(gateway, listener, route, parent).is_ok())
            });
            let attached_routes = u32::try_from(routes.count()).unwrap_or(u32::MAX);
            let (refused, conflict) = match (listener.protocol, is_served) {
                (ListenerProtocol::Http, true) => (None, None),
                (ListenerProtocol::Http, false) => {
                    (None, Some(("HostnameConflict", "another listener has this port and hostname".into())))
                }
                (_, _) => (Some(("UnsupportedProtocol", "only HTTP is supported yet".into())), None),
            };
            let kinds = (!allows_http_routes(listener))
                .then(|| ("InvalidRouteKinds", "only HTTPRoute is supported yet".to_owned()));
            let supported =
                kinds.is_none().then(|| RouteKind { group: Some(GATEWAY_GROUP.into()), kind: "HTTPRoute".into() });
            ListenerStatus {
                name: listener.name.clone(),
                supported_kinds: supported.into_iter().collect(),
                attached_routes,
                conditions: vec![
                    condition("Accepted", "Accepted", refused),
                    Condition {
                        status: status(conflict.is_some()),
                        ..condition("Conflicted", "NoConflicts", conflict)
                    },
                    condition("ResolvedRefs", "ResolvedRefs", kinds),
                ],
            }
        });
        let listeners: Vec<ListenerStatus> = listeners.collect();
        // The reason of each listener is in its own conditions; here only that there is one.
        if problem.is_none() && served.len() < gateway.spec.listeners.len() {
            problem = Some(("ListenersNotValid", "not every listener is served, see their conditions".into()));
        }
        Status { listeners, ..accepted(problem) }
    }

    fn traffic_problem(&self, policy: &TrafficPolicy) -> Option<Problem> {
        let target = &policy.spec.target_ref;
        let namespace = &policy.metadata.namespace;
        self.target_problem(namespace, target).or_else(|| {
            let mut rivals: Vec<&TrafficPolicy> = self
                .objects
                .service_policies(namespace, &target.name)
                .filter(|other| other.spec.target_ref.section_name == target.section_name)
                .collect();
            rivals.sort_by_key(|other| age(&other.metadata));
            let first = rivals.first()?;
            (first.metadata.name != policy.metadata.name).then(|| {
                ("Conflicted", format!("{namespace}/{} is older and has the same target", first.metadata.name))
            })
        })
    }

    fn authorization_problem(&self, policy: &AuthorizationPolicy) -> Option<Problem> {
        let target = policy.spec.target_ref.as_ref()?;
        self.target_problem(&policy.metadata.namespace, target)
    }

    fn target_problem(&self, namespace: &str, target: &PolicyTarget) -> Option<Problem> {
        let Some(service) = self.objects.service(namespace, &target.name) else {
            return Some(("TargetNotFound", format!("there is no Service {namespace}/{}", target.name)));
        };
        let section = target.section_name.as_deref()?;
        service
            .spec
            .port_named(section)
            .is_none()
            .then(|| ("TargetNotFound", format!("Service {namespace}/{} has no port named {section}", target.name)))
    }
}

/// An expression of a route that does not compile; validation refuses it before.
fn expression_problem(route: &HttpRoute) -> Option<Problem> {
    let matches = route.spec.rules.iter().flat_map(|rule| &rule.matches);
    let error = matches.filter_map(|wanted| request_match(wanted).err()).next()?;
    Some(("UnsupportedValue", error.to_string()))
}

fn accepted(problem: Option<Problem>) -> Status {
    Status { conditions: vec![condition("Accepted", "Accepted", problem)], ..Status::default() }
}

/// Whether a selector picks a workload.
fn selected(problem: Option<String>) -> Condition {
    condition("Selected", "Selected", problem.map(|message| ("NoWorkload", message)))
}

/// A condition that holds, with `reason`, unless there is a problem.
fn condition(kind: &str, reason: &str, problem: Option<Problem>) -> Condition {
    let holds = problem.is_none();
    let (reason, message) = problem.map_or((reason, String::new()), |(reason, message)| (reason, message));
    Condition {
        kind: kind.to_owned(),
        status: status(holds),
        reason: reason.to_owned(),
        message,
        observed_generation: None,
        last_transition_time: None,
    }
}

fn status(holds: bool) -> ConditionStatus {
    if holds { ConditionStatus::True } else { ConditionStatus::False }
}
