"""Answers as pages: one file each, thumbnails inside, names escaped."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from retrieval_jax.data.decode import DecodeError, decode
from retrieval_jax.photos.duplicates import Duplicates
from retrieval_jax.photos.index import Found, PhotoIndex
from retrieval_jax.report import html

_SIDE = 160
_TYPICAL, _ODD = 8, 4  # photos of a cluster
_CLUSTERS = 200
STYLE = (
    "<style>.row{display:flex;flex-wrap:wrap;gap:.7rem;margin:.6rem 0}.row figure{width:10rem;"
    "margin:0;padding:.4rem}.row figcaption{font-size:.78rem}</style>"
)


def answers(found: Sequence[tuple[str, Found]]) -> str:
    """A page of queries with the photos that were found."""
    rows = []
    for image, neighbours in found:
        shown = [
            _figure(path, f"{distance:.4f}, cluster {cluster}")
            for path, distance, cluster in zip(*neighbours, strict=True)
        ]
        rows.append(f"<h2>{html.text(image)}</h2>{_row([_figure(image, 'query')])}{_row(shown)}")
    return html.page("Photos", f"{STYLE}<h1>Nearest photos</h1>{''.join(rows)}")


def duplicates(found: Duplicates) -> str:
    """A page of groups to review."""
    rows = []
    for group, exact, distance in zip(*found, strict=True):
        head = "The same bytes" if exact else f"Near, {distance:.4f}"
        shown = [_figure(path, "keep" if i == 0 else "") for i, path in enumerate(group)]
        rows.append(f"<h2>{head}</h2>{_row(shown)}")
    text = f"{len(rows):,} groups. Nothing was deleted; which to keep is a suggestion."
    body = f'{STYLE}<h1>Duplicates</h1><p class="soft">{text}</p>{"".join(rows)}'
    return html.page("Duplicates", body)


def clusters(index: PhotoIndex) -> str:
    """A page of galleries: of each cluster the most typical photos, and the least."""
    order = index.clusters_by_size()
    rows = []
    for number, size in order[:_CLUSTERS]:
        found = index.cluster(number)
        shown = [
            _figure(path, f"{distance:.4f}")
            for path, distance in zip(found.paths[:_TYPICAL], found.distances, strict=False)
        ]
        odd = list(zip(found.paths, found.distances, strict=True))[_TYPICAL:][-_ODD:]
        shown += [_figure(path, f"odd, {distance:.4f}") for path, distance in odd]
        rows.append(f"<h2>Cluster {number}: {size:,} photos</h2>{_row(shown)}")
    left = len(order) - len(rows)
    text = f"{len(index):,} photos in {len(order):,} clusters, the largest first; of each the most "
    text += "typical photos and the oddest, with 1 − cosine to the centroid."
    text += f" {left:,} smaller clusters are not shown." if left else ""
    return html.page(
        "Clusters", f'{STYLE}<h1>Clusters</h1><p class="soft">{text}</p>{"".join(rows)}'
    )


def _row(figures: Sequence[str]) -> str:
    return f'<div class="row">{"".join(figures)}</div>'


def _figure(path: str, note: str) -> str:
    caption = f"<figcaption>{html.text(note)} {html.text(path)}</figcaption>"
    return f'<figure class="card">{_thumbnail(path)}{caption}</figure>'


def thumbnail(path: str) -> bytes:
    """A photo as a small JPEG; empty if it is gone, or is a name of a run."""
    try:
        pixels = decode(Path(path), _SIDE, crop=True)
    except DecodeError:
        return b""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=80)
    return file.getvalue()


def _thumbnail(path: str) -> str:
    if not (content := thumbnail(path)):
        return ""
    data = base64.b64encode(content).decode()
    return f'<img alt="{html.text(Path(path).name)}" src="data:image/jpeg;base64,{data}">'
