from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from titer.mechanism.weights import (
    centre,
    drift,
    share_inside,
    singular_values,
    tasks,
    top_rank,
    unevenness,
)
from titer.models.load import load_model


def test_a_model_has_not_drifted_from_itself(model: Any) -> None:
    found = drift(model, model)
    assert all(one.relative == 0 and one.identical for one in found.drifts)
    assert all(layer.identical and layer.relative == 0 for layer in found.layers)
    assert found.centre is None and found.unevenness is None


def test_a_change_of_one_layer_is_found_there_and_the_others_are_bit_identical(
    build_model: Callable[..., Any],
) -> None:
    reference, model = build_model(), build_model()
    weight = model.model.layers[1].mlp.up_proj.weight
    with torch.no_grad():
        weight.add_(0.01)
    found = drift(model, reference)
    assert [layer.identical for layer in found.layers] == [True, False]
    assert found.centre == 1
    (moved,) = (one for one in found.drifts if not one.identical)
    assert (moved.layer, moved.component) == (1, "mlp.up_proj")
    before = reference.model.layers[1].mlp.up_proj.weight.detach().double()
    expected = (weight.detach().double() - before).norm() / before.norm()
    assert moved.relative == pytest.approx(expected.item())
    assert moved.stable_rank == pytest.approx(1, abs=1e-4)  # the same number everywhere has one direction


def test_one_changed_bit_is_no_longer_bit_identical(build_model: Callable[..., Any]) -> None:
    reference, model = build_model(), build_model()
    weight = model.model.layers[0].self_attn.q_proj.weight
    with torch.no_grad():
        weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))
    assert not drift(model, reference).layers[0].identical


def test_spectrum_and_shares_are_those_of_the_singular_value_decomposition() -> None:
    draw = torch.Generator().manual_seed(0)
    for shape in ((30, 12), (12, 30)):
        change = torch.randn(shape, generator=draw, dtype=torch.float64)
        base = torch.randn(shape, generator=draw, dtype=torch.float64)
        torch.testing.assert_close(singular_values(change), torch.linalg.svdvals(change))
        u, _, vh = torch.linalg.svd(base, full_matrices=False)
        k = top_rank(base)
        inside = u[:, :k].T @ change if shape[0] < shape[1] else change @ vh[:k].T
        expected = float(inside.square().sum() / change.square().sum())
        assert share_inside(change, base) == pytest.approx(expected)
        assert share_inside(base, base) < 1
    assert share_inside(torch.zeros(3, 4), torch.ones(3, 4)) is None


def test_an_adapters_change_lies_in_what_it_adapts_and_has_its_rank(tmp_path: Path, toy_model: str) -> None:
    from peft import LoraConfig, get_peft_model

    base, _ = load_model(toy_model)
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    config = tmp_path / "adapter" / "adapter_config.json"
    told = json.loads(config.read_text()) | {"base_model_name_or_path": toy_model}
    config.write_text(json.dumps(told))
    found = drift(load_model(str(tmp_path / "adapter"))[0], load_model(toy_model)[0])
    moved = [one for one in found.drifts if not one.identical]
    assert {one.component for one in moved} == {"self_attn.q_proj"}
    assert all(one.stable_rank is not None and one.stable_rank <= 2 for one in moved)
    assert all(one.spectrum[2] < 1e-4 for one in moved)


def test_an_attack_that_undoes_the_defence_leaves_nothing_of_it(
    build_model: Callable[..., Any],
) -> None:
    reference, model, attacked = build_model(0), build_model(1), build_model(0)
    undone = tasks(model, reference, attacked)
    assert undone.defence_attack == pytest.approx(-1)
    assert undone.left == pytest.approx(0)
    untouched = tasks(model, reference, model)
    assert untouched.defence_attack is None
    assert untouched.left == pytest.approx(1) and untouched.defence_total == pytest.approx(1)
    half = build_model(0)
    with torch.no_grad():
        for p, a, b in zip(half.parameters(), reference.parameters(), model.parameters(), strict=True):
            p.copy_((a + b) / 2)
    assert tasks(model, reference, half).left == pytest.approx(0.5, abs=1e-6)


def test_centre_and_unevenness_tell_flat_from_late() -> None:
    assert centre([1, 1, 1]) == pytest.approx(0.5)
    assert centre([0, 0, 2]) == 1
    assert unevenness([3, 3]) == 0
    assert unevenness([0, 2]) == pytest.approx(1)
