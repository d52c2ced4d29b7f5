"""Real photographs that packages ship, and copies of them: what photo benchmarks are measured on.

From scikit-image, scikit-learn and matplotlib where they are installed, and from Debian's packages
of wallpapers, of Tux Paint's stamps and of OpenCV's samples, unpacked into a folder:

    apt-get download lomiri-wallpapers-16.04 lomiri-wallpapers-20.04 mate-backgrounds opencv-doc \
        palapeli-data plasma-workspace-wallpapers tuxpaint-stamps-default
    for file in *.deb; do dpkg-deb -x "$file" packages; done

The pictures are chosen by name: the same packages hold drawings, screenshots and versions of one
picture. Large ones are cut into six scenes. Of the stamps, photographs of things that were cut
out, the folders name the class.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

INSTALLED = {
    "skimage": "data/{astronaut,brick,camera,chelsea,coffee,coins,grass,gravel,ihc,moon,"
    "motorcycle_left,hubble_deep_field,retina,rocket}.*",
    "sklearn": "datasets/images/*.jpg",
    "matplotlib": "mpl-data/sample_data/grace_hopper.jpg",
}
_WALLPAPERS = "usr/share/wallpapers/"
_OPENCV = "usr/share/doc/opencv-doc/examples/data/"
UNPACKED = (
    "usr/share/backgrounds/{Bridge,Dragonfly,Picture_0B,Picture_1A,Wine,aitzgorri,free,friends,"
    "greentock,life,picosdeeuropa,seeding,sunset,Kleiber}_*.jpg",
    "usr/share/backgrounds/mate/nature/*.jpg",
    "usr/share/palapeli/collection/*.jpg",
    _WALLPAPERS + "{FallenLeaf,Path,EveningGlow,Grey,DarkestHour,ColorfulCups,"
    "OneStandsOut,Kite,BytheWater}/contents/images/2560x1600.jpg",
    _OPENCV + "{aero1,aloeL,apple,baboon,board,box_in_scene,building,butterfly,cards,fruits,graf1,"
    "home,leuvenA,messi5,orange,squirrel_cls,stuff,basketball1,rubberwhale1}.*",
)
STAMPS = "usr/share/tuxpaint/stamps"
CLASSES = {
    "animals/birds": "bird",
    "animals/fish": "fish",
    "animals/insects": "insect",
    "animals/mammals": "mammal",
    "animals/marsupials": "mammal",
    "food/fruit": "fruit",
    "food/nuts": "fruit",
    "food/vegetables": "vegetable",
    "hobbies/music": "instrument",
    "household": "tool",
    "plants/flowers": "flower",
    "vehicles": "vehicle",
}
COPIES = ("encoded again", "half the size", "mirrored", "recoloured", "cropped")
_CUT = 700  # pixels of the short side from which a picture is cut into scenes
_PLAIN = 12.0  # deviation of grey below which a scene is sky or shade, and left out


class Photograph(NamedTuple):
    """A scene.

    Attributes:
      name: of its picture, and which part of it.
      label: the class of a stamp, else empty.
      image: RGB, at most 640 pixels long.
    """

    name: str
    label: str
    image: Image.Image


def photographs(folder: Path | None = None) -> list[Photograph]:
    """All of them, sorted by name.

    Args:
      folder: into which Debian's packages were unpacked, if they were.
    """
    found = []
    for path in sorted(_installed()) + sorted(_unpacked(folder) if folder else []):
        image = _opened(path)
        parts = _scenes(image) if min(image.size) >= _CUT else [image]
        for number, part in enumerate(parts):
            if np.asarray(part.convert("L")).std() >= _PLAIN:
                part.thumbnail((640, 640))
                found.append(Photograph(f"{_name(path)}-{number}", "", part))
    for path, label in sorted(_stamps(folder) if folder else []):
        image = _opened(path)
        image.thumbnail((640, 640))
        found.append(Photograph(f"{label}-{path.stem}", label, image))
    return found


def copy(image: Image.Image, kind: str, rng: np.random.Generator) -> bytes:
    """A JPEG of the picture, changed as one of COPIES says."""
    width, height = image.size
    quality = 90
    if kind == "encoded again":
        quality = 30
    elif kind == "half the size":
        image = image.resize((width // 2, height // 2))
    elif kind == "mirrored":
        image = ImageOps.mirror(image)
    elif kind == "recoloured":
        image = ImageEnhance.Color(ImageEnhance.Brightness(image).enhance(1.2)).enhance(0.4)
    elif kind == "cropped":  # 0.8 of each side, anywhere
        left, top = (int(rng.integers(side - side * 4 // 5 + 1)) for side in image.size)
        image = image.crop((left, top, left + width * 4 // 5, top + height * 4 // 5))
    else:
        raise ValueError(kind)
    return jpeg(image, quality)


def jpeg(image: Image.Image, quality: int = 90) -> bytes:
    """The picture as a file's content."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def _opened(path: Path) -> Image.Image:
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image)
    return white.convert("RGB")


def _name(path: Path) -> str:
    """A wallpaper's folder names it, its file only its size."""
    return path.parts[-4] if path.parts[-3] == "contents" else path.stem


def _scenes(image: Image.Image) -> list[Image.Image]:
    """Two by three parts that share no pixel."""
    columns, rows = (3, 2) if image.width >= image.height else (2, 3)
    width, height = image.width // columns, image.height // rows
    return [
        image.crop((x * width, y * height, (x + 1) * width, (y + 1) * height))
        for y in range(rows)
        for x in range(columns)
    ]


def _installed() -> Iterator[Path]:
    for package, pattern in INSTALLED.items():
        spec = find_spec(package)
        if spec and spec.origin:
            yield from _matching(Path(spec.origin).parent, pattern)


def _unpacked(folder: Path) -> Iterator[Path]:
    for pattern in UNPACKED:
        yield from _matching(folder, pattern)


def _stamps(folder: Path) -> Iterator[tuple[Path, str]]:
    root = folder / STAMPS
    for place, label in CLASSES.items():
        for path in (root / place).rglob("*.png"):
            drawn = {"cartoon", "toys", "plastic"} & set(path.relative_to(root).parts)
            if not drawn and not path.stem.endswith("_mirror"):
                yield path, label


def _matching(root: Path, pattern: str) -> Iterator[Path]:
    """As the shell expands one pair of braces."""
    before, opened, rest = pattern.partition("{")
    names, _, after = rest.partition("}")
    for name in names.split(",") if opened else [""]:
        yield from root.glob(before + name + after)
