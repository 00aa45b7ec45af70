"""Grids of cells from a YAML file."""
