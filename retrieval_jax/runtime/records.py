"""Typed records as JSON: a `NamedTuple` is an object with its fields as keys, a tuple a list.

A field that is None is a key that is absent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, get_args, get_type_hints


def plain(value: Any) -> Any:
    """What JSON holds of NamedTuples, mappings, sequences and scalars; fields of None are left out.

    Example:
      >>> from typing import NamedTuple
      >>> Score = NamedTuple("Score", [("value", float), ("chance", float | None)])
      >>> plain({"nmi": Score(0.5, None), "sizes": (1, 2)})
      {'nmi': {'value': 0.5}, 'sizes': [1, 2]}
    """
    if hasattr(value, "_asdict"):
        value = {name: item for name, item in value._asdict().items() if item is not None}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (tuple, list)) else value


def leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """What nested dictionaries hold, by the keys that lead there with dots between.

    Example:
      >>> dict(leaves({"a": {"b": 1}, "c": [2]}))
      {'a.b': 1, 'c': [2]}
    """
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from leaves(value, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix, tree


class RecordError(ValueError):
    """A value of a JSON file is missing or has the wrong type; the message says which."""


_WORDS = {
    str: "a text", bool: "true or false", int: "a whole number", float: "a number",
    dict: "an object", tuple: "a list",
}  # fmt: skip


def typed(kind: Any, value: Any, where: str = "") -> Any:
    """The inverse of `plain`: checks what JSON held and builds the type. Unknown keys are dropped.

    Raises:
      RecordError: the first value that is missing or of another type.

    Example:
      >>> from typing import NamedTuple
      >>> Score = NamedTuple("Score", [("value", float), ("chance", float | None)])
      >>> typed(Score, {"value": 1, "chance": 0.5})
      Score(value=1.0, chance=0.5)
    """
    arguments = get_args(kind)
    if kind is Any:
        return value
    if type(None) in arguments:  # X | None
        return None if value is None else typed(arguments[0], value, where)
    if hasattr(kind, "_fields"):
        _check(isinstance(value, dict), where, dict)
        hints = get_type_hints(kind)
        fields = {}
        for name in kind._fields:
            path = f"{where}.{name}" if where else name
            if value.get(name) is not None:
                fields[name] = typed(hints[name], value[name], path)
            elif name not in kind._field_defaults:
                raise RecordError(f"{path} is missing")
        return kind(**fields)
    if arguments and isinstance(kind(), dict):
        _check(isinstance(value, dict), where, dict)
        return {key: typed(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if arguments:
        _check(isinstance(value, list), where, tuple)
        return tuple(typed(arguments[0], item, f"{where}.{i}") for i, item in enumerate(value))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        _check(abs(value) < 1e300, where, float)  # or Python can't convert it
        value = float(value)
    if kind is int and isinstance(value, int):
        _check(abs(value) < 2**63, where, kind)
    _check(isinstance(value, kind) and (kind is bool or not isinstance(value, bool)), where, kind)
    return value


def _check(right: bool, where: str, kind: Any) -> None:
    if not right:
        raise RecordError(f"{where} is not {_WORDS[kind]}")
