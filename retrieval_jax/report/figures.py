"""The figures of a report: each function draws arrays and writes one PNG.

Colours tell apart under the common colour-vision deficiencies, and none carries a meaning alone.
Names from the data are drawn as they are: never parsed as mathematics, shortened when long.
matplotlib's global state and a user's own matplotlib settings play no part.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import matplotlib
import matplotlib.style
import numpy as np
from etils import epath
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font, get_font_names
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from retrieval_jax.report.comparison import Point, in_order
from retrieval_jax.report.text import shorten
from retrieval_jax.runtime.files import replacing

RIGHT, WRONG, NEUTRAL = "#0072b2", "#c2410c", "#475569"
CLASS_COLOURS = matplotlib.color_sequences["petroff10"]  # Petroff 2021, arXiv:2107.02270
CLASS_MARKERS = "o^sDvPX*<>"
LEGEND_LIMIT = 40

# Scripts that matplotlib's own font lacks, for class names; those installed are used.
FALLBACK_FONTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "PingFang SC", "Hiragino Sans",
    "Microsoft YaHei", "WenQuanYi Zen Hei", "Noto Sans Devanagari", "Noto Sans Thai",
    "Arial Unicode MS",
)  # fmt: skip


@contextmanager
def _figure(path: epath.PathLike, width: float, height: float, **kwargs: Any) -> Iterator[Figure]:
    """A figure of `width` x `height` inches that is written to `path` when the block ends."""
    style: Any = {
        "font.family": list(_fonts()),
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": "#e2e8f0",
        "axes.edgecolor": "#94a3b8",
        "text.color": "#1e293b",
        "axes.labelcolor": "#1e293b",
        "xtick.color": "#475569",
        "ytick.color": "#475569",
        "legend.frameon": False,
    }
    with matplotlib.style.context(["default", style]), warnings.catch_warnings():
        # A glyph that no font has is drawn as a box; class names have none such.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=(width, height), dpi=160, **kwargs)
        yield figure
        with replacing(epath.Path(path)) as file:
            figure.savefig(file, format="png", metadata={"Software": None})


def _canvas(figure: Figure) -> Axes:
    """One area over the whole figure whose coordinates are inches from the top left corner."""
    width, height = figure.get_size_inches()
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0), xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    axes.set_autoscale_on(False)
    return axes


def _displayable(images: np.ndarray) -> np.ndarray:
    """Images [..., h, w, c] as float RGB [..., h, w, 3] in [0, 1], grey unless c is 3."""
    images = np.asarray(images)
    scaled = images.astype(np.float32) / (255.0 if images.dtype == np.uint8 else 1.0)
    scaled = np.clip(np.nan_to_num(scaled), 0.0, 1.0)
    if images.shape[-1] == 3:
        return scaled
    return np.repeat(scaled.mean(axis=-1, keepdims=True), 3, axis=-1)


def _draw(axes: Axes, image: np.ndarray, x: float, y: float, size: float) -> Rectangle:
    """Draws an RGB image into the square of `size` inches at (x, y), its aspect kept.

    Returns the frame around it, for the caller to colour.
    """
    height, width = np.array(image.shape[:2]) * (size / max(image.shape[:2]))
    left, top = x + (size - width) / 2, y + (size - height) / 2
    axes.imshow(image, extent=(left, left + width, top + height, top), aspect="auto")
    frame = Rectangle((left, top), width, height, fill=False, linewidth=0.8, edgecolor=NEUTRAL)
    axes.add_patch(frame)
    return frame


def _class_name(class_names: Sequence[str], label: int, limit: int) -> str:
    """The name, or the number where there is none or no font can draw it."""
    name = class_names[label] if label < len(class_names) else ""
    return shorten(name if name and _drawn() >= set(map(ord, name)) else f"class {label}", limit)


@cache
def _fonts() -> tuple[str, ...]:
    installed = set(get_font_names())
    return "DejaVu Sans", *(font for font in FALLBACK_FONTS if font in installed)


@cache
def _drawn() -> frozenset[int]:
    """The characters that some font has."""
    faces = (get_font(findfont(name)) for name in _fonts())
    return frozenset(code for face in faces for code in face.get_charmap())


def loss_curves(history: Sequence[Mapping[str, Any]], path: epath.PathLike) -> None:
    """Draws each term of the objective by epoch, fit and validation, one panel a term.

    Args:
      history: epochs as in `results.json`: "epoch", and "fit" and "validation" that map a
        term's name to its value. A term may miss on either side; a value may be None or NaN
        (a gap). An empty history gives a figure that says so.
      path: the PNG to write.

    A panel has a logarithmic axis where all its values are positive and span a factor above 3.
    """
    sides: dict[str, tuple[str, Any, str]] = {
        "fit": (RIGHT, "-", "o"),
        "validation": (WRONG, "--", "s"),
    }
    found = (term for epoch in history for side in sides for term in epoch.get(side) or ())
    terms = list(dict.fromkeys(found))
    rows = (len(terms) + 1) // 2
    with _figure(path, 6.4, 0.5 + 2.3 * max(rows, 1), layout="constrained") as figure:
        if not terms:
            figure.text(0.5, 0.5, "no epoch was trained", ha="center")
            return
        grid = figure.add_gridspec(rows, 2)
        epochs = [epoch["epoch"] for epoch in history]
        for index, term in enumerate(terms):
            # An odd panel out is the total loss, over both columns.
            place = index + len(terms) % 2
            wide = len(terms) % 2 and index == 0
            axes = figure.add_subplot(grid[0, :] if wide else grid[place // 2, place % 2])
            shown = []
            for side, (colour, line, marker) in sides.items():
                column = [(epoch.get(side) or {}).get(term) for epoch in history]
                values = np.array(column, float)  # None becomes NaN
                if np.isfinite(values).any():
                    axes.plot(epochs, values, line, color=colour, marker=marker, markersize=3.5)
                    shown.append(values[np.isfinite(values)])
            title = "total loss" if term == "loss" else shorten(term, 56 if wide else 26)
            axes.set_title(title, loc="left", fontsize=11, parse_math=False)
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
            if shown and min(map(np.min, shown)) > 0:
                low, high = min(map(np.min, shown)), max(map(np.max, shown))
                if high > 3 * low:
                    axes.set_yscale("log")
                    ticks = partial(_tick, digits="125" if high < 30 * low else "1")
                    axes.yaxis.set_major_formatter(ticks)
                    axes.yaxis.set_minor_formatter(ticks)
        lines = [
            Line2D([], [], color=colour, linestyle=line, marker=marker, markersize=3.5)
            for colour, line, marker in sides.values()
        ]
        figure.legend(lines, list(sides), loc="outside upper right", ncols=2)


def _tick(value: float, position: int | None, digits: str) -> str:
    """A tick of a logarithmic axis in plain decimals, only where its first digit is wanted."""
    return f"{value:g}" if f"{value:e}"[0] in digits else ""


def score_curves(
    curves: Mapping[str, Sequence[Point]], key: str, measure: str, path: epath.PathLike
) -> None:
    """Draws a score by the values of a key, these evenly spaced, with ± one standard deviation.

    Args:
      curves: label → points in order; the same values need not be in all of them.
      key: what the values are of.
      measure: the name of the score.
      path: the PNG to write.
    """
    values = {p.value: None for points in curves.values() for p in points}
    places = {value: index for index, value in enumerate(sorted(values, key=in_order))}
    with _figure(path, 6.4, 4.0, layout="constrained") as figure:
        axes = figure.add_subplot()
        for index, (label, points) in enumerate(curves.items()):
            axes.errorbar(
                [places[point.value] for point in points],
                [point.score.mean for point in points],
                [point.score.sd or 0.0 for point in points],
                color=CLASS_COLOURS[index % len(CLASS_COLOURS)],
                marker=CLASS_MARKERS[index % len(CLASS_MARKERS)],
                markersize=5,
                capsize=3,
                label=shorten(label, 60).lstrip(
                    "_"
                ),  # matplotlib hides labels with a line in front
            )
        axes.set_xticks(range(len(places)), [shorten(str(v), 16) for v in places], parse_math=False)
        axes.set_xlabel(shorten(key, 60), parse_math=False)
        axes.set_ylabel(shorten(measure, 40), parse_math=False)
        if len(curves) > 1:
            for text in figure.legend(loc="outside upper center", ncols=1).get_texts():
                text.set_parse_math(False)


def reconstructions(images: np.ndarray, reconstructions: np.ndarray, path: epath.PathLike) -> None:
    """Draws the first ten images above their reconstructions and the absolute errors.

    Errors are the darker the larger, alike in all images: full ink is the largest of them.

    Args:
      images: uint8, or floats in [0, 1], [n, h, w, c]; three channels are RGB, any other
        number is shown as the grey of their mean.
      reconstructions: the same shape; values outside [0, 1] are clipped.
      path: the PNG to write.

    Raises:
      ValueError: the two differ in shape, or there is no image.
    """
    if images.shape != reconstructions.shape or images.ndim != 4 or not len(images):
        raise ValueError(
            "images and reconstructions should have one shape [n, h, w, c] with n >= 1, "
            f"not {images.shape} and {reconstructions.shape}."
        )
    size, gap, margin = 0.72, 0.06, 0.12
    count = min(len(images), 10)
    width, height = 2 * margin + max(count, 4) * (size + gap) - gap, 3 * (size + 0.36) + margin
    shown, made = _displayable(images[:count]), _displayable(reconstructions[:count])
    errors = np.abs(shown - made).mean(axis=-1, keepdims=True)
    most = float(errors.max())
    rows = {
        "images": shown,
        "reconstructions": made,
        f"absolute error, {most:.2f} at most": np.repeat(1 - errors / (most or 1.0), 3, axis=-1),
    }
    with _figure(path, width, height) as figure:
        axes = _canvas(figure)
        for row, (name, batch) in enumerate(rows.items()):
            top = 0.36 + row * (size + 0.36)
            axes.text(margin, top - 0.09, name, fontsize=10)
            for column, image in enumerate(batch):
                _draw(axes, image, margin + column * (size + gap), top, size).set_visible(False)


def embedding_map(
    positions: np.ndarray,
    labels: np.ndarray | None,
    class_names: Sequence[str],
    path: epath.PathLike,
    title: str = "",
) -> None:
    """Draws points of the plane, coloured by class, a class named where it stands out.

    Ten colours; an eleventh class and those after take the colours again with another marker.
    The legend names the first 40 classes and says how many there are besides.

    Args:
      positions: [n, 2].
      labels: class indices [n], or None: all points alike.
      class_names: one a class; an index beyond them is shown as "class i".
      path: the PNG to write.
      title: one line above the map.

    Raises:
      ValueError: positions that are not [n, 2], or labels of another length.
    """
    positions = np.asarray(positions)
    if positions.ndim != 2 or positions.shape[1] != 2:
        raise ValueError(f"positions should be [n, 2], their shape is {positions.shape}.")
    if labels is not None and len(labels) != len(positions):
        raise ValueError(f"there are {len(positions)} positions and {len(labels)} labels.")
    classes = np.zeros(len(positions), int) if labels is None else np.asarray(labels)
    present = [] if labels is None else np.unique(classes).tolist()
    named = present[:LEGEND_LIMIT]
    legend_rows = -(-(len(named) + (len(present) > len(named))) // 4)
    with _figure(path, 6.4, 6.4 + 0.24 * legend_rows, layout="constrained") as figure:
        axes = figure.add_subplot(xticks=[], yticks=[], aspect="equal")
        axes.set_anchor("N")
        axes.spines[:].set_visible(False)
        axes.set_title(shorten(title, 64), loc="left", fontsize=11, parse_math=False)
        palette = np.array(CLASS_COLOURS if present else [matplotlib.colors.to_rgb(RIGHT)])
        size = float(np.clip(20000 / max(len(positions), 1), 3.0, 36.0))
        for turn, marker in enumerate(CLASS_MARKERS):
            chosen = classes // 10 % len(CLASS_MARKERS) == turn
            axes.scatter(
                positions[chosen, 0], positions[chosen, 1], s=size, marker=marker, alpha=0.75,
                c=palette[classes[chosen] % len(palette)], linewidths=0,
            )  # fmt: skip
        if len(present) <= 20:
            _name_regions(axes, positions, classes, present, class_names)
        if not named:
            return
        handles = [
            Line2D([], [], color=CLASS_COLOURS[label % 10], linestyle="", markersize=7,
                   marker=CLASS_MARKERS[label // 10 % len(CLASS_MARKERS)])
            for label in named
        ]  # fmt: skip
        texts = [_class_name(class_names, label, 16) for label in named]
        if len(present) > len(named):
            handles.append(Line2D([], [], linestyle=""))
            texts.append(f"and {len(present) - len(named)} more")
        legend = figure.legend(
            handles,
            texts,
            loc="outside lower center",
            ncols=4,
            columnspacing=1.0,
            handletextpad=0.2,
        )
        for text in legend.get_texts():
            text.set_parse_math(False)


def _name_regions(
    axes: Axes, positions: np.ndarray, classes: np.ndarray, present: list[int], names: Sequence[str]
) -> None:
    """Writes a class's name where the class is dense and in the majority.

    A name that finds no such place, or would cover another, is left to the legend.
    """
    x, y = positions[:, 0], positions[:, 1]
    total, xs, ys = np.histogram2d(x, y, bins=16)
    taken: list[np.ndarray] = []
    for label in present:
        count, _, _ = np.histogram2d(x[classes == label], y[classes == label], bins=(xs, ys))
        column, row = np.unravel_index(np.argmax(count**2 / np.maximum(total, 1)), count.shape)
        if count[column, row] <= total[column, row] / 2:
            continue
        place = np.array([xs[column : column + 2].mean(), ys[row : row + 2].mean()])
        room = 1.9 * (xs[1] - xs[0]), 0.9 * (ys[1] - ys[0])
        if any((np.abs(place - other) < room).all() for other in taken):
            continue
        taken.append(place)
        axes.text(
            place[0], place[1], _class_name(names, label, 14), ha="center", va="center",
            fontsize=10, fontweight="bold", parse_math=False,
            path_effects=[withStroke(linewidth=4, foreground="white")],
        )  # fmt: skip


def retrieval_rows(
    queries: np.ndarray,
    neighbours: np.ndarray,
    query_labels: np.ndarray | None,
    neighbour_labels: np.ndarray | None,
    class_names: Sequence[str],
    path: epath.PathLike,
    *,
    found: np.ndarray | None = None,
) -> None:
    """Draws each query beside its nearest gallery images, nearest first.

    With labels a neighbour of the query's class has a blue frame and a tick, any other an orange
    frame and a cross, each with its class name.

    Args:
      queries: images [q, h, w, c] as in `reconstructions`.
      neighbours: images [q, r, h, w, c].
      query_labels: class indices [q], or None.
      neighbour_labels: class indices [q, r], or None.
      class_names: one a class; an index beyond them is shown as "class i".
      path: the PNG to write.
      found: bool [q, r], False where there is no such neighbour (its index is -1): an empty
        cell. None: all were found.

    Raises:
      ValueError: shapes that don't belong together, or no query.
    """
    count, rank = neighbours.shape[:2]
    expected = (len(queries), rank, *queries.shape[1:])
    if neighbours.shape != expected or queries.ndim != 4 or not count:
        raise ValueError(
            "queries [q, h, w, c] and neighbours [q, r, h, w, c] should belong together with "
            f"q >= 1, their shapes are {queries.shape} and {neighbours.shape}."
        )
    labels = None
    if query_labels is not None and neighbour_labels is not None:
        labels = np.column_stack([query_labels, neighbour_labels])
    found = np.ones((count, rank), bool) if found is None else found
    size, gap, margin = 0.84, 0.1, 0.12
    caption = 0.26 if labels is not None else 0.0
    pitch, top = size + caption + 0.14, 0.36
    # The query stands a little apart from its neighbours.
    lefts = [margin, *(margin + 0.16 + (column + 1) * (size + gap) for column in range(rank))]
    height = top + count * pitch + (0.3 if labels is not None else 0.0)
    with _figure(path, lefts[-1] + size + margin, height) as figure:
        axes = _canvas(figure)
        for left, head in zip(lefts, ["query", *(f"#{i + 1}" for i in range(rank))], strict=True):
            axes.text(left + size / 2, top - 0.11, head, ha="center", fontsize=10)
        rows = zip(_displayable(queries), _displayable(neighbours), strict=True)
        for row, (query, images) in enumerate(rows):
            y = top + row * pitch
            _draw(axes, query, lefts[0], y, size)
            if labels is not None:
                name = _class_name(class_names, labels[row, 0], 12)
                _caption(axes, name, lefts[0] + size / 2, y + size, "#1e293b")
            for column in np.flatnonzero(found[row]):
                left = lefts[column + 1]
                frame = _draw(axes, images[column], left, y, size)
                if labels is not None:
                    label = labels[row, column + 1]
                    right = label == labels[row, 0]
                    frame.set(edgecolor=RIGHT if right else WRONG, linewidth=3)
                    mark = "\N{CHECK MARK}" if right else "\N{BALLOT X}"
                    text = f"{mark} {_class_name(class_names, label, 10)}"
                    _caption(axes, text, left + size / 2, y + size, frame.get_edgecolor())
        if labels is not None:
            for x, colour, text in (
                (margin, RIGHT, "\N{CHECK MARK} class of the query"),
                (margin + 2.0, WRONG, "\N{BALLOT X} another class"),
            ):
                axes.text(x, height - 0.14, text, color=colour, fontsize=10)


def _caption(axes: Axes, text: str, x: float, y: float, colour: Any) -> None:
    axes.text(x, y + 0.18, text, color=colour, ha="center", fontsize=9, parse_math=False)
