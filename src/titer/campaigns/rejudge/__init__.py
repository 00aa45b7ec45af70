"""Stored text judged again."""
