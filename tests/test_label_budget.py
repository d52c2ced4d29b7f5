"""Budgets of labels: what is drawn, and that training sees nothing of the rest."""

from functools import partial

import jax
import numpy as np
import optax
import pytest
from test_training import Linear, assert_same, train_in

from retrieval_jax import build, config, pipeline
from retrieval_jax.data.labels import drawn, only
from retrieval_jax.models import Head, Network
from retrieval_jax.objectives import classification
from retrieval_jax.runtime import devices
from retrieval_jax.training.epoch import DataSet, Recipe, epoch_order
from retrieval_jax.training.labels import Budget, budgeted, typical
from retrieval_jax.training.step import create_state
from retrieval_jax.training.views import view

GENERATOR = np.random.default_rng(0)
LABELS = GENERATOR.permutation(np.repeat([0, 1, 2, -1], [40, 20, 10, 30])).astype(np.int32)


@pytest.mark.fast
def test_each_class_gives_its_share_and_a_larger_budget_keeps_a_smaller_ones():
    def counts(**budget):
        rows = drawn(LABELS, 0, **budget)
        assert len(np.unique(rows)) == len(rows) and (np.diff(rows) > 0).all()
        return np.bincount(LABELS[rows], minlength=3).tolist()

    assert counts(per_class=4) == [4, 4, 4]
    assert counts(per_class=15) == [15, 15, 10]
    assert counts(fraction=0.1) == [4, 2, 1]
    assert counts(fraction=0.01) == [1, 1, 1]
    assert counts() == [40, 20, 10]
    few, more = (set(drawn(LABELS, 3, per_class=n)) for n in (4, 9))
    assert few < more
    assert few != set(drawn(LABELS, 4, per_class=4))
    # Every image of a class is as likely.
    times = np.bincount(np.concatenate([drawn(LABELS, s, per_class=5) for s in range(400)]))
    assert times[LABELS[: len(times)] == 2].min() > 140


def test_the_typical_image_is_the_one_nearest_to_its_cells_centroid():
    centres = 20 * np.eye(3, 5)
    points = np.repeat(centres, [9, 7, 5], axis=0) + GENERATOR.normal(0, 1, (21, 5))
    cells = np.repeat(np.arange(3), [9, 7, 5])
    expected = [
        np.flatnonzero(cells == c)[
            np.linalg.norm(points[cells == c] - points[cells == c].mean(0), axis=1).argmin()
        ]
        for c in range(3)
    ]
    assert typical(jax.random.key(0), points.astype(np.float32), 3).tolist() == expected


def recipe(**changes):
    return Recipe(
        **{
            "model": Network(Linear(), head=Head(3)),
            "objective": {"classification": classification(1.0)},
            "optimizer": optax.adam(1e-2),
            "views": (view([]),),
            "epochs": 2,
            "batch_size": 16,
            "validation_batch_size": 16,
            "steps_per_call": 1,
            "seed": 0,
            "labelled_per_batch": 4,
        }
        | changes
    )


def test_hidden_labels_change_no_bit_of_a_training(tmp_path):
    images = GENERATOR.integers(0, 256, (100, 4, 8, 2), np.uint8)
    fit, validation = np.arange(80), np.arange(80, 100)
    budget = Budget(2, 1.0, typical=False)
    rows = drawn(LABELS[fit], 0, 2)
    hidden = np.setdiff1d(np.arange(100), rows)
    ended = []
    for seed in (None, 1):
        labels = LABELS.copy()
        found = budgeted(budget, labels, fit, 3, 0, embed=None)
        if seed is not None:
            labels[hidden] = np.random.default_rng(seed).permutation(labels[hidden])
            found = only(labels, rows)
        assert (found >= 0).sum() == 6
        sets = (DataSet(images[part], found[part]) for part in (fit, validation))
        ended.append(train_in(tmp_path / str(seed), recipe(), *sets))
    assert_same(ended[0].state, ended[1].state)
    rows = [[row["validation"], row["fit"]] for one in ended for row in one.history]
    assert rows[:2] == rows[2:]
    # Without a label in the validation there is no accuracy.
    assert "accuracy" not in rows[0][0] and rows[0][1]["classification"] > 0


@pytest.mark.fast
def test_a_run_hides_what_its_budget_has_not():
    c = config.default()
    c.data.labels_per_class = 3
    experiment = build.experiment(c)
    data, parts, _ = pipeline.load(experiment)
    labels = pipeline.training_labels(experiment, data, parts)
    known = np.flatnonzero(labels >= 0)
    assert np.isin(known, parts.fit).all()
    np.testing.assert_array_equal(labels[known], data.labels[known])
    assert np.bincount(labels[known]).tolist() == [3] * 10
    c.data.labels_per_class = 0
    everything = pipeline.training_labels(build.experiment(c), data, parts)
    np.testing.assert_array_equal(everything, data.labels)
    unlabelled = pipeline.training_labels(experiment, data._replace(labels=None), parts)
    assert (unlabelled == -1).all()


def test_the_choice_of_typical_images_reads_no_label():
    points = GENERATOR.normal(size=(80, 4)).astype(np.float32)
    fit = np.arange(80)
    full = np.where(LABELS < 0, 0, LABELS)
    known = budgeted(Budget(2, 1.0, True), full, fit, 3, 0, lambda: points) >= 0
    assert known.sum() == 6
    shuffled = budgeted(
        Budget(0, 6 / 80, True), GENERATOR.permutation(full), fit, 3, 0, lambda: points
    )
    np.testing.assert_array_equal(shuffled >= 0, known)


def test_every_batch_has_its_labelled_rows_and_uses_all_alike():
    labelled = np.array([3, 50, 60, 61, 79])
    made = recipe(labelled_per_batch=6)
    state = create_state(made.model, made.objective, made.optimizer, jax.random.key(0), (4, 8, 2))
    order = devices.mapped(partial(epoch_order, made, 80, labelled))
    epochs = []
    for step in (0, 5):
        copies = devices.on_every_device(state._replace(step=np.int32(step)))
        epochs.append(devices.whole_batches(order(copies)))
        assert epochs[-1].shape == (5, 16)
        assert np.isin(epochs[-1][:, 10:], labelled).all()
        times = [(epochs[-1][:, 10:] == row).sum() for row in labelled]
        assert times == [6] * 5
        assert len(np.unique(epochs[-1][:, :10])) == 50
    assert (epochs[0] != epochs[1]).any()
