"""Lazy polars frames over an output root, and the computations of the reading commands."""
