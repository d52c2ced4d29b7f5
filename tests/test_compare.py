"""The comparison of runs: as a program, by its exit status and what it prints and writes."""

import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from retrieval_jax.report.read_run import GROUPS, read_run
from test_report import HOSTILE, Page, assert_inert, results

from retrieval_jax.report import text
from retrieval_jax.report.compare import compare, main, terminal, to_markdown
from retrieval_jax.runtime.errors import UserError


def save(directory: Path, content: object, report: bool = False) -> Path:
    directory.mkdir(parents=True)
    (directory / "results.json").write_text(json.dumps(content), encoding="utf-8")
    if report:
        (directory / "report.html").write_text("<!DOCTYPE html>", encoding="utf-8")
    return directory


def vanilla() -> dict:
    content = results()
    content["name"] = "digits vanilla"
    content["clustering"]["gallery"] = {"nmi": 0.07, "ri": 0.81, "ari": 0.03}
    for epoch in content["training"]["history"]:
        for side in ("fit", "validation"):
            epoch[side] = {"loss": 0.25, "reconstruction": 0.25}
    return content


def unlabelled() -> dict:
    content = results()
    content["name"] = "my pictures"
    for part, keys in (
        ("clustering", ("gallery", "queries")),
        ("retrieval", ("cluster", "exhaustive")),
    ):
        for key in keys:
            del content[part][key]
    content["left_out"] = ["There are no labels: the scores were left out."]
    content["provenance"]["data"]["description"] = "a folder of 99 images"
    return content


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "retrieval_jax.report.compare", *map(str, arguments)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, **environment},
        timeout=60,
    )


def table(output: str) -> dict[str, list[str]]:
    """The rows of the terminal's table, cells split where there are two spaces or more."""
    lines = [re.split(r"\s{2,}", line.strip()) for line in output.splitlines() if "  " in line]
    return {line[0]: line[1:] for line in lines}


def test_prints_both_runs_in_aligned_columns(tmp_path):
    one, two = save(tmp_path / "one", vanilla()), save(tmp_path / "two", results())
    done = run(one, two, COLUMNS="80")
    assert done.returncode == 0 and not done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split("  ")[-2:] == ["digits vanilla", "digits hint"]
    body = lines[: lines.index("") + 3]
    assert len({len(line) for line in body if line.startswith("  ")}) == 1, "columns are aligned"
    assert max(map(len, lines)) <= 80
    assert [line for line in lines if line and line in GROUPS] == list(GROUPS)
    rows = table(done.stdout)
    assert rows["NMI, gallery"] == ["0.0700", "0.3971"]
    assert rows["NMI, queries"] == ["0.3934", "0.3934"]
    assert rows["RI, gallery"] == ["0.8100", "0.8682"]
    assert rows["ARI, queries"] == ["0.2717", "0.2717"]
    assert rows["precision@5, in cluster"][1] == "0.5577"
    assert rows["precision@100, exhaustive"][1] == "0.5012"
    assert rows["mAP@100, in cluster"][1] == "0.3320"
    assert rows["mAP@100, exhaustive"][1] == "0.3423"
    assert rows["true neighbours kept, @5"][1] == "0.9314"
    assert rows["true neighbours kept, @100"][1] == "0.8815"
    assert rows["loss, fit"] == ["0.2500", "0.8333"], "the last epoch's"
    assert rows["loss, validation"] == ["0.2500", "0.9167"]
    assert rows["classification, validation"] == ["-", "0.7333"]
    assert rows["accuracy, validation"] == ["-", "0.3000"]
    assert rows["an epoch (median)"][0] == "5.25 s"
    assert rows["all stages"][0] == "48 min 32 s"
    assert "differ" not in done.stdout


def test_says_what_the_runs_do_not_share(tmp_path):
    first, second, third = results(), vanilla(), unlabelled()
    second["provenance"]["seed"] = 8
    second["provenance"]["device"] = {"kind": "NVIDIA H100", "count": 2, "host": "Xeon"}
    runs = [
        read_run(save(tmp_path / str(i), content))
        for i, content in enumerate((third, first, second))
    ]
    comparison = compare(runs)
    data, seeds, devices, left_out = comparison.notes
    assert "different data" in data and "my pictures: a folder of 99 images" in data
    assert "different seeds" in seeds and "my pictures, digits hint: 7; digits vanilla: 8" in seeds
    assert "different devices" in devices and "digits vanilla: 2 × NVIDIA H100 (Xeon)" in devices
    assert left_out == "my pictures: There are no labels: the scores were left out."
    rows = {row: values for _, row, values in comparison.rows}
    assert rows["NMI, gallery"] == ["-", "0.3971", "0.0700"]
    # The order doesn't depend on which run comes first.
    assert [row for _, row, _ in comparison.rows] == [row for _, row, _ in compare(runs[1:]).rows]
    assert compare(runs[1:2]).notes == []


def test_rows_that_no_run_has_are_left_out(tmp_path):
    rows = [row for _, row, _ in compare([read_run(save(tmp_path / "a", unlabelled()))]).rows]
    assert not [row for row in rows if "NMI" in row or "precision" in row]
    assert "true neighbours kept, @5" in rows and "loss, fit" in rows


def test_runs_of_one_name_are_called_by_their_directories(tmp_path):
    runs = [read_run(save(tmp_path / name, results())) for name in ("seed0", "seed1")]
    assert compare(runs).heads == [str(tmp_path / "seed0"), str(tmp_path / "seed1")]


def test_runs_that_do_not_fit_come_below(tmp_path):
    contents = []
    for i in range(7):
        content = results()
        content["name"] = f"a run whose name is long {i}"
        contents.append(save(tmp_path / str(i), content))
    shown = terminal(compare([read_run(directory) for directory in contents]), 100)
    assert max(map(len, shown.splitlines())) <= 100
    assert shown.count("NMI, gallery") == 4 and len(re.findall("a run whose.*? [0-6]", shown)) == 7
    assert all(f"is long {i}" in shown for i in range(7))


def test_wide_characters_keep_the_columns_aligned(tmp_path):
    one, two = results(), vanilla()
    one["name"], two["name"] = "猫の実験", "e\u0301te\u0301"
    runs = [read_run(save(tmp_path / n, c)) for n, c in (("one", one), ("two", two))]
    lines = terminal(compare(runs), 100).splitlines()
    assert text.columns(lines[0]) == text.columns(lines[3]) == len(lines[1])


def test_writes_markdown_and_html(tmp_path):
    one = save(tmp_path / "runs" / "o)n [e] ü", vanilla(), report=True)
    two = save(tmp_path / "runs" / "two", results())
    output = tmp_path / "out" / "deep"
    done = run(one, two, "--output", output)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().splitlines()[-2:] == [
        f"wrote {output / 'comparison.md'}",
        f"wrote {output / 'comparison.html'}",
    ]
    source = (output / "comparison.html").read_text(encoding="utf-8")
    page = Page(source)
    assert_inert(page, source)
    rows = page.tables["comparison"]
    assert rows[0] == ["", "digits vanilla", "digits hint"] and rows[1] == ["clusters"]
    assert ["RI, gallery", "0.8100", "0.8682"] in rows
    (link,) = [a["href"] for tag, a in page.elements if tag == "a"]
    assert link == "../../runs/o%29n%20%5Be%5D%20%C3%BC/report.html"
    markdown = (output / "comparison.md").read_text(encoding="utf-8")
    assert f"|  | [digits vanilla]({link}) | digits hint |\n|---|---:|---:|\n" in markdown
    assert "\n| RI, gallery | 0.8100 | 0.8682 |\n" in markdown
    cells = {line.count("|") for line in markdown.splitlines() if line.startswith("|")}
    assert cells == {4}


def test_hostile_names_are_shown_as_text(tmp_path):
    directories = []
    for i, name in enumerate((*HOSTILE, "[a](javascript:alert(1)) | **b** https://x.y")):
        content = results()
        content["name"] = name
        content["left_out"] = [f"{name} was left out"]
        content["training"]["history"][-1]["fit"][name] = 1.0
        content["provenance"]["device"]["host"] = name
        directories.append(save(tmp_path / f"{i}", content, report=True))
    done = run(*directories, "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout and "\u202e" not in done.stdout
    source = (tmp_path / "comparison.html").read_text(encoding="utf-8")
    page = Page(source)
    assert_inert(page, source)
    assert page.tables["comparison"][0][1:3] == list(HOSTILE[:2])
    markdown = (tmp_path / "comparison.md").read_text(encoding="utf-8")
    unescaped = re.sub(r"\\.", "", markdown)
    assert "<" not in unescaped and "**b**" not in unescaped and "://" not in unescaped
    assert unescaped.count("](") == len(directories), "the links are ours"
    bars = {line.count("|") for line in unescaped.splitlines() if line.startswith("|")}
    assert bars == {len(directories) + 2}


def test_a_terminal_of_another_encoding(tmp_path):
    content = results()
    content["name"] = "猫"
    done = run(save(tmp_path / "猫", content), PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and "?" in done.stdout.splitlines()[0] and not done.stderr


def broken(change) -> bytes:
    content = copy.deepcopy(results())
    change(content)
    return json.dumps(content).encode()


BROKEN = {
    "empty": (b"", "broken"),
    "truncated": (json.dumps(results()).encode()[:200], "broken"),
    "binary": (b"\x89PNG\xff\xfe", "broken"),
    "deep": (b"[" * 100_000, "broken"),
    "digits": (b'{"format": ' + b"1" * 5000 + b"}", "broken"),
    "list": (b"[1, 2]", "not the results file"),
    "foreign": (b'{"scores": 1}', "not the results file"),
    "newer": (b'{"format": 2}', "format 2"),
    "score": (broken(lambda r: r["clustering"]["gallery"].update(nmi="high")), "gallery.nmi"),
    "truth": (broken(lambda r: r["retrieval"]["kept"].update({"@5": True})), "kept.@5"),
    "huge": (broken(lambda r: r["clustering"]["gallery"].update(ri=10**400)), "gallery.ri"),
    "part": (broken(lambda r: r.update(clustering=[1])), "clustering is not an object"),
    "epoch": (broken(lambda r: r["training"].update(history=[3])), "history"),
    "loss": (broken(lambda r: r["training"]["history"][-1]["fit"].update(loss=[])), "fit loss"),
    "time": (broken(lambda r: r["training"]["history"][0].pop("seconds")), "seconds"),
    "stage": (broken(lambda r: r["seconds"].update(train=None)), "seconds.train"),
    "name": (broken(lambda r: r.update(name=3)), "name is not a text"),
    "sentence": (broken(lambda r: r.update(left_out=[{}])), "left_out"),
    "shape": (broken(lambda r: r["provenance"]["data"].update(image_shape=8)), "image_shape"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_results_file_gets_one_sentence(case, tmp_path, capsys):
    content, named = BROKEN[case]
    (tmp_path / "results.json").write_bytes(content)
    assert main([str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and err.endswith(".\n")
    assert named in err and "results.json" in err


def test_undefined_values_are_no_error(tmp_path):
    content = results()
    content["clustering"]["gallery"]["nmi"] = float("nan")
    content["clustering"]["gallery"]["ri"] = None
    content["training"]["history"][-1]["fit"]["loss"] = float("inf")
    content["seconds"]["train"] = float("inf")
    rows = {r: v for _, r, v in compare([read_run(save(tmp_path / "a", content))]).rows}
    assert rows["NMI, gallery"] == ["nan"] and rows["loss, fit"] == ["inf"]
    assert "RI, gallery" not in rows and rows["all stages"] == ["inf s"]


def test_the_least_results_file(tmp_path):
    comparison = compare([read_run(save(tmp_path / "a", {"format": 1}))])
    assert comparison.heads == [str(tmp_path / "a")] and comparison.rows == []
    assert terminal(comparison, 80) and to_markdown(comparison, [""])


@pytest.mark.parametrize("case", ["none", "missing", "file", "unfinished", "option", "output"])
def test_wrong_usage_gets_one_sentence_and_status_2(case, tmp_path):
    good = save(tmp_path / "good", results())
    unfinished = tmp_path / "unfinished\x1b[31m"
    unfinished.mkdir()
    arguments, named = {
        "none": ([], "workdirs"),
        "missing": ([good, tmp_path / "nowhere"], "nowhere is not a directory"),
        "file": ([good / "results.json"], "is not a directory"),
        "unfinished": ([unfinished], "has not finished"),
        "option": ([good, "--wrong"], "--wrong"),
        "output": ([good, "--output", good / "results.json" / "deep"], "can't be written"),
    }[case]
    done = run(*arguments)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.count("\n") == 1 and done.stderr.endswith(".\n")
    assert named in done.stderr and "\x1b" not in done.stderr


def test_a_reader_that_stops_early(tmp_path):
    good = save(tmp_path / "good", results())
    command = f"'{sys.executable}' -m retrieval_jax.report.compare '{good}' | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert not done.stderr


def test_read_run_raises_the_users_error(tmp_path):
    with pytest.raises(UserError, match="not a directory"):
        read_run(tmp_path / "nowhere")
