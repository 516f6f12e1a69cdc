//! Families of counters, gauges and histograms, told apart by labels.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

/// Distinct label sets kept per family; what comes beyond is not counted.
const SERIES_MAX: usize = 1000;

/// Upper bounds of a histogram's buckets, in the family's unit.
pub type Bounds = &'static [f64];

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Counter,
    Gauge,
    Histogram(Bounds),
}

#[derive(Default)]
struct Series {
    value: f64,
    count: u64,
    buckets: Vec<u64>,
}

/// Copies that a timer has of its figures: threads that add to different ones do not take a cache line from each other.
const SHARDS: usize = 4;

/// A histogram of durations that is kept and added to without further ado.
pub struct Timer {
    bounds: Bounds,
    /// For each shard the buckets, one more than there are bounds for what is beyond them all, then the sum in nanoseconds, then
    /// room up to a cache line that is its own.
    figures: Box<[AtomicU64]>,
}

impl Timer {
    fn new(bounds: Bounds) -> Timer {
        let figures = (0..SHARDS * Timer::stride(bounds)).map(|_| AtomicU64::new(0)).collect();
        Timer { bounds, figures }
    }

    fn stride(bounds: Bounds) -> usize {
        (bounds.len() + 2).next_multiple_of(8) + 8
    }

    pub fn took(&self, time: Duration) {
        let seconds = time.as_secs_f64();
        let beyond = self.bounds.len();
        let bucket = self.bounds.iter().position(|b| seconds <= *b).unwrap_or(beyond);
        let shard = shard() * Timer::stride(self.bounds);
        self.figures[shard + bucket].fetch_add(1, Ordering::Relaxed);
        self.figures[shard + beyond + 1].fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
    }

    fn reset(&self) {
        self.figures.iter().for_each(|figure| figure.store(0, Ordering::Relaxed));
    }

    fn series(&self) -> Series {
        let total = |i: usize| {
            let all = self.figures.chunks(Timer::stride(self.bounds)).map(|s| s[i].load(Ordering::Relaxed));
            all.sum::<u64>()
        };
        let buckets: Vec<u64> = (0..=self.bounds.len()).map(total).collect();
        let sum = Duration::from_nanos(total(self.bounds.len() + 1));
        Series { value: sum.as_secs_f64(), count: buckets.iter().sum(), buckets }
    }
}

/// The shard of this thread.
fn shard() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local!(static MINE: usize = NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS);
    MINE.with(|mine| *mine)
}

/// One family: a name and a series for every set of label values.
pub struct Family {
    name: &'static str,
    help: &'static str,
    labels: &'static [&'static str],
    kind: Kind,
    series: Mutex<BTreeMap<Vec<String>, Series>>,
    /// Counters that are counted without looking for them.
    cells: Mutex<BTreeMap<Vec<String>, Arc<AtomicU64>>>,
    timers: Mutex<BTreeMap<Vec<String>, Arc<Timer>>>,
}

impl Family {
    fn change(&self, values: &[&str], change: impl FnOnce(&mut Series)) {
        let key: Vec<String> = values.iter().map(|v| (*v).to_owned()).collect();
        let mut series = self.series.lock();
        if series.len() < SERIES_MAX || series.contains_key(&key) {
            change(series.entry(key).or_default());
        }
    }

    /// A counter, or gauge of whole numbers, of this family to be kept and counted without further ado. It is shown once it is not zero.
    pub fn cell(&self, values: &[&str]) -> Arc<AtomicU64> {
        let key: Vec<String> = values.iter().map(|v| (*v).to_owned()).collect();
        let mut cells = self.cells.lock();
        if cells.len() >= SERIES_MAX && !cells.contains_key(&key) {
            return Arc::default();
        }
        cells.entry(key).or_default().clone()
    }

    /// A histogram of this family to be kept and added to without further ado. It is shown once it holds something.
    pub fn timer(&self, values: &[&str]) -> Arc<Timer> {
        let Kind::Histogram(bounds) = self.kind else { return Arc::new(Timer::new(&[])) };
        let key: Vec<String> = values.iter().map(|v| (*v).to_owned()).collect();
        let mut timers = self.timers.lock();
        if timers.len() >= SERIES_MAX && !timers.contains_key(&key) {
            return Arc::new(Timer::new(bounds));
        }
        timers.entry(key).or_insert_with(|| Arc::new(Timer::new(bounds))).clone()
    }

    /// Counts one.
    pub fn inc(&self, values: &[&str]) {
        self.add(values, 1.0);
    }

    pub fn add(&self, values: &[&str], more: f64) {
        self.change(values, |s| s.value += more);
    }

    pub fn set(&self, values: &[&str], value: f64) {
        self.change(values, |s| s.value = value);
    }

    /// Sets a gauge to the present time, in seconds.
    pub fn set_to_now(&self, values: &[&str]) {
        self.set(values, jiff::Timestamp::now().as_duration().as_secs_f64());
    }

    pub fn observe(&self, values: &[&str], value: f64) {
        let Kind::Histogram(bounds) = self.kind else { return };
        self.change(values, |s| {
            s.count += 1;
            s.value += value;
            s.buckets.resize(bounds.len(), 0);
            if let Some(i) = bounds.iter().position(|b| value <= *b) {
                s.buckets[i] += 1;
            }
        });
    }

    pub fn took(&self, values: &[&str], time: Duration) {
        self.observe(values, time.as_secs_f64());
    }

    /// Forgets the series whose label values `gone` says are gone.
    pub fn forget(&self, gone: impl Fn(&[String]) -> bool) {
        self.series.lock().retain(|values, _| !gone(values));
    }

    /// What a series stands at; a histogram's count.
    pub fn get(&self, values: &[&str]) -> f64 {
        let series = self.series.lock();
        let found = series.iter().find(|(k, _)| k.iter().map(String::as_str).eq(values.iter().copied()));
        found.map_or(
            0.0,
            |(_, s)| if matches!(self.kind, Kind::Histogram(_)) { s.count as f64 } else { s.value },
        )
    }

    fn render(&self, out: &mut String) {
        let mut series = self.series.lock();
        for (values, cell) in self.cells.lock().iter() {
            let count = cell.load(Ordering::Relaxed);
            // What went back to zero is still told.
            if count > 0 || series.contains_key(values) {
                series.entry(values.clone()).or_default().value = count as f64;
            }
        }
        for (values, timer) in self.timers.lock().iter() {
            let now = timer.series();
            if now.count > 0 {
                series.insert(values.clone(), now);
            }
        }
        if self.kind == Kind::Counter && self.labels.is_empty() {
            // Nothing tells it apart, and it is there from the beginning.
            series.entry(Vec::new()).or_default();
        }
        if series.is_empty() {
            return;
        }
        let kind = match self.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram(_) => "histogram",
        };
        let name = self.name;
        let _ = writeln!(out, "# HELP {name} {}\n# TYPE {name} {kind}", self.help);
        for (values, series) in series.iter() {
            let labels: Vec<String> =
                self.labels.iter().zip(values).map(|(l, v)| format!("{l}={v:?}")).collect();
            let labels = labels.join(",");
            let braces = |more: &str| match (labels.is_empty(), more.is_empty()) {
                (true, true) => String::new(),
                (false, false) => format!("{{{labels},{more}}}"),
                _ => format!("{{{labels}{more}}}"),
            };
            let Kind::Histogram(bounds) = self.kind else {
                let _ = writeln!(out, "{name}{} {}", braces(""), series.value);
                continue;
            };
            let mut below = 0;
            for (bound, n) in bounds.iter().zip(&series.buckets) {
                below += n;
                let _ = writeln!(out, "{name}_bucket{} {below}", braces(&format!("le=\"{bound}\"")));
            }
            let _ = writeln!(out, "{name}_bucket{} {}", braces("le=\"+Inf\""), series.count);
            let _ = writeln!(out, "{name}_sum{} {}", braces(""), series.value);
            let _ = writeln!(out, "{name}_count{} {}", braces(""), series.count);
        }
    }
}

/// The families of one server; a clone is the same ones.
#[derive(Clone, Default)]
pub struct Families(Arc<Mutex<Vec<Arc<Family>>>>);

impl std::fmt::Debug for Families {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Families")
    }
}

impl Families {
    fn family(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &'static [&'static str],
        kind: Kind,
    ) -> Arc<Family> {
        let mut all = self.0.lock();
        if let Some(known) = all.iter().find(|f| f.name == name) {
            return known.clone();
        }
        let family = Arc::new(Family {
            name,
            help,
            labels,
            kind,
            series: Mutex::default(),
            cells: Mutex::default(),
            timers: Mutex::default(),
        });
        all.push(family.clone());
        family
    }

    /// The counter of that name, made where there is none.
    pub fn counter(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &'static [&'static str],
    ) -> Arc<Family> {
        self.family(name, help, labels, Kind::Counter)
    }

    pub fn gauge(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &'static [&'static str],
    ) -> Arc<Family> {
        self.family(name, help, labels, Kind::Gauge)
    }

    pub fn histogram(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &'static [&'static str],
        bounds: Bounds,
    ) -> Arc<Family> {
        self.family(name, help, labels, Kind::Histogram(bounds))
    }

    /// Forgets all that was counted so far; gauges tell what is.
    pub fn reset(&self) {
        for family in self.0.lock().iter().filter(|f| f.kind != Kind::Gauge) {
            family.series.lock().clear();
            for cell in family.cells.lock().values() {
                cell.store(0, Ordering::Relaxed);
            }
            family.timers.lock().values().for_each(|timer| timer.reset());
        }
    }

    pub fn render(&self, out: &mut String) {
        for family in self.0.lock().iter() {
            family.render(out);
        }
    }
}

/// `sha256:` and the digest of a text, as upstream labels what is too long or too private for a label; nothing of
/// nothing.
pub fn hash(text: &[u8]) -> String {
    use sha2::Digest as _;
    if text.is_empty() {
        return String::new();
    }
    let digest = sha2::Sha256::digest(text);
    let hex: String = digest.iter().map(|b| format!("{b:02x}")).collect();
    format!("sha256:{hex}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renders() {
        let families = Families::default();
        families.counter("a_total", "As.", &["x"]).inc(&["1"]);
        families.counter("a_total", "As.", &["x"]).inc(&["1"]);
        families.gauge("b", "Bs.", &[]).set(&[], 2.5);
        let histogram = families.histogram("c_seconds", "Cs.", &["y"], &[0.1, 1.0]);
        histogram.took(&["z"], Duration::from_millis(500));
        histogram.observe(&["z"], 3.0);
        families.gauge("unused", "Nothing.", &[]);
        families.counter("d_total", "Ds.", &["x"]).cell(&["1"]).fetch_add(2, Ordering::Relaxed);
        families.counter("d_total", "Ds.", &["x"]).cell(&["2"]);
        let timed = families.histogram("e_seconds", "Es.", &[], &[1.0]);
        let timer = timed.timer(&[]);
        timer.took(Duration::from_millis(100));
        // Another thread's are counted with them.
        std::thread::scope(|scope| scope.spawn(|| timer.took(Duration::from_millis(400))).join()).unwrap();
        let mut out = String::new();
        families.render(&mut out);
        assert_eq!(
            out,
            "# HELP a_total As.\n# TYPE a_total counter\na_total{x=\"1\"} 2\n\
             # HELP b Bs.\n# TYPE b gauge\nb 2.5\n\
             # HELP c_seconds Cs.\n# TYPE c_seconds histogram\nc_seconds_bucket{y=\"z\",le=\"0.1\"} 0\n\
             c_seconds_bucket{y=\"z\",le=\"1\"} 1\nc_seconds_bucket{y=\"z\",le=\"+Inf\"} 2\n\
             c_seconds_sum{y=\"z\"} 3.5\nc_seconds_count{y=\"z\"} 2\n\
             # HELP d_total Ds.\n# TYPE d_total counter\nd_total{x=\"1\"} 2\n\
             # HELP e_seconds Es.\n# TYPE e_seconds histogram\ne_seconds_bucket{le=\"1\"} 2\n\
             e_seconds_bucket{le=\"+Inf\"} 2\ne_seconds_sum 0.5\ne_seconds_count 2\n"
        );
        families.counter("a_total", "As.", &["x"]).forget(|v| v[0] == "1");
        assert_eq!(families.counter("a_total", "As.", &["x"]).get(&["1"]), 0.0);
        assert_eq!(hash(b""), "");
    }
}
