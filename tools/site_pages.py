"""What `make docs` makes a site of: a hook of MkDocs.

The pages are those of the repository, at the paths that they have there, so that a link between
them leads to the same place in a checkout and on the site. The reference is one page for each group
of public modules.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

# Page → title and modules, as `nav` in mkdocs.yml names them.
REFERENCE = {
    "embedder": ("Embedder", ["embedder.Embedder"]),
    "kmeans": (
        "k-means",
        ["kmeans.fit", "kmeans.assignment", "kmeans.mini_batch", "kmeans.balanced",
         "kmeans.choice"],
    ),
    "ranking": (
        "Ranking",
        ["ranking.exact", "ranking.neighbours", "ranking.streamed", "ranking.cells",
         "ranking.cell_files"],
    ),
    "metrics": (
        "Metrics",
        ["metrics.contingency", "metrics.information", "metrics.pairs", "metrics.matching",
         "metrics.retrieval", "metrics.full_ranking", "metrics.silhouette", "metrics.labels",
         "metrics.chance"],
    ),
    "sharded": ("Many devices", ["sharded"]),
    "models": (
        "Models",
        ["models.network", "models.encoders", "models.resnets", "models.decoder", "models.heads",
         "models.convs"],
    ),
    "objectives": (
        "Objectives",
        ["objectives.objective", "objectives.reconstruction", "objectives.classification",
         "objectives.contrastive", "objectives.redundancy", "objectives.whitening",
         "objectives.bootstrap", "objectives.prototypes", "objectives.clusters",
         "objectives.semi_supervised", "objectives.batchwide"],
    ),
    "views": ("Views", ["training.views", "training.augmentations"]),
    "training": (
        "Training",
        ["training.step", "training.epoch", "training.loop", "training.checkpoints",
         "training.optimizers", "training.monitor", "training.trackers"],
    ),
    "probes": ("Probes", ["probes"]),
    "sklearn": ("scikit-learn", ["sklearn"]),
    "results": ("Results file", ["report.results"]),
    "sweep": ("Sweeps", ["sweep"]),
}  # fmt: skip


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The theme's own files, the repository's pages and what they link to, and the reference."""
    root = Path(config.config_file_path).parent
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=root, capture_output=True, check=True, text=True
    ).stdout.split("\0")
    kept = [file for file in files if file.src_uri.startswith("assets/")]
    for name in filter(None, listed):
        if not name.startswith(("tests/", ".")):
            kept.append(File.generated(config, name, abs_src_path=str(root / name)))
    for page, (title, modules) in REFERENCE.items():
        lines = [f"# {title}", *(f"::: retrieval_jax.{module}" for module in modules)]
        kept.append(File.generated(config, f"reference/{page}.md", content="\n\n".join(lines)))
    pages = [f"- [{title}]({page}.md)" for page, (title, _) in REFERENCE.items()]
    intro = "From the docstrings, whose examples run in the tests."
    index = "\n".join(["# Reference", intro, "", *pages])
    kept.append(File.generated(config, "reference/index.md", content=index))
    return Files(kept)
