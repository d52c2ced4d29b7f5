"""A loss and an encoder from outside the package, by a config file alone."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from retrieval_jax import build, config
from retrieval_jax.embedder import Embedder
from retrieval_jax.main import main, parse
from retrieval_jax.models import Outputs
from retrieval_jax.objectives import Batch, Seen, evaluate, means_over_devices
from retrieval_jax.runtime.errors import UserError

MODULE = '''
"""NT-Xent (Chen et al. 2020, arXiv:2002.05709) and a small encoder."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from retrieval_jax.numerics.distances import unit
from retrieval_jax.objectives import Term, mean_of


def ntxent(weight: float = 0.0, temperature: float = 0.5):
    """Each view is told from all others by those of its own image.

    Args:
      weight: of the cross-entropy in nats.
      temperature: divides the cosines.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")

    def loss(seen):
        ours = unit(seen.outputs.projection)
        everyone = jax.lax.all_gather(ours, seen.axis_name, axis=1, tiled=True)
        views, n, _ = ours.shape
        first = jax.lax.axis_index(seen.axis_name) * n
        alike = jnp.arange(everyone.shape[1]) == first + jnp.arange(n)[:, None]
        same_view = jnp.eye(views, dtype=bool)[:, None, :, None]
        logits = jnp.einsum("vnd,wmd->vnwm", ours, everyone) / temperature
        logits = jnp.where(alike[:, None] & same_view, -jnp.inf, logits)
        positive = jnp.where(alike[:, None] & ~same_view, logits, 0).sum((2, 3)) / (views - 1)
        return mean_of(jax.nn.logsumexp(logits, (2, 3)) - positive, seen.batch)

    return Term(loss, weight, needs=("projection",))


class Small(nn.Module):
    width: int
    rate: float

    @nn.compact
    def __call__(self, images, train=False):
        brightest = self.variable("tracked", "brightest", lambda: jnp.float32(0))
        if train:
            brightest.value = jnp.maximum(brightest.value, images.max())
        x = nn.relu(nn.GroupNorm(2)(nn.Conv(self.width, (3, 3), 2)(images)))
        self.sow("intermediates", "features", x)
        return nn.Dropout(self.rate, deterministic=not train)(x.mean((1, 2)))


def small_encoder(width: int = 4, rate: float = 0.1):
    """A convolution.

    Args:
      width: its features.
      rate: of dropout.
    """
    return Small(width, rate)
'''

CONFIG = """
import own_method

from retrieval_jax import config


def get_config():
    c = config.default()
    c.name = "own method"
    c.objective.reconstruction.weight = 0.0
    config.add(c.objective, own_method.ntxent, weight=1.0)
    config.add(c.model.encoder, own_method.small_encoder, width=8)
    c.model.encoder.name = "small_encoder"
    c.model.projector.widths = (8, 4)
    c.views.main.count = 2
    c.views.main.flip.probability = 0.5
    c.embedding.layer, c.embedding.crops = "projection", 6
    c.data.source, c.data.queries = "npz", 8
    c.training.epochs, c.training.batch_size = 2, 16
    c.clustering.k, c.report.tsne_points = 3, 0
    return c
"""


@pytest.fixture
def arguments(tmp_path, monkeypatch):
    """Of the command, with settings of its own."""
    (tmp_path / "own_method.py").write_text(MODULE)
    (tmp_path / "own_config.py").write_text(CONFIG)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_method", raising=False)
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 1), np.uint8)
    np.savez(tmp_path / "images.npz", images=images)

    def line(*settings):
        return [
            f"--config={tmp_path / 'own_config.py'}",
            f"--workdir={tmp_path / 'run'}",
            f"--config.data.file={tmp_path / 'images.npz'}",
            *(f"--config.{setting}" for setting in settings),
        ]

    return line


@pytest.mark.fast
def test_its_keys_are_locked_typed_described_and_checked(arguments):
    c, _ = parse(
        arguments("objective.ntxent.temperature=0.2", "model.encoder.small_encoder.rate=0")
    )
    assert (c.objective.ntxent.weight, c.objective.ntxent.temperature) == (1.0, 0.2)
    assert (c.model.encoder.small_encoder.width, c.model.encoder.small_encoder.rate) == (8, 0.0)
    found = {key: (value, text) for key, value, text in config.reference(c)}
    assert found["objective.ntxent.temperature"] == (0.2, "divides the cosines.")
    assert found["model.encoder.small_encoder.width"] == (8, "its features.")
    assert '"small_encoder"' in found["model.encoder.name"][1]
    assert config.record(c)["objective"]["ntxent"]["make"] == "ntxent"
    for wrong in ("temperatur=0.2", "temperature=cold", "make=1"):
        with pytest.raises(UserError, match="temperatur|objective.ntxent.make"):
            parse(arguments(f"objective.ntxent.{wrong}"))
    with pytest.raises(AttributeError):
        c.objective.ntxent.temperatur = 0.2
    c, _ = parse(arguments("objective.ntxent.temperature=-1"))
    with pytest.raises(UserError, match="^objective.ntxent.temperature must be above 0, got -1.0$"):
        build.experiment(c)


def numpy_ntxent(z, temperature):
    """The mean over all views of all images, [views, images, d] in float64."""
    views, images, d = z.shape
    z = z.astype(np.float64).swapaxes(0, 1).reshape(-1, d)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    values = []
    for i in range(len(z)):
        likeness = z @ z[i] / temperature
        others = [j for j in range(len(z)) if j != i]
        positives = [j for j in others if j // views == i // views]
        total = np.log(np.exp(likeness[others]).sum())
        values.append(np.mean([total - likeness[j] for j in positives]))
    return np.mean(values)


@pytest.mark.fast
@pytest.mark.parametrize("count", [1, 4])
def test_the_loss_sees_all_views_of_all_devices_and_so_does_its_gradient(arguments, count):
    c, _ = parse(arguments("objective.ntxent.temperature=0.2"))
    objective = build.recipe(c, build.Sizes((8, 8, 1), 0, 60)).objective
    z = np.random.default_rng(1).normal(size=(3, 8, 5)).astype(np.float32)

    def mean(z):
        def on_device(z):
            images = jnp.zeros((3, 8 // count, 1, 1, 1))
            rows = jnp.arange(8 // count)
            outputs = Outputs(jnp.zeros((3, 8 // count, 1)), projection=z)
            key, step = jax.random.key(0), jnp.int32(0)
            batch = Batch((images,), rows, rows)
            seen = Seen(outputs, None, batch, None, key, step, "devices")
            losses, _ = evaluate(objective, seen, {"ntxent": ()})
            return means_over_devices(losses, "devices")["ntxent"]

        shares = z.reshape(3, count, 8 // count, 5).swapaxes(0, 1)
        return jax.vmap(on_device, axis_name="devices")(shares).mean()

    value, gradient = jax.jit(jax.value_and_grad(mean))(z)
    assert value == pytest.approx(numpy_ntxent(z, 0.2), rel=1e-5)
    for seed in range(3):
        way = np.random.default_rng(seed).normal(size=z.shape)
        slope = (numpy_ntxent(z + 1e-6 * way, 0.2) - numpy_ntxent(z - 1e-6 * way, 0.2)) / 2e-6
        assert (gradient * way).sum() == pytest.approx(slope, rel=1e-3, abs=1e-5)


def test_a_whole_run_by_it(arguments, tmp_path, capsys):
    assert main(arguments("objective.ntxent.temperature=hot")) == 2
    assert main(arguments("objective.ntxent.temperature=0")) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and all("objective.ntxent.temperature" in line for line in said)

    assert main(arguments("objective.ntxent.temperature=0.2")) == 0, capsys.readouterr().err
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["provenance"]["config"]["objective"]["ntxent"]["temperature"] == 0.2
    for row in results["training"]["history"]:
        for part in ("fit", "validation"):
            assert list(row[part])[:2] == ["loss", "ntxent"]
            assert row[part]["loss"] == row[part]["ntxent"] > 0
    tensors = safetensors.numpy.load_file(tmp_path / "run" / "model.safetensors")
    parts = {tuple(name.split("/")[:2]) for name in tensors}
    assert parts == {
        ("params", "encoder"),
        ("params", "projector"),
        ("batch_stats", "projector"),
        ("tracked", "encoder"),
    }
    assert tensors["tracked/encoder/brightest"] > 0.9

    with pytest.raises(UserError, match=r"small_encoder.? of .* is not one of this package; give"):
        Embedder.from_run(tmp_path / "run")
    import own_method

    embed = Embedder.from_run(tmp_path / "run", encoder=own_method.small_encoder)
    found, ranked = (
        np.load(tmp_path / "run" / f"{name}.npz") for name in ("embeddings", "neighbours")
    )
    images = np.load(tmp_path / "images.npz")["images"]
    assert found["gallery"].shape == (52, 4)  # by the projector
    for part in ("gallery", "queries"):
        np.testing.assert_array_equal(embed(images[ranked[part]]), found[part])
    # What decides the training can't change, and what doesn't can.
    assert main(arguments("objective.ntxent.temperature=0.3")) == 2
    said = capsys.readouterr().err
    assert "objective.ntxent.temperature is 0.2 there and 0.3 here" in said
