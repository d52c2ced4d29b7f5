"""The subcommands that make, ask and change an index of photos."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from etils import epath

from retrieval_jax.data.cache import cache_home
from retrieval_jax.photos import encoders, export, store
from retrieval_jax.photos.encoders import Encoder
from retrieval_jax.photos.index import Changes, Found, PhotoIndex
from retrieval_jax.photos.onnx_encoder import three
from retrieval_jax.report.text import Parser, say
from retrieval_jax.runtime.errors import UserError, printable, reason
from retrieval_jax.runtime.progress import complain

_LISTED = 20  # files of a kind that are named one by one
_COMPILE = ("index", "add", "refresh", "browse")


def main(command: str, arguments: Sequence[str]) -> int:
    """Does what the command line says; returns the exit status."""
    if command in _COMPILE:
        _keep_programs()
    try:
        options = _parser(command).parse_args(arguments)
        options.do(options)
    except UserError as error:
        complain(f"error: {error}")
        return 2
    return 0


def _keep_programs() -> None:
    from retrieval_jax.runtime.program_cache import keep_programs  # it imports JAX

    keep_programs(str(cache_home() / "programs"))


def _parser(command: str) -> argparse.ArgumentParser:
    do, text = {
        "index": (_index, "Embeds the photos below a folder, and groups them."),
        "query": (_query, "Finds the photos nearest to pictures, which need not be in the index."),
        "add": (_add, "Adds the photos below a folder that are not in the index yet."),
        "remove": (_remove, "Takes photos, or all below folders, out of the index; files stay."),
        "refresh": (_refresh, "Embeds new and changed photos, and drops those that are gone."),
        "duplicates": (_duplicates, "Groups photos that are the same or nearly; deletes nothing."),
        "clusters": (_clusters, "Lists the clusters, each with its most typical photo."),
        "browse": (_browse, "Serves the index as a page to this machine until Ctrl-C."),
        "export": (_export, "Writes embeddings and paths in the form of another program."),
    }[command]
    parser = Parser(prog=f"retrieval-jax {command}", description=text)
    parser.set_defaults(do=do)
    if command == "index":
        parser.add_argument("photos", metavar="PHOTOS", help="folder, of any depth")
        parser.add_argument("--output", required=True, metavar="INDEX", help="new directory")
        parser.add_argument("--clusters", default="auto", metavar="K", help="auto: √n")
    else:
        asked = command in ("query", "clusters", "export", "browse")
        indexed = "INDEX-or-RUN" if asked else "INDEX"
        parser.add_argument("index", metavar=indexed, help="directory that index has made")
    if command == "add":
        parser.add_argument("photos", metavar="PHOTOS", help="folder, of any depth")
    if command == "remove":
        parser.add_argument("paths", nargs="+", metavar="PATH")
    if command == "browse":
        parser.add_argument("--port", type=int, default=0, help="0: any that is free")
    if command in ("index", "query", "add", "refresh", "browse"):
        source = parser.add_mutually_exclusive_group()
        source.add_argument(
            "--encoder", metavar="module:name", help="a function of images, or FILE.onnx"
        )
        source.add_argument("--run", metavar="RUN", help="the encoder of a finished run")
        if command == "index":
            source.add_argument(
                "--embeddings", metavar="FILE", help="ready ones: .npz, .npy with .txt, or .parquet"
            )
            parser.add_argument("--size", type=_count, metavar="PIXELS", help="of FILE.onnx' input")
            for name in ("--mean", "--deviation"):
                parser.add_argument(
                    name, type=_three, metavar="R,G,B", help="of FILE.onnx, for pixels of 0 to 1"
                )
    if command == "query":
        parser.add_argument("images", nargs="+", metavar="IMAGE")
        parser.add_argument("--neighbours", type=_count, default=12)
        searched = parser.add_mutually_exclusive_group()
        searched.add_argument("--probes", type=_count, default=4, help="clusters to search")
        searched.add_argument("--exhaustive", action="store_true", help="search all of them")
    if command == "duplicates":
        parser.add_argument(
            "--threshold", type=float, default=0.3, help="1 - cosine of embeddings (default 0.3)"
        )
    if command == "clusters":
        form = parser.add_mutually_exclusive_group()
        form.add_argument("--html", metavar="PAGE", help="write a page of galleries")
        form.add_argument("--csv", metavar="FILE", help="write path, cluster and distance")
        form.add_argument("--links", metavar="DIR", help="make a folder of links for each")
    if command == "export":
        parser.add_argument("--to", choices=export.FORMS, required=True)
        parser.add_argument("--output", required=True, metavar="DIR", help="new directory")
    if command in ("query", "duplicates"):
        form = parser.add_mutually_exclusive_group()
        form.add_argument("--html", metavar="PAGE", help="write a page with thumbnails")
        form.add_argument("--json", action="store_true")
        form.add_argument("--paths", action="store_true", help="paths alone, one a line")
    return parser


def _index(options: argparse.Namespace) -> None:
    clusters = None if options.clusters == "auto" else _number_of(options.clusters)
    index, changes = PhotoIndex.create(
        options.output,
        options.photos,
        encoder=_encoder(options),
        embeddings=encoders.ready_embeddings(options.embeddings) if options.embeddings else None,
        clusters=clusters,
    )
    _unreadable(changes)
    groups = len(index.content.centroids)
    say(f"{len(index):,} photos in {groups} clusters: {options.output}", sys.stdout)


def _query(options: argparse.Namespace) -> None:
    index = _index_or_run(options.index, _encoder(options))
    if index.content.encoder.get("kind") not in (encoders.PRETRAINED, encoders.READY):
        _keep_programs()
    probes = None if options.exhaustive else options.probes
    answers = [(image, index.query(image, options.neighbours, probes)) for image in options.images]
    if options.json:
        _print_json([{"query": image, **_plain(found)} for image, found in answers])
    elif options.html:
        from retrieval_jax.photos import pages  # Jinja: not for other answers

        _write(options.html, pages.answers(answers))
    else:
        for image, found in answers:
            if not options.paths:
                say(f"{image}:", sys.stdout)
            for path, distance, cluster in zip(*found, strict=True):
                beside = "" if options.paths else f"  {distance:.4f}  cluster {cluster:<4} "
                say(f"{beside}{path}", sys.stdout)


def _add(options: argparse.Namespace) -> None:
    _changed(PhotoIndex.open(options.index, _encoder(options)).add(options.photos))


def _remove(options: argparse.Namespace) -> None:
    _changed(PhotoIndex.open(options.index).remove(options.paths))


def _refresh(options: argparse.Namespace) -> None:
    _changed(PhotoIndex.open(options.index, _encoder(options)).refresh())


def _duplicates(options: argparse.Namespace) -> None:
    if not 0 <= options.threshold <= 2:
        raise UserError(f"--threshold is {options.threshold}: give 0 to 2")
    found = PhotoIndex.open(options.index).duplicates(options.threshold)
    if options.json:
        groups = zip(found.groups, found.exact.tolist(), found.distances.tolist(), strict=True)
        _print_json(
            [{"keep": g[0], "others": g[1:], "exact": e, "distance": d} for g, e, d in groups]
        )
    elif options.html:
        from retrieval_jax.photos import pages

        _write(options.html, pages.duplicates(found))
    elif options.paths:  # what could go: all but the one to keep
        for group in found.groups:
            for path in group[1:]:
                say(path, sys.stdout)
    else:
        for group, exact, distance in zip(*found, strict=True):
            say("the same bytes:" if exact else f"near, {distance:.4f}:", sys.stdout)
            for place, path in enumerate(group):
                say(f"  {'keep ' if place == 0 else '     '}{path}", sys.stdout)
        say(f"{len(found.groups):,} groups; nothing was deleted", sys.stdout)


def _clusters(options: argparse.Namespace) -> None:
    index = _index_or_run(options.index)
    if options.html:
        from retrieval_jax.photos import pages

        _write(options.html, pages.clusters(index))
    elif options.csv:
        export.table(index, options.csv)
        say(f"table: {options.csv}", sys.stdout)
    elif options.links:
        export.links(index, options.links)
        say(f"links: {options.links}", sys.stdout)
    else:
        for number in range(len(index.content.centroids)):
            paths = index.cluster(number).paths
            typical = paths[0] if paths else "empty"
            say(f"cluster {number:<5} {len(paths):>7,} photos  {typical}", sys.stdout)


def _export(options: argparse.Namespace) -> None:
    export.export(_index_or_run(options.index), options.to, options.output)
    say(f"{options.to}: {options.output}", sys.stdout)


def _browse(options: argparse.Namespace) -> None:
    from retrieval_jax.photos import browse

    index = _index_or_run(options.index, _encoder(options))
    try:
        server, address = browse.server(index, options.port)
    except (OSError, OverflowError) as error:
        raise UserError(
            f"port {options.port} can't be listened on ({reason(error)}): leave --port out"
        ) from error
    say(f"{address}\nCtrl-C ends it.", sys.stdout)
    with server:
        server.serve_forever()


def _index_or_run(directory: str, encoder: Encoder | None = None) -> PhotoIndex:
    if not store.exists(Path(directory)) and (epath.Path(directory) / "model.json").exists():
        return PhotoIndex.of_run(directory)
    return PhotoIndex.open(directory, encoder)


def _encoder(options: argparse.Namespace) -> Encoder | None:
    """The one that is given; None for that of the index, or the pretrained one."""
    given = [getattr(options, name, None) for name in ("size", "mean", "deviation")]
    if options.encoder and options.encoder.lower().endswith(".onnx"):
        size, mean, deviation = given
        return encoders.of_onnx(options.encoder, size and (size, size), mean, deviation)
    if given != [None, None, None]:
        raise UserError("--size, --mean and --deviation belong to --encoder FILE.onnx")
    if options.encoder:
        return encoders.of_function(options.encoder)
    return encoders.of_run(options.run) if options.run else None


def _changed(changes: Changes) -> None:
    _unreadable(changes)
    counts = (
        f"{len(paths):,} {name}" for name, paths in zip(changes._fields, changes, strict=True)
    )
    say(", ".join(counts), sys.stdout)


def _unreadable(changes: Changes) -> None:
    for line in changes.unreadable[:_LISTED]:
        say(f"left out: {line}", sys.stderr)
    if (more := len(changes.unreadable) - _LISTED) > 0:
        say(f"left out: {more:,} more that can't be read", sys.stderr)


def _plain(found: Found) -> dict[str, Any]:
    return {
        "paths": found.paths,
        "distances": found.distances.tolist(),
        "clusters": found.clusters.tolist(),
    }


def _print_json(value: Any) -> None:
    say(json.dumps(value, indent=1), sys.stdout)


def _write(page: str, document: str) -> None:
    from retrieval_jax.report.document import write

    try:
        write(page, document)
    except OSError as error:
        raise UserError(f"{printable(page)} can't be written ({reason(error)})") from error
    say(f"page: {page}", sys.stdout)


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def _three(text: str) -> tuple[float, ...]:
    return three(text.split(","))


def _number_of(text: str) -> int:
    try:
        return _count(text)
    except ValueError:
        raise UserError(
            f"--clusters is {printable(text)!r}: give auto or a number from 1"
        ) from None
