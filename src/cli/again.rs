//! Commands to go on with, as they can be typed.

use std::path::Path;

use super::options::{KeptArg, QuantArg, SessionArgs};

/// The flags that name model, device and run of a command once more, each with a blank before it; without `--steps`, which is
/// said in any case.
pub(super) fn same_run(session: &SessionArgs) -> String {
    let (model, run) = (&session.model, &session.run);
    let mut flags = Flags::default();
    if model.model != "bundled" {
        flags.add("model", &model.model);
    }
    flags.maybe("variant", model.variant.as_ref());
    flags.maybe("heads", model.heads);
    let size = |[height, width]: [usize; 2]| format!("{height}x{width}");
    flags.maybe("input-size", model.input_size.map(size));
    flags.maybe("texts", model.texts.as_ref().map(|path| path.display()));
    for prompt in &model.text.prompt {
        flags.add("prompt", prompt);
    }
    flags.maybe("negative-prompt", model.text.negative_prompt.as_ref());
    let encoder = model.text.text_encoder.as_ref();
    flags.maybe("text-encoder", encoder.map(|path| path.display()));
    flags.maybe("size", model.text.size.map(|[w, h]| format!("{w}x{h}")));
    match session.residence.dtype {
        KeptArg::F32 => {}
        KeptArg::F16 => flags.add("dtype", "f16"),
        KeptArg::Bf16 => flags.add("dtype", "bf16"),
        KeptArg::Auto => flags.add("dtype", "auto"),
    }
    if session.residence.quant == Some(QuantArg::Q8) {
        flags.add("quant", "q8");
    }
    if session.device.device != "auto" {
        flags.add("device", &session.device.device);
    }
    flags.maybe("spacing", run.spacing.as_ref());
    flags.maybe("solver", run.solver.as_ref());
    flags.maybe("eta", run.eta);
    flags.maybe("guidance", run.guidance);
    flags.maybe("guidance-channels", run.guidance_channels.as_ref());
    let switch = run.clip_x0.map(|on| if on { "on" } else { "off" });
    flags.maybe("clip-x0", switch);
    flags.0
}

/// Flags by their names, each with a blank before it.
pub(super) fn flags<'a>(named: impl IntoIterator<Item = (&'a str, String)>) -> String {
    let mut flags = Flags::default();
    for (name, value) in named {
        flags.add(&name.replace('_', "-"), value);
    }
    flags.0
}

/// A path as a shell takes it.
pub(super) fn path(path: &Path) -> String {
    word(&path.display().to_string())
}

/// A word as a shell takes it: in quotes where it means more than itself.
fn word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@,+%".contains(c);
    match !text.is_empty() && text.chars().all(plain) {
        true => text.into(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

#[derive(Default)]
struct Flags(String);

impl Flags {
    fn add(&mut self, flag: &str, value: impl ToString) {
        let value = word(&value.to_string());
        // A value that looks like a flag must hang on its own.
        let sign = if value.starts_with('-') { '=' } else { ' ' };
        self.0.push_str(&format!(" --{flag}{sign}{value}"));
    }

    fn maybe(&mut self, flag: &str, value: Option<impl ToString>) {
        if let Some(value) = value {
            self.add(flag, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_where_a_shell_would_read_more() {
        for (text, quoted) in [
            ("runs/a-1.pt", "runs/a-1.pt"),
            ("random:DiT-S/2@256", "random:DiT-S/2@256"),
            ("a cat", "'a cat'"),
            ("it's", r"'it'\''s'"),
            ("", "''"),
            ("$HOME", "'$HOME'"),
        ] {
            assert_eq!(word(text), quoted);
        }
        let mut flags = Flags::default();
        flags.add("guidance", -1.5);
        flags.maybe("prompt", Some("a cat"));
        flags.maybe("texts", None::<&str>);
        assert_eq!(flags.0, " --guidance=-1.5 --prompt 'a cat'");
    }
}
