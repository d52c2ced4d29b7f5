"""Both terms beside reconstructions of five weights:

retrieval-jax sweep experiments/objectives/sweep.py --workdir=DIR
"""

from pathlib import Path

from retrieval_jax.sweep import Sweep

# Cross-entropy is about 1, EMP-SSL's loss -200, and the mean squared error of a pixel 0.005.
WEIGHTS = {
    "classification": ("0", "1", "10", "100", "1000"),
    "emp_ssl": ("0", "100", "1000", "10000", "100000"),
}


def get_sweep() -> Sweep:
    """Ten runs."""
    config = Path(__file__).with_name("config.py")
    return Sweep([f"{config}:{term}-{w}" for term, weights in WEIGHTS.items() for w in weights])
