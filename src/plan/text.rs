//! A plan as text: a line a step.

use std::fmt;

use super::{Op, Plan};

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (s, ops) in self.steps().iter().enumerate() {
            let ops: Vec<String> = ops.iter().map(op_text).collect();
            writeln!(f, "step {s:>2}  {}", ops.join(" · "))?;
        }
        Ok(())
    }
}

fn op_text(op: &Op) -> String {
    match op {
        Op::Compute {
            branch,
            write: Some(slot),
        } => format!("{} → s{slot}", name(*branch)),
        Op::Compute {
            branch,
            write: None,
        } => name(*branch),
        Op::Reuse(span) => {
            let reads: Vec<String> = span
                .iter()
                .map(|read| format!("{} ← s{}", name(read.branch), read.slot))
                .collect();
            format!("[{}]", reads.join(", "))
        }
    }
}

fn name(branch: usize) -> String {
    format!("{} {}", ["attn", "mlp"][branch % 2], branch / 2)
}
