"""Makes anew whatever depends on the bundled weights: golden values, schedules, pictures, and the figures of README.md and docs/.

    pip install torch numpy pillow safetensors             # the CPU build will do
    python assets/refresh.py [--weights NEW.pt|NEW.safetensors]

`--weights` replaces assets/dit-emoji32.safetensors first. Wants a Vulkan device, if only Mesa's software driver, and three
hours on two cores that do nothing else: the times it measures are this machine's. What was measured is kept in out/refresh,
so a run that was stopped goes on where it was; delete that folder to measure changed code. Only the viewer's picture is left:
it needs a window. Tables go between `<!-- refresh:NAME -->` and `<!-- /refresh -->`, on whichever page has that block; the text
around them is yours to check, and ./test.sh comes after.
"""

import argparse
import hashlib
import json
import math
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
from PIL import Image
from safetensors.numpy import load_file

ROOT = pathlib.Path(__file__).resolve().parent.parent
OUT = ROOT / "out/refresh"
ROUTERS = ROOT / "assets/routers"
MODEL = ROOT / "assets/dit-emoji32.safetensors"
TARGETS = ["0.5", "0.375", "0.25"]
SHORT_RUN = "--passes 160 --lr 0.15"
# The runs that learned schedules of every speed come with.
LADDERS = {
    "ddim20": "--steps 20 --max-cache 0",
    "ddim50": "--steps 50 --sweeps 0",
    "dpmpp2m20": "--steps 20 --solver dpm++2m --max-cache 0 --sweeps 2 --target-speedup 1.33,1.6,2,3",
}
LONG_RUN = "--passes 50 --batch 2 --lr 0.15 --lambda-every 1250"


# ---------------------------------------------------------------------------------------------------------------------
# Running things


def build():
    """The command, with the weights and routers that lie in assets/ inside it."""
    command = ["cargo", "build", "--release", "--message-format", "json-render-diagnostics"]
    lines = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    built = [json.loads(line).get("executable") for line in lines]
    return next(path for path in reversed(built) if path)


class Command:
    def __init__(self):
        self.program = build()

    def __call__(self, words, *more):
        arguments = words.split() + [str(word) for word in more]
        print("harmonica", *arguments, flush=True)
        subprocess.run([self.program, *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)

    def json(self, words):
        """What the command prints as JSON; read from out/refresh if the same was asked for before, of the same files."""
        files = [(ROOT / spec).read_text() for spec in re.split("[ ,]", words) if spec.endswith(".schedule.json")]
        # Figures that were noted in a schedule change nothing that is measured.
        asked = hashlib.sha256("\n".join([words, *map(without_figures, files)]).encode()).hexdigest()[:16]
        kept = OUT / f"measured-{asked}.json"
        if not kept.exists():
            print("harmonica", words, flush=True)
            text = subprocess.run(
                [self.program, *words.split(), "--json", "-q"], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
            ).stdout
            write(kept, text)
        return json.loads(kept.read_text())


def write(path, text):
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    part.replace(path)


# ---------------------------------------------------------------------------------------------------------------------
# Routers


def train(harmonica, name, steps, words=""):
    """A run in a folder of its own; where it is finished, this only writes its schedules and picture again."""
    folder = OUT / name
    resume = ["--resume"] if (folder / "router.safetensors").exists() else []
    harmonica(f"train router --device cpu --steps {steps} --target-cur {','.join(TARGETS)} {words}", "--out", folder, *resume)
    return folder


def bounded(harmonica, folder, steps, share, targets):
    """Schedules of a finished run whose caches hold `share` of all features."""
    words = f"train router --device cpu --steps {steps} --max-cache {share} --target-cur {','.join(targets)} --resume"
    harmonica(words, "--out", folder)


def routers(harmonica):
    """The routers that are shipped, and those that are only compared with."""
    for steps, words in ((20, SHORT_RUN), (50, LONG_RUN)):
        folder = train(harmonica, f"router{steps}", steps, words)
        if steps == 20:
            bounded(harmonica, folder, steps, 0.75, TARGETS)
        bounded(harmonica, folder, steps, 0.5, ["0.375", "0.25"])
        for path in sorted(folder.glob("*.schedule.json")):
            if "cache0.75" in path.name:
                continue
            target = ROUTERS / path.name.replace("router-", f"ddim{steps}-")
            if without_figures(target.read_text()) != path.read_text():
                shutil.copy(path, target)
    shown = ROUTERS / "ddim20-cur0.5.schedule.json"
    harmonica("schedule show", shown, "--png", ROOT / "assets/router-harmonica.png")
    train(harmonica, "leave-one-out", 20, "--proxy leave-one-out --lambda-every 500")
    train(harmonica, "sdt-alone", 20, "--proxy none")
    train(harmonica, "pairs", 20, "--recipe learning-to-cache --passes 80 --lr 0.15")


def ladders(harmonica):
    """Learned schedules of every speed, searched and fitted; those of the first are drawn."""
    for name, words in LADDERS.items():
        folder = OUT / f"ladder-{name}"
        resume = ["--resume"] if (folder / "ladder.json").exists() else []
        harmonica(f"train router --device cpu {words}", "--out", folder, *resume)
        for path in folder.glob("*.schedule.json"):
            shutil.copy(path, ROUTERS / path.name.replace("router-", f"{name}-"))
    shutil.copy(OUT / "ladder-ddim20/router.png", ROOT / "assets/router.png")


def corrected_tables(harmonica):
    """What other policies and recipes make, with forecasts fitted to it, and the whole search for twice the speed with steps in part."""
    missing = [spec for _, spec in CORRECTED if not corrected_of(spec).exists()]
    if missing:
        harmonica(f"train router --device cpu --steps 20 --table {','.join(missing)}", "--out", OUT / "corrected")
    parts = OUT / "parts"
    if not (parts / "router-speedup2.schedule.json").exists():
        resume = ["--resume"] if (parts / "ladder.json").exists() else []
        harmonica("train router --device cpu --steps 20 --target-speedup 2", "--out", parts, *resume)


def corrected_of(spec):
    name = pathlib.Path(spec).name.removesuffix(".schedule.json")
    return OUT / f"corrected/corrected-{re.sub('[^A-Za-z0-9.]', '-', name)}.schedule.json"


# ---------------------------------------------------------------------------------------------------------------------
# Figures


def markdown(header, rows, names=1):
    lines = [header, ["---"] * names + ["---:"] * (len(header) - names), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def error(row):
    """MSE with its standard error, and PSNR."""
    if row["mse"] == 0:
        return ["0", "–"]
    return [f"{1e3 * row['mse']:.2f} ± {1e3 * row['mse_standard_error']:.2f}", f"{row['psnr']:.1f}"]


def without_figures(text):
    """A schedule file as `train router` writes it, without the error that is measured afterwards."""
    return re.sub(r',\s*"mse":.*?"images": \d+', "", text, flags=re.S)


def note(path, row, images):
    """The error of a shipped schedule into its file."""
    figures = "".join(f',\n    "{key}": {json.dumps(value)}' for key, value in (("mse", row["mse"]), ("psnr", row["psnr"]), ("images", images)))
    text, count = re.subn(r'("macs_ratio": [^\s,]+)(\n  }\n})', rf"\1{figures}\2", without_figures(path.read_text()))
    if count != 1:
        sys.exit(f"{path}: expected the figures of a schedule at its end")
    if text != path.read_text():
        write(path, text)


def compare(harmonica, rows, words):
    """A table of `rows`, pairs of what the page calls a schedule and what the command does."""
    specs = ",".join(spec for _, spec in rows if spec != "none")
    document = harmonica.json(f"compare --device cpu --no-fewer-steps {words} --schedules {specs}")
    measured = document["rows"][-len(rows) :]
    for (_, spec), row in zip(rows, measured, strict=True):
        if spec.startswith("assets/"):
            note(ROOT / spec, row, document["images"])
    return [
        [title, f"{100 * row['cur']:.1f}", f"{row['macs_ratio']:.2f}", *error(row)]
        for (title, _), row in zip(rows, measured, strict=True)
    ]


def shipped(steps, target, suffix=""):
    return f"assets/routers/ddim{steps}-cur{target}{suffix}.schedule.json"


ERROR_HEADER = ["schedule", "CUR %", "MACs ratio", "MSE × 1000", "PSNR dB"]


def whole_steps(count):
    """The router's scores, but a step is reused whole or not at all: those of the lowest mean score are."""
    file = json.loads((OUT / "router20/router-cur0.5.schedule.json").read_text())
    scores = (1 / (1 + np.exp(-np.array(file.pop("logits"))))).mean(axis=1)
    scores[0] = np.inf  # the first step has no cache
    reused = set(np.argsort(scores)[:count].tolist())
    file.pop("threshold", None)
    rows = [("." if step in reused else "#") * len(row) for step, row in enumerate(file["compute"])]
    return table(f"whole-steps{count}", file, rows)


def table(name, file, rows):
    """A schedule like `file` with another table."""
    path = OUT / f"{name}.schedule.json"
    write(path, json.dumps(file | {"compute": rows}))
    return str(path.relative_to(ROOT))


FRONT_HEADER = ["schedule", "MACs ratio", "MSE × 1000", "median", "worst", "PSNR dB", "SSIM", "cache"]


def measured_front(harmonica, rows, words, truth=None):
    """What the command says of `rows`."""
    specs = ",".join(spec for _, spec in rows if spec != "none")
    more = f" --truth {truth}" if truth else ""
    return harmonica.json(f"compare --device cpu --no-fewer-steps {words}{more} --schedules {specs}")["rows"][-len(rows) :]


def front(harmonica, rows, words, truth=None):
    """A table of the front: `rows` as in `compare`, and where `truth` steps stand for the true solution, the error to it."""
    measured = measured_front(harmonica, rows, words, truth)
    cells = []
    for (title, _), row in zip(rows, measured, strict=True):
        exact = row["mse"] == 0
        thousand = [f"{1e3 * row[key]:.2f}" for key in ("mse_median", "mse_max")]
        figures = ["–"] * 3 if exact else [*thousand, f"{row['psnr']:.1f}"]
        line = [title, f"{row['macs_ratio']:.2f}", error(row)[0], *figures, f"{row['ssim']:.3f}"]
        line.append(f"{row['peak_cache_bytes'] / 1e6:.0f} MB" if row["peak_cache_bytes"] else "none")
        if truth:
            line.append(f"{1e3 * row['mse_true']:.2f} ± {1e3 * row['mse_true_standard_error']:.2f}")
        cells.append(line)
    return markdown(FRONT_HEADER + (["to the true solution"] if truth else []), cells)


def learned(*speeds):
    return [(f"**learned, {speed}×** (`--speed {speed}`)", f"learned:{speed}") for speed in speeds]


def fewer(*steps, solver=None):
    name = f"{solver}, " if solver else "plain "
    more = f":{solver}" if solver else ""
    return [(f"{name}{count} steps", f"steps:{count}{more}") for count in steps]


def policies(*specs):
    return [(f"`{spec}`", spec) for spec in specs]


def front_rows_20():
    return [
        ("uncached", "none"),
        *learned("1.25", "1.33"),
        *fewer(15),
        ("HarmoniCa's router", shipped(20, "0.25")),
        *policies("fb:0.05", "fb:0.1"),
        *learned("1.6"),
        *fewer(12),
        ("HarmoniCa's router", shipped(20, "0.375")),
        *policies("taylor:2:1", "taylor:2:2"),
        *learned("2"),
        *fewer(10),
        *fewer(10, solver="dpm++2m"),
        ("HarmoniCa's router", shipped(20, "0.5")),
        *policies("fora:2", "taylor:3:1", "taylor:3:2"),
        *learned("2.5", "3"),
        *fewer(7, 6),
        *policies("fora:3"),
        *learned("4"),
        *fewer(5),
    ]


FRONT_20 = "--steps 20 --count 92 --plot assets/front.png"


def front_20(harmonica):
    return front(harmonica, front_rows_20(), FRONT_20, truth=500)


def speeds(harmonica):
    """Learned schedules beside plain steps of the same work: rows of the front's table."""
    rows = front_rows_20()
    by_spec = dict(zip((spec for _, spec in rows), measured_front(harmonica, rows, FRONT_20, truth=500), strict=True))
    lines = []
    for speed, steps in (("1.33", 15), ("1.6", 12), ("2", 10), ("3", 6), ("4", 5)):
        row, plain = by_spec[f"learned:{speed}"], by_spec[f"steps:{steps}"]
        lines.append([f"`--speed {speed}`", f"{row['macs_ratio']:.2f}", error(row)[0], error(plain)[0], str(steps)])
    return markdown(["", "MACs ratio", "learned", "plain steps", "how many"], lines)


def front_50(harmonica):
    rows = [
        *learned("1.33"),
        *fewer(38),
        *learned("1.6"),
        *fewer(31),
        *policies("taylor:2:1", "taylor:2:2"),
        *learned("2"),
        *fewer(25),
        *policies("fora:2", "taylor:3:1", "taylor:3:2"),
        *learned("3"),
        *fewer(17),
        *policies("fora:3", "taylor:4:1", "taylor:4:2"),
    ]
    return front(harmonica, rows, "--steps 50 --count 92")


def front_dpm(harmonica):
    rows = [
        *learned("1.33"),
        *fewer(15),
        *learned("1.6"),
        *fewer(12),
        *policies("taylor:2:1", "taylor:2:2"),
        *learned("2"),
        *fewer(10),
        *policies("fora:2"),
        *learned("3"),
        *fewer(6),
    ]
    return front(harmonica, rows, "--steps 20 --solver dpm++2m --count 92")


def error_20(harmonica):
    def routers_of(target):
        return [
            ("HarmoniCa, sensitivity", shipped(20, target)),
            ("HarmoniCa, leave-one-out (paper)", f"out/refresh/leave-one-out/router-cur{target}.schedule.json"),
            ("SDT alone (λ = 1)", f"out/refresh/sdt-alone/router-cur{target}.schedule.json"),
        ]

    rows = [
        ("uncached", "none"),
        *routers_of("0.5"),
        ("sensitivity's scores, whole steps only", whole_steps(10)),
        ("FORA: every other step (`fora:2`)", "fora:2"),
        ("random table (`random:0.5:1`)", "random:0.5:1"),
        ("plain DDIM, 10 steps", "steps:10"),
        *routers_of("0.375"),
        ("sensitivity's scores, whole steps only", whole_steps(7)),
        ("random table (`random:0.375:1`)", "random:0.375:1"),
        ("plain DDIM, 12 steps", "steps:12"),
        *routers_of("0.25"),
        ("sensitivity's scores, whole steps only", whole_steps(5)),
        ("random table (`random:0.25:1`)", "random:0.25:1"),
        ("plain DDIM, 15 steps", "steps:15"),
    ]
    return markdown(ERROR_HEADER, compare(harmonica, rows, "--steps 20 --count 92"))


def error_50(harmonica):
    rows = [
        ("HarmoniCa, sensitivity", shipped(50, "0.5")),
        ("FORA: every other step (`fora:2`)", "fora:2"),
        ("plain DDIM, 25 steps", "steps:25"),
        ("HarmoniCa, sensitivity", shipped(50, "0.375")),
        ("… with half the cache", shipped(50, "0.375", "-cache0.5")),
        ("HarmoniCa, sensitivity", shipped(50, "0.25")),
        ("… with half the cache", shipped(50, "0.25", "-cache0.5")),
    ]
    return markdown(ERROR_HEADER, compare(harmonica, rows, "--steps 50 --count 46"))


CORRECTED = [
    ("`fora:2`", "fora:2"),
    ("`taylor:2:1`", "taylor:2:1"),
    ("`foca:2`", "foca:2"),
    *((f"HarmoniCa's router, CUR {100 * float(target):g} %", f"assets/routers/ddim20-cur{target}.schedule.json") for target in TARGETS),
    *((f"Learning-to-Cache's, CUR {100 * float(target):g} %", f"out/refresh/pairs/router-cur{target}.schedule.json") for target in TARGETS[1:]),
]


def corrected(harmonica):
    """Tables as they are and with forecasts fitted to them."""
    specs = [path for _, spec in CORRECTED for path in (spec, str(corrected_of(spec).relative_to(ROOT)))]
    alone = ["learned:2", "out/refresh/parts/router-speedup2.schedule.json"]
    rows = [(spec, spec) for spec in specs + alone]
    measured = measured_front(harmonica, rows, "--steps 20 --count 92")
    memory = lambda row: f"{row['peak_cache_bytes'] / 1e6:.0f} MB" if row["peak_cache_bytes"] else "none"
    median = lambda row: f"{1e3 * row['mse_median']:.2f}"
    cells = [
        [title, f"{after['macs_ratio']:.2f}", error(before)[0], median(before), error(after)[0], median(after), memory(after)]
        for (title, _), before, after in zip(CORRECTED, measured[:-2:2], measured[1:-2:2], strict=True)
    ]
    titles = ["learned, whole steps (`--speed 2`)", "… with steps in part"]
    for title, row in zip(titles, measured[-2:], strict=True):
        cells.append([title, f"{row['macs_ratio']:.2f}", "–", "–", error(row)[0], median(row), memory(row)])
    return markdown(["table", "MACs ratio", "as it is", "median", "corrected", "median", "cache"], cells)


def cache(harmonica):
    """What a bound on the cache costs in error."""
    rows = []
    for target in reversed(TARGETS):
        rows.append(("shipped", shipped(20, target)))
        rows.append(("", f"out/refresh/router20/router-cur{target}-cache0.75.schedule.json"))
        if target != "0.5":
            rows.append(("shipped", shipped(20, target, "-cache0.5")))
    specs = ",".join(spec for _, spec in rows)
    sizes = harmonica.json(f"bench --device cpu --steps 20 --runs 1 --schedules {specs}")["rows"][-len(rows) :]
    cells = []
    for (name, cur, _, *errors), size in zip(compare(harmonica, rows, "--steps 20 --count 92"), sizes, strict=True):
        share = 100 * size["peak_cache_bytes"] / size["all_features_bytes"]
        cells.append([cur, f"{share:.0f} %", f"{share / 2:.0f} %", *errors, name])
    return markdown(["CUR %", "cache of all features, f32", "f16", "MSE × 1000", "PSNR dB", ""], cells, names=0)


def saturation(harmonica):
    """Error of reusing some random branches of one step alone."""
    blank = OUT / "none.schedule.json"
    harmonica("schedule make none --out", blank)
    file = json.loads(blank.read_text())
    steps, branches, counts = [6, 9, 12], len(file["compute"][0]), [3, 6, 12, 24]
    specs, order = [], np.random.default_rng(0).permutation(branches)
    for step in steps:
        for count in counts:
            row = np.full(branches, "#")
            row[order[:count]] = "."
            rows = ["".join(row) if s == step else "#" * branches for s in range(len(file["compute"]))]
            specs.append(table(f"step{step}-{count}", file, rows))
    rows = harmonica.json(f"compare --device cpu --no-fewer-steps --steps 20 --count 46 --schedules {','.join(specs)}")["rows"]
    values = iter(rows[-len(specs) :])
    cells = [[str(step), *(f"{1e3 * next(values)['mse']:.3f}" for _ in counts)] for step in steps]
    return markdown(["step", *(f"{count} of {branches} reused" for count in counts)], cells)


BENCH_CPU = "--batch 8 --runs 7"


def measured_bench(harmonica, device, words):
    """Pairs of what the page calls a schedule and what the command says of it, the uncached run first."""
    rows = [
        ("router, 25 %", shipped(20, "0.25")),
        ("router, 37.5 %", shipped(20, "0.375")),
        ("router, 50 %", shipped(20, "0.5")),
        ("router, 37.5 %, half the cache", shipped(20, "0.375", "-cache0.5")),
        ("`fora:2`", "fora:2"),
        ("learned, 2×", "learned:2"),
        ("learned, 3×", "learned:3"),
    ]
    specs = ",".join(spec for _, spec in rows)
    measured = harmonica.json(f"bench --device {device} --steps 20 {words} --schedules {specs}")["rows"]
    titles = ["uncached", *(title for title, _ in rows)]
    return list(zip(titles, [measured[0], *measured[-len(rows) :]], strict=True))


def speedup(row):
    return f"{row['speedup']:.2f} ({row['speedup_min']:.2f}–{row['speedup_max']:.2f})"


def bench(harmonica, device, words):
    (_, full), *measured = measured_bench(harmonica, device, words)
    cells = []
    for title, row in measured:
        run = speedup(row)
        spans = row["parts"]["reuse"]
        total = sum(part["seconds"] for part in row["parts"].values())
        cells.append(
            [title, f"{100 * row['cur']:.1f}", f"{row['macs_ratio']:.2f}", run, f"{row['efficiency']:.2f}"]
            + [f"{100 * row['peak_cache_bytes'] / row['all_features_bytes']:.0f} %", f"{100 * spans['seconds'] / total:.1f} %"]
            + ([f"{row['dispatches_per_run']} of {full['dispatches_per_run']}"] if device != "cpu" else [])
        )
    header = ["schedule", "CUR %", "MACs ratio", "speed-up", "efficiency", "cache of all features", "spans' share of the run"]
    return markdown(header + (["dispatches"] if device != "cpu" else []), cells)


def pair(harmonica):
    """Six pictures uncached and at 2×, and their difference."""
    classes = "face-flat,heart-3d,flag-flat,clock-flat,animal-3d,bird-flat"
    pictures = []
    for name, words in (("uncached", "--schedule none"), ("learned", "--speed 2")):
        path = ROOT / f"assets/pair-{name}.png"
        harmonica(f"sample -q --device cpu --classes {classes} {words}", "--out", path)
        pictures.append(np.asarray(Image.open(path).convert("RGB")).astype(int))
    difference = (4 * abs(pictures[0] - pictures[1])).clip(0, 255).astype(np.uint8)
    Image.fromarray(difference).save(ROOT / "assets/pair-difference.png", optimize=True)
    row = dict(measured_bench(harmonica, "cpu", BENCH_CPU))["learned, 2×"]
    shown = ["Six emoji, everything computed", "The same noise, half of the work", "Their difference"]
    names = ["uncached", "learned", "difference"]
    cells = [f"![{text}](assets/pair-{name}.png)" for text, name in zip(shown, names, strict=True)]
    header = ["uncached", f"learned, `--speed 2`: {speedup(row)} times as fast", "difference × 4"]
    return markdown(header, [cells], names=3)


def same_noise(harmonica):
    """PSNR between runs of one seed that should be equal: two devices, two precisions of the cache."""
    runs = {
        "cpu": "--device cpu --steps 6 --count 2 --schedule none",
        "vulkan": "--device vulkan --steps 6 --count 2 --schedule none",
        "cpu-reuse": "--device cpu --steps 6 --count 2 --schedule random:0.5",
        "vulkan-reuse": "--device vulkan --steps 6 --count 2 --schedule random:0.5",
        "vulkan-f16": "--device vulkan --steps 6 --count 2 --schedule random:0.5 --cache-dtype f16",
        "cpu-f16": "--device cpu --steps 6 --count 2 --schedule random:0.5 --cache-dtype f16",
        "eight": "--device cpu --steps 8 --count 46 --schedule random:0.5",
        "eight-f16": "--device cpu --steps 8 --count 46 --schedule random:0.5 --cache-dtype f16",
    }
    images = {}
    for name, words in runs.items():
        path = OUT / f"{name}.safetensors"
        harmonica(f"sample -q {words} --save-tensors", path, "--out", path.with_suffix(".png"))
        images[name] = load_file(path)["samples"].astype(np.float64)

    def psnr(a, b):
        # Values lie in [-1, 1].
        return f"{10 * math.log10(4 / np.mean((images[a] - images[b]) ** 2)):.0f} dB"

    rows = [
        ["CPU and Vulkan, 6 uncached steps", psnr("cpu", "vulkan")],
        ["CPU and Vulkan, half the branches reused", psnr("cpu-reuse", "vulkan-reuse")],
        ["CPU and Vulkan, half the branches reused, f16 cache", psnr("cpu-f16", "vulkan-f16")],
        ["f16 and f32 cache, 8 steps, half the branches reused", psnr("eight", "eight-f16")],
    ]
    return markdown(["the same seed", "PSNR"], rows)


def put(name, table):
    """The table into the page that has its block."""
    pattern = re.compile(rf"(<!-- refresh:{name} -->\n).*?(<!-- /refresh -->)", re.S)
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    found = [page for page in pages for _ in pattern.findall(page.read_text())]
    if len(found) != 1:
        places = ", ".join(str(page.relative_to(ROOT)) for page in found) or "no page"
        sys.exit(f"expected `<!-- refresh:{name} -->` once in README.md and docs/*.md, found it in {places}")
    page = found[0]
    page.write_text(pattern.sub(lambda match: f"{match[1]}{table}\n{match[2]}", page.read_text()))
    print(table, flush=True)


# ---------------------------------------------------------------------------------------------------------------------


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=pathlib.Path, help="new weights: a .pt or .safetensors file")
    options = parser.parse_args()

    if options.weights:
        names = ROOT / "assets/emoji32/classes.json"
        words = "convert --heads 3 --dtype f16 --clip-x0 on --class-names"
        Command()(words, names, "--model", options.weights.resolve(), "--out", MODEL)
    # What belongs to other weights must not be taken for this run's.
    stamp, mark = OUT / "weights", hashlib.sha256(MODEL.read_bytes()).hexdigest()
    if not stamp.exists() or stamp.read_text() != mark:
        shutil.rmtree(OUT, ignore_errors=True)
        OUT.mkdir(parents=True)
    stamp.write_text(mark)

    subprocess.run([sys.executable, ROOT / "tests/golden/make.py", "bundled"], cwd=ROOT, check=True)
    harmonica = Command()
    routers(harmonica)
    ladders(harmonica)
    harmonica = Command()  # now with the new schedules inside
    put("front20", front_20(harmonica))
    put("speeds", speeds(harmonica))
    put("front50", front_50(harmonica))
    put("frontdpm", front_dpm(harmonica))
    put("error20", error_20(harmonica))
    put("error50", error_50(harmonica))
    put("cache", cache(harmonica))
    put("saturation", saturation(harmonica))
    corrected_tables(harmonica)
    put("corrected", corrected(harmonica))
    harmonica("sample --device cpu --out assets/sample.png")
    harmonica("compare --device cpu --schedules learned:2 --no-fewer-steps --count 6 --film assets/film.png")
    put("bench-cpu", bench(harmonica, "cpu", BENCH_CPU))
    put("pair", pair(harmonica))
    put("bench-vulkan", bench(harmonica, "vulkan", "--runs 2"))
    put("same-seed", same_noise(harmonica))


if __name__ == "__main__":
    main()
