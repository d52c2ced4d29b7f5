"""What `make docs` makes a site of: a hook of MkDocs.

The pages are those of the repository, at the paths that they have there, so that a link between
them leads to the same place in a checkout and on the site. A notebook is a page of its text and
code, with a link that opens it in Colab where the environment names the repository on GitHub, as
its Actions do (GITHUB_REPOSITORY=owner/name). The reference is one page for each group of public
modules.
"""

from __future__ import annotations

import json
import os
import re
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
        if name.endswith(".ipynb"):
            page = notebook_page(root / name, name, os.environ.get("GITHUB_REPOSITORY", ""))
            kept.append(File.generated(config, _page_of(name), content=page))
        elif not name.startswith(("tests/", ".")):
            kept.append(File.generated(config, name, abs_src_path=str(root / name)))
    for page, (title, modules) in REFERENCE.items():
        lines = [f"# {title}", *(f"::: retrieval_jax.{module}" for module in modules)]
        kept.append(File.generated(config, f"reference/{page}.md", content="\n\n".join(lines)))
    pages = [f"- [{title}]({page}.md)" for page, (title, _) in REFERENCE.items()]
    intro = "From the docstrings, whose examples run in the tests."
    index = "\n".join(["# Reference", intro, "", *pages])
    kept.append(File.generated(config, "reference/index.md", content=index))
    return Files(kept)


def on_page_markdown(markdown: str, **_: object) -> str:
    """Links to a notebook lead to its page."""
    return re.sub(
        r"(\]\((?!https:)[^)\s]+\.ipynb)\)", lambda link: f"{_page_of(link[1])})", markdown
    )


def notebook_page(notebook: Path, name: str, repository: str) -> str:
    """A notebook in Markdown: its text, its code, and under the title the link to Colab.

    Args:
      notebook: the file.
      name: its path in the repository.
      repository: owner/name on GitHub; "" leaves the link out.
    """
    parts = []
    for cell in json.loads(notebook.read_text())["cells"]:
        text = "".join(cell["source"])
        parts.append(f"```python\n{text}\n```" if cell["cell_type"] == "code" else text)
    if repository:
        at = f"https://colab.research.google.com/github/{repository}/blob/main/{name}"
        title, _, rest = parts[0].partition("\n")
        parts[0] = f"{title}\n\n[Open in Colab]({at}){{ .md-button }}\n\n{rest}"
    return "\n\n".join(parts) + "\n"


def _page_of(name: str) -> str:
    return name.removesuffix(".ipynb") + ".md"
