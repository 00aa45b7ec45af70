"""Data sets of the hub."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from titer.schema.errors import TiterError


def hub_answers(timeout: float = 1.0) -> bool:
    """Whether a connection to the hub opens within `timeout` seconds (one try, no retries)."""
    import socket
    from urllib.parse import urlsplit

    from huggingface_hub import constants

    address = urlsplit(constants.ENDPOINT)
    try:
        port = address.port or (443 if address.scheme == "https" else 80)
        socket.create_connection((address.hostname or "", port), timeout).close()
    except OSError:
        return False
    return True


def read_hub(name: str) -> list[Mapping[str, Any]]:
    """Rows of a hub set, `repo` or `repo:split`."""
    import datasets

    repo, _, split = name.partition(":")
    if datasets.config.HF_HUB_OFFLINE or not hub_answers():
        raise TiterError(
            f"data set {repo}: not a local file, and the hub cannot be reached: pass a local .jsonl or .parquet"
        )
    try:
        return list(datasets.load_dataset(repo, split=split or "train"))
    except (datasets.exceptions.DatasetNotFoundError, ValueError, OSError) as error:
        raise TiterError(f"data set {repo}: {str(error).splitlines()[0]}") from None
