//! Balancing: which endpoint takes the next request.
//! Shape: one [`Load`] per endpoint, without a lock, shared by all workers; [`pick`] compares two at random, [`pick_usable`]
//! two of those that may be used.
//! Spec: power of two choices on peak EWMA, as in Linkerd: the value jumps to a new peak at once and decays over 10 s, also
//! without new samples, so that no endpoint is left out for long; load = latency x (in flight + 1), divided by the endpoint's weight.
//! Differs: an endpoint that never answered is tried first, with one request until its first answer.

use std::{
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
    time::Duration,
};

/// The latency an endpoint is given before its first answer, while one request is on its way there.
pub const DEFAULT_LATENCY: Duration = Duration::from_millis(30);
/// The time in which an old value loses 63 % of its weight.
pub const DECAY: Duration = Duration::from_secs(10);
/// Pairs that [`pick_usable`] looks at: with half of the endpoints out of use, all of them are looked at for 1 request of 256.
const PAIRS: usize = 4;

/// The load of one endpoint: what is in flight, and a peak-sensitive moving average of its latency.
#[derive(Debug)]
pub struct Load {
    in_flight: AtomicU32,
    /// Bits of an `f64` in nanoseconds.
    latency: AtomicU64,
    updated_us: AtomicU64,
}

impl Default for Load {
    fn default() -> Self {
        Self {
            in_flight: AtomicU32::new(0),
            latency: AtomicU64::new((DEFAULT_LATENCY.as_nanos() as f64).to_bits()),
            updated_us: AtomicU64::new(0),
        }
    }
}

impl Load {
    /// Counts a request that is sent to it.
    pub fn start(&self) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts its end.
    pub fn end(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Takes a latency into the average. `now`: since any fixed point, monotonic. Two workers at once may lose one sample.
    pub fn observe(&self, latency: Duration, now: Duration) {
        let sample = latency.as_nanos() as f64;
        let old = f64::from_bits(self.latency.load(Ordering::Relaxed));
        let now_us = micros(now);
        let then_us = self.updated_us.swap(now_us, Ordering::Relaxed);
        let new = if sample > old || then_us == 0 {
            sample
        } else {
            let keep = (-(now_us.saturating_sub(then_us) as f64) / DECAY.as_micros() as f64).exp();
            old * keep + sample * (1.0 - keep)
        };
        self.latency.store(new.to_bits(), Ordering::Relaxed);
    }

    /// What sending one more would cost, relative to other endpoints; smaller is better.
    pub fn cost(&self, weight: u32, now: Duration) -> f64 {
        let (in_flight, updated_us) = (self.in_flight(), self.updated_us.load(Ordering::Relaxed));
        let latency = f64::from_bits(self.latency.load(Ordering::Relaxed));
        let latency = match (updated_us, in_flight) {
            (0, 0) => 0.0,
            (0, _) => latency,
            (then, _) => latency * (-(micros(now).saturating_sub(then) as f64) / DECAY.as_micros() as f64).exp(),
        };
        latency * (f64::from(in_flight) + 1.0) / f64::from(weight.max(1))
    }
}

/// Picks the cheaper of two different endpoints chosen at random among `len`; `random` gives a number below its argument.
/// `None` when there are none.
pub fn pick(len: usize, mut random: impl FnMut(usize) -> usize, cost: impl Fn(usize) -> f64) -> Option<usize> {
    match len {
        0 => None,
        1 => Some(0),
        _ => {
            let first = random(len);
            let other = random(len - 1);
            let second = if other >= first { other + 1 } else { other };
            Some(if cost(second) < cost(first) { second } else { first })
        }
    }
}

/// Picks like [`pick`] among the endpoints that are `usable`, without looking at all of them: of a few pairs chosen at random
/// the first that has a usable endpoint. `None`: none of them had, so that the caller has to look at all.
pub fn pick_usable(
    len: usize,
    mut random: impl FnMut(usize) -> usize,
    usable: impl Fn(usize) -> bool,
    cost: impl Fn(usize) -> f64,
) -> Option<usize> {
    let cost = |index| if usable(index) { cost(index) } else { f64::INFINITY };
    (0..PAIRS).find_map(|_| pick(len, &mut random, cost).filter(|index| usable(*index)))
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_average_jumps_up_at_once_and_comes_down_slowly() {
        let load = Load::default();
        load.observe(MS, MS);
        assert_eq!(load.cost(1, MS), 1e6);
        load.observe(MS * 100, MS * 2);
        assert_eq!(load.cost(1, MS * 2), 1e8);
        load.observe(MS, MS * 3);
        assert!(load.cost(1, MS * 3) > 0.99e8);
        load.observe(MS, MS * 60_000);
        assert!(load.cost(1, MS * 60_000) < 0.02e8);
    }

    #[test]
    fn a_value_without_new_samples_decays_too() {
        let load = Load::default();
        load.observe(MS * 100, MS);
        assert!((0.36e8..0.38e8).contains(&load.cost(1, MS * 10_001)));
    }

    #[test]
    fn what_is_in_flight_and_the_weight_count() {
        let load = Load::default();
        load.observe(MS, MS);
        load.start();
        assert_eq!(load.cost(1, MS), 2e6);
        assert_eq!(load.cost(2, MS), 1e6);
        load.end();
        assert_eq!(load.in_flight(), 0);
    }

    #[test]
    fn a_new_endpoint_is_tried_with_one_request() {
        let load = Load::default();
        assert_eq!(load.cost(1, MS), 0.0);
        load.start();
        assert_eq!(load.cost(1, MS), 6e7);
    }

    #[test]
    fn two_different_endpoints_are_compared_and_the_cheaper_wins() {
        assert_eq!(pick(0, |_| 0, |_| 0.0), None);
        assert_eq!(pick(1, |_| 0, |_| 0.0), Some(0));
        let costs = [3.0, 1.0, 2.0];
        for first in 0..3 {
            for other in 0..2 {
                let mut answers = [first, other].into_iter();
                let picked = pick(3, |_| answers.next().unwrap(), |i| costs[i]).unwrap();
                let second = if other >= first { other + 1 } else { other };
                assert_ne!(first, second);
                assert_eq!(costs[picked], costs[first].min(costs[second]));
            }
        }
    }

    #[test]
    fn an_endpoint_out_of_use_is_never_picked_and_hardly_ever_are_all_looked_at() {
        let mut seed = 1_u64;
        let mut random = |below: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            usize::try_from(seed >> 33).unwrap() % below
        };
        let picks: Vec<Option<usize>> = (0..10_000)
            // What is out of use costs nothing, as an ejected endpoint after a while.
            .map(|_| pick_usable(1_000, &mut random, |i| i % 2 == 0, |i| if i % 2 == 0 { 1.0 } else { 0.0 }))
            .collect();
        assert!(picks.iter().flatten().all(|index| index % 2 == 0));
        let missed = picks.iter().filter(|picked| picked.is_none()).count();
        assert!((1..100).contains(&missed), "{missed}");
        assert_eq!(pick_usable(0, &mut random, |_| true, |_| 0.0), None);
        assert_eq!(pick_usable(1, &mut random, |_| true, |_| 0.0), Some(0));
        assert_eq!(pick_usable(5, &mut random, |_| false, |_| 0.0), None);
    }
}
