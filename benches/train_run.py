"""A whole `harmonica train dit` run again in PyTorch: the same settings, data and learning rates, other random numbers.

    harmonica train dit --device cpu --data assets/emoji32 --minutes 60 --optimizer muon --balance 0.85 --out run
    pip install torch numpy pillow safetensors      # the CPU build will do
    python benches/train_run.py run [--bf16]

Reads what the run says of itself (checkpoint.safetensors, train.jsonl), trains as long, writes pytorch.jsonl beside it, and
prints the mean squared errors of both by tenths of the run, with the standard errors of the means. Goes on where it was stopped.
"""

import argparse
import json
import math
import os
import pathlib
import statistics
import time

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open

import train_step  # whose formulas are in single precision
from make import Dit, random_dit
from make_train import Muon, branch_matrices, losses as image_losses

SAVE_EVERY = 500


def read_run(folder):
    with safe_open(folder / "checkpoint.safetensors", "pt") as file:
        saved = json.loads(file.metadata()["harmonica"])
    lines = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    return saved, lines


def read_atlas(folder):
    index = json.loads((folder / "classes.json").read_text())
    side, columns = index["tile"], index["columns"]
    pictures, labels = [], []
    for entry in index["classes"]:
        atlas = np.asarray(Image.open(folder / f"{entry['name']}.png").convert("RGB"))
        for tile in range(entry["tiles"]):
            y, x = divmod(tile, columns)
            pictures.append(atlas[y * side : (y + 1) * side, x * side : (x + 1) * side])
            labels.append(entry["id"])
    pictures = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return pictures, torch.tensor(labels), {entry["id"]: entry["name"] for entry in index["classes"]}


class Data:
    def __init__(self, folder, settings):
        self.pictures, self.labels, names = read_atlas(folder)
        self.classes = len(names)
        counts = torch.bincount(self.labels, minlength=self.classes).double()
        self.weights = (counts ** -settings["balance"])[self.labels]
        mirrors = [settings["flip"] and not any(word in names[c] for word in settings["no_flip"]) for c in range(self.classes)]
        self.mirrors = torch.tensor(mirrors)
        self.batch, self.dropout = settings["batch"], settings["label_dropout"]

    def draw(self, generator):
        picked = torch.multinomial(self.weights, self.batch, True, generator=generator)
        labels = self.labels[picked]
        chance = torch.rand(2, self.batch, generator=generator)
        mirrored = (chance[0] < 0.5) & self.mirrors[labels]
        images = self.pictures[picked]
        images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
        labels = torch.where(chance[1] < self.dropout, self.classes, labels)
        return images, torch.randn(images.shape, generator=generator), torch.randint(0, 1000, (self.batch,), generator=generator), labels


class Training:
    def __init__(self, saved):
        config, self.settings = saved["config"], saved["settings"]
        height, width = config["input_size"]
        shape = {key: config[key] for key in ("patch", "channels", "hidden", "blocks", "heads", "classes")}
        dit = random_dit(1, height=height, width=width, learn_sigma=config["learned_sigma"], **shape)
        release_weights(dit.weights)
        self.dit = dit
        self.trained = {name: w.requires_grad_() for name, w in dit.weights.items() if name != "pos_embed"}
        matrices = branch_matrices(self.trained) if self.settings["optimizer"] == "muon" else {}
        rest = [w for name, w in self.trained.items() if name not in matrices]
        betas, decay = (self.settings["beta1"], self.settings["beta2"]), self.settings["weight_decay"]
        self.muon = Muon(matrices, 0.0, decay)
        self.adamw = torch.optim.AdamW(rest, lr=0.0, betas=betas, weight_decay=decay)
        self.generator = torch.Generator().manual_seed(1)

    def step(self, data, lr, half):
        images, noise, timesteps, labels = data.draw(self.generator)

        def network(x, t, y):
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                return self.dit(x, t, y).float()

        mse, vlb = image_losses(network, images, noise, timesteps, labels)
        for w in self.trained.values():
            w.grad = None
        (mse + self.settings["vlb_weight"] * vlb).mean().backward()
        torch.nn.utils.clip_grad_norm_(self.trained.values(), self.settings["clip"])
        self.muon.lr = self.adamw.param_groups[0]["lr"] = lr
        self.adamw.step()
        self.muon.step()
        return mse.mean().item()

    def save(self, path, losses, half):
        state = {
            "weights": {name: w.detach() for name, w in self.trained.items()},
            "adamw": self.adamw.state_dict(),
            "muon": self.muon.buffers,
            "generator": self.generator.get_state(),
            "losses": losses,
            "half": half,
            "settings": self.settings,
        }
        part = path.with_suffix(".part")
        torch.save(state, part)
        os.replace(part, path)

    def load(self, path, half):
        state = torch.load(path, weights_only=True)
        if state["half"] != half:
            raise SystemExit(f"{path} was begun {'with' if state['half'] else 'without'} --bf16: say so again, or delete it")
        if state["settings"] != self.settings:
            raise SystemExit(f"{path} is of a run with other settings: delete it to begin again")
        with torch.no_grad():
            for name, w in self.trained.items():
                w.copy_(state["weights"][name])
        self.adamw.load_state_dict(state["adamw"])
        self.muon.buffers = state["muon"]
        self.generator.set_state(state["generator"])
        return state["losses"]


def release_weights(weights):
    """As the public release initialises a DiT."""
    generator = torch.Generator().manual_seed(2)
    for name, w in weights.items():
        if name == "pos_embed":
            continue
        if name.endswith(".bias") or "adaLN_modulation" in name or name.startswith("final_layer.linear"):
            w.zero_()
        elif "t_embedder" in name or "y_embedder" in name:
            w.normal_(std=0.02, generator=generator)
        else:
            outputs, inputs = w.shape[0], w[0].numel()
            bound = math.sqrt(6 / (inputs + outputs))
            w.uniform_(-bound, bound, generator=generator)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=pathlib.Path, help="the folder of a finished run on an atlas, begun from fresh weights")
    parser.add_argument("--data", type=pathlib.Path, default=train_step.ROOT / "assets/emoji32")
    parser.add_argument("--bf16", action="store_true", help="matrix products in bf16, twice as fast on CPUs that have it")
    options = parser.parse_args()

    saved, lines = read_run(options.run)
    settings = saved["settings"]
    for key, value in (("min_snr", None), ("shift", 0), ("precision", "f32")):
        if settings[key] != value:
            parser.error(f"the run was trained with {key} {settings[key]}, which this program leaves out")
    if settings["balance"] == 0:
        parser.error("the run was trained without --balance, by epochs: this program draws with replacement")
    if len(lines) < 20:
        parser.error(f"the run has {len(lines)} steps, expected 20 or more")
    Dit.attention = train_step.fused_attention
    data, training = Data(options.data, settings), Training(saved)
    state = options.run / "pytorch.pt"
    losses = training.load(state, options.bf16) if state.exists() else []
    started, first = time.perf_counter(), len(losses)
    for line in lines[first:]:
        losses.append(training.step(data, line["lr"], options.bf16))
        if len(losses) % SAVE_EVERY == 0 or len(losses) == len(lines):
            training.save(state, losses, options.bf16)
            rate = (len(losses) - first) * settings["batch"] / (time.perf_counter() - started)
            print(f"step {len(losses)} of {len(lines)}, {rate:.0f} images/s", flush=True)
    with open(options.run / "pytorch.jsonl", "w") as file:
        for step, mse in enumerate(losses):
            file.write(json.dumps({"step": step, "mse": mse}) + "\n")

    print("| part of the run | harmonica | PyTorch | difference |\n| --- | ---: | ---: | ---: |")
    ours = [line["mse"] for line in lines]
    for tenth in range(10):
        part = slice(len(ours) * tenth // 10, len(ours) * (tenth + 1) // 10)
        means = [statistics.fmean(values[part]) for values in (ours, losses)]
        errors = [statistics.stdev(values[part]) / math.sqrt(len(values[part])) for values in (ours, losses)]
        print(
            f"| {10 * tenth}–{10 * (tenth + 1)} % | {means[0]:.5f} ± {errors[0]:.5f} | {means[1]:.5f} ± {errors[1]:.5f} "
            f"| {means[0] - means[1]:+.5f} ± {math.hypot(*errors):.5f} |"
        )


if __name__ == "__main__":
    main()
