"""Sets finished runs side by side.

    retrieval-jax compare DIR DIR … [--curve KEY [--score NAME]] [--output DIR]

Each DIR is a run's workdir, here or on gs://; all numbers come from its results.json. Runs
whose configs differ in the seed alone share a column: mean ± standard deviation, and their number.
Where the runs are of the same data, chance levels and baselines stand beside them, and the best
value of each row that judges by classes is marked. A run that has not finished is left out with a
line.

With --curve a score (NMI of the gallery, or the one named) is shown against a key of the config.
With --output the table is also written as comparison.md and comparison.html, which link to the
runs' own reports where these are on this machine, and the curve as curve.png. The page overlays the
losses and, where the runs have one split, sets their answers to the same queries side by side.
"""

import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple
from urllib.parse import quote

from etils import epath

from retrieval_jax.report.comparison import (
    Comparison,
    Group,
    Point,
    Row,
    Run,
    compare,
    curves,
    group,
    in_short,
    overlaid,
    read_run,
)
from retrieval_jax.report.document import chart, render, write
from retrieval_jax.report.results import Unfinished
from retrieval_jax.report.side_by_side import side_by_side
from retrieval_jax.report.text import Parser, columns, say, score, shorten
from retrieval_jax.runtime.errors import UserError, printable, reason
from retrieval_jax.runtime.files import as_path, is_remote, make_directory
from retrieval_jax.runtime.progress import complain

BEST = "*"


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
    notes = [textwrap.fill(printable(note), width) for note in comparison.sentences()]
    if any(row.best for row in comparison.rows):
        notes.insert(0, f"{BEST} the best of its row")
    return "\n\n".join([*blocks, *notes])


def _marked(row: Row, column: int) -> str:
    return row.values[column] + (BEST if column in row.best else " ")


def _line(name: str, values: Iterable[str], label: int, sizes: Iterable[int]) -> str:
    cells = (" " * (size - columns(v)) + v for v, size in zip(values, sizes, strict=True))
    return name + " " * (label - columns(name)) + "".join(cells)


class Link(NamedTuple):
    """A run's own report."""

    text: str
    url: str


def links(groups: Sequence[Group], output: epath.Path) -> list[Link]:
    """The reports that are on this machine, as seen from the output directory."""
    found = []
    for one in groups:
        for run in one.runs:
            report = run.directory / "report.html"
            if not is_remote(report) and report.is_file():  # a page can't lead to a bucket
                seed = f", seed {run.results.provenance.seed}" if len(one.runs) > 1 else ""
                url = quote(os.fsencode(os.path.relpath(report, output)))
                found.append(Link(one.head + seed, url))
    return found


def _escape_markdown(text: str) -> str:
    """Text that Markdown shows as it is: no HTML, emphasis, link or column break."""
    special = r"[\\`*_{}\[\]<>#|~&!]|:(?=//)|(?<=www)\."
    return re.sub(special, r"\\\g<0>", printable(text), flags=re.IGNORECASE)


def to_markdown(comparison: Comparison, links: Sequence[Link]) -> str:
    """The comparison as a Markdown document."""
    heads = [_escape_markdown(head) for head in comparison.heads]
    lines = ["# Comparison of runs", "", " | ".join(["| ", *heads]) + " |"]
    lines.append("|---|" + "---:|" * len(heads))
    part = None
    for row in comparison.rows:
        if row.group != part:
            lines.append(f"| **{row.group}** |" + " |" * len(heads))
            part = row.group
        values = [f"**{v}**" if i in row.best else v for i, v in enumerate(row.values)]
        lines.append(" | ".join([f"| {_escape_markdown(row.name)}", *values]) + " |")
    for note in comparison.sentences():
        lines += ["", _escape_markdown(note)]
    if links:
        lines += [
            "",
            "Reports: " + ", ".join(f"[{_escape_markdown(k.text)}]({k.url})" for k in links),
        ]
    return "\n".join(lines) + "\n"


def to_html(comparison: Comparison, links: Sequence[Link], groups: Sequence[Group] = ()) -> str:
    """The comparison as a self-contained page; of the groups it shows losses and answers too."""
    rows: list[list[str]] = []
    part = None
    for row in comparison.rows:
        if row.group != part:
            rows.append([row.group])
            part = row.group
        rows.append([row.name, *_starred(row)])
    charts = [chart(term, "epoch", "loss", lines) for term, lines in overlaid(groups).items()]
    return render(
        "comparison.html",
        scripts=["charts.js"] * bool(charts),
        title="Comparison of runs",
        comparison=comparison,
        first=[[row.name, row.group, *_starred(row)] for row in in_short(comparison)],
        groups=len(groups),
        rows=rows,
        caption=f"{BEST} marks the best of its row."
        if any(r.best for r in comparison.rows)
        else "",
        answers=side_by_side(groups),
        charts=charts,
        links=links,
    )


def _starred(row: Row) -> list[str]:
    return [f"{BEST} {v}" if i in row.best else v for i, v in enumerate(row.values)]


def curve_text(found: Mapping[str, Sequence[Point]], key: str, measure: str) -> str:
    """The curves in words, a line for each point."""
    lines = [f"{measure} against {key}"]
    for label, points in found.items():
        lines.append(printable(label))
        for point in points:
            mean, sd, n = point.score
            beside = f" ± {score(sd)} (n = {n})" if sd is not None else ""
            lines.append(f"  {shorten(str(point.value), 24):>24}  {score(mean)}{beside}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the comparison of the runs named on the command line; returns the exit status."""
    parser = Parser(prog="retrieval-jax compare", description="Sets finished runs side by side.")
    parser.add_argument("runs", nargs="*", metavar="DIR", help="workdir of a finished run")
    parser.add_argument(
        "--curve", metavar="KEY", help="a key of the config to draw a score against"
    )
    parser.add_argument("--score", default="NMI", metavar="NAME", help="the score of the curve")
    parser.add_argument("--output", metavar="DIR", help="where to write the table and the curve")
    try:
        arguments = parser.parse_args(argv)
        if not arguments.runs:
            raise UserError("Name the workdirs of the runs to compare: DIR DIR ....")
        groups = group(_finished([as_path(directory) for directory in arguments.runs]))
        comparison = compare(groups)
        width = min(max(shutil.get_terminal_size((100, 24)).columns, 80), 160)
        lines = [terminal(comparison, width)]
        drawn: dict[str, list[Point]] = {}
        if arguments.curve is not None:
            try:
                drawn = curves(groups, arguments.curve, arguments.score)
            except ValueError as error:
                raise UserError(f"{printable(str(error))}.") from None
            lines += ["", curve_text(drawn, arguments.curve, arguments.score)]
        if arguments.output is not None:
            output = as_path(arguments.output)
            files = _write(comparison, groups, output)
            if drawn:
                from retrieval_jax.report.figures import score_curves  # matplotlib takes a second

                files.append(output / "curve.png")
                score_curves(drawn, arguments.curve, arguments.score, files[-1])
            lines += ["", *(f"wrote {file}" for file in files)]
        say("\n".join(lines), sys.stdout)
    except UserError as error:
        complain(str(error))
        return 2
    return 0


def _finished(directories: Sequence[epath.Path]) -> list[Run]:
    """The runs that have finished; a line for each that has not, unless none has."""
    runs, without = [], []
    for directory in directories:
        try:
            runs.append(read_run(directory))
        except Unfinished as error:
            without.append(error)
    if not runs:
        raise without[0]
    for missing in without:
        say(f"left out: {missing}", sys.stderr)
    return runs


def _write(comparison: Comparison, groups: Sequence[Group], output: epath.Path) -> list[epath.Path]:
    files = [output / "comparison.md", output / "comparison.html"]
    try:
        make_directory(output)
        reports = links(groups, output)
        write(files[0], to_markdown(comparison, reports))
        write(files[1], to_html(comparison, reports, groups))
    except OSError as error:
        raise UserError(
            f"{printable(str(output))} can't be written: {reason(error)}; name another --output."
        ) from None
    return files


if __name__ == "__main__":
    sys.exit(main())
