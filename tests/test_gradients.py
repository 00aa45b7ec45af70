"""The gradient engine: exact restoring, hooks that go, algebra, response-only loss."""

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from titer.schema.errors import TiterError
from titer.schema.types import Batch
from titer.training.activations import captured, shifted_activations
from titer.training.gradients import accumulate, combine, dot, generator, gradient, norm, restored, shifted, trainable
from titer.training.losses import response_ce


@pytest.fixture
def model():
    torch.manual_seed(0)
    shape = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=17, max_position_embeddings=32, tie_word_embeddings=True, **shape)
    return LlamaForCausalLM(config).double().eval()


@pytest.fixture
def batch():
    ids = torch.tensor([[1, 5, 6, 0, 2, 2], [1, 7, 8, 9, 3, 2]])
    mask = torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]])
    labels = torch.tensor([[-100, -100, 6, 0, 2, -100], [-100, -100, -100, 9, 3, 2]])
    return Batch(ids, mask, labels)


def copy_of(model):
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def same(model, saved):
    return all(torch.equal(p, saved[n]) for n, p in model.named_parameters())


def test_response_ce_is_the_models_own_loss(model, batch):
    own = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels).loss
    assert response_ce(model, batch).item() == pytest.approx(own.item(), rel=1e-6)  # HF sums in fp32


def test_gradient_leaves_grad_alone_and_accumulate_adds(model, batch):
    grads, value = gradient(model, lambda: response_ce(model, batch))
    assert all(p.grad is None for p in model.parameters())
    loss = response_ce(model, batch)
    loss.backward()
    assert value == pytest.approx(loss.item())
    assert all(torch.allclose(p.grad, grads[n]) for n, p in model.named_parameters())
    accumulate(model, grads, -1.0)
    assert all(torch.allclose(p.grad, torch.zeros_like(p), atol=1e-12) for p in model.parameters())


def test_algebra(model, batch):
    a, _ = gradient(model, lambda: response_ce(model, batch))
    flat = torch.cat([g.flatten() for g in a.values()])
    b = {n: torch.randn_like(g) for n, g in a.items()}
    other = torch.cat([g.flatten() for g in b.values()])
    assert norm(a) == pytest.approx(flat.norm().item())
    assert dot(a, b) == pytest.approx((flat @ other).item())
    both = combine((2.0, a), (-3.0, b))
    assert torch.allclose(torch.cat([g.flatten() for g in both.values()]), 2 * flat - 3 * other)
    assert torch.equal(torch.cat([g.flatten() for g in a.values()]), flat)


def test_norm_of_bf16_is_summed_in_fp32():
    assert norm({"w": torch.full((100_000,), 1.0, dtype=torch.bfloat16)}) == pytest.approx(316.2278, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("scale", [0.0, 0.37, 1e4])
def test_shift_is_undone_bit_for_bit(model, dtype, scale):
    model.to(dtype)
    saved = copy_of(model)
    direction = {n: torch.randn_like(p) for n, p in model.named_parameters()}
    with shifted(model, direction, scale):
        assert same(model, saved) == (scale == 0)
    assert same(model, saved)


def test_restored_survives_an_error_inside(model):
    saved = copy_of(model)
    with pytest.raises(RuntimeError, match="stop"), restored(model):
        torch.optim.SGD(model.parameters(), 1.0)
        with torch.no_grad():
            model.lm_head.weight.zero_()
        raise RuntimeError("stop")
    assert same(model, saved)


def test_captured_inputs_and_outputs_have_their_graph(model, batch):
    layers = list(model.model.layers)
    with captured(layers, "input") as before, captured(layers) as after:
        out = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=True)
    assert torch.equal(before[0], out.hidden_states[0]) and torch.equal(before[1], after[0])
    assert torch.autograd.grad(out.logits.sum(), after)[0].shape == after[0].shape


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_hooks_are_gone_after_the_block_and_after_an_error(model, batch):
    before = hooks(model)
    with pytest.raises(ValueError, match="stop"), captured(list(model.model.layers)):
        assert hooks(model) == before + 2
        raise ValueError("stop")
    shift = torch.zeros(2, 6, 8, dtype=torch.float64)
    with shifted_activations([model.model.layers[0]], [shift]):
        assert hooks(model) == before + 1
    assert hooks(model) == before


def test_shifted_activations_add_to_the_first_output(model, batch):
    attention = model.model.layers[0].self_attn
    with captured([attention]) as plain:
        response_ce(model, batch)
    shift = torch.randn(2, 6, 8, dtype=torch.float64)
    with shifted_activations([attention], [shift]), captured([attention]) as moved:
        response_ce(model, batch)
    assert torch.allclose(moved[0], plain[0] + shift)


def test_generator_depends_on_every_argument_and_nothing_else():
    def draw(*key):
        return torch.randn(4, generator=generator(*key)).tolist()

    assert draw(1, 2) == draw(1, 2)
    assert len({tuple(draw(*k)) for k in [(1, 2), (2, 1), (1, 3), (1, 2, "cpu", "x"), (2**33 + 1, 2)]}) == 5


def test_no_response_token_is_a_plain_error(model, batch):
    empty = Batch(batch.input_ids, batch.attention_mask, torch.full_like(batch.labels, -100))
    with pytest.raises(TiterError, match="no response token"):
        response_ce(model, empty)


def test_nothing_trainable_is_a_plain_error():
    with pytest.raises(TiterError, match="no trainable parameter"):
        trainable(nn.Linear(2, 2).requires_grad_(False))
