"""The report of a run, made from what its workdir holds: figures and one self-contained page.

    retrieval-jax report DIR

Neither the data nor the model is needed. All text from the data or the config is escaped.
"""

from __future__ import annotations

import base64
import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from html import escape

import numpy as np
from etils import epath

from retrieval_jax.data.images import LazyImages
from retrieval_jax.report import results as schema
from retrieval_jax.report.html import page, table, text, write
from retrieval_jax.report.results import Epoch, Results
from retrieval_jax.report.text import Parser, duration, loss, named, say, score
from retrieval_jax.runtime.errors import UserError, printable, reason
from retrieval_jax.runtime.files import as_path, make_directory, read_arrays, read_bytes, read_json
from retrieval_jax.runtime.progress import complain
from retrieval_jax.runtime.workdir import held

_SHOWN = 5  # neighbours in a retrieval row, as in the 2020 report
_BETTER = "\N{BLACK UP-POINTING TRIANGLE}"


def make(workdir: epath.PathLike) -> epath.Path:
    """Makes figures/ and report.html of a finished run again, from its other files.

    These are results.json and, as far as they are there, examples.npz, map.npz and images.json. A
    picture whose file isn't there is left out: runs of earlier versions left none of them.

    Returns:
      The page.

    Raises:
      UserError: the directory holds no finished run, or a damaged file, or can't be written.
    """
    workdir = epath.Path(workdir)
    results = schema.read(workdir)
    schema.check_files(workdir, results, ("examples.npz", "map.npz", "images.json"))
    try:
        with held(workdir):
            return write_page(workdir, results, draw(workdir, results))
    except OSError as error:
        raise UserError(
            f"the report of {printable(str(workdir))} can't be made: {reason(error)}."
        ) from None


def main(argv: Sequence[str] | None = None) -> int:
    """Makes the report of the run named on the command line again; returns the exit status."""
    parser = Parser(prog="retrieval-jax report", description="Makes a finished run's report again.")
    parser.add_argument("run", metavar="DIR", help="workdir of a finished run")
    try:
        say(f"report: {make(as_path(parser.parse_args(argv).run))}", sys.stdout)
    except UserError as error:
        complain(str(error))
        return 2
    return 0


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
    """The few images and labels that the pictures of a report show, for `examples.npz`.

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
      [e, h, w, c], "query_labels" int [e], "neighbour_labels" int [e, r] and "map_labels" int [m].
    """
    queries = queries[:count]
    positions = neighbours[: len(queries), :_SHOWN]
    rows = gallery[positions]
    chosen = {
        "queries": images[queries],
        "neighbours": images[rows],
        "neighbour_positions": positions,
    }
    if reconstructions is not None:
        chosen["reconstructions"] = reconstructions[: len(queries)]
    if labels is not None:
        chosen |= {"query_labels": labels[queries], "neighbour_labels": labels[rows]}
        if mapped is not None:
            chosen["map_labels"] = labels[gallery[mapped]]
    return chosen


def draw(workdir: epath.Path, results: Results) -> dict[str, epath.Path]:
    """Writes the PNG figures of a run under `workdir/figures`.

    Returns:
      caption → file, in the order to show them.

    Raises:
      UserError: examples.npz or map.npz is damaged.
      OSError: a file can't be read or written.
    """
    from retrieval_jax.report import figures  # matplotlib takes half a second to import

    folder = workdir / "figures"
    make_directory(folder)
    names = results.provenance.data.class_names
    paths = {"Loss by epoch, fit and validation.": folder / "losses.png"}
    figures.loss_curves(
        [epoch._asdict() for epoch in results.training.history], folder / "losses.png"
    )

    examples, placed = _arrays(workdir / "examples.npz"), _arrays(workdir / "map.npz")
    try:
        if "reconstructions" in examples:
            path = folder / "reconstructions.png"
            paths["Queries, and below each its reconstruction."] = path
            figures.reconstructions(examples["queries"], examples["reconstructions"], path)
        if "queries" in examples:
            path = folder / "retrieval.png"
            shown = examples["neighbours"].shape[1]
            paths[f"Queries, and the {shown} nearest gallery images of their cluster."] = path
            figures.retrieval_rows(
                examples["queries"],
                examples["neighbours"],
                examples.get("query_labels"),
                examples.get("neighbour_labels"),
                names,
                path,
                found=examples["neighbour_positions"] >= 0,
            )
        if "positions" in placed:
            path = folder / "tsne.png"
            count, gallery = len(placed["rows"]), results.provenance.data.gallery
            paths[f"t-SNE of {count:,} of the {gallery:,} gallery embeddings."] = path
            figures.embedding_map(placed["positions"], examples.get("map_labels"), names, path)
    except (ValueError, KeyError, IndexError) as error:
        raise UserError(
            f"examples.npz or map.npz in {printable(str(workdir))} doesn't belong to this run "
            f"({reason(error)}): repeat the run's command."
        ) from error
    return paths


def write_page(
    workdir: epath.Path, results: Results, figures: Mapping[str, epath.PathLike]
) -> epath.Path:
    """Writes `workdir/report.html`, one file that needs no other.

    Args:
      workdir: of the run; images.json there says what the pictures show, if it is there.
      results: parts that need labels may be missing.
      figures: caption → PNG file, in the order to show; a caption is plain text.

    Returns:
      The page.

    Raises:
      UserError: a file is damaged.
      OSError: a file can't be read or the page can't be written.
    """
    parts = [
        _head(results),
        _note("To know when reading the scores", results.notes),
        _note("Left out", results.left_out),
        _note("Against the baselines", verdict(results)),
        _scores(results),
        _clusters(results),
        _figures(figures),
        _shown_files(workdir),
        _history(results.training.history),
        _time(results),
        _skipped(results),
        _provenance(results),
    ]
    path = workdir / "report.html"
    write(path, page(results.name, "\n".join(filter(None, parts))))
    return path


def verdict(results: Results) -> list[str]:
    """What the baselines say of the training, a sentence for each that is better in something.

    Only scores that judge by classes are compared; without labels there is nothing to say.
    """
    mine = {one[:2]: one.score.value for one in named(results.scores) if one.comparable}
    sentences = []
    for baseline, scores in results.baselines.items():
        theirs = {one[:2]: one.score.value for one in named(scores) if one[:2] in mine}
        better = [key for key, value in theirs.items() if value > mine[key]]
        if better:
            first = "; ".join(
                f"{name}, {group}: {score(theirs[group, name])} against {score(mine[group, name])}"
                for group, name in better[:3]
            )
            more = f"; and {len(better) - 3} more" if len(better) > 3 else ""
            sentences.append(
                f"{baseline}: better than the trained embedding in {len(better)} of {len(theirs)} "
                f"scores ({first}{more})."
            )
    if mine and results.baselines and not sentences:
        sentences.append("No baseline beats the trained embedding in any score.")
    return sentences


def _arrays(path: epath.Path) -> dict[str, np.ndarray]:
    try:
        return read_arrays(path)
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UserError(
            f"{printable(str(path))} is damaged ({error}): repeat the run's command."
        ) from error


def _optional(value: float | None, form: Callable[[float], str]) -> str:
    return "–" if value is None else form(value)


def _head(results: Results) -> str:
    """The name, what was run on what, and the few figures one looks for first."""
    training, provenance = results.training, results.provenance
    clustering, retrieval = results.scores.clustering, results.scores.retrieval
    tiles = [
        (f"{name}, clusters of the gallery", found)
        for name, found in (("NMI", clustering.gallery.nmi), ("ARI", clustering.gallery.ari))
    ]
    if retrieval.exhaustive is not None:
        exhaustive = retrieval.exhaustive
        tiles += [
            ("precision@5, whole gallery", exhaustive.precision_at.get("5")),
            ("mAP, whole gallery", exhaustive.map),
        ]
    if clustering.gallery.nmi is None:
        tiles += [
            (f"true neighbours kept by the cluster, @{cut}", found)
            for cut, found in retrieval.kept.items()
        ]
    shown = [
        (name if found.chance is None else f"{name} (chance {score(found.chance)})",
         score(found.value))
        for name, found in tiles
        if found is not None
    ]  # fmt: skip
    if training.history:
        shown.append(
            ("validation loss", _optional(training.history[-1].validation.get("loss"), loss))
        )
    shown.append(("whole run", duration(sum(results.seconds.values()))))
    boxes = "".join(f"<div><dt>{text(k)}</dt><dd>{text(v)}</dd></div>" for k, v in shown)
    data, device = provenance.data, provenance.device
    split = f"{data.gallery:,} in the gallery, {data.queries:,} queries"
    run = (
        f"{training.epochs} epochs, {training.parameters:,} parameters, "
        f"seed {provenance.seed}, {device.count} × {device.kind}, {provenance.date}"
    )
    return (
        f"<header>\n<h1>{text(results.name)}</h1>\n"
        f'<p class="soft">{text(data.description)} ({text(split)})</p>\n'
        f'<p class="soft">{text(run)}</p>\n</header>\n<dl class="tiles">{boxes}</dl>'
    )


def _note(head: str, sentences: Sequence[str]) -> str:
    if not sentences:
        return ""
    items = "".join(f"<li>{text(sentence)}</li>" for sentence in sentences)
    return f'<div class="note"><p><strong>{text(head)}</strong></p><ul>{items}</ul></div>'


def _scores(results: Results) -> str:
    """Every score beside its chance level and what the baselines have."""
    mine = named(results.scores)
    baselines = {
        name: {one[:2]: one.score.value for one in named(scores)}
        for name, scores in results.baselines.items()
    }
    by_chance = any(one.score.chance is not None for one in mine)
    rows: list[list[str]] = []
    group = None
    for one in mine:
        if one.group != group:
            rows.append([one.group])
            group = one.group
        cells = [_optional(one.score.chance, score)] if by_chance else []
        for scores in baselines.values():
            value = scores.get(one[:2])
            better = one.comparable and value is not None and value > one.score.value
            cells.append((f"{_BETTER} " if better else "") + _optional(value, score))
        rows.append([one.name, score(one.score.value), *cells])
    if not rows:
        return ""
    caption = "Retrieval scores are means over the queries."
    if by_chance:
        caption += (
            " Chance: random clusters of the same sizes, or random gallery images in place of the "
            "neighbours. kNN: the 20 nearest vote."
        )
    if baselines:
        caption += (
            f" Baselines are clustered and searched as the trained embedding is; {_BETTER} marks "
            "those that beat it."
        )
    caption += "".join(
        f" {name[:1].upper()}{name[1:]}: {scores.features:,} features"
        + (
            f", {scores.variance_kept:.0%} of their variance kept."
            if scores.variance_kept is not None
            else "."
        )
        for name, scores in results.baselines.items()
        if scores.features is not None
    )
    head = ["", "trained", *(["chance"] if by_chance else []), *baselines]
    return f"<section>\n<h2>Scores</h2>\n{table(head, rows, caption, label='scores')}\n</section>"


def _clusters(results: Results) -> str:
    """How k-means ended, and what the clusters hold."""
    clustering = results.scores.clustering
    sizes = clustering.sizes
    how = (
        f"k = {clustering.k:,}, inertia {clustering.inertia:.6g}, "
        + ("converged" if clustering.converged else "not converged")
        + f" after {clustering.iterations:,} iterations. "
        f"Gallery images per cluster: {min(sizes):,} to {max(sizes):,}, "
        f"median {statistics.median(sizes):,.0f}."
    )
    counts = clustering.gallery.counts
    if counts is None:
        listed = f"<p>{', '.join(f'{size:,}' for size in sizes)}</p>"
        summary = "Size of every cluster"
    else:
        names = results.provenance.data.class_names
        rows = [
            [names[i] if i < len(names) else f"class {i}", *(f"{count:,}" for count in row)]
            for i, row in enumerate(counts)
        ]
        rows.append(["all", *(f"{size:,}" for size in sizes)])
        head = ["", *(f"#{i + 1}" for i in range(clustering.k))]
        listed = table(head, rows, label="classes by cluster")
        summary = "Gallery images of each class in each cluster"
    return (
        f'<section>\n<h2>Clusters</h2>\n<p class="soft">{text(how)}</p>\n'
        f'<details class="card"><summary>{summary}</summary>{listed}</details>\n</section>'
    )


def _figures(figures: Mapping[str, epath.PathLike]) -> str:
    if not figures:
        return ""
    items = []
    for caption, file in figures.items():
        data = base64.b64encode(read_bytes(epath.Path(file))).decode("ascii")
        items.append(
            f'<figure class="card"><img alt="{text(caption)}" src="data:image/png;base64,{data}">'
            f"<figcaption>{text(caption)}</figcaption></figure>"
        )
    return "<section>\n<h2>Figures</h2>\n" + "\n".join(items) + "\n</section>"


def _shown_files(workdir: epath.Path) -> str:
    """The files of the images in the retrieval figure, where the images have files."""
    examples = _arrays(workdir / "examples.npz")
    try:
        names = read_json(workdir / "images.json")
        gallery, queries = names["gallery"], names["queries"]
        if not examples or not queries or not isinstance(queries[0], str):
            return ""
        rows = [
            [str(query), "; ".join(str(gallery[at]) for at in positions if at >= 0)]
            for query, positions in zip(queries, examples["neighbour_positions"], strict=False)
        ]
    except FileNotFoundError:
        return ""
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise UserError(
            f"{printable(str(workdir / 'images.json'))} is damaged ({reason(error)}): repeat the "
            "run's command."
        ) from error
    listed = table(["query", "neighbours, nearest first"], rows, label="files", style="text")
    return (
        '<details class="card"><summary>Files of the queries and their neighbours</summary>'
        f"{listed}</details>"
    )


def _history(history: Sequence[Epoch]) -> str:
    if not history:
        return ""
    keys = dict.fromkeys(
        (side, term)
        for side in ("fit", "validation")
        for epoch in history
        for term in getattr(epoch, side)
    )
    rows = [
        [
            str(epoch.epoch),
            duration(epoch.seconds),
            *(_optional(getattr(epoch, side).get(term), loss) for side, term in keys),
        ]
        for epoch in history
    ]
    shown = table(
        ["epoch", "time", *(f"{side}: {term}" for side, term in keys)],
        rows,
        label="losses by epoch",
        style="tall",
    )
    return f"<section>\n<h2>Losses by epoch</h2>\n{shown}\n</section>"


def _time(results: Results) -> str:
    seconds = results.seconds
    rows = [[stage, duration(value)] for stage, value in seconds.items()]
    rows.append(["all", duration(sum(seconds.values()))])
    shown = table(["stage", "time"], rows, label="time of each stage", style="narrow")
    return f"<section>\n<h2>Time of each stage</h2>\n{shown}\n</section>"


def _skipped(results: Results) -> str:
    skipped = results.provenance.data.skipped
    if not skipped:
        return ""
    items = "".join(f"<li>{text(line)}</li>" for line in skipped)
    noun = "file was" if len(skipped) == 1 else "files were"
    return (
        f'<section>\n<h2>Skipped files</h2>\n<details class="card" open><summary>{len(skipped):,} '
        f"{noun} skipped</summary><ul>{items}</ul></details>\n</section>"
    )


def _provenance(results: Results) -> str:
    """How to make the run again: command, machine, data, versions and every config key."""
    provenance = results.provenance
    data, device = provenance.data, provenance.device
    facts = [
        ["command", provenance.command],
        ["date", provenance.date],
        ["seed", str(provenance.seed)],
        ["device", f"{device.count} × {device.kind} ({device.platform})"],
        ["host", device.host],
        ["data", data.description],
        ["images", f"{data.images:,} of {' × '.join(map(str, data.image_shape))}"],
        [
            "split",
            f"{data.gallery:,} in the gallery ({data.fit:,} fit, "
            f"{data.validation:,} validation), {data.queries:,} queries",
        ],
    ]
    if data.class_names:
        names = list(data.class_names)
        if not all(name.isascii() for name in names):  # figures may have the number only
            names = [f"{label} {name}" for label, name in enumerate(names)]
        facts.append([f"{len(names):,} classes", ", ".join(names)])
    training = results.training
    facts.append(
        [
            "parameters",
            f"{training.parameters:,}, {training.trainable_parameters:,} of them trainable",
        ]
    )
    versions = table([], provenance.versions.items(), label="versions", style="text")
    config = json.dumps(provenance.config, indent=2, ensure_ascii=False, default=str)
    return (
        "<section>\n<h2>Provenance</h2>\n"
        + table([], facts, label="provenance", style="text")
        + f'\n<details class="card"><summary>Versions</summary>{versions}</details>'
        + f'\n<details class="card"><summary>Config</summary><pre>{escape(config)}</pre></details>'
        + "\n</section>"
    )
