"""Completions from a model behind an OpenAI-compatible server (vLLM, SGLang): `http://HOST/v1#model=NAME`.

What is sent is the token ids that `titer.models.generate.generate` would put into the model, so template, forced
start and greedy decoding are the same; texts differ only where the server's arithmetic does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from titer.data.chat import open_thought
from titer.data.tokens import encode_prompt
from titer.models.http import Reply, endpoint, persist, post, refusal, secret
from titer.schema.errors import TiterError

KEY = "TITER_GENERATE_KEY"
# servers fill what is not sent from the folder's generation_config.json: the argmax, whatever it says
GREEDY = {
    "temperature": 0,
    "seed": 0,
    "top_p": 1,
    "top_k": 1,
    "min_p": 0,
    "min_tokens": 0,
    "repetition_penalty": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "n": 1,
}


@dataclass(frozen=True, slots=True)
class Server:
    """Where completions come from. The key is read from the environment variable `TITER_GENERATE_KEY`, if set.

    429, 5xx, time-outs and replies without a text are tried again `retries` times after `backoff` s, doubled each
    time; `timeout` (s) bounds a request, `workers` are asked for at a time.
    """

    url: str
    model: str = "default"
    timeout: float = 300.0
    retries: int = 5
    backoff: float = 1.0
    workers: int = 16

    @classmethod
    def at(cls, url: str) -> Server:
        """The server that `--generate_url` names; `TiterError` for what is none."""
        where, _, options = url.partition("#")
        given = dict(parse_qsl(options))
        if set(given) - {"model"}:
            raise TiterError(f"generate_url: unknown option {min(set(given) - {'model'})!r}: write #model=NAME")
        endpoint("generate_url", where, "/completions", KEY)
        return cls(where, given.get("model", "default"))

    def generate(self, tokenizer: Any, prompts: Sequence[str], *, max_new_tokens: int) -> list[str]:
        """Greedy continuations of already rendered prompts, in their order.

        Raises `TiterError` when one of them cannot be had: nothing is made up for it.
        """
        address = endpoint("generate_url", self.url, "/completions", KEY)
        key = secret("generate_url", self.url, KEY)

        def one(number: int) -> str:
            ids = encode_prompt(tokenizer, prompts[number])
            payload = {"model": self.model, "prompt": ids, "max_tokens": max_new_tokens, **GREEDY}
            send = lambda: post(address, payload, key, self.timeout)  # noqa: E731
            reply = persist(send, lambda r: read_text(r.body) is not None, self.retries, self.backoff)
            text = read_text(reply.body)
            if text is None:
                raise self._refused(reply, number + 1)
            return open_thought(prompts[number]) + text.strip()

        with ThreadPoolExecutor(max(1, self.workers)) as pool:
            return list(pool.map(one, range(len(prompts))))  # an error cancels what has not begun

    def _refused(self, reply: Reply, number: int) -> TiterError:
        known = refusal("generate_url", self.url, reply, KEY, f"#model={self.model}", self.retries + 1)
        if known:
            return known
        said = "no text in its reply" if reply.status == 200 else reply.told
        return TiterError(
            f"generate_url {urlsplit(self.url).hostname}: prompt {number}: {said}: "
            "see the server's log, then run again"
        )


def read_text(body: Mapping[str, Any] | None) -> str | None:
    """The one text of a completion reply; None unless it holds exactly one."""
    try:
        choices = (body or {})["choices"]
        text = choices[0]["text"]
    except (LookupError, TypeError):
        return None
    return text if isinstance(text, str) and len(choices) == 1 else None
