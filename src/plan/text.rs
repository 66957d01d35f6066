//! A plan as text: a line a step.

use std::fmt;

use super::{Op, Plan, Read, Tokens};
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
        let closes = match op {
            Op::Close { .. } => true,
            Op::Keep { tokens, .. } | Op::Decide { tokens, .. } => *tokens != Tokens::Modulated,
            _ => false,
        };
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
            tokens,
            probe,
            compute,
            reuse,
            ..
        } => format!(
            "{}? s{probe}: {} | {}",
            match tokens {
                Tokens::Added => "} ",
                _ => tokens_text(*tokens),
            },
            row_text(compute, graph),
            row_text(reuse, graph)
        ),
        Op::Keep { tokens, write } => format!("{}→ s{write}", tokens_text(*tokens)),
        Op::Shift { from, to } => format!("s{from} → s{to}"),
        Op::Align {
            probes: [newer, older],
            slots: [last, before],
            ..
        } => format!("}} [← s{before} to s{last} as s{older} to s{newer}]"),
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

/// What stands before an arrow from tokens.
fn tokens_text(tokens: Tokens) -> &'static str {
    match tokens {
        Tokens::Stream => "",
        Tokens::Added => "+",
        Tokens::Modulated => "in ",
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
