//! A plan as text: a line a step.

use std::fmt;

use super::{Op, Plan, Read};
use crate::graph::Graph;

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (s, ops) in self.steps().iter().enumerate() {
            let ops: Vec<String> = ops.iter().map(|op| op_text(op, self.graph())).collect();
            writeln!(f, "step {s:>2}  {}", ops.join(" · "))?;
        }
        Ok(())
    }
}

fn op_text(op: &Op, graph: &Graph) -> String {
    match op {
        Op::Compute {
            branch,
            write: Some(slot),
        } => format!("{} → s{slot}", graph.site_name(*branch)),
        Op::Compute {
            branch,
            write: None,
        } => graph.site_name(*branch),
        Op::Reuse(span) => {
            let branches = span.chunk_by(|a, b| a.branch == b.branch);
            let reads: Vec<String> = branches
                .map(|reads| format!("{} ← {}", graph.site_name(reads[0].branch), sum_text(reads)))
                .collect();
            format!("[{}]", reads.join(", "))
        }
    }
}

/// `s3`, or `1.5·s3 - 0.5·s1`.
fn sum_text(reads: &[Read]) -> String {
    let mut text = String::new();
    for (i, read) in reads.iter().enumerate() {
        let sign = match (i, read.weight < 0.0) {
            (0, false) => "",
            (0, true) => "-",
            (_, false) => " + ",
            (_, true) => " - ",
        };
        let factor = match read.weight.abs() {
            1.0 => String::new(),
            weight => format!("{weight}·"),
        };
        text.push_str(&format!("{sign}{factor}s{}", read.slot));
    }
    text
}
