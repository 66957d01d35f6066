//! What an image is to show.

use std::sync::Arc;

use super::Denoiser;
use crate::diffusion::ImageNoise;

/// What one image is to show.
#[derive(Debug, Clone, PartialEq)]
pub enum Condition {
    /// A class by its number; the number after the last is the null label of classifier-free guidance.
    Class(usize),
    /// A text that was encoded already.
    Text(Arc<TextEmbedding>),
}

impl Condition {
    /// One condition a label.
    pub fn classes(labels: &[usize]) -> Vec<Self> {
        labels.iter().copied().map(Self::Class).collect()
    }

    /// Adds it to a hash.
    pub(crate) fn add_to(&self, hash: &mut blake3::Hasher) {
        match self {
            Self::Class(label) => {
                hash.update(&(*label as u64).to_le_bytes());
            }
            Self::Text(text) => {
                let mask: Vec<u8> = text.mask.iter().map(|counts| u8::from(*counts)).collect();
                hash.update(bytemuck::cast_slice(&text.values))
                    .update(&mask);
                if let Some(picture) = &text.picture {
                    let [height, width] = picture.resolution;
                    hash.update(bytemuck::cast_slice(&[height, width, picture.aspect_ratio]));
                }
            }
        }
    }

    /// The class, where it is one.
    pub fn class(&self) -> Option<usize> {
        match self {
            Self::Class(label) => Some(*label),
            Self::Text(_) => None,
        }
    }
}

/// A text as its encoder left it: a vector a token, and which tokens count.
#[derive(Debug, Clone, PartialEq)]
pub struct TextEmbedding {
    /// `[tokens, width]`, row-major.
    values: Vec<f32>,
    width: usize,
    /// One a token; tokens that do not count are padding.
    mask: Vec<bool>,
    picture: Option<Picture>,
    words: Option<Arc<str>>,
}

/// The picture that a text is asked for, of networks that are told: PixArt-α's micro-conditions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Picture {
    /// `[height, width]` in pixels.
    pub resolution: [f32; 2],
    /// Height over width.
    pub aspect_ratio: f32,
}

impl TextEmbedding {
    /// `values` `[tokens, width]` and a mask of `tokens` entries.
    ///
    /// # Errors
    /// [`ConditionError::TextShape`] where they do not fit together, or hold nothing.
    pub fn new(values: Vec<f32>, width: usize, mask: Vec<bool>) -> Result<Self, ConditionError> {
        if mask.is_empty() || width == 0 || values.len() != width * mask.len() {
            return Err(ConditionError::TextShape {
                numbers: values.len(),
                width,
                tokens: mask.len(),
            });
        }
        Ok(Self {
            values,
            width,
            mask,
            picture: None,
            words: None,
        })
    }

    /// The same for a picture of another size than the latents make, for networks that are told.
    pub fn with_picture(self, picture: Picture) -> Self {
        Self {
            picture: Some(picture),
            ..self
        }
    }

    /// The same, knowing what it says.
    pub fn with_words(self, words: &str) -> Self {
        Self {
            words: Some(words.into()),
            ..self
        }
    }

    /// What it says, where that is known.
    pub fn words(&self) -> Option<&str> {
        self.words.as_deref()
    }

    /// The picture that it is asked for, where that is not the latents' own.
    pub fn picture(&self) -> Option<Picture> {
        self.picture
    }

    /// `[tokens, width]`, row-major.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// Numbers of a token.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Number of tokens, padding included.
    pub fn tokens(&self) -> usize {
        self.mask.len()
    }

    /// Which tokens count.
    pub fn mask(&self) -> &[bool] {
        &self.mask
    }
}

/// What a network can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conditioning {
    /// So many classes, and the null label after them.
    Classes(usize),
    /// Texts of so many tokens at most, each a vector of `width`.
    Text { tokens: usize, width: usize },
}

/// A condition that a network cannot take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConditionError {
    /// A label beyond the classes.
    #[error("there is no class {label}: the model has {classes} (0 to {})", classes - 1)]
    Label { label: usize, classes: usize },
    /// Numbers that are no text embedding.
    #[error("{numbers} numbers are no text embedding of {tokens} tokens of {width}")]
    TextShape {
        numbers: usize,
        width: usize,
        tokens: usize,
    },
    /// A text for a model of classes, or the other way round.
    #[error("the model draws {expected}, it was asked for {found}")]
    Kind {
        expected: &'static str,
        found: &'static str,
    },
    /// A text of another encoder.
    #[error(
        "the text has {tokens} tokens of {found}, the model takes up to {most} tokens of {width}"
    )]
    Text {
        tokens: usize,
        found: usize,
        most: usize,
        width: usize,
    },
    /// Guidance needs to know what stands for no text.
    #[error(
        "guidance needs an embedding of the empty text: the model brings none, so one must be given with the texts"
    )]
    NoNull,
}

impl Conditioning {
    /// Number of classes, where there are any.
    pub fn classes(&self) -> Option<usize> {
        match self {
            Self::Classes(classes) => Some(*classes),
            Self::Text { .. } => None,
        }
    }

    /// Whether the network takes the condition.
    ///
    /// # Errors
    /// [`ConditionError`].
    pub fn check(&self, condition: &Condition) -> Result<(), ConditionError> {
        let kind = |expected, found| Err(ConditionError::Kind { expected, found });
        match (self, condition) {
            (Self::Classes(classes), Condition::Class(label)) if label > classes => {
                Err(ConditionError::Label {
                    label: *label,
                    classes: *classes,
                })
            }
            (Self::Classes(_), Condition::Class(_)) => Ok(()),
            (Self::Text { tokens, width }, Condition::Text(text)) => {
                if text.width() == *width && text.tokens() <= *tokens {
                    return Ok(());
                }
                Err(ConditionError::Text {
                    tokens: text.tokens(),
                    found: text.width(),
                    most: *tokens,
                    width: *width,
                })
            }
            (Self::Classes(_), Condition::Text(_)) => kind("classes", "a text"),
            (Self::Text { .. }, Condition::Class(_)) => kind("texts", "a class"),
        }
    }
}

/// What images may show, and what stands for nothing.
#[derive(Debug, Clone, PartialEq)]
pub struct Prompts {
    pub pool: Vec<Condition>,
    /// What stands for no condition in classifier-free guidance.
    pub null: Option<Condition>,
}

impl Prompts {
    /// Every class of a model of classes; nothing for a model of texts, which must be given some.
    pub fn of(model: &dyn Denoiser) -> Self {
        let classes = model.outline().conditioning.classes().unwrap_or(0);
        Self {
            pool: (0..classes).map(Condition::Class).collect(),
            null: model.null(),
        }
    }

    /// The same, but with random texts for a model of texts: enough for measuring.
    pub fn for_measuring(model: &dyn Denoiser) -> Self {
        let Conditioning::Text { tokens, width } = model.outline().conditioning else {
            return Self::of(model);
        };
        let text = |index: u64| {
            let mut values = Vec::with_capacity(tokens * width);
            ImageNoise::with_purpose("harmonica texts", 0, index).fill(tokens * width, &mut values);
            let text = TextEmbedding::new(values, width, vec![true; tokens]);
            text.ok().map(|text| Condition::Text(Arc::new(text)))
        };
        Self {
            pool: (0..4).filter_map(text).collect(),
            null: model.null().or_else(|| text(4)),
        }
    }

    /// The first `count`, in turn; none where there are none.
    pub fn in_turn(&self, count: usize) -> Vec<Condition> {
        self.pool.iter().cycle().take(count).cloned().collect()
    }

    /// A hash of texts, to know them again; nothing for classes, which the model's identity tells.
    pub fn identity(&self) -> Option<String> {
        let mut hash = blake3::Hasher::new();
        let mut any = false;
        for condition in self.pool.iter().chain(&self.null) {
            any |= matches!(condition, Condition::Text(_));
            condition.add_to(&mut hash);
        }
        any.then(|| hash.finalize().to_hex()[..32].to_owned())
    }
}
