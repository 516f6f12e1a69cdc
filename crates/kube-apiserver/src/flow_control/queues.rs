//! The queues of one priority level: shuffle sharding and start-time fair queuing. Pure; the clock and those who wait
//! are the caller's.

use std::collections::VecDeque;
use std::time::Duration;

/// What a request is taken to last before it is known (the figure only orders requests).
const EXPECTED_SECONDS: f64 = 0.06;

struct Waiter<T> {
    seats: u32,
    token: T,
}

struct Queue<T> {
    waiting: VecDeque<Waiter<T>>,
    /// When, in virtual time, the queue's next request may begin.
    start: f64,
    executing: u32,
}

impl<T> Default for Queue<T> {
    fn default() -> Queue<T> {
        Queue { waiting: VecDeque::new(), start: 0.0, executing: 0 }
    }
}

pub struct Queues<T> {
    queues: Vec<Queue<T>>,
    hand_size: usize,
    length_max: usize,
    /// Virtual time: when the request that was let in last began.
    now: f64,
    waiting: usize,
}

impl<T> Default for Queues<T> {
    fn default() -> Queues<T> {
        Queues { queues: Vec::new(), hand_size: 1, length_max: 0, now: 0.0, waiting: 0 }
    }
}

pub enum Entered {
    /// It runs, on behalf of a queue where the level has queues.
    Runs(Option<usize>),
    Waits(usize),
    Full,
}

impl<T> Queues<T> {
    /// Sets the number of queues (0: nobody waits), how many each flow is dealt, and how long each may be.
    pub fn set(&mut self, queues: usize, hand_size: usize, length_max: usize) {
        // Queues in use stay until they are empty; what waits there is let in as ever.
        if queues > self.queues.len() {
            self.queues.resize_with(queues, Queue::default);
        } else {
            while self.queues.len() > queues
                && self.queues.last().is_some_and(|q| q.waiting.is_empty() && q.executing == 0)
            {
                self.queues.pop();
            }
        }
        self.hand_size = hand_size.clamp(1, queues.max(1));
        self.length_max = length_max;
    }

    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// The least loaded queue of those the flow is dealt.
    fn choose(&self, flow: u64) -> Option<usize> {
        let dealt = deal(flow, self.queues.len(), self.hand_size);
        dealt.into_iter().min_by_key(|i| {
            let queue = &self.queues[*i];
            (queue.waiting.iter().map(|w| w.seats as usize).sum::<usize>() + queue.executing as usize, *i)
        })
    }

    /// Takes a request in: it runs when there is room and nobody waits before it.
    pub fn enter(&mut self, flow: u64, seats: u32, room: bool, token: T) -> Entered {
        let Some(chosen) = self.choose(flow) else {
            return if room { Entered::Runs(None) } else { Entered::Full };
        };
        if room && self.waiting == 0 {
            self.begin(chosen, seats);
            return Entered::Runs(Some(chosen));
        }
        let queue = &mut self.queues[chosen];
        if queue.waiting.len() >= self.length_max {
            return Entered::Full;
        }
        if queue.waiting.is_empty() && queue.executing == 0 {
            queue.start = queue.start.max(self.now);
        }
        queue.waiting.push_back(Waiter { seats, token });
        self.waiting += 1;
        Entered::Waits(chosen)
    }

    fn begin(&mut self, i: usize, seats: u32) {
        let queue = &mut self.queues[i];
        let start = queue.start.max(self.now);
        self.now = start;
        queue.start = start + f64::from(seats) * EXPECTED_SECONDS;
        queue.executing += seats;
    }

    /// The next request to let in, if it fits: of the queue whose turn it is, which comes first in the answer.
    pub fn next(&mut self, fits: impl Fn(u32) -> bool) -> Option<(usize, u32, T)> {
        let finish =
            |q: &Queue<T>| q.waiting.front().map(|w| q.start + f64::from(w.seats) * EXPECTED_SECONDS);
        let (i, _) = self
            .queues
            .iter()
            .enumerate()
            .filter_map(|(i, q)| Some((i, finish(q)?)))
            .min_by(|a, b| a.1.total_cmp(&b.1))?;
        // A wide request holds up those behind it, or it would never find room.
        if !fits(self.queues[i].waiting.front()?.seats) {
            return None;
        }
        let waiter = self.queues[i].waiting.pop_front()?;
        self.waiting -= 1;
        self.begin(i, waiter.seats);
        Some((i, waiter.seats, waiter.token))
    }

    /// A request of a queue has ended.
    pub fn done(&mut self, i: usize, seats: u32, took: Duration) {
        let Some(queue) = self.queues.get_mut(i) else { return };
        queue.executing = queue.executing.saturating_sub(seats);
        queue.start += f64::from(seats) * (took.as_secs_f64() - EXPECTED_SECONDS);
    }

    /// Takes out those who no longer wait.
    pub fn sweep(&mut self, gone: impl Fn(&T) -> bool) {
        for queue in &mut self.queues {
            queue.waiting.retain(|w| !gone(&w.token));
        }
        self.waiting = self.queues.iter().map(|q| q.waiting.len()).sum();
    }
}

/// `hand` different cards of a deck of `deck`, decided by a hash.
fn deal(mut hash: u64, deck: usize, hand: usize) -> Vec<usize> {
    let mut dealt: Vec<usize> = Vec::with_capacity(hand);
    for i in 0..hand.min(deck) {
        let left = (deck - i) as u64;
        let mut card = (hash % left) as usize;
        hash /= left;
        // The number among the cards not dealt yet.
        let mut sorted = dealt.clone();
        sorted.sort_unstable();
        for d in sorted {
            if card >= d {
                card += 1;
            }
        }
        dealt.push(card);
    }
    dealt
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deals_different_cards() {
        for hash in [0, 1, 7, 12_345_678_901, u64::MAX] {
            let mut hand = deal(hash, 64, 6);
            hand.sort_unstable();
            hand.dedup();
            assert_eq!(hand.len(), 6);
            assert!(hand.iter().all(|c| *c < 64));
        }
        assert_eq!(deal(5, 2, 6).len(), 2);
    }

    #[test]
    fn flows_take_turns() {
        let mut queues = Queues::default();
        queues.set(8, 1, 50);
        // One flow asks twenty times before another asks twice.
        for i in 0..20 {
            assert!(matches!(queues.enter(1, 1, false, ("greedy", i)), Entered::Waits(1)));
        }
        for i in 0..2 {
            assert!(matches!(queues.enter(2, 1, false, ("modest", i)), Entered::Waits(2)));
        }
        let order: Vec<&str> =
            std::iter::from_fn(|| queues.next(|_| true)).map(|(_, _, (who, _))| who).collect();
        assert_eq!(order.iter().rposition(|who| *who == "modest"), Some(3));
        assert_eq!(queues.waiting(), 0);
    }

    #[test]
    fn wide_requests_are_not_passed_by() {
        let mut queues = Queues::default();
        queues.set(1, 1, 50);
        queues.enter(0, 5, false, "wide");
        queues.enter(0, 1, false, "narrow");
        assert!(queues.next(|seats| seats <= 2).is_none());
        assert_eq!(queues.next(|_| true).unwrap().2, "wide");
        queues.sweep(|token| *token == "narrow");
        assert_eq!(queues.waiting(), 0);
        assert!(matches!(queues.enter(0, 1, true, "next"), Entered::Runs(Some(0))));
    }
}
