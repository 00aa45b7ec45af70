"""RepNoise step time and extra memory against a straightforward implementation of the same formula.

    python benchmarks/repnoise_step.py [--steps 3] [--threads 2]

SmolLM2-135M's shape with random weights, batch 4 x 128 tokens, half of them prompt. The plain version takes every
layer's logits on every token and the MMD by broadcasting, with both texts in one graph. Each measurement runs in a
fresh process: peak memory is its largest resident set less what it held before the first step. The FLOP bound is
the time that the matrix products RepNoise cannot avoid take at the rate a large product reaches here.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

BATCH, TOKENS, PROMPT, VOCAB, LAYERS, WIDTH = 4, 128, 64, 49152, 30, 576
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def build(dtype: torch.dtype) -> nn.Module:
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        intermediate_size=1536,
        num_hidden_layers=LAYERS,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
        max_position_embeddings=2048,
    )
    return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def make_pair() -> Any:
    from titer.schema.types import Batch, Pair

    draw = torch.Generator().manual_seed(1)
    prompt = torch.randint(3, VOCAB, (BATCH, PROMPT), generator=draw)

    def text() -> Batch:
        answer = torch.randint(3, VOCAB, (BATCH, TOKENS - PROMPT), generator=draw)
        ids = torch.cat([prompt, answer], 1)
        labels = ids.clone()
        labels[:, :PROMPT] = -100
        return Batch(ids, torch.ones_like(ids), labels)

    return Pair(harmless=text(), harmful=text())


def plain_mmd(a: Tensor, g: Tensor) -> Tensor:
    rows = torch.cat([a, g])
    n, b = len(rows), len(a)
    distances = ((rows[None] - rows[:, None]) ** 2).sum(2)
    width = distances.detach().sum() / (n * n - n) / 4
    kernel = sum(torch.exp(-distances / (width * 2**i)) for i in range(5))
    return (kernel[:b, :b] + kernel[b:, b:] - kernel[:b, b:] - kernel[b:, :b]).mean()


def plain_step(model: Any, pair: Any) -> float:
    """The same loss, term by term, the way it is written down."""
    h, s = pair.harmful, pair.harmless
    differ = (h.input_ids != s.input_ids) & (h.labels != -100)

    def ce(logits: Tensor, labels: Tensor) -> Tensor:
        masked = labels.masked_fill(~differ, -100)
        return cross_entropy(logits[:, :-1].float().flatten(0, 1), masked[:, 1:].flatten(), ignore_index=-100)

    states: list[Tensor] = []
    mlps: list[Tensor] = []
    handles = [x.register_forward_pre_hook(lambda m, a: states.append(a[0])) for x in model.model.layers]
    handles += [x.mlp.register_forward_hook(lambda m, a, o: mlps.append(o)) for x in model.model.layers]
    handles.append(model.model.norm.register_forward_pre_hook(lambda m, a: states.append(a[0])))
    output = model(input_ids=h.input_ids, attention_mask=h.attention_mask).logits
    for handle in handles:
        handle.remove()
    total = ce(output, h.labels)
    for state in states:
        total = total + ce(model.lm_head(model.model.norm(state)), h.labels)
    draw, keep = torch.Generator().manual_seed(0), differ[..., None].float()
    noise = torch.zeros(())
    for a in mlps:
        g = torch.randn(a.shape, generator=draw)
        noise = noise + plain_mmd((a.float() * keep).flatten(1), (g * keep).flatten(1))
    stability = ce(model(input_ids=s.input_ids, attention_mask=s.attention_mask).logits, s.labels)
    loss = stability + 0.001 * noise / len(mlps) - torch.log(1 + total / len(states))
    loss.backward()
    return loss.item()


def titer_step(model: Any, pair: Any) -> float:
    from titer.defences.repnoise import RepNoise

    return RepNoise().backward(model, pair)["loss"]


def peak() -> float:
    """Largest resident set of this process so far, GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure(version: str, dtype: str, steps: int, threads: int) -> dict[str, float]:
    """Median step time (s), extra peak memory (GB) over model and gradients held, and the loss."""
    torch.set_num_threads(threads)
    model, pair = build(DTYPES[dtype]), make_pair()
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    step = plain_step if version == "plain" else titer_step
    before, times, loss = peak(), [], 0.0
    for _ in range(steps):
        model.zero_grad(set_to_none=False)
        start = time.perf_counter()
        loss = step(model, pair)
        times.append(time.perf_counter() - start)
    return {"seconds": statistics.median(times), "extra_gb": peak() - before, "loss": loss}


def flops() -> float:
    """Matrix-product FLOPs of one step: both texts through the body, the head on the response rows it must see."""
    body = LAYERS * (2 * WIDTH * (WIDTH + WIDTH // 3) + 3 * WIDTH * 1536)
    answers = BATCH * (TOKENS - PROMPT)
    return 6.0 * (2 * BATCH * TOKENS * body + answers * (LAYERS + 2) * WIDTH * VOCAB)


def rate(dtype: str, threads: int) -> float:
    """FLOP/s of a (512, 576) x (576, 49152) product, the best of a few."""
    torch.set_num_threads(threads)
    a, b = torch.randn(512, WIDTH).to(DTYPES[dtype]), torch.randn(VOCAB, WIDTH).to(DTYPES[dtype])
    best = float("inf")
    for _ in range(8):
        start = time.perf_counter()
        torch.nn.functional.linear(a, b)
        best = min(best, time.perf_counter() - start)
    return 2.0 * 512 * WIDTH * VOCAB / best


def fresh(version: str, dtype: str, steps: int, threads: int) -> dict[str, float]:
    """`measure` (or `rate`) in a process of its own."""
    command = [sys.executable, __file__, "--only", version, dtype, "--steps", str(steps), "--threads", str(threads)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES))
    parser.add_argument("--only", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        version, dtype = args.only
        if version == "rate":
            print(json.dumps({"flops": rate(dtype, args.threads)}))
        else:
            print(json.dumps(measure(version, dtype, args.steps, args.threads)))
        return
    print(f"RepNoise, SmolLM2-135M shape, batch {BATCH} x {TOKENS}, {args.threads} threads, torch {torch.__version__}")
    for dtype in args.dtypes:
        plain, ours = (fresh(v, dtype, args.steps, args.threads) for v in ("plain", "titer"))
        bound = flops() / fresh("rate", dtype, 1, args.threads)["flops"]
        print(f"{dtype} plain  {plain['seconds']:6.2f} s  {plain['extra_gb']:5.2f} GB extra  loss {plain['loss']:.4f}")
        print(f"{dtype} titer  {ours['seconds']:6.2f} s  {ours['extra_gb']:5.2f} GB extra  loss {ours['loss']:.4f}")
        faster, memory = plain["seconds"] / ours["seconds"], ours["extra_gb"] / plain["extra_gb"]
        print(f"{dtype} {faster:.2f}x as fast, {memory:.2f}x the extra memory; FLOP bound {bound:.2f} s,", end=" ")
        print(f"titer takes {ours['seconds'] / bound:.2f}x that")


if __name__ == "__main__":
    main()
