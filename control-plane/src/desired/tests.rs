//! Desired state end to end below the API: on a real store file.

use std::net::IpAddr;

use weft_core::api::parse_documents;

use super::*;
use crate::store::{Embedded, Older};

async fn open(dir: &tempfile::TempDir) -> DesiredState {
    DesiredState::open(Arc::new(Embedded::open(&dir.path().join("store.redb"), Older::Refuse).unwrap())).await.unwrap()
}

fn service(name: &str, more: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: {name}, namespace: shop}}, spec: {{ports: [{{port: 80}}]{more}}}}}"
    )
}

fn wish(action: Action) -> Request {
    Request { action, author: "test".into(), message: "why".into(), dry_run: false }
}

async fn apply(state: &DesiredState, texts: &[String]) -> Result<Outcome, ChangeError> {
    state.change(wish(Action::Apply(parse_documents(&texts.join("\n---\n")).unwrap()))).await
}

fn key(name: &str) -> ObjectKey {
    format!("Service/shop/{name}").parse().unwrap()
}

fn addresses(state: &DesiredState, name: &str) -> Vec<IpAddr> {
    let object = state.current().objects[&key(name)].clone();
    let Object::Service(service) = &*object else { panic!("{object:?}") };
    service.spec.addresses()
}

fn refusals(error: ChangeError) -> Vec<(Option<usize>, String)> {
    let ChangeError::Conflict(all) = error else { panic!("{error:?}") };
    all.into_iter().map(|refusal| (refusal.index, refusal.error.to_string())).collect()
}

#[tokio::test]
async fn many_objects_are_one_revision_and_the_same_again_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let state = open(&dir).await;
    let outcome = apply(&state, &[service("a", ""), service("b", "")]).await.unwrap();
    assert_eq!(
        (outcome.revision, outcome.objects),
        (1, vec![(key("a"), Effect::Created), (key("b"), Effect::Created)])
    );
    let outcome = apply(&state, &[service("a", ""), service("b", ", selector: {app: b}")]).await.unwrap();
    assert_eq!(
        (outcome.revision, outcome.objects),
        (2, vec![(key("a"), Effect::Unchanged), (key("b"), Effect::Configured)])
    );
    let outcome = apply(&state, &[service("a", "")]).await.unwrap();
    assert_eq!((outcome.revision, state.current().revision), (2, 2));
    let meta = state.current().objects[&key("b")].metadata().clone();
    assert_eq!((meta.generation, meta.resource_version.as_deref()), (Some(2), Some("2")));
    assert_eq!(state.current().objects[&key("a")].metadata().generation, Some(1));
    let revision = state.revision(2).await.unwrap().unwrap();
    assert_eq!((revision.author.as_str(), revision.message.as_str(), revision.changes.len()), ("test", "why", 1));
    assert!(revision.changes[0].before.is_some() && revision.changes[0].after.is_some());
}

#[tokio::test]
async fn everything_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let state = open(&dir).await;
    apply(&state, &[service("a", ""), service("b", "")]).await.unwrap();
    let before = state.current();
    drop(state);
    let after = open(&dir).await.current();
    assert_eq!((after.revision, &after.objects), (before.revision, &before.objects));
}

#[tokio::test]
async fn addresses_are_kept_over_delete_restart_and_rollback() {
    let dir = tempfile::tempdir().unwrap();
    let state = open(&dir).await;
    apply(&state, &[service("a", ""), service("b", "")]).await.unwrap();
    let (a, b) = (addresses(&state, "a"), addresses(&state, "b"));
    assert!(a.len() == 2 && b.len() == 2 && !a.iter().any(|address| b.contains(address)));
    state.change(wish(Action::Delete { key: key("a"), resource_version: None })).await.unwrap();
    drop(state);
    let state = open(&dir).await;
    apply(&state, &[service("c", "")]).await.unwrap();
    assert!(!addresses(&state, "c").iter().any(|address| a.contains(address)));
    apply(&state, &[service("a", "")]).await.unwrap();
    assert_eq!(addresses(&state, "a"), a);
    state.change(wish(Action::Rollback(0))).await.unwrap();
    assert!(state.current().objects.is_empty());
    apply(&state, &[service("b", ""), service("a", "")]).await.unwrap();
    assert_eq!((addresses(&state, "a"), addresses(&state, "b")), (a, b));
}

#[tokio::test]
async fn a_given_address_is_taken_and_a_conflicting_one_refused() {
    let dir = tempfile::tempdir().unwrap();
    let state = open(&dir).await;
    apply(
        &state,
        &[service("a", ""), service("b", ", clusterIPs: [10.96.0.1]"), service("d", ", clusterIPs: [240.0.0.2]")],
    )
    .await
    .unwrap();
    let kept = addresses(&state, "a")[0];
    let error = apply(&state, &[service("x", ", clusterIPs: [10.96.0.1]")]).await.unwrap_err();
    assert_eq!(
        refusals(error),
        [(Some(0), "spec.clusterIPs[0]: 10.96.0.1 is the address of Service/shop/b".to_owned())]
    );
    state.change(wish(Action::Delete { key: key("a"), resource_version: None })).await.unwrap();
    let error = apply(&state, &[service("y", ""), service("x", &format!(", clusterIPs: [{kept}]"))]).await.unwrap_err();
    assert_eq!(refusals(error), [(Some(1), format!("spec.clusterIPs[0]: {kept} is kept for the service shop/a"))]);
    assert_eq!(state.current().revision, 2);
    apply(&state, &[service("c", "")]).await.unwrap();
    assert_eq!(addresses(&state, "c")[0].to_string(), "240.0.0.3");
}

#[tokio::test]
async fn a_change_on_old_ground_conflicts() {
    let dir = tempfile::tempdir().unwrap();
    let state = open(&dir).await;
    apply(&state, &[service("a", "")]).await.unwrap();
    apply(&state, &[service("a", ", selector: {v: '2'}")]).await.unwrap();
    let old = "{apiVersion: v1, kind: Service, metadata: {name: a, namespace: shop, resourceVersion: '1'}, spec: {ports: [{port: 1}]}}";
    let error = apply(&state, &[old.to_owned()]).await.unwrap_err();
    assert_eq!(refusals(error), [(Some(0), "metadata.resourceVersion: changed meanwhile: is 2, not 1".to_owned())]);
    let error =
        state.change(wish(Action::Delete { key: key("a"), resource_version: Some("1".into()) })).await.unwrap_err();
    assert_eq!(refusals(error).len(), 1);
    let twice = [(); 2].map(|()| parse_documents(&service("b", "")).unwrap()).concat();
    let error = state.change(wish(Action::Apply(twice))).await.unwrap_err();
    assert_eq!(refusals(error)[0].0, Some(1));
    assert!(matches!(
        state.change(wish(Action::Delete { key: key("z"), resource_version: None })).await,
        Err(ChangeError::NoObject(_))
    ));
    assert_eq!(state.current().revision, 2);
}

#[tokio::test]
async fn one_refused_object_refuses_all_and_a_dry_run_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let state = open(&dir).await;
    apply(&state, &[service("a", ", clusterIPs: [10.0.0.1]")]).await.unwrap();
    assert!(apply(&state, &[service("b", ""), service("c", ", clusterIPs: [10.0.0.1]")]).await.is_err());
    let objects = parse_documents(&service("b", "")).unwrap();
    let dry = state.change(Request { dry_run: true, ..wish(Action::Apply(objects)) }).await.unwrap();
    assert_eq!((dry.revision, dry.objects[0].1), (2, Effect::Created));
    assert!(dry.desired.objects.contains_key(&key("b")));
    assert_eq!((state.current().revision, state.current().objects.len()), (1, 1));
    assert!(state.revision(2).await.unwrap().is_none());
}

#[tokio::test]
async fn a_rollback_is_a_new_revision_with_the_objects_of_then() {
    let dir = tempfile::tempdir().unwrap();
    let state = open(&dir).await;
    apply(&state, &[service("a", ", selector: {v: '1'}"), service("gone", "")]).await.unwrap();
    let then = state.current();
    apply(&state, &[service("a", ", selector: {v: '2'}"), service("new", "")]).await.unwrap();
    state.change(wish(Action::Delete { key: key("gone"), resource_version: None })).await.unwrap();
    let outcome = state.change(wish(Action::Rollback(1))).await.unwrap();
    assert_eq!(outcome.revision, 4);
    let now = state.current();
    assert_eq!(now.objects.keys().collect::<Vec<_>>(), then.objects.keys().collect::<Vec<_>>());
    for (key, object) in &then.objects {
        assert!(object.same_spec(&now.objects[key]), "{key}");
    }
    assert_eq!(now.objects[&key("a")].metadata().generation, Some(3));
    let revision = state.revision(4).await.unwrap().unwrap();
    assert_eq!((revision.rollback_to, revision.changes.len()), (Some(1), 3));
    assert_eq!(state.at(1).await.unwrap().objects, then.objects);
    assert_eq!(state.at(3).await.unwrap().objects.len(), 2);
    assert!(matches!(state.change(wish(Action::Rollback(9))).await, Err(ChangeError::NoRevision(9))));
    let again = state.change(wish(Action::Rollback(4))).await.unwrap();
    assert_eq!((again.revision, again.objects.len()), (4, 0));
}

#[tokio::test]
async fn two_objects_for_one_thing_are_a_conflict() {
    let dir = tempfile::tempdir().unwrap();
    let state = open(&dir).await;
    let policy = |name: &str| {
        format!(
            "{{apiVersion: weft.dev/v1alpha1, kind: TrafficPolicy, metadata: {{name: {name}, namespace: shop}}, spec: {{targetRef: {{kind: Service, name: a}}}}}}"
        )
    };
    apply(&state, &[policy("one")]).await.unwrap();
    let error = apply(&state, &[policy("two")]).await.unwrap_err();
    assert!(refusals(error)[0].1.contains("TrafficPolicy/shop/one"));
    apply(&state, &[policy("one")]).await.unwrap();
}

#[tokio::test]
async fn snapshots_are_shown_after_they_are_stored() {
    let dir = tempfile::tempdir().unwrap();
    let state = open(&dir).await;
    let mut watch = state.watch();
    let change = tokio::spawn({
        let state = state.clone();
        async move { apply(&state, &[service("a", "")]).await.unwrap().revision }
    });
    watch.changed().await.unwrap();
    assert_eq!(watch.borrow_and_update().revision, 1);
    assert!(state.revision(1).await.unwrap().is_some());
    assert_eq!(change.await.unwrap(), 1);
}

#[tokio::test]
async fn a_caller_that_goes_away_leaves_a_whole_change() {
    let dir = tempfile::tempdir().unwrap();
    let state = open(&dir).await;
    for n in 0..20u64 {
        let change = tokio::spawn({
            let state = state.clone();
            async move { apply(&state, &[service(&format!("s{n}"), "")]).await.map(|o| o.revision) }
        });
        tokio::time::sleep(Duration::from_micros(n * 200)).await;
        change.abort();
    }
    apply(&state, &[service("last", "")]).await.unwrap();
    let shown = state.current();
    drop(state);
    let mut stored = open(&dir).await;
    for _ in 0..50 {
        if stored.current().revision == shown.revision {
            break;
        }
        stored = open(&dir).await;
    }
    assert_eq!(stored.current().objects, shown.objects);
}

#[tokio::test]
async fn a_revision_of_another_replica_is_published_and_the_next_change_follows_it() {
    let dir = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Arc::new(Embedded::open(&dir.path().join("store.redb"), Older::Refuse).unwrap());
    let one = DesiredState::open(Arc::clone(&store)).await.unwrap();
    let two = DesiredState::open(store).await.unwrap();
    let stop = CancellationToken::new();
    let following = tokio::spawn({
        let (two, stop) = (two.clone(), stop.clone());
        async move { two.follow(stop).await }
    });
    let mut watch = two.watch();
    apply(&one, &[service("a", ""), service("b", "")]).await.unwrap();
    one.change(wish(Action::Delete { key: key("b"), resource_version: None })).await.unwrap();
    while two.current().revision < 2 {
        watch.changed().await.unwrap();
    }
    assert_eq!(two.current().objects, one.current().objects);
    // The address of `a` is known here too.
    assert_eq!(apply(&two, &[service("c", "")]).await.unwrap().revision, 3);
    assert!(!addresses(&two, "c").iter().any(|address| addresses(&one, "a").contains(address)));
    // Without a watch the first change after another replica's meets a conflict, and the next one follows it.
    let error = apply(&one, &[service("d", "")]).await.unwrap_err();
    assert!(matches!(error, ChangeError::Store(StoreError::Conflict { expected: 2, found: 3 })), "{error:?}");
    assert_eq!(apply(&one, &[service("d", "")]).await.unwrap().revision, 4);
    stop.cancel();
    following.await.unwrap();
}
