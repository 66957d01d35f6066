//! Files as others write them.

use super::*;

/// The start of a safetensors file of one type, and the bytes of its data.
pub(super) fn header_of(
    tensors: &[(String, Vec<usize>)],
    dtype: &str,
    width: u64,
) -> (Vec<u8>, u64) {
    let mut header = serde_json::Map::new();
    let mut at = 0;
    for (name, shape) in tensors {
        let end = at + width * shape.iter().map(|n| *n as u64).product::<u64>();
        let entry = json!({ "dtype": dtype, "shape": shape, "data_offsets": [at, end] });
        header.insert(name.clone(), entry);
        at = end;
    }
    let header = Value::Object(header).to_string().into_bytes();
    let length = (header.len() as u64).to_le_bytes();
    ([&length[..], &header].concat(), at)
}

/// Writes tensors in f16, as variants of published folders are.
pub(super) fn write_halves(path: &Path, tensors: &Tensors) {
    let shapes: Vec<_> = tensors
        .iter()
        .map(|(name, shape, _)| (name.clone(), shape.clone()))
        .collect();
    let (mut bytes, _) = header_of(&shapes, "F16", 2);
    for (.., values) in tensors {
        let halves = values.iter().map(|v| f16::from_f32(*v).to_le_bytes());
        bytes.extend(halves.flatten());
    }
    fs::write(path, bytes).unwrap();
}

/// A file that claims to hold tensors, and takes no room: nothing is written behind its header.
pub(super) fn write_hollow(path: &Path, tensors: &[(String, Vec<usize>)]) {
    let (header, data) = header_of(tensors, "F32", 4);
    let mut file = fs::File::create(path).unwrap();
    file.write_all(&header).unwrap();
    file.set_len(header.len() as u64 + data).unwrap();
}

/// Writes tensors as `torch.save` does, inside of dicts of these keys.
pub(super) fn write_torch(path: &Path, wrappers: &[&str], tensors: &Tensors) {
    let text = |text: &str| {
        [
            b"X",
            &(text.len() as u32).to_le_bytes()[..],
            text.as_bytes(),
        ]
        .concat()
    };
    let int = |n: usize| [b"J", &(n as u32).to_le_bytes()[..]].concat();
    let tuple = |numbers: &[usize]| {
        let numbers: Vec<u8> = numbers.iter().flat_map(|n| int(*n)).collect();
        [b"(", &numbers[..], b"t"].concat()
    };
    let mut pickle = b"\x80\x02}(".to_vec();
    for wrapper in wrappers {
        pickle.extend([&text(wrapper)[..], b"}("].concat());
    }
    let file = fs::File::create(path).unwrap();
    let mut archive = zip::ZipWriter::new(file);
    let stored =
        zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (i, (name, shape, values)) in tensors.iter().enumerate() {
        let strides: Vec<usize> = (0..shape.len())
            .map(|axis| shape[axis + 1..].iter().product())
            .collect();
        pickle.extend(
            [
                &text(name)[..],
                b"ctorch._utils\n_rebuild_tensor_v2\n((",
                &text("storage"),
                b"ctorch\nFloatStorage\n",
                &text(&i.to_string()),
                &text("cpu"),
                &int(values.len()),
                b"tQK\x00",
                &tuple(shape),
                &tuple(&strides),
                b"\x89ccollections\nOrderedDict\n)RtR",
            ]
            .concat(),
        );
        archive
            .start_file(format!("archive/data/{i}"), stored)
            .unwrap();
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        archive.write_all(&bytes).unwrap();
    }
    pickle.extend(vec![b'u'; 1 + wrappers.len()]);
    pickle.push(b'.');
    archive.start_file("archive/data.pkl", stored).unwrap();
    archive.write_all(&pickle).unwrap();
    archive.finish().unwrap();
}
