//! A SentencePiece model, as far as it takes to tokenize with it: a protocol buffer (`sentencepiece_model.proto`).

/// A unigram model.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Spiece {
    /// In the order of their ids.
    pub pieces: Vec<Piece>,
    /// How characters are normalised: a double array, then what they become. Empty: they stay as they are.
    pub charsmap: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Piece {
    pub text: String,
    /// Log probability.
    pub score: f32,
    pub kind: PieceKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PieceKind {
    Normal,
    Unknown,
    /// Such as the end of a text.
    Control,
    /// Never split.
    UserDefined,
}

/// `TrainerSpec.model_type` of a unigram model.
const UNIGRAM: u64 = 1;

impl Spiece {
    /// Reads a `spiece.model`.
    ///
    /// # Errors
    /// What is wrong with it, or of what kind it is that T5 does not use.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut model = Self {
            pieces: Vec::new(),
            charsmap: Vec::new(),
        };
        for field in Fields(bytes) {
            match field? {
                (1, Wire::Bytes(piece)) => model.pieces.push(Piece::parse(piece)?),
                (2, Wire::Bytes(trainer)) => check_trainer(trainer)?,
                (3, Wire::Bytes(normalizer)) => model.charsmap = charsmap(normalizer)?,
                _ => {}
            }
        }
        let unknown = |piece: &&Piece| piece.kind == PieceKind::Unknown;
        match model.pieces.iter().filter(unknown).count() {
            1 => Ok(model),
            count => Err(format!(
                "it has {} pieces, {count} of them for what is unknown; expected one such piece",
                model.pieces.len()
            )),
        }
    }
}

impl Piece {
    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let (mut text, mut score, mut kind) = (String::new(), 0.0, PieceKind::Normal);
        for field in Fields(bytes) {
            match field? {
                (1, Wire::Bytes(bytes)) => {
                    text = String::from_utf8(bytes.to_vec()).map_err(|_| "a piece is no UTF-8")?
                }
                (2, Wire::Fixed32(bits)) => score = f32::from_bits(bits),
                (3, Wire::Varint(number)) => {
                    kind = match number {
                        1 => PieceKind::Normal,
                        2 => PieceKind::Unknown,
                        3 => PieceKind::Control,
                        4 => PieceKind::UserDefined,
                        _ => return Err(format!("piece `{text}` is of a kind that T5 has not")),
                    }
                }
                _ => {}
            }
        }
        if text.is_empty() || !score.is_finite() {
            return Err(format!("piece `{text}` has score {score}"));
        }
        Ok(Self { text, score, kind })
    }
}

fn check_trainer(bytes: &[u8]) -> Result<(), String> {
    for field in Fields(bytes) {
        match field? {
            (3, Wire::Varint(kind)) if kind != UNIGRAM => {
                return Err(format!(
                    "it is a model of type {kind}, T5's are unigram models"
                ));
            }
            (35, Wire::Varint(1)) => return Err("it falls back to bytes, T5's do not".into()),
            _ => {}
        }
    }
    Ok(())
}

/// The table of characters, where spaces are treated as T5 does.
fn charsmap(bytes: &[u8]) -> Result<Vec<u8>, String> {
    let mut map = Vec::new();
    for field in Fields(bytes) {
        match field? {
            (2, Wire::Bytes(bytes)) => {
                // The length of the double array comes first; the crate that reads it allocates as much.
                let array = bytes.split_first_chunk::<4>();
                let fits = array.is_none_or(|(length, rest)| {
                    usize::try_from(u32::from_le_bytes(*length)).is_ok_and(|n| n <= rest.len())
                });
                if !fits {
                    return Err("its table of characters is damaged".into());
                }
                map = bytes.to_vec();
            }
            (3..=5, Wire::Varint(0)) => {
                return Err("it keeps spaces in another way than T5 does".into());
            }
            _ => {}
        }
    }
    Ok(map)
}

/// The value of a field.
enum Wire<'a> {
    Varint(u64),
    Fixed32(u32),
    /// Of 8 bytes; nothing here has such.
    Fixed64,
    Bytes(&'a [u8]),
}

/// The fields of a message: number and value. An error is the last.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, count: u64) -> Option<&'a [u8]> {
        let count = usize::try_from(count).ok()?;
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for place in 0..10 {
            let byte = *self.take(1)?.first()?;
            value |= u64::from(byte & 0x7f) << (7 * place);
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    fn field(&mut self) -> Option<(u64, Wire<'a>)> {
        let key = self.varint()?;
        let value = match key & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => {
                self.take(8)?;
                Wire::Fixed64
            }
            2 => {
                let count = self.varint()?;
                Wire::Bytes(self.take(count)?)
            }
            5 => Wire::Fixed32(u32::from_le_bytes(self.take(4)?.try_into().ok()?)),
            _ => return None,
        };
        Some((key >> 3, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Wire<'a>), String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field.ok_or_else(|| "it is no SentencePiece model, or was cut off".into()))
    }
}
