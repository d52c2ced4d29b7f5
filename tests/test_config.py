"""Every shipped config builds and takes a step; every wrong one is refused by a sentence."""

from functools import partial
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from retrieval_jax import config as configuration
from retrieval_jax.build import build_recipe
from retrieval_jax.config import check, check_against_data, check_hosts, default
from retrieval_jax.main import parse
from retrieval_jax.runtime.errors import UserError
from retrieval_jax.training.checkpoints import Checkpoints
from retrieval_jax.training.feed import DataSet
from retrieval_jax.training.logs import MetricLog
from retrieval_jax.training.loop import train

CONFIGS = Path(__file__).parents[1] / "configs"
FILES = sorted(
    f"{path}{system}"
    for path in CONFIGS.glob("*.py")
    for system in ([":vanilla", ":hint"] if path.name == "quickstart.py" else [""])
)


def arguments(file, *overrides):
    return [f"--config={file}", "--workdir=unused", *overrides]


@pytest.mark.parametrize("file", FILES, ids=lambda file: Path(file).name)
def test_every_config_builds_and_takes_a_step(file, tmp_path):
    c, _ = parse(arguments(file, "--config.training.epochs=1", "--config.training.batch_size=8"))
    check(c)
    shape, classes = ((8, 8, 1), 10) if c.data.source == "digits" else ((32, 32, 3), 10)
    check_against_data(c, shape, classes, fit=8, gallery=100)
    images = np.random.default_rng(0).integers(0, 256, (8, *shape), np.uint8)
    data = DataSet(images, np.arange(8, dtype=np.int32))
    recipe = build_recipe(c, shape[2], classes, fit=8)._replace(validation_batch_size=8)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    state, history = train(recipe, data, data, checkpoints, partial(MetricLog, tmp_path))
    assert state.step == 1
    assert np.isfinite(history[0]["fit"]["loss"])
    assert ("classification" in history[0]["fit"]) == (c.objective.classification_weight > 0)


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.py")), ids=lambda path: path.name)
def test_every_config_opens_with_command_hardware_and_score(file):
    lines = file.read_text().split('"""')[1]
    for word in ("Command:", "Hardware:", "Time:", "Score:", f"configs/{file.name}"):
        assert word in lines


def test_the_reference_is_the_protocol():
    c = default()
    o = c.optimizer
    assert (o.learning_rate, o.b1, o.b2, o.epsilon) == (1e-3, 0.9, 0.999, 1e-7)
    assert (c.training.epochs, c.training.batch_size) == (10, 32)
    assert (c.clustering.k, c.clustering.restarts, c.clustering.max_iterations) == (10, 10, 300)
    assert c.clustering.tolerance == 1e-4
    hint = parse(arguments(CONFIGS / "cifar10_hint.py"))[0]
    assert hint.data.queries == 3000 and hint.data.validation_fraction == 0.2
    assert hint.objective.reconstruction_weight == hint.objective.classification_weight == 1


def test_adam_is_the_textbooks():
    """Kingma and Ba 2015, algorithm 1, in float64."""
    c = default()
    optimizer = build_recipe(c, 1, 0, 64).optimizer
    params = {"w": np.array([[1.0, -2.0], [0.5, 3.0]], np.float32)}
    state = optimizer.init(params)
    w, m, v = params["w"].astype(np.float64), 0.0, 0.0
    for t in range(1, 6):
        gradient = np.sin(np.arange(4.0) + t).reshape(2, 2)
        updates, state = optimizer.update({"w": gradient.astype(np.float32)}, state, params)
        params = optax.apply_updates(params, updates)
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        w = w - 1e-3 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-7)
    np.testing.assert_allclose(params["w"], w, rtol=1e-6)


def test_decay_spares_biases_and_the_rate_follows_its_schedule():
    c = default()
    c.optimizer.weight_decay = 0.5
    c.optimizer.warmup_fraction = 0.25
    c.optimizer.decay = "cosine"
    c.training.epochs = 4
    optimizer = build_recipe(c, 1, 0, fit=64).optimizer  # 2 steps an epoch: 8 in all, 2 to rise
    params = {"kernel": np.ones((1, 1)), "bias": np.ones(1)}
    zero = jax.tree.map(np.zeros_like, params)
    state = optimizer.init(params)
    rates = []
    for _ in range(8):
        updates, state = optimizer.update(zero, state, params)
        assert updates["bias"] == 0
        rates.append(float(-updates["kernel"][0, 0] / 0.5 / 1e-3))
    cosine = [(1 + np.cos(np.pi * i / 6)) / 2 for i in range(6)]
    np.testing.assert_allclose(rates, [0, 0.5, *cosine], atol=1e-6)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("traning.epochs=3", "names what isn't there: 'traning'"),
        ("training.epoch=3", "names what isn't there: .*'epoch'"),
        ("training.epochs=three", "training.epochs"),
        ("training.epochs=1.5", "training.epochs"),
        ("augmentation.flip=maybe", "augmentation.flip"),
        ("data=5", "data"),
    ],
)
def test_wrong_keys_and_types_are_refused(override, says):
    with pytest.raises(UserError, match=says):
        parse(arguments(CONFIGS / "quickstart.py", f"--config.{override}"))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ([], "--config=FILE is missing"),
        (["--config=configs/none.py", "--workdir=x"], "can't be read"),
        ([f"--config={CONFIGS / 'quickstart.py'}"], "--workdir=DIR is missing"),
        ([f"--config={CONFIGS / 'quickstart.py'}:both", "--workdir=x"], "systems vanilla and hint"),
        (
            [f"--config={CONFIGS / 'quickstart.py'}", "--workdir=x", "stray"],
            "stray argument 'stray'",
        ),
        (["--confg=x"], "confg"),
    ],
)
def test_wrong_command_lines_are_refused(line, says):
    with pytest.raises(UserError, match=says) as caught:
        parse(line)
    assert "\n" not in str(caught.value)


def test_a_config_file_cannot_add_keys_or_change_types():
    with pytest.raises(AttributeError, match="epoch"):
        default().training.epoch = 1
    with pytest.raises(TypeError):
        default().training.epochs = "ten"


def refusal(key, value):
    c = default()
    with c.unlocked():
        part, name = key.split(".") if "." in key else (None, key)
        (c[part] if part else c)[name] = value
    with pytest.raises(UserError) as caught:
        check(c)
        check_against_data(c, (8, 8, 1), 10, fit=1000, gallery=1200)
    return str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.source", "imagenet"),
        ("optimizer.decay", "rise"),
        ("optimizer.name", "rmsprop"),
        ("optimizer.momentum", 0.5),  # Adam has none
        ("training.precision", "float16"),
        ("training.accumulation", 0),
        ("training.accumulation", 311),  # 310 batches in all
        ("training.profile_steps", 16),  # of 31 an epoch
        ("training.ema_decay", 1.0),
        ("augmentation.border", "wrap"),
        ("augmentation.brightness", 1.5),
        ("augmentation.cutout", -1),
        ("seed", -1),
        ("seed", 2**32),
        ("training.epochs", 0),
        ("training.batch_size", 30),  # four devices
        ("training.batch_size", 4000),
        ("embedding.batch_size", 0),
        ("clustering.k", 0),
        ("clustering.k", 1201),
        ("clustering.tolerance", float("nan")),
        ("retrieval.neighbours", 4),
        ("optimizer.learning_rate", 0.0),
        ("optimizer.learning_rate", float("inf")),
        ("optimizer.b2", 1.0),
        ("data.validation_fraction", 1.0),
        ("objective.label_smoothing", 1.0),
        ("objective.reconstruction_weight", -1.0),
        ("objective.reconstruction_weight", 0.0),
        ("model.encoder_widths", ()),
        ("model.encoder_widths", (8, -8)),
        ("model.encoder_widths", (8, 8, 8)),
        ("data.image_size", (32,)),
        ("augmentation.shift", 8),
    ],
)
def test_impossible_values_are_refused_by_name(key, value):
    assert key in refusal(key, value)


def test_keys_of_another_optimizer_are_refused_by_name():
    c = default()
    c.optimizer.name = "sgd"
    c.optimizer.b1 = 0.5
    with pytest.raises(UserError, match="optimizer.b1 is 0.5 .*'sgd', which has none; .*adam, ad"):
        check(c)
    c.optimizer.name = "muon"
    check(c)


def test_the_recipe_is_what_the_config_says():
    c = default()
    c.training.precision = "bfloat16"
    c.training.accumulation = 4
    c.training.ema_decay = 0.99
    c.optimizer.decay = "linear"
    c.augmentation.flip = True
    recipe = build_recipe(c, 3, 10, fit=64)  # 20 batches in all: 5 updates
    assert recipe.model.encoder.dtype == recipe.model.decoder.dtype == jax.numpy.bfloat16
    assert recipe.ema_decay == 0.99
    params = {"kernel": np.ones((1, 1), np.float32)}
    state = recipe.optimizer.init(params)
    moves, update = [], jax.jit(recipe.optimizer.update)
    for _ in range(20):
        updates, state = update(params, state, params)
        moves.append(float(-updates["kernel"][0, 0]) / 1e-3)
    expected = [0.0] * 20
    expected[3::4] = [1.0, 0.8, 0.6, 0.4, 0.2]
    np.testing.assert_allclose(moves, expected, rtol=1e-4)
    image = np.arange(6.0).reshape(1, 6, 1)
    seen = {bool(recipe.augment(jax.random.key(i), image)[0, 0, 0] == 5) for i in range(9)}
    assert seen == {True, False}


def test_impossible_data_is_refused():
    c = default()
    with pytest.raises(UserError, match="10×8 don't divide by 4"):
        check_against_data(c, (10, 8, 1), 0, fit=100, gallery=120)
    c.objective.classification_weight = 1.0
    with pytest.raises(UserError, match="has no labels"):
        check_against_data(c, (8, 8, 1), 0, fit=100, gallery=120)
    with pytest.raises(UserError, match="one class only"):
        check_against_data(c, (8, 8, 1), 1, fit=100, gallery=120)


def test_every_key_of_the_reference_says_what_it_is():
    source = Path(configuration.__file__).read_text()
    body = source.split("def default()")[1].split("return c.lock()")[0]
    keys = [line for line in body.splitlines() if " = " in line and "ConfigDict()" not in line]
    assert len(keys) > 30 and all("  # " in line for line in keys)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"processes": 2}, "distributed.processes is 2 but distributed.coordinator is not set"),
        ({"process": 0}, "distributed.process is 0 but distributed.coordinator is not set"),
        ({"coordinator": "host"}, "distributed.coordinator must be HOST:PORT, got 'host'"),
        ({"coordinator": ":80"}, "must be HOST:PORT"),
        ({"coordinator": "host:70000"}, "must be HOST:PORT"),
        ({"coordinator": "host:80"}, "distributed.processes must be at least 1, got 0"),
        ({"coordinator": "host:80", "processes": 2}, "process must be from 0 to 1, .* got -1"),
        ({"coordinator": "host:80", "processes": 2, "process": 2}, "from 0 to 1, .* got 2"),
        (
            {"coordinator": "host:80", "processes": 1, "process": 0, "timeout": 0},
            "distributed.timeout must be at least 1",
        ),
    ],
)
def test_hosts_that_cannot_meet_are_refused(overrides, says):
    c = default()
    c.distributed.update(overrides)
    with pytest.raises(UserError, match=says):
        check_hosts(c)


def test_one_host_and_many_are_accepted():
    c = default()
    check_hosts(c)
    c.distributed.update(coordinator="[::1]:80", processes=2, process=1)
    check_hosts(c)
