//! Processes that do one job together, each on a device of its own.
//!
//! A job is the same program everywhere. Its ranks share out images, micro-batches or candidate tables and give each other what came
//! of them, in order of rank: whoever sums does it in the order of the images, so that the number of ranks changes no bit. Each
//! exchange is one that all ranks take part in. One that stops or fails says so in its next ([`Ranks::leave`]), which the
//! others hear in theirs: nobody waits for somebody who has gone.
//!
//! With the feature `mpi`, `Ranks::world` are the processes that `mpirun` or a cluster started.

#[cfg(feature = "mpi")]
mod mpi;
pub mod threads;

use std::{
    fmt,
    ops::{AddAssign, Range},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytemuck::Pod;

/// What starters of several processes tell each of them: its number of processes, and which it is on its machine.
const STARTERS: [(&str, &str); 5] = [
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("PMI_SIZE", "MPI_LOCALRANKID"),
    ("MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK"),
    ("PALS_SIZE", "PALS_LOCAL_RANKID"),
    // Of a step of Slurm, whatever MPI it is started for; last, since an `mpirun` in one has numbers of its own.
    ("SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
];

/// A way for processes, or threads, to give each other what they have.
pub trait Exchange: Send + Sync {
    /// The number of this one.
    fn rank(&self) -> usize;

    /// How many there are.
    fn size(&self) -> usize;

    /// What each of them gives, in order of rank; returns once all have given.
    ///
    /// # Errors
    /// [`RanksError::Lost`].
    fn gather(&self, own: &[u8]) -> Result<Vec<Vec<u8>>, RanksError>;
}

/// Why ranks do not go on together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RanksError {
    /// One of them was asked to stop.
    #[error("stopped")]
    Stopped,
    /// One of them failed.
    #[error("rank {rank} failed: {message}")]
    Failed { rank: usize, message: String },
    /// They were not asked for the same.
    #[error(
        "rank {rank} has another {what} than rank 0: start all ranks with one command line, and with files that all of them see"
    )]
    Differ { rank: usize, what: &'static str },
    /// What came is not what was waited for.
    #[error(
        "rank {rank} gave {found} bytes where {expected} were expected: do all ranks run the same program?"
    )]
    Unexpected {
        rank: usize,
        found: usize,
        expected: &'static str,
    },
    /// The others cannot be reached.
    #[error("the other ranks cannot be reached: {0}")]
    Lost(String),
}

/// Why a rank takes no further part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Leaving {
    /// It was asked to stop.
    Stopped,
    /// It failed.
    Failed(String),
}

/// The processes of a job; by default this one alone.
#[derive(Clone, Default)]
pub struct Ranks {
    exchange: Option<Arc<dyn Exchange>>,
    /// Whether all know that no further exchange will come.
    ended: Arc<AtomicBool>,
}

/// First byte of a message.
const FINE: u8 = 0;
const STOPPED: u8 = 1;
const FAILED: u8 = 2;

impl Ranks {
    /// This process alone.
    pub fn alone() -> Self {
        Self::default()
    }

    /// Those that an exchange reaches.
    pub fn of(exchange: impl Exchange + 'static) -> Self {
        Self {
            exchange: Some(Arc::new(exchange)),
            ended: Arc::default(),
        }
    }

    /// The number of this one, from 0.
    pub fn rank(&self) -> usize {
        self.exchange.as_ref().map_or(0, |exchange| exchange.rank())
    }

    /// How many there are.
    pub fn size(&self) -> usize {
        self.exchange.as_ref().map_or(1, |exchange| exchange.size())
    }

    /// Whether this one writes files and speaks for all.
    pub fn leads(&self) -> bool {
        self.rank() == 0
    }

    /// Whether there are no others.
    pub fn is_alone(&self) -> bool {
        self.size() == 1
    }

    /// Whether all know that no further exchange will come.
    pub fn have_ended(&self) -> bool {
        self.is_alone() || self.ended.load(Ordering::Relaxed)
    }

    /// This rank's items of `items`: whole groups of `group`, as evenly as they go; none for some where there are fewer groups
    /// than ranks.
    pub fn share(&self, items: usize, group: usize) -> Range<usize> {
        share(items, group, self.rank(), self.size())
    }

    /// What each rank gives, in order of rank.
    ///
    /// # Errors
    /// [`RanksError`]: one of them stopped or failed, or cannot be reached.
    pub fn gather(&self, own: &[u8]) -> Result<Vec<Vec<u8>>, RanksError> {
        match &self.exchange {
            None => Ok(vec![own.to_vec()]),
            Some(exchange) => self.heard(exchange.gather(&message(FINE, own))?),
        }
    }

    /// The numbers of all ranks, one after another, in order of rank.
    ///
    /// # Errors
    /// As [`Self::gather`].
    pub fn gather_numbers<T: Pod>(&self, own: Vec<T>) -> Result<Vec<T>, RanksError> {
        if self.exchange.is_none() {
            return Ok(own);
        }
        let size = size_of::<T>();
        let mut all = Vec::new();
        for (rank, bytes) in self
            .gather(bytemuck::cast_slice(&own))?
            .into_iter()
            .enumerate()
        {
            if bytes.len() % size != 0 {
                return Err(RanksError::Unexpected {
                    rank,
                    found: bytes.len(),
                    expected: "a whole number of numbers",
                });
            }
            all.extend(
                bytes
                    .chunks_exact(size)
                    .map(bytemuck::pod_read_unaligned::<T>),
            );
        }
        Ok(all)
    }

    /// The sum of the numbers of all ranks, place by place, in order of rank; all must give as many.
    ///
    /// # Errors
    /// As [`Self::gather`].
    pub fn sum<T: Pod + AddAssign>(&self, own: Vec<T>) -> Result<Vec<T>, RanksError> {
        let places = own.len();
        let mut sums = self.gather_numbers(own)?;
        let others = sums.split_off(places);
        for of_rank in others.chunks(places.max(1)) {
            let both = sums.iter_mut().zip(of_rank);
            both.for_each(|(sum, of_rank)| *sum += *of_rank);
        }
        Ok(sums)
    }

    /// What rank 0 has, if anything: all get it.
    ///
    /// # Errors
    /// As [`Self::gather`].
    pub fn of_first(&self, own: Option<Vec<u8>>) -> Result<Option<Vec<u8>>, RanksError> {
        if self.exchange.is_none() {
            return Ok(own);
        }
        // Empty is something too.
        let own = own.filter(|_| self.leads());
        let own = own.map_or(Vec::new(), |own| [&[1], &own[..]].concat());
        let mut first = self.gather(&own)?.swap_remove(0);
        Ok((!first.is_empty()).then(|| first.split_off(1)))
    }

    /// That all ranks have the same of something.
    ///
    /// # Errors
    /// [`RanksError::Differ`] on all of them; as [`Self::gather`].
    pub fn agree(&self, what: &'static str, own: &[u8]) -> Result<(), RanksError> {
        let all = self.gather(own)?;
        match all.iter().position(|other| *other != all[0]) {
            None => Ok(()),
            Some(rank) => {
                self.ended.store(true, Ordering::Relaxed);
                Err(RanksError::Differ { rank, what })
            }
        }
    }

    /// Tells the others that this one takes no further part, unless all know that they are done; they hear it in their next
    /// exchange. Returns whether no lower rank has left for a reason of its own, so that this one's may be printed.
    pub fn leave(&self, why: &Leaving) -> bool {
        let Some(exchange) = self.exchange.as_ref().filter(|_| !self.have_ended()) else {
            return false;
        };
        let own = match why {
            Leaving::Stopped => message(STOPPED, &[]),
            Leaving::Failed(message_) => message(FAILED, message_.as_bytes()),
        };
        let all = exchange.gather(&own);
        self.ended.store(true, Ordering::Relaxed);
        match all {
            Ok(all) => all
                .iter()
                .take(self.rank())
                .all(|lower| lower.first() == Some(&FINE)),
            Err(_) => true,
        }
    }

    fn heard(&self, all: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, RanksError> {
        let kind = |of: &Vec<u8>| of.first().copied();
        let failed = all.iter().position(|of| kind(of) == Some(FAILED));
        let stopped = all.iter().any(|of| kind(of) == Some(STOPPED));
        if failed.is_some() || stopped {
            self.ended.store(true, Ordering::Relaxed);
        }
        if let Some(rank) = failed {
            let message = String::from_utf8_lossy(&all[rank][1..]).into_owned();
            return Err(RanksError::Failed { rank, message });
        }
        if stopped {
            return Err(RanksError::Stopped);
        }
        let payload = |mut of: Vec<u8>| {
            of.drain(..1.min(of.len()));
            of
        };
        Ok(all.into_iter().map(payload).collect())
    }
}

impl fmt::Debug for Ranks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} of {}", self.rank(), self.size())
    }
}

fn message(kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(1 + payload.len());
    message.push(kind);
    message.extend_from_slice(payload);
    message
}

/// The items of a rank: whole groups, as evenly as they go.
fn share(items: usize, group: usize, rank: usize, size: usize) -> Range<usize> {
    let group = group.max(1);
    let groups = items.div_ceil(group);
    // The first has something wherever anybody has.
    let bound = |rank: usize| ((rank * groups).div_ceil(size) * group).min(items);
    bound(rank)..bound(rank + 1)
}

/// How many processes a starter says it started, where that is more than one; `Ranks::world` joins them.
pub fn started_together() -> Option<usize> {
    let size = |(size, _): &(&str, _)| std::env::var(size).ok()?.parse().ok();
    STARTERS.iter().find_map(size).filter(|size| *size > 1)
}

/// Which of the processes on its machine this one is, from 0, where a starter says so.
pub fn number_on_machine() -> Option<usize> {
    let number = |(_, number): &(_, &str)| std::env::var(number).ok()?.parse().ok();
    STARTERS.iter().find_map(number)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{threads::together, *};

    #[test]
    fn numbers_come_in_order_of_rank() {
        let all = together(3, |ranks| {
            let own: Vec<f64> = (0..ranks.rank()).map(|i| i as f64 + 0.5).collect();
            ranks.gather_numbers(own).unwrap()
        });
        assert_eq!(all, vec![vec![0.5, 0.5, 1.5]; 3]);
        assert_eq!(Ranks::alone().gather_numbers(vec![1.0f32]).unwrap(), [1.0]);
    }

    #[test]
    fn sums_are_place_by_place() {
        let sums = together(3, |ranks| ranks.sum(vec![1, ranks.rank() as u64]).unwrap());
        assert_eq!(sums, vec![[3, 3]; 3]);
        assert_eq!(Ranks::alone().sum(vec![1.5, 2.0]).unwrap(), [1.5, 2.0]);
    }

    #[test]
    fn all_get_what_the_first_has_and_find_out_who_differs() {
        let got = together(2, |ranks| {
            let own = format!("of {}", ranks.rank());
            let first = ranks.of_first(Some(own.clone().into_bytes()));
            let first = first.unwrap().unwrap();
            assert_eq!(ranks.of_first(Some(Vec::new())).unwrap(), Some(Vec::new()));
            assert_eq!(ranks.of_first(None).unwrap(), None);
            ranks.agree("seed", b"7").unwrap();
            (
                first,
                ranks.agree("batch", own.as_bytes()),
                ranks.have_ended(),
            )
        });
        let differ = RanksError::Differ {
            rank: 1,
            what: "batch",
        };
        assert_eq!(got, vec![(b"of 0".to_vec(), Err(differ), true); 2]);
    }

    #[test]
    fn whoever_leaves_is_heard_in_the_next_exchange() {
        for (why, heard) in [
            (Leaving::Stopped, RanksError::Stopped),
            (
                Leaving::Failed("no disk".into()),
                RanksError::Failed {
                    rank: 1,
                    message: "no disk".into(),
                },
            ),
        ] {
            let ended = together(3, |ranks| {
                ranks.gather(&[]).unwrap();
                let said = match ranks.rank() {
                    1 => {
                        assert!(ranks.leave(&why));
                        None
                    }
                    _ => Some(ranks.gather(b"more").unwrap_err()),
                };
                assert!(ranks.have_ended() && !ranks.leave(&why));
                said
            });
            assert_eq!(ended, [Some(heard.clone()), None, Some(heard)]);
        }
    }

    #[test]
    fn of_several_that_fail_at_once_the_first_speaks() {
        let speaks = together(3, |ranks| ranks.leave(&Leaving::Failed("all".into())));
        assert_eq!(speaks, [true, false, false]);
    }

    proptest! {
        #[test]
        fn shares_are_whole_groups_in_order(items in 0usize..200, group in 1usize..20, size in 1usize..10) {
            let shares: Vec<_> = (0..size).map(|rank| share(items, group, rank, size)).collect();
            let mut end = 0;
            for share in &shares {
                prop_assert_eq!(share.start, end);
                prop_assert!(share.start % group == 0 || share.start == items);
                end = share.end;
            }
            prop_assert_eq!(end, items);
            let groups = |share: &Range<usize>| share.len().div_ceil(group);
            let (most, least) = (shares.iter().map(groups).max(), shares.iter().map(groups).min());
            prop_assert!(most.unwrap() - least.unwrap() <= 1);
        }
    }
}
