//! What a PNG says of how it was drawn, and drawing it again.

use std::{ffi::OsString, path::Path};

use clap::parser::ValueSource;
use serde::{Deserialize, Serialize};

use super::error::CliError;
use crate::{
    files::read_up_to,
    report::{PictureText, text_of_png},
};

/// The keyword of the recipe among a PNG's texts.
const KEYWORD: &str = "harmonica";
/// The layout of recipes that this program writes, and reads.
const FORMAT: u32 = 1;
/// A picture that is larger is not looked into.
const MAX_BYTES: u64 = 1 << 30;

/// Everything that fixes a picture, or a grid of them: what the flags of `sample` of the same names take.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Recipe {
    pub format: u32,
    /// The version that drew it.
    pub version: String,
    /// As it was named.
    pub model: String,
    pub fingerprint: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub classes: Vec<String>,
    /// One an image, where it draws texts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prompts: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub negative_prompt: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text_encoder: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub texts: Option<String>,
    pub seed: u64,
    /// Number of the first image.
    pub first: u64,
    pub count: usize,
    pub steps: usize,
    pub spacing: String,
    pub solver: String,
    pub guidance: f64,
    pub guidance_channels: String,
    pub clip_x0: String,
    pub cache_dtype: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// Of weights, where it is not f32.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtype: Option<String>,
    /// Of weights, where they are kept in fewer bits than a float has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quant: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speed: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heads: Option<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_size: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vae: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vae_tile: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enlarge: Option<u32>,
}

/// Flags that say one thing together: where one is given, those recorded for the others mean nothing.
const TOGETHER: [&[&str]; 4] = [
    &["schedule", "speed", "learn"],
    &["prompt", "texts"],
    &["input_size", "size"],
    &["dtype", "quant"],
];

impl Recipe {
    /// The layout and version of this program.
    pub fn here() -> (u32, String) {
        (FORMAT, env!("CARGO_PKG_VERSION").into())
    }

    /// The same for images `i..i + count` of the run, which show this.
    pub fn of_images(
        &self,
        i: usize,
        count: usize,
        classes: Vec<String>,
        prompts: Vec<String>,
    ) -> Self {
        Self {
            first: self.first.wrapping_add(i as u64),
            count,
            classes,
            prompts,
            ..self.clone()
        }
    }

    /// Texts for a PNG: the recipe, and what other programs show.
    pub fn texts(&self, title: &str) -> Vec<PictureText> {
        let text = |keyword: &str, text: String| PictureText {
            keyword: keyword.into(),
            text,
        };
        let recipe = serde_json::to_string(self).unwrap_or_default();
        let description = format!(
            "{title}; seed {}, image {}, {} steps of {}, guidance {}, schedule {}, model {}",
            self.seed,
            self.first,
            self.steps,
            self.solver,
            self.guidance,
            self.schedule.as_deref().unwrap_or("learned"),
            self.fingerprint,
        );
        vec![
            text("Title", title.into()),
            text("Description", description),
            text("Software", format!("harmonica {}", self.version)),
            text(KEYWORD, recipe),
        ]
    }

    /// The recipe of a PNG.
    ///
    /// # Errors
    /// [`CliError::Picture`] for a file that holds none.
    pub fn read(path: &Path) -> Result<Self, CliError> {
        let refused = |problem: String| CliError::Picture(format!("{}: {problem}", path.display()));
        let bytes =
            read_up_to(path, MAX_BYTES).map_err(|e| refused(format!("cannot be read: {e}")))?;
        let text = text_of_png(&bytes, KEYWORD)
            .map_err(|e| refused(format!("it is no PNG that can be read: {e}")))?
            .ok_or_else(|| {
                refused("it does not say how it was drawn; expected a PNG that `harmonica sample` wrote (JPEG and WebP files carry nothing)".into())
            })?;
        let recipe: Self = serde_json::from_str(&text)
            .map_err(|e| refused(format!("what it says of how it was drawn is damaged: {e}")))?;
        match recipe.format {
            FORMAT => Ok(recipe),
            format => Err(refused(format!(
                "its recipe has format {format}, this program reads format {FORMAT}"
            ))),
        }
    }

    /// The flags that draw it again, by the name of each.
    pub fn flags(&self) -> Vec<(&'static str, String)> {
        let mut flags = vec![
            ("model", self.model.clone()),
            ("seed", self.seed.to_string()),
            ("first", self.first.to_string()),
            ("count", self.count.to_string()),
            ("steps", self.steps.to_string()),
            ("spacing", self.spacing.clone()),
            ("solver", self.solver.clone()),
            ("guidance", self.guidance.to_string()),
            ("guidance_channels", self.guidance_channels.clone()),
            ("clip_x0", self.clip_x0.clone()),
            ("cache_dtype", self.cache_dtype.clone()),
        ];
        if !self.classes.is_empty() {
            flags.push(("classes", self.classes.join(",")));
        }
        let prompts = self.prompts.iter();
        flags.extend(prompts.map(|prompt| ("prompt", prompt.clone())));
        let given = [
            ("negative_prompt", self.negative_prompt.clone()),
            ("text_encoder", self.text_encoder.clone()),
            ("variant", self.variant.clone()),
            ("dtype", self.dtype.clone()),
            ("quant", self.quant.clone()),
            ("texts", self.texts.clone()),
            ("schedule", self.schedule.clone()),
            ("speed", self.speed.map(|speed| speed.to_string())),
            ("heads", self.heads.map(|heads| heads.to_string())),
            ("input_size", self.input_size.clone()),
            ("vae", self.vae.clone()),
            ("vae_tile", self.vae_tile.clone()),
            ("enlarge", self.enlarge.map(|times| times.to_string())),
        ];
        flags.extend(
            given
                .into_iter()
                .filter_map(|(name, value)| Some((name, value?))),
        );
        flags
    }

    /// The command line with what the picture says, but for what the user says otherwise.
    pub fn filled(&self, command_line: Vec<OsString>, given: &clap::ArgMatches) -> Vec<OsString> {
        let says = |name: &str| {
            given.try_contains_id(name).is_ok()
                && given.value_source(name) == Some(ValueSource::CommandLine)
        };
        let overruled = |name: &str| {
            let group = TOGETHER.iter().find(|group| group.contains(&name));
            says(name) || group.is_some_and(|group| group.iter().any(|other| says(other)))
        };
        let recorded = self
            .flags()
            .into_iter()
            .filter(|(name, _)| !overruled(name));
        let recorded =
            recorded.map(|(name, value)| format!("--{}={value}", name.replace('_', "-")).into());
        command_line.into_iter().chain(recorded).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe() -> Recipe {
        let (format, version) = Recipe::here();
        Recipe {
            format,
            version,
            model: "bundled".into(),
            fingerprint: "f".into(),
            classes: vec!["cat".into(), "dog".into()],
            prompts: Vec::new(),
            negative_prompt: None,
            text_encoder: None,
            texts: None,
            seed: 7,
            first: 2,
            count: 2,
            steps: 20,
            spacing: "even".into(),
            solver: "ddim".into(),
            guidance: 3.0,
            guidance_channels: "3".into(),
            clip_x0: "on".into(),
            cache_dtype: "f32".into(),
            variant: None,
            dtype: None,
            quant: Some("q8".into()),
            schedule: None,
            speed: Some(2.0),
            heads: None,
            input_size: None,
            vae: None,
            vae_tile: None,
            enlarge: None,
        }
    }

    #[test]
    fn a_recipe_is_read_as_it_was_written() {
        let text = recipe().texts("cat").pop().unwrap();
        assert_eq!(text.keyword, KEYWORD);
        assert_eq!(
            serde_json::from_str::<Recipe>(&text.text).unwrap(),
            recipe()
        );
        let one = recipe().of_images(1, 1, vec!["dog".into()], Vec::new());
        assert_eq!((one.first, one.count, one.seed), (3, 1, 7));
    }

    #[test]
    fn what_the_user_says_overrules_the_picture() {
        let arg = |name: &'static str| clap::Arg::new(name).long(name);
        let command = clap::Command::new("sample")
            .args(["seed", "schedule", "speed", "steps", "dtype", "quant"].map(arg));
        let line = [
            "sample",
            "--steps",
            "5",
            "--schedule",
            "none",
            "--dtype",
            "f32",
        ];
        let given = command.get_matches_from(line);
        let filled = recipe().filled(line.map(OsString::from).to_vec(), &given);
        let filled: Vec<_> = filled
            .iter()
            .map(|a| a.to_string_lossy().into_owned())
            .collect();
        assert!(filled.contains(&"--seed=7".into()));
        assert!(filled.contains(&"--classes=cat,dog".into()));
        assert!(!filled.iter().any(|a| {
            ["--steps=", "--speed=", "--quant="]
                .iter()
                .any(|flag| a.starts_with(flag))
        }));
    }
}
