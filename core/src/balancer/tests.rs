use super::*;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

fn dice() -> impl FnMut(usize) -> usize {
    let mut seed = 1_u64;
    move |below: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        usize::try_from(seed >> 33).unwrap() % below
    }
}

/// How many of 10,000 picks among these loads went to each, nothing being in flight.
fn shares(loads: &[Load], weights: &[u32], now: Duration) -> Vec<usize> {
    let (mut random, mut counts) = (dice(), vec![0; loads.len()]);
    for _ in 0..10_000 {
        let picked = pick(loads.len(), &mut random, |i| Some(loads[i].cost(weights[i], now))).unwrap();
        counts[picked] += 1;
    }
    counts
}

/// A load that has answered with these latencies, one after the other, just before `SECOND`.
fn answered(latencies: &[Duration]) -> Load {
    let load = Load::default();
    for latency in latencies {
        load.start(SECOND);
        load.answered(*latency, SECOND);
        load.end();
    }
    load
}

/// (27.2)
#[test]
fn latencies_within_noise_or_below_a_millisecond_are_equal() {
    for (one, two) in [(MS / 10, MS * 9 / 10), (MS * 10, MS * 12)] {
        let shares = shares(&[answered(&[one]), answered(&[two])], &[1, 1], SECOND);
        assert!((4_500..5_500).contains(&shares[0]), "{shares:?}");
    }
}

/// (27.2) One call at a time: of two equal endpoints it is the one that was used less recently.
#[test]
fn equal_endpoints_without_anything_in_flight_take_turns() {
    let (loads, mut random) = ([answered(&[MS]), answered(&[MS])], dice());
    let mut counts = [0; 2];
    for call in 0..1_000 {
        let now = SECOND + MS * call;
        let picked = pick(2, &mut random, |i| Some(loads[i].cost(1, now))).unwrap();
        counts[picked] += 1;
        loads[picked].start(now);
        loads[picked].answered(MS, now);
        loads[picked].end();
    }
    assert!((499..=501).contains(&counts[0]), "{counts:?}");
}

/// (27.2) An endpoint that was slow once keeps being measured.
#[test]
fn one_slow_answer_costs_a_part_of_the_share_and_not_all_of_it() {
    let hiccup = answered(&[MS, MS * 40]);
    let shares = shares(&[hiccup, answered(&[MS])], &[1, 1], SECOND);
    assert!((100..2_000).contains(&shares[0]), "{shares:?}");
}

#[test]
fn a_slow_endpoint_gets_next_to_nothing() {
    let shares = shares(&[answered(&[MS * 200]), answered(&[MS])], &[1, 1], SECOND);
    assert!(shares[0] < 10, "{shares:?}");
}

#[test]
fn what_is_in_flight_and_the_weight_count() {
    let (busy, idle) = (answered(&[MS]), answered(&[MS]));
    busy.start(SECOND);
    busy.answered(MS, SECOND);
    assert_eq!(shares(&[busy, idle], &[1, 1], SECOND)[0], 0);
    let shares = shares(&[answered(&[MS]), answered(&[MS])], &[9, 1], SECOND);
    assert!((8_800..9_200).contains(&shares[0]), "{shares:?}");
}

#[test]
fn a_new_endpoint_is_tried_with_one_request_and_an_idle_one_after_five_seconds() {
    let (new, known) = (Load::default(), answered(&[MS]));
    let both = [new, known];
    assert_eq!(shares(&both, &[1, 1], SECOND), [10_000, 0]);
    both[0].start(SECOND);
    assert!(shares(&both, &[1, 1], SECOND)[0] < 10);
    let slow = [answered(&[SECOND]), answered(&[MS])];
    slow[1].start(SECOND * 6);
    slow[1].answered(MS, SECOND * 6);
    assert_eq!(shares(&slow, &[1, 1], SECOND * 6)[0], 10_000);
}

/// (27.2)
#[test]
fn what_is_unanswered_ages() {
    let both = [answered(&[MS]), answered(&[MS])];
    both[0].start(SECOND);
    both[1].start(SECOND);
    both[1].answered(MS, SECOND);
    // Three more in flight at the one that answers.
    (0..3).for_each(|_| both[1].start(SECOND + MS));
    both[1].answered(MS, SECOND + MS);
    assert!(shares(&both, &[1, 1], SECOND + MS * 500)[0] < 20);
    both[0].waited(MS * 500, SECOND + MS * 500);
    assert!(shares(&both, &[1, 1], SECOND + MS * 500)[0] < 100, "given up: it is slow");
}

/// (27.2) Pauses of 0.5, 1, 2, 4 and 8 s, and one good answer ends them.
#[test]
fn an_endpoint_that_fails_most_requests_is_tried_at_growing_intervals() {
    let load = answered(&[MS]);
    load.failed(SECOND);
    load.failed(SECOND);
    assert!(!load.is_avoided(SECOND), "two failures may be chance");
    load.failed(SECOND);
    let (mut now, mut pauses) = (SECOND, Vec::new());
    for _ in 0..6 {
        let start = now;
        while load.is_avoided(now) {
            now += MS * 10;
        }
        pauses.push((now - start).as_millis());
        load.start(now);
        load.waited(MS, now);
        load.failed(now);
        load.end();
    }
    assert_eq!(pauses, [500, 1_000, 2_000, 4_000, 8_000, 8_000]);
    load.succeeded();
    assert!(!load.is_avoided(now));
}

/// (27.2)
#[test]
fn a_fast_failure_does_not_lower_the_latency() {
    let both = [answered(&[MS * 100]), answered(&[MS * 100])];
    both[0].waited(MS, SECOND);
    both[0].failed(SECOND);
    assert!(shares(&both, &[1, 1], SECOND)[0] < 3_000);
}

/// (27.2)
#[test]
fn an_endpoint_that_asks_for_it_is_left_alone_for_a_bounded_time() {
    let load = answered(&[MS]);
    load.failed(SECOND);
    load.push_back(SECOND * 10, SECOND);
    assert!(!load.is_avoided(SECOND), "one of its callers is above its limit, not the endpoint");
    (0..2).for_each(|_| load.failed(SECOND));
    load.push_back(SECOND * 10, SECOND);
    assert!(load.is_avoided(SECOND * 10) && !load.is_avoided(SECOND * 11));
    load.push_back(SECOND * 1_000, SECOND);
    assert!(load.is_avoided(SECOND * 60) && !load.is_avoided(SECOND * 61));
    load.push_back(SECOND * 1_000, SECOND);
    load.revived();
    assert!(!load.is_avoided(SECOND));
}

#[test]
fn an_endpoint_out_of_use_is_never_picked_and_hardly_ever_are_all_looked_at() {
    let (mut random, load) = (dice(), answered(&[MS]));
    let cost = || Some(load.cost(1, SECOND));
    let picks: Vec<Option<usize>> =
        (0..10_000).map(|_| pick(1_000, &mut random, |i| (i % 2 == 0).then(cost).flatten())).collect();
    assert!(picks.iter().flatten().all(|index| index % 2 == 0));
    let missed = picks.iter().filter(|picked| picked.is_none()).count();
    assert!((1..100).contains(&missed), "{missed}");
    assert_eq!(pick(0, &mut random, |_| cost()), None);
    assert_eq!(pick(1, &mut random, |_| cost()), Some(0));
    assert_eq!(pick(5, &mut random, |_| None), None);
}
