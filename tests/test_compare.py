"""The comparison of runs: as a program, by its exit status and what it prints and writes."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_run import leave_run, small_space
from test_report import HOSTILE, Page, assert_inert, results, scores
from test_report import unlabelled as unlabelled_results

from retrieval_jax.report import text
from retrieval_jax.report.compare import terminal
from retrieval_jax.report.comparison import Comparison, compare, curves, group, read_run
from retrieval_jax.report.results import Results, Score
from retrieval_jax.report.text import GROUPS
from retrieval_jax.runtime.errors import UserError
from retrieval_jax.runtime.records import plain


def save(directory: Path, content: object, report: bool = False) -> Path:
    directory.mkdir(parents=True)
    if hasattr(content, "_asdict"):
        content = {"format": 2} | plain(content)
    (directory / "results.json").write_text(json.dumps(content), encoding="utf-8")
    if report:
        (directory / "report.html").write_text("<!DOCTYPE html>", encoding="utf-8")
    return directory


def vanilla() -> Results:
    """Worse than `results` in the clusters of the gallery; the losses of an autoencoder alone."""
    content = results()
    gallery = content.scores.clustering.gallery._replace(
        nmi=Score(0.07, 0.00321), ri=Score(0.81), ari=Score(0.03)
    )
    clustering = content.scores.clustering._replace(gallery=gallery)
    only = {"loss": 0.25, "reconstruction": 0.25}
    history = tuple(e._replace(fit=only, validation=only) for e in content.training.history)
    return content._replace(
        name="digits vanilla",
        scores=content.scores._replace(clustering=clustering),
        training=content.training._replace(history=history),
    )


def compared(*runs) -> Comparison:
    return compare(group(runs))


def unlabelled() -> Results:
    content = unlabelled_results()
    data = content.provenance.data._replace(description="a folder of 99 images")
    return content._replace(
        name="my pictures",
        left_out=("There are no labels: the scores were left out.",),
        provenance=content.provenance._replace(data=data),
    )


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
    done = run(one, two, COLUMNS="120")
    assert done.returncode == 0 and not done.stderr
    lines = done.stdout.splitlines()
    assert re.split(r"\s{2,}", lines[0].strip()) == [
        *("digits vanilla", "digits hint", "chance", "colour histogram", "untrained encoder")
    ]
    body = lines[: lines.index("") + 3]
    assert len({len(line) for line in body if line.startswith("  ")}) == 1, "columns are aligned"
    assert max(map(len, lines)) <= 120
    groups = (*GROUPS, "after the last epoch", "time")
    assert [line for line in lines if line in groups] == list(groups)
    rows = {(row.group, row.name): row for row in compared(read_run(one), read_run(two)).rows}
    gallery, queries, whole, cluster, losses, time = groups
    # The chance levels' mean; then what the baselines have.
    assert rows[gallery, "NMI"].values == ["0.0700", "0.3971", "0.0022", "0.4071", "0.3871"]
    assert rows[gallery, "NMI"].best == {3}, "the colour histogram is the best"
    assert rows[gallery, "RI"].values[:3] == ["0.8100", "0.8682", "0.5551"]
    assert rows[gallery, "silhouette"].best == frozenset(), "says nothing across embeddings"
    assert rows[queries, "ARI"].values[:2] == ["0.2717", "0.2717"]
    assert rows[cluster, "precision@5"].values[1] == "0.5577"
    assert rows[whole, "precision@100"].values[1] == "0.5012"
    assert rows[cluster, "mAP@100"].values[1] == "0.3320"
    assert rows[whole, "mAP@100"].values[1] == "0.3423"
    assert rows[cluster, "true neighbours kept, @5"].values[1] == "0.9314"
    assert rows[losses, "loss, fit"].values[:2] == ["0.2500", "0.8333"], "the last epoch's"
    assert rows[losses, "classification, validation"].values == ["-", "0.7333", "", "", ""]
    assert rows[losses, "accuracy, validation"].values[:2] == ["-", "0.3000"]
    assert rows[time, "an epoch (median)"].values[0] == "5.25 s"
    assert rows[time, "all stages"].values[0] == "48 min 32 s"
    assert "0.4071*" in done.stdout and "* the best of its row" in done.stdout
    assert "differ" not in done.stdout


def test_says_what_the_runs_do_not_share(tmp_path):
    first, second, third = results(), vanilla(), unlabelled()
    device = second.provenance.device._replace(kind="NVIDIA H100", count=2, host="Xeon")
    second = second._replace(provenance=second.provenance._replace(seed=8, device=device))
    runs = [
        read_run(save(tmp_path / str(i), content))
        for i, content in enumerate((third, first, second))
    ]
    comparison = compared(*runs)
    data, seeds, devices, left_out = comparison.notes
    assert "different data" in data and "my pictures: a folder of 99 images" in data
    assert "different seeds" in seeds and "my pictures, digits hint: 7; digits vanilla: 8" in seeds
    assert "different devices" in devices and "digits vanilla: 2 × NVIDIA H100 (Xeon)" in devices
    assert left_out == "my pictures: There are no labels: the scores were left out."
    # Of different data no value is the best, and no baseline stands for all.
    assert len(comparison.heads) == 3 and not any(row.best for row in comparison.rows)
    rows = {(row.group, row.name): row.values for row in comparison.rows}
    assert rows[GROUPS[0], "NMI"] == ["-", "0.3971", "0.0700"]
    # The order doesn't depend on which run comes first.
    others = [row[:2] for row in compared(*runs[1:]).rows]
    assert [row[:2] for row in comparison.rows if row[:2] in others] == others
    assert compared(runs[1]).notes == []


def with_validation(content: Results, **values: float) -> Results:
    *before, last = content.training.history
    last = last._replace(validation=last.validation | values)
    return content._replace(training=content.training._replace(history=(*before, last)))


def test_a_collapsed_run_is_flagged(tmp_path):
    clustering = results().scores.clustering._replace(sizes=(1637, 0, 0))
    empty = results()._replace(scores=results().scores._replace(clustering=clustering))
    contents = {
        "sound": with_validation(results(), spread=0.5, effective_rank=9.0),
        "point": with_validation(results(), spread=0.005, effective_rank=9.0),
        "line": with_validation(results(), spread=0.5, effective_rank=1.01),
        "empty": empty,
    }
    runs = [save(tmp_path / n, one._replace(name=n)) for n, one in contents.items()]
    done = run(*runs, "--output", tmp_path)
    for name in ("point", "line", "empty"):
        assert f"{name} has collapsed: " in done.stdout
    assert "sound has collapsed" not in done.stdout and "2 of its 3 clusters" in done.stdout
    page = Page((tmp_path / "comparison.html").read_text())
    assert page.text.count("has collapsed") == 3


def test_losses_are_overlaid_as_means_over_seeds(tmp_path):
    one, two = results(), results()
    two = two._replace(
        provenance=two.provenance._replace(seed=8, config=two.provenance.config | {"seed": 8})
    )
    first, *rest = two.training.history
    first = first._replace(fit=first.fit | {"loss": 4.5})
    two = two._replace(training=two.training._replace(history=(first, *rest)))
    runs = [save(tmp_path / str(i), each) for i, each in enumerate((one, two, vanilla()))]
    run(*runs, "--output", tmp_path)
    charts = json.loads(Page((tmp_path / "comparison.html").read_text()).data["charts"])
    found = {chart["title"]: chart["series"] for chart in charts}
    both, alone = found["loss, fit"]
    assert both["points"][0] == [1, (2.5 + 4.5) / 2] and both["name"].endswith("(n = 2)")
    assert [y for _, y in alone["points"]] == [0.25, 0.25, 0.25]


def test_the_same_queries_side_by_side(tmp_path):
    spaces = [small_space(seed=seed) for seed in (0, 1)]
    for i, space in enumerate(spaces):
        leave_run(tmp_path / str(i), space)
    content = json.loads((tmp_path / "1" / "results.json").read_text())
    content["name"] = HOSTILE[0]
    del content["crc32"]
    (tmp_path / "1" / "results.json").write_text(json.dumps(content))
    assert run(tmp_path / "0", tmp_path / "1", "--output", tmp_path).returncode == 0
    source = (tmp_path / "comparison.html").read_text()
    page = Page(source)
    assert_inert(page, source)
    right = [
        (space.gallery_labels[space.exhaustive_indices[:, :5]] == space.query_labels[:, None])
        for space in spaces
    ]
    most = np.abs(right[0].mean(1) - right[1].mean(1)).argsort(kind="stable")
    gap = np.abs(right[0].mean(1) - right[1].mean(1)).max()
    rows = page.tables["query 1"]
    assert [row[-2] for row in rows] == ["digits hint", HOSTILE[0]]
    notes = [row[-1] for row in rows]
    assert abs(notes[0].count("✓") - notes[1].count("✓")) == round(5 * gap)
    far = spaces[0].exhaustive_distances
    asked = next(q for q in most[::-1] if f"{far[q, 0]:.4g}" in notes[0])
    assert all(f"{distance:.4g}" in notes[0] for distance in far[asked, :5])
    assert f"{spaces[1].exhaustive_distances[asked, 4]:.4g}" in notes[1]
    assert len([name for name in page.tables if name.startswith("query")]) == 12
    # A file that the run did not leave is not shown.
    results_file = tmp_path / "0" / "results.json"
    content = json.loads(results_file.read_text())
    del content["crc32"]
    results_file.write_text(json.dumps(content | {"files": {"neighbours.npz": 1}}))
    assert run(tmp_path / "0", tmp_path / "1", "--output", tmp_path).returncode == 0
    assert "query 1" not in Page((tmp_path / "comparison.html").read_text()).tables


def seeded(seed: int, nmi: float, **config) -> Results:
    content = results()
    gallery = content.scores.clustering.gallery._replace(nmi=Score(nmi))
    clustering = content.scores.clustering._replace(gallery=gallery)
    config = content.provenance.config | {"seed": seed} | config
    return content._replace(
        scores=content.scores._replace(clustering=clustering),
        provenance=content.provenance._replace(seed=seed, config=config),
    )


def swept(tmp_path) -> list[Path]:
    """Two configs of three and two seeds, and a repetition of one run."""
    values = {0.1: (0.40, 0.44, 0.48), 0.5: (0.60, 0.70)}
    contents = [
        seeded(seed, nmi, data={"source": "digits", "label_fraction": share})
        for share, scores in values.items()
        for seed, nmi in enumerate(scores)
    ]
    contents.append(contents[0])
    return [save(tmp_path / str(i), content) for i, content in enumerate(contents)]


def test_runs_that_differ_in_the_seed_alone_share_a_column(tmp_path):
    *swept_runs, again = map(read_run, swept(tmp_path))
    groups = group(swept_runs)
    assert [len(one.runs) for one in groups] == [3, 2]
    assert [one.head for one in groups] == [
        "digits hint, data.label_fraction=0.1 (n = 3)",
        "digits hint, data.label_fraction=0.5 (n = 2)",
    ]
    comparison = compare(groups)
    nmi = comparison.rows[0]
    # By hand: the sample standard deviations of (.40, .44, .48) and of (.60, .70).
    assert nmi.values[:2] == ["0.4400 ± 0.0400", "0.6500 ± 0.0707"] and nmi.best == {1}
    seeds, differs = comparison.sentences()
    assert comparison.notes == [seeds]
    assert comparison.differences == [
        ("config", "data.label_fraction", ["0.1", "0.5"], frozenset())
    ]
    assert "different seeds" in seeds and "(n = 3): 0, 1, 2" in seeds
    assert differs.startswith("data.label_fraction differs (") and "(n = 2): 0.5" in differs
    # The same config and seed again is another column: its times, not its scores, are new.
    heads = compared(*swept_runs, again).heads
    assert heads[:3] == [
        str(tmp_path / "0") + " (n = 3)",
        str(tmp_path / "3") + " (n = 2)",
        str(tmp_path / "5"),
    ]


def test_a_score_against_a_key(tmp_path):
    directories = swept(tmp_path)[:-1]
    groups = group(list(map(read_run, directories)))
    (points,) = curves(groups, "data.label_fraction", "NMI").values()
    assert [(p.value, round(p.score.mean, 6), p.score.n) for p in points] == [
        (0.1, 0.44, 3),
        (0.5, 0.65, 2),
    ]
    # On the same curve whatever it is called.
    content = seeded(0, 0.7, data={"source": "digits", "label_fraction": 1.0})
    named = read_run(save(tmp_path / "named", content._replace(name="all labels")))
    (points,) = curves(
        group([*map(read_run, directories), named]), "data.label_fraction", "NMI"
    ).values()
    assert [p.value for p in points] == [0.1, 0.5, 1.0]
    for key, measure, named in (("no.key", "NMI", "no.key"), ("data.source", "F1", "NMI")):
        with pytest.raises(ValueError, match=named):
            curves(groups, key, measure)
    other = save(tmp_path / "other", seeded(0, 0.3, model={"features": [8]}))
    keys = ["--curve", "data.label_fraction", "--output", tmp_path / "out"]
    done = run(*directories, other, *keys)
    assert done.returncode == 0, done.stderr
    assert "NMI against data.label_fraction\n" in done.stdout
    assert re.search(r"0\.1 +0\.4400 ± 0\.0400 \(n = 3\)\n +0\.5 +0\.6500", done.stdout)
    assert (tmp_path / "out" / "curve.png").read_bytes().startswith(b"\x89PNG")
    done = run(*directories, "--curve", "no\x1b.key")
    assert done.returncode == 2 and "has the key" in done.stderr and "\x1b" not in done.stderr


def test_an_unfinished_run_is_left_out_with_a_line(tmp_path):
    good, unfinished = save(tmp_path / "good", results()), tmp_path / "unfinished"
    unfinished.mkdir()
    done = run(good, unfinished)
    assert done.returncode == 0 and "digits hint" in done.stdout
    assert done.stderr.startswith("left out: ") and done.stderr.count("\n") == 1
    assert "unfinished" in done.stderr


def test_numbers_that_are_not_finite_are_told(tmp_path):
    content = {"format": 2} | plain(seeded(0, math.nan))
    notes = compared(read_run(save(tmp_path / "run", content))).notes
    assert notes == ["digits hint: not finite: scores.clustering.gallery.nmi.value."]


def test_rows_that_no_run_has_are_left_out(tmp_path):
    comparison = compared(read_run(save(tmp_path / "a", unlabelled())))
    rows = [row.name for row in comparison.rows]
    assert not [row for row in rows if "NMI" in row or "precision" in row]
    assert "true neighbours kept, @5" in rows and "loss, fit" in rows
    assert not any(row.best for row in comparison.rows)


def test_files_of_both_formats_side_by_side(tmp_path):
    experiments = Path(__file__).parents[1] / "experiments" / "cifar10"
    runs = [read_run(experiments / name) for name in ("vanilla", "hint")]
    comparison = compared(*runs)
    assert comparison.heads == ["CIFAR-10 vanilla", "CIFAR-10 hint"]
    nmi = comparison.rows[0]
    assert nmi.name == "NMI" and nmi.best == {1}
    assert terminal(compared(*runs, read_run(save(tmp_path / "new", results()))), 100)


def test_runs_of_one_name_are_called_by_their_directories(tmp_path):
    runs = [read_run(save(tmp_path / name, results())) for name in ("seed0", "seed1")]
    assert compared(*runs).heads[:2] == [str(tmp_path / "seed0"), str(tmp_path / "seed1")]


def test_configs_that_differ_in_much_are_called_by_their_directories(tmp_path):
    for keys in (1, 9):
        many = {f"key{i}": i for i in range(keys)}
        places = [tmp_path / f"{keys}{name}" for name in "ab"]
        saved = [save(places[0], seeded(0, 0.5)), save(places[1], seeded(0, 0.5, **many))]
        heads = [one.head for one in group(list(map(read_run, saved)))]
        assert (heads == list(map(str, places))) == (keys == 9), heads


def test_runs_that_do_not_fit_come_below(tmp_path):
    directories = [
        save(tmp_path / str(i), results()._replace(name=f"a run whose name is long {i}"))
        for i in range(7)
    ]
    shown = terminal(compared(*map(read_run, directories)), 100)
    assert max(map(len, shown.splitlines())) <= 100
    assert len(re.findall("a run whose.*? [0-6]", shown)) == 7
    blocks = shown.count("-----\n")
    assert blocks > 3 and shown.count("  NMI ") == 2 * blocks, "of gallery and queries"
    assert shown.count("loss, fit") < blocks, "a block of baselines has no losses"


def test_wide_characters_keep_the_columns_aligned(tmp_path):
    one = results()._replace(name="猫の実験")
    two = vanilla()._replace(name="e\u0301te\u0301")
    runs = [read_run(save(tmp_path / n, c)) for n, c in (("one", one), ("two", two))]
    lines = terminal(compared(*runs), 100).splitlines()
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
    others = ["chance", "colour histogram", "untrained encoder"]
    assert rows[0] == ["", "digits vanilla", "digits hint", *others] and rows[1] == [GROUPS[0]]
    assert ["RI", "0.8100", "0.8682", "0.5551", "* 0.8782", "0.8582"] in rows
    (link,) = [a["href"] for tag, a in page.elements if tag == "a"]
    assert link == "../../runs/o%29n%20%5Be%5D%20%C3%BC/report.html"
    markdown = (output / "comparison.md").read_text(encoding="utf-8")
    assert "|  | digits vanilla | digits hint | chance |" in markdown
    assert markdown.endswith(f"\nReports: [digits vanilla]({link})\n")
    assert "\n| RI | 0.8100 | 0.8682 | 0.5551 | **0.8782** | 0.8582 |\n" in markdown
    cells = {line.count("|") for line in markdown.splitlines() if line.startswith("|")}
    assert cells == {7}


def test_hostile_names_are_shown_as_text(tmp_path):
    directories = []
    for i, name in enumerate((*HOSTILE, "[a](javascript:alert(1)) | **b** https://x.y")):
        content = results()
        *before, last = content.training.history
        last = last._replace(fit=last.fit | {name: 1.0})
        device = content.provenance.device._replace(host=name)
        content = content._replace(
            name=name,
            left_out=(f"{name} was left out",),
            training=content.training._replace(history=(*before, last)),
            provenance=content.provenance._replace(device=device),
            baselines={HOSTILE[0]: scores(0.1)},
        )
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
    assert bars == {len(directories) + 4}


def test_a_terminal_of_another_encoding(tmp_path):
    content = results()._replace(name="猫")
    done = run(save(tmp_path / "猫", content), PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and "?" in done.stdout.splitlines()[0] and not done.stderr


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
