"""A large index of photos: time and memory to make it, its size, and how soon it answers.

    python -m benchmarks.photo_index --photos 100000   # `retrieval-jax index --embeddings`
    python -m benchmarks.photo_index --rows 1000000     # no photos, and clusters that are known

Pictures are JPEGs of 48 × 32 pixels, embeddings of 1,280 features lie around 3,000 directions.
Each step is a process of its own; what they write is in the page cache afterwards. Prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.whole_run import finished
from retrieval_jax.photos import PhotoIndex, store
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


def write_index(directory: Path, file: Path, n: int) -> None:
    """An index of rows in √n clusters that are known, whose photos are names alone."""
    rng = np.random.default_rng(0)
    centroids = rng.standard_normal((round(n**0.5), WIDTH), np.float32)
    clusters = np.sort(rng.integers(len(centroids), size=n)).astype(np.int32)
    noise = rng.standard_normal((BLOCK, WIDTH), np.float32)
    rows = np.lib.format.open_memmap(file, "w+", np.float16, (n, WIDTH))
    for first in range(0, n, BLOCK):
        part = centroids[clusters[first : first + BLOCK]]
        part += noise[rng.permutation(BLOCK)[: len(part)]]
        rows[first : first + BLOCK] = part / np.linalg.norm(part, axis=1, keepdims=True)
    integers = np.zeros(n, np.int64)
    digests = np.zeros((n, 32), np.uint8)
    names = [f"/photos/{i // 1000:04}/{i:07}.jpg" for i in range(n)]
    photos = store.Photos(names, integers, integers, digests, integers.astype(np.uint64), integers)
    centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
    directory.mkdir()
    store.write(
        directory,
        store.Content({"kind": "embeddings"}, ["/photos"], [], photos, rows, clusters, centroids),
    )


def ask(directory: str) -> None:
    """Prints seconds to open an index, and the milliseconds of searches, the first by itself."""
    start = time.perf_counter()
    index = PhotoIndex.open(directory)
    opened = time.perf_counter() - start
    rows = np.random.default_rng(2).integers(len(index), size=1 + MORE)
    taken, used = [], []
    for row in rows:
        vector = index.content.rows[row].astype(np.float32)
        before, cpu_before = time.perf_counter(), time.process_time()
        index.nearest(vector)
        taken.append(1000 * (time.perf_counter() - before))
        used.append(1000 * (time.process_time() - cpu_before))
    print(json.dumps([opened, taken[0], float(np.median(taken[1:])), float(np.median(used[1:]))]))


def show_answers(directory: Path, count: int, photo: str) -> None:
    """Asks in other processes, and prints what it took and what the index weighs."""
    size = sum(path.stat().st_size for path in directory.iterdir())
    environment = dict(os.environ)
    python = [sys.executable, "-m"]
    query = [*python, "retrieval_jax.main", "query", str(directory), photo, "--paths"]
    first = finished(query, environment)
    asked = finished([*python, "benchmarks.photo_index", "--ask", str(directory)], environment)
    opened, search, more, used = json.loads(asked.output)
    print(f"| size, of its float16 rows | {size / 1e6:,.0f} MB, {size / 2 / count / WIDTH:.3f} × |")
    print(
        f"| `query` as a process | {first.seconds:.2f} s, {first.cpu_seconds:.2f} s of CPU time |"
    )
    print(f"| of that, to open the index; to search | {opened:.2f} s; {search:.1f} ms |")
    print(f"| each of {MORE} more searches, median | {more:.1f} ms, {used:.1f} ms of CPU time |")


def main() -> None:
    """Makes an index and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--photos", type=int)
    what.add_argument("--rows", type=int)
    what.add_argument("--ask", help=argparse.SUPPRESS)
    what.add_argument("--build", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--temporary", type=Path, help="folder for the files; some 50 KB per photo")
    options = parser.parse_args()
    if options.ask:
        return ask(options.ask)
    if options.build:
        directory, file, count = options.build
        return write_index(Path(directory), Path(file), int(count))
    with tempfile.TemporaryDirectory(dir=options.temporary) as folder:
        directory, file = Path(folder) / "photos.index", Path(folder) / "rows.npy"
        count = options.photos or options.rows
        print(f"| {count:,} photos | |\n|---|---|")
        if options.photos:
            write_rows(file, count)
            names = write_pictures(Path(folder) / "photos", count)
            file.with_suffix(".txt").write_text("\n".join(names) + "\n")
            build = ["retrieval_jax.main", "index", f"{folder}/photos", "--output", str(directory)]
            build += ["--embeddings", str(file)]
            done = finished([sys.executable, "-m", *build], dict(os.environ))
            print(f"| to make it | {done.seconds:,.0f} s, {done.cpu_seconds:,.0f} s of CPU time |")
            print(f"| peak memory | {done.peak_mb:,.0f} MB |")
        else:
            build = ["benchmarks.photo_index", "--build", str(directory), str(file), str(count)]
            finished([sys.executable, "-m", *build], dict(os.environ))
        photos = f"{folder}/photos" if options.photos else "/photos"
        show_answers(directory, count, f"{photos}/0000/0000000.jpg")
    print(f"\n{provenance.versions()}")


if __name__ == "__main__":
    main()
