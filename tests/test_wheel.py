"""The wheel, installed away from the checkout, runs."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

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
    assert run.stdout.strip() == str(site / "retrieval_jax" / "main.py")
    assert run.returncode == 2 and "seed must be at least 0 and below 2^32, got -1" in run.stderr
