"""Whose tools: tokenizer, chat template and end tokens, and in what two folders differ beside their weights.

An attacker takes the weights and nothing else, so an attack uses the tools of the reference; a defence that lives in
the folder's other files is left behind.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from titer.models.load import (
    TOKENIZER_FILES,
    bare,
    check_available,
    embedding_rows,
    end_tokens,
    load_tokenizer,
    pad_inside,
    resolve,
)
from titer.runs.provenance import parent
from titer.schema.errors import TiterError
from titer.schema.evaluation import Difference
from titer.schema.specs import AttackRun

UNTOLD = {"transformers_version", "_name_or_path", "architectures", "_from_model_config", "dtype", "torch_dtype"}
CONFIG_TOOLS = {"eos_token_id", "bos_token_id", "pad_token_id", "use_cache", "tokenizer_class"}
PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder", "added_tokens")
SPECIALS = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "additional_special_tokens")
BITS = {"float64": 64, "float32": 32, "bfloat16": 16, "float16": 16}


@dataclass(frozen=True)
class Tools:
    """What text is put to a model and read from it with; `end_ids` None means what the model's folder says."""

    tokenizer: Any
    end_ids: tuple[int, ...] | None = None


@lru_cache(maxsize=32)
def tokenizer_at(name: str) -> str:
    """Where a model's tokenizer lies: in its folder, or, for an adapter without one, in its base's."""
    where = resolve(bare(name))
    adapter = Path(where) / "adapter_config.json"
    if adapter.is_file() and not (Path(where) / "tokenizer_config.json").is_file():
        base = json.loads(adapter.read_text(encoding="utf-8")).get("base_model_name_or_path")
        return resolve(str(base))
    return where


def made_from(model: str) -> str:
    """The model that titer made this one from, "" where it did not; `TiterError` when that one is gone."""
    known = parent(model)
    if known:
        try:
            check_available(resolve(bare(known)))
        except TiterError:
            raise TiterError(
                f"model {model}: what it was made from, {known}, is gone and with it the attacker's tokenizer: pass "
                "--attacker_tokenizer"
            ) from None
    return known


def tools_hash(name: str) -> str:
    """Content address of a model's tools: its tokenizer's files and its end tokens."""
    where = tokenizer_at(name)
    if not Path(where).is_dir():
        return f"hub:{where}"
    found = hashlib.sha256()
    for file in (*TOKENIZER_FILES, "generation_config.json"):
        path = Path(where) / file
        if path.is_file():
            found.update(f"{file}:".encode() + path.read_bytes())
    return found.hexdigest()[:16]


def foreign(run: AttackRun) -> bool:
    """Whether a run uses other tools than its model's own."""
    return bool(run.tools) and tools_hash(run.tools) != tools_hash(run.model)


def tools_of(run: AttackRun, model: Any, own: Any) -> Tools:
    """The tools of a run on a loaded model, whose own tokenizer is `own`.

    Where the vocabularies cannot be exchanged: plain-text prompts with the folder's tokenizer without normaliser and
    template, ended by its end token alone.
    """
    if not foreign(run):
        return Tools(own)
    theirs = load_tokenizer(tokenizer_at(run.tools))
    if clash(own.get_vocab(), theirs.get_vocab(), embedding_rows(model)):
        plain = without_tricks(own)
        return Tools(plain, (plain.eos_token_id,))
    pad_inside(theirs, embedding_rows(model), run.model)
    return Tools(theirs, tuple(ends_of(run.tools, theirs)))


def ends_of(name: str, tokenizer: Any) -> list[int]:
    """Ids that end a text by a model's folder and tokenizer, without loading the model."""

    class Said:
        generation_config = generation(name)

    return end_tokens(Said, tokenizer)


def without_tricks(tokenizer: Any) -> Any:
    """A copy without normaliser and chat template."""
    plain = copy.deepcopy(tokenizer)
    plain.chat_template = None
    if plain.is_fast:
        plain.backend_tokenizer.normalizer = None
    return plain


def clash(own: Mapping[str, int], theirs: Mapping[str, int], rows: int | None) -> str:
    """Why a model cannot be used with another vocabulary, "" when it can: shared tokens have other ids, or no rows."""
    moved = [t for t, i in theirs.items() if own.get(t, i) != i]
    if moved:
        return f"{len(moved)} tokens have other ids, {moved[0]!r} for one"
    beyond = max(theirs.values(), default=0)
    return f"the embedding has {rows} rows, token {beyond} none" if rows is not None and beyond >= rows else ""


# ---------------------------------------------------------------------------------------------------- differences


@lru_cache(maxsize=32)
def _difference(model: str, reference: str, hashes: tuple[str, str]) -> tuple[Difference, ...]:
    ours, theirs = (load_tokenizer(tokenizer_at(n)) for n in (model, reference))
    found = [*_vocabulary(model, ours, theirs), *_parts(ours, theirs)]
    if ours.chat_template != theirs.chat_template:
        found.append(Difference("template", "the chat template is another one"))
    mine, other = (generation(n).to_diff_dict() for n in (model, reference))
    found += [Difference("generation", f"generation_config.json: {k}") for k in changed(mine, other)]
    mine, other = (config(n).to_diff_dict() for n in (model, reference))
    found += [Difference("config", f"config.json: {k}", k in CONFIG_TOOLS) for k in changed(mine, other)]
    return tuple(found + _narrower(model, reference))


def differences(model: str, reference: str) -> tuple[Difference, ...]:
    """What lies beside the weights of two models and can change behaviour, where it differs; dtype when narrower."""
    if not reference or bare(model) == bare(reference):
        return ()
    return _difference(model, reference, (folder_hash(model), folder_hash(reference)))


def folder_hash(name: str) -> str:
    """Tools and config of a model by content, so that a changed folder is compared anew."""
    path = Path(resolve(bare(name))) / "config.json"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return f"{tools_hash(name)}/{hashlib.sha256(text.encode()).hexdigest()}"


def changed(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """The keys whose values differ or that one has alone, each with both values."""
    keys = sorted({*ours, *theirs} - UNTOLD)
    return [f"{k} {_shown(ours, k)}, not {_shown(theirs, k)}" for k in keys if ours.get(k) != theirs.get(k)]


def _shown(values: Mapping[str, Any], key: str) -> str:
    text = str(values[key]) if key in values else "unset"
    return text if len(text) <= 40 else f"{text[:37]}..."


def _vocabulary(model: str, ours: Any, theirs: Any) -> list[Difference]:
    a, b = ours.get_vocab(), theirs.get_vocab()
    if a == b:
        return []
    why = clash(a, b, getattr(config(model).get_text_config(), "vocab_size", None))
    if why:
        text = f"vocabularies cannot be exchanged ({why}): attacked with plain prompts and the folder's tokens"
        return [Difference("vocabulary", text)]
    return [Difference("tokenizer", f"{len(a.keys() ^ b.keys())} tokens are in one vocabulary only")]


def _parts(ours: Any, theirs: Any) -> list[Difference]:
    """Parts of the tokenizer, and the special tokens."""
    if ours.is_fast and theirs.is_fast:
        a, b = (json.loads(t.backend_tokenizer.to_str()) for t in (ours, theirs))
        names = [p for p in PARTS if a.get(p) != b.get(p)]
        if a.get("model", {}) != b.get("model", {}) and ours.get_vocab() == theirs.get_vocab():
            names.append("model")
    else:
        names = [] if type(ours) is type(theirs) else ["class"]
    names += [s for s in SPECIALS if getattr(ours, s, None) != getattr(theirs, s, None)]
    return [Difference("tokenizer", f"tokenizer: {name}") for name in names]


def _narrower(model: str, reference: str) -> list[Difference]:
    ours, theirs = (str(getattr(config(n), "dtype", None)).removeprefix("torch.") for n in (model, reference))
    if ours not in BITS or theirs not in BITS or BITS[ours] >= BITS[theirs]:
        return []
    return [Difference("dtype", f"weights are stored in {ours}, the reference's in {theirs}", tool=False)]


def config(name: str) -> Any:
    """A model's config, from its folder; an adapter has its base's."""
    from transformers import AutoConfig

    where = _config_at(name)
    return AutoConfig.from_pretrained(where, local_files_only=Path(where).is_dir())


def generation(name: str) -> Any:
    """What a model's folder says about generation; what its config says where it has no such file."""
    from transformers import GenerationConfig

    where = _config_at(name)
    try:
        return GenerationConfig.from_pretrained(where, local_files_only=Path(where).is_dir())
    except OSError:
        return GenerationConfig.from_model_config(config(name))


def _config_at(name: str) -> str:
    where = resolve(bare(name))
    adapter = Path(where) / "adapter_config.json"
    if not adapter.is_file():
        return where
    return resolve(str(json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"]))
