"""Golden tensors for PixArt, the second family of networks: what diffusers and a plain PyTorch program compute.

    python tests/golden/make_pixart.py                  # every part
    python tests/golden/make_pixart.py cached sdt       # only these

Needs torch, numpy, safetensors and diffusers. Written like make.py, whose helpers it uses, beside it.

Parts
  pixart   Two tiny networks with nothing switched off: 8x8 latents of 4 channels, patch 2, hidden 24, 2 blocks, 3 heads,
           captions of 5 tokens of 32. As diffusers writes them, in pixart-{alpha,ms}/transformer, and the same weights
           under the names of the authors' release, in pixart-original.pth and pixart-ms-original.pth.
             alpha  trained a little, as the parts below need a network that denoises
             ms     random, with the micro-conditions of the 1024-MS model and interpolation_scale 2
           pixart.io.safetensors: x, t, text, mask [B,5] i64 -> out, which is diffusers' own, for `alpha.` [3,4,8,8],
           `alpha_wide.` [2,4,8,12], `ms.` [2,4,8,8], `ms_tall.` [2,4,12,8]; the last two with resolution [2,2] (height,
           width) and aspect_ratio [2,1].
  cached   pixart-cached.safetensors: DDIM runs of alpha, as part `cached` of make.py has them, but all four channels are
           guided, by 4.5: noise [2,4,8,8], text [2,5,32], mask [2,5] i64, null_text [5,32], null_mask [5] i64,
           random.table [6,6] u8 -> random.{f32,f16}, full (nothing reused), and wide.noise [2,4,8,12] -> wide.random.f32.
  sdt      sdt-pixart.safetensors: Step-Wise Denoising Training of a router for alpha. As sdt-*.safetensors of make.py, with
           text [12,2,5,32], mask [12,2,5] i64, null_text and null_mask in place of labels.

How it reads what could be read in two ways
  - A block has three branches in the order of execution: 3b self-attention, 3b + 1 cross-attention, 3b + 2 MLP. The
    feature is a branch's output before its gate; cross-attention has no gate, and no norm before it.
  - The unconditional half is a caption like any other, with a mask of its own.
  - The sigma channels take no part in sampling, but they do in the mean of the loss, as they do for DiT.
  - "Always the same files" ends where training begins, as in make.py: `cached` and `sdt` read pixart-original.pth.
"""

import math
import pathlib
import sys
from collections import OrderedDict
from dataclasses import dataclass

import torch
import torch.nn.functional as F

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from make import (
    HERE,
    STORED,
    Cache,
    NoBias,
    OldGate,
    Respaced,
    Sdt,
    Stale,
    alive,
    check_alive,
    check_caches,
    check_twin,
    ddim_samples,
    normal,
    reuse_table,
    run_parts,
    sdt_run,
    sin_cos_positions,
    waves,
    write,
)

HIDDEN, BLOCKS, HEADS, TEXT, TOKENS, SIDE = 24, 2, 3, 32, 5, 8
SCALE = {"alpha": 1, "ms": 2}


# ---------------------------------------------------------------------------------------------------------------------
# The network


@dataclass
class PixArt:
    """A PixArt as a state dict in the names of the authors' release, and what its shapes do not tell: the interpolation
    scale, and the caption (text, mask) of the unconditional half."""

    weights: dict
    scale: float
    null: tuple = None

    def both(self, caption):
        """The conditions of a guided batch: what the network takes behind x and t, for both halves at once."""
        return [torch.cat([given, null.expand(given.shape)]) for given, null in zip(caption, self.null)]

    def to(self, dtype):
        return PixArt({k: v.to(dtype) for k, v in self.weights.items()}, self.scale, self.null)

    @property
    def dtype(self):
        return self.weights["t_block.1.weight"].dtype

    def linear(self, name, x):
        return F.linear(x, self.weights[name + ".weight"], self.weights[name + ".bias"])

    def positions(self, rows, cols):
        return sin_cos_positions(HIDDEN, rows, cols, SIDE // 2, self.scale)

    def embedded(self, name, values):
        return self.linear(f"{name}.mlp.2", F.silu(self.linear(f"{name}.mlp.0", waves(values).to(self.dtype))))

    def conditioning(self, t, resolution=None, aspect_ratio=None):
        e = self.embedded("t_embedder", t)
        if resolution is not None:
            height, width = (self.embedded("csize_embedder", resolution[:, i]) for i in (0, 1))
            e = e + torch.cat([height, width, self.embedded("ar_embedder", aspect_ratio[:, 0])], dim=1)
        return e

    def modulation(self, block, e):
        """Shift, scale and gate of the self-attention, then of the MLP; each [B, 1, dim]."""
        six = self.linear("t_block.1", F.silu(e)).reshape(len(e), 6, HIDDEN)
        return (six + self.weights[f"blocks.{block}.scale_shift_table"]).split(1, dim=1)

    def attend(self, q, k, v, bias=0.0):
        q, k, v = (z.reshape(len(z), -1, HEADS, HIDDEN // HEADS).transpose(1, 2) for z in (q, k, v))
        weight = torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(HIDDEN // HEADS) + bias, dim=-1)
        return (weight @ v).transpose(1, 2).flatten(2)

    def self_attention(self, name, x):
        q, k, v = self.linear(f"{name}.qkv", x).chunk(3, dim=-1)
        return self.linear(f"{name}.proj", self.attend(q, k, v))

    def cross_attention(self, name, x, text, mask):
        q, (k, v) = self.linear(f"{name}.q_linear", x), self.linear(f"{name}.kv_linear", text).chunk(2, dim=-1)
        bias = (1 - mask[:, None, None, :].to(x.dtype)) * -10000
        return self.linear(f"{name}.proj", self.attend(q, k, v, bias))

    def mlp(self, name, x):
        return self.linear(f"{name}.fc2", F.gelu(self.linear(f"{name}.fc1", x), approximate="tanh"))

    def __call__(self, x, t, text, mask, resolution=None, aspect_ratio=None, feature=lambda site, fresh: fresh):
        """x [B,C,H,W], t [B], text [B,L,32], mask [B,L] -> [B,2C,H,W]. `feature(site, fresh)` returns what takes the place
        of a branch's output before the gate."""
        w = self.weights
        rows, cols = x.shape[2] // 2, x.shape[3] // 2
        e = self.conditioning(t, resolution, aspect_ratio)
        text = self.mlp("y_embedder.y_proj", text.to(self.dtype))

        def modulated(x, shift, scale):
            return F.layer_norm(x, [HIDDEN], eps=1e-6) * (1 + scale) + shift

        x = F.conv2d(x, w["x_embedder.proj.weight"], w["x_embedder.proj.bias"], stride=2).flatten(2).transpose(1, 2)
        x = x + self.positions(rows, cols).to(self.dtype)
        for b in range(BLOCKS):
            shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(b, e)
            fresh = self.self_attention(f"blocks.{b}.attn", modulated(x, shift_a, scale_a))
            x = x + gate_a * feature(3 * b, fresh)
            x = x + feature(3 * b + 1, self.cross_attention(f"blocks.{b}.cross_attn", x, text, mask))
            x = x + gate_m * feature(3 * b + 2, self.mlp(f"blocks.{b}.mlp", modulated(x, shift_m, scale_m)))
        shift, scale = (e[:, None] + w["final_layer.scale_shift_table"]).split(1, dim=1)
        x = self.linear("final_layer.linear", modulated(x, shift, scale)).reshape(len(x), rows, cols, 2, 2, 8)
        return torch.einsum("nhwpqc->nchpwq", x).reshape(len(x), 8, 2 * rows, 2 * cols)


def random_pixart(seed, name):
    shapes = {}

    def layer(name, out, *into):
        shapes[name + ".weight"], shapes[name + ".bias"] = (out, *into), (out,)

    layer("x_embedder.proj", HIDDEN, 4, 2, 2)
    layer("t_embedder.mlp.0", HIDDEN, 256)
    layer("t_embedder.mlp.2", HIDDEN, HIDDEN)
    if name == "ms":
        for embedder in ("csize_embedder", "ar_embedder"):
            layer(f"{embedder}.mlp.0", HIDDEN // 3, 256)
            layer(f"{embedder}.mlp.2", HIDDEN // 3, HIDDEN // 3)
    layer("t_block.1", 6 * HIDDEN, HIDDEN)
    shapes["y_embedder.y_embedding"] = (TOKENS, TEXT)
    layer("y_embedder.y_proj.fc1", HIDDEN, TEXT)
    layer("y_embedder.y_proj.fc2", HIDDEN, HIDDEN)
    for b in range(BLOCKS):
        shapes[f"blocks.{b}.scale_shift_table"] = (6, HIDDEN)
        layer(f"blocks.{b}.attn.qkv", 3 * HIDDEN, HIDDEN)
        layer(f"blocks.{b}.attn.proj", HIDDEN, HIDDEN)
        layer(f"blocks.{b}.cross_attn.q_linear", HIDDEN, HIDDEN)
        layer(f"blocks.{b}.cross_attn.kv_linear", 2 * HIDDEN, HIDDEN)
        layer(f"blocks.{b}.cross_attn.proj", HIDDEN, HIDDEN)
        layer(f"blocks.{b}.mlp.fc1", 4 * HIDDEN, HIDDEN)
        layer(f"blocks.{b}.mlp.fc2", HIDDEN, 4 * HIDDEN)
    shapes["final_layer.scale_shift_table"] = (2, HIDDEN)
    layer("final_layer.linear", 2 * 2 * 8, HIDDEN)
    generator = torch.Generator().manual_seed(seed)
    weights = {key: alive(key, shape, generator) for key, shape in shapes.items()}
    for key in weights:
        if "scale_shift_table" in key:
            weights[key] *= 2.0
    positions = sin_cos_positions(HIDDEN, SIDE // 2, SIDE // 2, SIDE // 2, SCALE[name])[None]
    return PixArt({"pos_embed": positions} | weights, SCALE[name])


def captions():
    """text [6,5,32] and mask [6,5] of different lengths; the last is what the unconditional half is given."""
    lengths = torch.tensor([5, 3, 4, 1, 2, 1])
    return normal(900, 6, TOKENS, TEXT), (torch.arange(TOKENS) < lengths[:, None]).long()


def with_null(pixart):
    text, mask = captions()
    pixart.null = text[-1], mask[-1]
    return pixart


def load_alpha():
    weights = torch.load(HERE / "pixart-original.pth", weights_only=True)["state_dict"]
    return with_null(PixArt(weights, SCALE["alpha"]))


@torch.enable_grad()
def denoiser(pixart, iterations=4000, batch=64, peak_lr=3e-3):
    """As make.py's: trained for a minute on 4x8x8 blots, smooth and alike under the same caption."""
    generator = torch.Generator().manual_seed(12)
    blots = lambda n: F.interpolate(torch.randn(n, 4, 2, 2, generator=generator), size=(8, 8), mode="bilinear")
    text, mask = captions()
    means = blots(len(text) - 1)
    parameters = [w.requires_grad_() for name, w in pixart.weights.items() if name not in FIXED]
    optimizer = torch.optim.Adam(parameters)
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0).float()
    for i in range(iterations):
        optimizer.param_groups[0]["lr"] = peak_lr * 0.5 * (1 + math.cos(math.pi * i / iterations))
        which = torch.randint(0, len(means), (batch,), generator=generator)
        x0 = means[which] + 0.5 * blots(batch)
        t = torch.randint(0, 1000, (batch,), generator=generator)
        noise = torch.randn(x0.shape, generator=generator)
        a = alpha_bar[t][:, None, None, None]
        which = torch.where(torch.rand(batch, generator=generator) < 0.1, len(means), which)
        eps = pixart(a.sqrt() * x0 + (1 - a).sqrt() * noise, t, text[which], mask[which])[:, :4]
        loss = (eps - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"  trained to a loss of {loss:.3f}")
    assert loss < 0.1, loss
    for w in parameters:
        w.requires_grad_(False)
    return pixart


# ---------------------------------------------------------------------------------------------------------------------
# Files

FIXED = ("pos_embed", "y_embedder.y_embedding")  # in the authors' files only


def to_diffusers(weights):
    state = {"scale_shift_table": weights["final_layer.scale_shift_table"]}

    def layer(source, *targets):
        for kind in ("weight", "bias"):
            for target, part in zip(targets, weights[f"{source}.{kind}"].chunk(len(targets))):
                state[f"{target}.{kind}"] = part.clone()

    layer("x_embedder.proj", "pos_embed.proj")
    for source, target in (("t", "timestep"), ("csize", "resolution"), ("ar", "aspect_ratio")):
        if f"{source}_embedder.mlp.0.weight" in weights:
            layer(f"{source}_embedder.mlp.0", f"adaln_single.emb.{target}_embedder.linear_1")
            layer(f"{source}_embedder.mlp.2", f"adaln_single.emb.{target}_embedder.linear_2")
    layer("t_block.1", "adaln_single.linear")
    layer("y_embedder.y_proj.fc1", "caption_projection.linear_1")
    layer("y_embedder.y_proj.fc2", "caption_projection.linear_2")
    for b in range(BLOCKS):
        ours, theirs = f"blocks.{b}", f"transformer_blocks.{b}"
        state[f"{theirs}.scale_shift_table"] = weights[f"{ours}.scale_shift_table"]
        layer(f"{ours}.attn.qkv", *(f"{theirs}.attn1.to_{i}" for i in "qkv"))
        layer(f"{ours}.attn.proj", f"{theirs}.attn1.to_out.0")
        layer(f"{ours}.cross_attn.q_linear", f"{theirs}.attn2.to_q")
        layer(f"{ours}.cross_attn.kv_linear", *(f"{theirs}.attn2.to_{i}" for i in "kv"))
        layer(f"{ours}.cross_attn.proj", f"{theirs}.attn2.to_out.0")
        layer(f"{ours}.mlp.fc1", f"{theirs}.ff.net.0.proj")
        layer(f"{ours}.mlp.fc2", f"{theirs}.ff.net.2")
    layer("final_layer.linear", "proj_out")
    return state


def diffusers_out(model, case):
    extra = {key: case.get(key) for key in ("resolution", "aspect_ratio")}
    return model(
        case["x"],
        encoder_hidden_states=case["text"],
        timestep=case["t"],
        added_cond_kwargs=extra,
        encoder_attention_mask=case["mask"],
    ).sample


def io_case(seed, name, height, width, lengths):
    batch = len(lengths)
    case = {
        "x": normal(seed, batch, 4, height, width),
        "t": torch.tensor([0.0, 500.0, 999.0] if batch == 3 else [40.0, 999.0]),
        "text": normal(seed + 1, batch, TOKENS, TEXT),
        "mask": (torch.arange(TOKENS) < torch.tensor(lengths)[:, None]).long(),
    }
    if name == "ms":
        case |= {
            "resolution": torch.tensor([[1024.0, 1024.0], [1344.0, 768.0]]),
            "aspect_ratio": torch.tensor([[1.0], [1.75]]),
        }
    return case


class Unsqueezed(PixArt):
    """Broken: positions of rectangular latents that do not keep to the base."""

    def positions(self, rows, cols):
        return sin_cos_positions(HIDDEN, rows, cols, (rows * cols) ** 0.5, self.scale)


def check_parts(prefix, pixart, case, out):
    """Every part of the network shows in `out`. Prints by how much."""

    def off(network=pixart, feature=lambda site, fresh: fresh, **changed):
        return (network(**(case | changed), feature=feature) - out).abs().max().item()

    def without(key):
        return PixArt(pixart.weights | {key: torch.zeros_like(pixart.weights[key])}, pixart.scale)

    shown = {}
    for b in range(BLOCKS):
        for i, branch in enumerate(("self-attention", "cross-attention", "MLP")):
            shown[f"{branch} {b}"] = off(feature=lambda site, f: torch.zeros_like(f) if site == 3 * b + i else f)
        shown[f"table {b}"] = off(without(f"blocks.{b}.scale_shift_table"))
    shown["last table"] = off(without("final_layer.scale_shift_table"))
    shown["mask"] = off(mask=torch.ones_like(case["mask"]))
    shown["text"] = off(text=case["text"].flip(0))
    if pixart.scale != 1:
        shown["interpolation scale"] = off(PixArt(pixart.weights, 1))
    if case["x"].shape[2] != case["x"].shape[3]:
        shown["squeezed positions"] = off(Unsqueezed(pixart.weights, pixart.scale))
    if "resolution" in case:
        shown["micro-conditions"] = off(resolution=None, aspect_ratio=None)
        shown["resolution"] = off(resolution=case["resolution"] * 0.9)
        shown["height for width"] = off(resolution=case["resolution"].flip(1))
        shown["aspect ratio"] = off(aspect_ratio=case["aspect_ratio"] + 0.1)
    print(f"  {prefix}: std {out.std():.2f}, left out or changed: " + ", ".join(f"{k} {v:.2g}" for k, v in shown.items()))
    assert all(v > 0.01 for v in shown.values())


def part_pixart():
    from diffusers import PixArtTransformer2DModel

    tensors = {}
    for seed, name in enumerate(["alpha", "ms"]):
        pixart = random_pixart(910 + seed, name)
        if name == "alpha":
            pixart = denoiser(pixart)
        model = PixArtTransformer2DModel(
            sample_size=SIDE,
            num_layers=BLOCKS,
            patch_size=2,
            in_channels=4,
            out_channels=8,
            num_attention_heads=HEADS,
            attention_head_dim=HIDDEN // HEADS,
            caption_channels=TEXT,
            cross_attention_dim=HIDDEN,
            use_additional_conditions=name == "ms",
            interpolation_scale=SCALE[name] if name == "ms" else None,
        ).eval()
        model.load_state_dict(to_diffusers(pixart.weights))
        torch.testing.assert_close(model.pos_embed.pos_embed, pixart.weights["pos_embed"])
        folder = HERE / f"pixart-{name}" / "transformer"
        model.save_pretrained(folder, safe_serialization=True)
        again = PixArtTransformer2DModel.from_pretrained(folder, low_cpu_mem_usage=False).eval()
        file = "pixart-original.pth" if name == "alpha" else "pixart-ms-original.pth"
        torch.save({"state_dict": OrderedDict(pixart.weights)}, HERE / file)

        if name == "alpha":
            cases = {"alpha": io_case(920, name, 8, 8, [5, 2, 1]), "alpha_wide": io_case(930, name, 8, 12, [3, 4])}
        else:
            cases = {"ms": io_case(940, name, 8, 8, [4, 2]), "ms_tall": io_case(950, name, 12, 8, [1, 3])}
        for prefix, case in cases.items():
            out = diffusers_out(model, case)
            assert torch.equal(diffusers_out(again, case), out)
            assert out.shape == (len(case["x"]), 8, *case["x"].shape[2:])
            check_alive(out)
            print(f"  {prefix}: diffusers differs by {(pixart(**case) - out).abs().max():.1e}")
            torch.testing.assert_close(pixart(**case), out, atol=1e-5, rtol=1e-5)
            check_parts(prefix, pixart, case, out)
            tensors |= {f"{prefix}.{key}": value for key, value in (case | {"out": out}).items()}
    write("pixart.io.safetensors", tensors)


# ---------------------------------------------------------------------------------------------------------------------
# Cached sampling runs and Step-Wise Denoising Training

GUIDANCE = 4.5


def part_cached():
    steps, pixart = 6, load_alpha()
    text, mask = captions()
    caption = text[[0, 1]], mask[[0, 1]]
    noise, wide = normal(960, 2, 4, 8, 8), normal(961, 2, 4, 8, 12)
    table = reuse_table("random", 962, steps, 3 * BLOCKS)
    timesteps = Respaced(steps).timesteps

    def gates(s, site):
        six = pixart.modulation(site // 3, pixart.conditioning(torch.full((4,), float(timesteps[s]))))
        return {0: six[2], 1: torch.ones(4, 1, HIDDEN), 2: six[5]}[site % 3].squeeze(1)

    def bias(site):
        last = ("attn.proj", "cross_attn.proj", "mlp.fc2")[site % 3]
        return pixart.weights[f"blocks.{site // 3}.{last}.bias"]

    def sample(noise, table, cache, dtype=torch.float32):
        run = dict(steps=steps, guidance=GUIDANCE, channels=4, table=table, cache=cache)
        return ddim_samples(pixart.to(dtype), noise.to(dtype), caption, **run)

    def checked(name, noise, table, stored):
        image = sample(noise, table, Cache(stored))
        check_twin(name, image, sample(noise, table, Cache(stored), torch.float64))
        return image

    images = {f"random.{stored}": checked(f"random.{stored}", noise, table, stored) for stored in STORED}
    images |= {"full": sample(noise, None, None), "wide.random.f32": checked("wide.random.f32", wide, table, "f32")}
    for name, x in (("random", noise), ("wide.random", wide)):
        broken = {"old gate": OldGate(gates), "no bias": NoBias(bias), "stale": Stale()}
        broken = {what: sample(x, table, cache) for what, cache in broken.items()}
        if name == "random":
            broken["f16"] = images["random.f16"]
        figures = check_caches(name, images[f"{name}.f32"], sample(x, None, None), broken)
        assert all(off > 1e-3 for off in figures.values())
    inputs = {
        "noise": noise,
        "text": caption[0],
        "mask": caption[1],
        "null_text": pixart.null[0],
        "null_mask": pixart.null[1],
    }
    metadata = {"steps": str(steps), "guidance": repr(GUIDANCE)}
    write("pixart-cached.safetensors", inputs | {"wide.noise": wide, "random.table": table} | images, metadata)


class PixArtSdt(Sdt):
    PASSES, LAMBDA_EVERY, GUIDANCE, GUIDED_CHANNELS = 12, 40, GUIDANCE, 4


# By this beta some scores rise and others fall; by this seed some lie at the threshold, which 12 updates of 0.01 let them
# pass, and more lie below it, among them neighbours (a cached feature serves several steps).
SDT_BETA, SDT_ROUTER_SEED = 4e-3, 2990


def part_sdt():
    pixart = load_alpha()
    noise = normal(970, PixArtSdt.PASSES, PixArtSdt.IMAGES, 4, 8, 8)
    which = torch.randint(0, 5, (PixArtSdt.PASSES, PixArtSdt.IMAGES), generator=torch.Generator().manual_seed(971))
    text, mask = (value[which] for value in captions())
    router_init = normal(SDT_ROUTER_SEED, PixArtSdt.STEPS, 3 * BLOCKS, std=1.5) - 0.5
    router_init[0] = 5.0
    inputs = {"text": text, "mask": mask, "null_text": pixart.null[0], "null_mask": pixart.null[1]}
    run = (pixart, "leave-one-out", SDT_BETA, router_init, noise, list(zip(text, mask)), inputs)
    relative = sdt_run("pixart", PixArtSdt, *run)
    assert relative.max() < 1e-4, relative


PARTS = {"pixart": part_pixart, "cached": part_cached, "sdt": part_sdt}

if __name__ == "__main__":
    run_parts(PARTS, with_grad=["sdt"])
