"""Makes the pictures that the bundled latent model was trained on: the emoji of assets/emoji32 at 128x128, a folder a class.

    npm pack emoji-datasource-google@16.0.0 @lobehub/fluent-emoji-3d@1.1.0
    pip install numpy pillow
    python assets/emoji128.py --out emoji128 *.tgz

Flat emoji are there in 64x64 pixels and are enlarged, 3-D ones in 256x256. Which class a picture belongs to is told by the
tiles of assets/emoji32: each is the same picture in 32x32, and the nearest one names the class.
"""

import argparse
import io
import json
import pathlib
import tarfile

import numpy as np
from PIL import Image

HERE = pathlib.Path(__file__).resolve().parent
SIDE = 128


def on_white(data: bytes) -> Image.Image:
    picture = Image.open(io.BytesIO(data)).convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture).convert("RGB")


def small(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.resize((32, 32), Image.LANCZOS), np.float32).ravel()


def tiles(atlas: pathlib.Path):
    """(class names, class of each tile, tiles as rows of numbers)"""
    index = json.loads((atlas / "classes.json").read_text())
    names, labels, rows = [], [], []
    for entry in sorted(index["classes"], key=lambda e: e["id"]):
        names.append(entry["name"])
        sheet = np.asarray(Image.open(atlas / f"{entry['name']}.png").convert("RGB"), np.float32)
        side, columns = index["tile"], index["columns"]
        for i in range(entry["tiles"]):
            y, x = side * (i // columns), side * (i % columns)
            labels.append(entry["id"])
            rows.append(sheet[y : y + side, x : x + side].ravel())
    return names, np.array(labels), np.stack(rows)


def pictures(archives):
    """(style, name, bytes)"""
    for archive in archives:
        with tarfile.open(archive) as tar:
            for member in tar:
                path = pathlib.PurePosixPath(member.name)
                if path.parent.as_posix().endswith("img/google/64") and path.suffix == ".png":
                    yield "flat", path.stem, tar.extractfile(member).read()
                elif path.parent.as_posix().endswith("package/assets") and path.suffix == ".webp":
                    yield "3d", path.stem, tar.extractfile(member).read()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archives", nargs="+")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("emoji128"))
    args = parser.parse_args()
    names, labels, rows = tiles(HERE / "emoji32")
    # By style: places of its tiles, and those tiles.
    styles = {}
    for style in ("flat", "3d"):
        places = np.flatnonzero([names[label].endswith(f"-{style}") for label in labels])
        styles[style] = (places, rows[places], (rows[places] ** 2).sum(1))
    taken, errors = set(), []
    for style, name, data in sorted(pictures(args.archives)):
        picture = on_white(data)
        row = small(picture)
        places, rows_here, norms = styles[style]
        distance = norms - 2 * rows_here @ row + (row**2).sum()
        for at in np.argsort(distance)[:4]:
            place = int(places[at])
            if place not in taken:
                break
        error = float(np.sqrt(max(distance[at], 0) / row.size))
        # A picture that is none of the tiles is not of the classes.
        if error > 6 or place in taken:
            continue
        taken.add(place)
        errors.append(error)
        folder = args.out / names[labels[place]]
        folder.mkdir(parents=True, exist_ok=True)
        picture.resize((SIDE, SIDE), Image.BICUBIC).save(folder / f"{name}.png")
    print(f"{len(taken)} of {len(labels)} tiles, root mean square error {np.mean(errors):.2f}, at most {np.max(errors):.2f}")


if __name__ == "__main__":
    main()
