"""The multi-loss training step, the loop around it, its checkpoints and its record."""
