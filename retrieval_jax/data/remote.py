"""Image sets on gs://, copied once to the machine that reads them."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from etils import epath

from retrieval_jax.data.cache import cache_home
from retrieval_jax.runtime.errors import UserError, printable, reason
from retrieval_jax.runtime.files import is_remote, locked, reaching, replacing
from retrieval_jax.runtime.progress import say

_THREADS = 16  # images are small files, and each waits for the network


def fetched(path: epath.PathLike, part: str = "") -> Path:
    """Returns a local path as it is, and for one on gs:// its copy in `~/.cache/retrieval_jax/gs`.

    Readers of ArrayRecord and images need local files. A file is copied again when its size or
    modification time on gs:// changes, and removed when it is gone there.

    Args:
      path: a file or directory, `~` being the home directory, or gs://BUCKET/….
      part: the only entry of the directory to copy, which need not exist; "" for everything.

    Returns:
      The local path.

    Raises:
      UserError: it doesn't exist on gs:// or can't be read, an object's name leads out of the
        directory, or the copy can't be written.

    Example:
      >>> fetched("images/train").as_posix()
      'images/train'
    """
    if not is_remote(path):
        return Path(os.path.expanduser(path))
    shown = printable(os.fspath(path))
    target = cache_home() / "gs" / shown.removeprefix("gs://").strip("/")
    try:
        # One process per machine copies; the others wait and find it done.
        with locked(target.with_name(f".{target.name}.lock")), reaching(epath.Path(path)):
            copied = _copy_what_changed(os.fspath(path), part, target)
    except FileNotFoundError as error:
        raise UserError(
            f"{shown} isn't there: give a path that exists on gs:// or on disk"
        ) from error
    except OSError as error:
        raise UserError(
            f"{shown} can't be copied to {target} ({reason(error)}): check that this machine may "
            "read the bucket and has room"
        ) from error
    if copied:
        say(f"  {copied:,} {'file' if copied == 1 else 'files'} copied to {target}")
    return target


def _copy_what_changed(url: str, part: str, target: Path) -> int:
    """Returns the number of files copied."""
    import fsspec

    store, root = fsspec.core.url_to_fs(url.rstrip("/"))
    # One request lists a thousand files; epath would make one or two per file.
    found = store.find(f"{root}/{part}".rstrip("/"), detail=True)
    if not found and not (part and store.exists(root)):
        raise FileNotFoundError(url)

    def copy(to: Path, name: str, info: dict[str, Any]) -> bool:
        changed = info["mtime"].timestamp()
        if to.is_file() and (to.stat().st_size, to.stat().st_mtime) == (info["size"], changed):
            return False
        to.parent.mkdir(parents=True, exist_ok=True)
        with replacing(epath.Path(to)) as file, store.open(name, "rb") as content:
            shutil.copyfileobj(content, file, 1 << 24)
        os.utime(to, (changed, changed))
        return True

    if part:  # so that the directory exists for whatever else is created in it
        target.mkdir(parents=True, exist_ok=True)
    files = {
        target / name.removeprefix(root).strip("/"): (name, info)
        for name, info in found.items()
        if not name.endswith("/")  # markers by which consoles show a directory
    }
    for to in files:  # names of objects are untrusted
        if ".." in to.relative_to(target).parts:
            raise UserError(
                f"{printable(url)} holds an object {to.name!r} whose path leads outside"
            )
    for old in (target / part).rglob("*") if found else ():
        if old.is_file() and old not in files:  # including what a killed copy left behind
            old.unlink()
    pool = ThreadPoolExecutor(_THREADS)
    try:
        return sum(pool.map(copy, files, *zip(*files.values(), strict=True)))
    finally:
        pool.shutdown(cancel_futures=True)
