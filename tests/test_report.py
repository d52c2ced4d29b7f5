"""The report: figures by pixels, the page by its parsed elements, the map by its neighbours."""

import base64
import copy
import io
import re
import subprocess
import sys
import warnings
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image
from scipy.spatial.distance import pdist
from sklearn.datasets import load_digits
from sklearn.manifold import trustworthiness

from retrieval_jax.report import figures, text
from retrieval_jax.report.map import tsne
from retrieval_jax.report.page import write_report

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


def results() -> dict:
    """A whole results.json with no two scores alike, so that a swapped cell shows."""
    return {
        "format": 1,
        "name": "digits hint",
        "seconds": {"data": 0.1, "train": 2890.0, "embed": 17.25, "report": 5.0},
        "training": {
            "epochs": 3,
            "parameters": 319309,
            "trainable_parameters": 318477,
            "history": copy.deepcopy(EPOCHS),
        },
        "clustering": {
            "k": 3,
            "inertia": 1234.5,
            "iterations": 17,
            "converged": True,
            "sizes": [700, 500, 437],
            "gallery": {"nmi": 0.39711, "ri": 0.86822, "ari": 0.27533},
            "queries": {"nmi": 0.39344, "ri": 0.86655, "ari": 0.27166},
        },
        "retrieval": {
            "cluster": {"precision@5": 0.55771, "precision@100": 0.49288, "map@100": 0.33199},
            "exhaustive": {"precision@5": 0.56311, "precision@100": 0.50122, "map@100": 0.34233},
            "kept": {"@5": 0.93144, "@100": 0.88155},
        },
        "left_out": [],
        "provenance": {
            "command": "python -m retrieval_jax.main --config=configs/quickstart.py",
            "config": {"seed": 7, "data": {"source": "digits"}, "model": {"features": [32, 64]}},
            "versions": {"python": "3.11.7", "jax": "0.10.2"},
            "device": {"platform": "cpu", "kind": "cpu", "count": 4, "host": "Xeon, 2 cores"},
            "seed": 7,
            "date": "2026-01-02T03:04:05Z",
            "data": {
                "description": "scikit-learn's digits, 1,797 images",
                "images": 1797,
                "gallery": 1637,
                "fit": 1310,
                "validation": 327,
                "queries": 160,
                "image_shape": [8, 8, 1],
                "class_names": ["zero", "one", "two"],
                "skipped": [],
            },
        },
    }


# fmt: off
ELEMENTS = {
    "html", "head", "meta", "title", "style", "body", "main", "header", "section", "h1", "h2",
    "p", "ul", "li", "dl", "div", "dt", "dd", "table", "thead", "tbody", "tr", "th", "td",
    "figure", "figcaption", "img", "details", "summary", "pre", "strong", "a",
}
# fmt: on


class Page(HTMLParser):
    """Every element with its attributes, the tables' cells, and the text outside of style."""

    def __init__(self, source: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.text = ""
        self._open: list[str] = []
        self._rows: list[list[str]] = []
        self.feed(source)
        self.close()
        assert not self._open, "every element is closed"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self._open.append(tag)
        if tag == "div" and dict(attrs).get("role") == "region":
            self._rows = self.tables.setdefault(dict(attrs)["aria-label"], [])
        if tag == "tr":
            self._rows.append([])
        if tag in ("th", "td"):
            self._rows[-1].append("")

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if "style" not in self._open:
            self.text += data
        if self._open and self._open[-1] in ("th", "td"):
            self._rows[-1][-1] += data


def assert_inert(page: Page, source: str) -> None:
    """No script, no handler, nothing that a browser would fetch."""
    for tag, attributes in page.elements:
        assert tag in ELEMENTS
        assert not any(name.startswith("on") or name == "style" for name in attributes)
        if tag == "img":
            assert (attributes["src"] or "").startswith("data:image/png;base64,")
        else:
            assert "src" not in attributes
        assert not re.match(r"[a-z]+:|//", attributes.get("href") or "", re.IGNORECASE)
    assert not re.search(r"url\(|@import", source)
    (policy,) = [a["content"] or "" for _, a in page.elements if a.get("http-equiv")]
    sources = re.findall(r"(\w+)-src ([^;]+)", policy)
    assert sources == [("default", "'none'"), ("style", "'unsafe-inline'"), ("img", "data:")]


def report(tmp_path: Path, content: dict, pictures: dict | None = None) -> Page:
    path = tmp_path / "report.html"
    write_report(content, pictures or {}, path)
    source = path.read_text(encoding="utf-8")
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
    clustering = content["clustering"]
    head, *rows = page.tables["clustering scores"]
    assert head == ["", "gallery", "queries"]
    assert [row[0] for row in rows] == ["NMI", "RI", "ARI"]
    for name, *cells in rows:
        expected = [clustering[side][name.lower()] for side in ("gallery", "queries")]
        np.testing.assert_allclose([float(cell) for cell in cells], expected, atol=5e-5)
    head, *rows = page.tables["retrieval scores"]
    assert head == ["", "in the cluster", "exhaustive"]
    got = {name: [float(cell) for cell in cells] for name, *cells in rows}
    assert got == {
        "precision@5": [0.5577, 0.5631],
        "precision@100": [0.4929, 0.5012],
        "mAP@100": [0.3320, 0.3423],
        "true neighbours kept, @5": [0.9314, 1.0],
        "true neighbours kept, @100": [0.8815, 1.0],
    }
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
    assert facts["command"] == content["provenance"]["command"]
    assert facts["seed"] == "7" and facts["3 classes"] == "zero, one, two"
    assert facts["images"] == "1,797 of 8 × 8 × 1"
    assert "1,310 fit" in facts["split"] and "160 queries" in facts["split"]
    assert dict(page.tables["versions"]) == content["provenance"]["versions"]
    assert '"source": "digits"' in page.text
    assert "700, 500, 437" in page.text and "437 to 700, median 500" in page.text
    assert "Left out" not in page.text and "skipped" not in page.text


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
    provenance = content["provenance"]
    content["name"] = HOSTILE[0]
    content["left_out"] = [HOSTILE[1]]
    provenance["command"] = f"main --workdir='{HOSTILE[1]}'"
    provenance["config"]["</pre>" + HOSTILE[0]] = [HOSTILE[1], "\udcff"]
    provenance["versions"][HOSTILE[1]] = HOSTILE[0]
    provenance["device"]["host"] = HOSTILE[0]
    provenance["data"]["description"] = HOSTILE[1]
    provenance["data"]["class_names"] = list(HOSTILE)
    provenance["data"]["skipped"] = [f"{name}: truncated" for name in HOSTILE]
    for side in ("fit", "validation"):
        content["training"]["history"][0][side][HOSTILE[0]] = 1.0
    content["seconds"][HOSTILE[1]] = 1.0
    figure = tmp_path / "figure.png"
    Image.new("L", (2, 2)).save(figure)
    page = report(tmp_path, content, {HOSTILE[1]: figure})
    shown = [text.printable(name) for name in HOSTILE]
    assert dict(page.tables["provenance"])["10 classes"] == ", ".join(shown)
    for name in shown:
        assert f"{name}: truncated" in page.text
    assert "10 files were skipped" in page.text
    assert "\x1b" not in page.text and "\u202e" not in page.text
    assert [tag for tag, _ in page.elements if tag in ("script", "b")] == []


def test_report_without_labels_and_without_epochs(tmp_path):
    content = results()
    for key in ("gallery", "queries"):
        del content["clustering"][key]
    for key in ("cluster", "exhaustive"):
        del content["retrieval"][key]
    content["training"]["history"] = []
    content["provenance"]["data"]["class_names"] = []
    content["left_out"] = ["There are no labels: NMI, RI and ARI were left out."]
    page = report(tmp_path, content)
    assert "clustering scores" not in page.tables and "losses by epoch" not in page.tables
    assert page.tables["retrieval scores"][0] == ["", "in the cluster"]
    assert ["true neighbours kept, @5", "0.9314"] in page.tables["retrieval scores"]
    assert content["left_out"][0] in page.text
    assert "NMI" not in page.text.replace(content["left_out"][0], "")


def test_report_shows_missing_and_undefined_values(tmp_path):
    content = results()
    last = content["training"]["history"][-1]
    last["validation"] = None
    last["fit"]["loss"] = float("nan")
    del content["clustering"]["queries"]["ri"]
    content["training"]["history"] = [*EPOCHS[:2], last]
    content["training"]["history"].reverse()
    page = report(tmp_path, content)
    assert page.tables["losses by epoch"][1][2:] == ["nan", "0.1667", "0.6667", *["–"] * 4]
    assert ["RI", "0.8682", "–"] in page.tables["clustering scores"]


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


# The text


@pytest.mark.parametrize("name", [*HOSTILE, "猫" * 50, "e\u0301" * 30, ""])
@pytest.mark.parametrize("limit", [3, 4, 11, 24])
def test_shorten_fits(name, limit):
    short = text.shorten(name, limit)
    assert text.columns(short) <= limit and short.isprintable()
    assert short == text.printable(name) or "…" in short


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
