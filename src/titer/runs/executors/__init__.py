"""Who does the runs, a file each: processes of this machine (`local`), a Ray cluster (`ray#address=auto&gpus=1`)."""

from titer.runs.executors.base import Crew, Executor
from titer.schema.registry import Kind

EXECUTORS = Kind("executor", "titer.runs.executors")

__all__ = ["EXECUTORS", "Crew", "Executor"]
