"""An index as a local page: a map, the clusters, and what is like a picture that is dropped.

The server listens on the loopback address alone. Its address holds a token, without which, or by
another host name, it answers nothing; it serves its own pages and thumbnails of the index's photos
by row, never a path that a request names.
"""

from __future__ import annotations

import io
import json
import secrets
from contextlib import suppress
from functools import lru_cache, partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any

import numpy as np
from PIL import Image

from retrieval_jax.photos import pages
from retrieval_jax.photos.index import Found, PhotoIndex
from retrieval_jax.runtime.errors import UserError, printable

_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src 'self'; script-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'"
)
_LARGEST = 1 << 26  # bytes of a picture that is dropped
_NEIGHBOURS, _TYPICAL = 24, 6
_SHOWN = 600  # photos of a page
_MAPPED = 2000


class Site:
    """The pages of an index; `page` and `query` are safe to be called by several threads."""

    def __init__(self, index: PhotoIndex) -> None:
        """Lays out the map."""
        self._index, self._lock = index, Lock()
        self.root = f"/{secrets.token_urlsafe(18)}/"
        self._rows = {path: row for row, path in enumerate(index.content.photos.paths)}
        self._script = (Path(__file__).parent / "browse.js").read_bytes()
        self.thumbnail = lru_cache(4096)(self._thumbnail)
        self._map = self._drawn_map()

    def page(self, path: str) -> tuple[str, bytes] | None:
        """Content type and content below the root; None for what isn't there."""
        if path == "":
            return _HTML, self._home()
        if path == "browse.js":
            return "text/javascript; charset=utf-8", self._script
        kind, _, number = path.partition("/")
        if not (number.isascii() and number.isdigit() and len(number) < 10):
            return None
        n, k = len(self._index), len(self._index.content.centroids)
        if kind == "thumbnail" and int(number) < n:
            return "image/jpeg", self.thumbnail(int(number))
        if kind == "like" and int(number) < n:
            return _HTML, self._like(int(number))
        if kind == "cluster" and int(number) < k:
            return _HTML, self._cluster(int(number))
        return None

    def prepare(self) -> None:
        """Compiles the encoder, while the page is looked at."""
        blank = io.BytesIO()
        Image.new("RGB", (8, 8)).save(blank, "PNG")
        with suppress(UserError):
            self.query(blank.getvalue())

    def query(self, picture: bytes) -> list[dict[str, Any]]:
        """The nearest photos to a picture, as the script wants them.

        Raises:
          UserError: it can't be read, or the index has no encoder.
        """
        with self._lock:
            found = self._index.nearest(self._index.embed(picture), _NEIGHBOURS)
        return [
            {
                "row": self._rows[path],
                "path": printable(path),
                "distance": float(distance),
                "cluster": int(cluster),
            }
            for path, distance, cluster in zip(*found, strict=True)
        ]

    def _home(self) -> bytes:
        order = self._index.clusters_by_size()
        groups = [
            pages.Group(
                f"Cluster {number}",
                [self._photos(self._index.cluster(number).first(_TYPICAL))],
                f"{self.root}cluster/{number}",
                f": {size:,} photos",
            )
            for number, size in order[: _SHOWN // _TYPICAL]
        ]
        heading = f"{len(self._index):,} photos in {len(order):,} clusters"
        left, folder = len(order) - len(groups), Path(__file__).parent
        more = {"template": folder / "browse.html", "map": self._map, "root": self.root}
        return self._document("Photos", heading, groups, left=left, **more)

    def _like(self, row: int) -> bytes:
        content = self._index.content
        path = content.photos.paths[row]
        found = self._index.nearest(content.rows[row].astype(np.float32), _NEIGHBOURS)
        number = int(content.clusters[row])
        links = [
            ("All clusters", self.root),
            (f"Cluster {number}", f"{self.root}cluster/{number}"),
        ]
        groups = [pages.Group("", [self._photos(found)])]
        heading = f"Like {Path(path).name}"
        return self._document("Photos like one", heading, groups, links=links)

    def _cluster(self, number: int) -> bytes:
        found = self._index.cluster(number)
        size = len(found.paths)
        more = f", the {_SHOWN} most typical" if size > _SHOWN else ""
        about = f"{size:,} photos{more}, with 1 − cosine to the centroid."
        groups = [pages.Group("", [self._photos(found.first(_SHOWN))])]
        title, links = f"Cluster {number}", [("All clusters", self.root)]
        return self._document(title, title, groups, about=about, links=links)

    def _photos(self, found: Found) -> list[pages.Photo]:
        photos = []
        for path, distance in zip(found.paths, found.distances, strict=True):
            row = self._rows[path]
            source, url = f"{self.root}thumbnail/{row}", f"{self.root}like/{row}"
            photos.append(pages.Photo(path, f"{distance:.4f}", source, url))
        return photos

    def _drawn_map(self) -> dict[str, Any]:
        """Photos by their two principal components, each a link to those like it."""
        content, n = self._index.content, len(self._index)
        rng = np.random.default_rng(0)
        rows = np.sort(rng.choice(n, min(n, _MAPPED), replace=False))
        points = content.rows[rows].astype(np.float32)
        points -= points.mean(0)
        axes = np.linalg.eigh(points.T @ points)[1][:, -2:]
        places = points @ axes
        places = places - places.min(0)
        places *= 98 / max(float(places.max()), 1e-12)
        shown = [
            (
                f"{self.root}like/{row}",
                f"{x + 1:.2f}",
                f"{y + 1:.2f}",
                f"{content.clusters[row] * 137.5 % 360:.0f}",
                content.photos.paths[row],
            )
            for row, (x, y) in zip(rows.tolist(), places, strict=True)
        ]
        note = "" if n == len(rows) else f" {len(rows):,} of them, drawn at random."
        height = f"{float(places[:, 1].max()) + 2:.1f}"
        return {"points": shown, "height": height, "note": note}

    def _thumbnail(self, row: int) -> bytes:
        return pages.thumbnail(self._index.content.photos.paths[row])

    def _document(self, title: str, heading: str, groups: list[pages.Group], **more: Any) -> bytes:
        document = pages.page(title, heading, groups, policy=_POLICY, **more)
        return document.encode("utf-8", "backslashreplace")


def server(index: PhotoIndex, port: int = 0) -> tuple[ThreadingHTTPServer, str]:
    """A server of the index on the loopback address, and the address of its page.

    Args:
      index: `PhotoIndex`.
      port: 0 for any that is free.

    Raises:
      OSError: the port can't be had.
    """
    site = Site(index)
    Thread(target=site.prepare, daemon=True).start()
    made = ThreadingHTTPServer(("127.0.0.1", port), partial(_Handler, site))
    return made, f"http://127.0.0.1:{made.server_address[1]}{site.root}"


_HTML = "text/html; charset=utf-8"


class _Handler(BaseHTTPRequestHandler):
    timeout = 30  # seconds that a client may be silent
    server_version = sys_version = ""

    def __init__(self, site: Site, *arguments: Any) -> None:
        self._site = site
        super().__init__(*arguments)

    def do_GET(self) -> None:
        if self.path == "/favicon.ico":  # browsers ask for it by themselves
            self._answer(HTTPStatus.NO_CONTENT, "image/x-icon", b"")
            return
        path = self._below_root()
        found = None if path is None else self._site.page(path)
        if found is None:
            self._answer(HTTPStatus.NOT_FOUND, "text/plain", b"There is no such page.\n")
        else:
            self._answer(HTTPStatus.OK, *found)

    def do_POST(self) -> None:
        if self._below_root() != "query":
            self._answer(HTTPStatus.NOT_FOUND, "text/plain", b"There is no such page.\n")
            return
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit() and int(length) <= _LARGEST):
            self.close_connection = True
            self._error(f"the picture is larger than {_LARGEST >> 20} MiB; make it smaller")
            return
        try:
            found = self._site.query(self.rfile.read(int(length)))
        except UserError as error:
            self._error(str(error))
        else:
            self._answer(HTTPStatus.OK, "application/json", json.dumps(found).encode())

    def log_message(self, *_: Any) -> None:
        """Nothing: the address with its token would be in it."""

    def _below_root(self) -> str | None:
        port = self.connection.getsockname()[1]
        hosts = (f"127.0.0.1:{port}", f"localhost:{port}")
        # Another name is a page elsewhere whose name was made to lead here.
        if self.headers.get("Host") not in hosts:
            return None
        if self.headers.get("Origin", f"http://{hosts[0]}") not in {f"http://{h}" for h in hosts}:
            return None
        root = self._site.root
        start, rest = self.path[: len(root)], self.path[len(root) :]
        return rest if secrets.compare_digest(start.encode(), root.encode()) else None

    def _error(self, sentence: str) -> None:
        content = json.dumps({"error": sentence}).encode()
        self._answer(HTTPStatus.BAD_REQUEST, "application/json", content)

    def _answer(self, status: HTTPStatus, kind: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Security-Policy", f"{_POLICY}; frame-ancestors 'none'")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(content)
