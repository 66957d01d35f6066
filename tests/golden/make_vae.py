"""Golden tensors for the networks between latents and pixels: what diffusers' own classes compute.

    python tests/golden/make_vae.py             # every part
    python tests/golden/make_vae.py kl tiny     # only these

Needs torch, numpy, safetensors and diffusers. Random weights that switch nothing off; seeds are fixed, the CPU is used,
everything is float32. Written beside this script in vae/, with helpers of make.py.

Parts
  kl    An AutoencoderKL with 4x4 pixels to a latent position: block_out_channels [4,4,8], 1 layer a block (2 in the decoder),
        2 groups in every norm, 4 latent channels, single-head attention in both middle blocks, scaling_factor 0.2.
        All weights are numbers that an f16 holds, so that these files, of f32 and of f16, say the same:
          vae/kl/{config.json,diffusion_pytorch_model.safetensors}   f32, as diffusers writes it today
          vae/kl-old/ (the same two files)   f16, with the attention layers' old names, as folders of 2022 have them:
                                     query, key, value, proj_attn (linear [8,8]) for to_q, to_k, to_v, to_out.0
          vae/kl-ldm.safetensors     f16, in the names of the original LDM code, without a prefix, as VAEs are released on
                                     their own; and what a training run leaves beside them (`loss.logvar`)
          vae/kl-ldm-whole.pt        f16, the same as {"state_dict": {"first_stage_model.": ...}}, as in a whole Stable
                                     Diffusion checkpoint: with tensors of the other networks that are not to be read,
                                     among them `model_ema.` and `cond_stage_model.` ones, some in f32
        LDM files do not tell the number of groups (theirs always have 32) nor the scaling factor: take kl/config.json's.
        In them the decoder's `up` counts from the last: up.0 is what runs last. q, k, v and proj_out are 1x1 convolutions.
        vae/kl.io.safetensors:
          latents [2,4,6,5]    as a sampler leaves them, that is, multiplied by the scaling factor
          pixels [2,3,24,20]   decode(latents / scaling_factor), not clamped to [-1, 1]
          image [1,3,24,20]    in [-1, 1]
          mean, logvar [1,4,6,5]        moments of encode(image), not multiplied; logvar is clamped to [-30, 20]
          odd.image [1,3,23,21] -> odd.mean, odd.logvar [1,4,5,5]: sides that do not divide (a downsampling pads one row and one
                               column, at the bottom and at the right, and rounds down)
  xl    vae/xl/: as SDXL's in what its config says (force_upcast, scaling_factor 0.13025), but also without quant_conv and
        post_quant_conv; block_out_channels [4,4], 2 layers a block, 2 groups, 3 latent channels. An f16 file.
        vae/xl.io.safetensors: latents [1,3,5,7] -> pixels [1,3,10,14], image [1,3,10,14] -> mean, logvar [1,3,5,7].
  tiny  vae/tiny/: an AutoencoderTiny (TAESD) of 4 channels for 64, (1,3,3,3) blocks in the encoder, (3,3,3,1) in the decoder,
        and the same weights as the authors release them, vae/tiny-{encoder,decoder}.safetensors, f16: layers as an
        nn.Sequential numbers them, `0.weight` or `3.conv.0.weight`. The decoder's numbers are one larger than diffusers', for
        the tanh counts as layer 0; the encoder's are the same.
        vae/tiny.io.safetensors: latents [1,4,3,4] -> pixels [1,3,24,32], image [1,3,24,32] -> encoded [1,4,3,4].
        Pixels are in [-1, 1] on both sides, as diffusers has them: the authors' own code has (pixels + 1) / 2. Nothing is
        clamped but the latents, softly, by 3 tanh(x / 3). There is one output, and no scaling.
"""

import json
import pathlib
import re
import sys

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from make import HERE, check_twin, normal, run_parts, write

FOLDER = HERE / "vae"
FILE = "diffusion_pytorch_model.safetensors"


def fill(model, seed, gain=1.0):
    """Random weights under which everything shows."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, value in model.state_dict().items():
        noise = torch.randn(value.shape, generator=generator)
        if value.ndim > 1:
            state[key] = noise * gain / value[0].numel() ** 0.5
        elif "norm" in key and key.endswith("weight"):
            state[key] = 1 + 0.3 * noise
        else:
            state[key] = 0.2 * noise
        state[key] = state[key].half().float()
    model.load_state_dict(state)
    return model.eval()


def picture(seed, *shape):
    """Smooth, in [-1, 1]."""
    batch, channels, height, width = shape
    return torch.tanh(F.interpolate(normal(seed, batch, channels, 4, 4, std=1.5), size=(height, width), mode="bicubic"))


def saved(model, name, dtype=torch.float32):
    """Writes a folder, and reads it back."""
    model.to(dtype).save_pretrained(FOLDER / name, safe_serialization=True)
    model.float()
    again = type(model).from_pretrained(FOLDER / name, low_cpu_mem_usage=False).eval()
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)
    return again


def check_all_show(name, model, run, out):
    """Every weight shows in one of the outputs."""
    least = {}
    for key, value in model.state_dict().items():
        kept = value.clone()
        value.mul_(0.5).add_(0.1)
        least[key] = max((a - b).abs().max().item() for a, b in zip(run(model), out))
        value.copy_(kept)
    # A constant added to keys or to all logits of a row changes nothing.
    least = {key: off for key, off in least.items() if not key.endswith("to_k.bias")}
    key = min(least, key=least.get)
    print(f"  {name}: std {[round(o.std().item(), 2) for o in out]}, the least that a weight does: {least[key]:.1e} ({key})")
    assert least[key] > 1e-3 and all(torch.isfinite(o).all() for o in out)


# ---------------------------------------------------------------------------------------------------------------------
# AutoencoderKL


def kl_run(scale, latents, image):
    def run(model):
        dtype = next(model.parameters()).dtype
        moments = model.encode(image.to(dtype)).latent_dist
        return model.decode(latents.to(dtype) / scale).sample, moments.mean, moments.logvar

    return run


def kl_case(name, model, latents, image):
    """What the io file holds for a network: inputs and outputs."""
    run = kl_run(model.config.scaling_factor, latents, image)
    out = run(model)
    check_all_show(name, model, run, out)
    for what, single, double in zip(("pixels", "mean", "logvar"), out, run(model.double())):
        check_twin(f"{name}, {what}", single, double)
    model.float()
    return dict(zip(("latents", "image", "pixels", "mean", "logvar"), (latents, image, *out)))


def to_ldm(state, blocks):
    """diffusers' names into those of the LDM code."""
    part = {r"conv_norm_out": "norm_out", r"conv_shortcut": "nin_shortcut"}
    part |= {r"mid_block\.attentions\.0\.group_norm": "mid.attn_1.norm"}
    part |= {rf"mid_block\.attentions\.0\.to_{i}": f"mid.attn_1.{i}" for i in "qkv"}
    part |= {r"mid_block\.attentions\.0\.to_out\.0": "mid.attn_1.proj_out"}
    ldm = {}
    for key, value in state.items():
        name = re.sub(r"down_blocks\.(\d)\.resnets\.", r"down.\1.block.", key)
        name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0\.", r"down.\1.downsample.", name)
        name = re.sub(r"up_blocks\.(\d)\.resnets\.", lambda m: f"up.{blocks - 1 - int(m[1])}.block.", name)
        name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0\.", lambda m: f"up.{blocks - 1 - int(m[1])}.upsample.", name)
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
        for pattern, replacement in part.items():
            name = re.sub(pattern, replacement, name)
        ldm[name] = value[:, :, None, None].clone() if "mid.attn_1" in name and value.ndim == 2 else value.clone()
    return ldm


OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def part_kl():
    from diffusers import AutoencoderKL
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    blocks = 3
    model = AutoencoderKL(
        block_out_channels=(4, 4, 8),
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        layers_per_block=1,
        norm_num_groups=2,
        latent_channels=4,
        sample_size=24,
        scaling_factor=0.2,
    )
    model = saved(fill(model, 1000), "kl")
    tensors = kl_case("kl", model, normal(1001, 2, 4, 6, 5, std=0.3), picture(1002, 1, 3, 24, 20))
    odd = picture(1003, 1, 3, 23, 21)
    moments = model.encode(odd).latent_dist
    assert moments.mean.shape == (1, 4, 5, 5)
    tensors |= {"odd.image": odd, "odd.mean": moments.mean, "odd.logvar": moments.logvar}
    write("vae/kl.io.safetensors", tensors)
    run = kl_run(0.2, tensors["latents"], tensors["image"])

    state = model.state_dict()
    pattern = re.compile(r"(mid_block\.attentions\.0\.)(to_[qkv]|to_out\.0)")
    old = {pattern.sub(lambda m: m[1] + OLD[m[2]], key): value for key, value in state.items()}
    assert sum("proj_attn" in key for key in old) == 4
    (FOLDER / "kl-old").mkdir(exist_ok=True)
    config = json.loads((FOLDER / "kl" / "config.json").read_text())
    config = {"_class_name": "AutoencoderKL", "_diffusers_version": "0.4.2"} | {
        key: config[key]
        for key in (
            "act_fn block_out_channels down_block_types in_channels latent_channels layers_per_block norm_num_groups "
            "out_channels sample_size up_block_types"
        ).split()
    }
    config["scaling_factor"] = 0.2  # folders of that time leave it out, and mean 0.18215
    (FOLDER / "kl-old" / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    write(f"vae/kl-old/{FILE}", {key: value.half() for key, value in old.items()}, {"format": "pt"})
    again = AutoencoderKL.from_pretrained(FOLDER / "kl-old", low_cpu_mem_usage=False).eval()
    assert all(torch.equal(a, b) for a, b in zip(run(again), run(model)))

    ldm = {key: value.half() for key, value in to_ldm(state, blocks).items()}
    write("vae/kl-ldm.safetensors", ldm | {"loss.logvar": torch.zeros(())})
    foreign = {
        "betas": torch.linspace(0.1, 0.2, 4),
        "model.diffusion_model.out.2.weight": normal(1004, 4, 4, 3, 3),
        "model_ema.decay": torch.tensor(0.9999),
        "cond_stage_model.transformer.text_model.final_layer_norm.bias": normal(1005, 8),
    }
    whole = foreign | {f"first_stage_model.{key}": value for key, value in ldm.items()}
    torch.save({"state_dict": whole, "global_step": 470000}, FOLDER / "kl-ldm-whole.pt")
    for read in (load_file(FOLDER / "kl-ldm.safetensors"), torch.load(FOLDER / "kl-ldm-whole.pt")["state_dict"]):
        back = convert_ldm_vae_checkpoint(read, model.config)
        assert back.keys() == state.keys() and all(torch.equal(back[key].float(), state[key]) for key in state)


def part_xl():
    from diffusers import AutoencoderKL

    model = AutoencoderKL(
        block_out_channels=(4, 4),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=2,
        norm_num_groups=2,
        latent_channels=3,
        sample_size=16,
        scaling_factor=0.13025,
        force_upcast=True,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    model = saved(fill(model, 1010), "xl", torch.float16)
    write("vae/xl.io.safetensors", kl_case("xl", model, normal(1011, 1, 3, 5, 7, std=0.2), picture(1012, 1, 3, 10, 14)))


# ---------------------------------------------------------------------------------------------------------------------
# TAESD


def taesd_decoder(weights, x):
    """The authors' decoder, layer by layer, from the file's own names. -> [0, 1]"""

    def conv(name, x):
        return F.conv2d(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"), padding=1)

    x = 3 * torch.tanh(x / 3)
    last = max(int(key.split(".")[0]) for key in weights)
    upsampled = []
    for layer in range(1, last + 1):
        if f"{layer}.conv.0.weight" in weights:
            inside = F.relu(conv(f"{layer}.conv.0", x))
            inside = F.relu(conv(f"{layer}.conv.2", inside))
            x = F.relu(x + conv(f"{layer}.conv.4", inside))
        elif f"{layer}.weight" in weights:
            x = conv(str(layer), x)
        elif layer == 2:
            x = F.relu(x)
        else:
            upsampled.append(layer)
            x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    assert upsampled == [6, 11, 16] and last == 19
    return x


def part_tiny():
    from diffusers import AutoencoderTiny

    channels = (4,) * 4
    model = AutoencoderTiny(encoder_block_out_channels=channels, decoder_block_out_channels=channels)
    model = saved(fill(model, 1025, gain=1.25), "tiny")
    latents, image = normal(1021, 1, 4, 3, 4, std=2.0), picture(1022, 1, 3, 24, 32)

    def run(model):
        dtype = next(model.parameters()).dtype
        return model.decode(latents.to(dtype)).sample, model.encode(image.to(dtype)).latents

    pixels, encoded = run(model)
    check_all_show("tiny", model, run, (pixels, encoded))
    for what, single, double in zip(("pixels", "encoded"), (pixels, encoded), run(model.double())):
        check_twin(f"tiny, {what}", single, double)
    model.float()
    files = {"encoder": {}, "decoder": {}}
    for key, value in model.state_dict().items():
        half, _, layer, rest = key.split(".", 3)
        files[half][f"{int(layer) + (half == 'decoder')}.{rest}"] = value.half()
    for half, weights in files.items():
        write(f"vae/tiny-{half}.safetensors", weights)
    weights = {key: value.float() for key, value in load_file(FOLDER / "tiny-decoder.safetensors").items()}
    theirs = taesd_decoder(weights, latents)
    torch.testing.assert_close(theirs * 2 - 1, pixels, atol=1e-5, rtol=1e-5)
    write("vae/tiny.io.safetensors", {"latents": latents, "image": image, "pixels": pixels, "encoded": encoded})


PARTS = {"kl": part_kl, "xl": part_xl, "tiny": part_tiny}

if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    run_parts(PARTS)
