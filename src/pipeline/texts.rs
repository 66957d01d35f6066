//! Texts that were encoded already, in a safetensors file under the names that diffusers' pipelines use.

use std::{path::Path, sync::Arc};

use crate::{
    containers::{self, CheckpointError, TensorSource},
    models::{Condition, Prompts, TextEmbedding},
};

/// Reads `prompt_embeds` `[P, L, width]`, `prompt_attention_mask` `[P, L]` (1 counts; all do where it is missing) and, for
/// guidance, `negative_prompt_embeds` `[1, L, width]` with `negative_prompt_attention_mask` `[1, L]`.
///
/// # Errors
/// [`CheckpointError`]: unreadable, or tensors of other shapes.
pub fn read_texts(path: &Path) -> Result<Prompts, CheckpointError> {
    let mut source = containers::open(path)?;
    let pool = texts(&mut source, "prompt")?;
    let Some(pool) = pool.filter(|pool| !pool.is_empty()) else {
        return Err(CheckpointError::Settings {
            path: path.into(),
            problem: "expected a tensor `prompt_embeds` [P, L, width]: encoded texts".into(),
        });
    };
    let null = texts(&mut source, "negative_prompt")?.unwrap_or_default();
    Ok(Prompts {
        pool,
        null: null.into_iter().next(),
    })
}

/// The texts under a name, if there are any.
fn texts(source: &mut TensorSource, name: &str) -> Result<Option<Vec<Condition>>, CheckpointError> {
    let names = (format!("{name}_embeds"), format!("{name}_attention_mask"));
    texts_named(source, names)
}

/// Texts in a tensor `[…, L, width]` with a mask `[…, L]`, one after another; none where there is no such tensor.
///
/// # Errors
/// [`CheckpointError`]: unreadable, or tensors of other shapes.
pub fn texts_named(
    source: &mut TensorSource,
    (embeds, mask): (String, String),
) -> Result<Option<Vec<Condition>>, CheckpointError> {
    let path = source.path().to_path_buf();
    let bad = |problem: String| CheckpointError::Settings {
        path: path.clone(),
        problem,
    };
    let Some(shape) = source.get(&embeds).map(|e| e.shape.clone()) else {
        return Ok(None);
    };
    let [ref counts @ .., tokens, width] = shape[..] else {
        return Err(bad(format!(
            "its `{embeds}` is {shape:?}, expected [P, L, width]"
        )));
    };
    let count: usize = counts.iter().product();
    if count * tokens * width == 0 {
        return Err(bad(format!("its `{embeds}` is {shape:?}, which is empty")));
    }
    let values = source.read_f32(&embeds)?;
    if let Some(at) = values.iter().position(|v| !v.is_finite()) {
        return Err(CheckpointError::NotFinite {
            path,
            name: embeds,
            position: at,
        });
    }
    let counts: Vec<bool> = match source.get(&mask).map(|e| e.shape.clone()) {
        None => vec![true; count * tokens],
        Some(found) if found != shape[..shape.len() - 1] => {
            return Err(bad(format!(
                "its `{mask}` is {found:?}, expected {:?}",
                &shape[..shape.len() - 1]
            )));
        }
        Some(_) => source
            .read_i64(&mask)?
            .into_iter()
            .map(|m| m != 0)
            .collect(),
    };
    let of_text = values.chunks(tokens * width).zip(counts.chunks(tokens));
    let condition = |(values, counts): (&[f32], &[bool])| {
        let text = TextEmbedding::new(values.to_vec(), width, counts.to_vec());
        text.map(|text| Condition::Text(Arc::new(text)))
            .map_err(|e| bad(e.to_string()))
    };
    Ok(Some(of_text.map(condition).collect::<Result<_, _>>()?))
}
