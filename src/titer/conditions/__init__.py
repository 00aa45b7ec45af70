"""The four immunization conditions: what each asks for, and what it says of curves. Imports no torch.

A condition is named as `stability#margin=0.05`; a file put into this folder is one more.
"""

from titer.conditions.base import Condition
from titer.schema.registry import Kind

CONDITIONS = Kind("condition", "titer.conditions")

__all__ = ["CONDITIONS", "Condition"]
