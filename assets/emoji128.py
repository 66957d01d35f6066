"""Makes 128x128 pictures of emoji to train on, a folder a subject: `rocket`, `pizza`, `octopus`, about a thousand of them.

    npm pack emoji-datasource-google@16.0.0 @lobehub/fluent-emoji-3d@1.1.0
    pip install pillow
    python assets/emoji128.py --out emoji128 *.tgz

Flat emoji are there in 64x64 pixels and are enlarged, 3-D ones in 256x256. Both styles of a subject are one class, all genders
and skin tones of a role too; flags, clocks, letters, faces of a mood and the like are kinds with many pictures.
"""

import argparse
import collections
import io
import json
import pathlib
import re
import tarfile

from PIL import Image

SIDE = 128
TONES = {"1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF"}
PEOPLE = {"1F468", "1F469", "1F9D1"}
ENDINGS = {"2640", "2642", "27A1"}
# Subcategories whose pictures are alike enough to be one class.
KINDS = {
    "alphanum": "letters",
    "arrow": "arrow",
    "av-symbol": "button",
    "cat-face": "cat-face",
    "country-flag": "flag",
    "currency": "symbol",
    "family": "family",
    "gender": "symbol",
    "geometric": "shape",
    "heart": "heart",
    "keycap": "keycap",
    "math": "symbol",
    "monkey-face": "monkey-face",
    "other-symbol": "symbol",
    "punctuation": "symbol",
    "religion": "religion",
    "subdivision-flag": "flag",
    "transport-sign": "sign",
    "warning": "warning-sign",
    "zodiac": "zodiac",
}


def subject(emoji):
    """What is equal for all emoji of a class."""
    group = emoji["subcategory"]
    if group.startswith("face-"):
        return group
    if re.fullmatch(r"clock\d+", emoji["short_name"]):
        return "clock"
    if group in KINDS:
        return KINDS[group]
    points = ["P" if point in PEOPLE else point for point in plain(emoji["unified"])]
    while len(points) > 2 and points[-1] in ENDINGS and points[-2] == "200D":
        points = points[:-2]
    return "-".join(points)


def plain(unified):
    return [point for point in unified.upper().split("-") if point not in TONES and point != "FE0F"]


def title(emojis):
    """The shortest of their names, without gender; the longer name where the short one only has a number."""
    names = []
    for emoji in emojis:
        name = emoji["short_name"] if not emoji["short_name"][-1].isdigit() else emoji["name"].lower()
        words = [word for word in re.split(r"[^a-z0-9]+", name) if word]
        rest = [word for word in words if word not in {"man", "woman", "men", "women", "male", "female", "person"}]
        names.append("-".join(rest or words))
    return min(names, key=lambda name: (len(name), name))


def classes(datasource):
    """Class name of every emoji, by the code points that both packages call its pictures."""
    groups = collections.defaultdict(list)
    for emoji in datasource:
        if emoji["subcategory"] != "skin-tone":
            groups[subject(emoji)].append(emoji)
    named = {}
    # Groups of one name are one class: a cat and a cat's face.
    for key, emojis in groups.items():
        name = key if key in KINDS.values() or key == "clock" or key.startswith("face-") else title(emojis)
        for emoji in emojis:
            for unified in [emoji["unified"], *(v["unified"] for v in emoji.get("skin_variations", {}).values())]:
                named[spelt(unified)] = name
    return named


def spelt(points):
    return "-".join(point for point in points.upper().split("-") if point != "FE0F")


def pictures(archives):
    """(style, code points, bytes)"""
    for archive in archives:
        with tarfile.open(archive) as tar:
            for member in tar:
                path = pathlib.PurePosixPath(member.name)
                if path.parent.as_posix().endswith("img/google/64") and path.suffix == ".png":
                    yield "flat", path.stem, tar.extractfile(member).read()
                elif path.parent.as_posix().endswith("package/assets") and path.suffix == ".webp":
                    yield "3d", path.stem, tar.extractfile(member).read()


def datasource(archives):
    for archive in archives:
        with tarfile.open(archive) as tar:
            if "package/emoji.json" in tar.getnames():
                return json.load(tar.extractfile("package/emoji.json"))
    raise SystemExit("emoji.json is in none of the archives: give emoji-datasource-google's too")


def on_white(data):
    picture = Image.open(io.BytesIO(data)).convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture).convert("RGB")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archives", nargs="+")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("emoji128"))
    args = parser.parse_args()
    named = classes(datasource(args.archives))
    counts = collections.Counter()
    nameless = 0
    for style, points, data in pictures(args.archives):
        name = named.get(spelt(points))
        if name is None:
            nameless += 1
            continue
        counts[name] += 1
        folder = args.out / name
        folder.mkdir(parents=True, exist_ok=True)
        on_white(data).resize((SIDE, SIDE), Image.BICUBIC).save(folder / f"{points}-{style}.png")
    print(f"{counts.total()} pictures of {len(counts)} subjects; {nameless} of none")


if __name__ == "__main__":
    main()
