"""Reads `results.json` of format 1, which had neither chance levels nor baselines."""

from __future__ import annotations

from typing import NamedTuple

from retrieval_jax.report.results import (
    Clustering,
    ClusterScores,
    Provenance,
    Results,
    Retrieval,
    RetrievalScores,
    Score,
    Scores,
    Training,
)


class _Clustering1(NamedTuple):
    k: int
    inertia: float
    iterations: int
    converged: bool
    sizes: tuple[int, ...]
    gallery: dict[str, float | None] = {}
    queries: dict[str, float | None] = {}


class _Retrieval1(NamedTuple):
    cluster: dict[str, float | None] | None = None
    exhaustive: dict[str, float | None] | None = None
    kept: dict[str, float | None] = {}


class Results1(NamedTuple):
    """Format 1: scores without chance or baselines, cutoffs in their names ("precision@5")."""

    name: str
    seconds: dict[str, float]
    training: Training
    clustering: _Clustering1
    retrieval: _Retrieval1
    provenance: Provenance
    left_out: tuple[str, ...] = ()


def from_format_1(old: Results1) -> Results:
    """The same scores in today's types."""

    def side(scores: dict[str, float | None]) -> ClusterScores:
        nmi, ri, ari = (
            None if (value := scores.get(name)) is None else Score(value)
            for name in ("nmi", "ri", "ari")
        )
        return ClusterScores(nmi, ri, ari)

    def cuts(scores: dict[str, float | None], measure: str) -> dict[str, Score]:
        return {
            name.removeprefix(f"{measure}@"): Score(value)
            for name, value in scores.items()
            if name.startswith(f"{measure}@") and value is not None
        }

    def way(scores: dict[str, float | None] | None) -> RetrievalScores | None:
        if scores is None:
            return None
        return RetrievalScores(cuts(scores, "precision"), {}, cuts(scores, "map"))

    c, r = old.clustering, old.retrieval
    clustering = Clustering(*c[:5], side(c.gallery), side(c.queries))
    retrieval = Retrieval(way(r.cluster), way(r.exhaustive), cuts(r.kept, ""))
    model = old.provenance.config.get("model")
    features = model.get("bottleneck") if isinstance(model, dict) else None
    scores = Scores(clustering, retrieval, features if isinstance(features, int) else None)
    return Results(old.name, old.seconds, old.training, scores, old.left_out, old.provenance)
