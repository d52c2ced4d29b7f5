"""`examples.npz`: images and labels of a report, which is made again without the data."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from retrieval_jax.data.images import LazyImages, view

SHEET = 1024  # thumbnails in one image, 32 in a row
_SHOWN = 5  # neighbours in a retrieval row, as in the 2020 report
_PIXELS = 1 << 24  # of all thumbnails: smaller ones where there are more
_LARGEST = 64
_LOSSLESS = 1 << 20  # pixels up to which thumbnails lose nothing


def choose_examples(
    images: np.ndarray | LazyImages,
    labels: np.ndarray | None,
    gallery: np.ndarray,
    queries: np.ndarray,
    neighbours: np.ndarray,
    count: int,
    *,
    reconstructions: np.ndarray | None = None,
    mapped: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """The few images and labels that the pictures of a report show.

    Args:
      images: uint8 [n, h, w, c].
      labels: int [n], or None.
      gallery: int [g], rows of the images.
      queries: int [q], rows of the images.
      neighbours: int [q, k], positions in the gallery; -1 for none.
      count: queries to show, the first ones.
      reconstructions: float32 [count, h, w, c] of these, or None.
      mapped: int [m], positions in the gallery of the points on the map, or None.

    Returns:
      "queries" uint8 [e, h, w, c], "neighbours" uint8 [e, r, h, w, c] and "neighbour_positions"
      int [e, r] in the gallery, -1 for none. Where there are such, "reconstructions" float32
      [e, h, w, c], "query_labels" int [e], "neighbour_labels" int [e, r], "map_labels" int [m], and
      the labels of all, "gallery_classes" int [g] and "query_classes" int [q].
    """
    classes = {} if labels is None else {
        "gallery_classes": labels[gallery],
        "query_classes": labels[queries],
    }  # fmt: skip
    queries = queries[:count]
    positions = neighbours[: len(queries), :_SHOWN]
    rows = gallery[positions]
    chosen = {
        "queries": images[queries],
        "neighbours": images[rows],
        "neighbour_positions": positions,
        **classes,
    }
    if reconstructions is not None:
        chosen["reconstructions"] = reconstructions[: len(queries)]
    if labels is not None:
        chosen |= {"query_labels": labels[queries], "neighbour_labels": labels[rows]}
        if mapped is not None:
            chosen["map_labels"] = labels[gallery[mapped]]
    return chosen


def thumbnails(images: np.ndarray | LazyImages, rows: np.ndarray) -> dict[str, np.ndarray]:
    """The images int [m] as sheets of WebP, as large as the page has room for.

    Args:
      images: uint8 [n, h, w, c]; three channels are RGB, any other number is grey, their mean.
      rows: of the images, in the order of the thumbnails.

    Returns:
      "thumbnail_size" int [2], width and height of each, and "sheet_0", "sheet_1", …: uint8 [b],
      the bytes of a WebP image of 1,024 thumbnails, 32 in a row; the last one is lower.

    Example:
      >>> found = thumbnails(np.zeros((3, 8, 6, 1), np.uint8), np.array([2, 0]))
      >>> found["thumbnail_size"].tolist(), bytes(found["sheet_0"][8:12])
      ([6, 8], b'WEBP')
    """
    height, width = images.shape[1:3]
    side = min(max(height, width), _LARGEST, int((_PIXELS / max(len(rows), 1)) ** 0.5))
    scale = side / max(height, width)
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    lossless = len(rows) * size[0] * size[1] <= _LOSSLESS
    made = {"thumbnail_size": np.array(size)}
    for number, start in enumerate(range(0, len(rows), SHEET)):
        some = view(images, rows[start : start + SHEET])[:]
        sheet = Image.new("RGB", (32 * size[0], -(-len(some) // 32) * size[1]))
        for i, pixels in enumerate(some):
            grey = pixels[..., 0] if pixels.shape[-1] == 1 else pixels.mean(-1).astype(np.uint8)
            picture = Image.fromarray(pixels if pixels.shape[-1] == 3 else grey)
            if picture.size != size:
                picture = picture.resize(size, Image.Resampling.BOX)
            sheet.paste(picture, cell_of(i, size)[1])
        file = io.BytesIO()
        sheet.save(file, "WEBP", lossless=lossless, quality=100 if lossless else 60, method=4)
        made[f"sheet_{number}"] = np.frombuffer(file.getvalue(), np.uint8)
    return made


def cell_of(number: int, size: tuple[int, int]) -> tuple[int, tuple[int, int, int, int]]:
    """Which sheet a thumbnail is on, and its left, top, right and bottom there.

    Example:
      >>> cell_of(1024 + 33, (6, 8))
      (1, (6, 8, 12, 16))
    """
    sheet, place = divmod(number, SHEET)
    left, top = place % 32 * size[0], place // 32 * size[1]
    return sheet, (left, top, left + size[0], top + size[1])
