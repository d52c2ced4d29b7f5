"""All methods with two seeds: retrieval-jax sweep experiments/methods/sweep.py --workdir=DIR"""

from pathlib import Path

from retrieval_jax.sweep import Sweep

METHODS = ("simclr", "vicreg", "barlow_twins", "byol", "swav", "emp_ssl")


def get_sweep() -> Sweep:
    """Twelve runs."""
    config = Path(__file__).with_name("config.py")
    return Sweep([f"{config}:{method}" for method in METHODS], seeds=[0, 1])
