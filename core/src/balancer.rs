//! Balancing: which endpoint takes the next request.
//! Shape: one [`Load`] per endpoint, without a lock, shared by all workers; [`pick`] compares two at random.
//! Spec: power of two choices; cost = latency x (in flight + 1), divided by the weight. The latency is a moving average, or the time
//! for which the endpoint has answered nothing that was sent to it, if that is longer (docs/adr/0036).
//! - Latencies within [`NOISE`], or both below [`FLOOR`], are equal: fewer in flight wins, then the one used
//!   less recently. Others share by the inverse
//!   square of their costs, so that the dearer one keeps being measured.
//! - A failure costs: answers that fail do not lower the latency, and the latency is divided by the square of the share of successes.
//!   An endpoint of which most outcomes are failures is on probation: it gets one request now and then ([`Load::is_avoided`]).
//! - An endpoint that was sent nothing for [`PROBE`] gets one request whatever it costs: a new one, or one that may have recovered.

use std::{
    sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// The latency of an endpoint before its first good answer, once something was sent there.
pub const DEFAULT_LATENCY: Duration = Duration::from_millis(30);
/// Latencies below count as this one.
pub const FLOOR: Duration = Duration::from_millis(1);
/// Two latencies of which the higher is at most this many times the lower are equal.
pub const NOISE: f64 = 1.25;
/// An endpoint that was sent nothing for this time gets a request whatever it costs.
pub const PROBE: Duration = Duration::from_secs(5);
/// The first pause of an endpoint on probation; each request after a pause doubles it, up to 32 times.
pub const PROBATION: Duration = Duration::from_millis(250);
/// The longest time for which an endpoint can ask to be left alone (Retry-After, grpc-retry-pushback-ms).
pub const MAX_PUSH_BACK: Duration = Duration::from_secs(60);
/// A sample weighs the part of this time that has passed since the last one, and at least [`LEAST_WEIGHT`].
const SMOOTHING_US: f64 = 2e6;
const LEAST_WEIGHT: f64 = 1.0 / 8.0;
/// How much one failure weighs.
const FAILURE_WEIGHT: f32 = 1.0 / 4.0;
/// The share of failures above which an endpoint is on probation.
const MOST: f32 = 0.5;
/// Doublings of [`PROBATION`] at most: 8 s.
const DOUBLINGS: u32 = 5;
/// Pairs that [`pick`] looks at: with half of the endpoints out of use, none of them is found for 1 request of 256.
const PAIRS: usize = 4;
/// Steps of the dice.
const DICE: usize = 1 << 16;

/// The load of one endpoint. Times are since any fixed point, monotonic. Two workers at once may lose one sample.
#[derive(Debug)]
pub struct Load {
    in_flight: AtomicU32,
    /// Pauses of a probation so far; 0: on none.
    pauses: AtomicU32,
    /// Bits of an `f32`: the share of failures, the last ones weighing most.
    failing: AtomicU32,
    /// Bits of an `f64` in nanoseconds.
    latency: AtomicU64,
    /// When the latency was updated; 0: never.
    updated_us: AtomicU64,
    /// Since when something was sent and nothing answered; 0: nothing is owed.
    silent_us: AtomicU64,
    /// From when it gets a request whatever it costs.
    due_us: AtomicU64,
}

impl Default for Load {
    fn default() -> Self {
        Self {
            in_flight: AtomicU32::new(0),
            pauses: AtomicU32::new(0),
            failing: AtomicU32::new(0),
            latency: AtomicU64::new((DEFAULT_LATENCY.as_nanos() as f64).to_bits()),
            updated_us: AtomicU64::new(0),
            silent_us: AtomicU64::new(0),
            due_us: AtomicU64::new(0),
        }
    }
}

/// What sending one more request to an endpoint costs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cost {
    /// In nanoseconds; 0: it is due.
    latency: f64,
    /// With the request that is to be sent.
    in_flight: f64,
    weight: u32,
    /// The later, the more recently something was sent there.
    due_us: u64,
}

impl Load {
    /// Counts a request that is sent to it.
    pub fn start(&self, now: Duration) {
        let now = micros(now);
        self.in_flight.fetch_add(1, Relaxed);
        if self.silent_us.load(Relaxed) == 0 {
            self.silent_us.store(now.max(1), Relaxed);
        }
        if self.pauses.load(Relaxed) == 0 {
            self.due_us.store(now + micros(PROBE), Relaxed);
        } else {
            self.pause(now);
        }
    }

    /// Counts its end.
    pub fn end(&self) {
        self.in_flight.fetch_sub(1, Relaxed);
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }

    /// Takes the latency of an answer that is no failure so far.
    pub fn answered(&self, latency: Duration, now: Duration) {
        self.silent_us.store(0, Relaxed);
        self.observe(latency.as_nanos() as f64, micros(now));
    }

    /// Takes the time that a request has waited in vain, or for a failure: the latency is not below that.
    pub fn waited(&self, time: Duration, now: Duration) {
        self.silent_us.store(0, Relaxed);
        let sample = time.as_nanos() as f64;
        if sample > f64::from_bits(self.latency.load(Relaxed)) {
            self.observe(sample, micros(now));
        }
    }

    fn observe(&self, sample: f64, now_us: u64) {
        let then_us = self.updated_us.load(Relaxed);
        let new = if then_us == 0 {
            sample
        } else {
            let passed = now_us.saturating_sub(then_us) as f64;
            let old = f64::from_bits(self.latency.load(Relaxed));
            old + (sample - old) * (passed / SMOOTHING_US).clamp(LEAST_WEIGHT, 1.0)
        };
        self.updated_us.store(now_us.max(1), Relaxed);
        self.latency.store(new.to_bits(), Relaxed);
    }

    /// Counts an answer that was good to its end. Cost: one load when nothing failed before.
    pub fn succeeded(&self) {
        let failing = f32::from_bits(self.failing.load(Relaxed));
        if failing > 0.0 {
            let less = failing / 2.0;
            self.failing.store(if less < 0.01 { 0.0_f32 } else { less }.to_bits(), Relaxed);
            if less <= MOST {
                self.pauses.store(0, Relaxed);
            }
        }
    }

    /// Counts a failure, whatever failed.
    pub fn failed(&self, now: Duration) {
        let failing = f32::from_bits(self.failing.load(Relaxed));
        let more = failing + (1.0 - failing) * FAILURE_WEIGHT;
        self.failing.store(more.to_bits(), Relaxed);
        let now = micros(now);
        if more > MOST && (self.pauses.load(Relaxed) == 0 || now >= self.due_us.load(Relaxed)) {
            self.pause(now);
        }
    }

    /// The endpoint asks to be left alone for a time. It is, up to [`MAX_PUSH_BACK`], if it fails most requests.
    pub fn push_back(&self, time: Duration, now: Duration) {
        if f32::from_bits(self.failing.load(Relaxed)) > MOST {
            self.due_us.store(micros(now.saturating_add(time.min(MAX_PUSH_BACK))), Relaxed);
        }
    }

    /// A sign of life, such as a new registration: its failures are forgotten, and it is due.
    pub fn revived(&self) {
        self.failing.store(0, Relaxed);
        self.pauses.store(0, Relaxed);
        self.due_us.store(0, Relaxed);
    }

    fn pause(&self, now_us: u64) {
        let pauses = (self.pauses.load(Relaxed) + 1).min(DOUBLINGS);
        self.pauses.store(pauses, Relaxed);
        self.due_us.store(now_us + (micros(PROBATION) << pauses), Relaxed);
    }

    /// Whether it is on probation and not due: nothing is sent there as long as there are others.
    pub fn is_avoided(&self, now: Duration) -> bool {
        self.pauses.load(Relaxed) != 0 && micros(now) < self.due_us.load(Relaxed)
    }

    /// What sending one more would cost.
    pub fn cost(&self, weight: u32, now: Duration) -> Cost {
        let now = micros(now);
        let due_us = self.due_us.load(Relaxed);
        let latency = if now >= due_us {
            0.0
        } else {
            let silent = match self.silent_us.load(Relaxed) {
                0 => 0.0,
                since => now.saturating_sub(since) as f64 * 1e3,
            };
            let latency = f64::from_bits(self.latency.load(Relaxed)).max(silent).max(FLOOR.as_nanos() as f64);
            match self.failing.load(Relaxed) {
                0 => latency,
                bits => {
                    let good = f64::from(1.0 - f32::from_bits(bits)).max(0.01);
                    latency / (good * good)
                }
            }
        };
        Cost { latency, in_flight: f64::from(self.in_flight()) + 1.0, weight: weight.max(1), due_us }
    }
}

impl Cost {
    /// Whether to send to `other` rather than here; both are chosen at random, in random order.
    fn yields_to(self, other: Self, random: impl FnOnce(usize) -> usize) -> bool {
        let (low, high) = (self.latency.min(other.latency), self.latency.max(other.latency));
        if self.weight == other.weight && high <= low * NOISE {
            return (other.in_flight, other.due_us) < (self.in_flight, self.due_us);
        }
        let (here, there) = (self.latency * self.in_flight, other.latency * other.in_flight);
        let (here, there) = (f64::from(other.weight) * here * here, f64::from(self.weight) * there * there);
        // The shares are inverse to the squares: of the other one it is `here` of both.
        random(DICE) as f64 * (here + there) < here * DICE as f64
    }
}

/// Picks one of two different endpoints chosen at random among `len`, by their costs; `random` gives a number below its argument.
/// Of a few pairs it is the first with an endpoint that has a cost. `None`: none of them had, so that the caller has to look at all.
pub fn pick(len: usize, mut random: impl FnMut(usize) -> usize, cost: impl Fn(usize) -> Option<Cost>) -> Option<usize> {
    if len < 2 {
        return (0..len).find(|only| cost(*only).is_some());
    }
    (0..PAIRS).find_map(|_| {
        let first = random(len);
        let other = random(len - 1);
        let second = if other >= first { other + 1 } else { other };
        match (cost(first), cost(second)) {
            (Some(one), Some(two)) => Some(if one.yields_to(two, &mut random) { second } else { first }),
            (Some(_), None) => Some(first),
            (None, Some(_)) => Some(second),
            (None, None) => None,
        }
    })
}

fn micros(duration: Duration) -> u64 {
    duration.as_secs().saturating_mul(1_000_000).saturating_add(u64::from(duration.subsec_micros()))
}

#[cfg(test)]
mod tests;
