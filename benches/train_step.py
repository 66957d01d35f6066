"""Training steps of a DiT of the bundled shape: `harmonica train dit` and PyTorch in turn, on the same cores.

    cargo build --release
    pip install torch numpy pillow safetensors      # the CPU build will do
    python benches/train_step.py target/release/harmonica --rounds 3

Both sides do the whole step: noise, forward, mean squared error and variational bound, backward, clipping, AdamW, moving
average; once in f32, once with matrix products in bf16. Batch 64, 20 steps a round; the median step counts.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import torch
import torch.nn.functional as F

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests/golden"))
import make_train  # noqa: E402
from make import Dit, random_dit  # noqa: E402

# Golden values are computed in double precision.
for name, value in list(vars(make_train).items()):
    if torch.is_tensor(value):
        setattr(make_train, name, value.float())

BATCH, STEPS, WARM_UP = 64, 20, 2


def fused_attention(self, name, x):
    """PyTorch's fastest form, which the golden values do without."""
    batch, tokens, dim = x.shape
    qkv = self.linear(name + ".qkv", x).reshape(batch, tokens, 3, self.heads, dim // self.heads)
    mixed = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4))
    return self.linear(name + ".proj", mixed.transpose(1, 2).reshape(batch, tokens, dim))


def pytorch(half):
    Dit.attention = fused_attention
    dit = random_dit(0, height=32, width=32, patch=4, channels=3, hidden=192, blocks=12, heads=3, classes=46, learn_sigma=True)
    trained = [w.requires_grad_() for name, w in dit.weights.items() if name != "pos_embed"]
    average = [w.detach().clone() for w in trained]
    optimizer = torch.optim.AdamW(trained, lr=5e-4, betas=(0.9, 0.99), weight_decay=0)

    def network(x, t, y):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            return dit(x, t, y).float()

    rates = []
    for step in range(WARM_UP + STEPS):
        started = time.perf_counter()
        images, noise = torch.randn(2, BATCH, 3, 32, 32)
        mse, vlb = make_train.losses(network, images, noise, torch.randint(0, 1000, (BATCH,)), torch.randint(0, 47, (BATCH,)))
        optimizer.zero_grad(set_to_none=True)
        (mse + vlb).mean().backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, trained, 5e-4)
        rates.append(BATCH / (time.perf_counter() - started))
    return statistics.median(rates[WARM_UP:])


def harmonica(program, precision):
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "dit"
        data = ROOT / "assets/emoji32"
        subprocess.run(
            [program, "-q", "train", "dit", "--device", "cpu", "--data", data, "--out", out, "--batch", str(BATCH)]
            + ["--steps", str(WARM_UP + STEPS), "--sample-every", "0", "--precision", precision],
            check=True,
        )
        lines = (out / "train.jsonl").read_text().splitlines()
    return statistics.median(json.loads(line)["images_per_second"] for line in lines[WARM_UP:])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", help="the built command")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    for number in range(options.rounds):
        words = []
        for name, half in (("f32", False), ("bf16", True)):
            ours, theirs = harmonica(options.program, name), pytorch(half)
            words.append(f"{name} {ours:.1f} images/s, PyTorch {theirs:.1f} ({ours / theirs:.2f} times)")
        print(f"round {number + 1}: {'; '.join(words)}", flush=True)
