"""The tutorials run as they stand, and what they say of their outputs is so."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))
# What the text of each says of its results.
CLAIMS = {
    "devices": """
assert len(jax.devices()) == 8 == len(pairs) == len(set(cells.tolist()))
assert 15 < alone.inertia / len(points) < 17
assert (indices == top.indices).all() and (near.indices == indices).all()
nearest_by_numpy = ((queries[:, None] - points) ** 2).sum(-1).argsort(1)[:, :5]
assert (nearest_by_numpy == np.asarray(indices)).all()
""",
    "encoder": """
assert imported(images).shape == (1797, 16)
expected = fit.transform(images.reshape(1797, -1) / 255)
np.testing.assert_allclose(imported(images), expected, atol=1e-4)
assert nmi["ONNX file"] > nmi["sums"] > 0.1
""",
    "loss": """
first, last = trained.history[0], trained.history[-1]
assert all(last[part]["pairs"] < first[part]["pairs"] for part in ("fit", "validation"))
assert scores["pairs"] > scores["raw pixels"] > 0.5
""",
    "photos": """
assert len(index) == 25 and not changes.unreadable
assert all("temple" in path for path in answer.paths)
kinds = [{Path(p).name[:6] for p in index.cluster(n).paths} for n, _ in index.clusters_by_size()]
assert sorted(map(sorted, kinds)) == [["flower"], ["temple"]]
(group,) = (group for group in groups if any("sent" in path for path in group))
assert str(folder.absolute() / "flower-3.jpg") in group and "sent" not in group[0]
""",
    "report": """
(hint_nmi, hint_precision), (nmi, precision) = scores["hint"], scores["vanilla"]
assert hint_nmi > nmi + 0.2 and hint_precision > precision > 0.8
assert len(figure.axes) == 24
""",
}


def cells(notebook, kind):
    content = json.loads(notebook.read_text())
    return ["".join(c["source"]) for c in content["cells"] if c["cell_type"] == kind]


@pytest.mark.parametrize("notebook", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_runs_and_its_claims_hold(notebook, tmp_path):
    code = re.sub(r"^%.*", "", "\n\n".join(cells(notebook, "code")), flags=re.MULTILINE)
    program = tmp_path / "tutorial.py"
    program.write_text(code + CLAIMS[notebook.stem])
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg"}
    run = subprocess.run(
        [sys.executable, program], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-4000:]


@pytest.mark.fast
@pytest.mark.parametrize("notebook", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_is_small_and_without_outputs(notebook):
    content = json.loads(notebook.read_text())
    assert len(content["cells"]) <= 14 and content["nbformat"] == 4
    code = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert "".join(code[0]["source"]).startswith("%pip install")
    for target in re.findall(r"\]\(([^)#]+)", "\n".join(cells(notebook, "markdown"))):
        assert (notebook.parent / target).exists(), f"{notebook.name} names {target}"


def test_on_the_site_links_to_notebooks_are_pages_and_colab_opens_the_file():
    pytest.importorskip("mkdocs")
    from tools import site_pages

    page = site_pages.on_page_markdown(
        "[a](tutorials/loss.ipynb) "
        + site_pages.notebook_page(TUTORIALS[0], "docs/tutorials/x.ipynb", "owner/name")
    )
    assert page.startswith("[a](tutorials/loss.md) # ") and "```python\n%pip install" in page
    assert "google.com/github/owner/name/blob/main/docs/tutorials/x.ipynb)" in page
    assert "Colab" not in site_pages.notebook_page(TUTORIALS[0], "x.ipynb", "")
