"""A finished run made readable: figures, the two-dimensional map and one self-contained page.

Nothing here computes a score; it shows `results.json` and arrays that the run already has. This
package imports none of its modules, so that reading results never loads matplotlib or openTSNE.
"""
