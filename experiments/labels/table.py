"""How much hint is enough? Scores against the number of labels.

    python experiments/labels/table.py RUN... [--output FILE] [--figure FILE]

Of finished runs of this directory's config. Prints Markdown, a row per run; --output gets all of it
as JSON, --figure the curves.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from retrieval_jax.report.results import read

DRAWN = ("NMI", "precision@5")


def row_of(run: Path) -> dict:
    """What one run says."""
    results = read(run)
    c = results.provenance.config
    labels = 0
    if c["objective"]["classification"]["weight"] > 0:
        # All are those of the fit images: 60,000 less 3,000 queries, and of these four fifths.
        labels = 10 * c["data"]["labels_per_class"] or 45600
    system = "autoencoder"
    if c["objective"]["emp_ssl"]["weight"] > 0:
        system = f"EMP-SSL, {c['embedding']['layer']}"
    clusters, found = results.scores.clustering.gallery, results.scores.retrieval
    return {
        "system": system,
        "labels": labels,
        "NMI": clusters.nmi.value,
        "ARI": clusters.ari.value,
        "accuracy by matching": clusters.accuracy.value,
        "precision@5": found.cluster.precision_at["5"].value,
        "mAP": found.exhaustive.map.value,
        "kNN accuracy": found.exhaustive.knn_accuracy.value,
        "minutes": sum(epoch.seconds for epoch in results.training.history) / 60,
        "seed": results.provenance.seed,
        "date": results.provenance.date,
        "versions": results.provenance.versions,
    }


def draw(rows: Sequence[dict], path: Path) -> None:
    """A panel per score, a curve per system; no label is as far from ten as ten from a hundred."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    for axes, score in zip(figure.subplots(1, len(DRAWN)), DRAWN, strict=True):
        for system in sorted({row["system"] for row in rows}):
            points = [(row["labels"], row[score]) for row in rows if row["system"] == system]
            axes.plot(*zip(*points, strict=True), ".-", label=system)
        axes.set_xscale("symlog", linthresh=10)
        axes.set(xlabel="labels", ylabel=score, ylim=(0, None))
        axes.legend()
    figure.savefig(path)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path)
    parser.add_argument("--output", metavar="FILE", type=Path)
    parser.add_argument("--figure", metavar="FILE", type=Path)
    options = parser.parse_args()
    rows = sorted(map(row_of, options.runs), key=lambda row: (row["system"], row["labels"]))
    columns = list(rows[0])[:-3]
    print("| " + " | ".join(columns) + " |")
    print("|" + "---|" * len(columns))
    for row in rows:
        cells = [f"{of:.3f}" if isinstance(of, float) else f"{of}" for of in map(row.get, columns)]
        print("| " + " | ".join(cells) + " |")
    if options.figure:
        draw(rows, options.figure)
    if options.output:
        options.output.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
