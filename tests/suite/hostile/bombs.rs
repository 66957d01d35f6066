//! Small files that ask for more than any machine has.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use harmonica::{checkpoint, schedule::ScheduleFile};

use super::{Place, TRAIN, all, error_of};
use crate::common::golden;

/// A value that a pickle pushes: a text.
fn text(text: &str) -> Vec<u8> {
    let length = text.len() as u32;
    [b"X", &length.to_le_bytes()[..], text.as_bytes()].concat()
}

/// A tensor of one storage of one float, with what pushes its shape and strides.
fn tensor(sizes: &[u8]) -> Vec<u8> {
    let storage = [
        &text("storage")[..],
        b"ctorch\nFloatStorage\n",
        &text("0"),
        &text("cpu"),
        b"K\x01tQK\x00",
    ]
    .concat();
    let end = b"\x89ccollections\nOrderedDict\n)RtR";
    [
        b"ctorch._utils\n_rebuild_tensor_v2\n((",
        &storage[..],
        sizes,
        sizes,
        end,
    ]
    .concat()
}

#[test]
fn containers_that_ask_for_more_than_there_is_are_refused_in_no_time() {
    let place = Place::new();
    let dict = |entries: usize, key: &str, value: &[u8]| -> Vec<u8> {
        let entry = |i: usize| [&text(&format!("{key}{i}"))[..], value].concat();
        [
            b"}(",
            &(0..entries).flat_map(entry).collect::<Vec<_>>()[..],
            b"u",
        ]
        .concat()
    };
    let one = tensor(b"K\x01\x85");
    let tiny = |count: usize| {
        let one = |i: usize| {
            format!(
                r#""t{i}":{{"dtype":"U8","shape":[1],"data_offsets":[{i},{}]}}"#,
                i + 1
            )
        };
        format!("{{{}}}", (0..count).map(one).collect::<Vec<_>>().join(","))
    };
    let many = tiny((1 << 16) + 1);
    let column = many.find(r#""t65536""#).unwrap() + r#""t65536""#.len();
    let hole = r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[1],"data_offsets":[3,4]}}"#;
    let cases = [
        ("values without number", place.pickled("values.pt", &[&vec![b')'; (1 << 22) + 2]]), "{} was refused: its pickle holds more than 4194304 values".to_owned()),
        ("a dict a thousand times in another", place.pickled("dicts.pt", &[&one, b"q\x01", &dict(600, "k", b"h\x01"), b"q\x02", &dict(600, "d", b"h\x02")]), "{} was refused: its dicts have more than 262144 entries".into()),
        ("a shape of a thousand dimensions", place.pickled("shape.pt", &[b"(", &b"K\x01".repeat(1000), b"tq\x01", &dict(3, "k", &tensor(b"h\x01"))]), "{} is damaged: tensor `k0` has more than 64 dimensions".into()),
        ("tuples in tuples", place.pickled("tuples.pt", &[&vec![b'('; 1 << 20], &vec![b't'; 1 << 20]]), "{} holds no DiT: expected a dict of tensors, found a tuple".into()),
        ("a dict in itself", place.pickled("itself.pt", &[b"}q\x01", &text("a"), b"h\x01s"]), "{} holds no DiT: expected a dict of tensors, found a dict".into()),
        ("a million tiny tensors", place.safetensors("tiny.safetensors", &many, (1 << 16) + 1), format!("{{}} is damaged: its header is not valid: it names more than 65536 tensors at line 1 column {column}")),
        ("lists in lists", place.safetensors("lists.safetensors", &format!("{{\"a\":{}", "[".repeat(1 << 20)), 0), "{} is damaged: its header is not valid: invalid type: sequence, expected a string at line 1 column 6".into()),
        ("a hole", place.safetensors("hole.safetensors", hole, 4), "{} is damaged: bytes 1 to 3 of its data, before tensor `b`, belong to no tensor".into()),
        ("a tail", place.safetensors("tail.safetensors", hole.replace("[3,4]", "[1,2]").as_str(), 9), "{} is damaged: the last 7 bytes of its data belong to no tensor".into()),
        ("a space before the header", place.safetensors("space.safetensors", " {}", 0), "{} is no model file: its first bytes are neither a zip archive's nor a safetensors header's; expected a .pt of the DiT release, a .safetensors file, or a diffusers folder".into()),
    ];
    let started = Instant::now();
    all(cases.map(|(what, path, expected)| {
        let found = match checkpoint::open(&path) {
            Ok(_) => "it was opened".to_owned(),
            Err(error) => error.to_string(),
        };
        (
            what.into(),
            found.replace(&path.display().to_string(), "{}"),
            expected,
        )
    }));
    // As many as may be are read.
    let most = place.safetensors("most.safetensors", &tiny(1 << 16), 1 << 16);
    assert_eq!(checkpoint::open(&most).unwrap().entries().count(), 1 << 16);
    assert!(
        started.elapsed() < Duration::from_secs(20),
        "{:?}",
        started.elapsed()
    );
}

#[test]
fn documents_in_documents_are_refused() {
    let good = std::fs::read_to_string(golden("version1.schedule.json")).unwrap();
    let name = good.find("\"policy\": {").unwrap() + "\"policy\": {".len();
    let deep = format!(
        "{}\"parameters\": {},{}",
        &good[..name],
        "[".repeat(100_000),
        &good[name..]
    );
    let error = ScheduleFile::parse(&deep, Path::new("deep"))
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("deep is no schedule: recursion limit exceeded at line "),
        "{error}"
    );
}

#[test]
fn pictures_that_claim_to_be_huge_are_left_out_with_the_reason() {
    let place = Place::new().with_data();
    let chunk = |kind: &[u8], data: &[u8]| -> Vec<u8> {
        let mut sum = crc(kind);
        sum = data.iter().fold(sum, step);
        [
            &(data.len() as u32).to_be_bytes()[..],
            kind,
            data,
            &(!sum).to_be_bytes(),
        ]
        .concat()
    };
    let side = 60_000u32.to_be_bytes();
    let head = chunk(b"IHDR", &[&side[..], &side, &[8, 2, 0, 0, 0]].concat());
    let png = [
        b"\x89PNG\r\n\x1a\n",
        &head[..],
        &chunk(b"IDAT", &[0x78, 1]),
        &chunk(b"IEND", b""),
    ]
    .concat();
    place.write("data/huge.png", png);
    let tables = [b"\xff\xdb\0\x43\0", &[1u8; 64][..]].concat();
    let frame = b"\xff\xc0\0\x0b\x08\xff\xff\xff\xff\x01\x01\x11\0\xff\xda\0\x08\x01\x01\0\0\x3f\0";
    let jpeg = [b"\xff\xd8", &tables[..], frame, &[0; 100], b"\xff\xd9"].concat();
    place.write("data/huge.jpg", jpeg);
    let webp = b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\xff\xff\xff\xff\xff\xff";
    place.write("data/huge.webp", webp);
    place.pipe("data/pipe.png");
    std::fs::create_dir(place.path("data/folder.png")).unwrap();
    let (code, text) = place.run(&format!("{TRAIN} --steps 1 --out {{}}/run"));
    assert_eq!(code, Some(0), "{text}");
    for line in [
        "1 picture of [3, 4, 4] in 1 class, 4 more could not be read",
        "skipped {}/data/huge.jpg: Memory limit exceeded",
        "skipped {}/data/huge.png: Memory limit exceeded",
        "skipped {}/data/huge.webp: Format error decoding WebP: Image too large",
        "skipped {}/data/pipe.png: it is a pipe or a device, expected a file",
    ] {
        assert!(text.contains(line), "no `{line}` in\n{text}");
    }
    let tile =
        r#"{"tile": 4294967295, "columns": 1, "classes": [{"id": 0, "name": "good", "tiles": 1}]}"#;
    place.write("data/classes.json", tile);
    let (code, text) = place.run(&format!("{TRAIN} --steps 1 --out {{}}/other"));
    let expected = "{}/data/classes.json is no atlas: its tiles have 4294967295 pixels a side, expected at most 16384";
    assert_eq!((code, error_of(&text)), (Some(1), expected));
}

/// The checksum of a PNG's chunks, inverted.
fn crc(bytes: &[u8]) -> u32 {
    bytes.iter().fold(u32::MAX, step)
}

fn step(sum: u32, byte: &u8) -> u32 {
    (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
        (sum >> 1) ^ if sum & 1 == 1 { 0xedb8_8320 } else { 0 }
    })
}

#[test]
fn a_text_of_a_picture_that_unpacks_to_megabytes_is_refused() {
    let bomb = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/text-chunk/bad-bomb");
    let bytes = std::fs::read(&bomb).unwrap();
    let (found, peak) =
        crate::allocations::peak_of(|| harmonica::report::text_of_png(&bytes, "harmonica"));
    assert!(found.is_err(), "{found:?}");
    assert!(peak < 4 << 20, "{peak}");
    let place = Place::new();
    std::fs::copy(&bomb, place.path("bomb.png")).unwrap();
    let (code, text) = place.run("sample --device cpu --from {}/bomb.png");
    assert_eq!(code, Some(1));
    assert!(
        error_of(&text).starts_with("{}/bomb.png: it is no PNG that can be read: "),
        "{text}"
    );
}
