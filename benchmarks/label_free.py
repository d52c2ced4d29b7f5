"""Training without labels beside lightly (PyTorch): images/s, and NMI after the same minutes.

    pip install lightly torchvision
    python -m benchmarks.label_free [--minutes 5 --data DIR]

One process, the same images, encoder (three convolutions), projector, optimizer, batches, and
number and kind of views; two threads each. *The step alone* takes copies of the image for views;
*with views* draws them: ours within the compiled step, lightly's by its transforms in two worker
processes. With --minutes both train so long on 10,000 images of CIFAR-10, one after the other, and
k-means groups their embeddings of the whole images; DIR is a TFDS data directory. EMP-SSL is left
out of that: lightly 1.6's loss has its coding rate fall, the paper's has it grow. Prints Markdown;
ratios are ours / theirs, the time of the same work: below 1 is faster than they are.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

# Before the peers are imported: threads that wait must not take the cores of whose turn it is.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import jax  # noqa: E402
import lightly  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from lightly.loss import EMPSSLLoss, NTXentLoss, VICRegLoss  # noqa: E402
from lightly.transforms.multi_crop_transform import MultiCropTranform  # noqa: E402
from PIL import Image  # noqa: E402
from torch import nn  # noqa: E402
from torchvision import transforms  # noqa: E402

from benchmarks import epochs  # noqa: E402
from benchmarks.epochs import Work  # noqa: E402
from benchmarks.interleaved import table_row, times  # noqa: E402
from retrieval_jax import config, metrics  # noqa: E402
from retrieval_jax.data.tfds import from_tfds  # noqa: E402
from retrieval_jax.kmeans import kmeans  # noqa: E402
from retrieval_jax.main import with_huge_pages  # noqa: E402
from retrieval_jax.runtime import provenance  # noqa: E402

SIDE, BATCH, CLASSES = 24, 64, 10
VIEWS = {"vicreg": 2, "nt_xent": 2, "emp_ssl": 8}


def ours(method: str, images: np.ndarray, augmented: bool) -> Work:
    """This project's step, from a config."""
    c = config.default()
    c.objective.reconstruction.weight = 0.0
    c.objective[method].weight = 1.0
    c.model.encoder.name = "small_resnet"
    c.model.encoder.small_resnet.blocks = (0, 0, 0)
    c.views.main.count = VIEWS[method]
    if augmented:
        c.views.main.crop.update(size=SIDE, scale=(0.2, 1.0))
        c.views.main.flip.probability = 0.5
        c.views.main.jitter.update(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
        c.views.main.grayscale.probability = 0.2
    c.training.batch_size = BATCH
    c.optimizer.learning_rate = 3e-3
    return epochs.ours(c, images, np.full(len(images), -1, np.int32), CLASSES)


class Views(torch.utils.data.Dataset):
    """lightly's views of an image, drawn by its transforms in a worker."""

    def __init__(self, images: np.ndarray, count: int) -> None:
        colours = transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)
        rest = [transforms.RandomHorizontalFlip(), colours, transforms.RandomGrayscale(0.2)]
        after = transforms.Compose([*rest, transforms.ToTensor()])
        self.images = images
        self.draw = MultiCropTranform((SIDE,), (count,), (0.2,), (1.0,), after)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> torch.Tensor:
        return torch.stack(self.draw(Image.fromarray(self.images[row])))


def by_lightly(method: str, images: np.ndarray, augmented: bool) -> Work:
    """The same in PyTorch, channels-last, by lightly's losses and transforms."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    layers: list[nn.Module] = []
    for before, after, pool in ((3, 32, True), (32, 64, True), (64, 128, False)):
        layers.append(nn.Conv2d(before, after, 3, padding=1, bias=False))
        layers += [nn.MaxPool2d(2)] if pool else []
        layers += [nn.BatchNorm2d(after), nn.ReLU()]
    encoder = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    first = nn.Linear(128, 512, bias=False)
    projector = nn.Sequential(first, nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 128))
    model = nn.Sequential(encoder, projector).to(memory_format=torch.channels_last)
    losses = {"vicreg": VICRegLoss, "nt_xent": lambda: NTXentLoss(0.5), "emp_ssl": EMPSSLLoss}
    loss_of = losses[method]()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    count = VIEWS[method]

    def as_pixels(part: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(part).permute(0, 3, 1, 2).float().div(255)

    if augmented:
        batches: Iterable[torch.Tensor] = torch.utils.data.DataLoader(
            Views(images, count),
            batch_size=BATCH,
            shuffle=True,
            drop_last=True,
            num_workers=2,
            persistent_workers=True,
            multiprocessing_context="forkserver",
        )
    else:
        copies = as_pixels(images)[:, None].expand(-1, count, -1, -1, -1)
        batches = copies.split(BATCH)

    def epoch() -> None:
        model.train()
        for views in batches:  # [b, v, 3, h, w]
            x = views.transpose(0, 1).flatten(0, 1).contiguous(memory_format=torch.channels_last)
            z = model(x).unflatten(0, (count, -1))
            loss = loss_of(list(z)) if method == "emp_ssl" else loss_of(z[0], z[1])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    @torch.inference_mode()
    def embed() -> np.ndarray:
        model.eval()
        parts = np.array_split(images, max(1, len(images) // 500))
        return torch.cat([encoder(as_pixels(part)) for part in parts]).numpy()

    return Work(epoch, embed)


def nmi_after(minutes: float, work: Work, classes: np.ndarray) -> tuple[float, int]:
    """k-means' NMI of the embeddings after at least so long, and the epochs that were made."""
    work.steps()  # compiled, and workers started, before the clock is
    made, start = 1, time.monotonic()
    while time.monotonic() < start + 60 * minutes:
        work.steps()
        made += 1
    embeddings = np.asarray(work.embed(), np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    found = kmeans(jax.random.key(0), embeddings, CLASSES, restarts=10)
    table = metrics.contingency_table(classes, found.labels)
    return float(metrics.normalized_mutual_information(table)), made


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="turns that are timed")
    parser.add_argument("--images", type=int, default=1280, help="of a turn")
    parser.add_argument("--minutes", type=float, default=0, help="of training for the NMI; 0: none")
    parser.add_argument("--data", help="TFDS data directory with CIFAR-10, for --minutes")
    options = parser.parse_args()
    if options.minutes and not options.data:
        parser.error("--minutes needs --data, a TFDS data directory with CIFAR-10")
    makers: dict[str, Callable[..., Work]] = {"ours": ours, "lightly": by_lightly}
    peers = f"lightly {lightly.__version__}, PyTorch {torch.__version__}"
    print(f"{provenance.device()}; {provenance.versions()}; {peers}")
    print(f"medians of {options.repeats} interleaved turns, batches of {BATCH} images\n")
    print("| work | ours | ours / theirs (theirs) | images/s |\n|---|---|---|---|")
    rng = np.random.default_rng(0)
    for augmented in (False, True):
        side = 32 if augmented else SIDE
        images = rng.integers(0, 256, (options.images, side, side, 3), np.uint8)
        for method, count in VIEWS.items():
            work = {name: make(method, images, augmented) for name, make in makers.items()}
            calls: dict[str, Callable[[], Any]] = {name: of.steps for name, of in work.items()}
            seconds = times(calls, options.repeats)
            rates = (f"{n} {len(images) / statistics.median(s):,.0f}" for n, s in seconds.items())
            what = f"{method}, {count} views: {'with views' if augmented else 'the step alone'}"
            print(table_row(what, seconds, ", ".join(rates)), flush=True)
    if options.minutes:
        everything = from_tfds("cifar10", options.data)
        images, classes = everything.images[:10000], everything.labels[:10000]
        print(f"\n| NMI after {options.minutes:g} minutes | ours | lightly |\n|---|---|---|")
        for method in ("vicreg", "nt_xent"):
            made = [
                nmi_after(options.minutes, m(method, images, True), classes)
                for m in makers.values()
            ]
            cells = " | ".join(f"{nmi:.3f}, {count} epochs" for nmi, count in made)
            print(f"| {method} | {cells} |", flush=True)


if __name__ == "__main__":
    with_huge_pages()
    main()
