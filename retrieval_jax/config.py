"""Every key of a configuration, with its default, and what each accepts.

A configuration file defines `get_config()`, which starts from `default()` here and changes what
its experiment needs. A key that is not declared here, or a value of another type, is refused.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from retrieval_jax.runtime import devices
from retrieval_jax.runtime.errors import UserError
from retrieval_jax.training.optimizers import KEYS


def default() -> ConfigDict:
    """The reference of every key: system 1 of the protocol on the embedded digits."""
    c = ConfigDict()
    c.name = "digits vanilla"  # heading of the report and column of the comparison
    c.seed = 0  # everything random follows from it

    # Compiled programs, for the next run; JAX_COMPILATION_CACHE_DIR, where it is set, goes before.
    c.compilation_cache = "~/.cache/retrieval_jax"  # their directory; "": they are not kept

    # The processes of one run, a host each. On TPU slices, under Slurm and, with the package
    # kubernetes, in Indexed Jobs they find each other; elsewhere each is told. A run may be resumed
    # with another number.
    c.distributed = distributed = ConfigDict()
    distributed.coordinator = ""  # HOST:PORT of process 0, which opens the port; "": as said above
    distributed.processes = 0  # how many there are; 0: as said above
    distributed.process = -1  # which one this is, from 0; -1: as said above
    distributed.timeout = 300  # seconds in which all have to meet

    c.data = data = ConfigDict()
    data.source = "digits"  # "digits" (embedded), "tfds", "folder" or "npz"
    data.name = "cifar10"  # tfds: the data set's name
    data.directory = ""  # tfds: its data directory, "" for TFDS' own; folder: the images'
    data.file = ""  # npz: the file, here or on gs://
    data.image_size = (32, 32)  # folder: height and width that images are resized to
    data.channels = 3  # folder: 3 for colour, 1 for grey
    data.max_skipped = 100  # folder: unreadable images to tolerate before the run stops
    data.streaming = False  # read images when they are needed, not all of them into memory first
    data.queries = 90  # images set aside as queries, stratified by class
    data.validation_fraction = 0.2  # share of the gallery for the validation losses

    c.model = model = ConfigDict()
    model.encoder_widths = (32, 64)  # features of each stage; each halves the image's sides
    model.bottleneck = 128  # features of the bottleneck: the embedding's size
    model.decoder_widths = (128, 64)  # features of each ×2 up-sampling stage, as many as above
    model.norm_momentum = 0.99  # share of the old in BatchNorm's running statistics, a step

    c.objective = objective = ConfigDict()
    objective.reconstruction_weight = 1.0  # mean squared error
    objective.classification_weight = 0.0  # cross-entropy of the head; 0: no head, no labels used
    objective.label_smoothing = 0.0  # share of the target spread over all classes

    c.training = training = ConfigDict()
    training.epochs = 10  # passes over the fit images
    training.batch_size = 32  # over all devices
    # "float32" is without TF32 on GPUs and TPUs; with "bfloat16" parameters, BatchNorm statistics,
    # losses, embeddings and the optimizer stay float32.
    training.precision = "float32"  # what the model computes in: "float32" or "bfloat16"
    training.accumulation = 1  # batches whose gradients are averaged for an update
    # Averages of parameters and BatchNorm statistics, for validation, embedding, reconstruction;
    # debiased as Adam's are, so that initial values have no share in them.
    training.ema_decay = 0.0  # share of the old in the averages, a batch; 0: none are kept
    # State and position are saved after every epoch, on SIGTERM, and inside long epochs.
    training.checkpoint_seconds = 300.0  # from a save to the next one inside an epoch
    training.profile_steps = 0  # steps of the first epoch traced into the workdir's profile/

    c.optimizer = optimizer = ConfigDict()
    optimizer.name = "adamw"  # "adam", "adamw" (Adam where nothing decays), "sgd", "lars" or "muon"
    optimizer.learning_rate = 1e-3  # its peak
    optimizer.b1 = 0.9  # adam, adamw, muon's biases: decay of the mean of gradients
    optimizer.b2 = 0.999  # likewise: decay of the mean of squared gradients
    optimizer.epsilon = 1e-7  # likewise: added to the root of the latter
    optimizer.momentum = 0.9  # sgd, lars, muon's kernels: share of the old in the mean of gradients
    optimizer.weight_decay = 0.0  # all but adam: of kernels; biases and BatchNorm never decay
    optimizer.warmup_fraction = 0.0  # share of the updates in which the rate rises from 0
    optimizer.decay = "none"  # "none", or "linear" or "cosine" from the peak to 0 at the end

    # Of the fit images, in this order; a reconstruction is compared with the augmented image.
    c.augmentation = augment = ConfigDict()
    augment.flip = False  # mirror left to right, half of the images
    augment.shift = 0  # move by up to this many pixels: a random crop with a border
    augment.border = "reflect"  # of the shift: "reflect", the image mirrored, or "constant", 0
    augment.brightness = 0.0  # scale by a factor of 1 ± up to this, at most 1
    augment.contrast = 0.0  # likewise the distance from the mean grey
    augment.saturation = 0.0  # likewise each pixel's distance from its grey
    augment.cutout = 0  # side in pixels of a square made black

    c.embedding = embedding = ConfigDict()
    embedding.normalize = False  # scale each embedding to length 1
    embedding.batch_size = 128  # images a call, over all devices; validation uses it too

    c.clustering = clustering = ConfigDict()
    clustering.k = 10  # clusters
    clustering.restarts = 10  # k-means++ starts; the one of lowest inertia is kept
    clustering.max_iterations = 300  # a start
    clustering.tolerance = 1e-4  # of the centroids' movement, relative to the data's variance

    c.retrieval = retrieval = ConfigDict()
    retrieval.neighbours = 100  # neighbours found for each query

    c.report = report = ConfigDict()
    report.examples = 10  # images in the reconstruction and retrieval figures
    report.tsne_points = 2000  # gallery embeddings, sampled by seed, in the t-SNE figure
    return c.lock()


def check(c: ConfigDict) -> None:
    """Refuses values that no data could make sense of, once the devices are known.

    Raises:
      UserError: names the key, its value and what it accepts.
    """
    _one_of("data.source", c.data.source, ("digits", "tfds", "folder", "npz"))
    for key in ("directory", "file"):
        if "://" in c.data[key].removeprefix("gs://"):
            raise UserError(f"data.{key} must be on this machine or on gs://, got {c.data[key]!r}")
    _one_of("augmentation.border", c.augmentation.border, ("reflect", "constant"))
    _one_of("training.precision", c.training.precision, ("float32", "bfloat16"))
    _one_of("optimizer.name", c.optimizer.name, tuple(KEYS))
    _one_of("optimizer.decay", c.optimizer.decay, ("none", "linear", "cosine"))
    unchanged = default().optimizer
    for key in sorted(set().union(*KEYS.values()) - KEYS[c.optimizer.name]):
        if c.optimizer[key] != unchanged[key]:
            takers = ", ".join(name for name, keys in KEYS.items() if key in keys)
            raise UserError(
                f"optimizer.{key} is {c.optimizer[key]} but optimizer.name is "
                f"{c.optimizer.name!r}, which has none; it is for {takers}"
            )
    for key in (
        "data.queries",
        "data.channels",
        "model.bottleneck",
        "training.epochs",
        "training.batch_size",
        "training.accumulation",
        "embedding.batch_size",
        "clustering.k",
        "clustering.restarts",
        "clustering.max_iterations",
        "report.examples",
    ):
        _at_least(key, _value(c, key), 1)
    _at_least("retrieval.neighbours", c.retrieval.neighbours, 5)  # precision@5 needs them
    if not 0 <= c.seed < 2**32:
        raise UserError(f"seed must be at least 0 and below 2^32, got {c.seed}")
    for key in (
        "data.max_skipped",
        "objective.reconstruction_weight",
        "objective.classification_weight",
        "training.profile_steps",
        "training.checkpoint_seconds",
        "augmentation.shift",
        "augmentation.cutout",
        "clustering.tolerance",
        "optimizer.weight_decay",
        "report.tsne_points",
    ):
        _at_least(key, _value(c, key), 0)
    for key in (
        "data.validation_fraction",
        "model.norm_momentum",
        "objective.label_smoothing",
        "training.ema_decay",
        "optimizer.b1",
        "optimizer.b2",
        "optimizer.momentum",
        "optimizer.warmup_fraction",
    ):
        if not 0 <= _value(c, key) < 1:
            raise UserError(f"{key} must be at least 0 and below 1, got {_value(c, key)}")
    for key in ("brightness", "contrast", "saturation"):
        if not 0 <= c.augmentation[key] <= 1:
            raise UserError(
                f"augmentation.{key} must be at least 0 and at most 1, got {c.augmentation[key]}"
            )
    for key in ("optimizer.learning_rate", "optimizer.epsilon"):
        if not 0 < _value(c, key) < float("inf"):
            raise UserError(f"{key} must be a positive number, got {_value(c, key)}")
    for key in ("model.encoder_widths", "model.decoder_widths", "data.image_size"):
        if not _value(c, key) or not all(isinstance(v, int) and v > 0 for v in _value(c, key)):
            raise UserError(f"{key} must be positive whole numbers, got {_value(c, key)}")
    if len(c.data.image_size) != 2:
        raise UserError(f"data.image_size must be (height, width), got {c.data.image_size}")
    if len(c.model.encoder_widths) != len(c.model.decoder_widths):
        raise UserError(
            "model.encoder_widths and model.decoder_widths must have as many stages each, "
            f"got {c.model.encoder_widths} and {c.model.decoder_widths}"
        )
    if c.objective.reconstruction_weight == 0 and c.objective.classification_weight == 0:
        raise UserError(
            "the objective has no term: set objective.reconstruction_weight or "
            "objective.classification_weight above 0"
        )
    if c.training.batch_size % devices.count():
        raise UserError(
            f"training.batch_size {c.training.batch_size} must be a multiple of the "
            f"{devices.count()} devices"
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


def check_against_data(
    c: ConfigDict, image_shape: tuple[int, int, int], classes: int, fit: int, gallery: int
) -> None:
    """Refuses what this data cannot satisfy: images [h, w, c], 0 classes meaning no labels.

    Raises:
      UserError: names the key or the data, and the cure.
    """
    stride = 2 ** len(c.model.encoder_widths)
    height, width, _ = image_shape
    if height % stride or width % stride:
        raise UserError(
            f"images of {height}×{width} don't divide by {stride}, the stride of the "
            f"{len(c.model.encoder_widths)} stages in model.encoder_widths; resize the images or "
            "change the stages"
        )
    if c.objective.classification_weight > 0 and classes == 0:
        raise UserError(
            "objective.classification_weight is above 0 but the data has no labels; set it to 0 "
            "or give labels"
        )
    if c.objective.classification_weight > 0 and classes == 1:
        raise UserError(
            "objective.classification_weight is above 0 but the data has one class only; set it "
            "to 0 or give more classes"
        )
    if c.clustering.k > gallery:
        raise UserError(
            f"clustering.k is {c.clustering.k} but the gallery has {gallery} images; lower it"
        )
    if c.training.batch_size > fit:
        raise UserError(
            f"training.batch_size is {c.training.batch_size} but there are {fit} images to fit; "
            "lower it"
        )
    steps = fit // c.training.batch_size
    if c.training.profile_steps > steps // 2:
        raise UserError(
            f"training.profile_steps is {c.training.profile_steps} but an epoch has {steps} steps, "
            f"of which {steps // 2} can be traced; lower it"
        )
    batches = c.training.epochs * steps
    if c.training.accumulation > batches:
        raise UserError(
            f"training.accumulation is {c.training.accumulation} but there are {batches} batches "
            "in all; lower it"
        )
    if c.augmentation.shift >= min(height, width):
        raise UserError(
            f"augmentation.shift is {c.augmentation.shift} pixels but the images are "
            f"{height}×{width}; lower it"
        )


def _value(c: ConfigDict, key: str):
    for part in key.split("."):
        c = c[part]
    return c


def _one_of(key: str, value: str, accepted: tuple[str, ...]) -> None:
    if value not in accepted:
        raise UserError(f"{key} must be one of {', '.join(map(repr, accepted))}, got {value!r}")


def _at_least(key: str, value: float, bound: int) -> None:
    if not bound <= value < float("inf"):
        raise UserError(f"{key} must be at least {bound}, got {value}")
