"""Which label-free method gives the most NMI per minute on two CPU cores?

    python experiments/methods/table.py RUN... [--output FILE] [--figure FILE]

Of finished runs of this directory's config: the scores, the minutes of training, and the NMI of the
validation images after each epoch. Prints Markdown, a row per run; --output gets all of it as JSON,
--figure the curves over the minutes.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from retrieval_jax.report.results import read


def row_of(run: Path) -> dict:
    """What one run says."""
    results = read(run)
    objective = results.provenance.config["objective"]
    (method,) = (name for name, keys in objective.items() if keys["weight"] > 0)
    history = results.training.history
    epochs, minutes = [], 0.0
    for epoch in history:
        minutes += epoch.seconds / 60
        epochs.append({"minutes": minutes, "validation NMI": epoch.validation["nmi"]})
    scores = results.scores
    return {
        "method": method,
        "seed": results.provenance.seed,
        "NMI": scores.clustering.gallery.nmi.value,
        "precision@5": scores.retrieval.exhaustive.precision_at["5"].value,
        "kNN accuracy": scores.retrieval.exhaustive.knn_accuracy.value,
        "minutes": minutes,
        "ms per step": 1000 * min(epoch.seconds for epoch in history) / history[0].step,
        "epochs": epochs,
        "date": results.provenance.date,
        "versions": results.provenance.versions,
    }


def draw(rows: Sequence[dict], path: Path) -> None:
    """A curve per run, a colour per method."""
    methods = sorted({row["method"] for row in rows})
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for row in rows:
        n = methods.index(row["method"])
        minutes, scores = zip(*(tuple(epoch.values()) for epoch in row["epochs"]), strict=True)
        axes.plot(minutes, scores, f"C{n}.-", label=row["method"] if row["seed"] == 0 else None)
    axes.set(xlabel="minutes of training", ylabel="NMI of the validation images", xlim=(0, None))
    axes.legend()
    figure.savefig(path)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path)
    parser.add_argument("--output", metavar="FILE", type=Path)
    parser.add_argument("--figure", metavar="FILE", type=Path)
    options = parser.parse_args()
    rows = sorted(map(row_of, options.runs), key=lambda row: (row["method"], row["seed"]))
    columns = ("method", "seed", "NMI", "precision@5", "kNN accuracy", "minutes", "ms per step")
    print("| " + " | ".join((*columns, "validation NMI after each epoch")) + " |")
    print("|" + "---|" * (len(columns) + 1))
    for row in rows:
        cells = [str(row[c]) for c in columns[:2]]
        cells += [f"{row[c]:.3f}" for c in columns[2:5]]
        cells += [f"{row['minutes']:.1f}", f"{row['ms per step']:.0f}"]
        curve = ", ".join(f"{epoch['validation NMI']:.3f}" for epoch in row["epochs"])
        print("| " + " | ".join((*cells, curve)) + " |")
    if options.figure:
        draw(rows, options.figure)
    if options.output:
        options.output.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
