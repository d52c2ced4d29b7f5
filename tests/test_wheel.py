"""What is released: one version everywhere, and a wheel that runs away from the checkout."""

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

from retrieval_jax import __version__

ROOT = Path(__file__).parents[1]


def test_the_wheel_works_outside_the_checkout(tmp_path):
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        there = set(archive.namelist())
    pages = {
        p for kind in ("html", "css", "js") for p in (ROOT / "retrieval_jax").rglob(f"*.{kind}")
    }
    assert len(pages) > 10 and {p.relative_to(ROOT).as_posix() for p in pages} <= there
    site = tmp_path / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True)

    config = tmp_path / "mine.py"
    config.write_text("from retrieval_jax.config import default as get_config\n")
    program = (
        "import retrieval_jax.main as m, sys; print(m.__file__); sys.exit(m.main(sys.argv[1:]))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, f"--config={config}", "--workdir=run", "--config.seed=-1"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(site)},
    )
    listed = subprocess.run(
        [sys.executable, "-c", program, "run", "--config=quickstart:hint", "--help"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(site)},
    )
    assert listed.returncode == 0 and "--config.name='digits hint'" in listed.stdout
    assert run.stdout.strip() == str(site / "retrieval_jax" / "main.py")
    assert run.returncode == 2 and "seed must be at least 0 and below 2^32, got -1" in run.stderr


@pytest.mark.fast
def test_version_changelog_and_citation_agree():
    newest = re.search(r"^## (.*)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert newest is not None and newest[1] == citation["version"] == __version__


def test_the_sdist_has_what_the_wheel_is_built_of_and_nothing_left_over(tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, timeout=300, capture_output=True)
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"retrieval_jax/main.py", "configs/quickstart.py", "LICENSE", "pyproject.toml"} <= names
    listed = ["git", "ls-files", "-co", "--exclude-standard"]
    ours = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert names - {"PKG-INFO"} <= set(ours.splitlines())
