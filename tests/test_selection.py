"""Selection from columns against NumPy's stable sort and flatnonzero."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from retrieval_jax.numerics.selection import rows_of_true, threshold

pytestmark = pytest.mark.fast

INFINITE = jnp.full(2, jnp.inf)
jitted = jax.jit(threshold, static_argnums=(2, 3))


@settings(deadline=None, derandomize=True, max_examples=80)
@given(
    arrays.arrays(
        np.float32,
        (60, 2),
        elements=st.one_of(
            st.floats(-(2**99), 2**99, width=32, allow_subnormal=False),
            st.integers(-2, 2),
            st.just(np.inf),
        ),
    ),
    st.sampled_from([np.inf, 0.5, -1e9]),
)
def test_a_threshold_never_lets_through_too_many(values, ceiling):
    found = np.asarray(jitted(jnp.asarray(values), jnp.full(2, ceiling), 5, 9))
    finite = np.isfinite(values)
    counts = ((values <= found) & finite).sum(0)
    # Few enough is not searched further: ceilings are only lowered where they must be.
    allowed = ((values <= ceiling) & finite).sum(0)
    assert (counts <= 9).all() and (found <= ceiling).all()
    assert (found[allowed <= 9] == ceiling).all()
    # The largest count that ties permit, unless it is enough already.
    ordered = np.sort(np.where(finite, values, np.inf), axis=0)
    for column, count in enumerate(counts):
        distinct = len(np.unique(ordered[:10, column])) == 10
        assert count >= 5 or not distinct or count == allowed[column] or _close(ordered[:, column])


def _close(ordered: np.ndarray) -> bool:
    """Whether the tenth value is nearer to the fifth than 40 steps over their range resolve."""
    spread = ordered[np.isfinite(ordered)].max() - ordered[0]
    return ordered[9] - ordered[4] < 1e-5 * spread


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_a_threshold_is_found_at_any_scale(scale):
    values = scale * np.random.default_rng(0).normal(size=(500, 3)).astype(np.float32) ** 3
    found = threshold(jnp.asarray(values), jnp.full(3, jnp.inf), 20, 24)
    counts = (values <= np.asarray(found)).sum(0)
    assert ((counts >= 20) & (counts <= 24)).all()


def test_a_threshold_meets_an_exact_count():
    values = np.random.default_rng(0).normal(size=(400, 50)).astype(np.float32)
    found = threshold(jnp.asarray(values), jnp.full(50, jnp.inf), 9, 9)
    np.testing.assert_array_equal((values <= np.asarray(found)).sum(0), 9)


def test_a_threshold_of_nothing_is_the_ceiling():
    np.testing.assert_array_equal(threshold(jnp.full((4, 2), jnp.inf), INFINITE, 1, 2), INFINITE)


@pytest.mark.parametrize(("n", "most"), [(1, 1), (31, 40), (33, 5), (65, 65), (1000, 70)])
@pytest.mark.parametrize("share", [0.0, 0.07, 1.0])
def test_rows_of_true_equal_flatnonzero(n, most, share):
    mask = np.random.default_rng(n).random((n, 3)) < share
    expected = np.full((most, 3), n)
    for column in range(3):
        rows = np.flatnonzero(mask[:, column])[:most]
        expected[: len(rows), column] = rows
    np.testing.assert_array_equal(rows_of_true(jnp.asarray(mask), most), expected)
