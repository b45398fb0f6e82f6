"""Draw the world: rasterise the emoji sets and the people, and pack them into bierase/weights/art.zip.

    npm install @iconify-json/{noto@1.2.9,noto-v1@1.2.5,fluent-emoji-flat@1.2.6,emojione@1.2.3,fxemoji@1.2.2} \\
        @twemoji/svg@15.0.0 @lobehub/fluent-emoji-3d@1.1.0 emojibase-data@17.0.0
    pip install resvg-py==0.5.0 dicebear-core==10.7.0 dicebear-styles==10.6.0
    python nbs/train/art.py
"""

from __future__ import annotations

import argparse
import io
import json
import re
import zipfile
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bierase.core import write_atomic
from bierase.emoji import CONCEPTS, HANDS, PEOPLE, WEIGHTS

# Unicode code points, a line for each group of eight, in the order of words.json.
CODES = dict(zip(CONCEPTS, """
1f436 1f431 1f430 1f439 1f42d 1f434 1f437 1f42e
1f98a 1f43a 1f981 1f42f 1f43b 1f43c 1f428 1f418
1f414 1f427 1f989 1f985 1f986 1f9a9 1f99a 1f99c
1f41f 1f433 1f42c 1f419 1f980 1f988 1f422 1f991
1f41d 1f98b 1f41e 1f40c 1f577 1f41c 1f982 1f41b
1f34e 1f34c 1f347 1f353 1f349 1f34b 1f34d 1f352
1f355 1f354 1f32d 1f35f 1f32e 1f363 1f35d 1f373
1f366 1f369 1f36a 1f370 1f36d 1f36b 1f36f 1f382
1f33b 1f339 1f337 1f335 1f334 1f344 1f341 1f332
1f697 1f695 1f68c 1f692 1f6b2 1f3cd 1f69c 1f691
2708 1f681 1f680 26f5 1f6a2 1f682 1f6a4 1f6f8
1f3b8 1f3bb 1f3ba 1f941 1f3b7 1f3b9 1fa97 1f4fb
1f570 1f4f7 2602 1f511 1f4a1 1f4d6 1f4fa 260e
26bd 1f3c0 1f388 1f381 1f451 1f9f8 1f3c6 1f3b2
1f52b 1f4a3 1f52a 2694 1f6ac 1f37a 1f377 1f489
1f385 1f921 1f47b 1f47d 1f916 1f9df 1f9db 1f977
""".split()))

ICON_SETS = {"noto": "noto", "fluent flat": "fluent-emoji-flat", "emojione": "emojione", "blob": "noto-v1", "fxemoji": "fxemoji"}
NAMING = ("noto", "noto-v1", "fluent-emoji-flat", "emojione", "fxemoji")  # whose names are tried, in this order
OTHER_NAMES = {"robot": ["robot-face"], "gun": ["pistol"], "teddy bear": ["teddy-bear"]}
# FxEmoji has names of its own; None: it has none, or a wrong one.
FX_NAMES: dict[str, str | None] = {
    "dog": "dog", "cat": "cat", "rabbit": "rabbit", "mouse": "mouse", "horse": "horseface", "pig": "pig",
    "cow": "cowface", "fox": "foxsmiling", "wolf": "wolfface", "tiger": "tiger", "panda": "pandaface",
    "whale": "spurtingwhale", "apple": "redapple", "pizza": "sliceofpizza", "french fries": "frenchfries",
    "ice cream": "softicecream", "chocolate": "chocolatebar", "honey": "honeypot", "birthday cake": "birthdaycake",
    "palm tree": "palmtree", "maple leaf": "mapleleaf", "fire engine": "fireengine", "light bulb": "lightbulb",
    "telephone": "blacktelephone", "beer": "beermug", "wine": "wineglass",
    "basketball": None, "dice": None, "ship": None, "sailboat": None,
}

# A person is a head, hair, skin, beard and something on the nose; in the order of words.json.
LOOKS: list[tuple[str, str, str, str | None, str | None]] = [
    ("afro", "2c1b18", "694d3d", None, None), ("turban", "c93305", "ae5d29", "full", None),
    ("longCurly", "c93305", "ffdbb4", None, None), ("flatTop", "d6b370", "edb98a", None, "sunglasses"),
    ("hijab", "f59797", "d08b5b", None, None), ("grayBun", "e8e1e1", "ffdbb4", None, "glasses"),
    ("mohawk", "c93305", "edb98a", None, None), ("bangs", "2c1b18", "edb98a", None, "glasses2"),
    ("dreads1", "4a312c", "694d3d", "goatee1", None), ("buns", "f59797", "ffdbb4", None, None),
    ("noHair1", "2c1b18", "d08b5b", "moustache4", None), ("hatBeanie", "b58143", "ae5d29", None, None),
    ("mediumStraight", "ecdcbf", "ffdbb4", None, None), ("noHair2", "a55728", "edb98a", "full4", None),
    ("hatHip", "724133", "d08b5b", None, "eyepatch"), ("longAfro", "d6b370", "ae5d29", None, None),
]
FACES = """awe blank calm cheeky concerned cute driven eatingHappy explaining eyesClosed lovingGrin1 serious smile smileBig
smileLOL smileTeethGap solemn suspicious tired contempt""".split()
DRESSES = "8fa7df 78e185 ffcf77 e279c7 e78276 9ddadb fdea6b".split()
MOODS = 24  # pictures of a person


@cache
def read(path: Path) -> Any:
    """A JSON file, once."""
    return json.loads(path.read_text(encoding="utf-8"))


def icon_names(modules: Path, code: str) -> list[str]:
    """Names that icon sets may use for a code point: their own tables', then CLDR's label."""
    names = []
    for pack in NAMING:
        table = read(modules / "@iconify-json" / pack / "chars.json")
        names.append(table.get(code) or table.get(f"{code}-fe0f"))
    for entry in read(modules / "emojibase-data/en/data.json"):
        if entry["hexcode"].lower().replace("-fe0f", "") == code:
            names.append(re.sub("[^a-z0-9]+", "-", entry["label"].lower()).strip("-"))
    return [name for name in names if name]


def icon(modules: Path, pack: str, names: list[str]) -> str | None:
    """The SVG of the first name that an icon set knows."""
    icons = read(modules / "@iconify-json" / pack / "icons.json")
    aliases = icons.get("aliases", {})
    known = [name for name in names if name in icons["icons"] or name in aliases]
    if not known:
        return None
    name = known[0]
    while name in aliases:
        name = aliases[name]["parent"]
    found = {"left": 0, "top": 0, "width": icons.get("width", 16), "height": icons.get("height", 16)} | icons["icons"][name]
    box = "{left} {top} {width} {height}".format(**found)
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return '<svg {} viewBox="{}" width="{width}" height="{height}">{body}</svg>'.format(spaces, box, **found)


def raster(svg: str, pixels: int = 384) -> np.ndarray:
    """(pixels, pixels, 4) RGBA in [0, 1]."""
    import resvg_py

    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=pixels, height=pixels))
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA")).astype(np.float32) / 255


def fit(rgba: np.ndarray, size: int = 64) -> np.ndarray:
    """Crop to what is seen, make it square and average it down, premultiplied; RGBA in bytes."""
    rows, columns = np.where(rgba[..., 3] > 0.02)
    rgba = rgba[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    height, width = rgba.shape[:2]
    side = max(height, width)
    square = np.zeros((side, side, 4), np.float32)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = rgba
    square[..., :3] *= square[..., 3:]
    small = np.stack([np.asarray(Image.fromarray(square[..., i]).resize((size, size), Image.BOX)) for i in range(4)], -1)
    alpha = small[..., 3:]
    small[..., :3] = np.where(alpha > 1e-3, small[..., :3] / np.maximum(alpha, 1e-3), 0)
    out = (small.clip(0, 1) * 255).round().astype(np.uint8)
    out[..., :3] *= out[..., 3:] > 0  # what is not seen is black: it compresses
    return out


def drawing(modules: Path, concept: str, hand: str) -> np.ndarray | None:
    """One concept by one hand, (64, 64, 4), or None if that hand never drew it."""
    code = CODES[concept]
    if hand == "twemoji":
        return fit(raster((modules / f"@twemoji/svg/{code}.svg").read_text()))
    if hand == "fluent 3d":
        folder = modules / "@lobehub/fluent-emoji-3d/assets"
        path = next(p for p in (folder / f"{code}.webp", folder / f"{code}-fe0f.webp") if p.exists())
        return fit(np.asarray(Image.open(path).convert("RGBA")).astype(np.float32) / 255)
    names = icon_names(modules, code) + OTHER_NAMES.get(concept, [])
    if hand == "fxemoji" and concept in FX_NAMES:
        names = [FX_NAMES[concept]]
    svg = icon(modules, ICON_SETS[hand], names)
    return None if svg is None else fit(raster(svg))


def person(number: int, mood: int) -> np.ndarray:
    """One person with one face and dress, (64, 64, 4)."""
    from dicebear import Avatar, Style

    head, hair, skin, beard, accessory = LOOKS[number]
    options: dict[str, Any] = {
        "seed": f"{number}-{mood}", "size": 384, "maskProbability": 0, "headVariant": [head],
        "headContrastColor": ["#" + hair], "skinColor": ["#" + skin],
        "expressionVariant": [FACES[(mood * 7 + number) % len(FACES)]],
        "clothingColor": ["#" + DRESSES[(mood + number) % len(DRESSES)]],
        "facialHairProbability": 100 if beard else 0, "accessoriesProbability": 100 if accessory else 0,
    }
    options |= {"facialHairVariant": [beard]} if beard else {}
    options |= {"accessoriesVariant": [accessory]} if accessory else {}
    peeps = read(Path(str(files("dicebear_styles").joinpath("open-peeps.json"))))
    return fit(raster(Avatar(Style(peeps), options).to_string()))


def sheet(tiles: np.ndarray) -> bytes:
    """(rows, columns, 64, 64, 4) as one lossless WebP picture."""
    rows, columns, size = tiles.shape[:3]
    page = Image.fromarray(tiles.transpose(0, 2, 1, 3, 4).reshape(rows * size, columns * size, 4))
    buffer = io.BytesIO()
    page.save(buffer, "WEBP", lossless=True, quality=100, method=6)
    return buffer.getvalue()


def pack(objects: np.ndarray, people: np.ndarray, missing: list[list[str]], path: Path) -> None:
    """Write art.zip; the same pictures give the same bytes."""
    rows = "concepts, people: in the order of words.json"
    index = json.dumps({"rows": rows, "columns": HANDS, "size": 64, "missing": missing}).encode()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in (("drawings.webp", sheet(objects)), ("people.webp", sheet(people)), ("index.json", index)):
            archive.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), content)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modules", type=Path, default=Path("node_modules"), help="where npm put the sets")
    parser.add_argument("--out", type=Path, default=WEIGHTS / "art.zip", help="the finished file")
    args = parser.parse_args()
    objects, missing = np.zeros((len(CONCEPTS), len(HANDS), 64, 64, 4), np.uint8), []
    for row, concept in enumerate(CONCEPTS):
        for column, hand in enumerate(HANDS):
            found = drawing(args.modules, concept, hand)
            if found is None:
                missing.append([concept, hand])
            else:
                objects[row, column] = found
    people = np.stack([np.stack([person(i, mood) for mood in range(MOODS)]) for i in range(len(PEOPLE))])
    write_atomic(args.out, lambda path: pack(objects, people, missing, path))
    print(f"{objects.shape[0] * objects.shape[1] - len(missing)} drawings, {len(missing)} missing")


if __name__ == "__main__":
    main()
