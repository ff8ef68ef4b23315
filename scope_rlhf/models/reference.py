"""A frozen model beside the policy, its reference or its teacher: scored like the policy, placed like it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from trl.models import prepare_deepspeed, prepare_fsdp
from trl.trainer.utils import disable_dropout_in_model

from scope_rlhf.models.adapters import base_of
from scope_rlhf.models.kernels import use_fast_kernels
from scope_rlhf.models.log_prob_head import add_log_prob_head
from scope_rlhf.models.positions import derive_positions


def prepare_reference(
    model: Any,
    accelerator: Any,
    temperature: float = 1.0,
    cast_lm_head_to_fp32: bool = False,
    name: str = "ref_model",
    head_impl: str = "auto",
) -> Any:
    """`model` with a log-prob head at this temperature (models.log_prob_head), positions from the mask, no dropout and
    no gradient, wrapped as DeepSpeed or FSDP need it. ValueError, beginning with `name`, for a model that has a fused
    head already, such as the policy, and as add_log_prob_head.
    """
    base = base_of(model)
    if "forward" in vars(base):
        raise ValueError(f"{name} has a fused head or a changed forward already; give a model of its own.")
    add_log_prob_head(base, temperature, head_impl, cast_lm_head_to_fp32, frozen=True)
    use_fast_kernels(model)
    derive_positions(model)
    disable_dropout_in_model(model)
    model.requires_grad_(False).eval()
    kind = str(getattr(accelerator.distributed_type, "value", accelerator.distributed_type))
    if kind == "DEEPSPEED":
        return prepare_deepspeed(model, accelerator)
    if kind == "FSDP":
        return prepare_fsdp(model, accelerator)
    return accelerator.prepare_model(model, evaluation_mode=True)


@contextmanager
def head_temperature(
    model: Any, temperature: float, cast_lm_head_to_fp32: bool = False, head_impl: str = "auto"
) -> Iterator[None]:
    """The log-prob head of `model` (without PEFT around it) works at another temperature within the context."""
    forward = model.forward
    add_log_prob_head(model, temperature, head_impl, cast_lm_head_to_fp32, frozen=True)
    try:
        yield
    finally:
        model.forward = forward
