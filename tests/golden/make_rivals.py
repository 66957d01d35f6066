"""Golden decisions, weights and images of other people's caching policies.

    python tests/golden/make_rivals.py                   # every part
    python tests/golden/make_rivals.py foca cem          # only these; the others' stay as they are

Needs torch, numpy, safetensors and diffusers, and cache-dit (1.5.3) for `foca`. Written beside this script:
  rivals.json         one entry a part: `rule` says in words what was computed and where it comes from, and each case holds its
                      inputs and, under `expected`, what comes of them
  rivals.safetensors  the images of whole runs, [2,4,8,8], under the names that a run's `expected.image` gives; and `full`,
                      the image of the run that computes everything

Whole runs are those of part `hooks` of make.py: the network in hooks/transformer (4 blocks, 16 tokens of 16 numbers), `noise`
and `labels` of hooks.safetensors, 20 DDIM steps, guidance 1.5 on three channels.

What all parts have in common
  - Steps count from 0, the noisiest. `computed` is a string with a character for each step: 1 computes, 0 does not.
  - A whole batch decides together: two images, and for both the conditional and the unconditional half. Means of a policy's
    measure run over all of it. EasyCache alone looks at the conditional half only.
  - `weights` of a forecast lie beside `computed_steps`, oldest first: the forecast is their sum over what those steps gave.
  - Inputs are such that no decision hangs on a rounding: every number compared is more than 1e-3 of the threshold away from
    it (asserted), and float64 decides as float32 does.
"""

import contextlib
import io
import json
import math
import pathlib
import sys

import numpy as np
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from make import HERE, check_twin, ddim_samples, run_parts, write

STEPS, GUIDANCE = 20, 1.5


def bits(computed):
    return "".join("01"[bool(c)] for c in computed)


def far(value, threshold):
    """`value`, if it is not a hair from `threshold`."""
    value = float(value)
    assert abs(value - threshold) > 1e-3 * abs(threshold), (value, threshold)
    return value


def rounded(values, digits=6):
    return [round(float(v), digits) for v in values]


def listed(tensor):
    return tensor.double().flatten().tolist()


# ---------------------------------------------------------------------------------------------------------------------
# Forecasts: which weights the features of computed steps get


def features_at(steps, seed):
    """Three smooth functions of the step, for each of `steps`."""
    a, b, c = np.random.default_rng(seed).uniform(0.5, 1.5, 3)
    return [rounded([a * math.cos(s / 5 + b), b * s / 10 - 0.2 * c, c * math.exp(-s / 8)]) for s in steps]


def forecast_case(inputs, computed, last, seed, weights_at):
    """`weights_at(step, known)` for every step up to `last` that is not computed; `known` are the computed ones before."""
    features, expected = features_at(computed, seed), []
    for step in range(last + 1):
        if step not in computed:
            known = [s for s in computed if s < step]
            weights = weights_at(step, known)
            assert len(weights) == len(known) > 0
            value = np.asarray(weights) @ np.asarray(features[: len(known)])
            expected.append({"step": step, "weights": list(weights), "value": value.tolist()})
    return inputs | {"computed_steps": computed, "features": features, "expected": expected}


def unit(i, n):
    return torch.eye(n, dtype=torch.float64)[i]


FOCA_RULE = """
Run by cache-dit's own FoCaState, in float64. `newest` and `before` are the features of the last two computed steps, k the steps
since the newest. `x1`, `x2` are what the last two steps gave, computed or forecast: both move on at every step, forecasts too.
k <= 3: forecast = newest + k/2 ((newest - before) + (x1 - x2)).
k > 3: the forecast of k = 3 (with the x1, x2 of now), drawn towards `newest`: newest + 3/k (that - newest).
Differences are not divided by the distance of their steps. With a single computed step so far, the forecast is its feature, and
x1, x2 do not move.
"""


def part_foca():
    from cache_dit.caching.cache_contexts.calibrators.foca import FoCaState

    cases = []
    for seed, computed, last in (
        (0, [0, 1, 2, 5, 8, 11], 13),
        (1, [0, 3, 6, 9], 11),
        (2, [0, 1, 6, 12], 17),
        (3, [0, 4, 5], 8),
        (4, [0, 1, 3, 5, 7, 9], 10),
    ):
        state, forecasts = FoCaState(), {}
        for step in range(last + 1):
            state.mark_step_begin()
            if step in computed:
                state.update(unit(computed.index(step), len(computed)))
            else:
                forecasts[step] = state.approximate().tolist()

        def weights_at(step, known):
            assert not any(forecasts[step][len(known) :])
            return forecasts[step][: len(known)]

        cases.append(forecast_case({}, computed, last, seed, weights_at))
    return {"rule": FOCA_RULE, "cases": cases}


TAYLOR_RULE = """
Run by the TaylorSeerState of diffusers' hooks, in float64. At a computed step D[0] is its feature and, as far as `order` and the
history go, D[i+1] = (D[i] - D[i] of the computed step before) / (distance of the two); the forecast k steps after it is the sum of
D[i] k^i / i!.
`steps`: which steps each implementation computes for an interval. diffusers: those before `warmup`, and those where
(step - warmup - 1) % interval is 0. The authors' code for DiT: 0, 1 and every step that is a multiple of the interval after 1.
cache-dit (TaylorSeerState.should_compute): those before `warmup`, and those where (step - warmup + 1) % interval is 0.
`runs`: diffusers' own hooks on the network, forecasting the outputs of every self-attention and MLP before their gates
(cache_identifiers transformer_blocks.N.(attn1|ff)), all factors kept in float32.
"""


def taylor_steps(source, steps, interval, warmup=2):
    offset = {"diffusers": -1, "authors": 1, "cache-dit": 1}[source]
    return bits(s < warmup or (s - warmup + offset) % interval == 0 for s in range(steps))


def part_taylor():
    from diffusers.hooks import TaylorSeerCacheConfig, apply_taylorseer_cache
    from diffusers.hooks.taylorseer_cache import TaylorSeerState

    cases = []
    for seed, order, computed, last in (
        (10, 1, [0, 1, 2, 5, 8], 11),
        (11, 2, [0, 1, 4, 8, 12], 15),
        (12, 4, [0, 1, 5, 9, 13, 17, 21], 24),
        (13, 3, [0, 4], 7),
    ):
        state, forecasts = TaylorSeerState(torch.float64, order), {}
        for step in range(last + 1):
            state.current_step = step
            if step in computed:
                state.update((unit(computed.index(step), len(computed)),))
            else:
                forecasts[step] = state.predict()[0].tolist()
        cases.append(forecast_case({"order": order}, computed, last, seed, lambda s, known: forecasts[s][: len(known)]))
    tables = [
        {"source": source, "steps": steps, "interval": interval, "warmup": warmup}
        | {"expected": {"computed": taylor_steps(source, steps, interval, warmup)}}
        for source, steps, interval, warmup in (
            ("diffusers", 20, 5, 3),
            ("diffusers", 12, 2, 1),
            ("authors", 50, 4, 2),
            ("authors", 20, 3, 2),
            ("cache-dit", 20, 3, 4),
        )
    ]
    runs = []
    for interval, warmup, order in ((3, 3, 1), (4, 2, 2)):
        model, config = load(), dict(cache_interval=interval, disable_cache_before_step=warmup, max_order=order)
        seen = ran(model.transformer_blocks[1].attn1.to_q)
        apply_taylorseer_cache(
            model,
            TaylorSeerCacheConfig(
                **config, taylor_factors_dtype=torch.float32, cache_identifiers=[r"transformer_blocks\.\d\.(attn1|ff)"]
            ),
        )
        network = Whole(model, seen)
        image = sampled(network)
        assert bits(network.computed) == taylor_steps("diffusers", STEPS, interval, warmup)
        inputs = {"interval": interval, "warmup": warmup, "order": order}
        runs.append(run_entry(f"taylor.{interval}.{order}", inputs, network, image))
    return {"rule": TAYLOR_RULE, "cases": cases, "steps": tables, "runs": runs}


SPECTRUM_RULE = """
After the authors' ChebyshevForecaster and Spectrum (hanjq17/Spectrum), in float64 where they use bfloat16.
tau(step) = 2 step / `span` - 1; the authors' span is 50 whatever the number of steps. A row of X for each of the last `keep`
computed steps: T_0..T_m of its tau (m + 1 Chebyshev polynomials). Ridge weights: X (X^T X + lambda I)^-1 x(step).
The forecast is w times the features under these weights + (1 - w) times a linear one from the last two computed steps:
`linear` "distance": newest + k (newest - before), k = (step - newest step) / (distance of the two), as the authors have it;
`linear` "half": newest + (newest - before) / 2, however far, as stable-diffusion.cpp has it. With one computed step: newest.
Authors' defaults: m 4, lambda 0.1, w 1 (0.5 to 1 advised), keep 100. stable-diffusion.cpp: m 3, lambda 1, w 0.4, keep 6.
`steps`: steps before `warmup` are computed; after that, a window that starts at `window` decides: a step is computed when the
steps since the last computed one, itself included, are a multiple of floor(window), and the window then grows by `flex`.
(stable-diffusion.cpp computes every step from int(0.9 steps) on as well; its defaults are warmup 4, window 2, flex 0.5.)
"""


def chebyshev(tau, m):
    return np.cos(np.arange(m + 1) * np.arccos(np.clip(tau, -1, 1)))


def spectrum_weights(step, known, span, m, ridge, w, keep, linear):
    tau = lambda s: 2 * s / span - 1
    x = np.stack([chebyshev(tau(s), m) for s in known[-keep:]])
    fitted = np.zeros(len(known))
    fitted[-len(x) :] = x @ np.linalg.solve(x.T @ x + ridge * np.eye(m + 1), chebyshev(tau(step), m))
    straight = np.zeros(len(known))
    straight[-1] = 1
    if len(known) > 1:
        k = 0.5 if linear == "half" else (step - known[-1]) / (known[-1] - known[-2])
        straight[-2:] = [-k, 1 + k]
    return (w * fitted + (1 - w) * straight).tolist()


def spectrum_steps(steps, warmup, window, flex):
    computed, since = [], 0
    for step in range(steps):
        since += 1
        compute = step < warmup or since % math.floor(window) == 0
        if compute:
            since = 0
            window += flex if step >= warmup else 0
        computed.append(compute)
    return bits(computed)


def part_spectrum():
    authors = {"span": 50, "m": 4, "lambda": 0.1, "w": 0.5, "keep": 100, "linear": "distance"}
    cases = []
    for seed, changed, computed, last in (
        (20, {}, [0, 1, 2, 3, 4, 6, 8, 11, 14, 18], 22),
        (21, {"w": 1.0, "span": 20}, [0, 1, 2, 3, 5, 8, 12], 16),
        (22, {"span": 20, "m": 3, "lambda": 1.0, "w": 0.4, "keep": 6, "linear": "half"}, [0, 1, 2, 3, 5, 7, 9, 12, 15], 19),
        (23, {"w": 0.7, "keep": 6, "span": 20}, [0, 2, 5, 8, 10, 12, 14, 16], 19),
    ):
        inputs = authors | changed
        arguments = [inputs[key] for key in ("span", "m", "lambda", "w", "keep", "linear")]
        cases.append(
            forecast_case(inputs, computed, last, seed, lambda step, known: spectrum_weights(step, known, *arguments))
        )
    tables = []
    for steps, warmup, window, flex in ((50, 5, 2, 0.75), (50, 5, 2, 3.0), (20, 4, 2, 0.5), (20, 3, 3, 0.25)):
        computed = spectrum_steps(steps, warmup, window, flex)
        inputs = {"steps": steps, "warmup": warmup, "window": window, "flex": flex}
        tables.append(inputs | {"expected": {"computed": computed}})
    assert [table["expected"]["computed"].count("1") for table in tables[:2]] == [14, 10]  # as its README counts
    return {"rule": SPECTRUM_RULE, "cases": cases, "steps": tables}


# ---------------------------------------------------------------------------------------------------------------------
# The network of the whole runs, in the parts that policies put themselves between


def load():
    from diffusers import DiTTransformer2DModel

    return DiTTransformer2DModel.from_pretrained(HERE / "hooks" / "transformer", low_cpu_mem_usage=False).eval()


class Parts:
    """A network of diffusers as `guided` calls it. Policies override `blocks` (tokens to tokens) or `evaluate`, and append to
    `computed`."""

    def __init__(self, model):
        self.model, self.null = model, model.config.num_embeds_ada_norm
        self.step, self.computed = -1, []

    def both(self, labels):
        return [torch.cat([labels, torch.full_like(labels, self.null)])]

    def __call__(self, x, t, y, feature=None):
        self.step += 1
        return self.evaluate(x, t, y)

    def evaluate(self, x, t, y):
        return self.head(self.blocks(self.model.pos_embed(x), t, y), t, y)

    def blocks(self, tokens, t, y):
        self.computed.append(True)
        return self.through(tokens, t, y, 0, len(self.model.transformer_blocks))

    def through(self, tokens, t, y, start, end):
        for block in self.model.transformer_blocks[start:end]:
            tokens = block(tokens, timestep=t, class_labels=y)
        return tokens

    def modulated(self, tokens, t, y):
        """What enters the first block's self-attention."""
        return self.model.transformer_blocks[0].norm1(tokens, t, y, hidden_dtype=tokens.dtype)[0]

    def head(self, tokens, t, y):
        model = self.model
        emb = model.transformer_blocks[0].norm1.emb(t, y, hidden_dtype=tokens.dtype)
        shift, scale = model.proj_out_1(torch.nn.functional.silu(emb)).chunk(2, dim=1)
        tokens = model.proj_out_2(model.norm_out(tokens) * (1 + scale[:, None]) + shift[:, None])
        side, patch = math.isqrt(tokens.shape[1]), model.config.patch_size
        tokens = tokens.reshape(len(tokens), side, side, patch, patch, -1)
        return torch.einsum("nhwpqc->nchpwq", tokens).reshape(len(tokens), -1, side * patch, side * patch)


class Whole(Parts):
    """A network under somebody's hooks; `seen` tells whether its middle ran."""

    def __init__(self, model, seen):
        super().__init__(model)
        self.seen = seen

    def evaluate(self, x, t, y):
        from diffusers.models.cache_utils import CacheMixin

        self.seen.clear()
        with CacheMixin.cache_context(self.model, "run"):
            out = self.model(x, timestep=t, class_labels=y).sample
        self.computed.append(bool(self.seen))
        return out


def ran(module):
    seen = []
    module.register_forward_hook(lambda *_: seen.append(True))
    return seen


def sampled(network, dtype=torch.float32):
    given = load_file(HERE / "hooks.safetensors")
    image = ddim_samples(network, given["noise"].to(dtype), given["labels"], steps=STEPS, guidance=GUIDANCE)
    assert torch.isfinite(image).all() and len(network.computed) == STEPS
    return image


IMAGES = {}


def run_entry(name, inputs, network, image, **more):
    computed = bits(network.computed)
    IMAGES[name] = image
    print(f"  {name}: {computed}")
    assert computed.startswith("1") and "0" in computed
    return inputs | {"expected": {"computed": computed, "image": name} | more}


def run(name, inputs, policy, **more):
    """A whole run under `policy(model, **inputs)`, and its twin in float64."""
    network = policy(load(), **inputs)
    image = sampled(network)
    twin = policy(load().double(), **inputs)
    check_twin(name, image, sampled(twin, torch.float64))
    assert network.computed == twin.computed
    return run_entry(name, inputs, network, image, **more)


def relative(new, old):
    return (new - old).abs().mean() / old.abs().mean()


# ---------------------------------------------------------------------------------------------------------------------
# Decided at run time


TEA_RULE = """
After TeaCache4FLUX (ali-vilab/TeaCache). r = mean |m - m of the step before| / mean |m of the step before|, m the modulated
tokens that enter the first block's attention; acc += polynomial(r) (coefficients highest power first); acc < threshold (strict):
reuse, tokens = embedded tokens + the last computed (tokens after all blocks - embedded tokens); else compute and acc = 0. m is
renewed at every step, reused ones too. The first and the last step are computed, and set acc to 0.
`decisions`: from `changes`, r of steps 1, 2, ...; those of the first and last step are not looked at.
`fits`: numpy.polyfit of degree 4 of y on x, and its values at x.
"""


def tea_decisions(changes, polynomial, threshold):
    computed, acc = [True], 0.0
    for i, change in enumerate(changes):
        acc += np.polyval(polynomial, change)
        last = i == len(changes) - 1
        computed.append(last or far(acc, threshold) >= threshold)
        acc = 0.0 if computed[-1] else acc
    return bits(computed)


class Tea(Parts):
    def __init__(self, model, polynomial, threshold):
        super().__init__(model)
        self.polynomial, self.threshold, self.acc, self.changes = polynomial, threshold, 0.0, []

    def blocks(self, tokens, t, y):
        m = self.modulated(tokens, t, y)
        if self.step > 0:
            self.changes.append(relative(m, self.m).item())
            self.acc += np.polyval(self.polynomial, self.changes[-1])
        self.m = m
        compute = self.step in (0, STEPS - 1) or far(self.acc, self.threshold) >= self.threshold
        self.computed.append(compute)
        if compute:
            self.acc = 0.0
            self.residual = self.through(tokens, t, y, 0, 4) - tokens
        return tokens + self.residual


def part_tea():
    generator = np.random.default_rng(33)
    flux = [498.651651, -283.781631, 55.8554382, -3.82021401, 0.264230861]
    decisions = []
    for polynomial, steps, thresholds in (
        (flux, 28, (0.25, 0.4, 0.8)),
        ([0.0, 0.0, 0.0, 1.0, 0.0], 20, (0.1, 0.3)),
        ([3.0, -2.0, 0.5, 0.9, 0.01], 12, (0.15,)),
    ):
        s = np.linspace(-1, 1, steps - 1)
        changes = rounded(0.04 + 0.1 * s**2 + 0.03 * generator.random(steps - 1))
        for threshold in thresholds:
            inputs = {"polynomial": polynomial, "threshold": threshold, "steps": steps, "changes": changes}
            decisions.append(inputs | {"expected": {"computed": tea_decisions(changes, polynomial, threshold)}})
    fits = []
    for n in (12, 40):
        x = np.asarray(rounded(generator.uniform(0.02, 0.6, n)))
        y = np.asarray(rounded(0.1 + 1.4 * x - 2 * x**2 + 3 * x**4 + 0.02 * generator.standard_normal(n)))
        fit = np.polyfit(x, y, 4)
        expected = {"polynomial": fit.tolist(), "values": np.polyval(fit, x).tolist()}
        fits.append({"x": x.tolist(), "y": y.tolist(), "expected": expected})
    runs = []
    for i, (polynomial, threshold) in enumerate(
        (([0.0, 0.0, 0.0, 1.0, 0.0], 0.5), ([0.3, -0.8, 0.6, 0.5, 0.05], 0.45), ([0.0, 0.0, 0.0, 1.0, 0.0], 1.2))
    ):
        measured = Tea(load(), polynomial, threshold)
        sampled(measured)
        inputs = {"polynomial": polynomial, "threshold": threshold}
        runs.append(run(f"tea.{i}", inputs, Tea, changes=measured.changes))
        assert runs[-1]["expected"]["computed"] == tea_decisions(measured.changes, polynomial, threshold)
    return {"rule": TEA_RULE, "decisions": decisions, "fits": fits, "runs": runs}


MAG_RULE = """
Run by diffusers' own MagCache hooks, and by a plain program that must agree. gamma[s] = mean over all tokens of
|R[s]| / |R[s-1]|, R = tokens after all blocks - embedded tokens, from a run that computes everything; gamma[0] = 1. A table of
another length is read at round(s (length - 1) / (steps - 1)), halves to even (`ratios` -> expected.ratios).
Steps before int(retention steps + 0.5) are computed. After that: ratio *= gamma[s], err += |1 - ratio|; reuse
(tokens = embedded tokens + R of the last computed step) if err <= threshold (not strict) and this is at most the `most`-th reuse in
a row; else compute, and ratio = 1, err = 0.
"""


def mag_interpolated(ratios, steps):
    if len(ratios) == steps:
        return ratios
    scale = (len(ratios) - 1) / (steps - 1)
    return [ratios[round(s * scale)] for s in range(steps)]


def mag_decisions(ratios, threshold, retention, most):
    computed, ratio, err, reused = [], 1.0, 0.0, 0
    for s, gamma in enumerate(ratios):
        compute = s < int(retention * len(ratios) + 0.5)
        if not compute:
            ratio, reused = ratio * gamma, reused + 1
            err += abs(1 - ratio)
            compute = far(err, threshold) > threshold or reused > most
            if compute:
                ratio, err, reused = 1.0, 0.0, 0
        computed.append(compute)
    return bits(computed)


class Gammas(Parts):
    def __init__(self, model):
        super().__init__(model)
        self.gamma, self.before = [], None

    def blocks(self, tokens, t, y):
        out = super().blocks(tokens, t, y)
        norm = (out - tokens).norm(dim=-1)
        self.gamma.append(1.0 if self.before is None else (norm / self.before).mean().item())
        self.before = norm
        return out


def part_mag():
    from diffusers.hooks import MagCacheConfig, apply_mag_cache
    from diffusers.hooks.mag_cache import FLUX_MAG_RATIOS

    flux = [float(f"{v:.5f}") for v in FLUX_MAG_RATIOS.tolist()]
    decisions = []
    for steps, threshold, retention, most in (
        (28, 0.06, 0.2, 3),
        (28, 0.12, 0.2, 3),
        (28, 0.24, 0.1, 5),
        (20, 0.06, 0.2, 3),
        (50, 0.1, 0.2, 4),
        (13, 0.05, 0.2, 2),
    ):
        ratios = mag_interpolated(flux, steps)
        config = MagCacheConfig(num_inference_steps=steps, mag_ratios=flux)
        np.testing.assert_allclose(config.mag_ratios, ratios, rtol=1e-6)
        inputs = {"steps": steps, "threshold": threshold, "retention": retention, "most": most, "ratios": flux}
        expected = {"ratios": ratios, "computed": mag_decisions(ratios, threshold, retention, most)}
        decisions.append(inputs | {"expected": expected})

    model = load()
    apply_mag_cache(model, MagCacheConfig(num_inference_steps=STEPS, calibrate=True))
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        sampled(Whole(model, ran(model.transformer_blocks[1].ff)))
    [gamma] = [json.loads(line) for line in printed.getvalue().splitlines() if line.startswith("[1")]
    plain = Gammas(load())
    sampled(plain)
    np.testing.assert_allclose(gamma, plain.gamma, rtol=1e-5)

    runs = []
    for threshold, retention, most in ((0.06, 0.2, 3), (0.3, 0.2, 3), (0.5, 0.1, 5)):
        model = load()
        seen = ran(model.transformer_blocks[1].ff)
        settings = dict(threshold=threshold, retention_ratio=retention, max_skip_steps=most)
        apply_mag_cache(model, MagCacheConfig(**settings, num_inference_steps=STEPS, mag_ratios=gamma))
        network = Whole(model, seen)
        image = sampled(network)
        assert bits(network.computed) == mag_decisions(gamma, threshold, retention, most)
        inputs = {"threshold": threshold, "retention": retention, "most": most, "ratios": "expected.gamma of `measured`"}
        runs.append(run_entry(f"mag.{threshold}.{most}", inputs, network, image))
    return {"rule": MAG_RULE, "decisions": decisions, "measured": {"expected": {"gamma": gamma}}, "runs": runs}


EASY_RULE = """
After EasyCache4Wan2.1 (H-EmbodVis/EasyCache). x is the latent that enters the network, v what it gives, before guidance and without
the sigma channels. The first `first` steps and the last are computed, and set E to 0. In between, of the conditional half:
E += k mean |x - x of the step before| / mean |v of the last computed step|, where x of the step before counts whether or not that
step was computed; E < threshold (strict): reuse, and each half gives v = x + (v - x of the last computed step, its own); else
compute and E = 0. At every computed step but the first, k = mean |v - v of the computed step before| / mean |x - x of that step|.
"""


class Easy(Parts):
    def __init__(self, model, first, threshold):
        super().__init__(model)
        self.first, self.threshold = first, threshold
        self.k = self.at_computed = None
        self.error = 0.0

    def evaluate(self, x, t, y):
        half, channels = len(x) // 2, x.shape[1]
        compute = self.step < self.first or self.step == STEPS - 1
        if not compute:
            change = (x[:half] - self.x).abs().mean()
            self.error += self.k * change / self.at_computed[1].abs().mean()
            compute = far(self.error, self.threshold) >= self.threshold
        self.x = x[:half]
        self.computed.append(compute)
        if not compute:
            return torch.cat([x + self.difference, self.sigma], dim=1)
        self.error = 0.0
        out = self.head(self.through(self.model.pos_embed(x), t, y, 0, 4), t, y)
        v, self.sigma = out.split([channels, channels], dim=1)
        if self.at_computed is not None:
            before_x, before_v = self.at_computed
            self.k = (v[:half] - before_v).abs().mean() / (x[:half] - before_x).abs().mean()
        self.at_computed = x[:half], v[:half]
        self.difference = v - x
        return out


def part_easy():
    runs = [
        run(f"easy.{first}.{threshold}", {"first": first, "threshold": threshold}, Easy)
        for first, threshold in ((4, 0.3), (4, 0.8), (10, 1.5), (2, 0.15))
    ]
    return {"rule": EASY_RULE, "runs": runs}


DI_RULE = """
After FLUX/run_flux_dicache.py (Bujiazi/DiCache), error_choice delta_y, probe_depth 1. The first `first` steps, and the last one if
`last`, are computed, and set acc to 0. At any other step the first block runs as a probe: acc += mean |q - q of the step before| /
mean |q of the step before|, q the tokens after the first block, whether or not that step was computed. acc < threshold (strict):
reuse; else compute (going on after the first block) and acc = 0.
Of the last two computed steps: R1, R2 (newest first) = tokens after all blocks - embedded tokens; p1, p2 = tokens after the first
block - embedded tokens; p the same of now. Reuse: tokens = embedded tokens + R2 + g (R1 - R2), g = mean |p - p2| / mean |p1 - p2|,
not below 1 and not above `most`. With a single computed step so far: + R1.
The FLUX script has first = int(0.2 steps) + 1 and computes the last, most 1.5; those for HunyuanVideo and Wan2.1 have
first = int(0.2 steps) and do not, and Wan2.1's most is 2.
"""


class Di(Parts):
    def __init__(self, model, first, last, threshold, most):
        super().__init__(model)
        self.first, self.last, self.threshold, self.most = first, last, threshold, most
        self.acc, self.gammas, self.history = 0.0, [], []

    def blocks(self, tokens, t, y):
        probe = self.through(tokens, t, y, 0, 1)
        compute = self.step < self.first or (self.last and self.step == STEPS - 1)
        if not compute:
            self.acc += relative(probe, self.probe)
            compute = far(self.acc, self.threshold) >= self.threshold
        self.probe = probe
        self.computed.append(compute)
        p = probe - tokens
        if compute:
            self.acc = 0.0
            out = self.through(probe, t, y, 1, 4)
            self.history = [(out - tokens, p), *self.history][:2]
            return out
        if len(self.history) < 2:
            return tokens + self.history[0][0]
        (r1, p1), (r2, p2) = self.history
        g = ((p - p2).abs().mean() / (p1 - p2).abs().mean()).clip(1, self.most)
        self.gammas.append(g.item())
        return tokens + r2 + g * (r1 - r2)


def part_di():
    runs = []
    for i, (first, last, threshold, most) in enumerate(
        ((5, True, 0.9, 1.5), (4, False, 0.8, 1.5), (4, False, 1.3, 2.0), (1, True, 0.6, 1.5))
    ):
        inputs = {"first": first, "last": last, "threshold": threshold, "most": most}
        measured = Di(load(), **inputs)
        sampled(measured)
        runs.append(run(f"di.{i}", inputs, Di, g=measured.gammas))
        image, held = IMAGES[f"di.{i}"], sampled(Di(load(), **(inputs | {"most": 1.0})))
        assert (image - held).abs().max() > 1e-4 * image.abs().max()  # g shows
    found = [g for entry in runs for g in entry["expected"]["g"]]
    print(f"  g from {min(found):.3f} to {max(found):.3f}, {sum(1 < g < 1.5 for g in found)} of {len(found)} within 1 and 1.5")
    return {"rule": DI_RULE, "runs": runs}


# ---------------------------------------------------------------------------------------------------------------------
# Known before the run


SMOOTH_RULE = """
After SmoothCache/calibration/calibration_helper.py (Roblox/SmoothCache). errors[k-1][s] = sum |f[s] - f[s+k]| / sum |f[s+k]|, f the
output of a branch before its gate (the whole batch flattened), then the mean over blocks; one table for each kind of branch.
From step 0 on: s is computed; the largest k for which errors[k-1][s] <= threshold (not strict) skips s+1 ... s+k, whatever
the smaller k say, and s goes on behind them; with none, s goes on by one. The last step is computed in any case.
`runs`: the branches of each kind reused as the schedule says, under the gates of the step that reuses them.
"""


def smooth_schedule(errors, steps, threshold):
    computed, s = [False] * steps, 0
    while s < steps:
        computed[s] = True
        fits = [k for k, row in enumerate(errors, 1) if s < len(row) and far(row[s], threshold) <= threshold]
        s += max(fits, default=0) + 1
    computed[-1] = True
    return bits(computed)


class Branches(Parts):
    """With `schedules`, by kind, reuses branches; keeps what they gave in `features[kind][block][step]`."""

    KINDS = {"attention": "attn1", "mlp": "ff"}

    def __init__(self, model, schedules=None):
        super().__init__(model)
        self.features = {kind: [[] for _ in model.transformer_blocks] for kind in self.KINDS}
        for kind, name in self.KINDS.items():
            for block, kept in zip(model.transformer_blocks, self.features[kind]):
                module = getattr(block, name)

                def forward(*args, inner=module.forward, kept=kept, kind=kind, **kwargs):
                    reuse = schedules is not None and schedules[kind][self.step] == "0"
                    kept.append(kept[-1] if reuse else inner(*args, **kwargs))
                    return kept[-1]

                module.forward = forward

    def errors(self, lookahead=3):
        def row(kind, k):
            return [
                np.mean([((f[s] - f[s + k]).abs().sum() / f[s + k].abs().sum()).item() for f in self.features[kind]])
                for s in range(STEPS - k)
            ]

        return {kind: [[float(v) for v in row(kind, k)] for k in range(1, lookahead + 1)] for kind in self.KINDS}


def part_smooth():
    generator, schedules = np.random.default_rng(50), []
    for steps, lookahead, threshold in ((20, 3, 0.18), (50, 3, 0.15), (50, 3, 0.35), (12, 2, 0.1), (30, 5, 0.3)):
        near = 0.05 + 0.15 * (np.linspace(-1, 1, steps) ** 2 + 0.3 * generator.random(steps))
        errors = [
            rounded(near[: steps - k] * k**0.8 * generator.uniform(0.8, 1.2, steps - k)) for k in range(1, lookahead + 1)
        ]
        inputs = {"steps": steps, "threshold": threshold, "errors": errors}
        schedules.append(inputs | {"expected": {"computed": smooth_schedule(errors, steps, threshold)}})
    measuring = Branches(load())
    IMAGES["full"] = sampled(measuring)
    measured, runs = measuring.errors(), []
    model = load()
    torch.testing.assert_close(sampled(Whole(model, ran(model.transformer_blocks[1].ff))), IMAGES["full"], rtol=1e-6, atol=1e-4)
    for threshold in (0.35, 0.6):
        by_kind = {kind: smooth_schedule(table, STEPS, threshold) for kind, table in measured.items()}
        assert by_kind["attention"] != by_kind["mlp"]
        network = Branches(load(), by_kind)
        image = sampled(network)
        name = f"smooth.{threshold}"
        check_twin(name, image, sampled(Branches(load().double(), by_kind), torch.float64))
        IMAGES[name] = image
        print(f"  {name}: {by_kind}")
        runs.append({"threshold": threshold, "expected": {"computed": by_kind, "image": name}})
    return {"rule": SMOOTH_RULE, "schedules": schedules, "measured": {"expected": {"errors": measured}}, "runs": runs}


CEM_RULE = """
After DiT/CEM_utils/DCS_module.py (leaves162/CEM) with quadratic weights. prior[C-1][t], t in execution order: 1 - the cosine of
the token-mean features of steps t and t - C after the last block; 0 where t < C. cost[C][t] = C^2 times the sum of prior[C-1][0..t]
(cumulated in float32), cost[0] = 0. `budget` steps are computed, the first and the last among them, so that consecutive ones are g
apart, g from max(1, G - radius) to min(10, G + radius), G = steps / budget rounded, halves to even; the sum over computed steps t but
the first of cost[g-1][t], g the distance from the one before, is the least. `expected.steps` is null where no such choice exists.
`measured`: the prior of the network's run that computes everything; an image's two halves are one vector, and the prior is the mean
over the two images.
"""


def cem_costs(prior):
    steps = len(prior[0])
    return [np.zeros(steps)] + [
        np.float64(np.cumsum(np.float32(row), dtype=np.float32) * np.float32(c * c)) for c, row in enumerate(prior, 1)
    ]


def cem_steps(prior, budget, radius):
    costs, steps = cem_costs(prior), len(prior[0])
    middle = round(steps / budget)
    gaps = range(max(1, middle - radius), min(10, middle + radius) + 1)
    best = {(0, 1): (0.0, [0])}  # the cheapest way to have computed `count` steps, the last of them t
    for count in range(2, budget + 1):
        for t in range(1, steps):
            ways = [
                (best[t - g, count - 1][0] + costs[g - 1][t], best[t - g, count - 1][1] + [t])
                for g in gaps
                if (t - g, count - 1) in best
            ]
            if ways:
                best[t, count] = min(ways)
    return best.get((steps - 1, budget), (None, None))[1]


class Means(Parts):
    def __init__(self, model):
        super().__init__(model)
        self.means = []

    def blocks(self, tokens, t, y):
        out = super().blocks(tokens, t, y)
        self.means.append(out.mean(dim=1).reshape(2, -1, out.shape[-1]).transpose(0, 1).flatten(1))
        return out


def cem_expected(prior, budget, radius):
    steps = cem_steps(prior, budget, radius)
    generator = np.random.default_rng(60)
    for _ in range(20):  # the choice is not a close one
        shaken = np.asarray(prior) * generator.uniform(1 - 1e-4, 1 + 1e-4, np.shape(prior))
        assert cem_steps(shaken, budget, radius) == steps
    return {"expected": {"steps": steps}}


def part_cem():
    generator, priors = np.random.default_rng(61), []
    for steps, budgets in ((20, (10, 8, 5, 2)), (10, (4, 7)), (50, (20, 18, 14, 10, 7)), (12, (12,))):
        across = np.abs(np.linspace(-1, 1.2, steps)) ** 2 + 0.05
        prior = []
        for c in range(1, 10):
            row = 0.1 * across * (1 - math.exp(-c / 4)) * generator.uniform(0.5, 1.5, steps)
            row[:c] = 0
            prior.append(rounded(row))
        radii = (1, 2) if steps == 20 else (1,)
        cases = [{"budget": b, "radius": r} | cem_expected(prior, b, r) for b in budgets for r in radii]
        priors.append({"steps": steps, "prior": prior, "cases": cases})
    measuring = Means(load())
    sampled(measuring)
    means = torch.stack(measuring.means)
    prior = []
    for c in range(1, 10):
        cosine = (means[c:] * means[:-c]).sum(-1) / (means[c:].norm(dim=-1) * means[:-c].norm(dim=-1) + 1e-8)
        prior.append([0.0] * c + listed((1 - cosine).mean(dim=1)))
    measured = {"expected": {"prior": prior}}
    measured["cases"] = [{"budget": b, "radius": 1} | cem_expected(prior, b, 1) for b in (12, 10, 7)]
    return {"rule": CEM_RULE, "priors": priors, "measured": measured}


DELTA_RULE = """
From the paper's abstract (2406.01125) and what reviews say of its parameters; no code of its authors was found. Steps that are a
multiple of `interval` run every block and keep, of the last `count` blocks and of the first `count` blocks, the tokens after them -
the tokens before them. Any other step reuses one of the two: before step `cutoff` that of the last blocks, from it on that of the
first ones. `expected.reused`: for each step the range [start, end) of blocks that it does not run, null where it runs all.
"""


def delta_table(blocks, steps, interval, cutoff, count):
    def reused(s):
        if s % interval == 0:
            return None
        return [blocks - count, blocks] if s < cutoff else [0, count]

    return [reused(s) for s in range(steps)]


class Delta(Parts):
    def __init__(self, model, interval, cutoff, count):
        super().__init__(model)
        self.table, self.kept = delta_table(4, STEPS, interval, cutoff, count), {}
        self.ranges = ((0, count), (4 - count, 4))

    def blocks(self, tokens, t, y):
        reused = self.table[self.step]
        self.computed.append(reused is None)
        if reused is not None:
            start, end = reused
            tokens = self.through(tokens, t, y, 0, start) + self.kept[start, end]
            return self.through(tokens, t, y, end, 4)
        after = [tokens]
        for i in range(4):
            after.append(self.through(after[-1], t, y, i, i + 1))
        self.kept = {(start, end): after[end] - after[start] for start, end in self.ranges}
        return after[-1]


def part_delta():
    tables = [
        {"blocks": blocks, "steps": steps, "interval": interval, "cutoff": cutoff, "count": count}
        | {"expected": {"reused": delta_table(blocks, steps, interval, cutoff, count)}}
        for blocks, steps, interval, cutoff, count in ((28, 20, 2, 12, 21), (28, 20, 3, 10, 14), (4, 10, 4, 6, 3), (12, 12, 2, 0, 5))
    ]
    runs = []
    for interval, cutoff, count in ((2, 12, 3), (3, 10, 2)):
        inputs = {"interval": interval, "cutoff": cutoff, "count": count}
        runs.append(run(f"delta.{interval}.{count}", inputs, Delta, reused=delta_table(4, STEPS, **inputs)))
    return {"rule": DELTA_RULE, "tables": tables, "runs": runs}


# ---------------------------------------------------------------------------------------------------------------------


def compact(value, indent=""):
    """JSON of which a list of numbers, or a case without lists of cases, is a line."""
    if isinstance(value, dict):
        body = [f"{indent} {json.dumps(key)}: {compact(inner, indent + ' ')}" for key, inner in value.items()]
        return "{\n" + ",\n".join(body) + f"\n{indent}}}"
    if isinstance(value, list) and value and isinstance(value[0], (dict, list)):
        return "[\n" + ",\n".join(f"{indent} {compact(inner, indent + ' ')}" for inner in value) + f"\n{indent}]"
    return json.dumps(value, ensure_ascii=False)


def stored(name, part):
    def make():
        IMAGES.clear()
        entry = part()
        entry["rule"] = " ".join(entry["rule"].split())
        path, images = HERE / "rivals.json", HERE / "rivals.safetensors"
        entries = json.loads(path.read_text()) if path.exists() else {}
        entries[name] = entry
        path.write_text(compact({key: entries[key] for key in PARTS if key in entries}) + "\n")
        kept = load_file(images) if images.exists() else {}
        kept = {key: image for key, image in kept.items() if key.split(".")[0] != name}
        write("rivals.safetensors", dict(sorted((kept | IMAGES).items())), {"steps": str(STEPS), "guidance": repr(GUIDANCE)})

    return make


PARTS = {
    "foca": part_foca,
    "taylor": part_taylor,
    "spectrum": part_spectrum,
    "tea": part_tea,
    "mag": part_mag,
    "easy": part_easy,
    "di": part_di,
    "smooth": part_smooth,
    "cem": part_cem,
    "delta": part_delta,
}

if __name__ == "__main__":
    run_parts({name: stored(name, part) for name, part in PARTS.items()})
