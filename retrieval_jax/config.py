"""Every key of a configuration, with its default and what it means.

A configuration file defines `get_config()`, which starts from `default()` and changes what its
experiment needs. A key that is not declared, or a value of another type, is refused.

Losses, encoders, optimizers and augmentations declare their keys themselves: the parameters of the
function that makes one, with their defaults, described in its docstring. A config file adds one of
its own with `add`:

    c = config.default()
    config.add(c.objective, my_loss, weight=1.0)  # `my_loss` returns a Term
    config.add(c.model.encoder, my_encoder)  # `my_encoder` returns a Flax module
    c.model.encoder.name = "my_encoder"
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from retrieval_jax.models import ENCODERS
from retrieval_jax.models.decoder import upsampling
from retrieval_jax.models.heads import mlp, prototypes
from retrieval_jax.objectives import TERMS
from retrieval_jax.runtime.errors import UserError
from retrieval_jax.runtime.records import leaves
from retrieval_jax.training.optimizers import OPTIMIZERS
from retrieval_jax.training.views import AUGMENTATIONS

_SOURCES = ("digits", "tfds", "folder", "npz", "huggingface")
MAKE = "make"  # of a section: the function whose parameters its other keys are


def default() -> ConfigDict:
    """The reference of every key: system 1 of the protocol on the embedded digits."""
    c = section()
    c.name = "digits vanilla"  # heading of the report and column of the comparison
    c.seed = 0  # everything random follows from it

    # JAX_COMPILATION_CACHE_DIR, where it is set, takes precedence.
    c.compilation_cache = "~/.cache/retrieval_jax"  # compiled programs, for the next run; "": none

    # The processes of one run, a host each. On TPU slices, under Slurm and, with the package
    # kubernetes, in Indexed Jobs they find each other; elsewhere each is told. A run may be resumed
    # with another number.
    c.distributed = distributed = section()
    distributed.coordinator = ""  # HOST:PORT of process 0, which opens the port; "" = auto-detect
    distributed.processes = 0  # how many there are; 0 = auto-detect
    distributed.process = -1  # which one this is, from 0; -1 = auto-detect
    distributed.timeout = 300  # seconds in which all have to meet

    c.data = data = section()
    data.source = "digits"  # "digits" (embedded), "tfds", "folder", "npz" or "huggingface"
    data.name = "cifar10"  # tfds, huggingface: the data set's name; huggingface: or a directory
    data.directory = ""  # tfds: its data directory, "" for TFDS' own; folder: the images'
    data.file = ""  # npz: the file, here or on gs://
    data.class_depth = 0  # folder: n: the n-th folder on the way to an image is its class; 0: auto
    data.labels = ""  # folder: CSV or .parquet of the columns path and label; "": the folders tell
    data.image_size = (32, 32)  # folder, huggingface: height and width that images get
    data.channels = 3  # folder, huggingface: 3 for colour, 1 for grey
    data.max_skipped = 100  # folder, huggingface: unreadable images before the run stops
    data.streaming = False  # read images when they are needed, not all of them into memory first
    data.queries = 90  # images set aside as queries, stratified by class
    data.query_fraction = 0.0  # share of all images that are queries; 0: data.queries of them
    data.validation_fraction = 0.2  # share of the gallery for the validation losses
    # All others are hidden from training and its validation; the scores at the end use all.
    data.labels_per_class = 0  # labels of the fit images that training may use; 0: by the fraction
    data.label_fraction = 1.0  # share of each class' labels that training may use
    data.label_choice = "random"  # or "typical": the image nearest to each centroid of init_from's

    # All but the encoder are there if a term of the objective reads what they make.
    c.model = model = section()
    model.encoder = choice("convolutional", ENCODERS)
    model.decoder = keys_of(upsampling)
    model.projector = keys_of(mlp)
    model.predictor = keys_of(mlp)
    model.prototypes = keys_of(prototypes)

    # Weight 0 leaves a term out.
    c.objective = section({term.__name__: keys_of(term) for term in TERMS})
    c.objective.reconstruction.weight = 1.0

    # Of the fit images; a reconstruction is compared with the image in that view.
    c.views = section({"main": view()})

    c.training = training = section()
    training.epochs = 10  # passes over the fit images; 0: the network embeds as it starts
    training.batch_size = 32  # images per step, over all devices
    # "float32" is without TF32 on GPUs and TPUs; with "bfloat16" parameters, BatchNorm statistics,
    # losses, embeddings and the optimizer stay float32. Distances are float32 whatever it is.
    training.precision = "float32"  # what the model computes in: "float32", "tf32" or "bfloat16"
    training.accumulation = 1  # batches whose gradients are averaged for an update
    # Debiased as Adam's averages are, so that initial values have no share in it.
    training.ema_decay = 0.0  # share of the old in the averaged network, per step; 0: there is none
    training.ema_schedule = "constant"  # or "cosine": from ema_decay to 1 at the end
    training.mixup = 0.0  # alpha of the shares in which images and labels are mixed; 0: not at all
    training.labelled_per_batch = 0  # examples of a batch drawn among the labelled ones
    training.monitor = "loss"  # picks the best checkpoint by validation: "loss", "knn" or "nmi"
    training.init_from = ""  # workdir of a finished run whose parameters to start from; "": none
    # State and position are saved after every epoch, on SIGTERM, and inside long epochs.
    training.checkpoint_seconds = 300.0  # from a save to the next one inside an epoch
    training.profile_steps = 0  # steps of the first epoch traced into the workdir's profile/

    # All but TensorBoard are packages of their own. A tracker that fails does not stop training.
    c.tracking = tracking = section()
    tracking.tensorboard = True  # event files in the workdir's tensorboard/
    tracking.wandb = ""  # project of Weights & Biases that shows the run, too; "": none
    tracking.mlflow = ""  # experiment of MLflow that shows the run, too; "": none

    c.optimizer = optimizer = choice("adamw", OPTIMIZERS)
    optimizer.learning_rate = 1e-3  # its peak
    optimizer.warmup_fraction = 0.0  # share of the updates in which the rate rises from 0
    optimizer.decay = "none"  # "none", or "linear" or "cosine" from the peak to 0 at the end

    c.embedding = embedding = section()
    embedding.layer = "backbone"  # that embeds: "backbone", "projection" or "probabilities"
    embedding.crops = 0  # side of nine crops whose unit embeddings are averaged; 0: the whole image
    embedding.average = False  # validate and embed with the averaged network
    embedding.precise_batchnorm = False  # BatchNorm by the final weights, not its running averages
    embedding.normalize = False  # scale each embedding to length 1
    embedding.batch_size = 128  # images per call, over all devices; validation uses it too

    c.clustering = clustering = section()
    clustering.k = 10  # clusters
    clustering.restarts = 10  # k-means++ restarts; the one of lowest inertia is kept
    clustering.max_iterations = 300  # per restart
    clustering.tolerance = 1e-4  # of the centroids' movement, relative to the data's variance

    c.retrieval = retrieval = section()
    retrieval.neighbours = 100  # neighbours found for each query
    retrieval.probes = False  # score a linear probe and a weighted kNN of 200 neighbours, too

    c.report = report = section()
    report.examples = 10  # images in the reconstruction and retrieval figures
    report.tsne_points = 2000  # gallery embeddings, sampled by seed, in the t-SNE figure
    return c.lock()


def section(keys: Mapping[str, Any] | None = None) -> ConfigDict:
    """A part of a configuration, in the order in which its keys are declared."""
    return ConfigDict(keys, sort_keys=False)


def keys_of(function: Callable) -> ConfigDict:
    """A section of one key per parameter with a default, and the function under `make`.

    Example:
      >>> def loss(weight: float = 0.0, temperature: float = 0.5): ...
      >>> keys = keys_of(loss)
      >>> keys.temperature, keys.make is loss
      (0.5, True)
    """
    parameters = inspect.signature(function).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    return section({MAKE: function, **defaults})


def add(to: ConfigDict, function: Callable, **values: Any) -> None:
    """Adds a loss, an encoder, an optimizer or an augmentation to the section of its kind.

    Args:
      to: `c.objective`, `c.model.encoder`, `c.optimizer`, or a view such as `c.views.main`.
      function: makes one; its name becomes the key.
      **values: of its keys.

    Example:
      >>> def margin(weight: float = 0.0): ...
      >>> c = default()
      >>> add(c.objective, margin, weight=2.0)
      >>> c.objective.margin.weight
      2.0
    """
    keys = keys_of(function).lock()
    keys.update(values)
    with to.unlocked():
        to[function.__name__] = keys


def choice(name: str, functions: Iterable[Callable]) -> ConfigDict:
    """A section of several functions' keys, of which `name` says whose are used."""
    return section({"name": name, **{f.__name__: keys_of(f) for f in functions}})


def view(count: int = 1) -> ConfigDict:
    """The keys of one kind of view: how many a step takes of each image, and its augmentations."""
    return section({"count": count, **{f.__name__: keys_of(f) for f in AUGMENTATIONS}})


def record(c: ConfigDict) -> dict[str, Any]:
    """The configuration as JSON holds it; functions by their names.

    Example:
      >>> record(default())["objective"]["reconstruction"]
      {'make': 'reconstruction', 'weight': 1.0}
    """

    def plain(value: Any) -> Any:
        if isinstance(value, ConfigDict):
            return {key: plain(of) for key, of in value.items()}
        if isinstance(value, tuple | list):
            return [plain(of) for of in value]
        return value.__name__ if callable(value) else value

    return plain(c)


def reference(c: ConfigDict) -> Iterator[tuple[str, Any, str]]:
    """Yields every key with its value and its description, from where it is declared.

    Example:
      >>> found = {key: (value, text) for key, value, text in reference(default())}
      >>> found["clustering.k"], found["objective.classification.label_smoothing"]
      ((10, 'clusters'), (0.0, 'share of the target spread over all classes.'))
    """
    texts = {
        "model.encoder.name": "the encoder: " + _names(c.model.encoder),
        "optimizer.name": "the optimizer: " + _names(c.optimizer),
    }
    for line in inspect.getsource(default).splitlines():
        if found := re.fullmatch(r"    (\w+)\.(\w+) = .*?  # (.*)", line):
            part, key, text = found.groups()
            texts[key if part == "c" else f"{part}.{key}"] = text

    def walk(part: ConfigDict, prefix: str) -> Iterator[tuple[str, Any, str]]:
        described = _described(part[MAKE]) if MAKE in part else {}
        for key, value in part.items():
            path = prefix + key
            if isinstance(value, ConfigDict):
                yield from walk(value, f"{path}.")
            elif key != MAKE:
                count = "views that a step takes of each image" if key == "count" else ""
                yield path, value, texts.get(path) or described.get(key) or count

    return walk(c, "")


def check(c: ConfigDict) -> None:
    """Refuses values of the keys that no constructor checks.

    Raises:
      UserError: names the key, its value and what it accepts.
    """
    _check_tuples(c)
    _one_of("data.source", c.data.source, _SOURCES)
    for key in ("directory", "file", "labels"):
        if "://" in c.data[key].removeprefix("gs://"):
            raise UserError(f"data.{key} must be on this machine or on gs://, got {c.data[key]!r}")
    _one_of("training.precision", c.training.precision, ("float32", "tf32", "bfloat16"))
    _one_of("embedding.layer", c.embedding.layer, ("backbone", "projection", "probabilities"))
    _one_of("training.ema_schedule", c.training.ema_schedule, ("constant", "cosine"))
    _one_of("data.label_choice", c.data.label_choice, ("random", "typical"))
    _one_of("training.monitor", c.training.monitor, ("loss", "knn", "nmi"))
    for path in ("model.encoder", "optimizer"):
        _check_choice(path, _value(c, path))
    for key, bound in (
        ("data.queries", 1),
        ("data.channels", 1),
        ("data.class_depth", 0),
        ("data.max_skipped", 0),
        ("data.labels_per_class", 0),
        ("training.labelled_per_batch", 0),
        ("training.mixup", 0),
        ("training.epochs", 0),
        ("training.batch_size", 1),
        ("training.accumulation", 1),
        ("training.profile_steps", 0),
        ("training.checkpoint_seconds", 0),
        ("embedding.batch_size", 1),
        ("embedding.crops", 0),
        ("clustering.k", 1),
        ("clustering.restarts", 1),
        ("clustering.max_iterations", 1),
        ("clustering.tolerance", 0),
        ("retrieval.neighbours", 5),  # precision@5 needs them
        ("report.examples", 1),
        ("report.tsne_points", 0),
        *((f"objective.{name}.weight", 0) for name in _weighted(c.objective)),
        *((f"views.{name}.count", 1) for name in c.views),
    ):
        _at_least(key, _value(c, key), bound)
    if not 0 <= c.seed < 2**32:
        raise UserError(f"seed must be at least 0 and below 2^32, got {c.seed}")
    for key in ("data.query_fraction", "data.validation_fraction", "training.ema_decay"):
        if not 0 <= _value(c, key) < 1:
            raise UserError(f"{key} must be at least 0 and below 1, got {_value(c, key)}")
    if not 0 < c.data.label_fraction <= 1:
        raise UserError(
            f"data.label_fraction must be above 0 and at most 1, got {c.data.label_fraction}"
        )
    few = c.data.labels_per_class > 0 or c.data.label_fraction < 1
    if c.data.labels_per_class and c.data.label_fraction < 1:
        raise UserError(
            "data.labels_per_class and data.label_fraction are both set; leave one of them alone"
        )
    if few and c.training.monitor != "loss":
        raise UserError(
            f"training.monitor is {c.training.monitor!r}, which reads labels of the validation "
            "images, but the budget of labels hides them; set training.monitor=loss"
        )
    if c.data.label_choice == "typical" and not (few and c.training.init_from):
        raise UserError(
            "data.label_choice is 'typical', which chooses as many images as the budget of labels "
            "has by the network of another run; set data.labels_per_class or data.label_fraction, "
            "and training.init_from"
        )
    if c.training.monitor != "loss" and c.data.validation_fraction == 0:
        raise UserError(
            f"training.monitor is {c.training.monitor!r} but data.validation_fraction is 0, so "
            "there are no images to judge by; set it above 0"
        )
    sizes = c.data.image_size
    if len(sizes) != 2 or min(sizes) < 1:
        raise UserError(f"data.image_size must be two positive numbers, got {tuple(sizes)}")
    if c.training.epochs and not any(term.weight > 0 for term in c.objective.values()):
        raise UserError(
            "the objective has no term: set the weight of one above 0, such as "
            "objective.reconstruction.weight, or training.epochs to 0"
        )


def check_hosts(c: ConfigDict) -> None:
    """Refuses what can't say where the processes meet, before JAX starts.

    Raises:
      UserError: names the key, its value and what it accepts.
    """
    d = c.distributed
    _at_least("distributed.timeout", d.timeout, 1)
    if not d.coordinator:
        for key, unset in (("processes", 0), ("process", -1)):
            if d[key] != unset:
                raise UserError(
                    f"distributed.{key} is {d[key]} but distributed.coordinator is not set; give "
                    "HOST:PORT of process 0"
                )
        return
    host, _, port = d.coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(f"distributed.coordinator must be HOST:PORT, got {d.coordinator!r}")
    _at_least("distributed.processes", d.processes, 1)
    if not 0 <= d.process < d.processes:
        raise UserError(
            f"distributed.process must be from 0 to {d.processes - 1}, one less than "
            f"distributed.processes, got {d.process}"
        )


def _check_tuples(c: ConfigDict) -> None:
    """Refuses tuples of other things than the default holds: overrides are only known as tuples."""
    declared = dict(leaves(record(default())))
    for key, value in leaves(record(c)):
        if isinstance(value, list) and (like := declared.get(key)):
            kinds = {type(of) for of in like}
            if not {type(of) for of in value} <= kinds | ({int} if float in kinds else set()):
                raise UserError(f"{key} must hold values like {tuple(like)}, got {tuple(value)}")


def _check_choice(path: str, options: ConfigDict) -> None:
    """Refuses a name that isn't there, and changed keys of what isn't chosen."""
    names = [key for key, value in options.items() if isinstance(value, ConfigDict)]
    _one_of(f"{path}.name", options.name, tuple(names))
    for name in names:
        unchanged = keys_of(options[name][MAKE])
        for key, value in options[name].items():
            if name != options.name and value != unchanged[key]:
                raise UserError(
                    f"{path}.{name}.{key} is {value} but {path}.name is {options.name!r}; set "
                    f"{path}.name={name}, or leave that key alone"
                )


def _weighted(objective: ConfigDict) -> ConfigDict:
    """Refuses terms without a weight."""
    for name, term in objective.items():
        if "weight" not in term:
            raise UserError(
                f"objective.{name} has no weight; give the function {term[MAKE].__name__} a "
                "parameter 'weight' with a default"
            )
    return objective


def _described(function: Callable) -> dict[str, str]:
    """Parameter → its description in the docstring."""
    doc = inspect.getdoc(function) or ""
    _, _, arguments = doc.partition("Args:\n")
    arguments = re.split(r"\n\n|\n\S", arguments)[0]
    found = re.findall(r"^  (\w+): ((?:.|\n(?!  \w+:))*)", arguments, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}


def _names(options: ConfigDict) -> str:
    return ", ".join(f'"{key}"' for key, of in options.items() if isinstance(of, ConfigDict))


def _value(c: ConfigDict, key: str) -> Any:
    for part in key.split("."):
        c = c[part]
    return c


def _one_of(key: str, value: str, accepted: tuple[str, ...]) -> None:
    if value not in accepted:
        raise UserError(f"{key} must be one of {', '.join(map(repr, accepted))}, got {value!r}")


def _at_least(key: str, value: float, bound: int) -> None:
    if not bound <= value < float("inf"):
        raise UserError(f"{key} must be at least {bound}, got {value}")
