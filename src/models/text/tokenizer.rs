//! T5's tokenizer: SentencePiece's unigram model, from `tokenizer.json` or `spiece.model`.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use tokenizers::{
    AddedToken, Error, Tokenizer,
    models::unigram::Unigram,
    normalizers::{
        NormalizerWrapper, Precompiled, Replace, Sequence, Strip, replace::ReplacePattern,
    },
    pre_tokenizers::metaspace::Metaspace,
};

use super::{
    TextError,
    spiece::{PieceKind, Spiece},
};
use crate::files::read_up_to;

/// Largest file that is read; those of T5 have some megabytes.
const MAX_BYTES: u64 = 256 * 1024 * 1024;

/// Splits texts into the tokens of an encoder.
#[derive(Debug)]
pub struct TextTokenizer {
    tokenizer: Tokenizer,
    path: PathBuf,
}

/// A text as its encoder takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenIds {
    /// The token that ends a text is the last.
    pub ids: Vec<u32>,
    /// What of the text went beyond the limit and was cut off.
    pub cut: Option<String>,
}

/// Makes a tokenizer of a file's bytes.
type Load = fn(&[u8]) -> Result<Tokenizer, Error>;

impl TextTokenizer {
    /// Reads a folder with `tokenizer.json` or, where that is not there, `spiece.model`.
    ///
    /// # Errors
    /// [`TextError::NotThere`], or [`TextError::Tokenizer`] for a file that is damaged or of another kind.
    pub fn open(folder: &Path) -> Result<Self, TextError> {
        let [json, spiece] = ["tokenizer.json", "spiece.model"].map(|name| folder.join(name));
        let (path, load): (_, Load) = if json.is_file() {
            (json, of_json)
        } else if spiece.is_file() {
            (spiece, of_spiece)
        } else {
            return Err(TextError::NotThere {
                folder: folder.into(),
                what: "tokenizer",
                expected: "tokenizer.json or spiece.model",
            });
        };
        let tokenizer = guarded(&path, || load(&read_up_to(&path, MAX_BYTES)?))?;
        Ok(Self { tokenizer, path })
    }

    /// A text of at most `most` tokens, the last of which is `end`.
    ///
    /// # Errors
    /// [`TextError::Tokenizer`].
    pub fn tokenize(&self, text: &str, end: u32, most: usize) -> Result<TokenIds, TextError> {
        let encoding = guarded(&self.path, || self.tokenizer.encode(text, false))?;
        let mut ids = encoding.get_ids().to_vec();
        let room = most.saturating_sub(1);
        let cut = encoding.get_offsets().get(room).map(|(start, _)| {
            let mut from = *start..text.len();
            let start = from.find(|at| text.is_char_boundary(*at));
            start.map_or("", |start| &text[start..]).trim().to_owned()
        });
        ids.truncate(room);
        ids.push(end);
        Ok(TokenIds { ids, cut })
    }
}

fn of_json(bytes: &[u8]) -> Result<Tokenizer, Error> {
    let mut tokenizer = Tokenizer::from_bytes(bytes)?;
    // Its own limits are another program's.
    tokenizer.with_truncation(None)?;
    tokenizer.with_padding(None);
    Ok(tokenizer)
}

fn of_spiece(bytes: &[u8]) -> Result<Tokenizer, Error> {
    let spiece = Spiece::parse(bytes)?;
    let mut kinds = spiece.pieces.iter().map(|piece| piece.kind);
    let unknown = kinds.position(|kind| kind == PieceKind::Unknown);
    let scores = spiece.pieces.iter();
    let scores = scores.map(|piece| (piece.text.clone(), piece.score.into()));
    let mut tokenizer = Tokenizer::new(Unigram::from(scores.collect(), unknown, false)?);

    let mut normalizers: Vec<NormalizerWrapper> = Vec::new();
    if !spiece.charsmap.is_empty() {
        normalizers.push(Precompiled::from(&spiece.charsmap)?.into());
    }
    // No space at the ends, and one between words.
    let spaces = ReplacePattern::Regex(" {2,}".into());
    normalizers.push(Strip::new(true, true).into());
    normalizers.push(Replace::new(spaces, " ")?.into());
    tokenizer.with_normalizer(Some(Sequence::new(normalizers)))?;
    tokenizer.with_pre_tokenizer(Some(Metaspace::default()));

    let of_kind = |kinds: &'static [PieceKind], special| {
        let pieces = spiece
            .pieces
            .iter()
            .filter(move |piece| kinds.contains(&piece.kind));
        pieces.map(move |piece| AddedToken::from(&*piece.text, special).normalized(false))
    };
    tokenizer.add_special_tokens(of_kind(&[PieceKind::Unknown, PieceKind::Control], true))?;
    tokenizer.add_tokens(of_kind(&[PieceKind::UserDefined], false))?;
    Ok(tokenizer)
}

/// Work of the tokenizer's, which indexes the tables of a damaged file unchecked.
fn guarded<T>(path: &Path, work: impl FnOnce() -> Result<T, Error>) -> Result<T, TextError> {
    let done = catch_unwind(AssertUnwindSafe(work));
    done.unwrap_or_else(|_| Err("its tables are damaged".into()))
        .map_err(|e| TextError::Tokenizer {
            path: path.into(),
            problem: e.to_string(),
        })
}
