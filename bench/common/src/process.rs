//! What the operating system says of this process: processor time and resident memory. It knows nothing of what is
//! measured.
#![expect(unsafe_code, reason = "the clock of a process is reached through libc only")]

use std::time::Duration;

/// Processor time of all threads of this process so far.
pub(crate) fn cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes into the structure it is given, which lives until after it.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    assert_eq!(failed, 0, "this system has no clock of processor time");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Bytes of this process that are in memory now.
pub(crate) fn resident_bytes() -> u64 {
    // SAFETY: the call reads a constant of the system and touches no memory of ours.
    let page_bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.expect("/proc/self/statm tells resident pages, on Linux only") * page_bytes as u64
}
