"""Accumulated batches are one step of every schedule, and each of them has its own draws."""

import copy
import json
from itertools import islice

import pytest

from titer.data.batches import pairs
from titer.defences import DEFENCES, configure
from titer.runs import verbs as verbs_module
from titer.schema.evaluation import Data, Immunization
from titer.schema.specs import TrainArgs

OPTIONS = {
    "tar": {"inner_steps": 2, "every": 1, "mapping": 0.5, "inner_learning_rates": (1e-4, 1e-3, 1e-2)},
    "mlac": {"inner_steps": 2},
    "targeted-lat": {"inner_steps": 1},
    "t-vaccine": {"share": 0.5, "draw_every": 2},
}
DRAWN = ("repnoise", "targeted-lat", "deep-alignment")  # anew at every batch
STEPS = 4


def terms(defence, model, examples, tokenizer, accumulated):
    """The loss terms of every batch of a run whose batches all hold the same rows in the same order."""
    args = TrainArgs(
        max_steps=STEPS,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=accumulated,
        shuffle=False,
    )
    restricted, retain = [e for e in examples if e.restricted][:2], [e for e in examples if not e.restricted][:2]
    reference = copy.deepcopy(model).requires_grad_(False)
    for p in reference.parameters():
        p.mul_(0.9)
    stream = pairs(
        restricted,
        retain,
        tokenizer,
        args,
        extra=defence.inner_batches,
        held_out="held-out" in defence.needs,
        reference=reference,
    )
    return [defence.backward(model, pair) for pair in islice(stream, STEPS * accumulated)]


@pytest.mark.parametrize("name", [n for n in DEFENCES if n != "lox"])
def test_every_term_of_a_step_is_that_of_the_step_without_accumulation(name, build_model, examples, tokenizer):
    model, defence = build_model().double(), configure(name, OPTIONS.get(name, {}))
    plain = terms(defence, model, examples, tokenizer, 1)
    found = terms(defence, model, examples, tokenizer, 3)
    for step, expected in enumerate(plain):
        first, *others = found[3 * step : 3 * step + 3]
        assert first == pytest.approx(expected, rel=1e-9)
        if name not in DRAWN:
            assert all(other == pytest.approx(expected, rel=1e-9) for other in others)
    if name in DRAWN:
        assert any(found[i]["loss"] != found[i + 1]["loss"] for i in range(0, 12, 3))


def logged(folder):
    (log,) = folder.rglob("log.jsonl")
    return [json.loads(line) for line in log.read_text().splitlines()]


def test_circuit_breakers_shift_from_rerouting_to_keeping_over_the_whole_run(tmp_path, toy_model, toy_data):
    """With 4 accumulated batches the weights once ran to -9.6 and 19.6 of 10."""
    args = TrainArgs(learning_rate=1e-3, max_steps=4, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    verbs_module.immunize(
        toy_model, Immunization("circuit-breakers", data=Data(toy_data), train=args), output_dir=tmp_path
    )
    for entry in logged(tmp_path):
        late = entry["step"] / 8
        expected = 10 * ((1 - late) * entry["reroute"] + late * entry["retain"])
        assert entry["loss"] == pytest.approx(expected, rel=1e-4)


def test_tar_maps_for_its_share_of_the_steps_whatever_is_accumulated(tmp_path, toy_model, toy_data):
    args = TrainArgs(learning_rate=1e-4, max_steps=4, per_device_train_batch_size=2, gradient_accumulation_steps=3)
    options = {"inner_steps": 2, "every": 1, "mapping": 0.5}
    asked = Immunization("tar", options, data=Data(toy_data), train=args)
    verbs_module.immunize(toy_model, asked, output_dir=tmp_path)
    assert ["mapping" in entry for entry in logged(tmp_path)] == [True, True, False, False]
