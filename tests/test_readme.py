"""What the README shows runs as it stands."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_example_of_reuse_runs():
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    names: dict = {}
    exec(code, names)
    assert names["agreement"] == 1
    assert names["top"].indices.shape == names["own"].indices.shape == (5000, 100)


def test_every_file_that_is_named_is_there():
    for page in ("README.md", "BUILD.md", "experiments/README.md"):
        text = (ROOT / page).read_text()
        for target in re.findall(r"\]\(([^)#:]+)\)", text):
            assert ((ROOT / page).parent / target).exists(), f"{page} names {target}"
        for target in re.findall(r"configs/\w+\.py", text):
            assert (ROOT / target).exists(), f"{page} names {target}"
