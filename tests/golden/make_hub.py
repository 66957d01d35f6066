"""A pipeline folder as it lies on the hub, in every form in which its weights are published.

    python tests/golden/make_hub.py

Needs torch, safetensors and diffusers. Written like make.py, whose helpers it uses, beside it: seeds are fixed, everything is
float32, and the files are always the same.

  hub/       a whole DiTPipeline as diffusers saves it: model_index.json with the names of its 5 classes (two of them share a
             synonym), scheduler (DDIM, as the release's folders have it), transformer (8x8 latents of 4 channels, patch 2,
             hidden 8, 2 blocks, 2 heads), vae (one level of 4 channels)
  hub-forms/ the same transformer again, a folder a form, each with its config.json:
               fp16           diffusion_pytorch_model.fp16.safetensors
               sharded        several safetensors shards and their index
               fp16-sharded   the same of the variant
               bin            diffusion_pytorch_model.bin
               bin-sharded    several shards and their index
             scheduler holds that of PixArt's folders, which is DPM-Solver++ (2M), and has a number that JSON does not know
  hub.io.safetensors   x [3,4,8,8], t [3], y [3] i64 (the null label last) -> out [3,8,8,8], diffusers' own; out_fp16 is that of
             weights rounded to f16, computed in f32.
"""

import json
import pathlib
import shutil
import sys

import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from make import HERE, alive, check_alive, forward_case, run_parts, write

LABELS = {
    0: "tench, Tinca tinca",
    1: "goldfish, Carassius auratus",
    2: "great white shark, white shark, man-eater",
    3: "crane",
    4: "crane, lifting machine",
}


def part_hub():
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        DiTPipeline,
        DiTTransformer2DModel,
        DPMSolverMultistepScheduler,
    )

    def filled(model, seed):
        generator = torch.Generator().manual_seed(seed)
        state = {k: alive(k, v.shape, generator) for k, v in model.state_dict().items()}
        # Blocks repeat their embedders, as in the published folders.
        state = {k: state[k.replace("blocks.1.norm1.emb", "blocks.0.norm1.emb")] for k in state}
        model.load_state_dict(state)
        return model.eval()

    transformer = filled(
        DiTTransformer2DModel(
            num_layers=2,
            num_attention_heads=2,
            attention_head_dim=4,
            in_channels=4,
            out_channels=8,
            sample_size=8,
            patch_size=2,
            num_embeds_ada_norm=5,
        ),
        700,
    )
    vae = AutoencoderKL(block_out_channels=(4,), layers_per_block=1, norm_num_groups=2, sample_size=8).eval()
    vae.load_state_dict(filled_vae(vae, 701))
    scheduler = DDIMScheduler(clip_sample=False, beta_schedule="linear", beta_start=1e-4, beta_end=0.02)
    pipeline = DiTPipeline(transformer, vae, scheduler, id2label=LABELS)

    folder, forms = HERE / "hub", HERE / "hub-forms"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(forms, ignore_errors=True)
    pipeline.save_pretrained(folder)
    index = json.loads((folder / "model_index.json").read_text())
    # diffusers reads the names from there, as the published folders have them, and leaves them out when it saves.
    index["id2label"] = {str(n): label for n, label in LABELS.items()}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    assert DiTPipeline.from_pretrained(folder).labels["tench"] == 0
    shard = "14KB"
    transformer.save_pretrained(forms / "sharded", max_shard_size=shard)
    transformer.save_pretrained(forms / "bin", safe_serialization=False)
    transformer.save_pretrained(forms / "bin-sharded", safe_serialization=False, max_shard_size=shard)
    half = DiTTransformer2DModel.from_pretrained(folder / "transformer", torch_dtype=torch.float16)
    half.save_pretrained(forms / "fp16", variant="fp16")
    half.save_pretrained(forms / "fp16-sharded", variant="fp16", max_shard_size="7KB")
    for form in ("fp16", "fp16-sharded"):
        # Where it was read from is nobody's business.
        config = forms / form / "config.json"
        said = json.loads(config.read_text())
        said.pop("_name_or_path", None)
        config.write_text(json.dumps(said, indent=2, sort_keys=True) + "\n")

    dpm = DPMSolverMultistepScheduler(beta_schedule="linear", beta_start=1e-4, beta_end=0.02)
    dpm.save_pretrained(forms / "scheduler")
    assert "-Infinity" in (forms / "scheduler" / "scheduler_config.json").read_text()

    case = forward_case(710, 4, 8, 8, [2, 4, 5])

    def out(model):
        return model(case["x"], timestep=case["t"], class_labels=case["y"]).sample

    right, rounded = out(transformer), out(half.float().eval())
    check_alive(right)
    assert 1e-5 < (right - rounded).abs().max() < 0.05
    for form in ("sharded", "bin", "bin-sharded"):
        again = DiTTransformer2DModel.from_pretrained(forms / form, use_safetensors="bin" not in form)
        assert torch.equal(out(again.eval()), right), form
    for form in ("fp16", "fp16-sharded"):
        again = DiTTransformer2DModel.from_pretrained(forms / form, variant="fp16").float()
        assert torch.equal(out(again.eval()), rounded), form
    write("hub.io.safetensors", case | {"out": right, "out_fp16": rounded})
    files = [path for root in (folder, forms) for path in root.rglob("*") if path.is_file()]
    print(f"  {sum(path.stat().st_size for path in files) / 1e3:.0f} KB")


def filled_vae(vae, seed):
    generator = torch.Generator().manual_seed(seed)
    return {k: torch.randn(v.shape, generator=generator) * 0.2 for k, v in vae.state_dict().items()}


if __name__ == "__main__":
    run_parts({"hub": part_hub})
