//! `--prompt` and `--size`: what models of texts are asked for.

use std::{ops::ControlFlow, path::PathBuf};

use clap::Args;

use super::{Context, error::CliError, progress::progress};
use crate::{
    checkpoint::{LoadOptions, ModelInfo, ModelSpec, open_model},
    models::{
        pixart::PIXELS_OF_CELL,
        text::{T5Encoder, TextError},
    },
    pipeline::{
        Pipeline, PromptRequest, encoder_beside, encoder_for, tokenizer_in, usual_text_cache,
    },
};

#[derive(Args, Debug)]
#[command(next_help_heading = "Texts, for models that draw them")]
pub(super) struct TextArgs {
    /// A text to draw, for a model that draws texts; may be given several times
    #[arg(long, value_name = "TEXT")]
    pub prompt: Vec<String>,
    /// What guidance leads away from [default: what the model brings for no text, or the empty text]
    #[arg(long, value_name = "TEXT", requires = "prompt")]
    pub negative_prompt: Option<String>,
    /// A folder with text_encoder/ (T5) and tokenizer/, or with the files of both [default: the folder of the model]
    #[arg(long, value_name = "DIR", requires = "prompt")]
    pub text_encoder: Option<PathBuf>,
    /// Size in pixels of a PixArt's pictures; what is drawn is the nearest size that the model was trained for
    #[arg(long, value_name = "WIDTHxHEIGHT", value_parser = parse_pixels, conflicts_with = "input_size")]
    pub size: Option<[usize; 2]>,
}

impl TextArgs {
    /// The latents of `--size`, for a model that draws several sizes.
    pub fn latents(
        &self,
        model: &ModelSpec,
        options: LoadOptions,
        context: &Context,
    ) -> Result<Option<[usize; 2]>, CliError> {
        let Some([width, height]) = self.size else {
            return Ok(None);
        };
        let latents = match model {
            ModelSpec::Random { .. } => None,
            model => {
                let description = open_model(model)?.describe(options)?;
                description.architecture.latents_for([height, width])
            }
        };
        let Some(latents) = latents else {
            return Err(CliError::Usage(format!(
                "--size is for models that draw several sizes, as PixArt's files; {model} draws one"
            )));
        };
        let drawn = latents.map(|side| side * PIXELS_OF_CELL);
        if drawn != [height, width] {
            context.say(format!(
                "drawing {}x{} instead of {width}x{height}: the nearest size that the model was trained for",
                drawn[1], drawn[0]
            ));
        }
        Ok(Some(latents))
    }

    /// The encoder that the prompts of a model of texts go through, where there is one; no weight is read. With prompts, what
    /// [`Self::encode`] would refuse before it reads weights is refused.
    pub fn encoder_of(&self, info: &ModelInfo) -> Result<Option<T5Encoder>, CliError> {
        let folder = match self.prompt.is_empty() {
            false => Some(self.folder(info)?),
            true if info.classes().is_some() => None,
            true => self.text_encoder.clone().or_else(|| encoder_beside(info)),
        };
        let Some(folder) = folder else {
            return Ok(None);
        };
        let encoder = encoder_for(info, &folder)?;
        if !self.prompt.is_empty() {
            tokenizer_in(&folder)?;
        }
        Ok(Some(encoder))
    }

    /// Where the encoder of prompts lies.
    fn folder(&self, info: &ModelInfo) -> Result<PathBuf, CliError> {
        if info.classes().is_some() {
            return Err(CliError::Usage(
                "--prompt is for models that draw texts; this one draws classes (--classes)".into(),
            ));
        }
        let folder = self.text_encoder.clone().or_else(|| encoder_beside(info));
        folder.ok_or_else(|| {
            CliError::Usage(format!(
                "no text encoder lies beside the model {}: pass --text-encoder DIR, a folder with text_encoder/ and tokenizer/, or --texts with a file of encoded texts",
                info.source
            ))
        })
    }

    /// The pipeline with the prompts, encoded.
    pub fn encode(&self, pipeline: Pipeline, context: &Context) -> Result<Pipeline, CliError> {
        if self.prompt.is_empty() {
            return Ok(pipeline);
        }
        let request = PromptRequest {
            folder: self.folder(&pipeline.info)?,
            prompts: self.prompt.clone(),
            negative: self.negative_prompt.clone(),
            cache: usual_text_cache(),
        };
        let mut bar = None;
        let encoded = pipeline.with_prompts(&request, &mut |done, blocks| {
            let unit = "blocks of the text encoder";
            let bar = bar.get_or_insert_with(|| progress(context, blocks as u64, unit));
            bar.set_position(done as u64);
            match context.check_interrupt() {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            }
        });
        if let Some(bar) = bar {
            bar.finish_and_clear();
        }
        let (pipeline, cut) = match encoded {
            Err(TextError::Stopped) => return Err(CliError::Interrupted),
            encoded => encoded?,
        };
        for prompt in cut {
            context.say(format!(
                "warning: the model takes {} tokens; of `{}…` this was cut off: `{}`",
                prompt.most,
                beginning(&prompt.prompt, 32),
                prompt.cut
            ));
        }
        Ok(pipeline)
    }
}

/// `[width, height]`
fn parse_pixels(text: &str) -> Result<[usize; 2], String> {
    let side = |side: &str| {
        side.parse()
            .ok()
            .filter(|side| (1..=1 << 14).contains(side))
    };
    let sides: Option<Vec<usize>> = text.split('x').map(side).collect();
    match sides.as_deref() {
        Some([width, height]) => Ok([*width, *height]),
        Some([side]) => Ok([*side; 2]),
        _ => Err("expected WIDTHxHEIGHT in pixels, such as 1344x768".into()),
    }
}

/// So many characters of a text at most.
fn beginning(text: &str, most: usize) -> &str {
    let end = text.char_indices().nth(most);
    end.map_or(text, |(end, _)| text[..end].trim_end())
}

/// What a text's picture is called in a folder: its first words in lower case, joined by hyphens.
pub(super) fn slug(text: &str) -> String {
    const LONGEST: usize = 48;
    let text = text.to_lowercase();
    let words = text.split(|c: char| !c.is_alphanumeric());
    let mut slug = String::new();
    for word in words.filter(|word| !word.is_empty()) {
        let longer = slug.chars().count() + 1 + word.chars().count();
        if !slug.is_empty() && longer > LONGEST {
            break;
        }
        if !slug.is_empty() {
            slug.push('-');
        }
        slug.push_str(beginning(word, LONGEST));
    }
    match slug.is_empty() {
        true => "text".into(),
        false => slug,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_are_called_by_the_first_words() {
        let long = "word ".repeat(40);
        let one = "x".repeat(100);
        for (text, name) in [
            (
                "A small cactus, wearing a HAT",
                "a-small-cactus-wearing-a-hat",
            ),
            ("  ", "text"),
            ("../../etc/passwd", "etc-passwd"),
            ("灯台 · 夜", "灯台-夜"),
            (&*long, "word-word-word-word-word-word-word-word-word"),
            (&*one, &one[..48]),
        ] {
            assert_eq!(slug(text), name);
        }
    }

    #[test]
    fn sizes_are_width_by_height() {
        assert_eq!(parse_pixels("1344x768"), Ok([1344, 768]));
        assert_eq!(parse_pixels("512"), Ok([512, 512]));
        for bad in ["", "0x8", "1x2x3", "99999x8", "ax8"] {
            assert!(parse_pixels(bad).is_err(), "{bad}");
        }
    }
}
