"""Answers as pages: one file each, thumbnails inside, names escaped."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from retrieval_jax.data.decode import DecodeError, decode
from retrieval_jax.photos.duplicates import Duplicates
from retrieval_jax.photos.index import Found, PhotoIndex
from retrieval_jax.report.document import render

_SIDE = 160
_TYPICAL, _ODD = 8, 4  # photos of a cluster
_CLUSTERS = 200
_TEMPLATE = Path(__file__).parent / "photos.html"


class Photo(NamedTuple):
    """A photo of a page: `source` is its thumbnail's address, "" for none, `url` where it leads."""

    path: str
    note: str
    source: str
    url: str = ""

    @property
    def name(self) -> str:
        """What a screen reader says."""
        return Path(self.path).name


class Group(NamedTuple):
    """Rows of photos under a heading, which may lead somewhere and have words beside it."""

    head: str
    rows: Sequence[Sequence[Photo]]
    url: str = ""
    beside: str = ""


def page(title: str, heading: str, groups: Sequence[Group], *, about: str = "", **more: Any) -> str:
    """A page of photos in groups; `more` are `links` to other pages, and clusters `left` out."""
    values: dict[str, Any] = {"template": _TEMPLATE, "links": (), "left": 0} | more
    return render(title=title, heading=heading, groups=groups, about=about, **values)


def answers(found: Sequence[tuple[str, Found]]) -> str:
    """A page of queries with the photos that were found."""
    groups = []
    for image, neighbours in found:
        shown = [
            _photo(path, f"{distance:.4f}, cluster {cluster}")
            for path, distance, cluster in zip(*neighbours, strict=True)
        ]
        groups.append(Group(image, [[_photo(image, "query")], shown]))
    return page("Photos", "Nearest photos", groups)


def duplicates(found: Duplicates) -> str:
    """A page of groups to review."""
    groups = []
    for group, exact, distance in zip(*found, strict=True):
        head = "The same bytes" if exact else f"Near, {distance:.4f}"
        shown = [_photo(path, "keep" if i == 0 else "") for i, path in enumerate(group)]
        groups.append(Group(head, [shown]))
    about = f"{len(groups):,} groups. Nothing was deleted; which to keep is a suggestion."
    return page("Duplicates", "Duplicates", groups, about=about)


def clusters(index: PhotoIndex) -> str:
    """A page of galleries: of each cluster the most typical photos, and the least."""
    order = index.clusters_by_size()
    groups = []
    for number, size in order[:_CLUSTERS]:
        found = index.cluster(number)
        shown = [
            _photo(path, f"{distance:.4f}")
            for path, distance in zip(found.paths[:_TYPICAL], found.distances, strict=False)
        ]
        odd = list(zip(found.paths, found.distances, strict=True))[_TYPICAL:][-_ODD:]
        shown += [_photo(path, f"odd, {distance:.4f}") for path, distance in odd]
        groups.append(Group(f"Cluster {number}: {size:,} photos", [shown]))
    about = f"{len(index):,} photos in {len(order):,} clusters, the largest first; of each the "
    about += "most typical photos and the oddest, with 1 − cosine to the centroid."
    return page("Clusters", "Clusters", groups, about=about, left=len(order) - len(groups))


def thumbnail(path: str) -> bytes:
    """A photo as a small JPEG; empty if it is gone, or is a name of a run."""
    try:
        pixels = decode(Path(path), _SIDE, crop=True)
    except DecodeError:
        return b""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=80)
    return file.getvalue()


def _photo(path: str, note: str) -> Photo:
    content = thumbnail(path)
    data = base64.b64encode(content).decode()
    return Photo(path, note, f"data:image/jpeg;base64,{data}" if content else "")
