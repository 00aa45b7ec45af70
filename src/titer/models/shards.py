"""One model on several processes that all do the same: weights in shards, the rows of a batch shared out.

PyTorch's FSDP2 keeps a shard of every weight on each process and gathers a layer when it is needed. Rows are shared
out inside the decoder: each process sends its own rows through the layers, then every process has the hidden states of
all rows, and computes the losses from them. So a rule sees the whole batch, as on one process, and its loss and
gradient are the same whatever it does with the batch. Gradients are averaged over processes: where all compute the
same, the mean is that; through shared-out rows each has the part of its own rows, times the number of processes.

Outside a process group everything here does nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

Kind = Literal["fsdp2", "multi_gpu"]
T = TypeVar("T")


def world() -> tuple[int, int]:
    """This process's number and how many there are; (0, 1) when it is alone."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def place(model: nn.Module) -> tuple[int, int]:
    """`world()` for a model that was distributed, (0, 1) for one that is this process's own."""
    return world() if is_distributed(model) else (0, 1)


def is_distributed(model: nn.Module) -> bool:
    """Whether any weight of the model is held together with other processes."""
    return world()[1] > 1 and any(is_shard(p) for p in model.parameters())


def is_shard(tensor: Tensor) -> bool:
    """Whether a tensor is one that processes hold together."""
    if world()[1] == 1:
        return False
    from torch.distributed.tensor import DTensor  # takes a second to import

    return isinstance(tensor, DTensor)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be in shards, or a sum or norm that each process has a part of; all must call this."""
    return tensor.full_tensor() if is_shard(tensor) else tensor  # type: ignore[attr-defined]


def own_part(tensor: Tensor) -> Tensor:
    """What this process holds of a detached tensor that may be in shards; the same memory."""
    return tensor.to_local() if is_shard(tensor) else tensor  # type: ignore[attr-defined]


def distribute(model: Any, kind: Kind, device: str) -> Any:
    """Move a model that all processes have loaded onto their devices, in shards (`fsdp2`) or whole (`multi_gpu`)."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from titer.models.parts import parts

    size = world()[1]
    shape, names = ((size,), ("shard",)) if kind == "fsdp2" else ((size, 1), ("replicate", "shard"))
    mesh = init_device_mesh(device.partition(":")[0], shape, mesh_dim_names=names)
    for layer in parts(model).layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    model.register_forward_hook(_drop_unused)
    decoder = model.base_model
    decoder.register_forward_pre_hook(_share_rows, with_kwargs=True)
    decoder.register_forward_hook(_all_rows)
    with torch.no_grad():  # makes FSDP's buffers, which could not be written to later if inference mode had made them
        model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device))
    return model


def _drop_unused(model: Any, args: Any, output: Any) -> None:
    """Without a backward pass to come, FSDP would keep the embedding and the head as they are now, shifted or not."""
    if not torch.is_grad_enabled():
        model.reshard()


# ------------------------------------------------------------------------------------------------------------- rows


class _Rows:
    """How many rows the batch now in the decoder has, 0 when each process takes all of them."""

    shared: int = 0


def _share_rows(decoder: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Keep this process's rows of a training batch whose rows can be shared out evenly."""
    rank, size = world()
    ids = kwargs["input_ids"] if kwargs.get("input_ids") is not None else kwargs["inputs_embeds"]
    count = len(ids)
    generating = kwargs.get("use_cache") or torch.is_inference_mode_enabled()
    _Rows.shared = 0 if generating or count % size or kwargs.get("position_ids") is not None else count
    if not _Rows.shared:
        return args, kwargs
    mine = slice(rank * count // size, (rank + 1) * count // size)
    batched = ("input_ids", "attention_mask", "inputs_embeds")
    return args, {k: v[mine] if k in batched and v is not None else v for k, v in kwargs.items()}


def _all_rows(decoder: nn.Module, args: Any, output: Any) -> Any:
    output.last_hidden_state = all_rows(output.last_hidden_state)
    return output


def all_rows(hidden: Tensor) -> Tensor:
    """Hidden states of all rows of the batch from those of this process's rows; as they are when it has all."""
    size = world()[1]
    if size == 1 or len(hidden) * size != _Rows.shared:
        return hidden
    return _AllRows.apply(hidden)  # type: ignore[no-any-return, no-untyped-call]


def own_rows(shift: Tensor, hidden: Tensor) -> Tensor:
    """This process's rows of something that goes with all rows of the batch."""
    rank, size = world()
    count = len(hidden)
    return shift[rank * count : (rank + 1) * count] if size > 1 and len(shift) == count * size else shift


class _AllRows(torch.autograd.Function):
    """Every process computes the same loss from the gathered rows, so the way back needs no communication."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor) -> Tensor:
        from torch import distributed

        found = [torch.empty_like(mine) for _ in range(world()[1])]
        distributed.all_gather(found, mine.contiguous())
        return torch.cat(found)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        rank, size = world()
        count = len(grad) // size
        return grad[rank * count : (rank + 1) * count] * size


# ------------------------------------------------------------------------------------------------------ agreement


@torch.no_grad()
def average(parameters: Iterable[nn.Parameter]) -> None:
    """Average over processes the gradients that FSDP does not: those of adapters and other weights put on later."""
    size = world()[1]
    if size == 1:
        return
    from torch import distributed

    for p in parameters:
        if p.grad is not None and not is_shard(p):
            distributed.all_reduce(p.grad)
            p.grad.div_(size)


def told_by_first(make: Callable[[], T]) -> T:
    """What `make` returns on the first process, on all of them; called there alone."""
    rank, size = world()
    if size == 1:
        return make()
    from torch import distributed

    told: list[Any] = [make() if rank == 0 else None]
    distributed.broadcast_object_list(told, src=0)
    found: T = told[0]
    return found


def from_all(mine: T) -> list[T]:
    """What each process has, in their order."""
    size = world()[1]
    if size == 1:
        return [mine]
    from torch import distributed

    found: list[Any] = [None] * size
    distributed.all_gather_object(found, mine)
    return found
