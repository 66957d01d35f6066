"""Golden texts: what transformers and SentencePiece make of them, for the Rust tests to compare with.

    python tests/golden/make_text.py

Needs torch, numpy, safetensors, sentencepiece, tokenizers and transformers. Files are written beside this script, always the
same ones.

  text/tokenizer       A unigram model trained on the sentences below, as SentencePiece writes it (spiece.model) and as
                       transformers converts it (tokenizer.json). Ids: 0 pad, 1 end, 2 unknown.
  text/text_encoder    A tiny T5 1.1 encoder (gated GELU): 2 blocks of 32, 3 heads of 8, MLP 40, 16 classes of distances up to
                       40. config.json and model.safetensors.
  text/pickled         The same weights in pytorch_model.bin.
  text/relu            A T5 1.0 encoder (ReLU): 1 block of 16, 2 heads of 4, MLP 24.
  text.json            `texts`: strings that are tricky to split; `spiece`, `json`: their ids by SentencePiece itself and by
                       transformers' tokenizer, the end included.
  text.io.safetensors  ids, mask [4,60] i64 (texts of 60, 23, 5 and 1 tokens) -> hidden [4,60,32], relu.hidden [4,60,16]:
                       last hidden states.
  text-prompts.safetensors  PROMPTS lower-cased and padded to 24 tokens, as a pipeline encodes them: prompt_embeds [2,24,32],
                       prompt_attention_mask [2,24] i64, negative_prompt_embeds [1,24,32] of the empty text and its mask.

The character table of the tokenizer is a small one of its own: that of the published models has 240 kB.
"""

import io
import json
import pathlib
import shutil
import sys
import tempfile

import sentencepiece
import torch
from transformers import T5Config, T5EncoderModel, T5Tokenizer

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from make import HERE, normal, write

FOLDER = HERE / "text"
PROMPTS = ["A Lighthouse on a cliff, at  NIGHT", "two foxes in the snow"]

SENTENCES = """
a lighthouse on a cliff at night
a red lighthouse by the sea, oil painting
two foxes in the snow
a small fox sleeping on a pile of books
the sea at night under a full moon
a city in the rain, neon lights, photograph
an old clock on the wall of a kitchen
a painting of a garden with a red bridge
a glass of water on a wooden table
snow on the mountains, morning light
a bird sitting on the branch of a tree
portrait of an old sailor, black and white photograph
a train crossing a stone bridge in autumn
the kitchen of a small house in the mountains
a robot painting a picture of a flower
three boats on a lake, watercolour
a cup of coffee and a book by the window
a cat looking out of the window at the rain
flowers in a glass on the table, still life
a street in an old city, lanterns at night
"""

# What characters become: wide letters, other spaces, a ligature, an accent that was apart, a sign of two letters.
CHARACTERS = {"\t": " ", "\n": " ", "\u00a0": " ", "\u3000": " ", "ﬁ": "fi", "e\u0301": "é", "™": "TM", "Ａ": "A", "ａ": "a"}

TEXTS = [
    "a lighthouse on a cliff",
    "",
    " ",
    "  two  foxes   in the snow  ",
    "tabs\tand\nlines",
    "naïve café, ZÜRICH",
    "cafe\u0301 cafﬁne™ ａbc",
    "灯台 在 夜",
    "a 🦊 in the snow",
    "👩‍👩‍👧 family",
    "semi;colons: (and) [brackets] 50% off!",
    "unbelievablylongwordwithoutanyspaceinit",
    "a\u3000wide\u00a0space",
    "Ωmega ≈ 3.14",
    "zzzz qqqq xxxx",
    " ".join(["a small fox sleeping on a pile of books by the window"] * 8),
]


def code_points(text):
    return " ".join(f"{ord(c):X}" for c in text)


def tokenizer():
    folder = FOLDER / "tokenizer"
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as work:
        rules = pathlib.Path(work) / "rules.tsv"
        rules.write_text("".join(f"{code_points(a)}\t{code_points(b)}\n" for a, b in CHARACTERS.items()))
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(SENTENCES.strip().split("\n")),
            model_writer=model,
            model_type="unigram",
            vocab_size=100,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            normalization_rule_tsv=str(rules),
            num_threads=1,
            minloglevel=2,
        )
    (folder / "spiece.model").write_bytes(model.getvalue())
    theirs = T5Tokenizer.from_pretrained(folder, extra_ids=0)
    theirs.backend_tokenizer.save(str(folder / "tokenizer.json"))
    spiece = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    ids = {"spiece": [spiece.encode(text) + [1] for text in TEXTS], "json": [theirs(text).input_ids for text in TEXTS]}
    for text, a, b in zip(TEXTS, *ids.values()):
        print(f"  {text[:40]!r}: {len(a)} tokens, {a.count(2)} unknown" + ("" if a == b else f"; transformers differs: {b}"))
    return spiece, ids


def encoder(seed, **config):
    config = T5Config(vocab_size=spiece_size, relative_attention_max_distance=40, **config)
    model = T5EncoderModel(config).eval()
    for i, (name, weight) in enumerate(sorted(model.named_parameters())):
        if name.endswith("layer_norm.weight"):
            value = 1 + normal(seed + i, *weight.shape, std=0.2)
        elif "relative_attention_bias" in name or name == "shared.weight":
            value = normal(seed + i, *weight.shape)
        else:
            value = normal(seed + i, *weight.shape, std=weight.shape[1] ** -0.5)
            if name.endswith(("q.weight", "k.weight")):
                value = value * config.d_kv**-0.25
        weight.data.copy_(value)
    return model


def hidden(model, ids, mask):
    return model(input_ids=ids, attention_mask=mask).last_hidden_state


def check_parts(model, ids, mask):
    """Every part of the encoder shows in what it makes of the tokens that count. Prints by how much."""
    out = hidden(model, ids, mask)
    counts = mask.bool()

    def off(**changed):
        before = {name: weight.clone() for name, weight in model.state_dict().items()}
        for name, value in changed.items():
            dict(model.named_parameters())[name.replace("__", ".")].data.copy_(value)
        off = (hidden(model, ids, mask) - out)[counts].abs().max().item()
        model.load_state_dict(before)
        return off

    shown = {"mask": (hidden(model, ids, torch.ones_like(mask)) - out)[counts].abs().max().item()}
    for name, weight in model.named_parameters():
        if name != "shared.weight":
            neutral = torch.ones_like(weight) if "layer_norm" in name else torch.zeros_like(weight)
            shown[name.removesuffix(".weight")] = off(**{name: neutral})
    bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    weight = dict(model.named_parameters())[bias].data
    shown["after for before"] = off(**{bias: weight.roll(len(weight) // 2, 0)})
    print("  left out or changed: " + ", ".join(f"{k} {v:.2g}" for k, v in shown.items()))
    assert all(v > 0.01 for v in shown.values()), shown
    assert 0.3 < out[counts].std() < 5
    return out


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    shutil.rmtree(FOLDER, ignore_errors=True)
    spiece, ids = tokenizer()
    spiece_size = spiece.get_piece_size()
    (HERE / "text.json").write_text(json.dumps({"texts": TEXTS} | ids, ensure_ascii=False) + "\n")

    gated = encoder(
        1100,
        d_model=32,
        d_kv=8,
        num_heads=3,
        d_ff=40,
        num_layers=2,
        relative_attention_num_buckets=16,
        feed_forward_proj="gated-gelu",
    )
    relu = encoder(
        1200, d_model=16, d_kv=4, num_heads=2, d_ff=24, num_layers=1, relative_attention_num_buckets=8, feed_forward_proj="relu"
    )
    gated.save_pretrained(FOLDER / "text_encoder")
    relu.save_pretrained(FOLDER / "relu")
    (FOLDER / "pickled").mkdir()
    shutil.copy(FOLDER / "text_encoder" / "config.json", FOLDER / "pickled")
    torch.save(gated.state_dict(), FOLDER / "pickled" / "pytorch_model.bin")

    lengths = torch.tensor([60, 23, 5, 1])
    mask = (torch.arange(60) < lengths[:, None]).long()
    tokens = torch.randint(3, spiece_size, mask.shape, generator=torch.Generator().manual_seed(1300))
    tokens[torch.arange(4), lengths - 1] = 1
    tokens = tokens * mask
    out = {"ids": tokens, "mask": mask, "hidden": check_parts(gated, tokens, mask)}
    write("text.io.safetensors", out | {"relu.hidden": check_parts(relu, tokens, mask)})

    embeds = {}
    for name, texts in (("prompt", PROMPTS), ("negative_prompt", [""])):
        coded = [spiece.encode(text.lower().strip()) + [1] for text in texts]
        mask = torch.tensor([[1] * len(c) + [0] * (24 - len(c)) for c in coded])
        padded = torch.tensor([c + [0] * (24 - len(c)) for c in coded])
        embeds |= {f"{name}_embeds": hidden(gated, padded, mask), f"{name}_attention_mask": mask}
    write("text-prompts.safetensors", embeds)
    total = sum(f.stat().st_size for f in [*FOLDER.rglob("*"), *HERE.glob("text*.*")] if f.is_file() and f.suffix != ".py")
    print(f"{total / 1000:.0f} kB")
