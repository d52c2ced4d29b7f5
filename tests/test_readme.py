"""What the README shows runs as it stands."""

import re
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]


def test_the_example_of_reuse_runs():
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    names: dict = {}
    exec(code, names)
    assert names["top"].indices.shape == names["near"].indices.shape == (5000, 100)
    assert -0.1 < names["agreement"] < 1
    assert names["whole"].average_precision.shape == (64,)
    np.testing.assert_allclose(names["everywhere"].inertia, names["found"].inertia, rtol=1e-3)


def test_every_file_that_is_named_is_there():
    for page in ("README.md", "BUILD.md", "experiments/README.md", "benchmarks/README.md"):
        text = (ROOT / page).read_text()
        for target in re.findall(r"\]\(([^)#:]+)\)", text):
            assert ((ROOT / page).parent / target).exists(), f"{page} names {target}"
        for target in re.findall(r"configs/\w+\.py", text):
            assert (ROOT / target).exists(), f"{page} names {target}"
