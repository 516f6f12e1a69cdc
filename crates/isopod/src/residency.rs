//! Gives back memory that only a start or a burst of work has needed: pages of code, and what the allocator keeps of the heap.
//!
//! The kernel maps a program's code as it runs and takes it away only when memory is short; what a start runs once would stay resident
//! for weeks. Code is the file's own bytes, so that giving it back costs no more than a minor fault when it is next run.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// How often this looks whether the process has become idle. The first look is at the end of a start.
const LOOK_EVERY: Duration = Duration::from_secs(10);
const FIRST_LOOK_AFTER: Duration = Duration::from_secs(5);
/// An idle process runs for less than this between two looks: half a percent of a core.
const IDLE_CPU_MAX: Duration = Duration::from_millis(50);
/// Nor is there anything to give back before it has run for this long since the last time.
const WORK_MIN: Duration = Duration::from_millis(30);

/// Gives memory back whenever the process has become idle, until `shutdown`.
pub async fn keep_small(shutdown: CancellationToken) {
    let Some(code) = code() else { return };
    let (mut last_look, mut given_back_at) = (cpu_time(), Duration::ZERO);
    let mut wait = FIRST_LOOK_AFTER;
    while shutdown.run_until_cancelled(tokio::time::sleep(wait)).await.is_some() {
        wait = LOOK_EVERY;
        let now = cpu_time();
        let idle = now.saturating_sub(last_look) < IDLE_CPU_MAX;
        last_look = now;
        if idle && now.saturating_sub(given_back_at) > WORK_MIN {
            give_back(&code);
            given_back_at = now;
        }
    }
}

/// Gives memory back each time `freed` tells that there is much of it, until `shutdown`.
pub async fn give_back_freed(freed: Arc<Notify>, shutdown: CancellationToken) {
    while shutdown.run_until_cancelled(freed.notified()).await.is_some() {
        give_back_heap();
    }
}

fn cpu_time() -> Duration {
    let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) else { return Duration::ZERO };
    let micros = (usage.user_time() + usage.system_time()).num_microseconds();
    Duration::from_micros(u64::try_from(micros).unwrap_or_default())
}

/// Where this program's code is mapped.
fn code() -> Option<Range<usize>> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    code_around(code_around as *const () as usize, &maps)
}

/// The mapping that holds `address`, if it is code that nobody can have written to (proc_pid_maps(5)).
fn code_around(address: usize, maps: &str) -> Option<Range<usize>> {
    maps.lines().find_map(|line| {
        let mut fields = line.split_whitespace();
        let (begin, end) = fields.next()?.split_once('-')?;
        let range = usize::from_str_radix(begin, 16).ok()?..usize::from_str_radix(end, 16).ok()?;
        let of_a_file = fields.next()? == "r-xp" && fields.nth(2)? != "0";
        (range.contains(&address) && of_a_file).then_some(range)
    })
}

fn give_back_heap() {
    // SAFETY: may be called at any time. It returns freed memory that the allocator has kept for the next burst.
    unsafe { libmimalloc_sys::mi_collect(true) };
}

fn give_back(code: &Range<usize>) {
    give_back_heap();
    // SAFETY: the range is a private mapping of a file, and never was writable: the same bytes come back when they are next touched.
    let outcome = unsafe { libc::madvise(code.start as *mut libc::c_void, code.len(), libc::MADV_DONTNEED) };
    if outcome != 0 {
        tracing::debug!(error = %std::io::Error::last_os_error(), "code was not given back");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_the_mapping_that_holds_the_address() {
        let maps = "\
00200000-00979000 r--p 00000000 fe:00 2170916                            /usr/bin/isopod
00979000-022d7000 r-xp 00778000 fe:00 2170916                            /usr/bin/isopod (deleted)
022d7000-02479000 r--p 020d5000 fe:00 2170916                            /usr/bin/isopod
02479000-02480000 r-xp 00000000 00:00 0 
7f31c62cd000-7f31c6423000 r-xp 00026000 fe:00 326279                     /usr/lib/x86_64-linux-gnu/libc.so.6
";
        let table = [
            (0x979000, Some(0x979000..0x22d7000)),
            (0x22d6fff, Some(0x979000..0x22d7000)),
            (0x22d7000, None),
            (0x2479000, None),
            (0x978fff, None),
            (0, None),
        ];
        for (address, range) in table {
            assert_eq!(code_around(address, maps), range, "{address:#x}");
        }
        assert_eq!(code_around(0x979000, "nonsense\n\n00-zz r-xp 0 0 1 x"), None);
    }

    #[test]
    fn code_that_was_given_back_still_runs() {
        let code = code().expect("this test is code");
        assert!(code.contains(&(code_around as *const () as usize)));
        give_back(&code);
        assert_eq!(code_around(1, "0-2 r-xp 0 fe:00 7 x"), Some(0..2));
    }
}
