"""What a report says of embeddings, against brute force; and that the page carries it."""

import base64
import io
import json
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.distance import cdist
from sklearn.neighbors import NearestNeighbors
from small_run import CLASSES, CLUSTERS, GALLERY, QUERIES, leave_run, small_space
from test_report import HOSTILE, Page, assert_inert

from retrieval_jax import metrics
from retrieval_jax.main import main
from retrieval_jax.ranking import Neighbours, share_kept
from retrieval_jax.report import explore
from retrieval_jax.report.examples import thumbnails
from retrieval_jax.report.page import make
from retrieval_jax.runtime.errors import printable


def searched(space, query, probes):
    """Gallery rows by distance in the clusters that the query is nearest to."""
    near = cdist(space.queries[[query]], space.centroids)[0].argsort()[:probes]
    far = cdist(space.queries[[query]], space.gallery)[0]
    order = far.argsort(kind="stable")
    return [row for row in order if space.gallery_clusters[row] in near]


@pytest.mark.fast
def test_more_clusters_keep_more_neighbours():
    space = small_space()
    kept = explore.kept_by_clusters(space)
    assert kept[-1] == 1.0 and kept[0] < 1
    for probes in range(1, CLUSTERS + 1):
        shares = [
            np.isin(space.exhaustive_indices[q, :10], searched(space, q, probes)).mean()
            for q in range(QUERIES)
        ]
        assert kept[probes - 1] == pytest.approx(np.mean(shares))
    whole, inside = (
        Neighbours(getattr(space, f"{kind}_indices"), getattr(space, f"{kind}_distances"))
        for kind in ("exhaustive", "cluster")
    )
    assert kept[0] == pytest.approx(float(share_kept(whole, inside, 10)))


@pytest.mark.parametrize("k", [GALLERY, 25, 6])
def test_candidates_are_what_any_number_of_clusters_finds(k):
    space, rows = small_space(k=k), np.array([0, 3, 4, 19])
    found = explore.candidates(space, rows)
    for i, query in enumerate(rows):
        part = slice(found.starts[i], found.starts[i + 1])
        indices, ranks, known = found.indices[part], found.ranks[part], found.known[i]
        assert (np.diff(found.distances[part]) >= 0).all()
        whole = indices[:known][:10]
        assert whole.tolist() == space.exhaustive_indices[query, :10].tolist()
        for probes in range(1, CLUSTERS + 1):
            sure = indices if probes == 1 else indices[:known]
            mine = sure[ranks[: len(sure)] < probes][:10]
            true = searched(space, query, probes)[: min(10, len(mine))]
            assert mine.tolist() == true
            if k == GALLERY:
                assert len(mine) == min(10, len(searched(space, query, probes)))


@pytest.mark.parametrize("n", [1, 2, 9, 40, 700])
def test_nearest_others(n):
    points = np.random.default_rng(n).normal(size=(n, 3)).astype(np.float32) + 50
    rows, distances = explore.nearest_others(points)
    k = min(8, n - 1)
    assert rows.shape == distances.shape == (n, k)
    if k:
        true, at = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(points).kneighbors()
        np.testing.assert_allclose(distances, true, rtol=1e-4, atol=1e-5)
        assert (rows == at).mean() > 0.99


def test_equal_points_are_their_own_neighbours_at_no_distance():
    rows, distances = explore.nearest_others(np.full((30, 4), 7.0))
    assert not distances.any() and all(len(set(row)) == 8 for row in rows.tolist())
    assert (rows != np.arange(30)[:, None]).all()


def test_judgements_by_classes_are_the_metrics():
    space = small_space()
    relevant, of = metrics.relevance(
        space.exhaustive_indices, space.query_labels, space.gallery_labels
    )
    precision, recall = explore.precision_recall(space, space.exhaustive_indices)
    for k in (1, 5, 25):
        assert precision[k - 1] == pytest.approx(float(metrics.precision_at_k(relevant, k)))
        assert recall[k - 1] == pytest.approx(float(metrics.recall_at_k(relevant, of, k)))
    mean = float(metrics.mean_average_precision_at_k(relevant, of, 25))
    assert explore.goodness(space).mean() == pytest.approx(mean, rel=1e-6)
    rows = explore.per_class(space)
    assert [row.label for row in rows] == list(range(CLASSES))
    for row in rows:
        mine = space.query_labels == row.label
        assert (row.queries, row.gallery) == (mine.sum(), (space.gallery_labels == row.label).sum())
        expected = float(metrics.precision_at_k(relevant[mine], 5))
        assert row.precision[1] == pytest.approx(expected)
        expected = float(metrics.recall_at_k(relevant[mine], of[mine], 25))
        assert row.recall[1] == pytest.approx(expected)
        inside = space.gallery_labels[space.cluster_indices[mine]] == row.label
        inside &= space.cluster_indices[mine] >= 0
        assert row.precision[0] == pytest.approx(inside[:, :5].mean())


@pytest.mark.fast
def test_hubs_leaks_and_doubtful_labels():
    space = small_space()
    counts = Counter(space.exhaustive_indices[:, :10].ravel().tolist())
    assert [n for _, n in explore.hubs(space)] == [n for _, n in counts.most_common(24)]
    assert all(counts[row] == n for row, n in explore.hubs(space))
    far = cdist(space.queries, space.gallery)
    assert [q for q, *_ in explore.leaks(space)] == far.min(1).argsort()[:24].tolist()
    for q, row, distance in explore.leaks(space):
        assert far[q, row] == distance == far[q].min()
    labels, near = space.query_labels, space.gallery_labels[space.exhaustive_indices[:, :10]]
    expected = {}
    for q in range(QUERIES):
        other, votes = Counter(near[q].tolist()).most_common(1)[0]
        if votes > 5 and other != labels[q]:
            expected[q] = other, votes / 10
    assert expected and {q: rest for q, *rest in explore.doubtful(labels, near)} == {
        q: list(rest) for q, rest in expected.items()
    }


@pytest.mark.fast
@pytest.mark.parametrize("labelled", [True, False])
def test_clusters_are_described(labelled):
    space = small_space(labelled)
    far = cdist(space.gallery, space.centroids)
    found = explore.describe_clusters(space)
    assert [one.size for one in found] == sorted((one.size for one in found), reverse=True)
    for one in found:
        members = np.flatnonzero(space.gallery_clusters == one.number)
        order = members[far[members, one.number].argsort()]
        assert one.size == len(members)
        assert one.queries == (space.query_clusters == one.number).sum()
        assert one.typical == order[:12].tolist()
        assert one.odd == order[12:][-6:][::-1].tolist()
        between = cdist(space.centroids, space.centroids)[one.number]
        assert [c for c, _ in one.near] == between.argsort()[1:4].tolist()
        if labelled:
            assert dict(one.classes) == Counter(space.gallery_labels[members].tolist())
        else:
            assert one.classes == []


@pytest.mark.parametrize(
    ("count", "shape"), [(1030, (8, 8, 1)), (40, (100, 150, 3)), (3, (5, 4, 2))]
)
def test_thumbnails_show_the_images(count, shape):
    images = np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)
    rows = np.arange(count)[::-1]
    found = thumbnails(images, rows)
    width, height = found["thumbnail_size"].tolist()
    assert max(width, height) == min(64, max(shape[:2]))
    for i in (0, count // 2, count - 1):
        with Image.open(io.BytesIO(found[f"sheet_{i >> 10}"].tobytes())) as sheet:
            left, top = (i & 31) * width, ((i & 1023) >> 5) * height
            shown = np.asarray(sheet.crop((left, top, left + width, top + height)), float)
        image = images[rows[i]].astype(float)
        grey = np.repeat(np.floor(image.mean(-1, keepdims=True)), 3, -1)
        image = image if shape[-1] == 3 else grey
        if max(shape) <= 64:
            np.testing.assert_array_equal(shown, image)
        else:
            assert abs(shown.mean() - image.mean()) < 4


def unpack(value):
    numbers = np.frombuffer(base64.b64decode(value["data"]), f"<u{value['bytes']}")
    return numbers * value["scale"] if value["scale"] != 1 else numbers.astype(int)


def test_the_page_carries_what_was_found(tmp_path):
    space = small_space()
    images = leave_run(tmp_path, space)
    code = (
        "import sys; from retrieval_jax.report.page import main; main(sys.argv[1:]); "
        "assert not {'jax', 'openTSNE', 'sklearn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    source = (tmp_path / "report.html").read_text()
    assert source == make(tmp_path).read_text(), "the same page each time"
    page = Page(source)
    assert_inert(page, source)
    data = json.loads(page.data["items"])
    n, cluster, label = data["gallery"], unpack(data["cluster"]), unpack(data["label"])
    rows = [int(name.removesuffix(".png")) for name in data["names"]]
    assert rows[n:] == list(range(GALLERY, GALLERY + QUERIES))
    clusters = np.concatenate([space.gallery_clusters, space.query_clusters])
    labels = np.concatenate([space.gallery_labels, space.query_labels])
    np.testing.assert_array_equal(cluster, clusters[rows])
    np.testing.assert_array_equal(label, labels[rows])
    starts, near, far = (unpack(data[key]) for key in ("starts", "neighbours", "distances"))
    for i, query in enumerate(range(QUERIES)):
        part = slice(starts[n + i], starts[n + i] + 10)
        assert [rows[j] for j in near[part]] == space.exhaustive_indices[query, :10].tolist()
        expected = space.exhaustive_distances[query, :10]
        np.testing.assert_allclose(far[part], expected, atol=far.max() / 65535)
    shown = np.array(rows[:n])
    others = cdist(space.gallery[shown], space.gallery[shown])
    np.fill_diagonal(others, np.inf)
    assert [near[starts[i]] for i in range(n)] == others.argmin(1).tolist()
    mapped, x, y = (unpack(data[key]) for key in ("mapped", "x", "y"))
    placed = np.load(tmp_path / "map.npz")
    where = {rows[item]: point for item, point in zip(mapped, np.stack([x, y], 1), strict=True)}
    theirs = np.concatenate([placed["positions"], placed["queries"]])
    middle = (theirs.min(0) + theirs.max(0)) / 2
    theirs = 0.5 + (theirs - middle) / np.ptp(theirs, axis=0).max()
    mine = np.array([where[row] for row in [*placed["rows"], *rows[n:]]])
    np.testing.assert_allclose(mine, theirs, atol=2e-5)
    width, height = data["size"]
    with Image.open(io.BytesIO(base64.b64decode(data["sheets"][0]))) as sheet:
        assert sheet.format == "WEBP"
        for item, number in enumerate(unpack(data["thumbnails"]) - 1):
            left, top = (number & 31) * width, (number >> 5) * height
            crop = sheet.crop((left, top, left + width, top + height))
            np.testing.assert_array_equal(np.asarray(crop), images[rows[item]])
    table = page.tables["classes"][1:]
    assert [row[:3] for row in table][0] == ["zero", "5", "38"]
    assert [float(row[4]) for row in table] == pytest.approx(
        [row.precision[1] for row in explore.per_class(space)], abs=5e-5
    )
    curve = json.loads(page.data["charts"])[-1]["series"][1]["points"]
    precision, recall = explore.precision_recall(space, space.exhaustive_indices)
    np.testing.assert_allclose(curve, np.stack([recall, precision], 1))


def test_a_page_without_labels_map_or_arrays(tmp_path):
    leave_run(tmp_path, small_space(labelled=False), points=0)
    page = Page(make(tmp_path).read_text())
    data = json.loads(page.data["items"])
    assert "label" not in data and "mapped" not in data and "doubtful" not in data
    ids = {attributes.get("id") for _, attributes in page.elements}
    assert {"ask", "clusters", "hubs", "leaks"} <= ids
    assert not {"map", "doubtful", "ask-class"} & ids and "classes" not in page.tables
    (tmp_path / "neighbours.npz").unlink()
    page = Page(make(tmp_path).read_text())
    assert "items" not in page.data and "losses by epoch" in page.tables


def test_names_in_the_data_end_no_script(tmp_path):
    names = [f"{i}{HOSTILE[i % len(HOSTILE)]}</script><b>" for i in range(GALLERY + QUERIES)]
    leave_run(tmp_path, small_space(), class_names=map(printable, HOSTILE), names=names)
    source = make(tmp_path).read_bytes().decode()
    page = Page(source)
    assert_inert(page, source)
    data = json.loads(page.data["items"])
    assert data["classes"] == [printable(name) for name in HOSTILE]
    assert set(data["names"]) <= set(map(printable, names))


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("neighbours.npz", {"exhaustive_indices": np.full((QUERIES, 25), GALLERY)}),
        ("clusters.npz", {"gallery": np.zeros(3, int)}),
        ("embeddings.npz", {"gallery": np.zeros((GALLERY, 2))}),
        ("embeddings.npz", {"gallery": np.full((GALLERY, 5), np.nan)}),
        ("examples.npz", {"query_classes": np.full(QUERIES, -5)}),
        ("map.npz", {"positions": np.zeros((2, 2))}),
    ],
)
def test_arrays_of_another_run_get_one_sentence(tmp_path, capsys, file, change):
    leave_run(tmp_path, small_space())
    arrays = dict(np.load(tmp_path / file))
    np.savez(tmp_path / file, **(arrays | change))
    assert main(["report", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "repeat the run's command" in error and error.count("\n") == 1
