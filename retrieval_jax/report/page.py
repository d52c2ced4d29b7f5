"""The page of a run: scores, losses, figures and provenance from results.json.

All text from the data or the config is escaped.
"""

import base64
import json
import statistics
from collections.abc import Mapping
from html import escape
from typing import Any

from etils import epath

from retrieval_jax.report.html import page, table, text, write
from retrieval_jax.report.text import duration, loss, score
from retrieval_jax.runtime.files import read_bytes


def write_report(
    results: Mapping[str, Any],
    figures: Mapping[str, epath.PathLike],
    path: epath.PathLike,
) -> None:
    """Writes the report of a run as one file that needs no other.

    Args:
      results: what `results.json` holds; parts that need labels may be missing.
      figures: caption -> PNG file, in the order to show; a caption is plain text.
      path: the HTML file to write.

    Raises:
      OSError: a figure can't be read or the page can't be written.
    """
    parts = [
        _head(results),
        _left_out(results),
        _scores(results),
        _figures(figures),
        _history(results),
        _time(results),
        _skipped(results),
        _provenance(results),
    ]
    write(path, page(results["name"], "\n".join(filter(None, parts))))


def _optional(value: float | None, form: Any) -> str:
    return "–" if value is None else form(value)


def _head(results: Mapping[str, Any]) -> str:
    """The name, what was run on what, and the few figures one looks for first."""
    training, clustering = results["training"], results["clustering"]
    retrieval, provenance = results["retrieval"], results["provenance"]
    tiles = []
    if "gallery" in clustering:
        tiles += [
            ("NMI, clusters of the gallery", score(clustering["gallery"]["nmi"])),
            ("ARI, clusters of the gallery", score(clustering["gallery"]["ari"])),
        ]
    if "precision@5" in retrieval.get("cluster", {}):
        tiles.append(("precision@5, in the cluster", score(retrieval["cluster"]["precision@5"])))
    tiles += [
        (f"{measure.replace('map', 'mAP')}, exhaustive", score(value))
        for measure, value in retrieval.get("exhaustive", {}).items()
        if measure.startswith("map@")
    ]
    if "gallery" not in clustering:
        tiles.append(("clusters", f"{clustering['k']:,}"))
        tiles += [
            (f"true neighbours kept by the cluster, {cut}", score(share))
            for cut, share in retrieval.get("kept", {}).items()
        ]
    if training["history"]:
        validation = training["history"][-1].get("validation", {})
        tiles.append(("validation loss", _optional(validation.get("loss"), loss)))
    tiles.append(("whole run", duration(sum(results["seconds"].values()))))
    boxes = "".join(f"<div><dt>{text(k)}</dt><dd>{text(v)}</dd></div>" for k, v in tiles)
    data, device = provenance["data"], provenance["device"]
    split = f"{data['gallery']:,} in the gallery, {data['queries']:,} queries"
    run = (
        f"{training['epochs']} epochs, {training['parameters']:,} parameters, "
        f"seed {provenance['seed']}, {device['count']} × {device['kind']}, {provenance['date']}"
    )
    return (
        f"<header>\n<h1>{text(results['name'])}</h1>\n"
        f'<p class="soft">{text(data["description"])} ({text(split)})</p>\n'
        f'<p class="soft">{text(run)}</p>\n</header>\n<dl class="tiles">{boxes}</dl>'
    )


def _left_out(results: Mapping[str, Any]) -> str:
    if not results.get("left_out"):
        return ""
    items = "".join(f"<li>{text(sentence)}</li>" for sentence in results["left_out"])
    return f'<div class="note"><p><strong>Left out</strong></p><ul>{items}</ul></div>'


def _scores(results: Mapping[str, Any]) -> str:
    """The clusters and the neighbours, side by side where there is room."""
    clustering, retrieval = results["clustering"], results["retrieval"]
    sides = [side for side in ("gallery", "queries") if side in clustering]
    names = dict.fromkeys(name for side in sides for name in clustering[side])
    how = (
        f"k = {clustering['k']:,}, inertia {clustering['inertia']:.6g}, "
        + ("converged" if clustering["converged"] else "not converged")
        + f" after {clustering['iterations']:,} iterations."
    )
    sizes = clustering["sizes"]
    spread = (
        f"Gallery images a cluster: {min(sizes):,} to {max(sizes):,}, "
        f"median {statistics.median(sizes):,.0f}."
    )
    chance = (
        "1 is a perfect match with the classes. ARI is corrected for chance, where it is 0; "
        "NMI and RI are not."
    )
    blocks = [
        table(
            ["", *sides],
            [
                [name.upper(), *(_optional(clustering[side].get(name), score) for side in sides)]
                for name in names
            ],
            chance,
            label="clustering scores",
        )
        if sides
        else "",
        f'<p class="soft">{text(how)} {text(spread)}</p>',
    ]
    listed = ", ".join(f"{size:,}" for size in sizes)
    blocks.append(
        f'<details class="card"><summary>Size of every cluster</summary><p>{listed}</p></details>'
    )
    ways = [way for way in ("cluster", "exhaustive") if way in retrieval]
    measures = dict.fromkeys(name for way in ways for name in retrieval[way])
    rows = [
        [
            name.replace("map@", "mAP@"),
            *(_optional(retrieval[way].get(name), score) for way in ways),
        ]
        for name in measures
    ]
    # The exhaustive search keeps all true neighbours by definition.
    kept = retrieval.get("kept", {})
    heads = [{"cluster": "in the cluster", "exhaustive": "exhaustive"}[way] for way in ways]
    rows += [
        [f"true neighbours kept, {cut}", score(share), *[score(1.0)] * (len(ways) - 1)]
        for cut, share in kept.items()
    ]
    found = table(
        ["", *(heads or ["in the cluster"])],
        rows,
        "Means over the queries. In the cluster: only gallery images of the query's own cluster "
        "are ranked; the last rows say how many of the true nearest neighbours that keeps.",
        label="retrieval scores",
    )
    return (
        f'<div class="pair">\n<section>\n<h2>Clusters</h2>\n{"".join(blocks)}\n</section>\n'
        f"<section>\n<h2>Retrieval</h2>\n{found if rows else ''}\n</section>\n</div>"
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


def _history(results: Mapping[str, Any]) -> str:
    history = results["training"]["history"]
    if not history:
        return ""
    keys = dict.fromkeys(
        (side, term)
        for side in ("fit", "validation")
        for epoch in history
        for term in epoch.get(side) or ()
    )
    rows = [
        [
            str(epoch["epoch"]),
            duration(epoch["seconds"]),
            *(_optional((epoch.get(side) or {}).get(term), loss) for side, term in keys),
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


def _time(results: Mapping[str, Any]) -> str:
    seconds = results["seconds"]
    rows = [[stage, duration(value)] for stage, value in seconds.items()]
    rows.append(["all", duration(sum(seconds.values()))])
    shown = table(["stage", "time"], rows, label="time of each stage", style="narrow")
    return f"<section>\n<h2>Time of each stage</h2>\n{shown}\n</section>"


def _skipped(results: Mapping[str, Any]) -> str:
    skipped = results["provenance"]["data"].get("skipped") or []
    if not skipped:
        return ""
    items = "".join(f"<li>{text(line)}</li>" for line in skipped)
    noun = "file was" if len(skipped) == 1 else "files were"
    return (
        f'<section>\n<h2>Skipped files</h2>\n<details class="card" open><summary>{len(skipped):,} '
        f"{noun} skipped</summary><ul>{items}</ul></details>\n</section>"
    )


def _provenance(results: Mapping[str, Any]) -> str:
    """How to make the run again: command, machine, data, versions and every config key."""
    provenance = results["provenance"]
    data, device = provenance["data"], provenance["device"]
    facts = [
        ["command", provenance["command"]],
        ["date", provenance["date"]],
        ["seed", str(provenance["seed"])],
        ["device", f"{device['count']} × {device['kind']} ({device['platform']})"],
        ["host", device["host"]],
        ["data", data["description"]],
        ["images", f"{data['images']:,} of {' × '.join(map(str, data['image_shape']))}"],
        [
            "split",
            f"{data['gallery']:,} in the gallery ({data['fit']:,} fit, "
            f"{data['validation']:,} validation), {data['queries']:,} queries",
        ],
    ]
    if data.get("class_names"):
        facts.append([f"{len(data['class_names']):,} classes", ", ".join(data["class_names"])])
    training = results["training"]
    facts.append(
        [
            "parameters",
            f"{training['parameters']:,}, {training['trainable_parameters']:,} of them trainable",
        ]
    )
    versions = table([], provenance["versions"].items(), label="versions", style="text")
    config = json.dumps(provenance["config"], indent=2, ensure_ascii=False, default=str)
    return (
        "<section>\n<h2>Provenance</h2>\n"
        + table([], facts, label="provenance", style="text")
        + f'\n<details class="card"><summary>Versions</summary>{versions}</details>'
        + f'\n<details class="card"><summary>Config</summary><pre>{escape(config)}</pre></details>'
        + "\n</section>"
    )
