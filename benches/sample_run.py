"""Denoising runs of random DiTs: `harmonica bench` and PyTorch in turn, on the same device.

    cargo build --release
    pip install torch numpy pillow safetensors
    python benches/sample_run.py target/release/harmonica --device vulkan     # PyTorch on CUDA
    python benches/sample_run.py target/release/harmonica --device cpu --dtypes f32,bf16

Both sides run the guided network and a DDIM step as often as asked, without the autoencoder; PyTorch with its fused
attention, uncached: in f32, with TF32 products, with weights and activations in f16, and the last two replayed as CUDA
graphs, which spare it the launching of kernels one by one; on the CPU in f32, and with weights and activations in bf16. A
row is one round: medians of its runs.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import time

import torch

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests/golden"))
from make import Dit, random_dit  # noqa: E402
from train_step import fused_attention  # noqa: E402

SHAPES = {
    "S": dict(hidden=384, blocks=12, heads=6),
    "B": dict(hidden=768, blocks=12, heads=12),
    "L": dict(hidden=1024, blocks=24, heads=16),
    "XL": dict(hidden=1152, blocks=28, heads=16),
}
BUNDLED = dict(height=32, width=32, patch=4, channels=3, hidden=192, blocks=12, heads=3, classes=46, learn_sigma=True)


def shape_of(model):
    """`bundled`, or the family's name as `--model random:` takes it, such as DiT-XL/2@256."""
    if model == "bundled":
        return BUNDLED
    name, size = model.split("@")
    width, patch = name.removeprefix("DiT-").split("/")
    side = int(size) // 8
    return dict(height=side, width=side, patch=int(patch), channels=4, classes=1000, learn_sigma=True, **SHAPES[width])


class PyTorch:
    def __init__(self, model, device):
        self.shape, self.device = shape_of(model), device
        dit = random_dit(0, **self.shape)
        self.dit = Dit({name: w.to(device) for name, w in dit.weights.items()}, dit.heads, dit.dialect)
        self.graph = None

    def form(self, name, batch):
        """Turns to a form, such as `f16 graph`."""
        dtype = {"f16": torch.float16, "bf16": torch.bfloat16}.get(name.split()[0], torch.float32)
        torch.backends.cuda.matmul.allow_tf32 = "tf32" in name
        dit = self.dit.to(dtype)
        s = self.shape
        self.x = torch.zeros(2 * batch, s["channels"], s["height"], s["width"], device=self.device, dtype=dtype)
        self.t = torch.zeros(2 * batch, device=self.device)
        self.y = torch.cat([torch.full((batch,), 3), torch.full((batch,), s["classes"])]).to(self.device)
        self.graph = None
        if "graph" in name:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.no_grad(), torch.cuda.stream(stream):
                for _ in range(3):
                    dit(self.x, self.t, self.y)
            torch.cuda.current_stream().wait_stream(stream)
            self.graph = torch.cuda.CUDAGraph()
            with torch.no_grad(), torch.cuda.graph(self.graph):
                self.out = dit(self.x, self.t, self.y)
        self.network = dit

    @torch.no_grad()
    def predict(self, x, t):
        self.x.copy_(torch.cat([x, x]))
        self.t.fill_(t)
        if self.graph is None:
            return self.network(self.x, self.t, self.y).float()
        self.graph.replay()
        return self.out.float()

    @torch.no_grad()
    def run(self, steps, batch):
        """Seconds of one run."""
        s, channels = self.shape, self.shape["channels"]
        x = torch.randn(batch, channels, s["height"], s["width"], device=self.device)
        kept = torch.linspace(0.02, 0.98, steps + 1, device="cpu").tolist()
        self.wait()
        started = time.perf_counter()
        for now, after in zip(kept, kept[1:]):
            out = self.predict(x, 1000.0 * (1 - now))
            drawn, free = out[:, :channels].chunk(2)
            noise = free + 3.0 * (drawn - free)
            clean = (x - (1 - now) ** 0.5 * noise) / now**0.5
            x = after**0.5 * clean + (1 - after) ** 0.5 * noise
        self.wait()
        return time.perf_counter() - started

    def wait(self):
        if self.device == "cuda":
            torch.cuda.synchronize()


def ours(args, model, dtype):
    spec = model if model == "bundled" else "random:" + model
    command = [args.binary, "bench", "--json", "--device", args.device, "--model", spec, "--steps", args.steps, "--batch", args.batch]
    command += ["--runs", args.runs, "--schedules", args.schedules, "--dtype", dtype]
    answer = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=args.timeout)
    if answer.returncode:
        sys.exit(f"{' '.join(map(str, command))}: {answer.stderr.strip()}")
    return json.loads(answer.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("binary")
    parser.add_argument("--device", default="vulkan", choices=["vulkan", "cpu"])
    parser.add_argument("--models", default="bundled,DiT-S/2@256,DiT-B/2@256,DiT-XL/2@256")
    parser.add_argument("--schedules", default="none,fora:2")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--timeout", type=int, default=600, help="seconds that one `harmonica bench` may take")
    parser.add_argument("--dtypes", default="f32", help="what `harmonica bench --dtype` is to be, in turn")
    args = parser.parse_args()

    Dit.attention = fused_attention
    device = "cuda" if args.device == "vulkan" else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("no CUDA device: PyTorch sees none (--device cpu compares on the processor)")
    # The golden twin makes its small constants where tensors are made by default.
    torch.set_default_device(device)
    forms = ["f32", "tf32", "f16", "tf32 graph", "f16 graph"] if device == "cuda" else ["f32", "bf16"]
    print("PyTorch", torch.__version__, torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} threads")
    for model in args.models.split(","):
        with torch.device("cpu"):
            pytorch = PyTorch(model, device)
        for turn in range(args.rounds):
            said = {dtype: ours(args, model, dtype) for dtype in args.dtypes.split(",")}
            theirs = {}
            for form in forms:
                pytorch.form(form, args.batch)
                pytorch.run(min(args.steps, 4), args.batch)
                theirs[form] = [pytorch.run(args.steps, args.batch) for _ in range(args.runs)]
            print(f"{model}, {args.steps} steps, batch {args.batch}, round {turn + 1}, {next(iter(said.values()))['device']}")
            for dtype, answer in said.items():
                for row in answer["rows"]:
                    times = f"{1000 * row['median_s']:8.1f} ms ({1000 * row['min_s']:.1f} to {1000 * row['max_s']:.1f})"
                    counts = f"{row['dispatches_per_run']} dispatches, {row['speedup']:.2f}x, MACs {row['macs_ratio']:.2f}x"
                    print(f"  harmonica {dtype} {row['schedule']:<12} {times}  {counts}")
            for form, seconds in theirs.items():
                median = statistics.median(seconds)
                shares = [f"{dtype} {answer['rows'][0]['median_s'] / median:.2f}" for dtype, answer in said.items()]
                spread = f"({1000 * min(seconds):.1f} to {1000 * max(seconds):.1f})"
                print(f"  PyTorch {form:<12} {1000 * median:8.1f} ms {spread}  harmonica takes of it, uncached: {', '.join(shares)}")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
