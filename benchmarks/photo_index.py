"""A large index of photos: time and memory to make it, its size, and how soon it answers.

    python -m benchmarks.photo_index --photos 100000   # `retrieval-jax index --embeddings`
    python -m benchmarks.photo_index --rows 1000000    # clustered and written, without photos

Pictures are JPEGs of 48 × 32 pixels, embeddings of 1,280 features lie around 3,000 directions.
Each step is a process of its own; what they write is in the page cache afterwards. Prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.whole_run import finished
from retrieval_jax.photos import PhotoIndex, store
from retrieval_jax.photos.index import arranged
from retrieval_jax.runtime import provenance

WIDTH, DIRECTIONS, BLOCK = 1280, 3000, 1000
MORE = 100  # queries after the first


def write_rows(path: Path, count: int) -> None:
    """Unit embeddings as float16 [count, WIDTH]."""
    rng = np.random.default_rng(0)
    directions = rng.standard_normal((DIRECTIONS, WIDTH), np.float32)
    # Not mapped: pages of it would count as memory of the processes that this one starts.
    with path.open("wb") as file:
        header = {"descr": "<f2", "fortran_order": False, "shape": (count, WIDTH)}
        np.lib.format.write_array_header_1_0(file, header)
        for first in range(0, count, BLOCK):
            part = directions[rng.integers(DIRECTIONS, size=min(BLOCK, count - first))]
            part = part + rng.standard_normal(part.shape, np.float32)
            part /= np.linalg.norm(part, axis=1, keepdims=True)
            file.write(part.astype("<f2").tobytes())


def write_pictures(folder: Path, count: int) -> list[str]:
    """JPEGs in folders of a thousand; returns their names."""
    rng = np.random.default_rng(1)
    names = [f"{i // 1000:04}/{i:07}.jpg" for i in range(count)]
    for i, name in enumerate(names):
        if i % 1000 == 0:
            (folder / name).parent.mkdir(parents=True)
        coarse = Image.fromarray(rng.integers(0, 256, (4, 6, 3), np.uint8))
        coarse.resize((48, 32), Image.Resampling.BICUBIC).save(folder / name)
    return names


def write_index(directory: Path, file: Path) -> None:
    """An index of rows whose photos are names alone."""
    rows = np.load(file, mmap_mode="r")
    n = len(rows)
    integers = [np.zeros(n, np.int64) for _ in range(3)]
    digests = np.zeros((n, 32), np.uint8)
    digests[:, :8] = np.arange(n).view(np.uint8).reshape(n, 8)
    names = [f"/photos/{i // 1000:04}/{i:07}.jpg" for i in range(n)]
    photos = store.Photos(names, *integers[:2], digests, np.zeros(n, np.uint64), integers[2])
    directory.mkdir()
    store.write(directory, arranged({"kind": "embeddings"}, ["/photos"], photos, rows, None))


def ask(directory: str) -> None:
    """Prints how long opening, a first query and others took, the first line once that is there."""
    start = time.perf_counter()
    index = PhotoIndex.open(directory)
    opened = time.perf_counter()
    paths = index.content.photos.paths
    index.query(paths[0])
    first = time.perf_counter()
    print("answered", flush=True)
    more = []
    for row in np.random.default_rng(2).integers(len(paths), size=MORE):
        before = time.perf_counter()
        index.nearest(index.content.rows[row].astype(np.float32))
        more.append(1000 * (time.perf_counter() - before))
    print(json.dumps([opened - start, first - opened, float(np.median(more)), max(more)]))


def show_answers(directory: Path, count: int) -> None:
    """Asks in another process, and prints what it took and what the index weighs."""
    size = sum(path.stat().st_size for path in directory.iterdir())
    start = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.photo_index", "--ask", str(directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        answered = time.perf_counter() - start
        opened, first, median, most = json.loads(process.stdout.readline())
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    print(f"| size, of its float16 rows | {size / 1e6:,.0f} MB, {size / 2 / count / WIDTH:.3f} × |")
    print(f"| first answer of a new process | {answered:.2f} s |")
    print(f"| of that, to open the index; to search | {opened:.2f} s; {1000 * first:.1f} ms |")
    print(f"| each of {MORE} more, median; most | {median:.1f} ms; {most:.1f} ms |")
    peak = usage.ru_maxrss * 1024 / 1e6
    print(f"| peak memory of that process, pages of the file among it | {peak:,.0f} MB |")


def main() -> None:
    """Makes an index and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--photos", type=int)
    what.add_argument("--rows", type=int)
    what.add_argument("--ask", help=argparse.SUPPRESS)
    what.add_argument("--build", nargs=2, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--temporary", type=Path, help="folder for the files; some 50 KB per photo")
    options = parser.parse_args()
    if options.ask:
        return ask(options.ask)
    if options.build:
        return write_index(*options.build)
    with tempfile.TemporaryDirectory(dir=options.temporary) as folder:
        directory, file = Path(folder) / "photos.index", Path(folder) / "rows.npy"
        count = options.photos or options.rows
        write_rows(file, count)
        if options.photos:
            names = write_pictures(Path(folder) / "photos", count)
            file.with_suffix(".txt").write_text("\n".join(names) + "\n")
            build = ["retrieval_jax.main", "index", f"{folder}/photos", "--output", str(directory)]
            build += ["--embeddings", str(file)]
        else:
            build = ["benchmarks.photo_index", "--build", str(directory), str(file)]
        done = finished([sys.executable, "-m", *build], dict(os.environ))
        print(f"| {count:,} photos | |\n|---|---|")
        print(f"| to make it | {done.seconds:,.0f} s, {done.cpu_seconds:,.0f} s of CPU time |")
        print(f"| peak memory | {done.peak_mb:,.0f} MB |")
        show_answers(directory, count)
    print(f"\n{provenance.versions()}")


if __name__ == "__main__":
    main()
