//! What the peer asks for in earnest, against what brings nothing.
//! Two kinds are counted apart: frames that cost next to nothing, and requests that are given up, refused or malformed, which cost
//! work here and behind. Both are counted against what is useful, so that a busy connection, which carries the requests of many
//! callers between two proxies, may carry many of either.

/// Most frames of a peer that brought nothing (empty DATA, SETTINGS, PRIORITY, unknown and late frames), less those that brought
/// something; halved by each tick.
pub(super) const MAX_IDLE_FRAMES: u32 = 1_000;
/// Streams over which wasted ones are counted.
const WINDOW: u32 = 480;
/// Wasted work above this, in streams, ends the connection: more than half of [`WINDOW`].
pub(super) const MAX_WASTED: u32 = WINDOW / 2;
/// Ticks after which both counts are halved: a peer that gives up a few requests a second for ever wastes little.
const MEMORY: u32 = 10;
/// A request given up after this many ticks was worth its work.
pub(super) const YOUNG: u32 = 1;

/// A stream that the peer gave up young.
pub(super) const GIVEN_UP: u32 = 1;
/// A stream or frame that violates the protocol: no honest peer sends any (MadeYouReset, CVE-2025-8671).
pub(super) const FAULT: u32 = 3;

/// The account of one peer.
#[derive(Debug, Default)]
pub(super) struct Account {
    idle_frames: u32,
    opened: u32,
    wasted: u32,
}

impl Account {
    /// Moves the clock, about once per second.
    pub(super) fn tick(&mut self, now: u32) {
        self.idle_frames /= 2;
        if now.is_multiple_of(MEMORY) {
            self.halve();
        }
    }

    /// A frame brought something.
    pub(super) fn useful(&mut self) {
        self.idle_frames = self.idle_frames.saturating_sub(1);
    }

    /// A frame brought nothing. Returns whether there were too many.
    pub(super) fn idle(&mut self) -> bool {
        self.idle_frames += 1;
        self.idle_frames > MAX_IDLE_FRAMES
    }

    /// The peer opened a stream.
    pub(super) fn opened(&mut self) {
        self.useful();
        self.opened += 1;
        if self.opened >= WINDOW {
            self.halve();
        }
    }

    /// Counts wasted work. Returns whether it is more than half of all, and begins to count anew.
    pub(super) fn waste(&mut self, work: u32) -> bool {
        self.wasted = self.wasted.saturating_add(work);
        let over = self.wasted > MAX_WASTED;
        if over {
            self.halve();
        }
        over
    }

    fn halve(&mut self) {
        self.opened /= 2;
        self.wasted /= 2;
    }
}
