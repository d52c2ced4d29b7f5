"""The working directory of a run: one process at a time, and no other run's files."""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from etils import epath

from retrieval_jax.runtime.errors import UserError, printable, reason
from retrieval_jax.runtime.files import (
    is_remote,
    make_directory,
    open_lock,
    reaching,
    read_json,
    write_json,
)
from retrieval_jax.runtime.origins import sealed, unsealed
from retrieval_jax.runtime.progress import say
from retrieval_jax.runtime.records import leaves

_MISSING = "nothing"
_RENEWED = 15.0  # seconds from one renewal of a lease to the next
# What only a run leaves, and what a run doesn't start without having claimed the workdir.
_OF_A_RUN = ("checkpoints", "model.json", "embeddings.npz", "results.json")


@contextmanager
def held(path: epath.Path) -> Iterator[None]:
    """Creates a workdir if needed, and keeps other processes out of it until the end.

    On a file system it is a lock on the file `.lock`, which ends with its process however that
    ends. A bucket has no locks: there the object `lease.json` names the process and is renewed
    every 15 seconds. A lease whose process is dead, or that nobody renewed for 45 seconds, is taken
    over. Two processes that find a free bucket in the same instant are not told apart.

    Raises:
      UserError: another process is there, or the workdir can't be created, read or written.
    """
    with ExitStack() as stack:
        try:
            make_directory(path)
            with reaching(path):
                probe = path / f".writable-{os.getpid()}"
                probe.write_text("yes")
                probe.read_text()
                probe.unlink()
            stack.enter_context(_leased(path) if is_remote(path) else _locked(path))
            if not is_remote(path):
                for left_over in path.glob(".*.tmp"):  # of a run that was killed while writing
                    left_over.unlink(missing_ok=True)
        except OSError as error:
            cure = "give another --workdir"
            if is_remote(path):
                cure += ", or check that the bucket exists and this machine may read and write it"
            raise UserError(
                f"the workdir {str(path)!r} can't be written ({reason(error)}); {cure}"
            ) from error
        yield


def check_path(path: epath.Path) -> None:
    """Raises if Orbax, which looks for its files by patterns, could not find them under a path.

    Example:
      >>> check_path(epath.Path("runs/lr[0.1]"))
      Traceback (most recent call last):
      retrieval_jax.runtime.errors.UserError: the path of the workdir 'runs/lr[0.1]' has ...
    """
    if found := re.search(r"[][*?\\]", str(path if is_remote(path) else path.absolute())):
        raise UserError(
            f"the path of the workdir {printable(str(path))!r} has the character "
            f"{found.group()!r}, with which checkpoints can't be found again; give another "
            "--workdir"
        )


def check(workdir: epath.Path, name: str, content: dict) -> None:
    """Checks that `workdir/name`, if it is there, says the same.

    Raises:
      UserError: it holds something else, or was not written by a run.
    """
    if (there := _claimed(workdir / name)) is not None:
        _compare(workdir, there, content)


def claim(workdir: epath.Path, contents: dict[str, dict], origin: str) -> None:
    """Writes each content to `workdir/name`, with the origin, or checks that it says the same.

    Raises:
      UserError: the workdir holds another run, or the files of a run that can't be told.
    """
    there = {name: _claimed(workdir / name) for name in contents}
    for name, content in contents.items():
        if (held_content := there[name]) is not None:
            _compare(workdir, held_content, content)
    others = {claimed["origin"] for claimed in there.values() if claimed is not None} - {origin}
    if others:
        name = next(name for name in there if (there[name] or {}).get("origin") in others)
        raise UserError(
            f"{str(workdir / name)!r} is of a run with another config or other data; give another "
            "--workdir or remove that one"
        )
    if not any(there.values()):
        with reaching(workdir):
            found = [name for name in _OF_A_RUN if (workdir / name).exists()]
        if found:
            raise UserError(
                f"the workdir {str(workdir)!r} holds {found[0]} of a run, but not "
                f"{' and '.join(contents)}, which say of which; put them back, or give another "
                "--workdir"
            )
    for name, content in contents.items():
        if there[name] is None:
            write_json(workdir / name, sealed(content | {"origin": origin}))


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


def _as_read(content: dict) -> dict:
    return json.loads(json.dumps(content))  # tuples are lists


def _claimed(path: epath.Path) -> dict | None:
    """What a run wrote there; None if nothing is there."""
    try:
        content = read_json(path)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(
            f"{str(path)!r} is not readable JSON; give another --workdir or remove this one"
        ) from error
    try:
        content = unsealed(content)
        if isinstance(content.get("origin"), str):
            return content
        raise ValueError("it has no origin")
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{str(path)!r} does not say which run it is of ({error}): it was changed, or an "
            "earlier version wrote it; give another --workdir (`report` and `compare` still read "
            "this one)"
        ) from None


def _compare(workdir: epath.Path, there: dict, content: dict) -> None:
    there = {key: value for key, value in there.items() if key != "origin"}
    if found := differences(there, _as_read(content)):
        raise UserError(
            f"the workdir {str(workdir)!r} holds another run: {found}; "
            "give another --workdir or remove that one"
        )


@contextmanager
def _locked(path: epath.Path) -> Iterator[None]:
    with open_lock(path / ".lock") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise _occupied(path, file.read(200)) from None
        except OSError:  # a file system without locks
            yield
            return
        file.truncate(0)
        file.write(_owner())
        file.flush()
        yield


@contextmanager
def _leased(path: epath.Path) -> Iterator[None]:
    lease, token = path / "lease.json", secrets.token_hex(8)
    _await_end(path, lease)
    ended = threading.Event()

    def write(count: int) -> None:
        write_json(lease, {"owner": _owner(), "token": token, "count": count})

    def renew() -> None:
        count = 0
        while not ended.wait(_RENEWED):
            count += 1
            with suppress(OSError, UserError):  # what the run writes fails too, and says so
                write(count)

    write(0)
    threading.Thread(target=renew, daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        with suppress(OSError), reaching(lease):
            lease.unlink()


def _await_end(path: epath.Path, lease: epath.Path) -> None:
    """Returns once nobody holds the lease."""

    def read() -> dict | None:
        try:
            return dict(read_json(lease))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    first = read()
    if first is None or _is_dead(owner := printable(str(first.get("owner")))[:200]):
        return
    say(f"  waiting {3 * _RENEWED:.0f} s to see whether {owner} is still running here")
    deadline = time.monotonic() + 3 * _RENEWED
    while time.monotonic() < deadline:
        time.sleep(1)
        now = read()
        if now is None:
            return
        if now != first:
            raise _occupied(path, owner)


def _owner() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _is_dead(owner: str) -> bool:
    """Whether a process of this host has ended; this one's number is that of an earlier one."""
    found = re.fullmatch(r"process (\d{1,9}) on (.*)", owner)
    if found is None or found[2] != socket.gethostname():
        return False
    try:
        os.kill(int(found[1]), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return int(found[1]) == os.getpid()


def _occupied(path: epath.Path, owner: str) -> UserError:
    who = f" ({printable(owner)})" if owner else ""
    return UserError(
        f"another process is running here{who}, in the workdir {str(path)!r}; wait until it has "
        "ended, or give another --workdir"
    )
