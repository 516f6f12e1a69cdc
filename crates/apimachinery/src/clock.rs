//! Time as a handle, so that a control plane can run under a simulated clock.

use std::sync::Arc;

use jiff::Timestamp;

/// Tells the wall-clock time. Deadlines and intervals use the async runtime's own clock.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Timestamp + Send + Sync>);

impl Clock {
    pub fn system() -> Clock {
        Clock(Arc::new(Timestamp::now))
    }

    /// A clock that answers what `now` does.
    pub fn from_fn(now: impl Fn() -> Timestamp + Send + Sync + 'static) -> Clock {
        Clock(Arc::new(now))
    }

    pub fn now(&self) -> Timestamp {
        (self.0)()
    }

    /// The present second in RFC 3339, as `metav1.Time` is written.
    pub fn now_rfc3339(&self) -> String {
        rfc3339_seconds(self.now())
    }
}

impl Default for Clock {
    fn default() -> Clock {
        Clock::system()
    }
}

impl std::fmt::Debug for Clock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Clock")
    }
}

/// `metav1.Time`'s form: whole seconds, UTC.
pub fn rfc3339_seconds(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// The time zone of that name in the system's database, whose names are case-sensitive.
pub fn time_zone(name: &str) -> Option<jiff::tz::TimeZone> {
    const ZONES: &str = "/usr/share/zoneinfo";
    let part = |p: &str| !p.is_empty() && p != "." && p != "..";
    if !name.split('/').all(part) {
        return None;
    }
    let data = std::fs::read(format!("{ZONES}/{name}")).ok()?;
    jiff::tz::TimeZone::tzif(name, &data).ok()
}
