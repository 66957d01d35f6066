"""Golden tensors for weights in int8 (`--quant q8`): what numpy and a plain PyTorch program make of networks beside this file.

    python tests/golden/make_quant.py

Needs torch, numpy and safetensors. Written like make.py and make_pixart.py, whose networks it uses, beside it.

quant.safetensors
  {dit,pixart}.{tensor}.q  u8, the bytes of int8 in two's complement, and .scale f32 [outputs], of every matrix of block 0 of
                           tiny-a.pt and pixart-original.pth: per output channel the scale is the largest magnitude / 127 (all
                           in f32), a number the weight / scale, rounded to the nearest, halves to the even one.
  dit.out, pixart.out      the networks' outputs with number * scale in place of those weights, of the inputs of
                           tiny-a.io.safetensors and, for pixart, of `alpha` of pixart.io.safetensors.
  bundled.out              the same of the bundled model for the second of the four inputs fwd_* of bundled.safetensors.
  metadata                 {dit,pixart,bundled}.error: the largest difference to the outputs with f32 weights over the
                           largest output, of all inputs.

How it reads what could be read in two ways
  - Matrices of a block are its linear layers' weights, adaLN's among them. What belongs to no block stays in f32, as do
    biases and PixArt's tables.
"""

import json
import pathlib
import sys

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from make import ASSET, HERE, Dit, load_tiny, sin_cos_positions, write
from make_pixart import load_alpha


def is_matrix_of_block(name):
    return name.startswith("blocks.") and name.endswith(".weight")


def quantised(weight):
    """int8 numbers [outputs, inputs] and f32 scales [outputs]."""
    weight = weight.numpy()
    scale = np.abs(weight).max(axis=1) / np.float32(127)
    number = np.rint(weight / scale[:, None])
    assert number.dtype == scale.dtype == np.float32 and np.abs(number).max() == 127
    return torch.from_numpy(number.astype(np.int8)), torch.from_numpy(scale)


def with_bytes(weights):
    """The weights as they are computed with, and what is kept of each matrix of a block."""
    kept = {name: quantised(value) for name, value in weights.items() if is_matrix_of_block(name)}
    wide = {name: number.float() * scale[:, None] for name, (number, scale) in kept.items()}
    return weights | wide, kept


def relative(out, expected):
    return ((out - expected).abs().max() / expected.abs().max()).item()


def bundled():
    weights = {name: value.float() for name, value in load_file(ASSET).items()}
    with safe_open(ASSET, "pt") as file:
        config = json.loads(file.metadata()["harmonica"])["config"]
    dim, _, patch, _ = weights["x_embedder.proj.weight"].shape
    weights["pos_embed"] = sin_cos_positions(dim, 32 // patch, 32 // patch)[None]
    return Dit(weights, config["heads"])


def main():
    tensors, errors = {}, {}

    def add(name, network, inputs, expected):
        weights, kept = with_bytes(network.weights)
        right = network(*inputs)
        torch.testing.assert_close(right, expected, atol=1e-5, rtol=1e-5)
        rest = {k: v for k, v in vars(network).items() if k != "weights"}
        out = type(network)(weights, **rest)(*inputs)
        errors[name] = relative(out, right)
        for tensor, (number, scale) in kept.items():
            if name != "bundled" and tensor.startswith("blocks.0."):
                tensors[f"{name}.{tensor}.q"] = number.view(torch.uint8)
                tensors[f"{name}.{tensor}.scale"] = scale
        # Every matrix shows in the output.
        for tensor in kept:
            one = type(network)(network.weights | {tensor: weights[tensor]}, **rest)
            assert not torch.equal(one(*inputs), right), tensor
        return out

    io = load_file(HERE / "tiny-a.io.safetensors")
    tensors["dit.out"] = add("dit", load_tiny("a"), (io["x"], io["t"], io["y"]), io["out"])
    io = {k.removeprefix("alpha."): v for k, v in load_file(HERE / "pixart.io.safetensors").items()}
    inputs = (io["x"], io["t"], io["text"], io["mask"])
    tensors["pixart.out"] = add("pixart", load_alpha(), inputs, io["out"])
    io = load_file(HERE / "bundled.safetensors")
    out = add("bundled", bundled(), (io["fwd_x"], io["fwd_t"], io["fwd_y"]), io["fwd_out"])
    tensors["bundled.out"] = out[1:2]
    print({name: f"{error:.1e}" for name, error in errors.items()})
    write("quant.safetensors", tensors, {f"{name}.error": repr(error) for name, error in errors.items()})


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    with torch.no_grad():
        main()
