"""The report: figures by pixels, the page by its parsed elements, the map by its neighbours."""

import base64
import io
import json
import re
import subprocess
import sys
import warnings
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from etils import epath
from PIL import Image
from scipy.spatial.distance import pdist
from sklearn.datasets import load_digits
from sklearn.manifold import trustworthiness

from retrieval_jax.report import document, figures, text
from retrieval_jax.report.examples import choose_examples
from retrieval_jax.report.map import lay_out, tsne
from retrieval_jax.report.page import main, make, verdict, write_page
from retrieval_jax.report.results import (
    Clustering,
    ClusterScores,
    Data,
    Device,
    Epoch,
    Provenance,
    Results,
    Retrieval,
    RetrievalScores,
    Score,
    Scores,
    Training,
    write,
)
from retrieval_jax.runtime.errors import printable
from retrieval_jax.runtime.records import typed

TEMPLATES = Path(document.__file__).parent / "templates"
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    'it\'s a "quote" & an &amp;',
    "$\\frac{x}{$",
    "_hidden",
    "a\nb\x1b[31m",
    "odd\udcff\u202ename",
    "猫の名前はとても長いのです",
    "Кошка ሴት",  # Ethiopic: hardly a font has it
    "x" * 200,
)
EPOCHS = [
    {
        "epoch": epoch,
        "seconds": 3.25 + epoch,
        "fit": {"loss": 2.5 / epoch, "reconstruction": 0.5 / epoch, "classification": 2.0 / epoch},
        "validation": {
            "loss": 2.75 / epoch,
            "reconstruction": 0.55 / epoch,
            "classification": 2.2 / epoch,
            "accuracy": 0.1 * epoch,
        },
    }
    for epoch in (1, 2, 3)
]


def scores(shift: float = 0.0) -> Scores:
    """No two scores alike, so that a swapped cell shows."""

    def score(value: float, chance: float | None = None) -> Score:
        return Score(value + shift, chance)

    return Scores(
        Clustering(
            k=3,
            inertia=1234.5,
            iterations=17,
            converged=True,
            sizes=(700, 500, 437),
            gallery=ClusterScores(
                nmi=score(0.39711, 0.00123),
                ri=score(0.86822, 0.55512),
                ari=score(0.27533, 0.0),
                ami=score(0.38611, 0.0),
                accuracy=score(0.61234, 0.36789),
                silhouette=score(0.12345),
                counts=((600, 0, 7), (50, 450, 30), (50, 50, 400)),
            ),
            queries=ClusterScores(nmi=score(0.39344, 0.04), ri=score(0.86655), ari=score(0.27166)),
        ),
        Retrieval(
            RetrievalScores(
                {"5": score(0.55771, 0.333), "100": score(0.49288, 0.332)},
                {"5": score(0.01122), "100": score(0.10234)},
                {"5": score(0.51515), "100": score(0.33199)},
            ),
            RetrievalScores(
                {"5": score(0.56311, 0.331), "100": score(0.50122, 0.334)},
                {"5": score(0.01133), "100": score(0.11345)},
                {"5": score(0.52525), "100": score(0.34233)},
                map_at_r=score(0.23456, 0.11111),
                map=score(0.45678, 0.34343),
                knn_accuracy=score(0.67891, 0.35353),
            ),
            {"5": Score(0.93144 + shift, 0.32), "100": Score(0.88155 + shift, 0.32)},
        ),
        features=128,
    )


def results() -> Results:
    """A whole run's, with one baseline that is better in everything and one that is worse."""
    return Results(
        name="digits hint",
        seconds={"data": 0.1, "train": 2890.0, "embed": 17.25, "report": 5.0},
        training=Training(3, 319309, 318477, tuple(typed(Epoch, row) for row in EPOCHS), 9.5),
        scores=scores(),
        left_out=(),
        provenance=Provenance(
            command="python -m retrieval_jax.main --config=configs/quickstart.py",
            config={"seed": 7, "data": {"source": "digits"}, "model": {"features": [32, 64]}},
            versions={"python": "3.11.7", "jax": "0.10.2"},
            device=Device("cpu", "cpu", 4, "Xeon, 2 cores"),
            seed=7,
            date="2026-01-02T03:04:05Z",
            data=Data(
                description="scikit-learn's digits, 1,797 images",
                images=1797,
                gallery=1637,
                fit=1310,
                validation=327,
                queries=160,
                image_shape=(8, 8, 1),
                class_names=("zero", "one", "two"),
            ),
        ),
        baselines={
            "colour histogram": scores(0.01)._replace(features=512, variance_kept=0.93),
            "untrained encoder": scores(-0.01),
        },
    )


def unlabelled() -> Results:
    """What there is without labels: silhouettes, and the share of neighbours kept."""
    content = results()

    def without(scores: Scores) -> Scores:
        silhouette = ClusterScores(silhouette=Score(0.25))
        clustering = scores.clustering._replace(gallery=silhouette, queries=silhouette)
        return scores._replace(
            clustering=clustering, retrieval=Retrieval(kept=scores.retrieval.kept)
        )

    data = content.provenance.data._replace(class_names=())
    return content._replace(
        scores=without(content.scores),
        baselines={name: without(scores) for name, scores in content.baselines.items()},
        left_out=("Scores that judge by classes: the data has no labels.",),
        provenance=content.provenance._replace(data=data),
    )


# fmt: off
ELEMENTS = {
    "html", "head", "nav", "script", "noscript", "button", "select", "option", "input", "output",
    "label", "canvas", "h3", "span",
    "meta", "title", "style", "body", "main", "header", "section", "h1", "h2",
    "p", "ul", "li", "dl", "div", "dt", "dd", "table", "thead", "tbody", "tr", "th", "td",
    "figure", "figcaption", "img", "details", "summary", "pre", "strong", "a", "caption",
}
# fmt: on


class Page(HTMLParser):
    """Every element with its attributes, the tables' cells, styles and scripts, and the text."""

    def __init__(self, source: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.text = ""
        self.sources: dict[str, list[str]] = {"style": [], "script": []}
        self.data: dict[str, str] = {}  # JSON by the id of its script
        self._open: list[str] = []
        self._rows: list[list[str]] = []
        self.feed(source)
        self.close()
        assert not self._open, "every element is closed"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "input"):
            self._open.append(tag)
        if tag in self.sources:
            self._json = dict(attrs).get("id") if "type" in dict(attrs) else None
            if self._json is None:
                self.sources[tag].append("")
        if tag == "div" and dict(attrs).get("role") == "region":
            self._rows = self.tables.setdefault(dict(attrs)["aria-label"], [])
        if tag == "tr":
            self._rows.append([])
        if tag in ("th", "td"):
            self._rows[-1].append("")

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] in self.sources and self._json:
            self.data[self._json] = self.data.get(self._json, "") + data
        elif self._open and self._open[-1] in self.sources:
            self.sources[self._open[-1]][-1] += data
        else:
            self.text += data
        if {"th", "td"} & set(self._open):
            self._rows[-1][-1] += data


def assert_inert(page: Page, source: str) -> None:
    """No handler, no script but the page's own, nothing that a browser would fetch."""
    own = {path.read_text() for path in TEMPLATES.glob("*.js")}
    assert set(page.sources["script"]) <= own
    for tag, attributes in page.elements:
        assert tag in ELEMENTS
        assert not any(name.startswith("on") or name == "style" for name in attributes)
        assert attributes.get("type") in (None, "application/json", "button", "checkbox", "range")
        if tag == "img":
            assert re.match("data:image/(png|webp);base64,", attributes["src"] or "")
        else:
            assert "src" not in attributes
        assert not re.match(r"[a-z]+:|//", attributes.get("href") or "", re.IGNORECASE)
    assert not re.search(r"url\(|@import", source)
    (policy,) = [a["content"] or "" for _, a in page.elements if a.get("http-equiv")]
    hashes = {
        kind: " ".join(
            f"'sha256-{base64.b64encode(sha256(one.encode()).digest()).decode()}'" for one in found
        )
        for kind, found in page.sources.items()
        if found
    }
    expected = {"default": "'none'", "img": "data:"} | hashes
    assert dict(re.findall(r"(\w+)-src ([^;]+)", policy)) == expected


def report(tmp_path: Path, content: Results, pictures: dict | None = None) -> Page:
    path = write_page(epath.Path(tmp_path), content, pictures or {})
    source = path.read_text()
    page = Page(source)
    assert_inert(page, source)
    return page


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def count(image: np.ndarray, colour: str, tolerance: int = 12) -> int:
    """How many pixels have about this colour."""
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return int((np.abs(image - wanted).max(axis=-1) <= tolerance).sum())


# The page


def test_report_tables_hold_the_results(tmp_path):
    content = results()
    page = report(tmp_path, content)
    head, *rows = page.tables["scores"]
    assert head == ["", "trained", "chance", "colour histogram", "untrained encoder"]
    assert [row[0] for row in rows if len(row) == 1] == list(text.GROUPS)
    group, got = "", {}
    for name, *cells in rows:
        group = group if cells else name
        if cells:
            got[group, name] = cells
    mine, better, worse = (
        {one[:2]: one for one in text.named(scores)}
        for scores in (content.scores, *content.baselines.values())
    )
    assert got.keys() == mine.keys() and len(got) == 26
    for key, (value, chance, above, below) in got.items():
        assert float(value) == pytest.approx(mine[key].score.value, abs=5e-5)
        assert float(below) == pytest.approx(worse[key].score.value, abs=5e-5)
        assert above.startswith("▲ ") == mine[key].comparable
        assert float(above.removeprefix("▲ ")) == pytest.approx(better[key].score.value, abs=5e-5)
        expected = mine[key].score.chance
        assert (
            chance == "–"
            if expected is None
            else float(chance) == pytest.approx(expected, abs=5e-5)
        )
    assert got[text.GROUPS[0], "accuracy by matching"][:2] == ["0.6123", "0.3679"]
    assert got[text.GROUPS[2], "MAP@R"][:2] == ["0.2346", "0.1111"]
    assert got[text.GROUPS[3], "mAP@100"][0] == "0.3320"
    assert got[text.GROUPS[3], "true neighbours kept, @5"][:2] == ["0.9314", "0.3200"]
    assert "colour histogram: better than the trained embedding in 23 of 23 scores" in page.text
    assert "Colour histogram: 512 features, 93% of their variance kept." in page.text
    assert "untrained encoder: better" not in page.text
    head, *rows = page.tables["classes by cluster"]
    assert rows == [
        ["zero", "600", "0", "7"],
        ["one", "50", "450", "30"],
        ["two", "50", "50", "400"],
        ["all", "700", "500", "437"],
    ]
    head, *rows = page.tables["losses by epoch"]
    assert len(rows) == 3
    for epoch, row in zip(EPOCHS, rows, strict=True):
        assert row[:2] == [str(epoch["epoch"]), f"{epoch['seconds']:.2f} s"]
        for name, cell in zip(head[2:], row[2:], strict=True):
            side, term = name.split(": ")
            assert float(cell) == pytest.approx(epoch[side][term], rel=1e-3)
    stages = dict(page.tables["time of each stage"][1:])
    assert stages["train"] == "48 min 10 s" and stages["all"] == "48 min 32 s"
    facts = dict(page.tables["provenance"])
    assert facts["command"] == content.provenance.command
    assert facts["seed"] == "7" and facts["3 classes"] == "zero, one, two"
    assert facts["images"] == "1,797 of 8 × 8 × 1"
    assert "1,310 fit" in facts["split"] and "160 queries" in facts["split"]
    assert dict(page.tables["versions"]) == content.provenance.versions
    assert '"source": "digits"' in page.text
    assert "437 to 700, median 500" in page.text
    assert "Left out" not in page.text and "skipped" not in page.text


def test_the_verdict_names_what_is_better():
    content = results()
    content = content._replace(baselines={"untrained encoder": scores(-0.01)})
    assert verdict(content) == ["No baseline beats the trained embedding in any score."]
    assert verdict(content._replace(baselines={})) == [] == verdict(unlabelled())
    gallery = content.scores.clustering.gallery._replace(ari=Score(0.3))
    clustering = content.scores.clustering._replace(gallery=gallery)
    one = content.scores._replace(clustering=clustering)
    assert verdict(content._replace(baselines={"raw pixels": one})) == [
        "raw pixels: better than the trained embedding in 1 of 23 scores "
        "(ARI, clusters of the gallery: 0.3000 against 0.2753)."
    ]


def test_report_embeds_its_figures(tmp_path):
    paths = {}
    for caption, value in (("first & foremost", 40), ('second "quoted"', 200)):
        paths[caption] = tmp_path / f"{value}.png"
        Image.new("L", (5, 3), value).save(paths[caption])
    page = report(tmp_path, results(), paths)
    images = [attributes for tag, attributes in page.elements if tag == "img"]
    assert [image["alt"] for image in images] == list(paths)
    for image, value in zip(images, (40, 200), strict=True):
        encoded = image["src"].removeprefix("data:image/png;base64,")
        with Image.open(io.BytesIO(base64.b64decode(encoded, validate=True))) as decoded:
            assert decoded.size == (5, 3) and decoded.getpixel((0, 0)) == value


def test_report_shows_hostile_text_as_text(tmp_path):
    content = results()
    history = list(content.training.history)
    for side in ("fit", "validation"):
        history[0] = history[0]._replace(**{side: getattr(history[0], side) | {HOSTILE[0]: 1.0}})
    provenance = content.provenance
    content = content._replace(
        name=HOSTILE[0],
        left_out=(HOSTILE[1],),
        seconds=content.seconds | {HOSTILE[1]: 1.0},
        training=content.training._replace(history=tuple(history)),
        baselines={HOSTILE[0]: scores(0.1)},
        provenance=provenance._replace(
            command=f"main --workdir='{HOSTILE[1]}'",
            config=provenance.config | {"</pre>" + HOSTILE[0]: [HOSTILE[1], "\udcff"]},
            versions=provenance.versions | {HOSTILE[1]: HOSTILE[0]},
            device=provenance.device._replace(host=HOSTILE[0]),
            data=provenance.data._replace(
                description=HOSTILE[1],
                class_names=HOSTILE,
                skipped=tuple(f"{name}: truncated" for name in HOSTILE),
            ),
        ),
    )
    names = {"gallery": list(HOSTILE), "queries": list(HOSTILE)}
    (tmp_path / "images.json").write_text(json.dumps(names))
    np.savez(tmp_path / "examples.npz", neighbour_positions=np.array([[1, 2], [0, -1]]))
    figure = tmp_path / "figure.png"
    Image.new("L", (2, 2)).save(figure)
    page = report(tmp_path, content, {HOSTILE[1]: figure})
    shown = [printable(name) for name in HOSTILE]
    numbered = [f"{label} {name}" for label, name in enumerate(shown)]
    assert dict(page.tables["provenance"])["10 classes"] == ", ".join(numbered)
    for name in shown:
        assert f"{name}: truncated" in page.text
    assert "10 files were skipped" in page.text
    assert page.tables["files"][1:] == [[shown[0], f"{shown[1]}; {shown[2]}"], [shown[1], shown[0]]]
    assert "\x1b" not in page.text and "\u202e" not in page.text
    assert [tag for tag, _ in page.elements if tag == "b"] == []


def test_report_without_labels_and_without_epochs(tmp_path):
    content = unlabelled()
    content = content._replace(training=content.training._replace(history=()))
    page = report(tmp_path, content)
    assert "classes by cluster" not in page.tables and "losses by epoch" not in page.tables
    _, *rows = page.tables["scores"]
    assert [row[0] for row in rows if len(row) > 1] == [
        *["silhouette"] * 2,
        "true neighbours kept, @5",
        "true neighbours kept, @100",
    ]
    assert "▲" not in "".join(map("".join, rows))
    assert "700, 500, 437" in page.text
    assert content.left_out[0] in page.text
    assert "NMI" not in page.text and "Against the baselines" not in page.text


def test_report_of_one_cluster_has_no_silhouette(tmp_path):
    content = unlabelled()
    nothing = Clustering(1, 5.0, 1, True, (9,))
    scores = content.scores._replace(clustering=nothing, retrieval=Retrieval())
    page = report(tmp_path, content._replace(scores=scores, baselines={}))
    assert "scores" not in page.tables and "9 to 9, median 9" in page.text


def test_report_shows_missing_and_undefined_values(tmp_path):
    content = results()
    first, second, last = content.training.history
    last = last._replace(fit=last.fit | {"loss": float("nan")}, validation={})
    history = (last, second, first)
    page = report(tmp_path, content._replace(training=content.training._replace(history=history)))
    assert page.tables["losses by epoch"][1][2:] == ["nan", "0.1667", "0.6667", *["–"] * 4]


# The report of a workdir


@pytest.fixture
def workdir(tmp_path):
    """A finished run's, with all that its report is made from."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 8, 8, 1), dtype=np.uint8)
    labels, gallery, queries = rng.integers(0, 3, 60), np.arange(10, 60), np.arange(10)
    neighbours = rng.integers(-1, 50, (10, 7))
    placed = lay_out(rng.normal(size=(50, 4)), rng.normal(size=(3, 4)), 20, seed=0)
    examples = choose_examples(
        images, labels, gallery, queries, neighbours, 4,
        reconstructions=images[:10] / np.float32(255), mapped=placed.rows,
    )  # fmt: skip
    shown = examples["neighbour_positions"]
    assert shown.shape == (4, 5) and examples["reconstructions"].shape == (4, 8, 8, 1)
    found = shown >= 0
    np.testing.assert_array_equal(examples["neighbours"][found], images[10 + shown[found]])
    np.testing.assert_array_equal(examples["neighbour_labels"][found], labels[10 + shown[found]])
    np.testing.assert_array_equal(examples["map_labels"], labels[10 + placed.rows])
    np.savez(tmp_path / "examples.npz", **examples)
    np.savez(tmp_path / "map.npz", **placed._asdict())
    names = {
        "gallery": [f"g{i}.png" for i in range(50)],
        "queries": [f"q{i}.png" for i in range(10)],
    }
    (tmp_path / "images.json").write_text(json.dumps(names))
    write(epath.Path(tmp_path), results())
    return tmp_path


def test_a_workdir_is_all_that_a_report_needs(workdir):
    """No data, no model, not even JAX; and the same page each time."""
    code = (
        "import sys; from retrieval_jax.report.page import main; code = main(sys.argv[1:]); "
        "assert not {'jax', 'openTSNE', 'sklearn'} & set(sys.modules); sys.exit(code)"
    )
    pages = []
    for _ in range(2):
        run = subprocess.run(
            [sys.executable, "-c", code, workdir], capture_output=True, text=True, check=True
        )
        assert run.stdout == f"report: {workdir / 'report.html'}\n"
        pages.append((workdir / "report.html").read_bytes())
    assert pages[0] == pages[1]
    page = Page(pages[0].decode())
    captions = [attributes["alt"] for tag, attributes in page.elements if tag == "img"]
    assert captions == [
        "Queries, and below each its reconstruction and the error of that.",
        "Queries, and the 5 nearest gallery images of their cluster.",
        "t-SNE of 20 of the 1,637 gallery embeddings.",
    ]
    assert [row[0] for row in page.tables["files"][1:]] == [f"q{i}.png" for i in range(4)]


def test_a_report_without_decoder_labels_or_map(workdir):
    examples = dict(np.load(workdir / "examples.npz"))
    for name in ("reconstructions", "query_labels", "neighbour_labels", "map_labels"):
        del examples[name]
    np.savez(workdir / "examples.npz", **examples)
    (workdir / "map.npz").unlink()
    (workdir / "images.json").write_text(json.dumps({"gallery": [*range(50)], "queries": [7] * 10}))
    write(epath.Path(workdir), unlabelled())
    page = Page(make(workdir).read_text())
    assert sum(tag == "img" for tag, _ in page.elements) == 1 and "files" not in page.tables
    (workdir / "examples.npz").unlink()
    page = Page(make(workdir).read_text())
    assert sum(tag == "img" for tag, _ in page.elements) == 0


def damage_an_archive(workdir):
    (workdir / "map.npz").write_bytes(b"PK\x03\x04")
    return "map.npz is damaged"


def put_an_object_in(workdir):
    np.savez(workdir / "examples.npz", queries=np.array([{}], object))
    return "examples.npz is damaged"


def give_shapes_that_do_not_fit(workdir):
    examples = dict(np.load(workdir / "examples.npz"))
    np.savez(workdir / "examples.npz", **(examples | {"reconstructions": np.zeros((2, 3))}))
    return "doesn't belong"


def damage_the_names(workdir):
    (workdir / "images.json").write_text('{"queries": {}}')
    return "images.json is damaged"


def remove_the_results(workdir):
    (workdir / "results.json").unlink()
    return "has not finished"


def block_the_figures(workdir):
    (workdir / "figures").write_text("")
    return "can't be made"


@pytest.mark.parametrize(
    "damage",
    [
        damage_an_archive,
        put_an_object_in,
        give_shapes_that_do_not_fit,
        damage_the_names,
        remove_the_results,
        block_the_figures,
    ],
)
def test_a_damaged_workdir_gets_one_sentence(workdir, damage, capsys):
    named = damage(workdir)
    assert main([str(workdir)]) == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and named in err


def test_a_wrong_command_line_gets_one_sentence(capsys):
    assert main([]) == 2 and main(["a", "b"]) == 2
    assert capsys.readouterr().err.count("\n") == 2


# The figures


def checker(value: tuple[int, int, int]) -> np.ndarray:
    return np.broadcast_to(np.array(value, np.uint8), (8, 8, 3))


def test_retrieval_rows_frame_right_and_wrong(tmp_path):
    grey = np.broadcast_to(np.array(128, np.uint8), (2, 3, 8, 8, 3))
    path = tmp_path / "rows.png"

    def frames(neighbour_labels, found=None):
        labels = None if neighbour_labels is None else np.array([4, 1])
        if neighbour_labels is not None:
            neighbour_labels = np.array(neighbour_labels)
        names = tuple("abcde")
        figures.retrieval_rows(grey[:, 0], grey, labels, neighbour_labels, names, path, found=found)
        image = pixels(path)
        # The legend below has both colours.
        body = image[: int(0.9 * len(image))]
        return count(body, figures.RIGHT), count(body, figures.WRONG), count(body, "#808080")

    right, wrong, grey_all = frames([[4, 4, 4], [1, 1, 1]])
    assert right > 1000 and wrong == 0
    assert frames([[0, 1, 2], [2, 3, 4]])[0] == 0
    one_right, five_wrong, _ = frames([[0, 1, 4], [2, 3, 4]])
    assert 5 * one_right == pytest.approx(five_wrong, rel=0.15)
    found = np.array([[True, False, False], [True, True, True]])
    fewer, _, grey_fewer = frames([[4, -1, -1], [1, 1, 1]], found)
    assert fewer == pytest.approx(right * 4 / 6, rel=0.1)
    assert grey_fewer == pytest.approx(grey_all * 6 / 8, rel=0.05)
    assert frames(None)[:2] == (0, 0)


def test_retrieval_rows_place_images_in_order(tmp_path):
    shades = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255), (0, 255, 255)]
    queries = np.stack([checker(shades[0]), checker(shades[3])])
    neighbours = np.stack(
        [np.stack([checker(s) for s in row]) for row in (shades[1:3], shades[4:6])]
    )
    path = tmp_path / "rows.png"
    figures.retrieval_rows(queries, neighbours, None, None, (), path)
    image = pixels(path)
    centres = [
        np.argwhere(np.abs(image - np.array(shade)).max(axis=-1) < 5).mean(axis=0)
        for shade in shades
    ]
    rows, columns = np.array(centres).T
    assert rows[:3] == pytest.approx([rows[0]] * 3, abs=2) and rows[3] > rows[0] + 50
    assert columns[0] < columns[1] < columns[2] and columns[0] == pytest.approx(columns[3], abs=2)


def test_reconstructions_stand_under_their_images(tmp_path):
    levels = np.linspace(20, 230, 12).astype(np.uint8)
    images = np.broadcast_to(levels[:, None, None, None], (12, 8, 8, 1))
    path = tmp_path / "pairs.png"
    figures.reconstructions(images, 255 - images, path)
    image = pixels(path)
    for shown, level in enumerate(levels):
        above = np.argwhere((image == int(level)).all(axis=-1))
        below = np.argwhere((image == 255 - int(level)).all(axis=-1))
        above = above[np.isin(above[:, 0], np.arange(len(image) // 2))]
        below = below[np.isin(below[:, 0], np.arange(len(image) // 2, len(image)))]
        if shown < 10:
            assert len(above) > 8000 and len(below) > 8000
            assert above[:, 1].mean() == pytest.approx(below[:, 1].mean(), abs=2)
        else:
            assert len(above) < 200, "only ten are shown"


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_images_of_any_channels_and_floats_are_drawn(tmp_path, channels):
    rng = np.random.default_rng(0)
    whole = rng.integers(0, 256, (2, 6, 9, channels), dtype=np.uint8)
    one, two = tmp_path / "uint8.png", tmp_path / "float.png"
    figures.reconstructions(whole, whole, one)
    scaled = (whole / 255.0).astype(np.float32)
    figures.reconstructions(scaled, scaled, two)
    np.testing.assert_array_less(np.abs(pixels(one) - pixels(two)), 2)
    coloured = np.ptp(pixels(one), axis=-1).max() > 30
    assert coloured == (channels == 3)


def test_values_outside_the_range_are_clipped(tmp_path):
    wild = np.array([np.nan, -3.0, 9.0, np.inf], np.float32)[:, None, None, None]
    images = np.broadcast_to(wild, (4, 4, 4, 1))
    tame = np.broadcast_to(np.float32([0, 0, 1, 1])[:, None, None, None], (4, 4, 4, 1))
    figures.reconstructions(images, images, tmp_path / "wild.png")
    figures.reconstructions(tame, tame, tmp_path / "tame.png")
    np.testing.assert_array_equal(pixels(tmp_path / "wild.png"), pixels(tmp_path / "tame.png"))


def test_embedding_map_colours_classes(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 60)
    positions = rng.normal(0, 0.5, (180, 2)) + np.array([[-9, 0], [9, 0], [0, 9]])[labels]
    path = tmp_path / "map.png"
    figures.embedding_map(positions, labels, ("left", "right", "top"), path, "title")
    image = pixels(path)[150 : int(0.85 * 1024)]  # without title and legend
    saturation = np.ptp(image, axis=-1)
    left, right = saturation[:, :350], saturation[:, -350:]
    assert (left > 60).sum() > 500 and (right > 60).sum() > 500
    hue = [np.median(image[:, s][np.ptp(image[:, s], axis=-1) > 60], axis=0)
           for s in (slice(0, 350), slice(-350, None))]  # fmt: skip
    assert hue[0][2] > hue[0][0] and hue[1][0] > hue[1][2], "blue on the left, orange on the right"
    figures.embedding_map(positions, None, (), path)
    assert count(pixels(path), "#ffa90e", 40) == 0


@pytest.mark.parametrize("size", [0, 1, 3])
def test_embedding_map_of_few_points(tmp_path, size):
    for labels in (None, np.arange(size)):
        figures.embedding_map(np.zeros((size, 2)), labels, ("a",), tmp_path / "few.png")
        assert pixels(tmp_path / "few.png").size


def test_embedding_map_of_many_classes(tmp_path):
    positions = np.random.default_rng(0).normal(size=(240, 2))
    path = tmp_path / "many.png"
    figures.embedding_map(positions, np.arange(240) % 120, [f"c{i}" for i in range(120)], path)
    assert pixels(path).shape[0] > 1024, "the legend has made room for itself"


def test_loss_curves_draw_both_sides(tmp_path):
    path = tmp_path / "loss.png"
    figures.loss_curves(EPOCHS, path)
    both = pixels(path)
    assert count(both, figures.RIGHT) > 1000 and count(both, figures.WRONG) > 1000
    only_fit = [{**epoch, "validation": {}} for epoch in EPOCHS]
    figures.loss_curves(only_fit, path)
    legend = count(pixels(path)[:70], figures.WRONG)
    assert legend and count(pixels(path), figures.WRONG) == legend


@pytest.mark.parametrize(
    "history",
    [
        [],
        EPOCHS[:1],
        [{"epoch": 1, "fit": {"loss": None}, "validation": {"loss": float("nan")}}],
        [{"epoch": 1, "fit": {"loss": float("inf"), HOSTILE[3]: -1.0}}, {"epoch": 2, "fit": None}],
        [{"epoch": e, "fit": {"loss": 10.0**-e}} for e in range(1, 30)],
    ],
)
def test_loss_curves_of_odd_histories(tmp_path, history):
    figures.loss_curves(history, tmp_path / "loss.png")
    assert pixels(tmp_path / "loss.png").size


def test_figures_draw_hostile_names_as_they_are(tmp_path):
    """No name is parsed as mathematics, none warns (warnings are errors), none is left out."""
    images = np.full((2, 5, 8, 8, 3), 128, np.uint8)
    indices = np.arange(10).reshape(2, 5)
    figures.retrieval_rows(
        images[:, 0], images, np.array([0, 9]), indices, HOSTILE, tmp_path / "rows.png"
    )
    positions = np.random.default_rng(0).normal(size=(10, 2))
    figures.embedding_map(positions, np.arange(10), HOSTILE, tmp_path / "map.png", HOSTILE[3])


def test_a_class_without_a_name_is_called_by_its_index(tmp_path):
    positions = np.random.default_rng(0).normal(size=(3, 2))
    one, two = tmp_path / "one.png", tmp_path / "two.png"
    figures.embedding_map(positions, np.arange(3), ("a",), one)
    figures.embedding_map(positions, np.arange(3), ("a", "class 1", "class 2"), two)
    np.testing.assert_array_equal(pixels(one), pixels(two))


def test_figures_ignore_the_users_matplotlib_settings(tmp_path):
    images = np.full((1, 2, 4, 4, 3), 128, np.uint8)

    def draw(path):
        figures.retrieval_rows(
            images[:, 0], images, np.array([0]), np.array([[0, 1]]), ("a", "b"), path
        )
        return pixels(path)

    before = draw(tmp_path / "before.png")
    with matplotlib.rc_context({"text.usetex": True, "figure.facecolor": "black"}):
        np.testing.assert_array_equal(draw(tmp_path / "after.png"), before)
        assert matplotlib.rcParams["text.usetex"], "and leave them as they were"


def test_figures_refuse_shapes_that_do_not_belong_together(tmp_path):
    images = np.zeros((2, 4, 4, 1), np.uint8)
    path = tmp_path / "x.png"
    with pytest.raises(ValueError, match="one shape"):
        figures.reconstructions(images, images[:1], path)
    with pytest.raises(ValueError, match="one shape"):
        figures.reconstructions(images[:0], images[:0], path)
    with pytest.raises(ValueError, match="belong together"):
        figures.retrieval_rows(images, images[:1, None], None, None, (), path)
    with pytest.raises(ValueError, match=r"\[n, 2\]"):
        figures.embedding_map(np.zeros((3, 3)), None, (), path)
    with pytest.raises(ValueError, match="3 positions and 2 labels"):
        figures.embedding_map(np.zeros((3, 2)), np.zeros(2, int), (), path)
    assert not path.exists()


def test_reading_results_loads_no_plotting():
    """The comparison must start at once; figures must not touch pyplot's global state."""
    code = (
        "import sys; import retrieval_jax.report.compare; "
        "assert not {'matplotlib', 'openTSNE', 'sklearn'} & set(sys.modules); "
        "import retrieval_jax.report.figures; assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# The map


def test_tsne_keeps_neighbours_and_repeats():
    points, labels = load_digits(return_X_y=True)
    points = points[:250].astype(np.float32)
    layout = tsne(points, seed=3)
    assert layout.shape == (250, 2) and layout.dtype == np.float32
    assert trustworthiness(points, layout, n_neighbors=10) > 0.95
    np.testing.assert_array_equal(layout, tsne(points, seed=3))
    # Scale and offset are none of its business.
    moved = tsne(points * np.float32(1e5) + np.float32(3.0), seed=3)
    assert trustworthiness(points, moved, n_neighbors=10) > 0.95


@pytest.mark.parametrize("shape", [(0, 3), (1, 3), (2, 1), (4, 8), (5, 1), (6, 0), (7, 5), (40, 1)])
def test_tsne_of_few_points(shape, caplog):
    points = np.random.default_rng(0).normal(size=shape)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layout = tsne(points, seed=0)
    assert layout.shape == (shape[0], 2) and np.isfinite(layout).all()
    assert not caplog.records, "the perplexity suits the number of points"
    if shape[1] and shape[0] > 1:
        assert len(np.unique(layout, axis=0)) == shape[0], "no two points in one place"


def test_tsne_of_three_points_keeps_their_distances():
    """Three points lie in a plane, and their principal components are that plane."""
    points = np.random.default_rng(0).normal(size=(3, 7))
    np.testing.assert_allclose(pdist(tsne(points, seed=0)), pdist(points), rtol=1e-5)


def test_tsne_of_equal_points():
    assert not tsne(np.full((50, 4), 0.1, np.float32), seed=0).any()
    twins = np.repeat(np.random.default_rng(0).normal(size=(3, 4)), 20, axis=0)
    layout = tsne(twins, seed=0)
    assert np.isfinite(layout).all() and len(np.unique(layout, axis=0)) > 20, "twins part"
    assert np.isfinite(tsne(twins * 1e-30, seed=0)).all()
    assert np.isfinite(tsne(twins.astype(np.float32) * np.float32(1e30), seed=0)).all()


def test_tsne_refuses_what_it_cannot_place():
    with pytest.raises(ValueError, match="NaN"):
        tsne(np.array([[1.0, np.nan]]), seed=0)
    with pytest.raises(ValueError, match=r"\[n, d\]"):
        tsne(np.zeros(3), seed=0)


@pytest.mark.parametrize(("points", "shown"), [(3, 3), (7, 7), (9, 7)])
def test_a_map_says_which_rows_it_shows(points, shown):
    gallery = np.random.default_rng(0).normal(size=(7, 3))
    placed = lay_out(gallery, gallery[:2], points, seed=5)
    assert placed.positions.shape == (shown, 2) and len(set(placed.rows.tolist())) == shown
    assert (np.diff(placed.rows) > 0).all()
    np.testing.assert_array_equal(placed.positions, tsne(gallery[placed.rows], seed=5))
    assert placed.queries.shape == (2, 2) and np.isfinite(placed.queries).all()


def test_queries_are_placed_among_their_neighbours():
    points, _ = load_digits(return_X_y=True)
    placed = lay_out(points[:300], points[:300] + 0.01, 250, seed=0)
    near = np.linalg.norm(placed.queries[placed.rows] - placed.positions, axis=1)
    assert np.median(near) < 0.05 * np.ptp(placed.positions, axis=0).max()


# The text


@pytest.mark.parametrize("name", [*HOSTILE, "猫" * 50, "e\u0301" * 30, ""])
@pytest.mark.parametrize("limit", [3, 4, 11, 24])
def test_shorten_fits(name, limit):
    short = text.shorten(name, limit)
    assert text.columns(short) <= limit and short.isprintable()
    assert short == printable(name) or "…" in short


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "0.00 s"),
        (99.94, "99.9 s"),
        (100, "1 min 40 s"),
        (119.7, "2 min 00 s"),
        (5999, "99 min 59 s"),
        (6000, "1 h 40 min"),
        (float("nan"), "nan s"),
    ],
)
def test_duration(seconds, expected):
    assert text.duration(seconds) == expected


def test_a_class_that_no_font_can_draw_goes_by_its_number():
    names = ["cat", "Кошка", "\U00013000", "", "café"]  # an Egyptian hieroglyph
    shown = [figures._class_name(names, label, 12) for label in range(6)]
    assert shown == ["cat", "Кошка", "class 2", "class 3", "café", "class 5"]
