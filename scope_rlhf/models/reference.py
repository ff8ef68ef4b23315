"""A model that is handed over as the reference: frozen, scored like the policy, placed like it."""

from typing import Any

from trl.models import prepare_deepspeed, prepare_fsdp
from trl.trainer.utils import add_fused_lm_head, disable_dropout_in_model

from scope_rlhf.models.positions import derive_positions


def prepare_reference(
    model: Any, accelerator: Any, temperature: float = 1.0, cast_lm_head_to_fp32: bool = False
) -> Any:
    """`model` with TRL's fused head at the policy's temperature, positions from the mask, no dropout and no gradient,
    wrapped as DeepSpeed or FSDP need it. ValueError for a model that has a fused head already, such as the policy.
    """
    if "forward" in vars(model):
        raise ValueError("ref_model has a fused head or a changed forward already; give a model of its own.")
    add_fused_lm_head(model, temperature=temperature, cast_lm_head_to_fp32=cast_lm_head_to_fp32)
    derive_positions(model)
    disable_dropout_in_model(model)
    model.requires_grad_(False).eval()
    kind = str(getattr(accelerator.distributed_type, "value", accelerator.distributed_type))
    if kind == "DEEPSPEED":
        return prepare_deepspeed(model, accelerator)
    if kind == "FSDP":
        return prepare_fsdp(model, accelerator)
    return accelerator.prepare_model(model, evaluation_mode=True)
