"""Seeds for fuzzing: small files of every format that is read, good ones and, named `bad-…`, ones that must be refused.

    python fuzz/seeds.py

Needs torch, and `harmonica` on the PATH for what only it writes. Files are written to fuzz/corpus beside this script.
"""

import argparse
import io
import json
import pathlib
import shutil
import struct
import subprocess
import tempfile
import zipfile
import zlib

import torch

HERE = pathlib.Path(__file__).resolve().parent
GOLDEN = HERE.parent / "tests/golden"
CORPUS = HERE / "corpus"


def put(target, name, data):
    path = CORPUS / target / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


def safetensors(header, data):
    text = header if isinstance(header, str) else json.dumps(header, separators=(",", ":"))
    return struct.pack("<Q", len(text)) + text.encode() + data


def tensor(dtype, shape, start, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def split(path):
    """Header, its metadata of ours and the data of a safetensors file."""
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + length])
    return header, header.get("__metadata__", {}).get("harmonica"), raw[8 + length :]


def headers():
    dtypes = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U8": 1}
    header, at = {"__metadata__": {"format": "pt", "note": "\u00e9 \\ \""}}, 0
    for dtype, size in dtypes.items():
        header[f"of.{dtype}"] = tensor(dtype, [2, 1], at, at + 2 * size)
        at += 2 * size
    put("safetensors", "dtypes", safetensors(header, bytes(range(at))))
    odd = {"scalar": tensor("F32", [], 0, 4), "none": tensor("U8", [3, 0], 4, 4), "one": tensor("U8", [1], 4, 5)}
    put("safetensors", "scalar-and-empty", safetensors(odd, b"\1\2\3\4\5"))
    put("safetensors", "nothing", safetensors({}, b""))
    put("safetensors", "padded", safetensors(json.dumps({"a": tensor("U8", [1], 0, 1)}) + "    ", b"\7"))
    one = tensor("F32", [1], 0, 4)
    bad = {
        "hole": safetensors({"a": one, "b": tensor("F32", [1], 8, 12)}, bytes(12)),
        "tail": safetensors({"a": one}, bytes(5)),
        "overlap": safetensors({"a": one, "b": tensor("F32", [1], 2, 6)}, bytes(6)),
        "twice": safetensors('{"a":%s,"a":%s}' % ((json.dumps(one),) * 2), bytes(4)),
        "space": safetensors(" " + json.dumps({"a": one}), bytes(4)),
        "overflow": safetensors({"a": tensor("F32", [1 << 62, 1 << 62], 0, 4)}, bytes(4)),
        "length": struct.pack("<Q", 1 << 63) + b"{}",
    }
    for name, data in bad.items():
        put("safetensors", f"bad-{name}", data)


def pickles():
    def saved(value):
        # The archive takes over the name of its file.
        with tempfile.TemporaryDirectory() as at:
            path = pathlib.Path(at) / "saved.pt"
            torch.save(value, path)
            return path.read_bytes()

    torch.manual_seed(0)
    wide = torch.arange(12.0).reshape(3, 4)
    plain = {"a": wide, "turned": wide.T[1:], "half": torch.ones(2, dtype=torch.float16), "b": torch.ones(2).bfloat16()}
    put("torch", "plain", saved(plain))
    settings = argparse.Namespace(lr=0.5, name="x")
    module = torch.nn.Linear(2, 1)
    wrapped = {"model": module.state_dict(), "args": settings, "step": 7, "seed": 1 << 70}
    put("torch", "wrapped", saved(wrapped))
    put("torch", "parameters", saved({"module.w": torch.nn.Parameter(torch.ones(2)), "module.n": torch.tensor(3)}))
    put("torch", "bad-no-tensors", saved([1, "two", (3.0, None)]))

    def archive(pickle, method=zipfile.ZIP_STORED):
        with tempfile.NamedTemporaryFile(suffix=".pt") as file:
            with zipfile.ZipFile(file.name, "w", method) as members:
                members.writestr(zipfile.ZipInfo("archive/data.pkl"), pickle, method)
                members.writestr(zipfile.ZipInfo("archive/data/0"), bytes(4))
            return pathlib.Path(file.name).read_bytes()

    text = lambda s: b"X" + struct.pack("<I", len(s)) + s.encode()
    rebuilt = b"ctorch._utils\n_rebuild_tensor_v2\n((" + text("storage") + b"ctorch\nFloatStorage\n"
    rebuilt += text("0") + text("cpu") + b"K\1tQK\0" + b"K\1\x85" * 2 + b"\x89ccollections\nOrderedDict\n)RtR"
    pickle = zipfile.ZipFile(io.BytesIO(saved(plain | {"args": settings}))).read("saved/data.pkl")
    put("pickle", "plain", pickle)
    put("pickle", "by-hand", b"\x80\2}" + text("a") + rebuilt + b"s.")
    put("pickle", "bad-code", b"\x80\2cos\nsystem\n" + text("true") + b"\x85R.")
    put("pickle", "bad-deep", b"\x80\2" + b"(" * 300 + b"t" * 300 + b".")
    put("torch", "by-hand", archive(b"\x80\2}" + text("a") + rebuilt + b"s."))
    put("torch", "bad-compressed", archive(b"\x80\2}" + bytes(4000), zipfile.ZIP_DEFLATED))
    put("torch", "bad-code", archive(b"\x80\2cos\nsystem\n" + text("true") + b"\x85R."))
    put("torch", "bad-in-itself", archive(b"\x80\2}q\0" + text("a") + b"h\0s."))
    rows = torch.linspace(-5, 5, 12).reshape(3, 4)
    rows[-1] = 5
    put("router", "routers", saved({"routers": {f"{i}.prob": row.clone() for i, row in enumerate(rows)}, "opt": {"lr": 0.1}}))
    put("router", "bare", saved({f"{i}.prob": torch.nn.Parameter(row.clone()) for i, row in enumerate(rows)}))
    prob = lambda i: tensor("F32", [4], 16 * i, 16 * i + 16)
    stored = struct.pack("<12f", *rows.flatten().tolist())
    put("router", "safetensors", safetensors({f"routers.{i}.prob": prob(i) for i in range(3)}, stored))
    put("router", "bad-odd", safetensors({"0.prob": tensor("F32", [3], 0, 12)}, bytes(12)))
    put("router", "bad-gap", saved({f"{i}.prob": rows[i].clone() for i in (0, 2)}))


def folders():
    def weights(path):
        header, _, data = split(path)
        return len(data), json.dumps(header, separators=(",", ":"))

    def folder(name, parts):
        sections = [f"== {part}\n{text}\n" for part, text in parts.items()]
        put("folder", name, "".join(sections))

    read = lambda path: json.dumps(json.loads((GOLDEN / path).read_text()), separators=(",", ":"))
    size, header = weights(GOLDEN / "hub/transformer/diffusion_pytorch_model.safetensors")
    pipeline = {
        "model_index.json": read("hub/model_index.json"),
        "scheduler/scheduler_config.json": read("hub/scheduler/scheduler_config.json"),
        "transformer/config.json": read("hub/transformer/config.json"),
        f"transformer/diffusion_pytorch_model.safetensors {size}": header,
    }
    vae, vae_header = weights(GOLDEN / "hub/vae/diffusion_pytorch_model.safetensors")
    pipeline |= {"vae/config.json": read("hub/vae/config.json"), f"vae/diffusion_pytorch_model.safetensors {vae}": vae_header}
    folder("dit", pipeline)
    folder("bad-scheduler", pipeline | {"scheduler/scheduler_config.json": '{"_class_name":"DDIMScheduler","trained_betas":[1]}'})
    folder("bad-index", {"model_index.json": '{"_class_name":"DiTPipeline","transformer":["diffusers","X"],"id2label":{"1":"a"}}'})
    folder("bad-without-transformer", {"vae/config.json": read("hub/vae/config.json"), "text_encoder/config.json": read("text/text_encoder/config.json")})


def pictures():
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    def png(*chunks):
        rows = zlib.compress(b"\0" + b"\x80" * 6 + b"\0" + b"\x20" * 6)
        head = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 2, 8, 2, 0, 0, 0))
        return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")

    recipe = b'{"format":1,"version":"0.1.0","model":"bundled","seed":3}'
    put("text-chunk", "plain", png(chunk(b"iTXt", b"harmonica\0\0\0\0\0" + recipe)))
    put("text-chunk", "compressed", png(chunk(b"iTXt", b"harmonica\0\1\0en\0x\0" + zlib.compress(recipe))))
    others = chunk(b"tEXt", b"Title\0cat") + chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"b" * 999))
    put("text-chunk", "others", png(others, chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\0"), chunk(b"iTXt", b"harmonica\0\0\0\0\0{}")))
    put("text-chunk", "bad-none", png())
    put("text-chunk", "bad-bomb", png(chunk(b"iTXt", b"harmonica\0\1\0\0\0" + zlib.compress(bytes(8_000_000), 9))))
    (HERE / "src/tile.png").write_bytes(png())


def atlases():
    atlas = lambda tile, columns, classes: json.dumps({"tile": tile, "columns": columns, "classes": classes})
    one = lambda name, tiles, id=0: {"id": id, "name": name, "tiles": tiles}
    put("atlas", "one", atlas(2, 1, [one("a", 1)]))
    put("atlas", "four", atlas(1, 2, [one("b", 3, 1), one("a", 4)]))
    put("atlas", "bad-id", atlas(1, 1, [one("a", 1, 7)]))
    put("atlas", "bad-size", atlas(4294967295, 4294967295, [one("a", 4294967295)]))
    put("atlas", "bad-name", atlas(1, 1, [one("../a", 1)]))


def ours():
    """What `harmonica` writes, of models as small as can be."""
    with tempfile.TemporaryDirectory() as at:
        at = pathlib.Path(at)

        def run(*arguments):
            subprocess.run(["harmonica", *map(str, arguments)], cwd=at, check=True, capture_output=True)

        def made(*, steps, policy, out):
            run("schedule", "make", policy, "--steps", steps, "--out", at / out)
            return (at / out).read_text()

        for policy in ("fora:2", "taylor:2:1", "delta:2", "pab"):
            put("schedule", policy.replace(":", "-"), made(steps=4, policy=policy, out="x.schedule.json"))
        cpu = ("--device", "cpu")
        forecast = ("--recipe", "forecast", "--draws", 2, "--sweeps", 0, "--target-speedup", 2)
        run("train", "router", *forecast, "--steps", 4, "--out", "ladder", *cpu)
        put("schedule", "forecast", next((at / "ladder").glob("*.schedule.json")).read_text())
        learned = ("--recipe", "harmonica", "--passes", 1, "--batch", 1, "--target-cur", 0.3)
        run("train", "router", *learned, "--steps", 2, "--out", "router", *cpu)
        put("schedule", "learned", (at / "router/router.schedule.json").read_text())
        text = (GOLDEN / "version1.schedule.json").read_text()
        put("schedule", "bad-version", text.replace('"format": 1', '"format": 9', 1))
        state = (at / "router/router.safetensors").read_bytes()
        put("state", "router", state)
        put("state", "bad-router", state.replace(b'\\"steps\\":2', b'\\"steps\\":3', 1))

        run("train", "calibrate", "--steps", 2, "--draws", 1, "--out", "calibration", *cpu)
        text = next((at / "calibration").iterdir()).read_text()
        put("calibration", "two-steps", text)
        put("calibration", "bad-rows", text.replace('"images":1', '"images":2', 1))

        (at / "data").mkdir()
        shutil.copy(HERE / "src/tile.png", at / "data/a.png")
        small = ("--blocks", 1, "--hidden", 16, "--heads", 1, "--image-size", 4, "--steps", 1, "--batch", 1, "--sample-every", 0)
        run("train", "dit", "--data", "data", *small, "--out", "dit", *cpu)
        header, metadata, _ = split(at / "dit/checkpoint.safetensors")
        # Of its tensors, a reader of what it says looks at a name alone.
        assert "adamw.first_moment.x_embedder.proj.weight" in header
        tensors = {"adamw.first_moment.x_embedder.proj.weight": tensor("F32", [1], 0, 4)}
        whole = safetensors({"__metadata__": {"harmonica": metadata}} | tensors, bytes(4))
        put("state", "network", whole)
        put("state", "bad-network", whole.replace(b'\\"patch\\":', b'\\"petch\\":', 1))


def others():
    put("spiece", "t5", (GOLDEN / "text/tokenizer/spiece.model").read_bytes())
    put("spiece", "bad-cut", (GOLDEN / "text/tokenizer/spiece.model").read_bytes()[:700])
    text = json.loads((GOLDEN / "text/tokenizer/tokenizer.json").read_text())
    put("tokenizer", "t5", json.dumps(text, separators=(",", ":")))
    put("tokenizer", "bad-empty", "{}")
    # Operations with their arguments: see src/capi.rs.
    put("c-interface", "draws", bytes([0, 2, 1, 0, 8, 1]))
    put("c-interface", "schedule", bytes([0, 2, 6]) + b"fora:2\0" + bytes([9, 8, 2]))
    put("c-interface", "table", bytes([0, 2, 7, 48] + [1] * 30 + [0] * 18 + [9, 8, 1]))
    put("c-interface", "names", bytes([10]) + b"cat\0" + bytes([10]) + b"7\0" + bytes([11, 200, 12, 0]))
    put("c-interface", "bad-settings", bytes([0, 7, 1, 4, 2, 9, 3, 4, 4, 3, 8, 1]))
    put("c-interface", "bad-nothing", bytes([13, 14, 12, 1]))


if __name__ == "__main__":
    shutil.rmtree(CORPUS, ignore_errors=True)
    for make in (headers, pickles, folders, pictures, atlases, ours, others):
        make()
    files = [path for path in CORPUS.rglob("*") if path.is_file()]
    print(f"{len(files)} seeds, {sum(path.stat().st_size for path in files)} bytes")
