"""What a reader needs to know to trust and repeat a figure: versions, device, peak memory."""

from __future__ import annotations

import os
import platform
import resource
import sys
from importlib.metadata import version
from pathlib import Path

import jax

_PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "scikit-learn",
    "openTSNE",
    "tensorflow-datasets",
    "ml-collections",
)


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of what it computes with."""
    from retrieval_jax import __version__

    return {
        "python": platform.python_version(),
        "retrieval-jax": __version__,
        **{name: version(name) for name in _PACKAGES},
    }


def device() -> dict[str, str | int]:
    """The accelerator, and the host with the cores that this process may use."""
    first = jax.devices()[0]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "platform": first.platform,
        "kind": first.device_kind,
        "count": jax.device_count(),
        "host": f"{_processor()}, {cores} core{'' if cores == 1 else 's'}",
    }


def peak_memory_mb() -> int:
    """Peak host memory of this process, in MB (1e6 bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak * (1 if sys.platform == "darwin" else 1024) / 1e6)


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
