import io
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_jax.kmeans import predict
from retrieval_jax.ranking import _cell_search as cluster_scan
from retrieval_jax.ranking import cell_files as index_files
from retrieval_jax.ranking import share_kept
from retrieval_jax.ranking._costs import RESIDUE
from retrieval_jax.ranking.cells import (
    add,
    build,
    group,
    own_ids,
    reconstruct,
    remove,
    search,
    search_cells,
)
from retrieval_jax.runtime.errors import UserError


def oracle(queries, cells, gallery, labels, k):
    """Float64: the gallery rows of the cells of each query, sorted by (distance, index)."""
    queries, gallery = np.float64(queries), np.float64(gallery)
    indices, distances = np.full((len(queries), k), -1), np.full((len(queries), k), np.inf)
    for i, query in enumerate(queries):
        rows = np.flatnonzero(np.isin(labels, cells[i]))
        squared = ((gallery[rows] - query) ** 2).sum(1)
        order = np.argsort(squared, kind="stable")[:k]
        indices[i, : len(order)] = rows[order]
        distances[i, : len(order)] = np.sqrt(squared[order])
    return indices, distances


def nearest_cells(queries, centroids, probes):
    squared = ((np.float64(queries)[:, None] - np.float64(centroids)) ** 2).sum(2)
    return np.argsort(squared, axis=1, kind="stable")[:, :probes]


def assert_found(found, expected, atol=1e-6):
    np.testing.assert_array_equal(found.indices, expected[0])
    np.testing.assert_allclose(found.distances, expected[1], rtol=1e-5, atol=atol)


def embeddings(seed, n, d=12):
    """Clustered rows whose cells differ much in size."""
    rng = np.random.default_rng(seed)
    means = 3 * rng.normal(size=(9, d))
    which = np.minimum(rng.geometric(0.3, n) - 1, 8)
    return (means[which] + rng.normal(size=(n, d)) * np.linspace(1, 0.1, d)).astype(np.float32)


GALLERY = embeddings(0, 2000)
CENTROIDS = GALLERY[[3, 50, 51, 700, 900, 1200, 1999]] + np.float32(0.01)
LABELS = np.asarray(predict(GALLERY, CENTROIDS))
QUERIES = np.concatenate([embeddings(1, 40), GALLERY[:20]])


@pytest.fixture(scope="module")
def index():
    return group(GALLERY, LABELS, CENTROIDS)


@pytest.mark.parametrize(("k", "probes"), [(3, 3), (70, 1)])
def test_the_nearest_rows_of_the_nearest_cells(index, k, probes):
    expected = oracle(QUERIES, nearest_cells(QUERIES, CENTROIDS, probes), GALLERY, LABELS, k)
    assert_found(search(index, QUERIES, k, probes=probes), expected)


def test_a_cell_that_takes_several_rounds():
    labels = np.where(np.arange(2000) % 50, 0, np.arange(2000) % 7)
    index = group(GALLERY, labels, CENTROIDS)
    cells = np.zeros((len(QUERIES), 1), int)
    expected = oracle(QUERIES, cells, GALLERY, labels, 70)
    assert_found(search_cells(index, QUERIES, cells, 70), expected)


def test_a_gallery_row_has_distance_0_to_itself(index):
    found = search(index, QUERIES, 3, probes=3)
    np.testing.assert_array_equal(found.indices[40:, 0], np.arange(20))
    np.testing.assert_array_equal(found.distances[40:, 0], 0)


def test_all_cells_are_the_exhaustive_search(index):
    expected = oracle(QUERIES, [range(7)] * len(QUERIES), GALLERY, LABELS, 70)
    assert_found(search(index, QUERIES, 70, probes=7), expected)


def test_recall_rises_with_probes(index):
    true = search(index, QUERIES, 70, probes=7)
    kept = [float(share_kept(true, search(index, QUERIES, 70, probes=p), 70)) for p in (1, 3, 7)]
    assert kept[0] < kept[1] < kept[2] == 1


def test_an_offset_does_no_harm():
    offset = np.float32(1e4)
    # On a grid that the sum keeps, so that the oracle sees the same points.
    gallery, queries, centroids = (
        np.round(a * 64) / 64 + offset for a in (GALLERY, QUERIES, CENTROIDS)
    )
    index = group(gallery, LABELS, centroids)
    expected = oracle(queries, nearest_cells(queries, centroids, 3), gallery, LABELS, 70)
    found = search(index, queries, 70, probes=3)
    np.testing.assert_allclose(found.distances, expected[1], rtol=1e-5, atol=1e-6)
    assert (np.asarray(found.indices) == expected[0]).mean() > 0.999


@settings(deadline=None, derandomize=True, max_examples=30)
@given(
    shape=st.sampled_from(
        # n, d, cells, probes, queries, k
        [(1, 1, 1, 1, 1, 1), (37, 2, 5, 2, 9, 3), (300, 3, 40, 2, 7, 29), (300, 1, 3, 3, 7, 11)]
    ),
    values=st.integers(1, 4),
    seed=st.integers(0, 2**32 - 1),
)
def test_ties_duplicates_empty_and_unequal_cells(shape, values, seed):
    n, d, count, probes, q, k = shape
    rng = np.random.default_rng(seed)
    gallery, queries = (rng.integers(0, values, (m, d)).astype(np.float32) for m in (n, q))
    labels = np.minimum(rng.geometric(0.2, n) - 1, count - 1)  # not the nearest: ties span cells
    cells = np.stack([rng.permutation(count)[:probes] for _ in range(q)])
    index = group(gallery, labels, rng.integers(0, values, (count, d)))
    assert_found(search_cells(index, queries, cells, k), oracle(queries, cells, gallery, labels, k))


@pytest.mark.parametrize("spread", ["few components", "isotropic", "some queries far away"])
def test_many_features_whatever_the_bounds_can_prove(spread):
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(1540, 48)).astype(np.float32)
    if spread == "few components":
        rows[:, 6:] *= np.float32(0.01)
    elif spread == "some queries far away":
        # In a space that the gallery hardly fills the bounds cannot tell its rows apart.
        rows[:, 6:] *= np.float32(0.1)
        rows[1500:1510, 6:] *= 300
    gallery, queries = rows[:1500], rows[1500:]
    labels = np.arange(1500) % 11
    index = group(gallery, labels, gallery[:11])
    few = float(index.basis.residue) < RESIDUE
    assert few == (spread != "isotropic")
    cells = np.stack([rng.permutation(11)[:4] for _ in queries])
    expected = oracle(queries, cells, gallery, labels, 30)
    assert_found(search_cells(index, queries, cells, 30), expected, atol=1e-4)


def test_more_equal_rows_than_any_spare():
    gallery = np.repeat(np.float32([[0.1, 0.7], [5.3, 5.1], [0.1, 0.7]]), [90, 200, 90], axis=0)
    labels = np.arange(len(gallery)) % 3
    found = search(group(gallery, labels, gallery[:3]), [[0.2, 0.3]], 100, probes=3)
    np.testing.assert_array_equal(found.indices[0], [*range(90), *range(290, 300)])


def test_one_chunk_of_queries_or_several(index, monkeypatch):
    whole = search(index, QUERIES, 3, probes=3)
    monkeypatch.setattr(cluster_scan, "_BOUNDS", 20_000)
    monkeypatch.setattr(cluster_scan, "_PER_BLOCK", 1)
    cluster_scan.scan.clear_cache()
    parts = search(index, QUERIES, 3, probes=3)
    cluster_scan.scan.clear_cache()
    np.testing.assert_array_equal(whole.indices, parts.indices)
    np.testing.assert_allclose(whole.distances, parts.distances, rtol=1e-6)


def test_under_jit_and_in_bounded_memory(index):
    found = jax.jit(lambda index, queries: search(index, queries, 3, probes=3))(index, QUERIES)
    assert_found(found, oracle(QUERIES, nearest_cells(QUERIES, CENTROIDS, 3), GALLERY, LABELS, 3))

    def memory(n, q):
        gallery, labels = np.zeros((n, 12), np.float32), np.zeros(n, np.int32)
        shapes = jax.eval_shape(group, gallery, labels, CENTROIDS)
        queries = jax.ShapeDtypeStruct((q, 12), jnp.float32)
        run = jax.jit(lambda index, queries: search(index, queries, 3, probes=3))
        return run.lower(shapes, queries).compile().memory_analysis().temp_size_in_bytes

    assert memory(1_000_000, 100_000) < 3 * 64 * 2**20 + 4 * 100_000 * (8 * 3 + 2 * 3 + 12)


def test_added_rows_are_as_if_grouped_anew(index):
    first = group(GALLERY[:1500], LABELS[:1500], CENTROIDS)
    twice = add(add(first, GALLERY[1500:1501]), GALLERY[1501:])
    for whole, added in zip(index[:6], twice[:6], strict=True):
        np.testing.assert_array_equal(whole, added)
    # Made by other compilations.
    np.testing.assert_allclose(index.features, twice.features, rtol=1e-3, atol=1e-3)


def test_build_groups_by_its_own_kmeans():
    index = build(jax.random.key(0), GALLERY, 7)
    rows = np.asarray(index.rows + index.origin)
    np.testing.assert_allclose(rows, GALLERY[index.indices], rtol=1e-6, atol=1e-6)
    labels = np.repeat(np.arange(7), np.diff(index.offsets))
    np.testing.assert_array_equal(labels, predict(GALLERY, index.centroids)[index.indices])


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda i: group(GALLERY, LABELS[:5], CENTROIDS), "labels must be integers of shape"),
        (lambda i: group(GALLERY, LABELS + 0.5, CENTROIDS), "labels must be integers"),
        (lambda i: group(GALLERY, LABELS + 1, CENTROIDS), r"labels must be in 0\.\.6"),
        (lambda i: group(GALLERY, LABELS - 1, CENTROIDS), r"labels must be in 0\.\.6"),
        (lambda i: group(GALLERY[:, 1:], LABELS, CENTROIDS), "gallery have 11 features"),
        (lambda i: add(i, GALLERY[:, 1:]), "rows have 11 features"),
        (lambda i: add(i, GALLERY * np.nan), "rows must be finite"),
        (lambda i: search(i, QUERIES[:, 1:], 1, probes=1), "queries have 11 features"),
        (lambda i: search(i, QUERIES * np.inf, 1, probes=1), "queries must be finite"),
        (lambda i: search(i, QUERIES, 1, probes=0), "probes must be between 1 and"),
        (lambda i: search(i, QUERIES, 1, probes=8), "number of cells, 7"),
        (lambda i: search(i, QUERIES, 0, probes=1), "k must be at least 1"),
        (lambda i: search_cells(i, QUERIES, [[1]], 1), "a row for each query"),
        (lambda i: search_cells(i, QUERIES[:1], [[7]], 1), r"cells must be in 0\.\.6"),
        (lambda i: search_cells(i, QUERIES[:1], [[1, 2, 1]], 1), "no cell twice"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_bad_input_is_refused(index, call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call(index)


@pytest.fixture
def saved(index, tmp_path):
    path = tmp_path / "gallery.npz"
    index_files.save(path, index)
    return path


def test_saved_and_loaded_bit_for_bit(index, saved):
    for before, after in zip(index[:6], index_files.load(saved)[:6], strict=True):
        assert before.dtype == after.dtype
        np.testing.assert_array_equal(before, after)
    assert [p.name for p in saved.parent.iterdir()] == ["gallery.npz"]


def refused(path, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        index_files.load(path)
    assert str(path) in str(caught.value)


def test_damaged_and_foreign_files_are_refused(saved):
    content = saved.read_bytes()
    for part in (b"", content[:5], content[:-1], content[:-30], content[: len(content) // 2]):
        saved.write_bytes(part)
        refused(saved, "is cut short or no index|is damaged")
    for place in (40, len(content) // 2, content.rindex(b"offsets.npy") - 20):
        saved.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        refused(saved, "is damaged")
    np.savez(saved, a=np.ones(3))
    refused(saved, "is not one that")
    refused(saved.with_name("none"), "can't be read")
    with zipfile.ZipFile(saved, "w") as archive:
        archive.writestr("rows", b"no array")
    refused(saved, "is damaged")
    np.savez(saved, rows=np.array([{}], object))  # a pickle
    refused(saved, "is damaged")


def test_claims_of_more_than_the_file_holds_are_refused(saved):
    np.savez_compressed(saved, rows=np.zeros(10**7))
    refused(saved, "is damaged")
    header = io.BytesIO()
    shape = {"descr": "<f4", "fortran_order": False, "shape": (2**40, 2**20)}
    np.lib.format.write_array_header_1_0(header, shape)
    with zipfile.ZipFile(saved, "w") as archive:
        archive.writestr("rows.npy", header.getvalue() + bytes(64))
    refused(saved, "is damaged")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"version": np.int32(1)}, "format version 1, not 2"),
        ({"version": np.ones(2)}, "is not one that"),
        ({"rows": None}, "shapes"),
        ({"more": np.ones(2)}, "shapes"),
        ({"rows": np.ones((12, 2000), np.float32)}, "shapes"),
        ({"rows": np.ones((2000, 12))}, "shapes"),
        ({"squares": np.ones(1999, np.float32)}, "shapes"),
        ({"offsets": np.ones(7, np.int32)}, "shapes"),
        ({"origin": np.ones((12, 1), np.float32)}, "shapes"),
        ({"crc32": np.uint32(5)}, "checksum"),
        ({"crc32": np.array("x")}, "checksum"),
    ],
)
def test_members_that_do_not_fit_are_refused(saved, change, sentence):
    with np.load(saved) as members:
        arrays = dict(members) | change
    np.savez(saved, **{name: array for name, array in arrays.items() if array is not None})
    refused(saved, sentence)


@pytest.mark.parametrize(
    ("name", "at", "value"),
    [
        ("offsets", 0, 1),
        ("offsets", 3, 2001),
        ("offsets", -1, 1999),
        ("indices", 0, 1999),
        ("indices", 5, -1),
        ("rows", (0, 0), np.nan),
        ("centroids", (0, 0), np.inf),
        ("squares", 7, 1e6),
    ],
)
def test_values_that_are_no_index_are_refused(index, tmp_path, name, at, value):
    path = tmp_path / "gallery.npz"
    index_files.save(path, index._replace(**{name: getattr(index, name).at[at].set(value)}))
    refused(path, "no index's")


@pytest.mark.parametrize(("name", "first"), [("offsets", 2), ("indices", 0)])
def test_values_out_of_order_are_refused(index, tmp_path, name, first):
    values = np.array(getattr(index, name))
    values[[first, first + 1]] = values[[first + 1, first]]
    path = tmp_path / "gallery.npz"
    index_files.save(path, index._replace(**{name: jnp.asarray(values)}))
    refused(path, "no index's")


def test_centroids_of_bfloat16_are_kept_as_float32():
    gallery, centroids = np.array([[0.1], [9.0]], "f4"), jnp.array([[0.1], [9.0]], jnp.bfloat16)
    index = group(gallery, [0, 1], centroids)
    assert index.centroids.dtype == jnp.float32 and index.origin.dtype == jnp.float32
    assert add(index, [[8.0]]).indices.tolist() == [0, 1, 2]


OWN = 2**40 + np.random.default_rng(5).permutation(2003)


def test_removed_rows_are_as_if_never_grouped(index):
    gone = np.array([1999, 0, 3, 700, *range(40, 60)])
    left, stay = remove(index, gone), np.delete(np.arange(2000), gone)
    expected = group(GALLERY[stay], LABELS[stay], CENTROIDS)
    for ours, theirs in zip(left[:6], expected[:6], strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_own_ids_stay_with_their_rows(tmp_path):
    gallery = np.concatenate([GALLERY, GALLERY[:3] + np.float32(0.5)])
    labels = np.asarray(predict(gallery, CENTROIDS))
    first = group(gallery[:1503], labels[:1503], CENTROIDS, ids=OWN[:1503])
    grown = add(first, gallery[1503:], ids=OWN[1503:])
    gone = [0, 7, 1800]
    left, stay = remove(grown, OWN[gone]), np.delete(np.arange(2003), gone)
    path = tmp_path / "own.npz"
    index_files.save(path, left)
    for kept in (left, index_files.load(path)):
        found = search(kept, QUERIES, 70, probes=1)
        cells = nearest_cells(QUERIES, CENTROIDS, 1)
        rows = oracle(QUERIES, cells, gallery[stay], labels[stay], 70)[0]
        names = own_ids(kept, found.indices)
        assert names.dtype == np.int64
        np.testing.assert_array_equal(names, np.where(rows < 0, -1, OWN[stay][rows]))
        asked = stay[[5, 5, 1990, 1000]]
        np.testing.assert_allclose(
            reconstruct(kept, OWN[asked]), gallery[asked], rtol=1e-6, atol=1e-6
        )


def test_rows_are_reconstructed_by_gallery_index(index):
    asked = [1999, 0, 0, 20]
    np.testing.assert_allclose(reconstruct(index, asked), GALLERY[asked], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda i, own: remove(i, [2000]), "no row of id 2000"),
        (lambda i, own: remove(own, [5]), "no row of id 5"),
        (lambda i, own: reconstruct(own, [5]), "no row of id 5"),
        (lambda i, own: remove(i, [3, 3]), "name no row twice"),
        (lambda i, own: remove(i, [0.5]), "ids must be integers"),
        (lambda i, own: remove(i, [-1]), "at least 0 and below 2"),
        (lambda i, own: remove(i, np.arange(2000)), "all of its 2000 rows"),
        (lambda i, own: own_ids(i, [0]), "the index has no ids"),
        (lambda i, own: add(own, GALLERY[:1]), "if the index has ids, and only then"),
        (lambda i, own: add(i, GALLERY[:1], ids=[1]), "if the index has ids, and only then"),
        (lambda i, own: add(own, GALLERY[:1], ids=OWN[:1]), "name no row twice"),
        (lambda i, own: group(GALLERY, LABELS, CENTROIDS, ids=[1]), "ids must be 2000 integers"),
        (lambda i, own: search(i, QUERIES, 2.0, probes=1), "k must be an integer"),
        (lambda i, own: search(i, QUERIES, 2, probes=1.0), "probes must be an integer"),
    ],
)
def test_ids_and_counts_that_are_none_are_refused(index, call, sentence):
    own = group(GALLERY, LABELS, CENTROIDS, ids=OWN[:2000])
    with pytest.raises(ValueError, match=sentence):
        call(index, own)


def test_files_of_wrong_ids_are_refused(index, tmp_path):
    path = tmp_path / "own.npz"
    own = group(GALLERY, LABELS, CENTROIDS, ids=OWN[:2000])
    index_files.save(path, own._replace(ids=own.ids.at[3].set(own.ids[4])))
    refused(path, "no index's")
    index_files.save(path, own)
    with np.load(path) as members:
        arrays = dict(members)
    for ids in (OWN[:5], OWN[:2000].astype(np.float64)):
        np.savez(path, **(arrays | {"ids": ids}))
        refused(path, "shapes")
    np.savez(path, **(arrays | {"ids": OWN[1999::-1]}))
    refused(path, "checksum")


def test_a_path_may_be_of_any_type(index, tmp_path):
    class Place:
        def __fspath__(self):
            return str(tmp_path / "a.npz")

    for path in (
        Place(),
        str(tmp_path / "a.npz"),
        tmp_path / "a.npz",
        epath.Path(tmp_path / "a.npz"),
    ):
        index_files.save(path, index)
        np.testing.assert_array_equal(index_files.load(path).rows, index.rows)


def test_a_file_of_float64_is_kept(tmp_path):
    path = tmp_path / "a.npz"
    with jax.enable_x64(True):
        wide = group(GALLERY.astype(float), LABELS, CENTROIDS)
        index_files.save(path, wide)
        assert index_files.load(path).rows.dtype == np.float64
        np.testing.assert_array_equal(index_files.load(path).rows, wide.rows)
    assert index_files.load(path).rows.dtype == np.float32
