"""What does ranking in the query's cluster lose against the whole gallery?

    python experiments/probes/probes.py RUN... [--output FILE]

For finished runs, and 1, 2, 3, 5 and all of their clusters searched for each query, the nearest
clusters first: the share of the gallery that is read, the share of the true 10 and 100 nearest that
are found, precision@5 and mAP@100. Prints Markdown; FILE gets the same as JSON.
"""

import argparse
import csv
import json
from pathlib import Path

import numpy as np

from retrieval_jax import metrics
from retrieval_jax.ranking import cells, nearest, share_kept

PROBES = (1, 2, 3, 5)


def rows_of(run: Path) -> list[dict]:
    """A row of results for each number of clusters searched."""
    with np.load(run / "embeddings.npz") as file:
        gallery, queries = file["gallery"], file["queries"]
    with np.load(run / "clusters.npz") as file:
        clusters, centroids = file["gallery"], file["centroids"]
    with open(run / "items.csv", newline="", encoding="utf-8") as file:
        items = list(csv.DictReader(file))
    names = sorted({item["label"] for item in items})
    labels = {
        split: np.array([names.index(item["label"]) for item in items if item["split"] == split])
        for split in ("gallery", "query")
    }
    truth = nearest(queries, gallery, k=100)
    index = cells.group(gallery, clusters, centroids)
    sizes = np.bincount(clusters, minlength=len(centroids))
    order = np.asarray(nearest(queries, centroids, k=len(centroids)).indices)
    rows = []
    for probes in (*PROBES, len(centroids)):
        found = cells.search(index, queries, 100, probes=probes)
        hits, positives = metrics.relevance(found.indices, labels["query"], labels["gallery"])
        rows.append(
            {
                "run": run.name,
                "probes": probes,
                "read": float(sizes[order[:, :probes]].sum(1).mean() / len(gallery)),
                "recall@10": float(share_kept(truth, found, 10)),
                "recall@100": float(share_kept(truth, found, 100)),
                "precision@5": float(metrics.precision_at_k(hits, 5)),
                "mAP@100": float(metrics.mean_average_precision_at_k(hits, positives, 100)),
            }
        )
    return rows


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--output", type=Path, metavar="FILE")
    options = parser.parse_args()
    rows = [row for run in options.runs for row in rows_of(run)]
    columns = list(rows[0])
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for row in rows:
        texts = (f"{x:.3f}" if isinstance(x, float) else str(x) for x in row.values())
        print(f"| {' | '.join(texts)} |")
    if options.output:
        options.output.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
