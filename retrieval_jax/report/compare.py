"""Sets finished runs side by side.

    retrieval-jax compare DIR DIR … [--output DIR]

Each DIR is a run's workdir, here or on gs://; everything shown comes from its results.json. Where
the runs are of the same data, chance levels and baselines stand beside them, and the best value of
each row that judges by classes is marked. With --output the table is also written as comparison.md
and comparison.html, which link to the runs' own reports where these are on this machine.
"""

import math
import os
import re
import shutil
import statistics
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple
from urllib.parse import quote

from etils import epath

from retrieval_jax.report import html
from retrieval_jax.report.results import Results, Scores, read
from retrieval_jax.report.text import (
    GROUPS,
    Parser,
    columns,
    duration,
    loss,
    named,
    say,
    score,
    shorten,
)
from retrieval_jax.runtime.errors import UserError, printable, reason
from retrieval_jax.runtime.files import as_path, is_remote, make_directory

MISSING = "-"
BEST = "*"
_LOSSES, _TIME = "after the last epoch", "time"
# How the names of scores begin, in the order of the rows.
_MEASURES = (
    *("NMI", "RI", "ARI", "AMI", "accuracy", "silhouette"),
    *("precision", "recall", "mAP@", "MAP@R", "mAP", "kNN", "true neighbours"),
)


class Run(NamedTuple):
    """A finished run and where it is."""

    directory: epath.Path
    results: Results


class Row(NamedTuple):
    """A line of the table; `best` are the columns that hold its best value."""

    group: str
    name: str
    values: list[str]
    best: frozenset[int] = frozenset()


class Comparison(NamedTuple):
    """A table: a heading for each run and baseline, rows, and sentences below.

    Names are as the runs have them; whatever shows them makes them harmless.
    """

    heads: list[str]
    rows: list[Row]
    notes: list[str]


def read_run(directory: epath.PathLike) -> Run:
    """Reads a run's results.json.

    Raises:
      UserError: as `retrieval_jax.report.results.read`.
    """
    return Run(epath.Path(directory), read(directory))


def compare(runs: Sequence[Run]) -> Comparison:
    """Lines up the runs' values; a row that no run has is left out.

    Runs are called by their names, or by their directories when names repeat. Chance levels and
    baselines are means over the runs, whose seeds and clusters may differ; of different data there
    are none.
    """
    heads = [run.results.name for run in runs]
    if not all(heads) or len(set(heads)) < len(heads):
        heads = [str(run.directory) for run in runs]
    comparable = len({_data(run.results) for run in runs}) == 1
    others: dict[str, list[dict[tuple[str, str], float]]] = {}
    if comparable:
        others["chance"] = [_chances(run.results.scores) for run in runs]
        for name in dict.fromkeys(name for run in runs for name in run.results.baselines):
            having = [run.results.baselines[name] for run in runs if name in run.results.baselines]
            others[name] = [_values(scores) for scores in having]
    others = {name: found for name, found in others.items() if any(found)}

    rows = []
    judged = {one[:2]: one.comparable for run in runs for one in named(run.results.scores)}
    scored = [_values(run.results.scores) for run in runs]
    for key in sorted(judged, key=_place):
        row = [found.get(key) for found in scored]
        row += [_mean(found, key) for found in others.values()]
        marked = comparable and judged[key] and len(row) > 1
        rows.append(Row(*key, _shown(row, score), _best(row) if marked else frozenset()))
    for group, form, found in (
        (_LOSSES, loss, [_last_losses(run.results) for run in runs]),
        (_TIME, duration, [_times(run.results) for run in runs]),
    ):
        for name in dict.fromkeys(name for each in found for name in each):
            values = _shown((each.get(name) for each in found), form)
            rows.append(Row(group, name, values + [""] * len(others)))
    return Comparison(heads + list(others), rows, _notes(runs, heads))


def _values(scores: Scores) -> dict[tuple[str, str], float]:
    return {one[:2]: one.score.value for one in named(scores)}


def _chances(scores: Scores) -> dict[tuple[str, str], float]:
    return {one[:2]: one.score.chance for one in named(scores) if one.score.chance is not None}


def _mean(found: Iterable[dict[tuple[str, str], float]], key: tuple[str, str]) -> float | None:
    values = [each[key] for each in found if key in each]
    return statistics.fmean(values) if values else None


def _shown(values: Iterable[float | None], form: Callable[[float], str]) -> list[str]:
    return [MISSING if value is None else form(value) for value in values]


def _best(values: Sequence[float | None]) -> frozenset[int]:
    """The columns of the largest value as it is shown; none where all are alike."""
    shown = [None if v is None or math.isnan(v) else float(score(v)) for v in values]
    there = [value for value in shown if value is not None]
    if len(set(there)) < 2:
        return frozenset()
    return frozenset(i for i, value in enumerate(shown) if value == max(there))


def _last_losses(results: Results) -> dict[str, float]:
    """By term and side, of the last epoch."""
    if not results.training.history:
        return {}
    last = results.training.history[-1]
    sides = {"fit": last.fit, "validation": last.validation}
    terms = dict.fromkeys([*last.fit, *last.validation])
    return {
        f"{term}, {side}": value
        for term in terms
        for side, losses in sides.items()
        if (value := losses.get(term)) is not None
    }


def _times(results: Results) -> dict[str, float]:
    epochs = [epoch.seconds for epoch in results.training.history]
    median = {"an epoch (median)": statistics.median(epochs)} if epochs else {}
    return median | {"all stages": sum(results.seconds.values())}


def _data(results: Results) -> str:
    data = results.provenance.data
    shape = " × ".join(str(size) for size in data.image_shape)
    return f"{data.description}, {shape}, {data.gallery:,} gallery, {data.queries:,} queries"


def _device(results: Results) -> str:
    device = results.provenance.device
    return f"{device.count} × {device.kind} ({device.host})"


def _notes(runs: Sequence[Run], heads: Sequence[str]) -> list[str]:
    """What the runs don't share, and what each has left out."""
    notes = []
    for what, consequence, say_it in (
        ("data", "scores and losses don't compare directly", _data),
        ("seeds", "a small difference may be chance", lambda run: str(run.provenance.seed)),
        ("devices", "times don't compare directly", _device),
    ):
        found: dict[str, list[str]] = {}
        for head, run in zip(heads, runs, strict=True):
            found.setdefault(say_it(run.results), []).append(head)
        if len(found) > 1:
            each = "; ".join(f"{', '.join(having)}: {value}" for value, having in found.items())
            notes.append(f"The runs have different {what}, so {consequence} ({each}).")
    for head, run in zip(heads, runs, strict=True):
        notes += [f"{head}: {sentence}" for sentence in run.results.left_out]
    return notes


def _place(key: tuple[str, str]) -> tuple[int, ...]:
    """Where a row belongs, whichever run has it; cutoffs ascend within a measure."""
    group, row = key
    cut = re.search(r"@(\d+)", row)
    kind = next(i for i, measure in enumerate(_MEASURES) if row.startswith(measure))
    return (GROUPS.index(group), kind, int(cut[1]) if cut else 0)


def terminal(comparison: Comparison, width: int) -> str:
    """The comparison in aligned columns; runs that don't fit beside each other come below."""
    rows = [
        (row.group, f"  {shorten(row.name, 32)}", [_marked(row, i) for i in range(len(row.values))])
        for row in comparison.rows
    ]
    label = max([0, *(columns(row) for _, row, _ in rows)])
    heads = [shorten(head, 24) + " " for head in comparison.heads]  # as wide as a mark
    sizes = [
        2 + max(columns(head), *(columns(values[i]) for _, _, values in rows), 8)
        for i, head in enumerate(heads)
    ]
    blocks, start = [], 0
    while start < len(heads):
        stop = start + 1
        while stop < len(heads) and label + sum(sizes[start : stop + 1]) <= width:
            stop += 1
        lines = [_line("", heads[start:stop], label, sizes[start:stop])]
        lines.append("-" * columns(lines[0]))
        group = None
        for row_group, row, values in rows:
            if not any(value.strip() for value in values[start:stop]):
                continue
            if row_group != group:
                lines += ([""] if group else []) + [row_group]
                group = row_group
            lines.append(_line(row, values[start:stop], label, sizes[start:stop]))
        blocks.append("\n".join(lines))
        start = stop
    notes = [textwrap.fill(printable(note), width) for note in comparison.notes]
    if any(row.best for row in comparison.rows):
        notes.insert(0, f"{BEST} the best of its row")
    return "\n\n".join([*blocks, *notes])


def _marked(row: Row, column: int) -> str:
    return row.values[column] + (BEST if column in row.best else " ")


def _line(name: str, values: Iterable[str], label: int, sizes: Iterable[int]) -> str:
    cells = (" " * (size - columns(v)) + v for v, size in zip(values, sizes, strict=True))
    return name + " " * (label - columns(name)) + "".join(cells)


def _link(run: Run, output: epath.Path) -> str:
    """The URL of a run's report as seen from the output directory, empty when there is none."""
    report = run.directory / "report.html"
    if is_remote(report):  # a page can't lead there
        return ""
    return quote(os.fsencode(os.path.relpath(report, output))) if report.is_file() else ""


def _escape_markdown(text: str) -> str:
    """Text that Markdown shows as it is: no HTML, emphasis, link or column break."""
    special = r"[\\`*_{}\[\]<>#|~&!]|:(?=//)|(?<=www)\."
    return re.sub(special, r"\\\g<0>", printable(text), flags=re.IGNORECASE)


def to_markdown(comparison: Comparison, links: Sequence[str]) -> str:
    """The comparison as a Markdown document; `links` has a URL per run, or an empty text."""
    heads = [_escape_markdown(head) for head in comparison.heads]
    for i, link in enumerate(links):
        heads[i] = f"[{heads[i]}]({link})" if link else heads[i]
    lines = ["# Comparison of runs", "", " | ".join(["| ", *heads]) + " |"]
    lines.append("|---|" + "---:|" * len(heads))
    group = None
    for row in comparison.rows:
        if row.group != group:
            lines.append(f"| **{row.group}** |" + " |" * len(heads))
            group = row.group
        values = [f"**{v}**" if i in row.best else v for i, v in enumerate(row.values)]
        lines.append(" | ".join([f"| {_escape_markdown(row.name)}", *values]) + " |")
    for note in comparison.notes:
        lines += ["", _escape_markdown(note)]
    return "\n".join(lines) + "\n"


def to_html(comparison: Comparison, links: Sequence[str]) -> str:
    """The comparison as a self-contained page; `links` has a URL per run, or an empty text."""
    rows: list[list[str]] = []
    group = None
    for row in comparison.rows:
        if row.group != group:
            rows.append([row.group])
            group = row.group
        values = [f"{BEST} {v}" if i in row.best else v for i, v in enumerate(row.values)]
        rows.append([row.name, *values])
    body = ["<h1>Comparison of runs</h1>"]
    caption = f"{BEST} marks the best of its row." if any(r.best for r in comparison.rows) else ""
    body.append(html.table(["", *comparison.heads], rows, caption, label="comparison"))
    if comparison.notes:
        notes = "".join(f"<li>{html.text(note)}</li>" for note in comparison.notes)
        body.append(f'<div class="note"><ul>{notes}</ul></div>')
    reports = [
        f'<li><a href="{html.text(link)}">{html.text(head)}</a></li>'
        for head, link in zip(comparison.heads, links, strict=False)  # baselines have none
        if link
    ]
    if reports:
        body.append(f"<h2>Reports</h2>\n<ul>{''.join(reports)}</ul>")
    return html.page("Comparison of runs", "\n".join(body))


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the comparison of the runs named on the command line; returns the exit status."""
    parser = Parser(prog="retrieval-jax compare", description="Sets finished runs side by side.")
    parser.add_argument("runs", nargs="*", metavar="DIR", help="workdir of a finished run")
    parser.add_argument(
        "--output", metavar="DIR", help="where to write comparison.md and comparison.html"
    )
    try:
        arguments = parser.parse_args(argv)
        if not arguments.runs:
            raise UserError("Name the workdirs of the runs to compare: DIR DIR ....")
        runs = [read_run(as_path(directory)) for directory in arguments.runs]
        comparison = compare(runs)
        width = min(max(shutil.get_terminal_size((100, 24)).columns, 80), 160)
        lines = [terminal(comparison, width)]
        if arguments.output is not None:
            files = _write(comparison, runs, as_path(arguments.output))
            lines += ["", *(f"wrote {file}" for file in files)]
        say("\n".join(lines), sys.stdout)
    except UserError as error:
        say(str(error), sys.stderr)
        return 2
    return 0


def _write(comparison: Comparison, runs: Sequence[Run], output: epath.Path) -> list[epath.Path]:
    files = [output / "comparison.md", output / "comparison.html"]
    links = [_link(run, output) for run in runs]
    try:
        make_directory(output)
        html.write(files[0], to_markdown(comparison, links))
        html.write(files[1], to_html(comparison, links))
    except OSError as error:
        raise UserError(
            f"{printable(str(output))} can't be written: {reason(error)}; name another --output."
        ) from None
    return files


if __name__ == "__main__":
    sys.exit(main())
