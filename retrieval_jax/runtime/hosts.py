"""Several processes, one per host: how they meet, share what process 0 knows, and stop together.

Only process 0 reads and writes the workdir. A run of one process passes through all of this
unchanged.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from retrieval_jax.runtime.errors import Interrupted, UserError
from retrieval_jax.runtime.interruption import INTERRUPTED

_HEARTBEAT = 30  # seconds of silence after which a process counts as lost
_WATCH = 1.0  # seconds between checks on the others
_REASON = "retrieval_jax/reason"  # key under which the first process to fail stores the reason
_LONG = 7 * 24 * 3600  # seconds by which one process may be ahead of another
_PART = 1 << 26  # bytes per broadcast


def is_first() -> bool:
    """Whether this is the process that reads and writes the workdir, and reports."""
    return jax.process_index() == 0


@contextmanager
def meeting(coordinator: str, processes: int, process: int, timeout: int) -> Iterator[None]:
    """Wraps a run: all processes meet before it, and what ends one of them ends all.

    With a coordinator they meet there; without one `jax.distributed` finds it on TPU slices, under
    Slurm and, with the package `kubernetes`, in an Indexed Job. Anywhere else nothing happens. This
    has to come before any other use of JAX.

    A `UserError` in one process stops every process with the same sentence. A process that is lost
    stops the others with the exit code that means "run the same command again".

    Args:
      coordinator: HOST:PORT of process 0; "" = auto-detect.
      processes: how many there are; 0 = auto-detect.
      process: which one this is, from 0; -1 = auto-detect.
      timeout: seconds to wait for all to meet; then this process exits with code 1.

    Raises:
      UserError: the arguments are incomplete, `jax.distributed` rejects them, or another process
        has the same number or another count.
    """
    leaving = threading.Event()
    followers = [
        threading.Thread(target=_obey, args=(leaving, process), daemon=True),
        threading.Thread(target=_watch, args=(leaving,), daemon=True),
    ]
    if not (coordinator or _in_cluster()) or not _meet(
        coordinator, processes, process, timeout, followers
    ):
        yield
        return
    try:
        # All would print the same; errors, on standard error, are printed by all.
        with open(os.devnull, "w") as nowhere:
            quiet = contextlib.nullcontext() if is_first() else contextlib.redirect_stdout(nowhere)
            with quiet:
                yield
    except Interrupted:  # raised in all of them
        _end_together(leaving, followers)
        raise
    except BaseException as error:
        if not isinstance(error, UserError | KeyboardInterrupt):
            # Most likely a collective broken by the loss of another process: `_watch` says so.
            time.sleep(_HEARTBEAT + 10)
        leaving.set()
        _stop_all(error)
    _end_together(leaving, followers)


def from_first(value: Any) -> Any:
    """Process 0's value, which JSON can hold, on every process."""
    if jax.process_count() == 1:
        return value
    _wait_for_all("together", _LONG)  # a collective that has to connect first waits for 30 s only
    text = json.dumps(value).encode()
    size = int(multihost_utils.broadcast_one_to_all(np.int64(len(text))))
    data = np.frombuffer(text if is_first() else bytes(size), np.uint8)
    return json.loads(bytes(multihost_utils.broadcast_one_to_all(data)))


def arrays_from_first(arrays: Mapping[str, np.ndarray] | None) -> dict[str, np.ndarray] | None:
    """Process 0's arrays, or its None, on every process, bit for bit.

    They are sent in parts through device memory, so they may be larger than that.
    """
    if jax.process_count() == 1:
        return None if arrays is None else dict(arrays)
    mine = arrays if is_first() else None
    form = None if mine is None else {name: (a.dtype.name, a.shape) for name, a in mine.items()}
    form = from_first(form)
    if form is None:
        return None
    received = {}
    for name, (dtype, shape) in form.items():
        whole = np.empty(shape, dtype) if mine is None else np.array(mine[name], order="C")
        data = whole.reshape(-1).view(np.uint8)
        for start in range(0, len(data), _PART):
            part = data[start : start + _PART]
            part[:] = multihost_utils.broadcast_one_to_all(part)
        received[name] = whole
    return received


def _in_cluster() -> bool:
    """Whether `jax.distributed` can find the other processes, and should."""
    slurm = int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in os.environ
    # In an Indexed Job whose service account may list its pods.
    kubernetes = {
        "KUBERNETES_SERVICE_HOST",
        "JOB_COMPLETION_INDEX",
    } <= os.environ.keys() and importlib.util.find_spec("kubernetes") is not None
    tpu = importlib.util.find_spec("libtpu") is not None and any(
        Path("/dev").glob(pattern) for pattern in ("accel[0-9]*", "vfio/[0-9]*")
    )
    tpu = tpu and os.environ.get("JAX_PLATFORMS", "tpu").startswith("tpu")
    return slurm or kubernetes or tpu


def _meet(
    coordinator: str, processes: int, process: int, timeout: int, followers: list[threading.Thread]
) -> bool:
    """Connects all devices and starts the followers; returns whether there are other processes."""
    where = coordinator or "the cluster's coordinator"

    def give_up() -> None:
        number = "this process" if process < 0 else f"process {process} of {processes}"
        print(
            f"error: {number} waited {timeout} s for all processes to meet at {where}; start the "
            "same command on every host, with the same distributed.coordinator and "
            "distributed.processes and each host's own distributed.process "
            "(distributed.timeout is how long to wait)",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)

    # JAX aborts the process at its own timeout, so that must not come first.
    timer = threading.Timer(timeout, give_up)
    timer.daemon = True
    timer.start()
    # Without it JAX aborts all processes as soon as one is lost, before `_watch` sees it.
    jax.config.update("jax_enable_recoverability", True)
    try:
        try:
            jax.distributed.initialize(
                coordinator or None,
                processes or None,
                process if process >= 0 else None,
                cluster_detection_method="deactivate" if coordinator else None,
                initialization_timeout=timeout + 60,
                heartbeat_timeout_seconds=_HEARTBEAT,
                shutdown_timeout_seconds=_HEARTBEAT,
            )
        except ValueError as error:
            if not coordinator and "coordinator_address should be defined" in str(error):
                return False  # JAX finds no cluster: a single TPU host
            raise
        if coordinator:
            _compare_starts(processes, process, timeout)
        followers[0].start()
        # Connect now, while all are here: later one may be ahead of another by more than the 30 s
        # that Gloo waits. The second call connects the groups of `broadcast_one_to_all`.
        jax.pmap(lambda x: jax.lax.psum(x, "i"), "i")(np.zeros(jax.local_device_count()))
        multihost_utils.broadcast_one_to_all(np.int32(0))
        followers[1].start()
    except UserError:
        raise
    except Exception as error:  # from JAX, the network or a cluster's own service
        raise UserError(
            f"the processes can't meet at {where}: {' '.join(str(error).split())}"
        ) from error
    finally:
        timer.cancel()
    return True


def _compare_starts(processes: int, process: int, timeout: int) -> None:
    """Raises, and stops the others, if they were told another count or one has this number."""
    client, sentence = _client(), None
    try:
        client.key_value_set(f"retrieval_jax/started/{process}", str(processes))
    except Exception:  # the key is there: keys are not overwritten
        sentence = (
            f"two processes were started with distributed.process={process}; give each its own "
            f"number, from 0 to {processes - 1}"
        )
    first = client.blocking_key_value_get("retrieval_jax/started/0", 1000 * timeout)
    if first != str(processes):
        sentence = (
            f"process {process} was started with distributed.processes={processes} and process 0 "
            f"with {first}; give all the same"
        )
    if sentence:
        with contextlib.suppress(Exception):  # another one told them first
            client.key_value_set(_REASON, f"2 {sentence}")
        raise UserError(sentence)


def _client() -> Any:
    from orbax.checkpoint import multihost  # JAX has no public name for its key-value store

    return multihost.get_jax_distributed_client()


def _obey(leaving: threading.Event, process: int) -> None:
    """Ends this process when another one fails: collectives would wait for it forever."""
    client = _client()
    with contextlib.suppress(Exception):  # process 0, which holds the key, is gone
        reason = client.blocking_key_value_get(_REASON, 1000 * _LONG)
        if not leaving.is_set():
            code, _, sentence = reason.partition(" ")
            print(f"error: {sentence}", file=sys.stderr, flush=True)
            # JAX, which is asked only where nobody said, may still be connecting.
            _leave(int(code), process == 0 if process >= 0 else is_first())


def _watch(leaving: threading.Event) -> None:
    """Ends this process when another one is lost."""
    client, everyone = _client(), list(range(jax.process_count()))
    while not leaving.wait(_WATCH):
        try:
            live = client.get_live_nodes(everyone)
            lost = [i for i in everyone if i not in live]
        except Exception:  # process 0, which knows of the others, is gone
            lost = [0]
        if lost and not leaving.is_set():
            names = ", ".join(map(str, lost))
            print(
                f"lost process {names}; run the same command on every host to resume",
                file=sys.stderr,
                flush=True,
            )
            os._exit(INTERRUPTED)


def _stop_all(error: BaseException) -> NoReturn:
    """Tells all processes why this one fails, then ends it."""
    if isinstance(error, UserError):
        code, reason = 2, str(error)
        print(f"error: {reason}", file=sys.stderr)
    elif isinstance(error, KeyboardInterrupt):
        code, reason = 130, "interrupted at the keyboard; run the same command again to resume"
        print(reason, file=sys.stderr)
    else:
        code, reason = 1, f"{type(error).__name__}: {error}"
        traceback.print_exception(error)
    with contextlib.suppress(Exception):  # another one failed first; all stop with its reason
        _client().key_value_set(_REASON, f"{code} {reason} (process {jax.process_index()})")
    _leave(code, is_first())


def _leave(code: int, first: bool) -> NoReturn:
    """Ends this process once all know why; JAX's own exit would wait for them to end normally."""
    _wait_for_all("stopped", 5)
    if first:
        time.sleep(1)  # JAX aborts the others when this one is gone
    sys.stderr.flush()
    os._exit(code)


def _end_together(leaving: threading.Event, followers: list[threading.Thread]) -> None:
    """Ends normally: no process takes another's end for a loss."""
    _wait_for_all("ended", _LONG)
    leaving.set()
    if is_first():
        time.sleep(1)  # JAX aborts the others when this one is gone
    jax.distributed.shutdown()
    for follower in followers:  # Python can't exit while one is in JAX
        follower.join(10)


def _wait_for_all(name: str, seconds: int) -> None:
    with contextlib.suppress(Exception):  # whoever doesn't arrive has stopped already
        _client().wait_at_barrier(f"retrieval_jax/{name}", timeout_in_ms=1000 * seconds)
