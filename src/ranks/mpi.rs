//! Processes that MPI started.

// MPI's handles are pointers.
#![allow(unsafe_code)]

use std::sync::{Mutex, PoisonError};

use mpi::{
    Threading,
    datatype::PartitionMut,
    environment::Universe,
    topology::{Communicator, SimpleCommunicator},
    traits::CommunicatorCollectives,
};

use super::{Exchange, Ranks, RanksError};

/// Bytes of each rank in one collective call: MPI counts in 32 bits, over all ranks.
const CHUNK: usize = 8 << 20;

impl Ranks {
    /// All processes of the job that MPI started this one in. The first call joins them; MPI ends when the last clone is dropped.
    ///
    /// # Errors
    /// [`RanksError::Lost`] where MPI was joined before, or does not allow calls from several threads in turn.
    pub fn world() -> Result<Self, RanksError> {
        let lost = |problem: &str| RanksError::Lost(problem.into());
        let (universe, threading) = mpi::initialize_with_threading(Threading::Serialized)
            .ok_or_else(|| lost("MPI was initialized before"))?;
        if threading < Threading::Serialized {
            return Err(lost("this MPI allows calls from one thread alone"));
        }
        let world = universe.world();
        Ok(Self::of(World {
            rank: world.rank() as usize,
            size: world.size() as usize,
            joined: Mutex::new(Joined {
                world,
                _universe: universe,
            }),
        }))
    }
}

struct World {
    rank: usize,
    size: usize,
    joined: Mutex<Joined>,
}

struct Joined {
    world: SimpleCommunicator,
    /// Ends MPI when it is dropped.
    _universe: Universe,
}

// SAFETY: the handle of the world is valid in every thread, and calls come in turn, which `Serialized` allows.
unsafe impl Send for Joined {}

impl Exchange for World {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn gather(&self, own: &[u8]) -> Result<Vec<Vec<u8>>, RanksError> {
        let joined = self.joined.lock().unwrap_or_else(PoisonError::into_inner);
        let mut lengths = vec![0u64; self.size];
        joined
            .world
            .all_gather_into(&[own.len() as u64][..], &mut lengths[..]);
        let lengths: Vec<usize> = lengths.into_iter().map(|length| length as usize).collect();
        let chunk = CHUNK.min(i32::MAX as usize / self.size);
        let mut all: Vec<Vec<u8>> = lengths
            .iter()
            .map(|length| Vec::with_capacity(*length))
            .collect();
        let longest = lengths.iter().copied().max().unwrap_or(0);
        for start in (0..longest).step_by(chunk) {
            let part = |length: usize| length.saturating_sub(start).min(chunk);
            let counts: Vec<i32> = lengths.iter().map(|length| part(*length) as i32).collect();
            let mut places = Vec::with_capacity(self.size);
            let mut end = 0;
            for count in &counts {
                places.push(end);
                end += count;
            }
            let mut received = vec![0u8; end as usize];
            let from = start.min(own.len());
            let sent = &own[from..from + part(own.len())];
            let mut partition = PartitionMut::new(&mut received[..], &counts[..], &places[..]);
            joined.world.all_gather_varcount_into(sent, &mut partition);
            for ((all, place), count) in all.iter_mut().zip(&places).zip(&counts) {
                all.extend_from_slice(&received[*place as usize..(*place + *count) as usize]);
            }
        }
        Ok(all)
    }
}
