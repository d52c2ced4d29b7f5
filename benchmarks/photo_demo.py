"""What `retrieval-jax index`, `query` and `duplicates` do with real photographs and copies of some.

    python -m benchmarks.photo_demo [--photographs FOLDER] [--folder NEW]

The photographs are those of benchmarks/photographs.py: FOLDER is where Debian's packages were
unpacked; without it there are some thirty. Copies of every fifth are planted among them, one of
each kind and one of the same bytes. Every step is a process of its own, as a user would call it.
Prints Markdown tables. With --folder the pictures stay there, to look at.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np

from benchmarks.photographs import COPIES, copy, jpeg, photographs
from benchmarks.whole_run import finished
from retrieval_jax.baselines import colour_histogram
from retrieval_jax.data.decode import decode
from retrieval_jax.photos import PhotoIndex
from retrieval_jax.runtime import provenance

SAME = "same bytes"
EVERY = 5  # one photograph in so many has copies
THRESHOLDS = ("0.3", "0.15")  # the first is the default
HELD_OUT = "china-0"  # a query that isn't among them


def write_photographs(folder: Path, packages: Path | None) -> Path:
    """Writes photographs and copies; returns one that is not among them.

    `NAME.jpg` is a photograph, `NAME~KIND.jpg` its copy.
    """
    rng = np.random.default_rng(0)
    (folder / "photos").mkdir(parents=True)
    pictures = {p.name: p.image for p in photographs(packages)}
    query = folder / "query.jpg"
    query.write_bytes(jpeg(pictures.pop(HELD_OUT)))
    for place, (name, image) in enumerate(pictures.items()):
        content = jpeg(image)
        (folder / "photos" / f"{name}.jpg").write_bytes(content)
        if place % EVERY == 0:
            for kind in COPIES:
                (folder / "photos" / f"{name}~{kind}.jpg").write_bytes(copy(image, kind, rng))
            (folder / "photos" / f"{name}~{SAME}.jpg").write_bytes(content)
    return query


def original(name: str) -> str:
    """Of a copy's name."""
    return name.partition("~")[0]


def found_copies(groups: list[list[str]], planted: list[str]) -> list[str]:
    """Cells: right ones of all pairs, groups of one photograph of all, and recall of each kind."""
    group_of = {name: number for number, group in enumerate(groups) for name in group}
    pairs = [original(a) == original(b) for group in groups for a, b in combinations(group, 2)]
    pure = sum(len(set(map(original, group))) == 1 for group in groups)
    recalls = []
    for kind in (SAME, *COPIES):
        hits = [
            name in group_of and group_of.get(f"{name}~{kind}") == group_of[name]
            for name in planted
        ]
        recalls.append(f"{np.mean(hits):.2f}")
    return [f"{sum(pairs):,} of {len(pairs):,} pairs", f"{pure} of {len(groups)} pure", *recalls]


def nearest_copies(
    planted: list[str], nearest: Callable[[str], list[str]]
) -> tuple[float, list[str]]:
    """precision@5 of the five copies of each original, and the share found of each kind."""
    hits: dict[str, list[bool]] = {kind: [] for kind in COPIES}
    for name in planted:
        others = [other for other in nearest(name) if other not in (name, f"{name}~{SAME}")][:5]
        for kind in COPIES:
            hits[kind].append(f"{name}~{kind}" in others)
    return float(np.mean(list(hits.values()))), [f"{np.mean(of):.2f}" for of in hits.values()]


def histogram_search(files: list[Path]) -> Callable[[str], list[str]]:
    """The nearest seven by colour histogram, of the pixels that the encoder sees."""
    names = [path.stem for path in files]
    rows = np.concatenate([colour_histogram(decode(path, 224, crop=True)[None]) for path in files])

    def nearest(name: str) -> list[str]:
        order = np.argsort(-(rows @ rows[names.index(name)]), kind="stable")[:7]
        return [names[row] for row in order]

    return nearest


def show(folder: Path, packages: Path | None) -> None:
    """Runs the steps and prints the tables."""
    query = write_photographs(folder, packages)
    files = sorted((folder / "photos").iterdir())
    planted = [path.stem.partition("~")[0] for path in files if f"~{SAME}" in path.stem]
    index, photos = str(folder / "photos.index"), str(folder / "photos")
    print(
        f"{len(files) - len(planted) * (1 + len(COPIES)):,} photographs, "
        f"{len(planted):,} of them with {1 + len(COPIES)} copies each: {len(files):,} files\n"
    )
    steps = {
        "index": ["index", photos, "--output", index],
        "query, the first": ["query", index, str(query), "--paths"],
        "query, another process": ["query", index, str(query), "--paths"],
        **{
            f"duplicates, threshold {threshold}": (
                ["duplicates", index, "--threshold", threshold, "--json"]
            )
            for threshold in THRESHOLDS
        },
    }
    environment = dict(os.environ, XDG_CACHE_HOME=str(folder / "cache"))  # as on a first day
    answers, groups = "", {}
    print("| step | time | CPU time |\n|---|---|---|")
    for name, arguments in steps.items():
        done = finished([sys.executable, "-m", "retrieval_jax.main", *arguments], environment)
        print(f"| {name} | {done.seconds:.1f} s | {done.cpu_seconds:.1f} s |", flush=True)
        if name.startswith("query"):
            answers = ", ".join(Path(line).stem for line in done.output.splitlines()[:5])
        elif name.startswith("duplicates"):
            groups[name] = [
                [Path(path).stem for path in [group["keep"], *group["others"]]]
                for group in json.loads(done.output)
            ]
    show_found(files, planted, PhotoIndex.open(index), groups, answers)


def show_found(
    files: list[Path],
    planted: list[str],
    index: PhotoIndex,
    groups: dict[str, list[list[str]]],
    answers: str,
) -> None:
    """Prints what was found: answers, the groups of copies, the nearest of each planted one."""
    row_of = {Path(path).stem: row for row, path in enumerate(index.content.photos.paths)}

    def by_index(name: str) -> list[str]:
        found = index.nearest(index.content.rows[row_of[name]].astype(np.float32), 7, None)
        return [Path(path).stem for path in found.paths]

    print(f"\nNearest to {HELD_OUT}, which is not in the index: {answers}\n")
    print(f"| | right | groups | {SAME} | {' | '.join(COPIES)} |\n|{'---|' * (len(COPIES) + 4)}")
    for name, found in groups.items():
        print(f"| {name} | {' | '.join(found_copies(found, planted))} |")
    for title, nearest in (("index", by_index), ("colour histogram", histogram_search(files))):
        precision_at_5, shares = nearest_copies(planted, nearest)
        print(f"| {title}, first five | {precision_at_5:.3f} | | | {' | '.join(shares)} |")
    print(f"\n{provenance.versions()}")


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--photographs", type=Path, help="where Debian's packages were unpacked")
    parser.add_argument("--folder", type=Path, help="new; for the pictures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        show(options.folder or Path(temporary) / "demo", options.photographs)


if __name__ == "__main__":
    main()
