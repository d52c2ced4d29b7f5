"""Every shipped config builds and takes a step; every wrong one is refused by a sentence."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from retrieval_jax import build, config
from retrieval_jax.build import Sizes
from retrieval_jax.config import check, check_hosts, default
from retrieval_jax.main import parse
from retrieval_jax.objectives import Term
from retrieval_jax.runtime import devices
from retrieval_jax.runtime.errors import UserError
from retrieval_jax.training.checkpoints import Checkpoints
from retrieval_jax.training.epoch import DataSet, fit_batch
from retrieval_jax.training.logs import MetricLog
from retrieval_jax.training.loop import train
from retrieval_jax.training.step import create_state, train_step

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
    c, _ = parse(arguments(file, "--config.training.batch_size=8"))
    c.training.epochs = min(c.training.epochs, 1)
    c.training.labelled_per_batch = min(c.training.labelled_per_batch, 2)
    build.experiment(c)
    shape = (8, 8, 1) if c.data.source == "digits" else (32, 32, 3)
    hint = c.objective.classification.weight > 0
    recipe = build.recipe(c, Sizes(shape, 10, fit=64))
    assert list(recipe.objective) == [name for name, of in c.objective.items() if of.weight > 0]
    assert (recipe.model.head is not None) == hint
    if not hint or c.data.source != "digits":  # the step is a part of it, or compiles for longer
        return
    images = np.random.default_rng(0).integers(0, 256, (8, *shape), np.uint8)
    data = DataSet(images, np.arange(8, dtype=np.int32))
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    trained = train(recipe, data, data, checkpoints, MetricLog(tmp_path, {}))
    assert trained.state.step == 1
    assert np.isfinite(trained.history[0]["fit"]["loss"])
    assert set(trained.history[0]["fit"]) == {"loss", "reconstruction", "classification"}


RECIPES = ("free_cpu", "free_cpu_long", "few_cpu", "full_cpu", "free_gpu", "few_gpu", "full_gpu")


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_takes_ten_steps(name):
    """With tiny networks and batches, on two devices that are an axis of one program."""
    c, _ = parse(arguments(CONFIGS / f"cifar10_{name}.py", "--config.training.batch_size=8"))
    c.training.labelled_per_batch = min(c.training.labelled_per_batch, 2)
    for widths in (c.model.projector, c.model.predictor):
        widths.widths = (8, 4)
    if c.model.encoder.name == "small_resnet":
        c.model.encoder.small_resnet.widths = (4, 6, 8)
    else:
        c.model.encoder[c.model.encoder.name].width = 2
    build.experiment(c)
    recipe = build.recipe(c, Sizes((32, 32, 3), 10, fit=16))
    rng = np.random.default_rng(0)
    data = DataSet(
        rng.integers(0, 256, (16, 32, 32, 3), np.uint8), rng.integers(-1, 10, 16).astype(np.int32)
    )
    state = create_state(
        recipe.model,
        recipe.objective,
        recipe.optimizer,
        jax.random.key(0),
        (32, 32, 3),
        averaged=recipe.averaged,
    )
    before = state.params

    def step(state, rows):
        def on_device(rows):
            return train_step(
                state,
                fit_batch(recipe, state.step, DataSet(*map(jnp.asarray, data)), rows, rows),
                model=recipe.model,
                objective=recipe.objective,
                optimizer=recipe.optimizer,
                key=jax.random.key(1),
                axis_name=devices.AXIS,
                decay=recipe.ema_decay,
            )

        mapped = jax.vmap(on_device, axis_name=devices.AXIS)
        return jax.tree.map(lambda x: x[0], mapped(rows.reshape(2, -1)))

    compiled = devices.quick_jit(step)
    for _ in range(10):
        state, metrics = compiled(state, rng.choice(16, 8, replace=False).astype(np.int32))
    assert state.step == 10 and all(np.isfinite(value) for value in metrics.values())
    assert set(metrics) == {"loss", *recipe.objective}
    moved = [
        np.abs(a - b).max()
        for a, b in zip(*map(jax.tree.leaves, (state.params, before)), strict=True)
    ]
    assert max(moved) > 0 and np.isfinite(moved).all()


@pytest.mark.parametrize("name", [name for name in RECIPES if name.endswith("gpu")])
def test_the_whole_step_of_a_gpu_recipe_is_exported(name):
    """For CUDA and TPU, with its own networks and batch: from shapes, nothing is computed."""
    c, _ = parse(arguments(CONFIGS / f"cifar10_{name}.py"))
    build.experiment(c)
    recipe = build.recipe(c, Sizes((32, 32, 3), 10, fit=45_600))
    key = jax.random.key(0)
    create = partial(create_state, recipe.model, recipe.objective, recipe.optimizer)

    def step(state, data, rows, seed):
        return train_step(
            state,
            fit_batch(recipe, state.step, data, rows, rows),
            model=recipe.model,
            objective=recipe.objective,
            optimizer=recipe.optimizer,
            key=jax.random.key(seed),
            axis_name=devices.AXIS,
            decay=recipe.ema_decay,
        )

    mapped = jax.shard_map(
        step,
        mesh=Mesh(np.array(jax.devices()[:1]), devices.AXIS),
        in_specs=(P(), P(), P(devices.AXIS), P()),
        out_specs=P(),
        check_vma=False,
    )
    state = jax.eval_shape(lambda: create(key, (32, 32, 3), averaged=recipe.averaged))
    of = jax.ShapeDtypeStruct
    data = DataSet(of((45_600, 32, 32, 3), np.uint8), of((45_600,), np.int32))
    rows = of((c.training.batch_size,), np.int32)
    exported = export.export(jax.jit(mapped), platforms=["cuda", "tpu"])(
        state, data, rows, of((), np.uint32)
    )
    module = exported.mlir_module()
    assert exported.platforms == ("cuda", "tpu") and "bf16" in module
    assert f"tensor<{c.training.batch_size}xi32>" in module


@pytest.mark.fast
@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.py")), ids=lambda path: path.name)
def test_every_config_opens_with_command_hardware_and_score(file):
    lines = file.read_text().split('"""')[1]
    for word in ("Command:", "Hardware:", "Time:", "Score:", f"--config={file.stem}"):
        assert word in lines


@pytest.mark.fast
def test_the_reference_is_the_protocol():
    c = default()
    o = c.optimizer
    assert (o.name, o.learning_rate, o.adamw.weight_decay) == ("adamw", 1e-3, 0)
    assert (o.adamw.b1, o.adamw.b2, o.adamw.epsilon) == (0.9, 0.999, 1e-7)
    assert (c.training.epochs, c.training.batch_size) == (10, 32)
    assert (c.clustering.k, c.clustering.restarts, c.clustering.max_iterations) == (10, 10, 300)
    assert c.clustering.tolerance == 1e-4
    hint = parse(arguments(CONFIGS / "cifar10_hint.py"))[0]
    assert hint.data.queries == 3000 and hint.data.validation_fraction == 0.2
    assert hint.objective.reconstruction.weight == hint.objective.classification.weight == 1


@pytest.mark.fast
def test_adam_is_the_textbooks():
    """Kingma and Ba 2015, algorithm 1, in float64."""
    optimizer = build.recipe(default(), Sizes((8, 8, 1), 0, fit=64)).optimizer
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


@pytest.mark.fast
def test_decay_spares_biases_and_the_rate_follows_its_schedule():
    c = default()
    c.optimizer.adamw.weight_decay = 0.5
    c.optimizer.warmup_fraction = 0.25
    c.optimizer.decay = "cosine"
    c.training.epochs = 4
    recipe = build.recipe(c, Sizes((8, 8, 1), 0, fit=64))  # 2 steps an epoch: 8 in all, 2 to rise
    params = {"kernel": np.ones((1, 1)), "bias": np.ones(1)}
    zero = jax.tree.map(np.zeros_like, params)
    state = recipe.optimizer.init(params)
    rates = []
    for _ in range(8):
        updates, state = recipe.optimizer.update(zero, state, params)
        assert updates["bias"] == 0
        rates.append(float(-updates["kernel"][0, 0] / 0.5 / 1e-3))
    cosine = [(1 + np.cos(np.pi * i / 6)) / 2 for i in range(6)]
    np.testing.assert_allclose(rates, [0, 0.5, *cosine], atol=1e-6)


@pytest.mark.fast
@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("traning.epochs=3", "names what isn't there: 'traning'"),
        ("training.epoch=3", "names what isn't there: .*'epoch'"),
        ("training.epochs=three", "training.epochs"),
        ("training.epochs=1.5", "training.epochs"),
        ("views.main.flip.probability=maybe", "views.main.flip.probability"),
        ("objective.classification.make=1", "objective.classification.make"),
        ("data=5", "data"),
    ],
)
def test_wrong_keys_and_types_are_refused(override, says):
    with pytest.raises(UserError, match=says):
        parse(arguments(CONFIGS / "quickstart.py", f"--config.{override}"))


@pytest.mark.fast
@pytest.mark.parametrize(
    ("line", "says"),
    [
        ([], "--config=CONFIG is missing"),
        (["--config=configs/none.py", "--workdir=x"], "isn't there; give an existing file"),
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


@pytest.mark.fast
def test_a_config_file_cannot_add_keys_or_change_types():
    for locked in (default(), default().objective.classification, default().views.main):
        with pytest.raises(AttributeError, match="epoch"):
            locked.epoch = 1
    with pytest.raises(TypeError):
        default().training.epochs = "ten"
    with pytest.raises(TypeError):
        default().objective.classification.label_smoothing = "much"


SIZES = Sizes((8, 8, 1), 10, fit=1000)


def refusal(key, value, sizes=SIZES):
    c = default()
    with c.unlocked():
        *parts, name = key.split(".")
        part = c
        for step in parts:
            part = part[step]
        part[name] = value
    with pytest.raises(UserError) as caught:
        build.experiment(c)
        build.recipe(c, sizes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.fast
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.source", "imagenet"),
        ("data.directory", "s3://bucket"),
        ("optimizer.decay", "rise"),
        ("optimizer.name", "rmsprop"),
        ("optimizer.sgd.momentum", 0.5),  # it is not chosen
        ("optimizer.adamw.b2", 1.0),
        ("optimizer.learning_rate", 0.0),
        ("optimizer.learning_rate", float("inf")),
        ("model.encoder.name", "transformer"),
        ("model.encoder.convolutional.widths", ()),
        ("model.encoder.convolutional.widths", (8, -8)),
        ("model.encoder.convolutional.widths", (8, 8, 8, 8)),  # 16 does not divide the sides
        ("model.encoder.convolutional.bottleneck", 0),
        ("model.decoder.widths", (8,)),
        ("model.decoder.widths", (8, 8, 8)),
        ("model.decoder.momentum", 1.0),
        ("training.precision", "float16"),
        ("training.monitor", "accuracy"),
        ("training.accumulation", 0),
        ("training.accumulation", 311),  # 310 batches in all
        ("training.profile_steps", 16),  # of 31 an epoch
        ("training.ema_decay", 1.0),
        ("training.epochs", -1),
        ("training.batch_size", 30),  # eight devices
        ("training.batch_size", 4000),
        ("views.main.count", 0),
        ("views.main.flip.probability", 1.5),
        ("seed", -1),
        ("seed", 2**32),
        ("embedding.batch_size", 0),
        ("embedding.average", True),  # there is no average
        ("clustering.k", 0),
        ("clustering.tolerance", float("nan")),
        ("retrieval.neighbours", 4),
        ("data.validation_fraction", 1.0),
        ("data.image_size", (32,)),
        ("data.image_size", (32, "a")),
        ("data.image_size", (32.0, 32)),
        ("data.image_size", ((32,), 32)),
        ("model.encoder.convolutional.widths", ("a",)),
        ("objective.reconstruction.weight", -1.0),
        ("objective.reconstruction.weight", 0.0),
    ],
)
def test_impossible_values_are_refused_by_name(key, value):
    assert key in refusal(key, value)


@pytest.mark.fast
def test_a_term_that_is_left_out_is_not_checked_and_one_that_is_there_is():
    c = default()
    c.objective.classification.label_smoothing = 1.0
    build.experiment(c)
    assert set(build.recipe(c, SIZES).objective) == {"reconstruction"}
    c.objective.classification.weight = 1.0
    with pytest.raises(UserError, match="^objective.classification.label_smoothing must be at le"):
        build.experiment(c)


@pytest.mark.fast
def test_impossible_data_is_refused():
    assert "the images are 10×8" in refusal("seed", 0, Sizes((10, 8, 1), 10, fit=100))
    for classes, says in ((0, "has no labels"), (1, "one class only")):
        sizes = Sizes((8, 8, 1), classes, fit=100)
        for key, value in (("objective.classification.weight", 1.0), ("training.monitor", "knn")):
            said = refusal(key, value, sizes)
            assert says in said and key.removesuffix(".weight") in said
    c = default()
    c.training.monitor, c.data.validation_fraction = "nmi", 0.0
    with pytest.raises(UserError, match="'nmi' but data.validation_fraction is 0"):
        check(c)


OUT_OF_RANGE = {
    "simclr": {"temperature": 0.0},
    "supcon": {"temperature": -1.0},
    "moco": {"temperature": 0.0, "queue": 0},
    "vicreg": {"invariance": -1.0, "variance": -1.0, "covariance": float("inf")},
    "barlow_twins": {"off_diagonal": -1.0},
    "emp_ssl": {"epsilon": 0.0, "agreement": -1.0},
    "w_mse": {"epsilon": 0.0},
    "swav": {"temperature": 0.0, "epsilon": 0.0, "iterations": 0, "codes": 0},
    "propos": {"k": 1, "scattering": -1.0, "temperature": 0.0, "sigma": -1.0, "warmup_steps": -1},
    "dec": {"k": 1},
    "self_labelling": {"k": 1, "temperature": 0.0, "confident": 1.5},
    "fixmatch": {"threshold": 1.5},
    "freematch": {"decay": 1.5, "fair": -1.0},
    "classification": {"views": -1},
}


@pytest.mark.fast
def test_what_a_method_cannot_use_is_refused_by_its_key():
    for name, values in OUT_OF_RANGE.items():
        assert values.keys() <= set(default().objective[name].keys())
        for key, value in values.items():
            c = default()
            c.objective[name].update({"weight": 1.0, key: value})
            with pytest.raises(UserError, match=f"^objective.{name}.{key} must be"):
                build.experiment(c)


@pytest.mark.fast
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"objective.simclr.weight": 1.0}, "objective.simclr compares 2 views of each image or"),
        (
            {"objective.byol.weight": 1.0, "views.main.count": 2},
            "objective.byol compares with the averaged network, but training.ema_decay is 0",
        ),
        (
            {"objective.dec.weight": 1.0, "embedding.layer": "projection"},
            "objective.dec compares embeddings of the backbone .* set embedding.layer=backbone",
        ),
        (
            {"objective.swav.weight": 1.0, "model.prototypes.count": 0},
            "model.prototypes.count must",
        ),
        ({"data.label_fraction": 0.0}, "data.label_fraction must be above 0"),
        ({"data.label_fraction": 0.1, "data.labels_per_class": 4}, "are both set; leave one"),
        ({"data.labels_per_class": 4, "training.monitor": "knn"}, "but the budget of labels hides"),
        ({"data.labels_per_class": 4, "data.label_choice": "typical"}, "and training.init_from"),
        ({"data.label_choice": "best"}, "data.label_choice must be one of 'random', 'typical'"),
        ({"training.labelled_per_batch": 32}, "labelled_per_batch is 32 but training.batch_size"),
        ({"training.ema_schedule": "linear"}, "training.ema_schedule must be one of"),
        ({"training.mixup": -1.0}, "training.mixup must be at least 0"),
        ({"embedding.crops": 9}, "embedding.crops is 9 but the images are 8×8"),
        ({"embedding.crops": 6}, "embedding.crops|divisible by 4"),
        (
            {"embedding.layer": "logits"},
            "embedding.layer must be one of 'backbone', 'projection', 'probabilities'",
        ),
        ({"embedding.layer": "probabilities"}, "no term of the objective trains a classifier"),
        (
            {"model.encoder.name": "small_resnet", "model.encoder.small_resnet.blocks": (1,)},
            "model.encoder.small_resnet.blocks must be 3 numbers",
        ),
        (
            {"model.encoder.name": "resnet18", "model.encoder.resnet18.stem": "wide"},
            "model.encoder.resnet18.stem must be 'cifar' or 'photo'",
        ),
        (
            {"model.encoder.name": "resnet9", "model.encoder.resnet9.width": 0},
            "model.encoder.resnet9.width must be at least 1",
        ),
    ],
)
def test_keys_that_contradict_each_other_are_refused(changes, says):
    c = default()
    for key, value in changes.items():
        *parts, name = key.split(".")
        part = c
        for step in parts:
            part = part[step]
        part[name] = value
    with pytest.raises(UserError, match=says) as caught:
        build.experiment(c)
        build.recipe(c, SIZES)
    assert "\n" not in str(caught.value)


@pytest.mark.fast
def test_the_averaged_networks_schedule_is_byols():
    c = default()
    c.training.ema_decay, c.training.ema_schedule = 0.9, "cosine"
    c.training.epochs, c.training.batch_size = 2, 8
    assert not build.experiment(c).extends
    decay = build.recipe(c, Sizes((8, 8, 1), 10, fit=40)).ema_decay
    expected = [1 - 0.1 * (np.cos(np.pi * step / 10) + 1) / 2 for step in range(11)]
    np.testing.assert_allclose([decay(step) for step in range(11)], expected, rtol=1e-6)
    assert decay(0) == pytest.approx(0.9) and decay(10) == pytest.approx(1.0)


@pytest.mark.fast
def test_keys_of_what_is_not_chosen_are_refused_with_the_cure():
    c = default()
    c.optimizer.name = "sgd"
    c.optimizer.adam.b1 = 0.5
    with pytest.raises(
        UserError,
        match="optimizer.adam.b1 is 0.5 but optimizer.name is 'sgd'; set optimizer.name=adam, or",
    ):
        check(c)
    c.optimizer.name = "adam"
    check(c)
    with pytest.raises(UserError, match="optimizer.name must be one of 'adamw', 'adam', 'sgd', 'l"):
        c.optimizer.name = "rmsprop"
        check(c)


@pytest.mark.fast
def test_the_recipe_is_what_the_config_says():
    c = default()
    c.training.precision = "bfloat16"
    c.training.accumulation = 4
    c.training.ema_decay = 0.99
    c.training.monitor = "knn"
    c.embedding.average = True
    c.optimizer.decay = "linear"
    c.views.main.flip.probability = 0.5
    c.views.main.count = 2
    recipe = build.recipe(c, Sizes((8, 8, 3), 10, fit=64))  # 20 batches in all: 5 updates
    assert recipe.model.encoder.dtype == recipe.model.decoder.dtype == jax.numpy.bfloat16
    assert recipe.model.decoder.channels == 3
    assert recipe.ema_decay == 0.99 and recipe.average and recipe.averaged
    assert recipe.monitor.name == "knn_accuracy"
    assert recipe.precision == "float32" and recipe.views_per_image == 2
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
    (view,) = recipe.views
    seen = {bool(view.augment(jax.random.key(i), image)[0, 0, 0] == 5) for i in range(9)}
    assert seen == {True, False}
    plain = build.recipe(default(), Sizes((8, 8, 3), 10, fit=64))
    assert plain.monitor is None and not plain.averaged and plain.views_per_image == 1


@pytest.mark.fast
def test_every_key_of_the_reference_says_what_it_is():
    """The keys that `default` declares, and those of the functions, from their docstrings."""
    rows = list(config.reference(default()))
    assert len(rows) > 60 and not [key for key, _, text in rows if not text]
    found = {key: (value, text) for key, value, text in rows}
    assert found["seed"] == (0, "everything random follows from it")
    assert found["optimizer.lars.weight_decay"] == (0.0, "of kernels, added to the gradient.")
    assert "muon" in found["optimizer.name"][1]
    assert not any("make" in key for key in found)


@pytest.mark.fast
def test_records_hold_every_key_as_json_has_it():
    recorded = config.record(default())
    assert recorded["model"]["encoder"]["convolutional"] == {
        "make": "convolutional",
        "widths": [32, 64],
        "bottleneck": 128,
        "momentum": 0.99,
    }
    assert recorded["data"]["image_size"] == [32, 32]


def factory(rows, factor: float = 2.0, shape: tuple = (1,), dtype=np.float32):
    """Makes something.

    Args:
      rows: how many.
      factor: of everything.
      shape: of each.
      dtype: of all.
    """
    if factor < 0:
        raise ValueError(f"factor must be at least 0, got {factor}")
    if not shape:
        raise ValueError("nothing has no shape")
    return rows, factor, shape, dtype


@pytest.mark.fast
def test_a_part_is_made_of_its_keys_and_of_what_it_asks_for():
    keys = config.keys_of(factory).lock()
    assert set(keys) == {"make", "factor", "shape", "dtype"}
    keys.factor = 3.0
    made = build.make("parts.one", keys, rows=5, channels=3, dtype=np.float16)
    assert made == (5, 3.0, (1,), np.float32)  # a key of its own goes before what is given
    with pytest.raises(UserError, match="^parts.one: the parameter 'rows' of factory .*channels"):
        build.make("parts.one", keys, channels=3)
    keys.factor = -1.0
    with pytest.raises(UserError, match="^parts.one.factor must be at least 0, got -1.0$"):
        build.make("parts.one", keys, rows=1)
    keys.update(factor=1.0, shape=())
    with pytest.raises(UserError, match="^parts.one: nothing has no shape$"):
        build.make("parts.one", keys, rows=1)


@pytest.mark.fast
def test_what_a_config_adds_is_a_key_like_any_other():
    def rprop(rate, eta: float = 0.5):
        """An optimizer."""
        return optax.sgd(rate * eta)

    def weightless(temperature: float = 1.0):
        """A term that forgot its weight."""

    c = default()
    config.add(c.optimizer, rprop, eta=0.25)
    c.optimizer.name = "rprop"
    c.optimizer.learning_rate = 1.0
    optimizer = build.recipe(c, Sizes((8, 8, 1), 0, fit=64)).optimizer
    ones = {"w": np.ones(1)}
    np.testing.assert_allclose(optimizer.update(ones, optimizer.init(ones))[0]["w"], -0.25)
    with pytest.raises(AttributeError):
        c.optimizer.rprop.gamma = 1.0
    with pytest.raises(TypeError):
        c.optimizer.rprop.eta = "half"
    with pytest.raises(KeyError):
        config.add(c.optimizer, rprop, gamma=1.0)
    config.add(c.objective, weightless)
    with pytest.raises(UserError, match="objective.weightless has no weight; give the function"):
        check(c)


@pytest.mark.fast
def test_there_are_heads_for_what_the_terms_read_and_no_others():
    def reading(*needs):
        def term(weight: float = 1.0):
            return Term(None, weight, needs=needs)

        return term

    parts = {
        "reconstruction": {"decoder"},
        "logits": {"head"},
        "projection": {"projector"},
        "prediction": {"projector", "predictor"},  # which reads the projection
    }
    image = jax.ShapeDtypeStruct((1, 8, 8, 1), np.float32)
    for need, expected in parts.items():
        c = default()
        c.objective.reconstruction.weight = 0.0
        config.add(c.objective, reading(need))
        model = build.recipe(c, Sizes((8, 8, 1), 10, fit=64)).model
        variables = jax.eval_shape(model.init, jax.random.key(0), image)
        assert set(variables["params"]) == {"encoder"} | expected
        outputs = jax.eval_shape(model.apply, variables, image)
        assert getattr(outputs, need) is not None
        names = {"decoder": "reconstruction", "head": "logits", "projector": "projection"}
        absent = {name for part, name in names.items() if part not in expected}
        assert all(getattr(outputs, name) is None for name in absent)


@pytest.mark.fast
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


@pytest.mark.fast
def test_one_host_and_many_are_accepted():
    c = default()
    check_hosts(c)
    c.distributed.update(coordinator="[::1]:80", processes=2, process=1)
    check_hosts(c)
