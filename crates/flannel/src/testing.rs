//! Network namespaces for tests: each is a thread of this process, so that they end with it.

use std::io::Write;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use nix::sched::{CloneFlags, unshare};

type Job = Box<dyn FnOnce() + Send>;

pub struct Namespace {
    pub path: String,
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Namespace {
    pub fn new() -> Namespace {
        let (jobs, queue) = channel::<Job>();
        let (ready, started) = channel();
        let thread = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            ready.send(nix::unistd::gettid()).unwrap();
            for job in queue {
                job();
            }
        });
        let tid = started.recv().unwrap();
        let path = format!("/proc/{}/task/{tid}/ns/net", std::process::id());
        let namespace = Namespace { path, jobs: Some(jobs), thread: Some(thread) };
        namespace.run(|| crate::netlink::Netlink::open().unwrap().set_up(1).unwrap());
        namespace
    }

    /// Runs `work` inside; a panic there is one here.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (tx, rx) = channel();
        let job: Job = Box::new(move || {
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            let _ = tx.send(outcome);
        });
        self.jobs.as_ref().unwrap().send(job).unwrap();
        match rx.recv().unwrap() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.jobs.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Whether namespaces can be made here; says so past the test harness's capture when not.
pub fn privileged(test: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        let _ = writeln!(std::io::stderr(), "SKIPPED {test}: needs root to make network namespaces");
    }
    root
}
