"""The weights that generation runs on: adapters merged into their base weights, in a dtype of its own."""

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from scope_rlhf.models.value_head import HEAD_NAME
from scope_rlhf.runtime.requirements import cpu_has_bf16

ROLLOUT_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)  # others, as float8, are quantised
# What PEFT's layers note of a merge and of a forward pass: which adapters are merged, weight norms of DoRA.
BOOKKEEPING = ("merged_adapters", "_caches", "_dora_cache")


def check_rollout_dtype(name: str | None) -> None:
    """ValueError for a name that is not in ROLLOUT_DTYPES; None is the weights' own dtype."""
    if name is not None and name not in ROLLOUT_DTYPES:
        raise ValueError(
            f"rollout_dtype must be one of {', '.join(ROLLOUT_DTYPES)}, got {name!r}; set --rollout_dtype, or leave it "
            "out for the weights' own dtype."
        )


def find_rollout_dtype(
    name: str | None, device: torch.device, has_bf16: Callable[[], bool] = cpu_has_bf16
) -> torch.dtype | None:
    """The dtype of that name for `rollout_weights`; None, the weights' own, for None.

    bfloat16 where the device would only emulate it, more slowly than float32, gives a warning and None. ValueError as
    check_rollout_dtype.
    """
    check_rollout_dtype(name)
    if name is None:
        return None
    dtype, lacking = ROLLOUT_DTYPES[name], None
    if dtype == torch.bfloat16 and device.type == "cpu":
        lacking = None if has_bf16() else "CPU"
    elif dtype == torch.bfloat16 and device.type == "cuda":
        lacking = None if torch.cuda.is_bf16_supported(including_emulation=False) else "GPU"
    if lacking is None:
        return dtype
    warnings.warn(
        f"--rollout_dtype bfloat16: this {lacking} has no bfloat16 instructions, so generation falls back to the "
        "weights' own dtype.",
        stacklevel=2,
    )
    return None


@contextmanager
def rollout_weights(model: nn.Module, dtype: torch.dtype | None = None, merge: bool = True) -> Iterator[None]:
    """Within the context `model` (unwrapped from DDP) generates faster; after it every weight is the one it was.

    merge: LoRA adapters that are active are merged into their base weights. dtype: the weights have that dtype, where
    from_pretrained gives it to them: not computed tables (rotary positions), and not the value head. Left as they are:
    adapters of other kinds, those that PEFT cannot merge (with a warning), and whatever is quantised, sharded (DTensor,
    FSDP, ZeRO-3) or not in memory.

    Modules hold other Parameter objects meanwhile, without gradient. The originals, their storage, .grad and hooks are
    never touched, also where an exception ends the context or its beginning; what is written to the weights inside is
    lost. Memory: a copy of the adapted weights for merge; one of all weights, in dtype, where that is not theirs.
    """
    swapped: list[tuple[dict[str, Any], str, Any]] = []
    kept = {HEAD_NAME, *(getattr(model, "_keep_in_fp32_modules_strict", None) or ())}
    head = getattr(model, "get_output_embeddings", lambda: None)()  # pyright: ignore[reportCallIssue]
    # A prompt's last states are strided, for which torch would multiply a copy of the whole head per row.
    contiguous = None if head is None else head.register_forward_pre_hook(_make_contiguous)
    try:
        for module in model.modules():
            for name in BOOKKEEPING:
                if name in vars(module):
                    _swap(swapped, vars(module), name, copy.copy(vars(module)[name]))
        with torch.no_grad():
            if merge:
                _merge(model, dtype, kept, swapped)
            if dtype is not None:
                _cast(model, dtype, kept, swapped)
        yield
    finally:
        _undo(swapped, 0)
        if contiguous is not None:
            contiguous.remove()


def _make_contiguous(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(each.contiguous() if isinstance(each, Tensor) else each for each in given)


# Not `weight.data = ...`: data of another dtype makes autograd drop the gradient accumulator, and DDP's hooks with it.
def _swap(swapped: list, holder: dict[str, Any], name: str, value: Any) -> None:
    swapped.append((holder, name, holder[name]))
    holder[name] = value


def _undo(swapped: list, start: int) -> None:
    while len(swapped) > start:
        holder, name, value = swapped.pop()
        holder[name] = value


def _merge(model: nn.Module, dtype: torch.dtype | None, kept: set[str], swapped: list) -> None:
    """Merge by PEFT's own rule, in the finer of both dtypes: rounding each summand would lose a small update."""
    layers: list[tuple[str, Any]] = [(path, m) for path, m in model.named_modules() if isinstance(m, LoraLayer)]
    if any(isinstance(layer.get_base_layer(), nn.MultiheadAttention) for _, layer in layers):
        return  # PEFT's merge deletes parameters of these, and merges the layers inside them a second time
    refused: dict[str, RuntimeError] = {}
    for path, layer in layers:
        if layer.merged or layer.disable_adapters or not all(_is_plain(weight) for weight in layer.parameters()):
            continue
        final = None if kept & set(path.split(".")) else dtype
        start, own = len(swapped), layer.get_base_layer()._parameters
        adapted = [layer.parameter_name] if hasattr(layer, "parameter_name") else [n for n in own if own[n] is not None]
        for name in adapted:
            finer = torch.promote_types(own[name].dtype, final or own[name].dtype)
            _swap(swapped, own, name, nn.Parameter(own[name].to(finer, copy=True), requires_grad=False))
        try:
            layer.merge()
        except RuntimeError as error:  # NotImplementedError is one
            refused[path] = error
            layer.merged_adapters.clear()
        if not layer.merged:  # refused, or the active adapter has no weights here
            _undo(swapped, start)
        elif final is not None:
            for name in adapted:
                own[name].data = own[name].data.to(final)
    if refused:
        path, error = next(iter(refused.items()))
        warnings.warn(
            f"--merge_for_rollout: PEFT cannot merge the adapters of {len(refused)} layers, which generate as they are "
            f"({path}: {error}).",
            stacklevel=4,
        )


def _cast(model: nn.Module, dtype: torch.dtype, kept: set[str], swapped: list) -> None:
    cast: dict[int, nn.Parameter] = {}  # tied weights stay one
    for path, module in model.named_modules():
        if kept & set(path.split(".")):
            continue
        for name, weight in module._parameters.items():
            if weight is not None and weight.dtype != dtype and _is_plain(weight):
                if id(weight) not in cast:
                    cast[id(weight)] = nn.Parameter(weight.to(dtype), requires_grad=False)
                _swap(swapped, module._parameters, name, cast[id(weight)])
        for name, buffer in module._buffers.items():
            if buffer is None or name in module._non_persistent_buffers_set:
                continue
            if buffer.dtype != dtype and _is_plain(buffer):
                _swap(swapped, module._buffers, name, buffer.to(dtype))


def _is_plain(tensor: Tensor) -> bool:
    """Whether it is a whole floating tensor in memory: not quantised, sharded or offloaded."""
    sharded = hasattr(tensor, "ds_id") or hasattr(tensor, "_fsdp_flattened")
    return type(tensor) in (Tensor, nn.Parameter) and tensor.dtype in FLOATS and not (sharded or tensor.is_meta)
