"""Golden tensors for training a DiT: what a plain PyTorch program computes, for the Rust tests to compare with.

    python tests/golden/make_train.py                      # every part
    python tests/golden/make_train.py pretrain crop vae    # the same

Needs torch, numpy, safetensors and Pillow; part vae also diffusers. Files are written beside this script, always the same ones. Nothing here is
shared with the Rust code: it is a second reading of the formulas of Improved DDPM (arXiv 2102.09672) and of the public
DiT release's `training_losses`, written to be obvious. Everything is computed in float64 and stored in float32.

Parts
  pretrain  pretrain.safetensors: a tiny DiT (`weight.<name>`) and three batches of six images: images, noise
            [3,6,3,8,8] f32, timesteps, labels [3,6] i64 (labels after dropout: 4 is the null label).
              grad.<name>      gradient of the first batch's loss, before clipping
              losses [3,3]     mse, vlb (bits), norm of the gradient before clipping, of every batch in turn
              snr [2]          loss and gradient norm of the first batch under Min-SNR weighting, gamma 5
              after.<name>, ema.<name>   weights and their average after three steps of AdamW, one a batch
              muon.<name>, muon_ema.<name>   the same where Muon moves the weights of attention and MLP
              bf16.<name>, bf16_losses [3]   gradient and losses of the first batch where the products of attention and MLP have
                               factors in bf16, those of their gradients too: x·W, g·Wᵀ and xᵀ·g of rounded x, W and g
            Pixels lie on the 256 levels, many of them on the lowest and the highest; timestep 0 is among those of every
            batch, so the discretised likelihood takes part with all three of its cases.
  vae       vae-train.safetensors: diffusers' AutoencoderKL of vae/kl in training. Three batches: images [3,2,3,24,20] in [-1, 1]
            and noise [3,2,4,6,5], which makes latents of moments.
              losses [3,5]     weighted sum, mean absolute error of pixels, the same of differences between neighbours at three
                               sizes, divergence a latent number, norm of the gradient before clipping, of every batch in turn
              grad.<name>      gradient of the first batch's loss, before clipping
              after.<name>     weights after three steps of AdamW, one a batch
  crop      crop.safetensors: pictures `in.<i>` [H,W,3] u8 and ADM's center crop of them, `out.<i>` [24,24,3] u8, by Pillow.
"""

import math
import pathlib
import sys

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from make import Dit, random_dit, write

SPEC = dict(height=8, width=8, patch=2, channels=3, hidden=16, blocks=2, heads=2, classes=4, learn_sigma=True)
LR, BETAS, DECAY, CLIP, EMA, GAMMA = 2e-3, (0.9, 0.99), 0.05, 0.5, 0.9, 5.0


# ---------------------------------------------------------------------------------------------------------------------
# The objective

BETA = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
ALPHA = 1 - BETA
BAR = torch.cumprod(ALPHA, 0)
BAR_PREV = torch.cat([torch.ones(1, dtype=torch.float64), BAR[:-1]])
POSTERIOR = BETA * (1 - BAR_PREV) / (1 - BAR)
LOG_POSTERIOR = torch.log(torch.cat([POSTERIOR[1:2], POSTERIOR[1:]]))


def at(table, t):
    return table[t][:, None, None, None]


def posterior_mean(x0, xt, t):
    of_x0 = BETA * BAR_PREV.sqrt() / (1 - BAR)
    of_xt = (1 - BAR_PREV) * ALPHA.sqrt() / (1 - BAR)
    return at(of_x0, t) * x0 + at(of_xt, t) * xt


def normal_kl(mean1, logvar1, mean2, logvar2):
    return 0.5 * (-1 + logvar2 - logvar1 + (logvar1 - logvar2).exp() + (mean1 - mean2) ** 2 * (-logvar2).exp())


def discretised_log_likelihood(x, mean, log_scale):
    def cdf(x):
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    plus = cdf((x - mean + 1 / 255) * (-log_scale).exp())
    minus = cdf((x - mean - 1 / 255) * (-log_scale).exp())
    inside = torch.log((plus - minus).clamp(min=1e-12))
    low, high = torch.log(plus.clamp(min=1e-12)), torch.log((1 - minus).clamp(min=1e-12))
    return torch.where(x < -0.999, low, torch.where(x > 0.999, high, inside))


def losses(dit, x0, noise, t, y):
    """mse and vlb (bits a value) of every image."""
    xt = at(BAR.sqrt(), t) * x0 + at((1 - BAR).sqrt(), t) * noise
    eps, v = dit(xt, t, y).chunk(2, dim=1)
    mse = ((eps - noise) ** 2).flatten(1).mean(1)
    frac = (v + 1) / 2
    log_variance = frac * at(BETA.log(), t) + (1 - frac) * at(LOG_POSTERIOR, t)
    predicted = (xt - at((1 - BAR).sqrt(), t) * eps.detach()) / at(BAR.sqrt(), t)
    mean = posterior_mean(predicted, xt, t)
    kl = normal_kl(posterior_mean(x0, xt, t), at(LOG_POSTERIOR, t), mean, log_variance).flatten(1).mean(1)
    nll = -discretised_log_likelihood(x0, mean, 0.5 * log_variance).flatten(1).mean(1)
    return mse, torch.where(t == 0, nll, kl) / math.log(2)


# ---------------------------------------------------------------------------------------------------------------------
# Parts


def batches():
    generator = torch.Generator().manual_seed(5)
    shape = (3, 6, 3, 8, 8)
    images = (torch.randn(shape, generator=generator) * 160 + 128).round().clamp(0, 255) / 127.5 - 1
    noise = torch.randn(shape, generator=generator)
    timesteps = torch.tensor([[0, 1, 250, 500, 999, 0], [0, 3, 40, 800, 998, 100], [7, 650, 0, 321, 900, 2]])
    labels = torch.tensor([[0, 1, 4, 3, 2, 4], [3, 4, 0, 1, 1, 2], [2, 2, 4, 0, 3, 1]])
    for edge in (-1, 1):
        assert ((images == edge).float().mean() > 0.1).item()
    return images, noise, timesteps, labels


def newton_schulz(g):
    """Keller Jordan's quintic iteration; the matrix as PyTorch stores it, `[outputs, inputs]`."""
    x = g / (g.norm() + 1e-7)
    if x.shape[0] > x.shape[1]:
        return newton_schulz(g.T).T
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x


def branch_matrices(trained):
    """What Muon moves: the matrices of attention and MLP."""
    return {k: w for k, w in trained.items() if w.ndim == 2 and (".attn." in k or ".mlp." in k) and k.startswith("blocks.")}


class Muon:
    """As `torch.optim.Muon` with `adjust_lr_fn="match_rms_adamw"`, but in the precision of its weights; qkv is three matrices."""

    def __init__(self, weights, lr, decay):
        self.weights, self.lr, self.decay = weights, lr, decay
        self.buffers = {k: torch.zeros_like(w) for k, w in weights.items()}

    @torch.no_grad()
    def step(self):
        for name, w in self.weights.items():
            buffer = self.buffers[name].lerp_(w.grad, 1 - 0.95)
            update = w.grad.lerp(buffer, 0.95)
            parts = [newton_schulz(part) * 0.2 * max(part.shape) ** 0.5 for part in update.chunk(3 if "qkv" in name else 1)]
            w.mul_(1 - self.lr * self.decay).sub_(self.lr * torch.cat(parts))


def optimizer_steps(dit, data, optimizers, after_backward=lambda step: None):
    """Weights and their average after a step on every batch, with clipping before it; mse, vlb and norm of each."""
    trained = {k: w for k, w in dit.weights.items() if k != "pos_embed"}
    average = {k: w.detach().clone() for k, w in trained.items()}
    figures = []
    for step, batch in enumerate(zip(*data)):
        mse, vlb, _ = backward(dit, batch)
        figures.append([mse, vlb, gradient_norm(trained)])
        after_backward(step)
        torch.nn.utils.clip_grad_norm_(trained.values(), CLIP)
        for optimizer in optimizers:
            optimizer.step()
        keep = min(EMA, (step + 1) / (step + 11))
        for k, w in trained.items():
            average[k] = keep * average[k] + (1 - keep) * w.detach()
    assert all(f[2] > CLIP for f in figures), "clipping takes part"
    return trained, average, torch.tensor(figures)


def gradient_norm(trained):
    return math.sqrt(sum(w.grad.square().sum().item() for w in trained.values()))


def backward(dit, batch, weight=lambda t: 1.0):
    images, noise, timesteps, labels = batch
    for w in dit.weights.values():
        w.grad = None
    mse, vlb = losses(dit, images.double(), noise.double(), timesteps, labels)
    loss = (weight(timesteps) * mse + vlb).mean()
    loss.backward()
    return mse.mean().item(), vlb.mean().item(), loss.item()


class RoundedProduct(torch.autograd.Function):
    @staticmethod
    def rounded(x):
        return x.float().bfloat16().double()

    @staticmethod
    def forward(context, x, weight):
        x, weight = map(RoundedProduct.rounded, (x, weight))
        context.save_for_backward(x, weight)
        return x @ weight.T

    @staticmethod
    def backward(context, gradient):
        x, weight = context.saved_tensors
        gradient = RoundedProduct.rounded(gradient)
        return gradient @ weight, gradient.flatten(0, 1).T @ x.flatten(0, 1)


class RoundedDit(Dit):
    def linear(self, name, x):
        weight, bias = self.weights[name + ".weight"], self.weights[name + ".bias"]
        if name.startswith("blocks.") and (".attn." in name or ".mlp." in name):
            return RoundedProduct.apply(x, weight) + bias
        return super().linear(name, x)


def part_pretrain():
    data = images, noise, timesteps, labels = batches()
    start = random_dit(77, **SPEC)
    out = {}

    def fresh():
        dit = start.to(torch.float64)
        trained = {k: w.requires_grad_() for k, w in dit.weights.items() if k != "pos_embed"}
        return dit, trained

    dit, trained = fresh()
    snr = BAR / (1 - BAR)
    _, _, weighted = backward(dit, [part[0] for part in data], lambda t: snr[t].clamp(max=GAMMA) / snr[t])
    out["snr"] = torch.tensor([weighted, gradient_norm(trained)])

    def keep_gradient(step):
        if step == 0:
            out.update({f"grad.{k}": w.grad.clone() for k, w in trained.items()})

    adamw = torch.optim.AdamW(trained.values(), lr=LR, betas=BETAS, eps=1e-8, weight_decay=DECAY)
    after, average, out["losses"] = optimizer_steps(dit, data, [adamw], keep_gradient)
    out |= {f"after.{k}": w for k, w in after.items()} | {f"ema.{k}": w for k, w in average.items()}

    dit, trained = fresh()
    branches = branch_matrices(trained)
    assert len(branches) == 4 * SPEC["blocks"]
    rest = [w for k, w in trained.items() if k not in branches]
    adamw = torch.optim.AdamW(rest, lr=LR, betas=BETAS, eps=1e-8, weight_decay=DECAY)
    after, average, _ = optimizer_steps(dit, data, [Muon(branches, LR, DECAY), adamw])
    out |= {f"muon.{k}": w for k, w in after.items()} | {f"muon_ema.{k}": w for k, w in average.items()}

    dit, trained = fresh()
    mse, vlb, _ = backward(RoundedDit(dit.weights, dit.heads), [part[0] for part in data])
    out["bf16_losses"] = torch.tensor([mse, vlb, gradient_norm(trained)])
    out |= {f"bf16.{k}": w.grad.clone() for k, w in trained.items()}

    out = {k: v.detach().float() for k, v in out.items()}
    out |= {f"weight.{k}": w for k, w in start.weights.items() if k != "pos_embed"}
    write("pretrain.safetensors", out | {"images": images, "noise": noise, "timesteps": timesteps, "labels": labels})


KL_WEIGHT, GRADIENT_WEIGHT, AREA_WEIGHT = 0.03, 0.7, 1.3


def vae_losses(vae, images, noise):
    posterior = vae.encode(images).latent_dist
    back = vae.decode(posterior.mean + posterior.std * noise).sample
    error, edges = (images - back).abs().mean(), 0.0
    for scale in (1, 2, 4):
        a, b = (torch.nn.functional.avg_pool2d(x, scale) if scale > 1 else x for x in (images, back))
        for dim in (2, 3):
            edges = edges + (torch.diff(a, dim=dim) - torch.diff(b, dim=dim)).abs().mean()
    kl = posterior.kl().sum() / noise.numel()
    areas = torch.nn.functional.avg_pool2d(images - back, 4).square().mean()
    return error + GRADIENT_WEIGHT * edges + AREA_WEIGHT * areas + KL_WEIGHT * kl, error, edges, areas, kl


def part_vae():
    from diffusers import AutoencoderKL

    folder = pathlib.Path(__file__).resolve().parent / "vae" / "kl"
    vae = AutoencoderKL.from_pretrained(folder).double()
    trained = dict(vae.named_parameters())
    random = torch.Generator().manual_seed(41)
    draw = lambda *shape: torch.randn(*shape, generator=random, dtype=torch.float64).float()
    images, noise = draw(3, 2, 3, 24, 20).mul(0.5).clamp(-1, 1), draw(3, 2, 4, 6, 5)
    adamw = torch.optim.AdamW(trained.values(), lr=LR, betas=BETAS, eps=1e-8, weight_decay=0)
    out, figures = {}, []
    for step in range(3):
        adamw.zero_grad()
        losses = vae_losses(vae, images[step].double(), noise[step].double())
        losses[0].backward()
        figures.append([*(loss.item() for loss in losses), gradient_norm(trained)])
        if step == 0:
            out.update({f"grad.{k}": w.grad.clone() for k, w in trained.items()})
        torch.nn.utils.clip_grad_norm_(trained.values(), CLIP)
        adamw.step()
    assert all(f[-1] > CLIP for f in figures), "clipping takes part"
    out |= {f"after.{k}": w for k, w in trained.items()}
    out = {k: v.detach().float().contiguous() for k, v in out.items()}
    write("vae-train.safetensors", out | {"images": images, "noise": noise, "losses": torch.tensor(figures).float()})


def part_crop(size=24):
    random = np.random.default_rng(3)
    out = {}
    for i, (height, width) in enumerate([(24, 24), (37, 50), (70, 49), (17, 21), (101, 130)]):
        y, x = np.mgrid[0:height, 0:width]
        smooth = np.stack([128 + 120 * np.sin(x / 5 + c) * np.cos(y / (7 - c)) for c in range(3)], axis=-1)
        noisy = smooth + random.normal(0, 30, smooth.shape)
        picture = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
        out[f"in.{i}"] = torch.tensor(np.asarray(picture))
        while min(*picture.size) >= 2 * size:
            picture = picture.resize(tuple(side // 2 for side in picture.size), resample=Image.BOX)
        scale = size / min(*picture.size)
        picture = picture.resize(tuple(round(side * scale) for side in picture.size), resample=Image.BICUBIC)
        pixels = np.asarray(picture)
        top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
        out[f"out.{i}"] = torch.tensor(pixels[top : top + size, left : left + size].copy())
    write("crop.safetensors", out)


if __name__ == "__main__":
    parts = {"pretrain": part_pretrain, "crop": part_crop, "vae": part_vae}
    for name in sys.argv[1:] or parts:
        parts[name]()
        print("wrote", name)
