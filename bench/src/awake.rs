//! Keeps the machine's CPUs from sleeping while something is measured, as cyclictest does.
//!
//! Waking a sleeping CPU is charged to the waker, and on a virtual machine whose CPUs halt that is most of a small request: 13
//! to 43 µs for one write to a sleeping reader instead of 1 to 3 (docs/adr/0018). A CPU that polls is woken by a write to
//! memory. The request is valid for the lifetime of the process.
//! Source: Linux, Documentation/power/pm_qos_interface.rst, "cpu_dma_latency".

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};

/// The kernel's device for such requests.
pub const DEVICE: &str = "/dev/cpu_dma_latency";

/// The request; it ends when this is dropped.
#[derive(Debug)]
pub struct Awake {
    _wish: File,
}

impl Awake {
    /// Wishes that no CPU takes longer than 0 µs to wake.
    ///
    /// # Errors
    /// The kernel has no such device, or the caller may not write to it (it belongs to root).
    pub fn keep() -> io::Result<Self> {
        let mut wish = OpenOptions::new().write(true).open(DEVICE)?;
        wish.write_all(&0_i32.to_ne_bytes())?;
        Ok(Self { _wish: wish })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// How often CPUs chose to wait in a loop since the machine's start; none where the kernel has no such state.
    fn waits() -> Option<u64> {
        let mut sum = None;
        for cpu in 0..4096 {
            let state = format!("/sys/devices/system/cpu/cpu{cpu}/cpuidle/state0");
            let Ok(name) = std::fs::read_to_string(format!("{state}/name")) else { break };
            if name.trim() == "POLL" {
                let usage = std::fs::read_to_string(format!("{state}/usage")).unwrap();
                sum = Some(sum.unwrap_or(0) + usage.trim().parse::<u64>().unwrap());
            }
        }
        sum
    }

    /// Time in which some CPU had nothing to do since the machine's start, in ticks (proc(5), `/proc/stat`).
    fn idle() -> u64 {
        let stat = std::fs::read_to_string("/proc/stat").unwrap();
        stat.split_whitespace().nth(4).unwrap().parse().unwrap()
    }

    #[test]
    fn cpus_wait_in_a_loop() {
        let awake = match Awake::keep() {
            Ok(awake) => awake,
            // Neither root nor a machine of one's own, as in some containers.
            Err(error) => {
                assert!([io::ErrorKind::NotFound, io::ErrorKind::PermissionDenied].contains(&error.kind()), "{error}");
                return;
            }
        };
        let Some(before) = waits() else { return };
        let idle_before = idle();
        // Under the load of other programs no CPU may have nothing to do for a while.
        let waited = (0..300).any(|_| {
            std::thread::sleep(Duration::from_millis(100));
            waits().unwrap() > before
        });
        let idle = idle() - idle_before;
        assert!(waited || idle == 0, "no CPU that had nothing to do waited in a loop, in {idle} idle ticks");
        drop(awake);
    }
}
