//! A plan as text: a line a step.

use std::fmt;

use super::{Op, Plan, Read};
use crate::{graph::Graph, schedule::Joint};

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (s, ops) in self.steps().iter().enumerate() {
            let text = match ops.is_empty() {
                true => "forecast".into(),
                false => row_text(ops, self.graph()),
            };
            writeln!(f, "step {s:>2}  {text}")?;
        }
        Ok(())
    }
}

fn row_text(ops: &[Op], graph: &Graph) -> String {
    let mut text = String::new();
    let mut opened = true;
    for op in ops {
        let closes = matches!(op, Op::Close { .. } | Op::Keep { .. } | Op::Decide { .. });
        text.push_str(match (opened, closes) {
            (true, _) => "",
            (false, true) => " ",
            (false, false) => " · ",
        });
        text.push_str(&op_text(op, graph));
        opened = matches!(op, Op::Open);
    }
    text
}

fn op_text(op: &Op, graph: &Graph) -> String {
    match op {
        Op::Open => "{ ".into(),
        Op::Close { write } => format!("}} → s{write}"),
        Op::Decide {
            probe,
            compute,
            reuse,
            ..
        } => format!(
            "}} ? s{probe}: {} | {}",
            row_text(compute, graph),
            row_text(reuse, graph)
        ),
        Op::Keep { write } => format!("→ s{write}"),
        Op::Again {
            reads,
            joint: Joint::Added,
            ..
        } => format!("[← {}]", sum_text(reads)),
        Op::Again {
            reads,
            joint: Joint::Stream,
            ..
        } => format!("[= {}]", sum_text(reads)),
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
