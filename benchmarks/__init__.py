"""This project beside its peers, in one process run: ratios of interleaved times."""
