"""Golden tensors for weights in bf16 (`--dtype bf16`): what a plain PyTorch program makes of networks beside this file.

    python tests/golden/make_bf16.py

Needs torch, numpy and safetensors. Written like make_quant.py, whose networks it uses, beside it.

bf16.safetensors
  dit.out, pixart.out      the networks' outputs with the matrices of blocks, and what is multiplied by them, rounded to bf16, and
                           products of the rounded numbers in f32; of the inputs of tiny-a.io.safetensors and, for pixart, of
                           `alpha` of pixart.io.safetensors.
  metadata                 {dit,pixart,bundled}.error: the root of the mean square of the difference to the outputs in f32, over
                           that of those outputs; .weights: the same where the matrices alone are rounded. The bundled model's
                           are of the four inputs fwd_* of bundled.safetensors.

How it reads what could be read in two ways
  - Matrices of a block are its linear layers' weights, adaLN's among them. Everything else stays in f32: biases, norms,
    attention, what belongs to no block.
  - In what order a product is summed shows in no output of the small networks. In the bundled model's twelve blocks it turns
    some roundings, which turn others, until outputs differ by 0.7 of their error: that has no golden output, but an error,
    which other orders change by 4 % at most.
"""

import pathlib
import sys

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from make import HERE, load_tiny, write
from make_pixart import load_alpha
from make_quant import bundled, is_matrix_of_block


def relative(out, expected):
    return ((out - expected).square().mean() / expected.square().mean()).sqrt().item()


def rounded(x):
    return x.to(torch.bfloat16).float()


def in_bf16(network, activations):
    """The same network with rounded matrices, and with what is multiplied by them rounded where asked."""

    class Rounded(type(network)):
        def linear(self, name, x):
            weight, bias = self.weights[name + ".weight"], self.weights[name + ".bias"]
            if is_matrix_of_block(name + ".weight"):
                x, weight = rounded(x) if activations else x, rounded(weight)
            return F.linear(x, weight, bias)

    same = Rounded.__new__(Rounded)
    vars(same).update(vars(network))
    return same


def main():
    tensors, metadata = {}, {}

    def add(name, network, inputs, expected):
        right = network(*inputs)
        torch.testing.assert_close(right, expected, atol=1e-5, rtol=1e-5)
        out = in_bf16(network, True)(*inputs)
        metadata[f"{name}.error"] = repr(relative(out, right))
        metadata[f"{name}.weights"] = repr(relative(in_bf16(network, False)(*inputs), right))
        return out

    io = load_file(HERE / "tiny-a.io.safetensors")
    tensors["dit.out"] = add("dit", load_tiny("a"), (io["x"], io["t"], io["y"]), io["out"])
    io = {k.removeprefix("alpha."): v for k, v in load_file(HERE / "pixart.io.safetensors").items()}
    inputs = (io["x"], io["t"], io["text"], io["mask"])
    tensors["pixart.out"] = add("pixart", load_alpha(), inputs, io["out"])
    io = load_file(HERE / "bundled.safetensors")
    add("bundled", bundled(), (io["fwd_x"], io["fwd_t"], io["fwd_y"]), io["fwd_out"])
    print(metadata)
    write("bf16.safetensors", tensors, metadata)


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    with torch.no_grad():
        main()
