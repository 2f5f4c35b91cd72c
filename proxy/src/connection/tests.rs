use super::*;

fn entry(table: &Arc<Table>) -> Registration {
    let address = "127.0.0.1:1".parse().unwrap();
    table.open(Flow { direction: Direction::Inbound, peer: address, destination: address }, None, Protocol::Http1)
}

fn end_after(table: &Table, entry: &Registration, time: Duration) -> Option<Close> {
    futures_util::FutureExt::now_or_never(tokio::time::advance(time));
    table.sweep();
    entry.connection.poll_close(&Context::from_waker(Waker::noop()), &mut false)
}

#[tokio::test(start_paused = true)]
async fn a_head_has_ten_seconds_in_all_and_silence_between_requests_five_minutes() {
    let table = Arc::new(Table::default());
    let entry = entry(&table);
    let connection = &entry.connection;
    connection.http_begins(Instant::now());
    assert_eq!(end_after(&table, &entry, HEAD - Duration::from_secs(1)), None);
    let running = connection.request_starts();
    assert_eq!(end_after(&table, &entry, IDLE * 2), None, "a request in flight is never cut");
    drop(running);
    assert_eq!(end_after(&table, &entry, IDLE - Duration::from_secs(1)), None);
    connection.head_begins();
    for _ in 0..9 {
        connection.head_begins();
        assert_eq!(end_after(&table, &entry, Duration::from_secs(1)), None);
    }
    let end = end_after(&table, &entry, Duration::from_secs(2));
    assert_eq!(end, Some(Close::Now(Cut::Timeout)), "ten seconds in all, not since the last byte");
    drop(entry);
    assert!(table.is_empty());
}

#[tokio::test]
async fn a_tunnel_that_waits_for_the_cut_does_not_hide_a_graceful_close_from_its_connection() {
    struct Woken(AtomicBool);
    impl std::task::Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Relaxed);
        }
    }
    let table = Arc::new(Table::default());
    let entry = entry(&table);
    let woken = Arc::new(Woken(AtomicBool::new(false)));
    let waker = Waker::from(woken.clone());
    assert_eq!(entry.connection.poll_close(&Context::from_waker(&waker), &mut false), None);
    let mut cut = std::pin::pin!(entry.connection.cut());
    assert!(futures_util::poll!(cut.as_mut()).is_pending());
    table.drain();
    assert!(woken.0.load(Relaxed));
    assert!(futures_util::poll!(cut.as_mut()).is_pending(), "draining cuts no tunnel");
    entry.connection.close(Close::Now(Cut::Timeout));
    cut.await;
}

#[tokio::test(start_paused = true)]
async fn an_idle_or_expired_connection_closes_gracefully_and_then_is_cut() {
    let table = Arc::new(Table::default());
    let idle = entry(&table);
    drop(idle.connection.request_starts());
    assert_eq!(end_after(&table, &idle, IDLE + Duration::from_secs(1)), Some(Close::Gracefully));
    let expiring = entry(&table);
    expiring.connection.valid_for(Duration::from_secs(60));
    assert_eq!(end_after(&table, &expiring, Duration::from_secs(59)), None);
    assert_eq!(end_after(&table, &expiring, Duration::from_secs(2) + SPREAD), Some(Close::Gracefully));
    assert_eq!(end_after(&table, &expiring, GRACE), Some(Close::Now(Cut::Expired)));
    let stalled = entry(&table);
    stalled.connection.body_awaited(true);
    stalled.connection.body_awaited(true);
    assert_eq!(end_after(&table, &stalled, BODY - Duration::from_secs(1)), None);
    stalled.connection.body_awaited(false);
    stalled.connection.body_awaited(true);
    assert_eq!(end_after(&table, &stalled, BODY - Duration::from_secs(1)), None);
    assert_eq!(end_after(&table, &stalled, Duration::from_secs(2)), Some(Close::Now(Cut::Timeout)));
    table.drain();
    assert_eq!(
        end_after(&table, &entry(&table), Duration::ZERO),
        Some(Close::Gracefully),
        "a connection opened while draining"
    );
}

/// (22)
#[tokio::test(start_paused = true)]
async fn a_drain_waits_for_callers_and_for_what_moves_but_not_for_idle_pools_of_the_workload() {
    let table = Arc::new(Table::default());
    let address = "127.0.0.1:1".parse().unwrap();
    let open =
        |direction, protocol| table.open(Flow { direction, peer: address, destination: address }, None, protocol);
    let tick = |time| {
        futures_util::FutureExt::now_or_never(tokio::time::advance(time));
        table.sweep();
        table.open_now()
    };
    let inbound = open(Direction::Inbound, Protocol::Tcp);
    let (pool, stream) = (open(Direction::Outbound, Protocol::Tcp), open(Direction::Outbound, Protocol::Tcp));
    let (asks, idle) = (open(Direction::Outbound, Protocol::Http1), open(Direction::Outbound, Protocol::Http1));
    let tunnels = open(Direction::Outbound, Protocol::Http1);
    let _asked = asks.connection.request_starts();
    drop(idle.connection.request_starts());
    let _upgraded = (tunnels.connection.request_starts(), tunnels.connection.tunnel());
    assert_eq!(tick(Duration::from_millis(1)).outbound_active, 5, "what is new is not idle yet");
    for _ in 0..8 {
        stream.connection.moved().fetch_add(1, Relaxed);
        tick(Duration::from_millis(500));
    }
    let now = table.open_now();
    assert_eq!(now, Open { inbound: 1, outbound_active: 2, outbound_idle: 3, requests: 2 });
    table.drain();
    let closing = |entry: &Registration| entry.connection.is_closing();
    assert!(closing(&inbound) && !closing(&pool) && !closing(&idle), "the workload may go on calling");
    drop(inbound);
    assert_eq!(table.open_now().waits_for(), 2);
    pool.connection.moved().fetch_add(1, Relaxed);
    assert_eq!(tick(Duration::from_millis(500)).waits_for(), 3, "a pool that is used again");
    table.undrain();
    assert!(!closing(&open(Direction::Inbound, Protocol::Http1)));
    table.end();
    assert!(closing(&pool) && closing(&idle));
}

/// (10)
#[tokio::test(start_paused = true)]
async fn a_connection_lives_for_as_long_as_its_peer_proves_its_identity_on_any_connection() {
    let proven = Arc::new(Proven::default());
    let table = Arc::new(Table::new(proven.clone()));
    let address = "127.0.0.1:1".parse().unwrap();
    let flow = Flow { direction: Direction::Inbound, peer: address, destination: address };
    let identity = |account| Identity::parse(&format!("spiffe://weft.local/ns/shop/sa/{account}")).unwrap();
    let [renewed, gone] = ["renewed", "gone"].map(|account| table.open(flow, Some(identity(account)), Protocol::Tcp));
    let minute = Duration::from_secs(60);
    for entry in [&renewed, &gone] {
        proven.record(entry.connection.identity.as_ref().unwrap(), minute);
        entry.connection.valid_for(minute);
    }
    assert_eq!(end_after(&table, &renewed, minute / 2), None);
    // A newer certificate on another connection, an older one behind it.
    proven.record(&identity("renewed"), minute * 10);
    proven.record(&identity("renewed"), minute);
    assert_eq!(end_after(&table, &gone, minute / 2 + SPREAD), Some(Close::Gracefully));
    assert_eq!(end_after(&table, &gone, GRACE), Some(Close::Now(Cut::Expired)));
    assert_eq!(end_after(&table, &renewed, minute * 7), None);
    assert_eq!(end_after(&table, &renewed, minute * 3 + GRACE), Some(Close::Now(Cut::Expired)));
}

/// (10)
#[tokio::test(start_paused = true)]
async fn connections_of_a_peer_whose_certificate_expired_end_at_different_times() {
    let table = Arc::new(Table::default());
    let entries: Vec<_> = (0..20).map(|_| entry(&table)).collect();
    entries.iter().for_each(|entry| entry.connection.valid_for(Duration::from_secs(60)));
    let mut ended = Vec::new();
    for _ in 0..12 {
        end_after(&table, &entries[0], Duration::from_secs(10));
        ended.push(entries.iter().filter(|entry| entry.connection.why_cut().is_some()).count());
    }
    let steps = ended.windows(2).filter(|pair| pair[0] != pair[1]).count();
    assert!(steps >= 3 && ended.last() == Some(&20), "{ended:?}");
}
