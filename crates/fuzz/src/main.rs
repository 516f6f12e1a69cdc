//! Throws mutated inputs at every decoder and looks for panics, stack overflows, runaway time or memory, and values that
//! do not survive the way out and in again. `cargo run --profile fuzz -p fuzz -- --seconds 600` runs each target for as long;
//! findings lie in `target/fuzz`, and `--target NAME --input FILE` runs one again.

mod mutate;
mod targets;

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use clap::Parser;
use nix::sys::resource::{Resource, setrlimit};

use mutate::{Choices, mutate};
use targets::{TARGETS, Target};

/// What one input may take.
const MEMORY_MAX: u64 = 4 << 30;
const SLOW: Duration = Duration::from_secs(if cfg!(debug_assertions) { 10 } else { 2 });
const HANGS: Duration = Duration::from_secs(30);
/// Inputs kept to make others of.
const CORPUS_MAX: usize = 2000;

/// Fuzz the decoders.
#[derive(Parser)]
struct Flags {
    /// How long each target runs.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// The target to run; all, one after the other, where none is named.
    #[arg(long)]
    target: Option<String>,
    /// Run one input instead of many.
    #[arg(long, requires = "target")]
    input: Option<PathBuf>,
    /// Where the choices start; by default the clock.
    #[arg(long)]
    seed: Option<u64>,
    /// Where findings are put.
    #[arg(long, default_value = "target/fuzz")]
    out: PathBuf,
    /// Be the process that runs the inputs and may die of one.
    #[arg(long, hide = true)]
    record: Option<PathBuf>,
}

fn main() -> Result<()> {
    let flags = Flags::parse();
    let chosen: Vec<&Target> =
        TARGETS.iter().filter(|t| flags.target.as_deref().is_none_or(|name| name == t.name)).collect();
    if chosen.is_empty() {
        let names: Vec<&str> = TARGETS.iter().map(|t| t.name).collect();
        bail!("no such target; there are {}", names.join(", "));
    }
    let seed =
        flags.seed.unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |d| d.as_secs()));
    if let Some(input) = &flags.input {
        let input = std::fs::read(input).with_context(|| format!("reading {}", input.display()))?;
        let since = Instant::now();
        println!("{}", targets::run(chosen[0], &input).unwrap_or_else(|why| format!("FINDING: {why}")));
        println!("{:?}", since.elapsed());
        return Ok(());
    }
    if let Some(record) = &flags.record {
        return work(chosen[0], seed, Duration::from_secs(flags.seconds), record);
    }
    std::fs::create_dir_all(&flags.out)?;
    let mut found = 0;
    for target in chosen {
        found += watch(target, seed, Duration::from_secs(flags.seconds), &flags.out)?;
    }
    if found > 0 {
        bail!("{found} findings in {}", flags.out.display());
    }
    Ok(())
}

/// Runs inputs until the time is over; dies of a finding, having told it on standard error.
fn work(target: &Target, seed: u64, time: Duration, record: &Path) -> Result<()> {
    setrlimit(Resource::RLIMIT_AS, MEMORY_MAX, MEMORY_MAX)?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    let record = OpenOptions::new().write(true).open(record)?;
    let mut choices = Choices(seed);
    let mut corpus: Vec<Vec<u8>> =
        target.seeds.iter().map(|s| s.as_bytes().to_vec()).chain((target.more)()).collect();
    let mut seen = HashSet::new();
    let (since, mut runs) = (Instant::now(), 0u64);
    while since.elapsed() < time {
        let one = &corpus[choices.below(corpus.len())];
        let other = &corpus[choices.below(corpus.len())];
        let input = match usize::try_from(runs) {
            Ok(run) if run < target.seeds.len() => target.seeds[run].as_bytes().to_vec(),
            _ => mutate(one, other, target.dictionary, &mut choices),
        };
        note(&record, &input)?;
        let start = Instant::now();
        let outcome = targets::run(target, &input);
        runs += 1;
        let outcome = match outcome {
            Ok(_) if start.elapsed() > SLOW => Err(format!("takes {:?}", start.elapsed())),
            outcome => outcome,
        };
        match outcome {
            Ok(outcome) => {
                // What ends differently is a better start.
                if seen.insert(shape(&outcome)) {
                    if corpus.len() < CORPUS_MAX {
                        corpus.push(input);
                    } else {
                        let at = choices.below(CORPUS_MAX);
                        corpus[at] = input;
                    }
                }
            }
            Err(why) => {
                eprintln!("{why}");
                std::process::exit(1);
            }
        }
    }
    println!("{}: {runs} inputs, {} outcomes, none bad", target.name, seen.len());
    Ok(())
}

/// An outcome without what is particular to the input.
fn shape(outcome: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    let mut quoted = false;
    for c in outcome.chars().take(400) {
        quoted ^= c == '"';
        if !quoted && !c.is_ascii_digit() {
            c.hash(&mut hasher);
        }
    }
    outcome.len().checked_ilog2().hash(&mut hasher);
    hasher.finish()
}

/// Leaves the input where the other process finds it if this one dies.
fn note(record: &File, input: &[u8]) -> Result<()> {
    let mut bytes = u32::try_from(input.len())?.to_le_bytes().to_vec();
    bytes.extend_from_slice(input);
    Ok(record.write_all_at(&bytes, 0)?)
}

fn noted(record: &Path) -> Result<Vec<u8>> {
    let bytes = std::fs::read(record)?;
    let Some((len, rest)) = bytes.split_first_chunk() else { return Ok(Vec::new()) };
    Ok(rest.get(..u32::from_le_bytes(*len) as usize).unwrap_or_default().to_vec())
}

/// Runs a target in a process of its own, again after each finding until the time is over. Answers how many there were.
fn watch(target: &Target, seed: u64, time: Duration, out: &Path) -> Result<u32> {
    let (since, mut found) = (Instant::now(), 0);
    let record = out.join(format!(".{}", target.name));
    while found < 20 {
        let left = time.saturating_sub(since.elapsed()).as_secs().max(1);
        File::create(&record)?;
        let mut child = Command::new(std::env::current_exe()?)
            .args(["--target", target.name, "--seconds", &left.to_string()])
            .args(["--seed", &(seed + u64::from(found)).to_string()])
            .arg("--record")
            .arg(&record)
            .spawn()?;
        let ended = wait(&mut child, &record)?;
        if ended.is_some_and(|status| status.success()) {
            break;
        }
        let input = noted(&record)?;
        let mut hasher = DefaultHasher::new();
        input.hash(&mut hasher);
        let path = out.join(format!("{}-{:016x}", target.name, hasher.finish()));
        std::fs::write(&path, &input)?;
        let how = match ended {
            None => "hangs".to_owned(),
            Some(status) => status.signal().map_or("fails".to_owned(), |n| format!("dies of signal {n}")),
        };
        eprintln!("{}: {how}: {}", target.name, path.display());
        found += 1;
        if since.elapsed() >= time {
            break;
        }
    }
    std::fs::remove_file(&record)?;
    Ok(found)
}

/// How the process ended; `None` where one input took too long.
fn wait(child: &mut std::process::Child, record: &Path) -> Result<Option<ExitStatus>> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        std::thread::sleep(Duration::from_millis(50));
        let idle = std::fs::metadata(record)?.modified()?.elapsed().unwrap_or_default();
        if idle > HANGS {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A little of every target, so that they stay right.
    #[test]
    fn nothing_is_found_at_once() {
        for target in TARGETS {
            let mut choices = Choices(1);
            let corpus: Vec<Vec<u8>> =
                target.seeds.iter().map(|s| s.as_bytes().to_vec()).chain((target.more)()).collect();
            let mutated = (0..150).map(|i| {
                let other = &corpus[choices.below(corpus.len())];
                mutate(&corpus[i % corpus.len()], other, target.dictionary, &mut choices)
            });
            for input in corpus.iter().cloned().chain(mutated.collect::<Vec<_>>()) {
                if let Err(why) = targets::run(target, &input) {
                    panic!("{}: {why}: {:?}", target.name, String::from_utf8_lossy(&input));
                }
            }
        }
    }

    #[test]
    fn inputs_are_noted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        let file = File::create(&path).unwrap();
        note(&file, b"longer").unwrap();
        note(&file, b"ab").unwrap();
        assert_eq!(noted(&path).unwrap(), b"ab");
    }
}
