//! Documents of this program's own in which a field is wrong.

use std::path::Path;

use harmonica::training::{network::SavedRun, router::TrainingSummary};
use serde_json::{Value, json};

use super::{Place, error_of};

/// Every field of a document, by its path.
fn fields(value: &Value, at: &str, found: &mut Vec<String>) {
    let mut inner = |key: &str, value: &Value| {
        let path = format!("{at}/{key}");
        found.push(path.clone());
        fields(value, &path, found);
    };
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| inner(key, value)),
        Value::Array(list) => list.iter().take(1).for_each(|value| inner("0", value)),
        _ => {}
    }
}

/// A document a field, which has a value of another kind in it.
fn edited(document: &Value) -> Vec<(String, Value)> {
    let mut paths = Vec::new();
    fields(document, "", &mut paths);
    let edit = |path: String| {
        let mut other = document.clone();
        let field = other.pointer_mut(&path).unwrap();
        *field = if field.is_string() {
            json!(7)
        } else {
            json!("x")
        };
        (path, other)
    };
    paths.into_iter().map(edit).collect()
}

#[test]
fn a_training_state_with_a_wrong_field_is_refused() {
    let place = Place::new();
    for name in ["router", "network"] {
        let seed = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("fuzz/corpus/state")
            .join(name);
        let bytes = std::fs::read(seed).unwrap();
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
        let text = header["__metadata__"]["harmonica"].as_str().unwrap();
        let edits = edited(&serde_json::from_str(text).unwrap());
        assert!(edits.len() > 25, "{}", edits.len());
        for (field, state) in edits {
            // What names data or weights is compared when a run goes on, and any text is a name.
            if ["/replay", "/prompts"].contains(&&*field) {
                continue;
            }
            let mut header = header.clone();
            header["__metadata__"]["harmonica"] = state.to_string().into();
            let path = place.safetensors(
                "state.safetensors",
                &header.to_string(),
                bytes.len() - 8 - length,
            );
            let found = match name {
                "router" => TrainingSummary::read(&path).map(|_| ()),
                _ => SavedRun::read(&path).map(|_| ()),
            };
            let error = found.expect_err(&format!("{name}{field}")).to_string();
            let said = error.contains("is damaged: its training state is not valid: ");
            assert!(said, "{name}{field}: {error}");
        }
    }
}

#[test]
fn a_search_with_a_wrong_field_is_refused_and_left_as_it_is() {
    let place = Place::new();
    let line = "train router --device cpu --recipe forecast --steps 4 --draws 2 --sweeps 0 --target-speedup 2 --out {}/run";
    let (code, text) = place.run(line);
    assert_eq!(code, Some(0), "{text}");
    let good: Value =
        serde_json::from_slice(&std::fs::read(place.path("run/ladder.json")).unwrap()).unwrap();
    let names = place.names();
    let edits = edited(&good);
    assert!(edits.len() > 40, "{}", edits.len());
    // One in three, in turn, is a test of seconds.
    for (field, state) in edits.into_iter().step_by(3) {
        let path = place.write("run/ladder.json", state.to_string());
        let (code, text) = place.run(&format!("{line} --resume"));
        let error = error_of(&text);
        let refused = error.starts_with("{}/run/ladder.json is damaged: ")
            || error.starts_with("{}/run was trained with ");
        assert!(
            matches!(code, Some(1 | 2)) && refused,
            "{field}: {error} ({code:?})"
        );
        assert_eq!(std::fs::read(path).unwrap(), state.to_string().into_bytes());
        assert_eq!(place.names(), names);
    }
}
