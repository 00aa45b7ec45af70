"""Greedy decoding with the model's own cache, whatever its folder's files say about decoding.

transformers' `generate` fills every setting it is not given from the model's generation_config.json (penalties, banned
words, beams, least lengths), and a model class may bring a `generate` of its own. Here the next token is the argmax of
the logits, always; the model only says how its inputs and its cache are laid out.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from titer.models.shards import world


def left_padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask (B, T) with the padding on the left.

    Padding is under the mask, so a row is padded with its own first token: no pad token need be in the embedding.
    """
    width = max(len(r) for r in rows)
    ids = torch.tensor([[r[0]] * (width - len(r)) + list(r) for r in rows], device=device)
    mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows], device=device)
    return ids, mask


# their recurrent parts read padding in spite of the mask
READ_PADDING = frozenset({"minimax", "recurrent_gemma", "rwkv", "xlstm"})


def masks_padding(lm: Any) -> bool:
    """Whether a causal LM gives a row that is padded on the left what it gives the row alone."""
    takes_mask = "attention_mask" in inspect.signature(lm.forward).parameters
    return takes_mask and lm.config.model_type not in READ_PADDING


@torch.inference_mode()
def continued(
    lm: Any, rows: Sequence[Sequence[int]], *, max_new_tokens: int, ends: Collection[int], shared: bool = False
) -> list[list[int]]:
    """The greedy continuation of every row of token ids, up to and with its first end token.

    Rows that have ended leave the batch once half of those in it have. `shared`: processes hold the model together,
    so each goes on until all have ended.
    """
    said: list[list[int]] = [[] for _ in rows]
    if max_new_tokens < 1:
        return said
    state = _State.of(lm, *left_padded(rows, lm.device))
    open_rows, ended = list(range(len(rows))), [False] * len(rows)
    for _ in range(max_new_tokens):
        for row, token in zip(open_rows, state.advance(lm), strict=True):
            if not ended[row]:
                said[row].append(token)
                ended[row] = token in ends
        if _all_ended(all(ended), shared, lm.device):
            break
        staying = [i for i, row in enumerate(open_rows) if not ended[row]]
        if staying and 2 * len(staying) <= len(open_rows) and state.can_drop_rows:
            state.keep(staying)
            open_rows = [open_rows[i] for i in staying]
    return said


def _all_ended(mine: bool, shared: bool, device: torch.device) -> bool:
    """Whether this process's rows, and with `shared` those of all processes, have ended."""
    if not shared:
        return mine
    from torch import distributed

    going = torch.tensor(0 if mine else 1, device=device)
    distributed.all_reduce(going)
    return int(going) == 0 or world()[1] == 1


@dataclass
class _State:
    """Where a batch stands: all its ids so far, and what the model is given besides them."""

    ids: Tensor
    given: dict[str, Any]
    first: bool = True

    @classmethod
    def of(cls, lm: Any, ids: Tensor, mask: Tensor) -> _State:
        """Before the first pass, with an empty cache of the kind that the model takes."""
        from transformers import DynamicCache

        taken = inspect.signature(lm.forward).parameters
        given: dict[str, Any] = {"use_cache": True}
        if "attention_mask" in taken:
            given["attention_mask"] = None if bool(mask.all()) else mask
        if "position_ids" in taken:
            given["position_ids"] = (mask.cumsum(-1) - 1).masked_fill(mask == 0, 0)
        if "logits_to_keep" in taken:
            given["logits_to_keep"] = 1
        cache = "cache_params" if "cache_params" in taken else "past_key_values"
        if cache in taken and lm._supports_default_dynamic_cache():
            given[cache] = DynamicCache(config=lm.config.get_text_config(decoder=True))
        return cls(ids, given)

    def advance(self, lm: Any) -> list[int]:
        """One forward pass; the next token of every row."""
        new = None if self.first or not self._cached else 1
        inputs = lm.prepare_inputs_for_generation(
            self.ids, next_sequence_length=new, is_first_iteration=self.first, **self.given
        )
        output = lm(**inputs, return_dict=True)
        self.given = lm._update_model_kwargs_for_generation(output, self.given)
        tokens = output.logits[:, -1].argmax(-1)
        self.ids, self.first = torch.cat([self.ids, tokens[:, None]], dim=-1), False
        found: list[int] = tokens.tolist()
        return found

    @property
    def _cached(self) -> bool:
        """Whether the model has kept what it has read; else it reads everything again."""
        return any(self.given.get(name) is not None for name in ("past_key_values", "cache_params", "state"))

    @property
    def can_drop_rows(self) -> bool:
        """Whether all of the cache is of keys and values by row."""
        from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

        cache = self.given.get("past_key_values")
        plain = (DynamicLayer, DynamicSlidingWindowLayer)
        return type(cache) is DynamicCache and all(type(layer) in plain for layer in cache.layers)

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all other rows."""
        chosen = torch.tensor(rows, device=self.ids.device)
        self.ids = self.ids[chosen]
        for name in ("attention_mask", "position_ids"):
            if self.given.get(name) is not None:
                self.given[name] = self.given[name][chosen]
        self.given["past_key_values"].batch_select_indices(chosen)
