//! Several processes that do one command: `mpirun -n 4 harmonica …`

use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    process::ExitCode,
};

use super::error::CliError;
use crate::{
    ranks::{Leaving, Ranks, RanksError, started_together},
    sampler::Totals,
};

/// This process and those that were started with it; alone where nothing started it with others.
pub(super) fn join(is_shared: bool) -> Result<Ranks, CliError> {
    let Some(started) = started_together() else {
        return Ok(Ranks::alone());
    };
    if !is_shared {
        return Err(CliError::Usage(format!(
            "{started} processes were started together, and this command is for one; sample, compare and train router share work out"
        )));
    }
    world(started)
}

#[cfg(feature = "mpi")]
fn world(started: usize) -> Result<Ranks, CliError> {
    let ranks = Ranks::world()?;
    match ranks.size() {
        size if size == started => Ok(ranks),
        size => Err(CliError::Usage(format!(
            "{started} processes were started together, and MPI knows of {size}: start them with the mpirun of the MPI that this program was built with, or with srun --mpi=pmix"
        ))),
    }
}

#[cfg(not(feature = "mpi"))]
fn world(started: usize) -> Result<Ranks, CliError> {
    Err(CliError::Usage(format!(
        "{started} processes were started together, and this program was built for one: cargo build --release --features mpi makes one that shares work out"
    )))
}

/// What the runs of all ranks did together.
pub(super) fn of_all(own: Totals, ranks: &Ranks) -> Result<Totals, RanksError> {
    let Totals {
        macs,
        macs_full,
        computed,
        reused,
        peak_cache_bytes,
    } = own;
    let sums = ranks.sum(vec![macs, macs_full, computed, reused])?;
    let peaks = ranks.gather_numbers(vec![peak_cache_bytes as u64])?;
    Ok(Totals {
        macs: sums[0],
        macs_full: sums[1],
        computed: sums[2],
        reused: sums[3],
        peak_cache_bytes: peaks.into_iter().max().unwrap_or(0) as usize,
    })
}

/// Does a command, and sees to it that no other rank waits for one that has ended. Of several that fail the first says why.
pub(super) fn end(ranks: &Ranks, command: impl FnOnce() -> Result<(), CliError>) -> ExitCode {
    let done = catch_unwind(AssertUnwindSafe(command)).unwrap_or_else(|panic| {
        ranks.leave(&Leaving::Failed("a panic, see there".into()));
        resume_unwind(panic)
    });
    // Some may still have something to write.
    let done = done.and_then(|()| match ranks.have_ended() {
        true => Ok(()),
        false => Ok(ranks.gather(&[]).map(drop)?),
    });
    let Err(error) = done else {
        return ExitCode::SUCCESS;
    };
    let speaks = match ranks.have_ended() {
        // All know; of a failure whoever failed has told.
        true => {
            ranks.leads()
                && (ranks.is_alone()
                    || !matches!(error, CliError::Ranks(RanksError::Failed { .. })))
        }
        false => ranks.leave(&match &error {
            CliError::Interrupted => Leaving::Stopped,
            error => Leaving::Failed(error.to_string()),
        }),
    };
    if speaks {
        let who = match ranks.rank() {
            0 => String::new(),
            rank => format!("rank {rank}: "),
        };
        eprintln!("error: {who}{}", error.explain());
    }
    ExitCode::from(error.exit_code())
}
