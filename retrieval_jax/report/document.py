"""Pages that are one file: Jinja templates, their styles and scripts inside.

A page asks for nothing from outside, which its content security policy forbids too; the policy
names the hashes of its own style and scripts, so that no other ever runs.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from etils import epath
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from retrieval_jax.report.text import duration, loss, score
from retrieval_jax.runtime.errors import printable
from retrieval_jax.runtime.files import replacing

_HERE = Path(__file__).parent / "templates"


def render(
    template: Path | str, *, scripts: Sequence[str] = (), policy: str = "", **values: Any
) -> str:
    """A whole HTML document; every value in it is escaped, line breaks and controls spelt out.

    Args:
      template: a file, or the name of one of `report/templates`.
      scripts: names of files there, which the page runs in this order.
      policy: the content security policy, instead of the strictest one.
      values: what the template is about.
    """
    path = _HERE / template
    sources = [(_HERE / name).read_text("utf-8") for name in ("style.css", *scripts)]
    style, *others = map(_hash, sources)
    allowed = f"; script-src {' '.join(others)}" if others else ""
    policy = policy or (
        f"default-src 'none'; style-src {style}; img-src data:{allowed}; base-uri 'none'; "
        "form-action 'none'"
    )
    inside = list(map(Markup, sources))  # files of this package
    return (
        _environment(path.parent)
        .get_template(path.name)
        .render(policy=policy, stylesheet=inside[0], scripts=inside[1:], **values)
    )


def chart(
    title: str,
    x: str,
    y: str,
    series: Mapping[str, Sequence[tuple[float, float | None]]],
    *,
    whole: bool = False,
) -> dict[str, Any]:
    """Lines for `charts.js`: (x, y) points by name, of which y may be None or not finite: a gap.

    Args:
      title: what it shows.
      x: name of the axis.
      y: the same.
      series: name → points, ascending in x.
      whole: whether the axis of y is from 0 to 1, whatever the values.
    """
    lines = [
        {
            "name": printable(name),
            "points": [(a, b if b is not None and math.isfinite(b) else None) for a, b in points],
        }
        for name, points in series.items()
    ]
    return {"title": printable(title), "x": x, "y": y, "whole": whole, "series": lines}


def tojson(value: Any) -> Markup:
    """JSON without the spaces that `tojson` of Jinja leaves, and as safe inside of a script."""
    return htmlsafe_json_dumps(value, separators=(",", ":"), allow_nan=False)


def write(path: epath.PathLike, document: str) -> None:
    """Writes a document as UTF-8; what can't be encoded (a lone surrogate) is spelt out."""
    with replacing(epath.Path(path)) as file:
        file.write(document.encode("utf-8", "backslashreplace"))


@cache
def _environment(folder: Path) -> Environment:
    made = Environment(
        loader=FileSystemLoader([folder, _HERE]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if hasattr(value, "__html__") else printable(str(value)),
    )
    made.filters |= {"score": score, "loss": loss, "duration": duration}
    return made


def _hash(source: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"
