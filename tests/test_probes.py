"""Weighted kNN and the linear probe against NumPy and scikit-learn."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from retrieval_jax.probes import linear_probe, weighted_knn

GENERATOR = np.random.default_rng(0)
LABELS = GENERATOR.integers(0, 4, 300)
CENTRES = GENERATOR.normal(size=(4, 6))
POINTS = (CENTRES[LABELS] + GENERATOR.normal(0, 1.2, (300, 6))).astype(np.float32)
SCALED = (POINTS * [1, 1, 1, 100, 1, 1] + [0, 0, 5, 0, 0, 0]).astype(np.float32)


def test_votes_are_weighed_by_cosines():
    unit = POINTS.astype(np.float64) / np.linalg.norm(POINTS, axis=1, keepdims=True)
    cosines = unit[200:] @ unit[:200].T
    for k in (5, 200, 1000):
        nearest = np.argsort(-cosines, 1)[:, :k]
        votes = np.zeros((100, 4))
        for row, (ids, values) in enumerate(
            zip(nearest, np.take_along_axis(cosines, nearest, 1), strict=True)
        ):
            for i, value in zip(ids, values, strict=True):
                votes[row, LABELS[i]] += np.exp(value / 0.1)
        found = weighted_knn(POINTS[:200], LABELS[:200], POINTS[200:], k=k)
        np.testing.assert_array_equal(found, votes.argmax(1))
    with pytest.raises(ValueError, match="temperature"):
        weighted_knn(POINTS, LABELS, POINTS, temperature=0.0)


def test_the_linear_probe_is_logistic_regression_on_standardised_features():
    found = linear_probe(SCALED[:200], LABELS[:200], SCALED[200:], l2=1e-2)
    mean, deviation = SCALED[:200].mean(0), SCALED[:200].std(0)
    rows = (SCALED - mean) / deviation
    peer = LogisticRegression(C=1 / (200 * 1e-2), max_iter=1000, tol=1e-8)
    expected = peer.fit(rows[:200], LABELS[:200]).predict(rows[200:])
    assert (found == expected).mean() >= 0.99
    constant = np.concatenate([SCALED, np.ones((300, 1), np.float32)], 1)
    assert (linear_probe(constant[:200], LABELS[:200], constant[200:], l2=1e-2) == found).all()
