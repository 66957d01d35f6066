//! Threads as ranks: several devices of one machine, and tests.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

use super::{Exchange, Ranks, RanksError};

/// Ranks of one process, each for a thread of its own.
///
/// A thread that ends without [`Ranks::leave`] leaves the others waiting, until its ranks are dropped: that they hear as
/// [`RanksError::Lost`].
pub fn ranks(size: usize) -> Vec<Ranks> {
    let shared = Arc::new(Shared {
        table: Mutex::new(Table {
            given: vec![None; size],
            round: 0,
            result: Vec::new(),
            gone: false,
        }),
        changed: Condvar::new(),
    });
    let of = |rank| {
        Ranks::of(Thread {
            rank,
            size,
            shared: shared.clone(),
        })
    };
    (0..size).map(of).collect()
}

struct Thread {
    rank: usize,
    size: usize,
    shared: Arc<Shared>,
}

struct Shared {
    table: Mutex<Table>,
    changed: Condvar,
}

struct Table {
    /// What was given so far in this round.
    given: Vec<Option<Vec<u8>>>,
    round: u64,
    /// Of the round before.
    result: Vec<Vec<u8>>,
    /// Whether somebody was dropped.
    gone: bool,
}

impl Exchange for Thread {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn gather(&self, own: &[u8]) -> Result<Vec<Vec<u8>>, RanksError> {
        let lost = || RanksError::Lost("one of them is gone".into());
        let table = self.shared.table.lock();
        let mut table = table.unwrap_or_else(PoisonError::into_inner);
        if table.gone {
            return Err(lost());
        }
        let round = table.round;
        table.given[self.rank] = Some(own.to_vec());
        if table.given.iter().all(Option::is_some) {
            table.result = table.given.iter_mut().filter_map(Option::take).collect();
            table.round += 1;
            self.shared.changed.notify_all();
        }
        while table.round == round {
            if table.gone {
                return Err(lost());
            }
            let woken = self.shared.changed.wait(table);
            table = woken.unwrap_or_else(PoisonError::into_inner);
        }
        Ok(table.result.clone())
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        let table = self.shared.table.lock();
        table.unwrap_or_else(PoisonError::into_inner).gone = true;
        self.shared.changed.notify_all();
    }
}

/// The same work on so many threads; what it came to, in order of rank.
#[cfg(test)]
pub(crate) fn together<T: Send>(size: usize, work: impl Fn(&Ranks) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let work = &work;
        let started: Vec<_> = ranks(size)
            .into_iter()
            .map(|ranks| scope.spawn(move || work(&ranks)))
            .collect();
        let ended = started.into_iter().map(|thread| thread.join().unwrap());
        ended.collect()
    })
}
