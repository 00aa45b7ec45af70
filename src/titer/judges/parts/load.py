"""Models that judge: loaded once per process, safetensors only, never with remote code."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from titer.schema.errors import TiterError


@lru_cache(maxsize=2)
def causal(name: str, dtype: str, device: str) -> tuple[Any, Any]:
    """A causal language model and its tokenizer, by any name `titer` loads."""
    from titer.models.load import load_model

    return load_model(name, dtype=dtype, device=device)


@lru_cache(maxsize=2)
def classifier(name: str, dtype: str, device: str) -> tuple[Any, Any]:
    """A sequence classifier and its tokenizer, by folder or hub id; `TiterError` when it is not one or is damaged."""
    from transformers import AutoModelForSequenceClassification

    from titer.models.load import DTYPES, check_available, load_tokenizer

    local = check_available(name)
    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            name,
            dtype=DTYPES[dtype],
            use_safetensors=True,
            local_files_only=local,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise TiterError(f"judge {name}: cannot be loaded: {str(error).strip().splitlines()[0]}") from None
    except Exception as error:  # safetensors raises its own bare exception type on a damaged file
        if type(error).__name__ != "SafetensorError":
            raise
        raise TiterError(f"judge {name}: damaged weights ({error}): download it again") from None
    if info["missing_keys"]:
        raise TiterError(
            f"judge {name}: the weights lack {sorted(info['missing_keys'])[0]}: not a trained classifier; "
            "a generative judge is named guard:FOLDER_OR_ID"
        )
    return model.to(device).eval(), load_tokenizer(name)
