"""The parts of k-means: seeding, passes with and without bounds, mini-batches, many devices."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.cluster
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from scipy.spatial.distance import cdist
from sklearn import datasets

from retrieval_jax.kmeans import (
    KMeansResult,
    MiniBatchState,
    kmeans,
    mini_batch_start,
    mini_batch_step,
)
from retrieval_jax.kmeans import _pruning as pruning
from retrieval_jax.kmeans._passes import Statistics, dense_passes, dense_statistics, move
from retrieval_jax.kmeans._points import BLOCK, Points, moments
from retrieval_jax.kmeans._pruning import pruned_passes
from retrieval_jax.kmeans.seeding import draw, farthest, greedy, groups, plus_plus, random_points
from retrieval_jax.numerics.distances import unit

KEY = jax.random.key(0)

squared_distances = partial(cdist, metric="sqeuclidean")  # in float64


def as_points(values, weights=None, chunk: int = 100, spherical: bool = False) -> Points:
    values = jnp.asarray(values, jnp.float32)
    weights = jnp.ones(len(values)) if weights is None else jnp.asarray(weights, jnp.float32)
    chunk = min(chunk, len(values))
    return Points(values, weights, jnp.zeros(values.shape[1]), chunk, spherical, None)


def low_rank(n: int, d: int, rank: int, seed: int = 0, noise: float = 0.05) -> np.ndarray:
    """Like embeddings: most of the variance in a few directions."""
    rng = np.random.default_rng(seed)
    inside = rng.normal(size=(n, rank)) * np.geomspace(5, 1, rank)
    points = inside @ np.linalg.qr(rng.normal(size=(d, rank)))[0].T
    return (points + noise * rng.normal(size=(n, d)) + 3).astype(np.float32)


def test_moments_are_right_to_rounding_far_from_zero():
    rng = np.random.default_rng(0)
    points = (1e4 + rng.normal(size=(100_001, 2)) * [1, 3]).astype(np.float32)
    weights = rng.integers(0, 3, len(points))
    mean, variance = jax.jit(lambda x, w: moments(as_points(x, w, 1000)))(points, weights)
    expected = np.average(points, axis=0, weights=weights)
    np.testing.assert_allclose(mean, expected, atol=1.1e-3)
    spread = np.average((points - expected) ** 2, axis=0, weights=weights).mean()
    assert float(variance) == pytest.approx(spread, rel=1e-4)


@pytest.mark.fast
def test_unit_rows_of_any_scale():
    rows = np.array([[3, 4], [3e-30, 4e-30], [3e30, 4e30], [0, 0]], np.float32)
    expected = [[0.6, 0.8], [0.6, 0.8], [0.6, 0.8], [0, 0]]
    np.testing.assert_allclose(unit(jnp.asarray(rows)), expected, rtol=1e-6)
    gradient = jax.grad(lambda rows: unit(rows).sum())(jnp.zeros((2, 3)))
    assert np.isfinite(gradient).all()


def test_greedy_seeds_are_as_good_as_scikit_learns():
    points, k = datasets.load_digits().data.astype(np.float32), 10
    seed = jax.jit(lambda key: greedy(as_points(points), key, k))
    ours = [points[seed(jax.random.key(i))] for i in range(30)]
    theirs = [sklearn.cluster.kmeans_plusplus(points, k, random_state=i)[0] for i in range(30)]
    assert all(len(np.unique(seeds, axis=0)) == k for seeds in ours)
    potentials = [
        np.mean([squared_distances(points, seeds).min(1).sum() for seeds in both])
        for both in (ours, theirs)
    ]
    assert potentials[0] <= 1.02 * potentials[1]


@pytest.mark.fast
def test_greedy_draws_and_chooses_by_weight_and_distance():
    """How often each triple of seeds is chosen, against its probability."""
    points = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)
    weights = np.array([1, 6, 2, 0.5, 0, 3])
    apart = squared_distances(points, points)

    def next_seed(seeds):
        nearest = apart[seeds].min(0)
        drawn = weights * nearest / (weights * nearest).sum()
        potentials = np.minimum(apart, nearest) @ weights
        worse = [drawn[potentials > potentials[j]].sum() for j in range(6)]
        return [(worse[j] + drawn[j]) ** 3 - worse[j] ** 3 for j in range(6)]  # best of 3 draws

    expected = np.zeros((6, 6, 6))
    for first in range(6):
        for second, probability in enumerate(next_seed([first])):
            after = probability * np.array(next_seed([first, second]))
            expected[first, second] = weights[first] / weights.sum() * after
    assert expected.sum() == pytest.approx(1)
    keys = jax.random.split(KEY, 40_000)
    seed = jax.jit(jax.vmap(lambda key: greedy(as_points(points, weights), key, 3)))
    found = np.zeros_like(expected)
    np.add.at(found, tuple(np.asarray(seed(keys)).T), 1 / len(keys))
    np.testing.assert_allclose(found, expected, atol=0.01)


@pytest.mark.parametrize("spherical", [False, True])
def test_groups_hold_all_the_weight_near_their_means(spherical):
    points = low_rank(3000, 12, 6)
    weights = np.random.default_rng(1).integers(0, 3, 3000)
    found = jax.jit(lambda: groups(as_points(points, weights, 512, spherical), KEY, 70)[:2])()
    means, mass = map(np.float64, found)
    rows = np.float64(points)
    if spherical:
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    assert len(mass) == 350 and mass.sum() == weights.sum()
    np.testing.assert_allclose(mass @ means, weights @ rows, rtol=1e-4, atol=1e-2)
    # As tight as the best of k-means, but for the factor that random groups cannot have.
    potential = weights @ squared_distances(rows, means[mass > 0]).min(1)
    fit = sklearn.cluster.KMeans(350, n_init=1, random_state=0).fit(rows, sample_weight=weights)
    assert potential < 1.5 * fit.inertia_
    shuffled = weights @ squared_distances(rows, rows[::9]).min(1)
    assert potential < 0.7 * shuffled


def test_groups_are_drawn_by_weight():
    """64 draws of one stratum each come to every one of 50 points that have all the weight."""
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.uniform(0, 1, (50, 2)), rng.uniform(9, 10, (950, 2))])
    weights = np.repeat([1.0, 1e-6], [50, 950])
    small = groups(as_points(points, weights), KEY, 64)
    means = np.asarray(small.values)[np.asarray(small.weights) > 0]
    assert squared_distances(points[:50], means).min(1).max() < 1e-9


def test_small_clusters_far_away_are_all_found():
    # 100 clusters of 3 points beside one of 20,000: hardly any is hit by chance.
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(100, 8)) * 30
    points = [
        0.1 * rng.normal(size=(20_000, 8)),
        np.repeat(centres, 3, 0) + rng.normal(size=(300, 8)),
    ]
    points = np.concatenate(points).astype(np.float32)
    seeds = jax.jit(lambda: plus_plus(as_points(points, chunk=4096), KEY, 110))()[0]
    assert (squared_distances(centres, seeds).min(1) < 30).all()


@pytest.mark.parametrize("spherical", [False, True])
def test_seeds_are_prepared_points_near_the_data(spherical):
    points = low_rank(500, 6, 3)
    data = as_points(points, spherical=spherical)
    data = data._replace(centre=jax.jit(lambda: moments(data)[0])())
    seeds = jax.jit(lambda: plus_plus(data, KEY, 7, 3))() + data.centre
    assert seeds.shape == (3, 7, 6)
    rows = np.asarray(unit(jnp.asarray(points))) if spherical else points
    norms = np.linalg.norm(seeds, axis=-1)
    assert not spherical or np.allclose(norms, 1, atol=1e-5)
    alone = squared_distances(rows, rows.mean(0, keepdims=True)).sum()
    for each in np.asarray(seeds):
        assert squared_distances(rows, each).min(1).sum() < 0.7 * alone
    assert len(np.unique(np.asarray(seeds).reshape(21, 6).round(4), axis=0)) > 7  # restarts differ


def test_draws_in_proportion_to_mass():
    n = 300  # three blocks, the last one ragged
    rng = np.random.default_rng(0)
    weights = rng.integers(0, 3, n)
    distances = np.where(rng.uniform(size=n) < 0.9, 0, rng.uniform(size=n)).astype(np.float32)
    mass = weights * distances
    points = as_points(np.zeros((n, 1)), weights)
    # The whole range, its ends included, by a grid as fine as the rounding of u.
    u = np.linspace(0, 1, 40_000, dtype=np.float32)
    for asked, expected in ((mass, mass), (0 * mass, weights)):  # no mass: by the weights alone
        row, mine = draw(points, jnp.asarray(asked, jnp.float32), jnp.asarray(u))
        assert mine.all() and (np.diff(row) >= 0).all()
        shares = np.bincount(row, minlength=n) / len(u)
        assert (shares[expected == 0] == 0).all()
        np.testing.assert_allclose(shares, expected / expected.sum(), atol=1e-4)


@pytest.mark.fast
def test_the_least_draw_skips_blocks_without_mass():
    mass = jnp.repeat(jnp.array([0.0, 0.0, 1.0]), BLOCK)
    row, mine = draw(as_points(np.zeros((3 * BLOCK, 1))), mass, jnp.zeros(1))
    assert row.tolist() == [2 * BLOCK] and mine.all()


def test_random_points_of_different_blocks_are_drawn_independently():
    rows = jnp.arange(4 * BLOCK)
    (drawn,) = random_points(as_points(rows[:, None]), KEY, 100)
    assert len(np.unique(np.asarray(drawn, int) % BLOCK)) > 50  # were they the same, 25
    assert set(np.asarray(drawn, int)[:, 0] // BLOCK) == {0, 1, 2, 3}


def test_random_points_differ_and_are_drawn_by_weight():
    weights = np.array([0, 1, 1, 2, 4, 0, 1, 1])
    rows = jnp.arange(8, dtype=jnp.float32)[:, None]
    choose = jax.jit(jax.vmap(lambda key: random_points(as_points(rows, weights), key, 3)[0]))
    drawn = np.asarray(choose(jax.random.split(KEY, 20_000))[..., 0], int)
    assert (np.diff(np.sort(drawn, 1), axis=1) > 0).all()
    first = np.bincount(drawn[:, 0], minlength=8) / len(drawn)
    np.testing.assert_allclose(first, weights / weights.sum(), atol=0.015)
    # The second, in proportion to the weights of those left.
    shares = weights / weights.sum()
    second = [
        sum(shares[i] * shares[j] / (1 - shares[i]) for i in range(8) if i != j) for j in range(8)
    ]
    np.testing.assert_allclose(
        np.bincount(drawn[:, 1], minlength=8) / len(drawn), second, atol=0.015
    )


@pytest.mark.parametrize(("seeding", "seed"), [("k-means++", plus_plus), ("random", random_points)])
def test_the_best_restart_is_kept(seeding, seed):
    values = np.random.default_rng(1).uniform(size=(203, 7)).astype(np.float32)  # no structure
    points = as_points(values, chunk=203)
    points = points._replace(centre=jax.jit(lambda: moments(points)[0])())
    seeds = jax.jit(lambda: seed(points, KEY, 5, 10))() + points.centre
    fit = jax.jit(lambda start: kmeans(KEY, values, 5, initial_centroids=start).inertia)
    alone = [float(fit(start)) for start in seeds]
    best = int(np.argmin(alone))
    assert alone[best] < 0.995 * np.median(alone) and 0 < best < 9  # restarts differ
    together = kmeans(KEY, values, 5, restarts=10, seeding=seeding)
    assert float(together.inertia) == pytest.approx(alone[best], rel=1e-4)


def test_a_point_that_rounding_keeps_from_its_centroid_is_not_far():
    points = 100 * np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    points[7] += 1
    centroids = jnp.asarray(points).at[7].add(-1)
    distances, rows = jax.jit(lambda centroids: farthest(as_points(points), centroids))(centroids)
    assert np.flatnonzero(distances).tolist() == [0]
    assert float(distances[0]) == pytest.approx(8, rel=0.01)
    np.testing.assert_array_equal(rows[0], points[7])


def test_the_farthest_point_goes_to_the_first_empty_cluster():
    points = as_points([[0], [1], [10], [50]], [1, 1, 1, 1], chunk=3)
    centroids = jnp.array([[500.0], [0.0], [600.0]])
    mass = jnp.array([0.0, 4.0, 0.0])
    sums = jnp.array([[0.0], [0.0], [0.0]])
    moved = move(points, centroids, Statistics(sums, mass, jnp.float32(0)))
    assert moved.tolist() == [[50.0], [0.0], [10.0]]
    without = points._replace(weights=jnp.array([1.0, 1.0, 1.0, 0.0]))
    moved = move(without, centroids, Statistics(sums, mass, jnp.float32(0)))
    assert moved.tolist() == [[10.0], [0.0], [1.0]]


@partial(jax.jit, static_argnums=(3, 4))
def lloyd_both_ways(values, weights, start, steps: int, spherical: bool = False):
    """Statistics of every step by the pruned passes, and those the dense ones say of the same."""
    points = as_points(values, weights, chunk=64, spherical=spherical)
    points = points._replace(centre=moments(points)[0])
    passes = pruned_passes(points, len(start))
    start = (unit(start) if spherical else start) - points.centre

    def step(state, _):
        before, centroids, statistics = state
        statistics = passes.next(centroids, before, statistics)
        moved = move(points, centroids, statistics)
        return (centroids, moved, statistics), (statistics, dense_statistics(points, centroids))

    _, (pruned, dense) = jax.lax.scan(step, (start, start, passes.start), length=steps)
    at = [partial(lambda i, leaf: leaf[i], i) for i in range(steps)]
    return [(jax.tree.map(take, pruned), jax.tree.map(take, dense)) for take in at]


@pytest.mark.parametrize(
    ("n", "d", "rank", "k", "distances"),
    [(700, 40, 40, 5, 1 << 20), (130, 6, 2, 30, 500), (90, 2, 1, 4, 1)],
)
def test_bounds_change_no_statistics(n, d, rank, k, distances, monkeypatch):
    monkeypatch.setattr(pruning, "_DISTANCES", distances)
    monkeypatch.setattr(pruning, "_TILE", min(512, max(1, distances // k)))
    values = low_rank(n, d, rank)
    weights = np.random.default_rng(1).integers(0, 3, n)
    start = values[np.random.default_rng(2).choice(n, k, replace=False)]
    rows = lloyd_both_ways(values, weights, start, 8)
    total = float(rows[0][1].inertia)
    for pruned, dense in rows:
        np.testing.assert_allclose(pruned.mass, dense.mass)
        np.testing.assert_allclose(pruned.sums, dense.sums, atol=2e-3)
        assert float(pruned.inertia) == pytest.approx(
            float(dense.inertia), rel=1e-5, abs=1e-6 * total
        )


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("few_dimensions", [False, True])
def test_bounds_of_centroids_that_moved_complete_the_others(few_dimensions, x64):
    rng = np.random.default_rng(3)
    values = low_rank(500, 24, 3).astype(np.float64 if x64 else np.float32)
    values[400:] = values[:100]  # coincident points
    values -= values.mean(0)
    centroids = values[rng.choice(400, 150, replace=False)] + 0.01
    centroids[140:] = centroids[:10]  # ties
    these = rng.uniform(size=150) < 0.3
    scores = cdist(values, centroids, "sqeuclidean") - (values.astype(float) ** 2).sum(1)[:, None]
    labels = np.where(rng.uniform(size=500) < 0.5, scores.argmin(1), rng.integers(0, 150, 500))
    own = scores[np.arange(500), labels].copy()
    scores[np.arange(500), labels] = np.inf
    known = np.where(these, np.inf, scores).min(1)
    with jax.enable_x64(x64):
        points = as_points(values)._replace(values=jnp.asarray(values), dtype=values.dtype)
        points = points._replace(weights=jnp.ones(500, values.dtype))
        arguments = jnp.asarray(centroids), jnp.asarray(these), jnp.asarray(labels, jnp.int32)
        lower = jnp.asarray(known, values.dtype)
        if few_dimensions:
            basis = pruning._basis(points)
            features = pruning._all_features(points, basis)
            found = pruning._bounds(points, *arguments, lower, basis, features)
        else:
            found = pruning._bounds(points, *arguments, lower)
    is_open, lower = map(np.asarray, found)
    assert lower.dtype == values.dtype
    slack = 1e-10 if x64 else 1e-2
    assert (lower <= scores.min(1) + slack).all()
    assert is_open[scores.min(1) <= own].all()  # ties as well
    if not few_dimensions:
        np.testing.assert_allclose(lower, scores.min(1), atol=slack)
        assert not is_open[scores.min(1) > own + slack].any()


@pytest.mark.parametrize("rank", [3, 40])
def test_bounds_that_are_kept_stay_below_all_other_centroids(rank):
    values = low_rank(600, 40, rank)
    values[300:330] = values[:30]  # coincident points
    weights = np.random.default_rng(1).integers(0, 3, 600)
    points = as_points(values, weights, chunk=64)
    points = points._replace(centre=jnp.asarray(values.mean(0)))
    passes = jax.jit(lambda: pruned_passes(points, 90).start)()
    step = jax.jit(lambda *state: pruned_passes(points, 90).next(*state))
    before = centroids = jnp.asarray(values[:90]) - points.centre  # some are equal
    skipped = 0
    for _ in range(12):
        passes = step(centroids, before, passes)
        labels, count, lower, _ = map(np.asarray, passes.memory)
        rows = np.float64(values) - np.asarray(points.centre)
        scores = cdist(rows, centroids, "sqeuclidean") - (rows**2).sum(1)[:, None]
        own = scores[np.arange(600), labels].copy()
        assert (own <= scores.min(1) + 1e-3).all()
        scores[np.arange(600), labels] = np.inf
        assert (lower <= scores.min(1) + 1e-3).all()
        skipped += int(count < 300) and float((centroids == before).all(1).mean()) > 0.25
        before, centroids = centroids, move(points, centroids, passes)
    assert skipped > 3  # most points were decided by what was known of centroids that stood still


def test_bounds_leave_little_open_where_the_rank_is_low():
    values = low_rank(6000, 64, 8)
    start = values[np.random.default_rng(2).choice(6000, 20, replace=False)]
    counts = [
        int(pruned.memory[1]) for pruned, _ in lloyd_both_ways(values, np.ones(6000), start, 12)
    ]
    assert 0 < max(counts[6:]) < 600


@settings(deadline=None, derandomize=True, max_examples=25)
@given(
    st.integers(0, 10_000),
    st.sampled_from([1e-12, 1e-3, 1.0, 1e12]),
    st.sampled_from([0, 100, 1e4]),
    st.booleans(),
)
def test_bounds_hold_for_any_points(seed, scale, offset, spherical):
    rng = np.random.default_rng(seed)
    values = low_rank(97, 5, 1 + seed % 5, seed, noise=rng.choice([0, 1e-3, 1]))
    values[rng.choice(97, 30)] = values[rng.choice(97, 30)]  # duplicates
    values = ((values + offset) * scale).astype(np.float32)
    start = values[rng.choice(97, 7)]  # some may be equal
    for pruned, dense in lloyd_both_ways(values, np.ones(97), start, 3, spherical):
        # Rounding may give a tie to either; the inertia says whether that is all.
        largest = float(jnp.abs(dense.sums).max())
        assert float(pruned.inertia) == pytest.approx(
            float(dense.inertia), rel=1e-4, abs=1e-5 * largest**2 / 97 + 1e-37
        )
        assert float(pruned.mass.sum()) == 97


def test_dense_passes_cluster_as_pruned_ones_do(monkeypatch):
    points = low_rank(500, 20, 4)
    start = points[:6]
    expected = kmeans(KEY, points, 6, initial_centroids=start, tolerance=0)
    monkeypatch.setattr("retrieval_jax.kmeans.fit.pruned_passes", dense_passes)
    found = jax.jit(
        lambda x: kmeans(KEY, x, 6, initial_centroids=start, tolerance=0, chunk_size=77)
    )
    found = found(points)
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_allclose(found.centroids, expected.centroids, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.history, expected.history, rtol=1e-5)
    assert int(found.iterations) == int(expected.iterations)


def sharded(devices: int, **options):
    """k-means over that many devices; points [n, d] with n a multiple of them."""
    mesh = Mesh(np.array(jax.devices()[:devices]), "x")
    result = KMeansResult(P(), P("x"), P(), P(), P(), P())
    fit = partial(kmeans, k=7, axis_name="x", **options)
    mapped = jax.shard_map(
        lambda key, points, weights: fit(key, points, weights=weights),
        mesh=mesh,
        in_specs=(P(), P("x"), P("x")),
        out_specs=result,
        check_vma=False,
    )
    return jax.jit(mapped)


@pytest.mark.parametrize(
    ("devices", "seeding"), [(1, "k-means++"), (3, "random"), (8, "k-means++")]
)
def test_any_number_of_devices_finds_the_same(devices, seeding):
    if devices > len(jax.devices()):
        pytest.skip("fewer devices here")
    n, real = 3072, 2900  # 24 blocks of 128 rows
    points, weights = low_rank(n, 9, 4), np.arange(n) < real
    points[~weights] = 0
    options = {"restarts": 3, "max_iterations": 6, "tolerance": 0, "seeding": seeding}
    expected = kmeans(KEY, points[:real], 7, **options)
    found = sharded(devices, **options)(KEY, points, weights)
    np.testing.assert_allclose(found.centroids, expected.centroids, rtol=1e-4, atol=1e-4)
    assert (found.labels[:real] == expected.labels).mean() > 0.999
    np.testing.assert_allclose(found.history, expected.history, rtol=1e-5)
    assert float(found.inertia) == pytest.approx(float(expected.inertia), rel=1e-5)


def test_empty_clusters_are_reseeded_across_devices():
    points = low_rank(256, 3, 2)
    points[201] += 500  # on the second device
    start = np.concatenate([points[:6], [[900, 900, 900]]]).astype(np.float32)
    options = {"initial_centroids": start, "max_iterations": 2, "tolerance": 0}
    found = sharded(2, **options)(KEY, points, np.ones(256))
    np.testing.assert_allclose(found.centroids[6], points[201], rtol=1e-5)
    expected = kmeans(KEY, points, 7, **options)
    np.testing.assert_allclose(found.centroids, expected.centroids, rtol=1e-4, atol=1e-4)


def test_a_batch_of_all_points_is_one_iteration():
    points = low_rank(200, 6, 3)
    start = points[:5]
    state = MiniBatchState(jnp.asarray(start), jnp.zeros(5), jnp.float32(0))
    state = mini_batch_step(state, points)
    expected = kmeans(KEY, points, 5, initial_centroids=start, max_iterations=1, tolerance=0)
    np.testing.assert_allclose(state.centroids, expected.centroids, rtol=1e-5, atol=1e-5)
    assert float(state.inertia) == pytest.approx(
        squared_distances(points, start).min(1).sum(), rel=1e-5
    )


@pytest.mark.parametrize("spherical", [False, True])
def test_batches_average_all_that_a_centroid_was_given(spherical):
    rng = np.random.default_rng(0)
    points, weights = low_rank(600, 6, 3), rng.integers(0, 3, 600)
    start = points[:4] / (np.linalg.norm(points[:4], axis=1, keepdims=True) if spherical else 1)
    state = MiniBatchState(jnp.asarray(start), jnp.zeros(4), jnp.float32(0))
    # A plain float64 account of Sculley's rule, a batch at a time.
    centroids, mass = np.float64(start), np.zeros(4)
    x = points / np.linalg.norm(points, axis=1, keepdims=True) if spherical else points
    for i in range(0, 600, 100):
        batch, w = x[i : i + 100].astype(np.float64), weights[i : i + 100]
        labels = squared_distances(batch, centroids).argmin(1)
        for j in range(4):
            mine = w * (labels == j)
            if mine.sum():
                mean = (mass[j] * centroids[j] + mine @ batch) / (mass[j] + mine.sum())
                mass[j] += mine.sum()
                centroids[j] = mean / np.linalg.norm(mean) if spherical else mean

    def step(state, batch):
        return mini_batch_step(
            state, batch[0], weights=batch[1], spherical=spherical
        ), state.inertia

    batches = points.reshape(6, 100, 6), weights.reshape(6, 100)
    state, _ = jax.jit(lambda s: jax.lax.scan(step, s, batches))(state)
    np.testing.assert_allclose(state.centroids, centroids, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(state.mass, mass)


def test_a_stream_comes_near_the_whole_fit():
    points = datasets.load_digits().data.astype(np.float32)
    rng = np.random.default_rng(0)
    state = mini_batch_start(KEY, points[rng.permutation(len(points))[:600]], 10)
    for _ in range(60):
        state = mini_batch_step(state, points[rng.integers(0, len(points), 256)])
    ours = squared_distances(points, state.centroids).min(1).sum()
    assert ours < 1.05 * sklearn.cluster.KMeans(10, n_init=3, random_state=0).fit(points).inertia_


def test_a_centroid_that_no_point_is_near_goes_to_a_far_point():
    state = MiniBatchState(jnp.array([[0.0], [900.0]]), jnp.zeros(2), jnp.float32(0))
    state = mini_batch_step(state, [[1.0], [2.0], [30.0]])
    assert state.centroids.tolist() == [[11.0], [30.0]] and state.mass.tolist() == [3.0, 0.0]


@pytest.mark.fast
def test_mini_batches_name_wrong_arguments():
    with pytest.raises(
        ValueError, match="k must be between 1 and the number of points, 2; it is 3"
    ):
        mini_batch_start(KEY, np.zeros((2, 2)), 3)
    state = mini_batch_start(KEY, np.eye(3), 2)
    with pytest.raises(ValueError, match="points have 2 features, but centroids have 3"):
        mini_batch_step(state, np.zeros((2, 2)))
    with pytest.raises(ValueError, match="points must be finite"):
        mini_batch_step(state, np.full((2, 3), np.nan))
    with pytest.raises(ValueError, match="weights must be one for each of the 2 points"):
        mini_batch_step(state, np.zeros((2, 3)), weights=np.ones(3))


def test_principal_components_are_orthonormal_whatever_the_points():
    for values in (low_rank(50, 20, 3), np.zeros((50, 20)), 1e30 * np.eye(20), np.ones((3, 1))):
        basis = np.asarray(pruning._basis(as_points(values)))
        np.testing.assert_allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=1e-5)
