"""What memory there is, asked before it is needed."""

from __future__ import annotations

import os
import resource

from retrieval_jax.runtime.errors import UserError


def available() -> int:
    """Bytes that the system could give this process without swapping, as far as it says.

    The least of Linux's estimate, the limit of a container (cgroup 2) and that of the process
    (`ulimit -v`).
    """
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    try:
        with open("/proc/meminfo") as file:
            lines = dict(line.split(":") for line in file)
        limits.append(int(lines["MemAvailable"].split()[0]) << 10)
        with (
            open("/sys/fs/cgroup/memory.max") as most,
            open("/sys/fs/cgroup/memory.current") as now,
        ):
            limits.append(int(most.read()) - int(now.read()))  # "max" is no number
    except (OSError, ValueError, KeyError):
        pass
    virtual = resource.getrlimit(resource.RLIMIT_AS)[0]
    if virtual != resource.RLIM_INFINITY:
        limits.append(virtual)
    return max(min(limits), 0)


def require(need: int, what: str, cure: str) -> None:
    """Raises if something takes more memory than there is.

    Args:
      need: bytes.
      what: takes them, in the plural.
      cure: what the user can do, as an imperative.

    Raises:
      UserError: with the bytes needed, those available, and the cure.

    Example:
      >>> require(1 << 60, "the neighbours", "lower retrieval.neighbours")
      Traceback (most recent call last):
      retrieval_jax.runtime.errors.UserError: the neighbours take 1,152,921,504.6 GB of memory ...
    """
    there = available()
    if need > there:
        raise UserError(
            f"{what} take {need / 1e9:,.1f} GB of memory and {there / 1e9:,.1f} GB are available: "
            f"{cure}"
        )
