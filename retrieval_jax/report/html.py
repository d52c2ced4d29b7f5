"""One self-contained page a run: scores, losses, figures and provenance from results.json.

The page needs no script and asks for nothing from outside, which its content security policy also
forbids. All text from the data or the config is escaped.
"""

import base64
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from os import PathLike
from pathlib import Path
from typing import Any

from retrieval_jax.report.text import duration, loss, printable, score

_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
    "form-action 'none'"
)

_STYLE = """
:root { color-scheme: light dark; --ink: #1e293b; --soft: #526077; --line: #dbe2ea;
  --page: #f6f8fa; --card: #fff; --accent: #0369a1; --note: #fff7e6; --edge: #d97706; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6ebf2; --soft: #9fadbf; --line: #334155;
  --page: #0f172a; --card: #1b2638; --accent: #7dd3fc; --note: #2d2613; --edge: #fbbf24; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 1.5rem 1rem 3rem; }
h1, h2, p, li, summary, figcaption, pre { overflow-wrap: anywhere; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .7rem; }
a { color: var(--accent); }
.soft, figcaption { color: var(--soft); font-size: .92rem; }
.soft { margin: .3rem 0; }
.tiles { display: grid; gap: .7rem; margin: 1.3rem 0 0; padding: 0;
  grid-template-columns: repeat(auto-fit, minmax(9.4rem, 1fr)); }
.tiles div, .card { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; }
.tiles div { padding: .7rem .9rem; display: flex; flex-direction: column-reverse;
  justify-content: flex-end; }
.tiles dt { color: var(--soft); font-size: .85rem; line-height: 1.3; }
.tiles dd { margin: 0; font-size: 1.2rem; font-weight: 600; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
.note { background: var(--note); border-left: .25rem solid var(--edge); margin: 1.2rem 0 0;
  padding: .6rem 1rem; border-radius: .3rem; }
.note p { margin: 0; }
ul { margin: .3rem 0; padding-left: 1.2rem; }
.pair { display: grid; gap: .9rem; align-items: start; grid-template-columns: minmax(0, 1fr); }
@media (min-width: 46rem) { .pair { grid-template-columns: repeat(2, minmax(0, 1fr)); } }
.scroll { overflow-x: auto; padding: .3rem 0; }
.narrow { max-width: 24rem; }
.tall { max-height: 28rem; overflow-y: auto; }
table { border-collapse: collapse; width: 100%; font-size: .94rem; }
th, td { padding: .38rem .7rem; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; font-variant-numeric: tabular-nums; unicode-bidi: isolate; }
tbody:last-of-type tr:last-child > * { border-bottom: 0; }
th:first-child { text-align: left; padding-left: .9rem; position: sticky; left: 0;
  background: var(--card); }
th:last-child, td:last-child { padding-right: .9rem; }
tbody th { font-weight: 400; white-space: normal; }
tbody th.group { font-weight: 600; padding-top: 1rem; }
thead th { font-weight: 600; color: var(--soft); font-size: .85rem; white-space: normal;
  vertical-align: bottom; }
table.text td { text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 12rem; }
figure { margin: 0 0 1rem; padding: clamp(.4rem, 2vw, .9rem); }
figure img { display: block; width: 44rem; max-width: 100%; height: auto; margin: 0 auto;
  border-radius: .35rem; background: #fff; }
figcaption { margin: .6rem auto 0; max-width: 44rem; }
details { margin: .7rem 0; padding: .6rem .9rem; }
summary { cursor: pointer; font-weight: 600; }
pre { font-size: .84rem; white-space: pre-wrap; margin: .6rem 0 0; }
"""


def text(value: object) -> str:
    """Any value as one escaped line of HTML text, safe in an attribute too.

    >>> text('<b title="x">')
    '&lt;b title=&quot;x&quot;&gt;'
    """
    return escape(printable(str(value)))


def page(title: str, body: str) -> str:
    """A whole HTML document.

    Args:
      title: plain text, escaped here.
      body: HTML, escaped by the caller.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def write(path: str | PathLike[str], document: str) -> None:
    """Writes a document as UTF-8; what can't be encoded (a lone surrogate) is spelt out."""
    Path(path).write_bytes(document.encode("utf-8", "backslashreplace"))


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    caption: str = "",
    *,
    label: str,
    style: str = "",
) -> str:
    """A table in a box of its own that scrolls when it is wider than the screen.

    Args:
      head: plain text, one a column; empty for a table without a head.
      rows: plain text, first the row's name, then a value a column. A row of the name alone
        is the heading of the rows after it.
      caption: plain text under the box.
      label: what a screen reader calls the box.
      style: "tall": scrolls down too; "narrow": never wide; "text": values are words, not
        numbers; or empty.
    """
    lines = [
        f'<div class="card scroll {style}" role="region" tabindex="0" aria-label="{text(label)}">'
    ]
    lines.append(f'<table class="{style}">')
    if head:
        cells = "".join(f'<th scope="col">{text(cell)}</th>' for cell in head)
        lines.append(f"<thead><tr>{cells}</tr></thead>")
    lines.append("<tbody>")
    for name, *values in rows:
        if values:
            cells = "".join(f"<td>{text(value)}</td>" for value in values)
            lines.append(f'<tr><th scope="row">{text(name)}</th>{cells}</tr>')
        else:
            span = f'scope="rowgroup" colspan="{len(head)}"'
            lines.append(f'<tr><th class="group" {span}>{text(name)}</th></tr>')
    lines.append("</tbody>\n</table>\n</div>")
    if caption:
        lines.append(f'<p class="soft">{text(caption)}</p>')
    return "\n".join(lines)


def write_report(
    results: Mapping[str, Any],
    figures: Mapping[str, str | PathLike[str]],
    path: str | PathLike[str],
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
    if "map@100" in retrieval.get("exhaustive", {}):
        tiles.append(("mAP@100, exhaustive", score(retrieval["exhaustive"]["map@100"])))
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


def _figures(figures: Mapping[str, str | PathLike[str]]) -> str:
    if not figures:
        return ""
    items = []
    for caption, file in figures.items():
        data = base64.b64encode(Path(file).read_bytes()).decode("ascii")
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
