"""The working directory of a run, and the check that it holds no other run."""

from __future__ import annotations

import json
import os

from etils import epath

from retrieval_jax.runtime.errors import UserError, reason
from retrieval_jax.runtime.files import is_remote, make_directory, reaching, read_bytes, write_json
from retrieval_jax.runtime.records import leaves

_MISSING = "nothing"


def open_workdir(path: epath.Path) -> epath.Path:
    """Creates the directory if needed, and checks that it can be read and written.

    Raises:
      UserError: it can't be created, read or written.
    """
    try:
        make_directory(path)
        with reaching(path):
            probe = path / f".writable-{os.getpid()}"
            probe.write_text("yes")
            probe.read_text()
            probe.unlink()
            for left_over in path.glob(".*.tmp"):  # of a run that was killed while writing
                left_over.unlink()
    except OSError as error:
        cure = "give another --workdir"
        if is_remote(path):
            cure += ", or check that the bucket exists and this machine may read and write it"
        raise UserError(
            f"the workdir {str(path)!r} can't be written ({reason(error)}); {cure}"
        ) from error
    return path


def claim(workdir: epath.Path, name: str, content: dict) -> None:
    """Writes `content` to `workdir/name`, or checks that it already says the same.

    Raises:
      UserError: it holds something else; the sentence names the first differences.
    """
    path = workdir / name
    content = json.loads(json.dumps(content))  # as it will read back: tuples are lists
    try:
        held = json.loads(read_bytes(path))
    except FileNotFoundError:
        write_json(path, content)
        return
    except ValueError as error:
        raise UserError(
            f"{str(path)!r} is not readable JSON; give another --workdir or remove this one"
        ) from error
    if found := differences(held, content):
        raise UserError(
            f"the workdir {str(workdir)!r} holds another run: {found}; "
            "give another --workdir or remove that one"
        )


def differences(there: dict, here: dict) -> str:
    """The first three differences of two trees that JSON can hold, in words; "" if there are none.

    Example:
      >>> differences({"a": {"b": 1}, "c": 2}, {"a": {"b": 3}, "c": 2})
      'a.b is 1 there and 3 here'
    """
    held, asked = dict(leaves(there)), dict(leaves(here))
    found = [
        f"{key} is {held.get(key, _MISSING)!r} there and {asked.get(key, _MISSING)!r} here"
        for key in sorted(held.keys() | asked.keys())
        if held.get(key, _MISSING) != asked.get(key, _MISSING)
    ]
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return "; ".join(found[:3]) + more
