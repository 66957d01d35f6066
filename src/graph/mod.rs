//! The network as pure data: the branches that may be reused, in execution order, what each costs, and what its
//! feature looks like. Schedules, plans and figures know a network by its graph alone.

use serde::{Deserialize, Serialize};

/// What a branch computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SiteKind {
    /// Tokens of the image among themselves.
    SelfAttention,
    /// Tokens of the image to those of the text.
    CrossAttention,
    /// The two-layer MLP.
    Mlp,
}

impl SiteKind {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::SelfAttention, Self::CrossAttention, Self::Mlp];

    /// In plans and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::SelfAttention => "attention",
            Self::CrossAttention => "cross-attention",
            Self::Mlp => "MLP",
        }
    }

    /// In a line of a plan.
    pub fn short(self) -> &'static str {
        match self {
            Self::SelfAttention => "attn",
            Self::CrossAttention => "cross",
            Self::Mlp => "mlp",
        }
    }
}

/// A branch that may be reused: one residual branch of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Site {
    pub block: usize,
    pub kind: SiteKind,
    /// Multiply-accumulates of one image in one pass.
    pub macs: u64,
}

/// The sites of a network in execution order, and what they stand in.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "GraphRecord", into = "GraphRecord")]
pub struct Graph {
    sites: Vec<Site>,
    blocks: usize,
    tokens: usize,
    width: usize,
    fixed_macs: u64,
}

/// Numbers that make no network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GraphError {
    /// A count out of range.
    #[error("{what} is {value}, expected 1 to {most}")]
    OutOfRange {
        what: &'static str,
        value: usize,
        most: usize,
    },
    /// More work than 64 bits count.
    #[error("a network of so many multiply-accumulates cannot be run")]
    TooLarge,
}

/// Steps at most that costs are added up over.
const MAX_STEPS: u64 = 1000;
const MAX_BLOCKS: usize = 4096;
const MAX_SIDE: usize = 1 << 16;

/// The run-length form of a graph, as files write it: blocks that are alike stand once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct GraphRecord {
    sections: Vec<Section>,
    tokens: usize,
    width: usize,
    fixed_macs: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Section {
    blocks: usize,
    pattern: Vec<(SiteKind, u64)>,
}

impl Graph {
    /// A network of `blocks` blocks with the sites of `pattern` each: `(kind, multiply-accumulates)` in execution order.
    ///
    /// `tokens` and `width` are those of a feature, `[tokens, width]` an image; `fixed_macs` is what no schedule can skip:
    /// embeddings, adaLN vectors, last layer.
    ///
    /// # Errors
    /// [`GraphError`].
    pub fn uniform(
        blocks: usize,
        pattern: &[(SiteKind, u64)],
        [tokens, width]: [usize; 2],
        fixed_macs: u64,
    ) -> Result<Self, GraphError> {
        Self::try_from(GraphRecord {
            sections: vec![Section {
                blocks,
                pattern: pattern.to_vec(),
            }],
            tokens,
            width,
            fixed_macs,
        })
    }

    /// The sites in execution order.
    pub fn sites(&self) -> &[Site] {
        &self.sites
    }

    /// `N`, the number of branches.
    pub fn branches(&self) -> usize {
        self.sites.len()
    }

    /// Number of blocks.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// Tokens of a feature.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Numbers of a token.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Numbers of one image's feature.
    pub fn feature_numbers(&self) -> usize {
        self.tokens * self.width
    }

    /// The kinds of branch that the network has, in the order of a block.
    pub fn kinds(&self) -> Vec<SiteKind> {
        let mut kinds = Vec::new();
        for site in &self.sites {
            if !kinds.contains(&site.kind) {
                kinds.push(site.kind);
            }
        }
        kinds
    }

    /// What a branch is called in plans: `attn 3`.
    pub fn site_name(&self, n: usize) -> String {
        match self.sites.get(n) {
            Some(site) => format!("{} {}", site.kind.short(), site.block),
            None => format!("branch {n}"),
        }
    }

    /// Multiply-accumulates of one image in one pass that computes the sites of `row`.
    pub fn step_macs(&self, row: &[bool]) -> u64 {
        let computed = self
            .sites
            .iter()
            .zip(row)
            .filter(|(_, computes)| **computes);
        self.fixed_macs + computed.map(|(site, _)| site.macs).sum::<u64>()
    }

    /// Multiply-accumulates of one image in one pass that reuses nothing.
    pub fn full_step_macs(&self) -> u64 {
        self.fixed_macs + self.sites.iter().map(|site| site.macs).sum::<u64>()
    }
}

impl TryFrom<GraphRecord> for Graph {
    type Error = GraphError;

    fn try_from(record: GraphRecord) -> Result<Self, GraphError> {
        let within = |what, value: usize, most: usize| match value {
            0 => Err(GraphError::OutOfRange { what, value, most }),
            _ if value > most => Err(GraphError::OutOfRange { what, value, most }),
            _ => Ok(()),
        };
        within("tokens", record.tokens, MAX_SIDE)?;
        within("width", record.width, MAX_SIDE)?;
        within("number of sections", record.sections.len(), MAX_BLOCKS)?;
        let mut sites = Vec::new();
        let (mut blocks, mut macs) = (0usize, u128::from(record.fixed_macs));
        for section in &record.sections {
            within("blocks", section.blocks, MAX_BLOCKS)?;
            within("branches of a block", section.pattern.len(), 16)?;
            let first = blocks;
            blocks += section.blocks;
            within("blocks", blocks, MAX_BLOCKS)?;
            for block in first..blocks {
                for &(kind, of_site) in &section.pattern {
                    macs += u128::from(of_site);
                    sites.push(Site {
                        block,
                        kind,
                        macs: of_site,
                    });
                }
            }
        }
        if macs * u128::from(MAX_STEPS) > u128::from(u64::MAX) {
            return Err(GraphError::TooLarge);
        }
        Ok(Self {
            sites,
            blocks,
            tokens: record.tokens,
            width: record.width,
            fixed_macs: record.fixed_macs,
        })
    }
}

impl From<Graph> for GraphRecord {
    fn from(graph: Graph) -> Self {
        let mut sections: Vec<Section> = Vec::new();
        for of_block in graph.sites.chunk_by(|a, b| a.block == b.block) {
            let pattern: Vec<_> = of_block.iter().map(|site| (site.kind, site.macs)).collect();
            match sections.last_mut() {
                Some(last) if last.pattern == pattern => last.blocks += 1,
                _ => sections.push(Section { blocks: 1, pattern }),
            }
        }
        Self {
            sections,
            tokens: graph.tokens,
            width: graph.width,
            fixed_macs: graph.fixed_macs,
        }
    }
}

/// Multiply-accumulates of self-attention over `tokens` tokens of `width`: projections, scores and mixing.
pub fn self_attention_macs(tokens: usize, width: usize) -> u64 {
    let [n, d] = [tokens as u64, width as u64];
    4 * n * d * d + 2 * n * n * d
}

/// Multiply-accumulates of cross-attention to `text` tokens whose keys and values are there already.
pub fn cross_attention_macs(tokens: usize, text: usize, width: usize) -> u64 {
    let [n, l, d] = [tokens as u64, text as u64, width as u64];
    2 * n * d * d + 2 * n * l * d
}

/// Multiply-accumulates of an MLP `ratio` times as wide inside.
pub fn mlp_macs(tokens: usize, width: usize, ratio: usize) -> u64 {
    let [n, d] = [tokens as u64, width as u64];
    2 * ratio as u64 * n * d * d
}

/// A network of so many blocks of two branches, for tests.
#[cfg(test)]
pub(crate) fn of_blocks(blocks: usize) -> Graph {
    let pattern = [(SiteKind::SelfAttention, 3), (SiteKind::Mlp, 5)];
    Graph::uniform(blocks, &pattern, [4, 8], 2).unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn three_kinds() -> Graph {
        let pattern = [
            (SiteKind::SelfAttention, 7),
            (SiteKind::CrossAttention, 5),
            (SiteKind::Mlp, 11),
        ];
        Graph::uniform(2, &pattern, [4, 8], 3).unwrap()
    }

    #[test]
    fn costs_add_up_over_what_a_row_computes() {
        let graph = three_kinds();
        assert_eq!((graph.branches(), graph.full_step_macs()), (6, 3 + 2 * 23));
        assert_eq!(
            graph.step_macs(&[true, false, false, false, true, true]),
            3 + 7 + 5 + 11
        );
        assert_eq!(graph.site_name(4), "cross 1");
        assert_eq!(graph.kinds(), SiteKind::ALL);
    }

    #[test]
    fn files_hold_blocks_that_are_alike_once() {
        let graph = three_kinds();
        let text = serde_json::to_string(&graph).unwrap();
        assert_eq!(
            text,
            r#"{"sections":[{"blocks":2,"pattern":[["self-attention",7],["cross-attention",5],["mlp",11]]}],"tokens":4,"width":8,"fixed_macs":3}"#
        );
        assert_eq!(serde_json::from_str::<Graph>(&text).unwrap(), graph);
        for bad in [
            text.replace("\"blocks\":2", "\"blocks\":0"),
            text.replace("\"blocks\":2", "\"blocks\":99999999"),
            text.replace("\"tokens\":4", "\"tokens\":0"),
            text.replace("\"fixed_macs\":3", "\"fixed_macs\":18446744073709551615"),
        ] {
            assert!(serde_json::from_str::<Graph>(&bad).is_err(), "{bad}");
        }
    }
}
