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
    let own = [macs, macs_full, computed, reused, peak_cache_bytes as u64];
    let all = ranks.gather_numbers(&own)?;
    let mut together = Totals::default();
    for of_rank in all.chunks_exact(own.len()) {
        together.macs += of_rank[0];
        together.macs_full += of_rank[1];
        together.computed += of_rank[2];
        together.reused += of_rank[3];
        together.peak_cache_bytes = together.peak_cache_bytes.max(of_rank[4] as usize);
    }
    Ok(together)
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
