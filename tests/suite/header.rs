//! `include/harmonica.h` is made from the Rust source of the C interface, and says the same.
//!
//! After a change there: `HARMONICA_WRITE_HEADER=1 cargo test --release header`.

use std::{
    fmt::Write,
    path::{Path, PathBuf},
};

const FILES: [&str; 6] = [
    "mod.rs",
    "error.rs",
    "engine.rs",
    "model.rs",
    "schedule.rs",
    "sample.rs",
];

const HEAD: &str = r#"/* harmonica: Diffusion Transformers with learned feature caching, on any vendor's GPU.
 *
 * Generated from src/capi; a test keeps the two together.
 *
 * A model is loaded onto an engine; settings and a schedule say how to sample; hm_sample does it on the calling thread and
 * tells a callback of every step. examples/c/main.c is a whole program.
 *
 * Errors: every function that can fail returns an hm_status; the text of the last failure on a thread is hm_last_error().
 * A fault inside the library is HM_INTERNAL: nothing is thrown or aborted. After a failure nothing was written through the
 * pointers that were handed in, but by hm_sample.
 *
 * Threads: any function may be called on any thread, and a handle may be used by several threads at once, and freed while
 * they use it: what it stands for goes with the last call. Callbacks run on the thread that called hm_sample. Polling from
 * few threads is cheaper than from many: a GPU keeps buffers for each. The child of a fork() must not call the library.
 *
 * Ownership: what comes out of a ** argument is freed by the _free function of its type, in any order: a model outlives its
 * engine, a schedule its model. Strings belong to the handle that told them and go with it; all text is UTF-8.
 *
 * Misuse: handles are numbers, not addresses. One that was freed or is of another type is refused as an invalid argument, and
 * freed a second time it changes nothing. So is null where it is not allowed, and a pointer that is not aligned. What
 * cannot be found out, and is undefined: other pointers that do not lead to what a function expects, and lengths beyond
 * what lies there.
 */
#ifndef HARMONICA_H
#define HARMONICA_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
"#;

const TAIL: &str = r#"
#ifdef __cplusplus
}
#endif

#endif
"#;

/// A declaration: its place in the header, its comment, its C text.
struct Declaration {
    /// Constants, status, handles, structs, callbacks, functions.
    rank: usize,
    comment: Vec<String>,
    text: String,
}

/// A Rust type as C writes it before a name: `const char *`, `uint32_t `.
fn c_type(rust: &str) -> String {
    let rust = rust.trim();
    if let Some(rest) = rust.strip_prefix("*mut ") {
        return format!("{}*", c_type(rest));
    }
    if let Some(rest) = rust.strip_prefix("*const ") {
        return format!("const {}*", c_type(rest));
    }
    let name = match rust {
        "u8" => "uint8_t",
        "u32" => "uint32_t",
        "u64" => "uint64_t",
        "i32" => "int32_t",
        "usize" => "size_t",
        "f32" => "float",
        "f64" => "double",
        "c_char" => "char",
        "c_void" => "void",
        name if name.starts_with("hm_") => name,
        other => panic!("no C type for `{other}`"),
    };
    format!("{name} ")
}

/// `name: type, …` as C parameters.
fn c_parameters(rust: &str) -> String {
    let parameters: Vec<String> = rust
        .split(',')
        .filter_map(|parameter| parameter.trim().split_once(':'))
        .map(|(name, kind)| format!("{}{}", c_type(kind), name.trim()))
        .collect();
    if parameters.is_empty() {
        "void".into()
    } else {
        parameters.join(", ")
    }
}

/// Rust documentation for readers of C.
fn plain(line: &str) -> String {
    let mut out = String::new();
    let mut rest = line;
    while let Some(start) = rest.find("[`") {
        out.push_str(&rest[..start]);
        let end = rest[start..].find("`]").map_or(rest.len(), |e| start + e);
        let name = &rest[start + 2..end];
        out.push_str(&name.replace("hm_settings::", "hm_settings."));
        rest = rest.get(end + 2..).unwrap_or_default();
    }
    out.push_str(rest);
    out.replace('`', "")
}

/// Fields `pub name: type` with their comments, as the inside of a struct or enum.
fn members(body: &str, member: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::new();
    for line in body.lines().map(str::trim) {
        if let Some(comment) = line.strip_prefix("///") {
            let _ = writeln!(out, "  /* {} */", plain(comment.trim()));
        } else if let Some(text) = member(line.trim_end_matches(',')) {
            let _ = writeln!(out, "  {text}");
        }
    }
    out
}

fn declarations(source: &str) -> Vec<Declaration> {
    let mut found = Vec::new();
    let mut comment: Vec<String> = Vec::new();
    let mut attributes = String::new();
    let mut lines = source.lines().peekable();
    while let Some(line) = lines.next() {
        if let Some(text) = line.strip_prefix("///") {
            let text = plain(text.trim());
            comment.push(text);
            continue;
        }
        if line.starts_with("#[cfg(test)]") {
            break;
        }
        if line.starts_with("#[") {
            attributes.push_str(line);
            continue;
        }
        // A declaration of several lines, up to its end.
        let mut whole = line.to_owned();
        if line.starts_with("pub ") {
            while !(whole.ends_with(';') || whole.ends_with('}') || whole.ends_with('{'))
                || (line.contains("struct ") || line.contains("enum ")) && !whole.ends_with('}')
            {
                let Some(next) = lines.next() else { break };
                whole.push('\n');
                whole.push_str(next);
                if next == "}" {
                    break;
                }
            }
        }
        let exported = attributes.contains("no_mangle");
        let repr_c = attributes.contains("repr(C)") || attributes.contains("repr(i32)");
        let declaration = if let Some(rest) = whole.strip_prefix("pub const HM_") {
            let (name, value) = rest.split_once(": u32 = ").expect("a u32");
            Some((
                0,
                format!("#define HM_{name} {}", value.trim_end_matches(';')),
            ))
        } else if let Some(rest) = whole.strip_prefix("pub enum ") {
            let (name, body) = rest.split_once(" {").expect("a body");
            let inside = members(body, |line| line.contains('=').then(|| format!("{line},")));
            Some((1, format!("typedef int32_t {name};\nenum {{\n{inside}}};")))
        } else if let Some(rest) = whole.strip_prefix("pub struct ") {
            let (name, body) = rest.split_once(" {").expect("a body");
            if repr_c {
                let inside = members(body, |line| {
                    let (field, kind) = line.strip_prefix("pub ")?.split_once(": ")?;
                    Some(format!("{}{field};", c_type(kind)))
                });
                Some((3, format!("typedef struct {name} {{\n{inside}}} {name};")))
            } else {
                Some((2, format!("typedef struct {name} {name};")))
            }
        } else if let Some(rest) = whole.strip_prefix("pub type ") {
            let (name, kind) = rest.split_once('=').expect("a type");
            let (_, kind) = kind.split_once("fn(").expect("a function");
            let (parameters, result) = kind.split_once(") -> ").expect("a result");
            Some((
                4,
                format!(
                    "typedef {}(*{})({});",
                    c_type(result.trim_end_matches(['>', ';'])),
                    name.trim(),
                    c_parameters(parameters)
                ),
            ))
        } else if exported {
            let (_, rest) = whole.split_once(" fn ").expect("a function");
            let (name, rest) = rest.split_once('(').expect("parameters");
            let (parameters, rest) = rest.rsplit_once(')').expect("parameters");
            let result = rest
                .trim()
                .trim_end_matches('{')
                .trim()
                .strip_prefix("-> ")
                .map_or("void ".into(), c_type);
            Some((5, format!("{result}{name}({});", c_parameters(parameters))))
        } else {
            None
        };
        if let Some((rank, text)) = declaration {
            found.push(Declaration {
                rank,
                comment: std::mem::take(&mut comment),
                text,
            });
        }
        comment.clear();
        attributes.clear();
    }
    found
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/capi")
}

fn header() -> String {
    let mut all: Vec<Declaration> = FILES
        .iter()
        .flat_map(|file| declarations(&std::fs::read_to_string(folder().join(file)).unwrap()))
        .collect();
    all.sort_by_key(|declaration| declaration.rank);
    let mut out = HEAD.to_owned();
    for Declaration { comment, text, .. } in &all {
        let lines: Vec<String> = comment
            .iter()
            .filter(|line| !line.is_empty())
            .map(|line| match line.as_str() {
                "# Safety" => "Expects:".to_owned(),
                other => other.to_owned(),
            })
            .collect();
        let _ = write!(out, "\n/* {} */\n{text}\n", lines.join("\n * "));
    }
    out.push_str(TAIL);
    out
}

#[test]
fn the_c_header_says_what_the_rust_source_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("include/harmonica.h");
    let made = header();
    if std::env::var_os("HARMONICA_WRITE_HEADER").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    let line = made.lines().zip(there.lines()).position(|(a, b)| a != b);
    assert!(
        made == there,
        "include/harmonica.h is not what src/capi makes (line {:?}); run HARMONICA_WRITE_HEADER=1 cargo test --release header",
        line.map(|n| n + 1)
    );
    // What the parser does not see must not go missing in silence.
    let exported: usize = FILES
        .iter()
        .map(|file| {
            let source = std::fs::read_to_string(folder().join(file)).unwrap();
            source.matches("#[unsafe(no_mangle)]").count()
        })
        .sum();
    let declared = made
        .lines()
        .filter(|line| line.contains(" hm_") || line.contains("*hm_"));
    let declared = declared.filter(|line| line.ends_with(");") && !line.starts_with("typedef"));
    assert_eq!(declared.count(), exported);
}
