"""Golden tensors: what a plain PyTorch program computes, for the Rust tests to compare with.

    python tests/golden/make.py                  # every part but `bundled`
    python tests/golden/make.py solver router    # only these
    python tests/golden/make.py bundled          # needs assets/dit-emoji32.safetensors

Needs torch, numpy and safetensors, diffusers for `diffusers`, `multistep`, `trajectories` and `hooks`, and cache-dit for `hooks`. Files are
written beside this script, always the same ones: seeds are fixed, the CPU is used, and everything is float32 unless said otherwise.
Nothing here is shared with the Rust code: it is a second reading of the same formulas, written to be obvious, not fast.

"Always the same" ends where training begins: tiny-a is trained for some seconds (see `denoiser`), and another machine
or version of PyTorch may round another way. So parts `sdt` and `cached` read tiny-a.pt; whoever makes that anew makes
these anew.

Parts
  forward    tiny DiTs with the key names of the public DiT release, in three kinds of file, with random weights that
             switch nothing off (gates far from 0), and
             `<name>.io.safetensors`: x [3,C,H,W], t [3] f32, y [3] i64 (the null label last) -> out [3,C or 2C,H,W].
               tiny-a.pt           plain state dict; 8x8, patch 2, 4 channels, hidden 32, 2 blocks, 4 heads, 7 classes;
                                   trained a little, as part `sdt` needs a network that denoises
               tiny-b.pt           wrapped in {ema, model, opt, args}, `out` is ema's; 8 high x 12 wide, patch 4,
                                   3 channels, hidden 48, 3 blocks, 3 heads, 10 classes, no learned sigma
               tiny-c.safetensors  16x16, patch 8, 4 channels, hidden 64, 2 blocks, 1 head, 1 class
  diffusers  diffusers-single/transformer (embedders equal in all blocks) and diffusers-sharded (several files,
             embedders that differ; the final layer is conditioned by block 0's). `out` is diffusers' own.
             It differs from the release in two places: see `Dialect`.
  solver     solver.safetensors: one denoising step, for every step of T = 10, each from its own random x[s], out[s]
             (epsilon, then the sigma channels) and noise[s]. Computed in float64.
  multistep  multistep.safetensors: whole runs of T = 3, 10 and 20 steps of diffusers' DPM-Solver++ (2M) at the release's
             timesteps: `T.states` [T+1,1,4,4,4] under fixed network outputs `T.out` [T,1,4,4,4].
  trajectories  trajectories.safetensors: whole runs of diffusers' schedulers under fixed outputs `T.out` and noise `T.noise`, both
             [T,1,2,4,4], for T = 2, 3, 10 and 20: `SPACING.SOLVER.T` [T+1,1,2,4,4], states as the network sees them, and
             `SPACING.T` [T], the timesteps. `even` is the release's, `dpm` and `flow[:SHIFT]` are the schedulers' own.
             A run ends at the clean image, also SA-Solver's, which in diffusers stops at timestep 0.
  sdt        sdt-{loo,progressive,plain}.safetensors: Step-Wise Denoising Training of a router for tiny-a.
  pairs      sdt-pairs.safetensors: the training of Learning-to-Cache, on pairs of steps of the uncached path; rows of the trace
             are those of the steps that may reuse.
  cached     cached.safetensors: images of DDIM runs that reuse features, for m in tiny-{a,b,c}: `m.noise` [2,C,H,W],
             `m.labels` [2] i64, and for two tables t: `m.t.table` [6,N] u8 (1 computes), `m.t.f32` and `m.t.f16` [2,C,H,W].
             `random` reuses half of the features after step 0, `router` is what a random router leaves out at 0.1.
             A feature is a branch's output before its gate, and a reused one goes under the gate of the step that reuses
             it. In an `f16` cache it is clamped to 65504 and rounded; the step that computes it uses it unrounded.
             `m.random.resumed` (a and c) forgets its cache at step `resumed_at`, and so computes everything there.
  router     router files as other projects release them, and router.io.safetensors: `logits`, `l2c_logits` [10,4] f32
             and `schedule`, `l2c_schedule` [10,4] u8 (1 computes), all in execution order.
  bundled    bundled.safetensors: DDIM samples and one forward pass of the model in assets/.
  forecast   forecast.safetensors: what a fit of forecasts finds for tiny-a on `noise` [6,C,H,W], `labels` [6] i64: for sets
             of `skipped` steps, `<set>.skipped` [S] i64, `<set>.estimates` [T,4] (weights of the newest predictions, then of
             the state; row 0 is plain), `<set>.image` [6,C,H,W] under them, and `uncached` [6,C,H,W].
             `clipped.*` is the same where clean images are clipped to [-1, 1]. In set `parts` some steps compute
             some branches alone (IN_PART), and lines through two features stand in for the others.
  hooks      hooks/transformer (4 blocks) and hooks.safetensors: DDIM runs of it under others' own hooks, `noise` [2,C,H,W],
             `labels` [2] i64, and for each policy `computed.<policy>` [T] u8, whether a step ran the middle blocks, and
             `image.<policy>` [2,C,H,W]. Policies are named as `--schedule` names them: fb:THR is diffusers' FirstBlockCache,
             db:FN:BN:THR:WARMUP[:MAXRUN] is DBCache of the package cache-dit (1.5.3).
PixArt has parts of its own, in make_pixart.py, the training of networks in make_train.py, and prompts in make_text.py.

How part `sdt` reads what could be read in two ways
  - A step is counted in execution order, 0 the noisiest. Step 0 is computed in full, by the student, by the teacher
    and in every trajectory behind lambda: there is no cache to mix with, its score sigmoid(5) is never applied. (In the
    authors' script a flag and a cache outlive the computing of lambda, and so step 0 of that very pass mixes 0.7 % of old
    features in. That is not copied.)
  - Every row of the router is a parameter of its own to AdamW, so a row's moments *and its step count* (bias
    correction) move only at its own step. No weight decay. The clamp to [-5, 5] follows every update.
  - The scores that mix features, decide the cache writes and enter the loss are those from before the update;
    x_{t-1} too comes from that forward pass. "r > tau" is compared in float32.
  - Gradient flows through the whole student pass: through r in every mix, and through the fresh features of later
    branches, which depend on earlier mixes. Only cached features and x_t are constants.
  - What a computing branch (r > tau) leaves in the cache is its mix, detached, not the fresh feature: under the soft
    router a cache is a running mean of its past. In lambda's runs too. A branch with r <= tau leaves the cache alone.
  - A mixed branch reads the cache first and writes it after: its mix never sees the feature it has just stored.
  - "Step s fully computed" (leave-one-out, progressive) means scores of 1: no mixing there, so the mix that is written
    is the fresh feature. The same at step 0, which finds no cache: every pass and every trajectory starts without one.
  - Step s is one step of the denoising run, so "handing step s to the router" leaves all other steps as they were.
  - Both means (loss, lambda) are plain means over all elements: [4,8,8,8] for the loss (two guided halves, epsilon and
    sigma channels), [4,4,8,8] for lambda (two carried states). Nothing is normalised.
  - tiny-a is not purely random because the task makes no sense for a network that predicts no noise: x_t grows a
    hundredfold over the run, layer norms hide everything but x_t, and lambda falls over ten orders of magnitude.
  - lambda[0] is not defined (step 0 trains nothing) and stored as 0. Without a proxy (`plain`) all are stored as 1.
  - trace columns: pass, step, mse (before lambda), score_sum (sum of the step's scores), lambda,
    loss (lambda * mse + beta * score_sum); one row a trained step, in execution order.
"""

import argparse
import json
import math
import pathlib
import re
from collections import OrderedDict
from dataclasses import dataclass
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save

HERE = pathlib.Path(__file__).resolve().parent
ASSET = HERE.parent.parent / "assets" / "dit-emoji32.safetensors"


def normal(seed, *shape, std=1.0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) * std


def write(name, tensors, metadata=None):
    data = save({k: v.detach().contiguous() for k, v in tensors.items()}, metadata=metadata)
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    if metadata:  # comes out in any order, and files should be the same every time
        header["__metadata__"] = dict(sorted(metadata.items()))
    header = json.dumps(header, separators=(",", ":")).encode().ljust(length)
    assert len(header) == length
    (HERE / name).write_bytes(data[:8] + header + data[8 + length :])


# ---------------------------------------------------------------------------------------------------------------------
# The network


@dataclass(frozen=True)
class Dialect:
    """Where implementations of the same DiT disagree. The release: frequencies 10000^(-k/128), every eps 1e-6.
    diffusers: frequencies 10000^(-k/127), and `norm_eps` (1e-5 unless configured) in the norm before the MLP."""

    freq_shift: int = 0
    mlp_norm_eps: float = 1e-6


def waves(values, freq_shift=0):
    """[n] -> [n, 256]: 128 cosines, then 128 sines."""
    frequency = torch.exp(-math.log(10000) * torch.arange(128, dtype=torch.float32) / (128 - freq_shift))
    angle = values.float()[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=1)


def sin_cos_positions(dim, rows, cols, base=None, scale=1):
    """[rows * cols, dim], tokens row-major: the first half encodes the column, the second the row. With `base`, both
    sides are stretched or squeezed to its length, and divided by `scale`."""

    def one_axis(position):
        omega = 10000.0 ** (-np.arange(dim // 4) / (dim / 4))
        angle = np.outer(position, omega)
        return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)

    row, col = np.divmod(np.arange(rows * cols), cols)
    if base is not None:
        row, col = row / (rows / base) / scale, col / (cols / base) / scale
    return torch.tensor(np.concatenate([one_axis(col), one_axis(row)], axis=1), dtype=torch.float32)


@dataclass
class Dit:
    """A DiT as a state dict and the one number that its shapes do not tell."""

    weights: dict
    heads: int
    dialect: Dialect = Dialect()

    @property
    def null_label(self):
        return self.weights["y_embedder.embedding_table.weight"].shape[0] - 1

    @property
    def blocks(self):
        return 1 + max(int(k.split(".")[1]) for k in self.weights if k.startswith("blocks."))

    def both(self, labels):
        """The conditions of a guided batch: what the network takes behind x and t, for both halves at once."""
        return [torch.cat([labels, torch.full_like(labels, self.null_label)])]

    def to(self, dtype):
        return Dit({k: v.to(dtype) for k, v in self.weights.items()}, self.heads, self.dialect)

    def linear(self, name, x):
        return F.linear(x, self.weights[name + ".weight"], self.weights[name + ".bias"])

    def conditioning(self, t, y):
        wave = waves(t, self.dialect.freq_shift).to(self.weights["t_embedder.mlp.0.weight"].dtype)
        t_emb = self.linear("t_embedder.mlp.2", F.silu(self.linear("t_embedder.mlp.0", wave)))
        return t_emb + self.weights["y_embedder.embedding_table.weight"][y]

    def attention(self, name, x):
        batch, tokens, dim = x.shape
        qkv = self.linear(name + ".qkv", x).reshape(batch, tokens, 3, self.heads, dim // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        weight = torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(dim // self.heads), dim=-1)
        return self.linear(name + ".proj", (weight @ v).transpose(1, 2).reshape(batch, tokens, dim))

    def mlp(self, name, x):
        return self.linear(name + ".fc2", F.gelu(self.linear(name + ".fc1", x), approximate="tanh"))

    def __call__(self, x, t, y, feature=lambda branch, fresh: fresh):
        """x [B,C,H,W], t [B], y [B] -> [B, C or 2C, H, W]. `feature(branch, fresh)` returns what takes the place of a
        branch's output, [B, tokens, dim], before the gate. Branch 2b is block b's attention, 2b + 1 its MLP."""
        w = self.weights
        dim, _, patch, _ = w["x_embedder.proj.weight"].shape
        rows, cols = x.shape[2] // patch, x.shape[3] // patch
        c = F.silu(self.conditioning(t, y))

        def modulated(x, shift, scale, eps=1e-6):
            return F.layer_norm(x, [dim], eps=eps) * (1 + scale[:, None]) + shift[:, None]

        x = F.conv2d(x, w["x_embedder.proj.weight"], w["x_embedder.proj.bias"], stride=patch)
        x = x.flatten(2).transpose(1, 2) + w["pos_embed"]
        for b in range(self.blocks):
            ada = self.linear(f"blocks.{b}.adaLN_modulation.1", c)
            shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = ada.chunk(6, dim=1)
            fresh = self.attention(f"blocks.{b}.attn", modulated(x, shift_a, scale_a))
            x = x + gate_a[:, None] * feature(2 * b, fresh)
            fresh = self.mlp(f"blocks.{b}.mlp", modulated(x, shift_m, scale_m, self.dialect.mlp_norm_eps))
            x = x + gate_m[:, None] * feature(2 * b + 1, fresh)
        shift, scale = self.linear("final_layer.adaLN_modulation.1", c).chunk(2, dim=1)
        x = self.linear("final_layer.linear", modulated(x, shift, scale))
        x = x.reshape(x.shape[0], rows, cols, patch, patch, -1)
        return torch.einsum("nhwpqc->nchpwq", x).reshape(x.shape[0], -1, rows * patch, cols * patch)


def alive(name, shape, generator):
    """A random weight by which no part of the network is switched off, as freshly initialised DiTs are."""
    value = torch.randn(*shape, generator=generator)
    if len(shape) == 1:
        return value * 0.02
    if "embedding_table" in name:
        return value
    std = 1 / math.sqrt(math.prod(shape[1:]))
    return value * std * (0.5 if any(s in name for s in ("adaLN", "norm1.linear", "proj_out_1")) else 1.0)


def random_dit(seed, *, height, width, patch, channels, hidden, blocks, heads, classes, learn_sigma):
    shapes = {}

    def layer(name, out, *into):
        shapes[name + ".weight"], shapes[name + ".bias"] = (out, *into), (out,)

    layer("x_embedder.proj", hidden, channels, patch, patch)
    layer("t_embedder.mlp.0", hidden, 256)
    layer("t_embedder.mlp.2", hidden, hidden)
    shapes["y_embedder.embedding_table.weight"] = (classes + 1, hidden)
    for b in range(blocks):
        layer(f"blocks.{b}.attn.qkv", 3 * hidden, hidden)
        layer(f"blocks.{b}.attn.proj", hidden, hidden)
        layer(f"blocks.{b}.mlp.fc1", 4 * hidden, hidden)
        layer(f"blocks.{b}.mlp.fc2", hidden, 4 * hidden)
        layer(f"blocks.{b}.adaLN_modulation.1", 6 * hidden, hidden)
    layer("final_layer.linear", patch * patch * channels * (2 if learn_sigma else 1), hidden)
    layer("final_layer.adaLN_modulation.1", 2 * hidden, hidden)
    generator = torch.Generator().manual_seed(seed)
    weights = {name: alive(name, shape, generator) for name, shape in shapes.items()}
    weights["pos_embed"] = sin_cos_positions(hidden, height // patch, width // patch)[None]
    return Dit(weights, heads)


TINY = {
    "a": dict(height=8, width=8, patch=2, channels=4, hidden=32, blocks=2, heads=4, classes=7, learn_sigma=True),
    "b": dict(height=8, width=12, patch=4, channels=3, hidden=48, blocks=3, heads=3, classes=10, learn_sigma=False),
    "c": dict(height=16, width=16, patch=8, channels=4, hidden=64, blocks=2, heads=1, classes=1, learn_sigma=True),
}


def tiny(name):
    return random_dit(100 + ord(name), **TINY[name])


def load_tiny(name):
    """The network in the committed file."""
    if name == "c":
        weights = load_file(HERE / "tiny-c.safetensors")
    else:
        weights = torch.load(HERE / f"tiny-{name}.pt", weights_only=name == "a")
    return Dit(weights["ema"] if name == "b" else weights, TINY[name]["heads"])


@torch.enable_grad()
def denoiser(dit, iterations=1500, batch=64, peak_lr=3e-3):
    """`dit` after some seconds of training on 4x8x8 blots, smooth and alike within a class: epsilon MSE, label dropout
    0.1. The sigma channels stay random."""
    generator = torch.Generator().manual_seed(11)
    blots = lambda n: F.interpolate(torch.randn(n, 4, 2, 2, generator=generator), size=(8, 8), mode="bilinear")
    means = blots(dit.null_label)
    parameters = [w.requires_grad_() for name, w in dit.weights.items() if name != "pos_embed"]
    optimizer = torch.optim.Adam(parameters)
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0).float()
    for i in range(iterations):
        optimizer.param_groups[0]["lr"] = peak_lr * 0.5 * (1 + math.cos(math.pi * i / iterations))
        y = torch.randint(0, dit.null_label, (batch,), generator=generator)
        x0 = means[y] + 0.5 * blots(batch)
        t = torch.randint(0, 1000, (batch,), generator=generator)
        noise = torch.randn(x0.shape, generator=generator)
        a = alpha_bar[t][:, None, None, None]
        y = torch.where(torch.rand(batch, generator=generator) < 0.1, dit.null_label, y)
        eps = dit(a.sqrt() * x0 + (1 - a).sqrt() * noise, t, y)[:, :4]
        loss = (eps - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.15, loss
    for w in parameters:
        w.requires_grad_(False)
    return dit


def forward_case(seed, channels, height, width, labels):
    return {"x": normal(seed, 3, channels, height, width), "t": torch.tensor([0.0, 500.0, 999.0]), "y": torch.tensor(labels)}


def check_alive(out):
    assert torch.isfinite(out).all() and 0.3 < out.std() < 5, out.std()


def part_forward():
    labels = {"a": [3, 0, 7], "b": [9, 4, 10], "c": [0, 0, 1]}
    for name, spec in TINY.items():
        dit = denoiser(tiny(name)) if name == "a" else tiny(name)
        case = forward_case(200 + ord(name), spec["channels"], spec["height"], spec["width"], labels[name])
        assert dit.null_label == case["y"][-1] == spec["classes"]
        out = dit(**case)
        assert out.shape == (3, spec["channels"] * (1 + spec["learn_sigma"]), spec["height"], spec["width"])
        check_alive(out)
        for branch in range(2 * spec["blocks"]):  # every branch matters
            without = dit(**case, feature=lambda b, f: torch.zeros_like(f) if b == branch else f)
            assert (without - out).abs().max() > 0.05, (name, branch)
        write(f"tiny-{name}.io.safetensors", case | {"out": out})
        if name == "a":
            torch.save(dit.weights, HERE / "tiny-a.pt")
        elif name == "b":
            other = random_dit(1, **spec)
            assert (other(**case) - out).abs().max() > 0.1  # taking `model` for `ema` shows
            wrapped = {"ema": OrderedDict(dit.weights), "model": other.weights, "opt": {}}
            torch.save(wrapped | {"args": argparse.Namespace(lr=1e-4)}, HERE / "tiny-b.pt")
        else:
            write("tiny-c.safetensors", dit.weights)


# ---------------------------------------------------------------------------------------------------------------------
# diffusers folders


def from_diffusers(state, positions, heads):
    """The same network in the release's key names: only where all blocks repeat block 0's embedders."""
    weights = {"pos_embed": positions}

    def layer(name, *sources):
        for kind in ("weight", "bias"):
            weights[f"{name}.{kind}"] = torch.cat([state[f"{s}.{kind}"] for s in sources])

    emb = "transformer_blocks.0.norm1.emb"
    layer("x_embedder.proj", "pos_embed.proj")
    layer("t_embedder.mlp.0", f"{emb}.timestep_embedder.linear_1")
    layer("t_embedder.mlp.2", f"{emb}.timestep_embedder.linear_2")
    weights["y_embedder.embedding_table.weight"] = state[f"{emb}.class_embedder.embedding_table.weight"]
    for b in range(2):
        block = f"transformer_blocks.{b}"
        layer(f"blocks.{b}.attn.qkv", *(f"{block}.attn1.to_{i}" for i in "qkv"))
        layer(f"blocks.{b}.attn.proj", f"{block}.attn1.to_out.0")
        layer(f"blocks.{b}.mlp.fc1", f"{block}.ff.net.0.proj")
        layer(f"blocks.{b}.mlp.fc2", f"{block}.ff.net.2")
        layer(f"blocks.{b}.adaLN_modulation.1", f"{block}.norm1.linear")
    layer("final_layer.adaLN_modulation.1", "proj_out_1")
    layer("final_layer.linear", "proj_out_2")
    return Dit(weights, heads, Dialect(freq_shift=1, mlp_norm_eps=1e-5))


def part_diffusers():
    from diffusers import DiTTransformer2DModel

    for seed, name in enumerate(["single", "sharded"]):
        model = DiTTransformer2DModel(
            num_layers=2,
            num_attention_heads=4,
            attention_head_dim=8,
            in_channels=4,
            out_channels=8,
            sample_size=8,
            patch_size=2,
            num_embeds_ada_norm=7,
        ).eval()
        generator = torch.Generator().manual_seed(300 + seed)
        state = {k: alive(k, v.shape, generator) for k, v in model.state_dict().items()}
        if name == "single":
            state = {k: state[k.replace("blocks.1.norm1.emb", "blocks.0.norm1.emb")] for k in state}
        model.load_state_dict(state)
        assert model.transformer_blocks[0].norm1.emb.class_embedder.embedding_table.weight.shape == (8, 32)

        case = forward_case(310 + seed, 4, 8, 8, [2, 6, 7])
        out = model(case["x"], timestep=case["t"], class_labels=case["y"]).sample
        check_alive(out)
        positions = model.pos_embed.pos_embed
        torch.testing.assert_close(positions[0], sin_cos_positions(32, 4, 4))
        mapped = from_diffusers(state, positions, 4)
        if name == "single":
            torch.testing.assert_close(mapped(**case), out, atol=2e-5, rtol=1e-5)
            mapped.dialect = Dialect()
            print(f"  release's embedding instead of diffusers': off by {(mapped(**case) - out).abs().max():.2e}")
        else:
            difference = (mapped(**case) - out).abs().max()
            assert difference > 0.1, difference  # the embedders differ, and it shows

        folder = HERE / f"diffusers-{name}" / ("transformer" if name == "single" else "")
        model.save_pretrained(folder, safe_serialization=True, max_shard_size="150KB" if name == "sharded" else "5GB")
        assert len(list(folder.glob("*.safetensors"))) == (2 if name == "sharded" else 1)
        again = DiTTransformer2DModel.from_pretrained(folder).eval()
        assert torch.equal(again(case["x"], timestep=case["t"], class_labels=case["y"]).sample, out)
        write(f"diffusers-{name}.io.safetensors", case | {"out": out})


# ---------------------------------------------------------------------------------------------------------------------
# Solvers


class Respaced:
    """`steps` of the 1000 training steps, first and last included; arrays in execution order, noisiest first."""

    def __init__(self, steps):
        self.steps = steps
        self.timesteps = [round(k * 999 / (steps - 1)) for k in range(steps)]
        alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)[self.timesteps]
        previous = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
        betas = 1 - alpha_bar / previous
        posterior = betas * (1 - previous) / (1 - alpha_bar)
        # The last step adds no noise; its variances, 0 and so without a logarithm, are taken from its neighbour.
        log_small = torch.log(torch.cat([posterior[1:2], posterior[1:]]))
        log_fixed_large = torch.log(torch.cat([posterior[1:2], betas[1:]]))
        self.timesteps = self.timesteps[::-1]
        self.alpha_bar, self.previous, self.betas = alpha_bar.flip(0), previous.flip(0), betas.flip(0)
        self.log_small, self.log_fixed_large = log_small.flip(0), log_fixed_large.flip(0)

    def x0_from_eps(self, s, x, eps):
        a = self.alpha_bar[s].item()
        return (x - math.sqrt(1 - a) * eps) / math.sqrt(a)

    def ddim(self, s, x, eps, eta=0.0, noise=None, clip=False):
        a, p = self.alpha_bar[s].item(), self.previous[s].item()
        x0 = self.x0_from_eps(s, x, eps)
        if clip:
            x0 = x0.clamp(-1, 1)
            eps = (x - math.sqrt(a) * x0) / math.sqrt(1 - a)
        sigma = eta * math.sqrt((1 - p) / (1 - a)) * math.sqrt(1 - a / p)
        mean = math.sqrt(p) * x0 + math.sqrt(1 - p - sigma**2) * eps
        return mean if sigma == 0 else mean + sigma * noise

    def ddpm(self, s, x, eps, noise, v=None):
        """One ancestral step; `v` are the sigma channels, None for a model without."""
        a, p, beta = self.alpha_bar[s].item(), self.previous[s].item(), self.betas[s].item()
        x0 = self.x0_from_eps(s, x, eps)
        mean = (math.sqrt(p) * beta * x0 + math.sqrt(1 - beta) * (1 - p) * x) / (1 - a)
        if s == self.steps - 1:
            return mean
        if v is None:
            log_variance = self.log_fixed_large[s]
        else:
            share = (v + 1) / 2
            log_variance = share * math.log(beta) + (1 - share) * self.log_small[s]
        return mean + torch.exp(0.5 * log_variance) * noise


def part_solver():
    steps = 10
    schedule = Respaced(steps)
    assert schedule.timesteps == [999, 888, 777, 666, 555, 444, 333, 222, 111, 0]
    assert Respaced(50).timesteps[::-1][:4] == [0, 20, 41, 61]
    x, out, noise = normal(400, steps, 1, 4, 4, 4), normal(401, steps, 1, 8, 4, 4), normal(402, steps, 1, 4, 4, 4)
    results = {name: [] for name in ("ddim0", "ddim05", "ddim0_clip", "ddpm", "ddpm_fixed")}
    for s in range(steps):
        xs, n = x[s].double(), noise[s].double()
        eps, v = out[s].double().chunk(2, dim=1)
        results["ddim0"].append(schedule.ddim(s, xs, eps))
        results["ddim05"].append(schedule.ddim(s, xs, eps, eta=0.5, noise=n))
        results["ddim0_clip"].append(schedule.ddim(s, xs, eps, clip=True))
        results["ddpm"].append(schedule.ddpm(s, xs, eps, n, v))
        results["ddpm_fixed"].append(schedule.ddpm(s, xs, eps, n))
        # DDIM with eta 1 is the ancestral step with the posterior's own variance, that is, with v = -1
        if s < steps - 1:
            eta1 = schedule.ddim(s, xs, eps, eta=1.0, noise=n)
            torch.testing.assert_close(eta1, schedule.ddpm(s, xs, eps, n, torch.full_like(v, -1)))
    # with the true noise for epsilon, one step from x_t = q(x_0) lands on q(x_0) again
    x0, e = torch.full((1,), 0.3, dtype=torch.float64), torch.full((1,), -1.2, dtype=torch.float64)
    for s in range(steps):
        a, p = schedule.alpha_bar[s], schedule.previous[s]
        stepped = schedule.ddim(s, a.sqrt() * x0 + (1 - a).sqrt() * e, e)
        torch.testing.assert_close(stepped, p.sqrt() * x0 + (1 - p).sqrt() * e)
    results = {name: torch.stack(values).float() for name, values in results.items()}
    write("solver.safetensors", {"x": x, "out": out, "noise": noise} | results)


LINEAR_BETAS = dict(num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, beta_schedule="linear")


def states_of(scheduler, x, out, **by_step):
    """A run from x; `by_step` are further arguments of the scheduler's steps, one a step."""
    states = [x]
    for s, t in enumerate(scheduler.timesteps):
        others = {name: values[s] for name, values in by_step.items()}
        states.append(scheduler.step(out[s], t, states[-1], **others).prev_sample)
    return states


def part_multistep():
    from diffusers import DPMSolverMultistepScheduler

    results = {}
    for steps in (3, 10, 20):
        solver = DPMSolverMultistepScheduler(**LINEAR_BETAS, solver_order=2, final_sigmas_type="zero")
        solver.set_timesteps(timesteps=Respaced(steps).timesteps)
        x, out = normal(410, 1, 4, 4, 4), normal(411, steps, 1, 4, 4, 4)
        results |= {f"{steps}.out": out, f"{steps}.states": torch.stack(states_of(solver, x, out))}
    write("multistep.safetensors", results)


def sa_states(scheduler, x, out, noise):
    """In float64: the scheduler takes differences of close numbers. An image that is all but clean ends the run: infinities, as
    of a clean one, are nothing that it can compute with."""
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)[scheduler.timesteps]
    clean = torch.tensor([1e-8], dtype=torch.float64)
    scheduler.sigmas = torch.cat([((1 - alpha_bar) / alpha_bar).sqrt(), clean])
    states = [x.double()]
    for s, t in enumerate(scheduler.timesteps):
        with mock.patch("diffusers.schedulers.scheduling_sasolver.randn_tensor", return_value=noise[s].double()):
            states.append(scheduler.step(out[s].double(), t, states[-1]).prev_sample)
    return states


def euler_states(scheduler, x, out):
    """The scheduler's state is the network's times sqrt(sigma^2 + 1)."""
    scales = (scheduler.sigmas**2 + 1).sqrt()
    state = x * scales[0]
    states = [x]
    for s, t in enumerate(scheduler.timesteps):
        torch.testing.assert_close(scheduler.scale_model_input(state, t), states[-1])
        state = scheduler.step(out[s], t, state).prev_sample
        states.append(state / scales[s + 1])
    return states


def part_trajectories():
    from diffusers import (
        DPMSolverMultistepScheduler,
        EulerDiscreteScheduler,
        FlowMatchEulerDiscreteScheduler,
        SASolverScheduler,
    )

    def dpm(order, kind="dpmsolver++"):
        return DPMSolverMultistepScheduler(
            **LINEAR_BETAS, solver_order=order, algorithm_type=kind, final_sigmas_type="zero"
        )

    results = {}
    for steps in (2, 3, 10, 20):
        x, noise = normal(420, 1, 2, 4, 4), normal(422, steps, 1, 2, 4, 4)
        # Near the noise that is there, as a network's: otherwise the first step's clean image drowns all others.
        out = x + normal(421, steps, 1, 2, 4, 4, std=0.1)
        results |= {f"{steps}.out": out, f"{steps}.noise": noise}

        def keep(spacing, solver, scheduler, states):
            timesteps, states = scheduler.timesteps.float(), torch.stack([s.float() for s in states])
            torch.testing.assert_close(timesteps, results.setdefault(f"{spacing}.{steps}", timesteps))
            results[f"{spacing}.{solver}.{steps}"] = states

        for spacing in ("even", "dpm"):
            multistep = {"dpm++2m": dpm(2), "dpm++3m": dpm(3), "dpm++2m-sde": dpm(2, "sde-dpmsolver++")}
            for name, scheduler in multistep.items():
                if spacing == "even":
                    scheduler.set_timesteps(timesteps=Respaced(steps).timesteps)
                else:
                    scheduler.set_timesteps(steps)
                keep(spacing, name, scheduler, states_of(scheduler, x, out, variance_noise=noise))
            scheduler = SASolverScheduler(**LINEAR_BETAS)
            scheduler.set_timesteps(steps)
            if spacing == "even":
                scheduler.timesteps = torch.tensor(Respaced(steps).timesteps)
            keep(spacing, "sa-solver", scheduler, sa_states(scheduler, x, out, noise))
        scheduler = EulerDiscreteScheduler(**LINEAR_BETAS)
        scheduler.set_timesteps(timesteps=Respaced(steps).timesteps)
        keep("even", "euler", scheduler, euler_states(scheduler, x, out))
        for spacing, shift in (("flow", 1.0), ("flow:3", 3.0)):
            scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
            scheduler.set_timesteps(steps)
            keep(spacing, "euler", scheduler, states_of(scheduler, x, out))
    write("trajectories.safetensors", results)


# ---------------------------------------------------------------------------------------------------------------------
# Step-Wise Denoising Training


def guided(network, state, t, condition, scale, channels, feature=lambda branch, fresh: fresh):
    """The network on the conditional half of `state` [2n,C,H,W], once with the condition (labels) and once with the
    null one, then guidance on the first `channels` channels. The others stay each half's own. -> [2n, C or 2C, H, W]"""
    n = len(state) // 2
    x = torch.cat([state[:n], state[:n]])
    out = network(x, torch.full((2 * n,), float(t)), *network.both(condition), feature=feature)
    conditional, unconditional = out[:, :channels].chunk(2)
    mixed = unconditional + scale * (conditional - unconditional)
    return torch.cat([torch.cat([mixed, mixed]), out[:, channels:]], dim=1)


class Sdt:
    STEPS, PASSES, IMAGES, LAMBDA_EVERY = 10, 60, 2, 100
    GUIDANCE, GUIDED_CHANNELS, TAU, LR = 1.5, 3, 0.1, 0.01

    def __init__(self, network, proxy, beta, router_init, dtype=torch.float32):
        self.network, self.proxy, self.beta, self.dtype = network.to(dtype), proxy, beta, dtype
        self.schedule = Respaced(self.STEPS)
        self.rows = [torch.nn.Parameter(row.clone()) for row in router_init.to(dtype)]
        self.rows[0].requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.rows[1:], lr=self.LR, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)

    def evaluate(self, s, state, condition, feature=lambda branch, fresh: fresh):
        t = self.schedule.timesteps[s]
        return guided(self.network, state, t, condition, self.GUIDANCE, self.GUIDED_CHANNELS, feature)

    def computed(self, s, state, condition, cache):
        """Step s with every branch computed, and every fresh feature stored."""

        def feature(branch, fresh):
            cache[branch] = fresh.detach()
            return fresh

        return self.evaluate(s, state, condition, feature)

    def ruled(self, s, state, condition, cache):
        """Step s under the soft router: features are mixed with the cache, and the mix is stored where the hard rule
        computes."""
        scores = torch.sigmoid(self.rows[s])

        def feature(branch, fresh):
            r = scores[branch]
            mixed = r * fresh + (1 - r) * cache[branch]
            if r > self.TAU:
                cache[branch] = mixed.detach()
            return mixed

        return self.evaluate(s, state, condition, feature), scores

    def advance(self, s, state, out):
        return self.schedule.ddim(s, state, out[:, : state.shape[1]].detach())

    @torch.no_grad()
    def image(self, noise, condition, ruled_steps):
        """x_0 of both states, [2n,C,H,W], when the router rules `ruled_steps` and all others are computed."""
        state, cache = torch.cat([noise, noise]), {}
        for s in range(self.STEPS):
            if s in ruled_steps:
                out, _ = self.ruled(s, state, condition, cache)
            else:
                out = self.computed(s, state, condition, cache)
            state = self.advance(s, state, out)
        return state

    def lambdas(self, noise, condition):
        """IEPO: how much reuse at step s changes the final image. Every image is made by a full run of its own."""
        if self.proxy == "none":
            return [1.0] * self.STEPS
        error = lambda a, b: (a - b).square().mean().item()
        steps = set(range(1, self.STEPS))
        if self.proxy == "leave-one-out":
            everywhere = self.image(noise, condition, steps)
            return [0.0] + [error(everywhere, self.image(noise, condition, steps - {s})) for s in sorted(steps)]
        assert self.proxy == "progressive"
        images = [self.image(noise, condition, set(range(1, s + 1))) for s in range(self.STEPS)]
        return [0.0] + [error(images[s - 1], images[s]) for s in sorted(steps)]

    def train(self, noise, conditions):
        """noise [passes,n,C,H,W] and a condition (labels [n]) for each pass
        -> trace [passes * 9, 6], lambda history [refreshes, 10]"""
        noise, trace, history = noise.to(self.dtype), [], []
        for p in range(len(noise)):
            if p * self.STEPS % self.LAMBDA_EVERY == 0:
                history.append(self.lambdas(noise[p], conditions[p]))
            state, cache = torch.cat([noise[p], noise[p]]), {}
            with torch.no_grad():
                state = self.advance(0, state, self.computed(0, state, conditions[p], cache))
            for s in range(1, self.STEPS):
                with torch.no_grad():
                    teacher = self.evaluate(s, state, conditions[p])
                student, scores = self.ruled(s, state, conditions[p], cache)
                mse = (teacher - student).square().mean()
                loss = history[-1][s] * mse + self.beta * scores.sum()
                self.optimizer.zero_grad(set_to_none=True)
                loss.backward()
                assert all((row.grad is not None) == (i == s) for i, row in enumerate(self.rows))
                self.optimizer.step()
                with torch.no_grad():
                    for row in self.rows:
                        row.clamp_(-5, 5)
                trace.append([p, s, mse.item(), scores.sum().item(), history[-1][s], loss.item()])
                state = self.advance(s, state, student)
        return torch.tensor(trace, dtype=torch.float64), torch.tensor(history, dtype=torch.float64)

    @property
    def router(self):
        return torch.stack([row.detach() for row in self.rows])


def sdt_run(name, kind, network, proxy, beta, router_init, noise, conditions, inputs):
    """Trains in float32, checks it with a twin in float64, and writes `inputs` and what came out. -> the largest relative
    difference of the twin's trace, by column"""
    sdt = kind(network, proxy, beta, router_init)
    trace, history = sdt.train(noise, conditions)
    twin = kind(network, proxy, beta, router_init, torch.float64)
    twin_trace, _ = twin.train(noise, conditions)

    trained = kind.STEPS // 2 if kind is Pairs else kind.STEPS - 1
    assert trace.shape == (kind.PASSES * trained, 6) and history.shape[1] == kind.STEPS
    assert kind is Pairs or len(history) == 1 + (kind.PASSES - 1) * kind.STEPS // kind.LAMBDA_EVERY
    assert torch.equal(sdt.router[0], router_init[0])
    off = (sdt.router - twin.router).abs().max()
    relative = ((trace - twin_trace).abs() / twin_trace.abs().clamp(min=1e-30)).max(0).values
    assert off < 1e-3, f"{name}: float32 and float64 part ways by {off}"
    before, after = (torch.sigmoid(r[1:]) <= kind.TAU for r in (router_init, sdt.router))
    print(
        f"  {name}: beta {beta:g}, scores at or below tau {before.sum()} -> {after.sum()} of {after.numel()}, "
        f"{(before != after).sum()} of them crossed it, "
        f"logits up {(sdt.router > router_init).sum()} down {(sdt.router < router_init).sum()}; "
        f"float64 twin: logits differ by {off:.1e}, trace columns by {[f'{r:.0e}' for r in relative[2:]]} (relative)"
    )
    write(
        f"sdt-{name}.safetensors",
        inputs
        | {
            "noise": noise,
            "router_init": router_init,
            "trace": trace,
            "lambda_history": history,
            "router_final": sdt.router,
        },
        {
            "beta": repr(beta),
            "lr": repr(kind.LR),
            "tau": repr(kind.TAU),
            "guidance": repr(kind.GUIDANCE),
            "lambda_every": str(kind.LAMBDA_EVERY),
            "proxy": proxy,
        },
    )
    return relative


# By these betas some scores rise and others fall; by this seed, of N(0, 1) logits that 60 updates of 0.01 move by 0.6
# at most, two or three pass the threshold on the way, among them neighbours (a cached feature serves several steps).
SDT_RUNS = {"loo": ("leave-one-out", 2e-4), "progressive": ("progressive", 1.5e-4), "plain": ("none", 2e-2)}
SDT_ROUTER_SEED = 165


class Pairs(Sdt):
    """Learning-to-Cache, from its authors' train_router.py, router_training_losses and router_models.py: a step t = 2k+1 (index
    0 is the least noisy) is computed and its features are kept, then the router of index 2k mixes them with those of the
    next step; the loss is the plain mean squared error of the whole output plus l1 times the sum of the scores. They begin from
    a noised picture at a random t with one AdamW over all routers (a row without a gradient does not move), here every pair of
    a denoising path is met in turn."""

    PASSES = 30

    def train(self, noise, conditions):
        noise, trace = noise.to(self.dtype), []
        for p in range(len(noise)):
            state = torch.cat([noise[p], noise[p]])
            for index in reversed(range(0, self.STEPS, 2)):
                first, second = self.STEPS - 2 - index, self.STEPS - 1 - index
                kept = {}
                with torch.no_grad():
                    state = self.advance(first, state, self.computed(first, state, conditions[p], kept))
                    teacher = self.evaluate(second, state, conditions[p])
                scores = torch.sigmoid(self.rows[second])
                mixed = lambda branch, fresh: scores[branch] * fresh + (1 - scores[branch]) * kept[branch]
                student = self.evaluate(second, state, conditions[p], mixed)
                mse = (teacher - student).square().mean()
                loss = mse + self.beta * scores.sum()
                self.optimizer.zero_grad(set_to_none=True)
                loss.backward()
                self.optimizer.step()
                with torch.no_grad():
                    for row in self.rows:
                        row.clamp_(-5, 5)
                trace.append([p, second, mse.item(), scores.sum().item(), 1.0, loss.item()])
                state = self.advance(second, state, teacher)
        return torch.tensor(trace, dtype=torch.float64), torch.ones(1, self.STEPS, dtype=torch.float64)


def part_sdt():
    noise = normal(500, Sdt.PASSES, Sdt.IMAGES, 4, 8, 8)
    labels = torch.randint(0, 7, (Sdt.PASSES, Sdt.IMAGES), generator=torch.Generator().manual_seed(501))
    router_init = normal(SDT_ROUTER_SEED, Sdt.STEPS, 4)
    router_init[0] = 5.0
    for name, (proxy, beta) in SDT_RUNS.items():
        sdt_run(name, Sdt, load_tiny("a"), proxy, beta, router_init, noise, labels, {"labels": labels})


def part_pairs():
    noise = normal(510, Pairs.PASSES, Pairs.IMAGES, 4, 8, 8)
    labels = torch.randint(0, 7, (Pairs.PASSES, Pairs.IMAGES), generator=torch.Generator().manual_seed(511))
    router_init = normal(SDT_ROUTER_SEED, Pairs.STEPS, 4)
    router_init[::2] = 5.0  # rows that never act
    sdt_run("pairs", Pairs, load_tiny("a"), "none", 2e-2, router_init, noise, labels, {"labels": labels})


# ---------------------------------------------------------------------------------------------------------------------
# Cached sampling runs

HOOKS = ["fb:0.3", "fb:0.5", "fb:0.8", "db:1:1:0.5:3", "db:2:0:0.6:5", "db:1:0:0.9:4:2"]

STORED = {"f32": lambda f: f.clone(), "f16": lambda f: f.clamp(-65504, 65504).half().to(f.dtype)}


class Cache:
    """A feature by branch, in a dict. `keep` is called to store one, `reuse` to read one."""

    def __init__(self, kind="f32"):
        self.features, self.stored = {}, STORED[kind]

    def keep(self, s, branch, fresh):
        self.features[branch] = self.stored(fresh)

    def reuse(self, s, branch):
        return self.features[branch]


def ddim_samples(network, noise, condition, *, steps, guidance, channels=3, clip=False, table=None, cache=None):
    """DDIM, eta 0. `table[s][branch]` says whether step s computes a branch or reuses what `cache` has; None: always."""
    schedule, network_channels = Respaced(steps), noise.shape[1]
    state = torch.cat([noise, noise])
    for s in range(steps):

        def feature(branch, fresh):
            if table is None:
                return fresh
            if table[s][branch]:
                cache.keep(s, branch, fresh)
                return fresh
            return cache.reuse(s, branch)

        out = guided(network, state, schedule.timesteps[s], condition, guidance, channels, feature)
        state = schedule.ddim(s, state, out[:, :network_channels], clip=clip)
    return state[: len(noise)]


def reuse_table(kind, seed, steps, branches):
    """[steps, branches] u8, 1 computes. Step 0 computes everything."""
    if kind == "random":  # half of them, anywhere
        order = torch.randperm((steps - 1) * branches, generator=torch.Generator().manual_seed(seed))
        table = torch.cat([torch.ones(branches), order % 2]).reshape(steps, branches)
        reused = 1 - table[1:]
        assert reused.any(0).all() and not reused.all(0).any() and (reused[1:] * reused[:-1]).any()
    else:
        table = torch.sigmoid(normal(seed, steps, branches, std=2.5)) > 0.1
        table[0] = True
        assert 0.1 < 1 - table[1:].float().mean() < 0.3
    return table.to(torch.uint8)


class OldGate(Cache):
    """Broken: a reused feature under the gate of the step that computed it. `gates(s, branch)`, [B, dim]."""

    def __init__(self, gates):
        super().__init__()
        self.gates, self.step = gates, {}

    def keep(self, s, branch, fresh):
        super().keep(s, branch, fresh)
        self.step[branch] = s

    def reuse(self, s, branch):
        then, now = self.gates(self.step[branch], branch), self.gates(s, branch)
        return super().reuse(s, branch) * (then / now)[:, None]


class NoBias(Cache):
    """Broken: a reused feature without the bias of the branch's last layer."""

    def __init__(self, bias):
        super().__init__()
        self.bias = bias

    def reuse(self, s, branch):
        return super().reuse(s, branch) - self.bias(branch)


class Stale(Cache):
    """Broken: a reused feature is the last but one that was computed, where there are two."""

    def keep(self, s, branch, fresh):
        self.features[branch] = [*self.features.get(branch, []), fresh][-2:]

    def reuse(self, s, branch):
        return self.features[branch][0]


def check_caches(name, right, uncached, broken):
    """The cached image is not the uncached one, and every broken cache shows. Prints by how much."""
    figures = {"uncached": (right - uncached).abs().max().item()}
    figures |= {kind: (right - image).abs().max().item() for kind, image in broken.items()}
    assert figures["uncached"] > 1e-2
    print(f"  {name}: off by " + ", ".join(f"{kind} {off:.2g}" for kind, off in figures.items()))
    return figures


def check_twin(name, image, twin):
    """By how much float32 and float64 differ, in units of the largest pixel."""
    largest, off = twin.abs().max(), (image - twin).abs().max()
    print(f"  {name}: largest pixel {largest:.3g}, float64 off by {off / largest:.1e} of it")


def part_cached():
    steps, guidance, resumed_at = 6, 1.5, 3
    tensors, caught = {}, {}
    for name, spec in TINY.items():
        dit = load_tiny(name)
        branches, clip = 2 * spec["blocks"], name == "b"
        noise = normal(800 + ord(name), 2, spec["channels"], spec["height"], spec["width"])
        labels = torch.tensor([0, spec["classes"] - 1])
        if name == "c":  # untrained: what it does not itself take for noise grows a thousandfold, and hides all else
            for _ in range(40):
                noise = guided(dit, torch.cat([noise, noise]), 999, labels, guidance, 3)[:2, :4]
        timesteps = Respaced(steps).timesteps
        [y] = dit.both(labels)

        def gates(s, branch):
            c = F.silu(dit.conditioning(torch.full((len(y),), float(timesteps[s])), y))
            chunks = dit.linear(f"blocks.{branch // 2}.adaLN_modulation.1", c).chunk(6, dim=1)
            return chunks[2 if branch % 2 == 0 else 5]

        def bias(branch):
            return dit.weights[f"blocks.{branch // 2}.{'attn.proj' if branch % 2 == 0 else 'mlp.fc2'}.bias"]

        def sample(table, cache, dtype=torch.float32):
            network = dit.to(dtype)
            run = dict(steps=steps, guidance=guidance, clip=clip, table=table, cache=cache)
            return ddim_samples(network, noise.to(dtype), labels, **run)

        tensors |= {f"{name}.noise": noise, f"{name}.labels": labels}
        for seed, kind in enumerate(["random", "router"]):
            table = reuse_table(kind, 810 + 10 * ord(name) + seed, steps, branches)
            images = {stored: sample(table, Cache(stored)) for stored in STORED}
            for stored, image in images.items():
                assert torch.isfinite(image).all()
                check_twin(f"{name}.{kind}.{stored}", image, sample(table, Cache(stored), torch.float64))
                tensors[f"{name}.{kind}.{stored}"] = image
            tensors[f"{name}.{kind}.table"] = table
            broken = {"old gate": OldGate(gates), "no bias": NoBias(bias), "stale": Stale()}
            broken = {what: sample(table, cache) for what, cache in broken.items()} | {"f16": images["f16"]}
            figures = check_caches(f"{name}.{kind}", images["f32"], sample(None, None), broken)
            caught = {what: max(off, caught.get(what, 0)) for what, off in figures.items()}
            if kind == "random" and name in "ac":
                table = table.clone()
                table[resumed_at] = 1
                tensors[f"{name}.random.resumed"] = sample(table, Cache())
                figures = check_caches(f"{name}.random.resumed", tensors[f"{name}.random.resumed"], images["f32"], {})
    assert all(off > 1e-3 for what, off in caught.items() if what != "f16"), caught
    metadata = {f"clip_{name}": "true" if name == "b" else "false" for name in TINY}
    metadata |= {"steps": str(steps), "guidance": repr(guidance), "resumed_at": str(resumed_at)}
    write("cached.safetensors", tensors, metadata)


# ---------------------------------------------------------------------------------------------------------------------
# Forecasts


def forecast_run(dit, noise, labels, steps, guidance, skipped, clip, reference=None, parts={}):
    """Walks DDIM, skipping the network at `skipped` steps; with a `reference` (states of the uncached run) every step after
    the first takes for the clean image what ridge least squares says lands on it. At a step of `parts` only those branches are
    computed; in place of any other stands the line through its last two features, extended to the step. -> states,
    estimates [steps, 4]"""
    kept = {}  # by branch: step and feature, newest first
    run = Respaced(steps)
    x = torch.cat([noise, noise])
    n, states, history, estimates = len(noise), [noise], [], np.zeros((steps, 4))
    estimates[:, 0] = 1
    bounded = (lambda value: value.clamp(-1, 1)) if clip else (lambda value: value)
    for s in range(steps):
        signal, noise_share = math.sqrt(run.alpha_bar[s]), math.sqrt(1 - run.alpha_bar[s])
        after = run.previous[s].item()
        if s not in skipped:

            def feature(branch, fresh):
                if branch in parts.get(s, range(2 * dit.blocks)):
                    kept[branch] = [(s, fresh), *kept.get(branch, [])][:2]
                    return fresh
                (last, value), *older = kept[branch]
                return value + sum((value - f) * (s - last) / (last - k) for k, f in older)

            out = guided(dit, x, run.timesteps[s], labels, guidance, 3, feature)[:n, :4]
            history = ([bounded((x[:n] - noise_share * out) / signal)] + history)[:3]
        clean = history[0]

        def moved(clean):
            direction = (x[:n] - signal * clean) / noise_share
            return math.sqrt(after) * clean + math.sqrt(1 - after) * direction

        if reference is not None and s > 0:
            # The clean image that lands where the uncached run does.
            b = math.sqrt(1 - after) / noise_share
            wanted = (reference[s + 1].double() - b * x[:n].double()) / (math.sqrt(after) - signal * b)
            terms = torch.stack([h.double().flatten() for h in history + [x[:n]]], dim=1).numpy()
            size = 4  # zeros for the predictions that are not there yet
            ridge = 1e-6 * (terms**2).sum() / size
            prior = np.eye(terms.shape[1])[0]
            left = terms.T @ terms + ridge * np.eye(terms.shape[1])
            weights = np.linalg.solve(left, terms.T @ wanted.flatten().numpy() + ridge * prior)
            clean = sum(float(w) * h for w, h in zip(weights, history + [x[:n]]))
            clean = bounded(clean)
            estimates[s] = 0
            estimates[s, : len(history)] = weights[:-1]
            estimates[s, 3] = weights[-1]
        x = torch.cat([moved(clean)] * 2)
        states.append(x[:n])
    return states, torch.from_numpy(estimates)


# Steps that compute some branches of four, or none.
IN_PART = {1: [2, 3], 4: [], 6: [0, 3], 8: [1, 2, 3]}


def part_forecast():
    dit, steps, guidance = load_tiny("a").to(torch.float64), 10, 1.5
    noise, labels = normal(950, 6, 4, 8, 8).double(), torch.tensor([0, 1, 2, 3, 4, 6])
    tensors = {"noise": noise.float(), "labels": labels}
    for prefix, clip in [("", False), ("clipped.", True)]:
        uncached, _ = forecast_run(dit, noise, labels, steps, guidance, [], clip)
        expected = ddim_samples(dit, noise, labels, steps=steps, guidance=guidance, clip=clip)
        torch.testing.assert_close(uncached[-1], expected, atol=1e-9, rtol=1e-9)
        tensors[f"{prefix}uncached"] = uncached[-1].float()
        sets = {"even": ([1, 3, 5, 7, 9], {}), "some": ([2, 3, 6], {}), "parts": ([2, 7], IN_PART)}
        for name, (skipped, parts) in sets.items():
            states, estimates = forecast_run(dit, noise, labels, steps, guidance, skipped, clip, uncached, parts)
            plain, _ = forecast_run(dit, noise, labels, steps, guidance, skipped, clip, None, parts)
            off = [((image - uncached[-1]) ** 2).mean() for image in (states[-1], plain[-1])]
            print(f"  {prefix}{name}: error {off[0]:.3e} fitted, {off[1]:.3e} plain")
            assert off[0] < 0.7 * off[1]
            tensors |= {f"{prefix}{name}.skipped": torch.tensor(skipped), f"{prefix}{name}.estimates": estimates}
            tensors[f"{prefix}{name}.image"] = states[-1].float()
    write("forecast.safetensors", tensors, {"steps": str(steps), "guidance": repr(guidance)})


# ---------------------------------------------------------------------------------------------------------------------
# Run-time policies


class OfDiffusers:
    """A network of diffusers as `guided` calls it."""

    def __init__(self, model):
        self.model, self.null = model, model.config.num_embeds_ada_norm

    def both(self, labels):
        return [torch.cat([labels, torch.full_like(labels, self.null)])]

    def __call__(self, x, t, y, feature=None):
        return self.model(x, timestep=t, class_labels=y).sample


def part_hooks():
    import cache_dit
    from cache_dit.caching.patch_functors import DiTPatchFunctor
    from diffusers import DiTTransformer2DModel
    from diffusers.hooks import FirstBlockCacheConfig, apply_first_block_cache
    from diffusers.models.cache_utils import CacheMixin

    steps, guidance, folder = 20, 1.5, HERE / "hooks" / "transformer"
    shape = dict(num_layers=4, num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8)
    model = DiTTransformer2DModel(**shape, sample_size=8, patch_size=2, num_embeds_ada_norm=5).eval()
    generator = torch.Generator().manual_seed(900)
    state = {k: alive(k, v.shape, generator) for k, v in model.state_dict().items()}
    embedder = re.compile(r"blocks\.\d\.norm1\.emb")
    model.load_state_dict({k: state[embedder.sub("blocks.0.norm1.emb", k)] for k in state})
    model.save_pretrained(folder, safe_serialization=True)
    noise, labels = normal(901, 2, 4, 8, 8), torch.tensor([1, 4])
    tensors = {"noise": noise, "labels": labels}
    for policy in HOOKS:
        hooked = DiTTransformer2DModel(**shape, sample_size=8, patch_size=2, num_embeds_ada_norm=5).eval()
        hooked.load_state_dict(model.state_dict())
        name, *numbers = policy.split(":")
        middle = []
        # The second block is the first of the middle, or the third where two are in front.
        of_middle = hooked.transformer_blocks[2 if numbers[0] == "2" else 1]
        of_middle.ff.register_forward_hook(lambda *_: middle.append(True))
        if name == "fb":
            apply_first_block_cache(hooked, FirstBlockCacheConfig(threshold=float(numbers[0])))
        else:
            front, rear, threshold, warmup, *most = numbers
            config = cache_dit.DBCacheConfig(
                Fn_compute_blocks=int(front),
                Bn_compute_blocks=int(rear),
                residual_diff_threshold=float(threshold),
                max_warmup_steps=int(warmup),
                max_continuous_cached_steps=int(most[0]) if most else -1,
                num_inference_steps=steps,
            )
            adapter = cache_dit.BlockAdapter(
                transformer=hooked,
                blocks=hooked.transformer_blocks,
                forward_pattern=cache_dit.ForwardPattern.Pattern_3,
                check_forward_pattern=False,
                check_num_outputs=False,
                patch_functor=DiTPatchFunctor(),
            )
            cache_dit.enable_cache(adapter, cache_config=config)
        network, computed = OfDiffusers(hooked), []

        def counted(*args, **kwargs):
            middle.clear()
            out = network(*args, **kwargs)
            computed.append(bool(middle))
            return out

        counted.both = network.both
        with CacheMixin.cache_context(hooked, "run"):
            image = ddim_samples(counted, noise, labels, steps=steps, guidance=guidance)
        assert torch.isfinite(image).all() and len(computed) == steps
        print(f"  {policy}: {''.join('.#'[c] for c in computed)}")
        tensors[f"image.{policy}"] = image
        tensors[f"computed.{policy}"] = torch.tensor(computed, dtype=torch.uint8)
    write("hooks.safetensors", tensors, {"steps": str(steps), "guidance": repr(guidance)})


# ---------------------------------------------------------------------------------------------------------------------
# Router files


class Router(torch.nn.Module):
    def __init__(self, logits):
        super().__init__()
        self.prob = torch.nn.Parameter(logits.clone())


def part_router():
    steps, branches, threshold = 10, 4, 0.1
    executed = {}
    for seed, name in enumerate(["harmonica", "l2c"]):
        logits = normal(600 + seed, steps, branches, std=2.5)  # row 0 is the least noisy step
        if name == "harmonica":
            logits[-1] = 5.0
        routers = torch.nn.ModuleList(Router(row) for row in logits)
        # An optimizer state as training leaves it; what moved is put back afterwards.
        optimizer = torch.optim.AdamW(routers.parameters(), lr=0.01, weight_decay=0.0)
        for router in routers[:-1]:
            optimizer.zero_grad()
            router.prob.sigmoid().sum().backward()
            optimizer.step()
        with torch.no_grad():
            for router, row in zip(routers, logits):
                router.prob.copy_(row)
        saved = {"routers": routers.state_dict(), "opt": optimizer.state_dict()}
        saved["args"] = argparse.Namespace(threshold=threshold)
        assert list(saved["routers"]) == [f"{i}.prob" for i in range(steps)] and saved["opt"]["state"]
        path = HERE / f"{name}-router.pt"
        if name == "harmonica":
            # The authors' files come from a multi-GPU run: their storages are tagged with the device that held them.
            with mock.patch("torch.serialization.location_tag", lambda storage: "cuda:3"):
                torch.save(saved, path)
            assert b"cuda:3" in path.read_bytes()
            torch.save(saved["routers"], HERE / "router-bare.pt")
        else:
            torch.save(saved, path)
        again = torch.load(path, map_location="cpu", weights_only=False)["routers"]
        assert torch.equal(torch.stack([again[f"{i}.prob"] for i in range(steps)]), logits)
        executed[name] = logits.flip(0)

    schedule = (torch.sigmoid(executed["harmonica"]) > threshold).to(torch.uint8)
    l2c_schedule = (torch.sigmoid(executed["l2c"]) > threshold).to(torch.uint8)
    for s in range(steps):
        if (steps - 1 - s) % 2 == 1:  # only even indices, counted from the least noisy step, act
            l2c_schedule[s] = 1
    assert schedule[0].all() and l2c_schedule[0].all()
    for table in (schedule, l2c_schedule):
        assert 0.1 < 1 - table.float().mean() < 0.6
    tables = {"logits": executed["harmonica"], "schedule": schedule}
    write("router.io.safetensors", tables | {"l2c_logits": executed["l2c"], "l2c_schedule": l2c_schedule})


# ---------------------------------------------------------------------------------------------------------------------
# The bundled model


def part_bundled():
    weights = {name: value.float() for name, value in load_file(ASSET).items()}
    with safe_open(ASSET, "pt") as file:
        config = json.loads(file.metadata()["harmonica"])["config"]
    dim, channels, patch, _ = weights["x_embedder.proj.weight"].shape
    size = 32
    weights["pos_embed"] = sin_cos_positions(dim, size // patch, size // patch)[None]
    dit = Dit(weights, config["heads"])
    assert dit.null_label == config["classes"] == 46 and channels == 3

    noise, labels = normal(700, 4, channels, size, size), torch.tensor([0, 11, 23, 45])
    x, t, y = normal(701, 4, channels, size, size), torch.tensor([0.0, 250.0, 500.0, 999.0]), torch.tensor([7, 30, 45, 46])
    run = dict(steps=50, guidance=2.0)
    write(
        "bundled.safetensors",
        {
            "noise": noise,
            "labels": labels,
            "samples": ddim_samples(dit, noise, labels, clip=False, **run),
            "samples_clipped": ddim_samples(dit, noise, labels, clip=True, **run),
            "fwd_x": x,
            "fwd_t": t,
            "fwd_y": y,
            "fwd_out": dit(x, t, y),
        },
    )


PARTS = {
    "forward": part_forward,
    "diffusers": part_diffusers,
    "solver": part_solver,
    "multistep": part_multistep,
    "trajectories": part_trajectories,
    "sdt": part_sdt,
    "pairs": part_pairs,
    "cached": part_cached,
    "forecast": part_forecast,
    "hooks": part_hooks,
    "router": part_router,
    "bundled": part_bundled,
}


def run_parts(parts, optional=(), with_grad=()):
    """What the command line asks for: all of `parts` but the `optional` ones where it names none."""
    parser = argparse.ArgumentParser(description="Writes the golden tensors of the tests beside this script.")
    but = f" but {', '.join(optional)}" if optional else ""
    parser.add_argument("part", nargs="*", help=f"{', '.join(parts)}; all{but} if none is named")
    names = parser.parse_args().part or [name for name in parts if name not in optional]
    if unknown := set(names) - set(parts):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(parts)}")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for name in names:
        print(name, flush=True)
        with torch.set_grad_enabled(name in with_grad):
            parts[name]()


if __name__ == "__main__":
    run_parts(PARTS, optional=["bundled"], with_grad=["sdt", "pairs", "router"])
