"""The table of a comparison: a column for each config, its runs of several seeds averaged."""

import json
import math
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from etils import epath

from retrieval_jax.report.results import Mean, Results, Scores, collapsed, mean_of, numbers, read
from retrieval_jax.report.text import (
    GROUPS,
    duration,
    loss,
    named,
    score,
    shorten,
)
from retrieval_jax.runtime.records import leaves

MISSING = "-"
# The table of the 2020 report, and what belongs beside it.
_FIRST = {
    *((GROUPS[0], name) for name in ("NMI", "RI", "ARI")),
    *((GROUPS[2], name) for name in ("precision@5", "mAP")),
    (GROUPS[3], "precision@5"),
}
_LOSSES, _TIME = "after the last epoch", "time"
# How the names of scores begin, in the order of the rows.
_MEASURES = (
    *("NMI", "RI", "ARI", "AMI", "accuracy", "silhouette"),
    *("precision", "recall", "mAP@", "MAP@R", "mAP", "kNN", "weighted kNN", "linear probe"),
    "true neighbours",
)
# Keys that decide no score.
_NO_MATTER = ("name", "seed", "compilation_cache", "distributed", "tracking")
_MOST_NAMED = 4  # keys in the head of a column
_MOST_DIFFERENCES = 12
_LONGEST_HEAD = 80  # columns; a name has no bound


class Run(NamedTuple):
    """A finished run and where it is."""

    directory: epath.Path
    results: Results


class Group(NamedTuple):
    """Runs whose configs differ in the seed alone.

    Attributes:
      head: what the comparison calls it.
      runs: at least one, of different seeds.
      config: key → value, without what decides no score.
    """

    head: str
    runs: tuple[Run, ...]
    config: dict[str, Any]


class Row(NamedTuple):
    """A line of the table; `best` are the columns that hold its best value."""

    group: str
    name: str
    values: list[str]
    best: frozenset[int] = frozenset()


class Comparison(NamedTuple):
    """A table: a heading for each configuration and baseline, rows, and sentences beside it.

    Names are as the runs have them; whatever shows them makes them harmless.

    Attributes:
      heads: of the columns: the groups, then chance and baselines.
      rows: scores, losses and times.
      notes: what the groups don't share, and what each run has left out.
      differences: keys of the configs that differ, with a value for each group.
      collapsed: a sentence for each run whose scores say nothing.
    """

    heads: list[str]
    rows: list[Row]
    notes: list[str]
    differences: list[Row] = []
    collapsed: list[str] = []

    def sentences(self) -> list[str]:
        """All that is not in the table, where there is room for sentences alone."""
        shown, more = self.differences[:_MOST_DIFFERENCES], len(self.differences)
        differing = [
            f"{row.name} differs ("
            + "; ".join(f"{head}: {v}" for head, v in zip(self.heads, row.values, strict=False))
            + ")."
            for row in shown
        ]
        if more > len(shown):
            differing.append(f"{more - len(shown)} more keys of the configs differ.")
        return [*self.collapsed, *self.notes, *differing]


class Point(NamedTuple):
    """A score at one value of a swept key."""

    value: Any
    score: Mean


Key = tuple[str, str]  # of a row: its group and its name


def read_run(directory: epath.PathLike) -> Run:
    """Reads a run's results.json.

    Raises:
      UserError: as `retrieval_jax.report.results.read`.
    """
    return Run(epath.Path(directory), read(directory))


def group(runs: Sequence[Run]) -> list[Group]:
    """Brings the runs of one config, name and data together that differ in the seed.

    A group is called by the name of its runs; where names repeat, by the name and what differs in
    the configs; where that is the same too (a run that was repeated with its seed), or too much
    differs, by a directory.
    """
    configs = [_deciding(run.results) for run in runs]
    found: list[tuple[Any, list[Run], dict[str, Any]]] = []
    for run, config in zip(runs, configs, strict=True):
        key = run.results.name, _data(run.results), config
        seed = run.results.provenance.seed
        for other, members, _ in found:
            if other == key and all(seed != run.results.provenance.seed for run in members):
                members.append(run)
                break
        else:
            found.append((key, [run], config))

    def alike(heads: list[str]) -> bool:
        return not all(heads) or len(set(heads)) < len(heads)

    heads = [shorten(members[0].results.name, _LONGEST_HEAD) for _, members, _ in found]
    varied = _varied([config for *_, config in found])
    if alike(heads) and len(varied) <= _MOST_NAMED:
        heads = [
            ", ".join([head or MISSING] + [f"{key}={_word(config.get(key))}" for key in varied])
            for head, (*_, config) in zip(heads, found, strict=True)
        ]
    if alike(heads):
        heads = [str(members[0].directory) for _, members, _ in found]
    return [
        Group(head + (f" (n = {len(members)})" if len(members) > 1 else ""), tuple(members), config)
        for head, (_, members, config) in zip(heads, found, strict=True)
    ]


def compare(groups: Sequence[Group]) -> Comparison:
    """Lines up the groups' values; a row that no run has is left out.

    A value is the mean over a group's runs, beside it their sample standard deviation. Chance
    levels and baselines are means over all runs, whose seeds and clusters may differ; of different
    data there are none.
    """
    runs = [run for group in groups for run in group.runs]
    comparable = len({_data(run.results) for run in runs}) == 1
    others: dict[str, list[dict[Key, float]]] = {}
    if comparable:
        others["chance"] = [_chances(run.results.scores) for run in runs]
        for name in dict.fromkeys(name for run in runs for name in run.results.baselines):
            having = [run.results.baselines[name] for run in runs if name in run.results.baselines]
            others[name] = [_values(scores) for scores in having]
    others = {name: found for name, found in others.items() if any(found)}

    rows = []
    judged = {one[:2]: one.comparable for run in runs for one in named(run.results.scores)}
    scored = [[_values(run.results.scores) for run in group.runs] for group in groups]
    for key in sorted(judged, key=_place):
        row = [_mean(found, key) for found in scored]
        beside = [_mean(found, key) for found in others.values()]
        row += [None if mean is None else mean._replace(sd=None) for mean in beside]
        marked = comparable and judged[key] and len(row) > 1
        rows.append(Row(*key, _shown(row, score), _best(row) if marked else frozenset()))
    for part, form, of in ((_LOSSES, loss, _last_losses), (_TIME, duration, _times)):
        values = [[of(run.results) for run in group.runs] for group in groups]
        for name in dict.fromkeys(name for found in values for each in found for name in each):
            shown = _shown((_mean(found, name) for found in values), form)
            rows.append(Row(part, name, shown + [""] * len(others)))
    varied = _varied([group.config for group in groups])
    differences = [
        Row("config", key, [_word(group.config.get(key)) for group in groups]) for key in varied
    ]
    heads = [group.head for group in groups] + list(others)
    return Comparison(heads, rows, _notes(groups), differences, _collapsed(groups))


def in_short(comparison: Comparison) -> list[Row]:
    """The rows that one looks at first: those of the 2020 report's table, or the first of all."""
    first = [row for row in comparison.rows if (row.group, row.name) in _FIRST]
    return first or [row for row in comparison.rows if row.group in GROUPS][:6]


def overlaid(groups: Sequence[Group]) -> dict[str, dict[str, list[tuple[float, float | None]]]]:
    """Losses by epoch: term and side → head of the group → points, means over its seeds."""
    found: dict[str, dict[str, list[tuple[float, float | None]]]] = {}
    for one in groups:
        values: dict[str, dict[int, list[float]]] = {}
        for run in one.runs:
            for epoch in run.results.training.history:
                for side, losses in (("fit", epoch.fit), ("validation", epoch.validation)):
                    for term, value in losses.items():
                        if value is not None:
                            by_epoch = values.setdefault(f"{term}, {side}", {})
                            by_epoch.setdefault(epoch.epoch, []).append(value)
        for term, by_epoch in values.items():
            points = [(e, statistics.fmean(v)) for e, v in sorted(by_epoch.items())]
            found.setdefault(term, {})[one.head] = points  # type: ignore[assignment]
    return found


def _collapsed(groups: Sequence[Group]) -> list[str]:
    """A sentence for each run whose embeddings are nearly a point, or fill few clusters."""
    sentences = []
    for one in groups:
        for run in one.runs:
            history, sizes = run.results.training.history, run.results.scores.clustering.sizes
            why = []
            if history and collapsed(history[-1].validation):
                why.append("its validation embeddings are nearly a point or a line")
            if 2 * sizes.count(0) >= len(sizes):
                why.append(f"{sizes.count(0):,} of its {len(sizes):,} clusters are empty")
            if why:
                seed = f", seed {run.results.provenance.seed}" if len(one.runs) > 1 else ""
                sentences.append(f"{one.head}{seed} has collapsed: {' and '.join(why)}.")
    return sentences


def curves(groups: Sequence[Group], key: str, measure: str) -> dict[str, list[Point]]:
    """A score against a key of the config: one curve for all that is alike but for this key.

    Args:
      groups: of runs.
      key: such as "data.labels_per_class".
      measure: the name of a score, as the comparison has it; of several groups of rows the first.

    Returns:
      What the curve's configs have in common and others have not → points in the order of the key.

    Raises:
      ValueError: no config has the key, or no run the score.
    """
    if not any(key in group.config for group in groups):
        raise ValueError(f"no run has the key {key!r} in its config")
    measures = {
        one.name for group in groups for run in group.runs for one in named(run.results.scores)
    }
    if measure not in measures:
        raise ValueError(
            f"no run has the score {measure!r}; there are {', '.join(sorted(measures))}"
        )
    found: dict[str, list[Point]] = {}
    rests = [{k: v for k, v in group.config.items() if k != key} for group in groups]
    varied = _varied(rests)
    for one, rest in zip(groups, rests, strict=True):
        values = [_values(run.results.scores) for run in one.runs]
        row = next((row for row in sorted(values[0], key=_place) if row[1] == measure), None)
        mean = None if row is None else _mean(values, row)
        if mean is None or key not in one.config:
            continue
        # Names say nothing: those of a sweep's configs may hold the very value of the key.
        label = ", ".join(f"{k}={_word(rest.get(k))}" for k in varied) or "all runs"
        found.setdefault(label, []).append(Point(one.config[key], mean))
    return {
        label: sorted(points, key=lambda p: in_order(p.value)) for label, points in found.items()
    }


def in_order(value: Any) -> tuple[bool, float, str]:
    """What to sort the values of a key by: numbers first, ascending, then words."""
    number = isinstance(value, (int, float))
    return not number, value if number else 0.0, str(value)


def _deciding(results: Results) -> dict[str, Any]:
    config = {k: v for k, v in results.provenance.config.items() if k not in _NO_MATTER}
    return dict(leaves(config))


def _varied(configs: Sequence[dict[str, Any]]) -> list[str]:
    """The keys that have not the same value everywhere, in the order of the configs."""
    keys = dict.fromkeys(key for config in configs for key in config)
    return [key for key in keys if len({json.dumps(c.get(key)) for c in configs}) > 1]


def _word(value: Any) -> str:
    if value is None:
        return MISSING
    return shorten(json.dumps(value, ensure_ascii=False).strip('"'), _LONGEST_HEAD)


def _values(scores: Scores) -> dict[Key, float]:
    return {one[:2]: one.score.value for one in named(scores)}


def _chances(scores: Scores) -> dict[Key, float]:
    return {one[:2]: one.score.chance for one in named(scores) if one.score.chance is not None}


def _mean(found: Iterable[dict[Any, float]], key: Any) -> Mean | None:
    """Of the runs that have it."""
    values = [each[key] for each in found if key in each]
    return mean_of(values) if values else None


def _shown(values: Iterable[Mean | None], form: Callable[[float], str]) -> list[str]:
    return [
        MISSING
        if value is None
        else form(value.mean) + (f" ± {form(value.sd)}" if value.sd is not None else "")
        for value in values
    ]


def _best(values: Sequence[Mean | None]) -> frozenset[int]:
    """The columns of the largest value as it is shown; none where all are alike."""
    shown = [None if v is None or math.isnan(v.mean) else float(score(v.mean)) for v in values]
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


def _notes(groups: Sequence[Group]) -> list[str]:
    """What the groups don't share, and what each run has left out."""
    notes = []
    for what, consequence, say_it in (
        ("data", "scores and losses don't compare directly", _data),
        ("seeds", "a small difference may be chance", lambda run: str(run.provenance.seed)),
        ("devices", "times don't compare directly", _device),
    ):
        found: dict[str, list[str]] = {}
        for one in groups:
            here = sorted({say_it(run.results) for run in one.runs})
            found.setdefault(", ".join(here), []).append(one.head)
        if len(found) > 1:
            each = "; ".join(f"{', '.join(having)}: {value}" for value, having in found.items())
            notes.append(f"The runs have different {what}, so {consequence} ({each}).")
    for one in groups:
        for run in one.runs:
            whose = one.head if len(one.runs) == 1 else str(run.directory)
            lost = _not_finite(run.results)
            notes += [f"{whose}: not finite: {shorten(lost, 200)}."] if lost else []
            notes += [f"{whose}: {sentence}" for sentence in run.results.left_out]
    return list(dict.fromkeys(notes))


def _not_finite(results: Results) -> str:
    """The numbers that are not finite: this project writes none, another hand may have."""
    return ", ".join(".".join(k) for k, v in numbers(results).items() if not math.isfinite(v))


def _place(key: Key) -> tuple[int, ...]:
    """Where a row belongs, whichever run has it; cutoffs ascend within a measure."""
    group, row = key
    cut = re.search(r"@(\d+)", row)
    kind = next(i for i, measure in enumerate(_MEASURES) if row.startswith(measure))
    return (GROUPS.index(group), kind, int(cut[1]) if cut else 0)
