"""The embedded checkpoints, remade."""
