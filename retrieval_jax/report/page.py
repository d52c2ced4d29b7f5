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
from typing import Any

from etils import epath

from retrieval_jax.report import results as schema
from retrieval_jax.report.document import chart, render, write
from retrieval_jax.report.payload import ARRAYS, arrays_of, class_names, explored
from retrieval_jax.report.results import Epoch, Results
from retrieval_jax.report.text import Parser, duration, loss, named, say, score
from retrieval_jax.runtime.errors import UserError, printable, reason
from retrieval_jax.runtime.files import as_path, make_directory, read_bytes, read_json
from retrieval_jax.runtime.progress import complain
from retrieval_jax.runtime.workdir import held

_BETTER = "\N{BLACK UP-POINTING TRIANGLE}"


def make(workdir: epath.PathLike) -> epath.Path:
    """Makes figures/ and report.html of a finished run again, from its other files.

    These are results.json and, as far as they are there, images.json and the arrays of its stages.
    What a missing file would show is left out: runs of earlier versions left fewer.

    Returns:
      The page.

    Raises:
      UserError: the directory holds no finished run, or a damaged file, or can't be written.
    """
    workdir = epath.Path(workdir)
    results = schema.read(workdir)
    schema.check_files(workdir, results, [f"{name}.npz" for name in ARRAYS] + ["images.json"])
    try:
        with held(workdir):
            return write_page(workdir, results, draw(workdir, results))
    except OSError as error:
        raise UserError(
            f"the report of {printable(str(workdir))} can't be made ({reason(error)}): check "
            "that it may be written and has room."
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

    examples, placed = arrays_of(workdir / "examples.npz"), arrays_of(workdir / "map.npz")
    try:
        if "reconstructions" in examples:
            path = folder / "reconstructions.png"
            paths["Queries, and below each its reconstruction and the error of that."] = path
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
    charts = _loss_charts(results.training.history)
    found = explored(workdir, results)
    losses = _losses(results.training.history) | {"charts": range(len(charts))}
    if found:
        charts += found["charts"]
    shown = {"losses.png"} | ({"tsne.png", "retrieval.png"} if found else set())
    figures = {k: file for k, file in figures.items() if epath.Path(file).name not in shown}
    scripts = ["charts.js"] * bool(charts) + ["items.js", "map.js", "ask.js"] * bool(found)
    document = render(
        "report.html",
        scripts=scripts,
        title=results.name,
        results=results,
        tiles=_tiles(results),
        verdict=verdict(results),
        scores=_scores(results),
        classes=class_names(results, len(results.scores.clustering.gallery.counts or ())),
        median_size=statistics.median(results.scores.clustering.sizes),
        figures=_pictures(figures),
        files=[] if found else _shown_files(workdir),
        losses=losses,
        explored=found,
        charts=charts,
        provenance=_provenance(results),
        config=json.dumps(
            results.provenance.config, indent=2, ensure_ascii=False, default=str
        ).split("\n"),
    )
    path = workdir / "report.html"
    write(path, document)
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


def _tiles(results: Results) -> list[tuple[str, str]]:
    """The few figures that one looks for first."""
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
    if results.training.history:
        last = results.training.history[-1].validation.get("loss")
        shown.append(("validation loss", _optional(last, loss)))
    return [*shown, ("whole run", duration(sum(results.seconds.values())))]


def _optional(value: float | None, form: Callable[[float], str]) -> str:
    return "–" if value is None else form(value)


def _scores(results: Results) -> dict[str, Any]:
    """Every score beside its chance level and what the baselines have, as a table."""
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
    return {"head": ["", "trained", *(["chance"] if by_chance else []), *baselines], "rows": rows}


def _loss_charts(history: Sequence[Epoch]) -> list[dict[str, Any]]:
    """A chart for each term, of both sides."""
    terms = dict.fromkeys(term for epoch in history for term in (*epoch.fit, *epoch.validation))
    return [
        chart(
            "total loss" if term == "loss" else term,
            "epoch",
            "loss",
            {
                side: [(epoch.epoch, getattr(epoch, side).get(term)) for epoch in history]
                for side in ("fit", "validation")
                if any(term in getattr(epoch, side) for epoch in history)
            },
        )
        for term in terms
    ]


def _pictures(figures: Mapping[str, epath.PathLike]) -> dict[str, str]:
    """Caption → the PNG file as base64."""
    return {
        caption: base64.b64encode(read_bytes(epath.Path(file))).decode("ascii")
        for caption, file in figures.items()
    }


def _shown_files(workdir: epath.Path) -> list[list[str]]:
    """The files of the images in the retrieval figure, where the images have files."""
    examples = arrays_of(workdir / "examples.npz")
    try:
        names = read_json(workdir / "images.json")
        gallery, queries = names["gallery"], names["queries"]
        if not examples or not queries or not isinstance(queries[0], str):
            return []
        return [
            [str(query), "; ".join(str(gallery[at]) for at in positions if at >= 0)]
            for query, positions in zip(queries, examples["neighbour_positions"], strict=False)
        ]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise UserError(
            f"{printable(str(workdir / 'images.json'))} is damaged ({reason(error)}): repeat the "
            "run's command."
        ) from error


def _losses(history: Sequence[Epoch]) -> dict[str, Any]:
    """Time and losses of every epoch, as a table."""
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
    return {"head": ["epoch", "time", *(f"{side}: {term}" for side, term in keys)], "rows": rows}


def _provenance(results: Results) -> list[list[str]]:
    """How to make the run again: command, machine and data."""
    provenance = results.provenance
    data, device, training = provenance.data, provenance.device, results.training
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
    facts.append(
        [
            "parameters",
            f"{training.parameters:,}, {training.trainable_parameters:,} of them trainable",
        ]
    )
    return facts
