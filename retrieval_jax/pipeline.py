"""One run, end to end: data, train, embed, cluster, rank, score, map, baselines, report."""

from __future__ import annotations

import json
import shlex
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict
from tqdm import tqdm

from retrieval_jax import config as configuration
from retrieval_jax import stages
from retrieval_jax.data.images import ImageSet, LazyImages, names_of
from retrieval_jax.report import page
from retrieval_jax.report.map import lay_out
from retrieval_jax.report.results import (
    Device,
    Provenance,
    Results,
    describe_data,
    finished,
    left_out,
    plain,
    typed,
    write,
)
from retrieval_jax.runtime import hosts, provenance
from retrieval_jax.runtime.errors import Interrupted, UserError
from retrieval_jax.runtime.files import checksum, in_one_sentence, write_arrays, write_json
from retrieval_jax.runtime.interruption import Interruption
from retrieval_jax.runtime.program_cache import keep_programs
from retrieval_jax.runtime.progress import say
from retrieval_jax.runtime.stage_cache import kept
from retrieval_jax.runtime.workdir import claim, differences, open_workdir

STAGES = ("data", "train", "embed", "cluster", "rank", "score", "map", "baselines", "report")


def run(
    config: ConfigDict,
    workdir: epath.Path,
    arguments: list[str],
    *,
    started: float | None = None,
    interruption: Interruption | None = None,
) -> Results:
    """Does everything that the config says and leaves it in the workdir.

    The same call on a workdir that an interrupted run left goes on where that one was: inside an
    epoch from its last save, after it with the stage that was not done; on any number of devices
    and hosts. It ends with the same numbers. A finished run is left as it is.

    Args:
      config: as `retrieval_jax.config.default` has it.
      workdir: made if it isn't there. With several processes the first alone reads and writes it.
      arguments: of the command line, for the record.
      started: `time.perf_counter()` when the command began, if it was before this call.
      interruption: asked whether to stop; by default never.

    Returns:
      What `results.json` holds.

    Raises:
      UserError: a sentence on what is wrong with the config, the data or the workdir.
      Interrupted: the run was told to stop, and can go on.
    """
    started = time.perf_counter() if started is None else started
    interruption = interruption or Interruption()
    configuration.check(config)
    keep_programs(config.compilation_cache)
    _claim_config(workdir, config)
    seconds: dict[str, float] = {}
    first_step: list[float] = []  # seconds to it, where this call trains

    def tell_first_step() -> None:
        first_step.append(time.perf_counter() - started)
        say(f"  first step after {first_step[0]:.1f} s")

    with tqdm(total=len(STAGES), disable=None, leave=False) as bar:
        stage = partial(_stage, workdir, bar, seconds, interruption)
        with stage("data"):
            data, parts, classes = stages.load(config)
            _claim_data(workdir, data)
            say(f"  {data.description}")
        complete = hosts.from_first(plain(finished(workdir)) if hosts.is_first() else None)
        if complete is not None:
            say("this run is complete")
            return typed(Results, complete)
        with stage("train"), interruption.deferred() as asked_to_stop:
            model, state, history = stages.fit(
                config, workdir, data, parts, classes, tell_first_step, asked_to_stop
            )
            # Of all epochs, those before an interruption included.
            seconds["train"] = sum(row["seconds"] for row in history)
        with stage("embed"):
            embed = stages.embedder(config, model)
            arrays, seconds["embed"] = kept(
                workdir / "embeddings.npz",
                checksum(state.variables),
                lambda: stages.embed_all(embed, state, data, parts)._asdict(),
            )
            embeddings = stages.Embeddings(**arrays)
        with stage("cluster"):
            clusters, seconds["cluster"] = kept(
                workdir / "clusters.npz",
                checksum(arrays),
                lambda: stages.cluster(config, embeddings),
            )
        with stage("rank"):
            neighbours, seconds["rank"] = kept(
                workdir / "neighbours.npz",
                checksum([arrays, clusters]),
                lambda: stages.rank(config, parts, embeddings, clusters),
            )
        with stage("score"):
            scores = stages.score(config, data, parts, embeddings, clusters, neighbours)
        points = config.report.tsne_points
        placed = None
        with stage("map"):
            if points > 0:
                placed, seconds["map"] = kept(
                    workdir / "map.npz",
                    checksum([arrays, points, config.seed]),
                    lambda: lay_out(embeddings.gallery, points, config.seed)._asdict(),
                )
        with stage("baselines"):
            baselines = stages.score_baselines(config, data, parts, embed, model)
        results = Results(
            name=config.name,
            seconds={},
            training=stages.training_record(config, state, history, next(iter(first_step), None)),
            scores=scores,
            left_out=left_out(
                labelled=data.labels is not None,
                validated=len(parts.validation) > 0,
                gallery=len(parts.gallery),
                map_points=points,
            ),
            provenance=Provenance(
                command=shlex.join(["python", "-m", "retrieval_jax.main", *arguments]),
                config=config.to_dict(),
                versions=provenance.versions(),
                device=typed(Device, provenance.device()),
                seed=config.seed,
                date=datetime.now(UTC).isoformat(timespec="seconds"),
                data=describe_data(data, parts),
                peak_memory_mb=provenance.peak_memory_mb(),
            ),
            baselines=baselines,
        )
        with stage("report"):
            reconstructions = stages.reconstruct_examples(config, model, state, data, parts)
            if hosts.is_first():
                examples = page.choose_examples(
                    data.images,
                    data.labels,
                    parts.gallery,
                    parts.queries,
                    neighbours["cluster_indices"],
                    config.report.examples,
                    reconstructions=reconstructions,
                    mapped=None if placed is None else placed["rows"],
                )
                write_arrays(workdir / "examples.npz", **examples)
                called = {
                    "gallery": names_of(data.names, parts.gallery),
                    "queries": names_of(data.names, parts.queries),
                }
                write_json(workdir / "images.json", called)
                figures = page.draw(workdir, results)
        results = results._replace(seconds=seconds)
        if hosts.is_first():
            with in_one_sentence(workdir):
                page.write_page(workdir, results, figures)
                write(workdir, results)  # last: with it the run is complete
    return results


@contextmanager
def _stage(
    workdir: epath.Path, bar: tqdm, seconds: dict[str, float], interruption: Interruption, name: str
) -> Iterator[None]:
    if interruption.asked():
        raise Interrupted
    bar.set_description(name)
    if bar.disable:
        say(f"{name} …")
    start = time.perf_counter()
    with in_one_sentence(workdir):
        yield
    elapsed = time.perf_counter() - start
    seconds.setdefault(name, elapsed)  # a stage that an earlier start did has set its own
    say(f"{name} done in {elapsed:.1f} s")
    bar.update()


def _claim_config(workdir: epath.Path, config: ConfigDict) -> None:
    """Refuses another config than the run began with or, but for paths, the first process has."""
    # Where the processes meet may change from start to start.
    claimed = config.to_dict()
    del claimed["distributed"]
    if hosts.is_first():
        open_workdir(workdir)
        with in_one_sentence(workdir):
            claim(workdir, "config.json", claimed)
    own = json.loads(json.dumps(claimed))
    theirs = hosts.from_first(own)
    for config in (own, theirs):
        for host in ("directory", "file"):
            config["data"][host] = None
        config["compilation_cache"] = None
    if found := differences(theirs, own):
        raise UserError(
            f"this process has another config than process 0: {found}; start all by one command"
        )


def _claim_data(workdir: epath.Path, data: ImageSet) -> None:
    """Refuses other images than those that the run began with, on any host."""
    fingerprint = _fingerprint(data)
    if hosts.is_first():
        claim(workdir, "data.json", fingerprint)
    if hosts.from_first(fingerprint) != fingerprint:
        raise UserError("the data is not what process 0 has; give every host the same")


def _fingerprint(data: ImageSet) -> dict[str, Any]:
    """Tells whether a resumed run sees the data that it began with.

    The checksum is of all pixels and labels; for images that are read later, it is of the names and
    sizes of their files and the labels.
    """
    images, labels = data.images, b"" if data.labels is None else data.labels.tobytes()
    content = (
        images.identity.encode()
        if isinstance(images, LazyImages)
        else np.ascontiguousarray(images).data
    )
    return {"images": len(images), "checksum": zlib.crc32(labels, zlib.crc32(content))}
