"""Sets finished runs side by side.

    python -m retrieval_jax.report.compare DIR DIR … [--output DIR]

Each DIR is a run's workdir, here or on gs://; everything shown comes from its results.json. With
--output the table is also written as comparison.md and comparison.html, which link to the runs' own
reports where these are on this machine.
"""

import argparse
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, NoReturn
from urllib.parse import quote

from etils import epath

from retrieval_jax.report import html
from retrieval_jax.report.read_run import GROUPS, MISSING, Run, read_run
from retrieval_jax.report.text import columns, printable, shorten
from retrieval_jax.runtime.errors import UserError, reason
from retrieval_jax.runtime.files import as_path, is_remote, make_directory


class Comparison(NamedTuple):
    """A table: a heading a run, rows (group, row, a value a run), and sentences below it.

    Names are as the runs have them; whatever shows them makes them harmless.
    """

    heads: list[str]
    rows: list[tuple[str, str, list[str]]]
    notes: list[str]


def compare(runs: Sequence[Run]) -> Comparison:
    """Lines up the runs' values; a row that no run has is left out.

    Runs are called by their names, or by their directories when names repeat.
    """
    heads = [run.name for run in runs]
    if not all(heads) or len(set(heads)) < len(heads):
        heads = [str(run.directory) for run in runs]
    keys = list(dict.fromkeys(key for run in runs for key in run.values))
    keys.sort(key=_place)  # a row that only later runs have joins its group
    lines = [(*key, [run.values.get(key, MISSING) for run in runs]) for key in keys]
    rows = [line for line in lines if any(value != MISSING for value in line[2])]
    notes = []
    for what, consequence, attribute in (
        ("data", "scores and losses don't compare directly", "data"),
        ("seeds", "a small difference may be chance", "seed"),
        ("devices", "times don't compare directly", "device"),
    ):
        found: dict[str, list[str]] = {}
        for head, run in zip(heads, runs, strict=True):
            found.setdefault(getattr(run, attribute), []).append(head)
        if len(found) > 1:
            each = "; ".join(f"{', '.join(having)}: {value}" for value, having in found.items())
            notes.append(f"The runs have different {what}, so {consequence} ({each}).")
    for head, run in zip(heads, runs, strict=True):
        notes += [f"{head}: {sentence}" for sentence in run.left_out]
    return Comparison(heads, rows, notes)


def _place(key: tuple[str, str]) -> tuple[int, ...]:
    """Where a row belongs, whichever run has it; the terms of a loss stay in their order."""
    group, row = key
    if group != "retrieval":
        return (GROUPS.index(group),)
    cut = re.search(r"@(\d+)", row)
    kinds = row.startswith("true neighbours"), row.endswith("exhaustive"), row.startswith("mAP")
    return (GROUPS.index(group), *kinds, int(cut[1]) if cut else 0)


def terminal(comparison: Comparison, width: int) -> str:
    """The comparison in aligned columns; runs that don't fit beside each other come below."""
    rows = [(group, f"  {shorten(row, 32)}", values) for group, row, values in comparison.rows]
    label = max([0, *(columns(row) for _, row, _ in rows)])
    heads = [shorten(head, 24) for head in comparison.heads]
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
            if row_group != group:
                lines += ([""] if group else []) + [row_group]
                group = row_group
            lines.append(_line(row, values[start:stop], label, sizes[start:stop]))
        blocks.append("\n".join(lines))
        start = stop
    notes = [textwrap.fill(printable(note), width) for note in comparison.notes]
    return "\n\n".join([*blocks, *notes])


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
    """The comparison as a Markdown document; `links` has a URL a run, or an empty text."""
    heads = [
        f"[{_escape_markdown(head)}]({link})" if link else _escape_markdown(head)
        for head, link in zip(comparison.heads, links, strict=True)
    ]
    lines = ["# Comparison of runs", "", " | ".join(["| ", *heads]) + " |"]
    lines.append("|---|" + "---:|" * len(heads))
    group = None
    for row_group, row, values in comparison.rows:
        if row_group != group:
            lines.append(f"| **{row_group}** |" + " |" * len(heads))
            group = row_group
        lines.append(" | ".join([f"| {_escape_markdown(row)}", *values]) + " |")
    for note in comparison.notes:
        lines += ["", _escape_markdown(note)]
    return "\n".join(lines) + "\n"


def to_html(comparison: Comparison, links: Sequence[str]) -> str:
    """The comparison as a self-contained page; `links` has a URL a run, or an empty text."""
    rows: list[list[str]] = []
    group = None
    for row_group, row, values in comparison.rows:
        if row_group != group:
            rows.append([row_group])
            group = row_group
        rows.append([row, *values])
    body = ["<h1>Comparison of runs</h1>"]
    body.append(html.table(["", *comparison.heads], rows, label="comparison"))
    if comparison.notes:
        notes = "".join(f"<li>{html.text(note)}</li>" for note in comparison.notes)
        body.append(f'<div class="note"><ul>{notes}</ul></div>')
    reports = [
        f'<li><a href="{html.text(link)}">{html.text(head)}</a></li>'
        for head, link in zip(comparison.heads, links, strict=True)
        if link
    ]
    if reports:
        body.append(f"<h2>Reports</h2>\n<ul>{''.join(reports)}</ul>")
    return html.page("Comparison of runs", "\n".join(body))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message[:1].upper()}{message[1:]}; see --help.")


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the comparison of the runs named on the command line; returns the exit status."""
    parser = _Parser(
        prog="python -m retrieval_jax.report.compare",
        description="Sets finished runs side by side.",
    )
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
        _print("\n".join(lines), sys.stdout)
    except UserError as error:
        _print(str(error), sys.stderr)
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


def _print(text: str, stream: Any) -> None:
    """Prints what the terminal's encoding has, and a question mark for the rest."""
    encoding = stream.encoding or "utf-8"
    try:
        print(text.encode(encoding, "replace").decode(encoding), file=stream, flush=True)
    except BrokenPipeError:  # the reader (`head`) has seen enough; the exit flushes once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


if __name__ == "__main__":
    sys.exit(main())
