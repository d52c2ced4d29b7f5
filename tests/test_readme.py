"""What the pages show runs as it stands, and what they name is there."""

import re
import shlex
import shutil
from contextlib import chdir
from glob import glob
from pathlib import Path

import numpy as np
import pytest
from etils import epath
from PIL import Image

from retrieval_jax import build, pipeline
from retrieval_jax.config import check, check_hosts, default, reference
from retrieval_jax.data.npz import from_npz
from retrieval_jax.embedder import Embedder
from retrieval_jax.main import main, parse
from retrieval_jax.report.results import read, write

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    str(page.relative_to(ROOT))
    for page in ROOT.rglob("*.md")
    if not any(part.startswith(".") or part == "runs" for part in page.relative_to(ROOT).parts)
)


def blocks(page):
    """The Python of a page."""
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)


def run_block(code, earlier=()):
    """Executes a block, after earlier ones; trains what defines a config. Returns all names."""
    names = {**dict(earlier), "__name__": "block"}
    names.pop("get_config", None)
    exec(code, names)
    if "get_config" in names:
        c = names["get_config"]()
        c.training.epochs, c.training.batch_size = 1, 128
        experiment = build.experiment(c)
        data, parts, recipe = pipeline.load(experiment)
        (workdir := epath.Path(c.name)).mkdir()
        trained = pipeline.fit(experiment, workdir, data, parts, recipe, started=0.0)
        assert all(np.isfinite(loss) for loss in trained.history[0]["fit"].values())
    return names


# docs/own-images.md is run together with its command, which makes what its second block reads.
@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page) and page != "docs/own-images.md"]
)
def test_every_block_of_python_runs(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if page == "docs/photos.md":
        for place in ("Pictures/blurred.jpg", "Pictures/a.png", "More pictures/b.png", "cat.jpg"):
            Path(place).parent.mkdir(exist_ok=True)
            pixels = np.random.default_rng(len(place)).integers(0, 256, (9, 9, 3), np.uint8)
            Image.fromarray(pixels).save(place)
    names: dict = {}
    for code in blocks(page):
        names = run_block(code, names)
    if page == "README.md":
        nmi, precision = map(float, capsys.readouterr().out.split())
        assert 0.6 < nmi < 0.9 and precision > 0.8  # of raw pixels
        assert names["top"].indices.shape == (97, 5)
    elif page == "docs/modules.md":
        assert names["top"].indices.shape == names["near"].indices.shape == (5000, 100)
        assert -0.1 < names["agreement"] < 1
        assert names["whole"].average_precision.shape == (64,)
        np.testing.assert_allclose(names["everywhere"].inertia, names["found"].inertia, rtol=1e-3)
    elif page == "docs/photos.md":
        assert len(names["found"].paths) == 2 == len(names["index"])
    elif page == "docs/extend.md":
        embed = Embedder.from_run("digits patches", encoder=names["patches"])
        assert embed(np.zeros((3, 8, 8, 1), np.uint8)).shape == (3, 128)
        assert Path("runs/stripes/report.html").is_file()
        printed = capsys.readouterr().out
        assert re.search(r"^epochs of runs/printed\n.*^\d+ [\d.]+\n.*^done\n", printed, re.M | re.S)


@pytest.mark.fast
def test_the_pages_have_examples():
    assert len(blocks("README.md")) == 1 and len(blocks("docs/extend.md")) == 6


def commands(page):
    """The words of every `retrieval-jax` command in a page's blocks."""
    text = (ROOT / page).read_text().replace("\\\n", " ")
    lines = re.findall(r"^(?: {4})?retrieval-jax (.*)", text, re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with what the pages' commands are about; runs are copies of one that is short."""
    directory = tmp_path_factory.mktemp("place")
    with chdir(directory):
        make_data, embed = blocks("docs/own-images.md")
        names = run_block(make_data)
        data = from_npz("mine.npz")
        assert data.images.shape == (300, 16, 16, 3)
        assert data.class_names == ("red", "green", "blue")
        (command,) = [words for words in commands("docs/own-images.md") if "npz" in words[3]]
        assert main([*command, "--config.training.epochs=1", "--config.report.tsne_points=0"]) == 0
        names = run_block(embed, names)
        assert names["embeddings"].shape == (300, 128)
        terms = (f"objectives/config-{term}-1-seed0" for term in ("classification", "emp_ssl"))
        for name in ("vanilla", "hint", "labels/few", "labels/all", *terms):
            shutil.copytree("runs/mine", f"runs/{name}")
        few = read("runs/labels/few")
        few.provenance.config["data"]["label_fraction"] = 0.1  # as if it had trained with fewer
        write(epath.Path("runs/labels/few"), few)
        for name in ("cifar10", "methods", "labels", "objectives"):
            shutil.copytree(ROOT / "experiments" / name, f"experiments/{name}")
        Path("FILE").write_text(blocks("docs/extend.md")[0])
        Path("labels.py").write_text(blocks("docs/operations.md")[0])
        for file in ("Pictures/a.jpg", "Pictures/b.jpg", "cat.jpg"):
            Path(file).parent.mkdir(exist_ok=True)
            Image.fromarray(data.images[len(file)]).resize((64, 64)).save(file)
    return directory


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)])
def test_every_command_does_what_it_can_do_here(page, place, monkeypatch):
    """Those that would train are read and checked; the others run."""
    monkeypatch.chdir(place)
    for command in commands(page):
        words = [word for word in command if word not in ("[--config.key=value", "…]")]
        words = [name for word in words for name in (sorted(glob(word)) or [word])]
        if words[0] == "run" and "--help" not in words:
            named = [word.replace("--config=NAME", "--config=quickstart") for word in words[1:]]
            c, _ = parse(named)
            check(c)
            check_hosts(c)
        elif words[0] == "sweep":
            assert main([*words[:3], "--list"]) == 0
        else:
            assert main(words) == 0, words


@pytest.mark.fast
@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_is_named_is_there(page):
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text):
        assert ((ROOT / page).parent / target).exists(), f"{page} names {target}"
    for target in re.findall(r"\b(?:configs|experiments|benchmarks|tools|tests)/\w+\.py", text):
        assert (ROOT / target).exists(), f"{page} names {target}"


@pytest.mark.fast
def test_the_keys_that_the_pages_set_are_declared():
    known = {key for key, _, _ in reference(default())}
    for page in PAGES:
        if page == "CHANGELOG.md":  # which names those of before
            continue
        for key in re.findall(r"--config\.([a-z_0-9.]+)=", (ROOT / page).read_text()):
            assert key in known | {"key"}, f"{page} sets {key}"


@pytest.mark.fast
def test_the_readme_is_short():
    text = re.sub(r"```python.*?```", "", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert len(text.split()) < 560


@pytest.mark.fast
def test_headings_that_links_name_are_there():
    for page in PAGES:
        for target, heading in re.findall(r"\]\(([^)#:\s]*)#([^)]+)\)", (ROOT / page).read_text()):
            other = (ROOT / page).parent / target if target else ROOT / page
            titles = re.findall(r"^#+ (.*)", other.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert heading in slugs, f"{page} names {target}#{heading}"
