"""`python -m retrieval_jax` is the command `retrieval-jax`."""

from retrieval_jax.main import command

command()
