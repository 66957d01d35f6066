"""Learned schedules of a second model, that nothing was tuned on, beside their rivals.

    pip install scikit-learn pillow
    python benches/second_model.py target/release/harmonica [FOLDER]      # half an hour on two cores

Handwritten digits (scikit-learn's, 1797 of 8×8, enlarged to 16×16) train a small DiT of another shape than the bundled one;
schedules are learned for it by the command that docs/training.md shows, with no flag of their own, and compared on 184 images.
What is there already is not made again.
"""

import json
import pathlib
import subprocess
import sys

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

SPEEDS = ["1.33", "1.6", "2", "3"]
RIVALS = ["steps:15", "steps:12", "taylor:2:1", "taylor:2:2", "steps:10", "steps:10:dpm++2m", "fora:2"]
RIVALS += ["taylor:3:1", "taylor:3:2", "fora:3", "steps:6"]


def pictures(folder):
    digits = load_digits()
    for number, (image, digit) in enumerate(zip(digits.images, digits.target)):
        path = folder / str(digit) / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        levels = (255 - image * 255 / 16).clip(0, 255).astype(np.uint8)
        Image.fromarray(levels).resize((16, 16), Image.BICUBIC).convert("RGB").save(path)


def main():
    program, folder = sys.argv[1], pathlib.Path(sys.argv[2] if len(sys.argv) > 2 else "out/second-model")

    def harmonica(words, *more):
        subprocess.run([program, *words.split(), *map(str, more)], check=True)

    if not (folder / "digits").exists():
        pictures(folder / "digits")
    if not (folder / "model/model.safetensors").exists():
        words = "train dit --device cpu --blocks 6 --hidden 128 --heads 4 --patch 2 --image-size 16 --flip off --shift 1"
        more = ["--data", folder / "digits", "--out", folder / "model"]
        harmonica(f"{words} --optimizer muon --images 60000 --sample-every 0", *more)
    model = folder / "model/model.safetensors"
    if not (folder / "ladder").exists():
        words = f"train router --device cpu --steps 20 --sweeps 2 --target-speedup {','.join(SPEEDS)}"
        harmonica(words, "--model", model, "--out", folder / "ladder")
    learned = [str(folder / f"ladder/router-speedup{speed}.schedule.json") for speed in SPEEDS]
    specs = ",".join([*learned, *RIVALS])
    command = [program, *"compare --device cpu --no-fewer-steps --steps 20 --count 184 --json -q --schedules".split(), specs]
    text = subprocess.run([*command, "--model", model], check=True, stdout=subprocess.PIPE, text=True).stdout
    rows = sorted(json.loads(text)["rows"][1:], key=lambda row: row["macs_ratio"])
    print("| schedule | MACs ratio | MSE × 1000 | median | worst | PSNR dB | SSIM |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for row in rows:
        name = "**learned**" if row["policy"] == "forecast" else f"`{row['schedule']}`"
        mse = f"{1e3 * row['mse']:.3f} ± {1e3 * row['mse_standard_error']:.3f}"
        others = f"{1e3 * row['mse_median']:.3f} | {1e3 * row['mse_max']:.2f} | {row['psnr']:.1f} | {row['ssim']:.4f}"
        print(f"| {name} | {row['macs_ratio']:.2f} | {mse} | {others} |")


if __name__ == "__main__":
    main()
