"""A served model against a stub on loopback: what is sent, what is believed, and what ends it with one line."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from titer.evaluation import evaluate as evaluate_module
from titer.models.generate import generate
from titer.models.load import load_model
from titer.models.remote import GREEDY, KEY, Server, read_text
from titer.runs.execute import execute
from titer.schema.errors import TiterError
from titer.schema.evaluation import Data, Evaluation
from titer.schema.specs import AttackRun, Named, ProbeSet, Selection
from titer.schema.types import Budget

Answer = Callable[[dict[str, Any]], Any]


def said(text: Any) -> dict[str, Any]:
    return {"choices": [{"text": text}]}


class Stub:
    """A server whose `answer` makes a reply of each request: an object, bytes, or a status."""

    def __init__(self) -> None:
        self.answer: Answer = lambda asked: said("fine")
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                stub.asked.append(asked | {"path": self.path})
                stub.headers.append(dict(self.headers))
                answer = stub.answer(asked)
                status = answer if isinstance(answer, int) else 200
                body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", KEY):
        monkeypatch.delenv(name, raising=False)
    server = Stub()
    yield server
    server.server.shutdown()
    server.server.server_close()


def ask(stub: Stub, tokenizer: Any, n: int = 1, **options: Any) -> list[str]:
    server = Server(stub.url, **{"backoff": 0.001, "timeout": 5.0, "retries": 2, **options})
    return server.generate(
        tokenizer, [f"how to brew the {w}" for w in ("amber", "birch", "cedar")[:n]], max_new_tokens=7
    )


def test_token_ids_are_sent_and_greedy_decoding_asked_for(stub: Stub, tokenizer: Any) -> None:
    assert ask(stub, tokenizer, model="mine") == ["fine"]
    ids = tokenizer("how to brew the amber", add_special_tokens=False)["input_ids"]
    wanted = {"model": "mine", "prompt": ids, "max_tokens": 7}
    assert stub.asked == [wanted | GREEDY | {"path": "/v1/completions"}]
    assert (GREEDY["repetition_penalty"], GREEDY["top_k"]) == (1, 1), "else the folder's own settings apply"
    assert "Authorization" not in stub.headers[0]


def test_answers_come_in_the_order_of_the_prompts(stub: Stub, tokenizer: Any) -> None:
    stub.answer = lambda asked: said(f" {tokenizer.decode(asked['prompt'][-1:])} ")
    assert ask(stub, tokenizer, 3, workers=3) == ["amber", "birch", "cedar"]


def test_the_key_goes_into_the_header(stub: Stub, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "not-a-key-4411")
    ask(stub, tokenizer)
    assert stub.headers[0]["Authorization"] == "Bearer not-a-key-4411"


@pytest.mark.parametrize(
    "trouble", [500, 429, b"not json", {"choices": []}, said(None), {"choices": [{"text": "a"}] * 2}]
)
def test_what_passes_is_asked_again(stub: Stub, tokenizer: Any, trouble: Any) -> None:
    script = [trouble, trouble, said("fine")]
    stub.answer = lambda asked: script.pop(0)
    assert ask(stub, tokenizer) == ["fine"]


@pytest.mark.parametrize(
    ("trouble", "message", "requests"),
    [
        (500, "prompt 1: HTTP 500", 3),
        (400, "prompt 1: HTTP 400", 1),
        (401, f"refused the key .*{KEY}", 1),
        (404, "check the address ending in /v1 and #model=default", 1),
        (302, "HTTP 302", 1),
        (b"{", "no text in its reply", 3),
    ],
)
def test_what_stays_ends_it_with_one_line(
    stub: Stub, tokenizer: Any, trouble: Any, message: str, requests: int
) -> None:
    stub.answer = lambda asked: trouble
    with pytest.raises(TiterError, match=message) as error:
        ask(stub, tokenizer)
    assert len(stub.asked) == requests and "\n" not in str(error.value)


def test_no_server_is_one_line(tokenizer: Any) -> None:
    with pytest.raises(TiterError, match="is the server running"):
        Server("http://127.0.0.1:9/v1", retries=1, backoff=0.001).generate(tokenizer, ["a"], max_new_tokens=1)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://h/v1", "not an http"),
        ("http://u:p@h/v1", "no credentials"),
        ("http://h/v1#key=1", "unknown option 'key'"),
    ],
)
def test_addresses_that_are_none(url: str, message: str) -> None:
    with pytest.raises(TiterError, match=message):
        Server.at(url)
    assert Server.at("http://h/v1#model=a/b") == Server("http://h/v1", "a/b")


@pytest.mark.parametrize("body", [None, {}, {"choices": [{}]}, said(3), {"choices": "x"}])
def test_only_a_text_is_a_text(body: Any) -> None:
    assert read_text(body) is None


def run(model: str, data: str, **changes: Any) -> AttackRun:
    probes = (ProbeSet("harm", Selection(data, restricted=True, n=6), max_new_tokens=4),)
    given: dict[str, Any] = {"attack": Named("none"), "data": Selection(data, n=1), "probes": probes}
    return AttackRun(model, **{**given, "budget": Budget(steps=0), "plan": (0,), **changes})


def test_a_server_with_the_same_model_gives_the_same_scores(
    stub: Stub, toy_model: str, toy_data: str, tmp_path: Any
) -> None:
    model, tokenizer = load_model(toy_model)
    stub.answer = lambda asked: said(
        generate(model, tokenizer, [tokenizer.decode(asked["prompt"])], max_new_tokens=4)[0]
    )
    here = execute(run(toy_model, toy_data), tmp_path)
    there = execute(run(toy_model, toy_data, generate_url=f"{stub.url}#model=toy"), tmp_path)
    texts = [(tmp_path / "runs" / r.id / "completions.jsonl").read_text() for r in (here, there)]
    assert here.id != there.id and texts[0] == texts[1] and len(stub.asked) == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attack": Named("sft")}, "sft changes weights"),
        ({"probes": (ProbeSet("p", Selection("d"), measure="likelihood"),)}, "p needs the model's weights"),
    ],
)
def test_what_needs_the_weights_is_refused(
    toy_model: str, toy_data: str, tmp_path: Any, changes: Any, message: str
) -> None:
    with pytest.raises(TiterError, match=message):
        if "probes" in changes:
            changes = {"probes": (ProbeSet("p", Selection(toy_data), measure="likelihood"),)}
        execute(run(toy_model, toy_data, generate_url="http://127.0.0.1:9/v1", **changes), tmp_path)


def test_only_stability_is_measured_on_a_server(toy_model: str, toy_data: str, tmp_path: Any) -> None:
    with pytest.raises(TiterError, match="--conditions stability"):
        evaluate_module.evaluate(
            toy_model,
            Evaluation(reference=toy_model, data=Data(toy_data), generate_url="http://127.0.0.1:9/v1"),
            output_dir=tmp_path,
        )


def test_stability_of_a_served_model(stub: Stub, toy_model: str, toy_data: str, tmp_path: Any) -> None:
    found = evaluate_module.evaluate(
        toy_model,
        Evaluation(
            reference=toy_model,
            data=Data(toy_data),
            conditions=("stability",),
            generate_url=stub.url,
            reference_url=stub.url,
        ),
        output_dir=tmp_path,
    )[0]
    stability = found["conditions"]["stability"]
    assert stability["verdict"] == "not measured" and "answers (almost) no open prompt" in stability["sentence"]
    assert found["settings"]["generate_url"] == stub.url and stub.asked
