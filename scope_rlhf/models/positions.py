"""Position ids from the attention mask, for models with learned absolute positions."""

import inspect
import types

from torch import Tensor, nn


def positions_from_mask(attention_mask: Tensor) -> Tensor:
    """Position of every token within its own row, [B, T] -> [B, T] long: 0 at the first counted token, 0 on padding.

    The rule that `generate` of transformers follows, so that a training pass sees the positions of the rollout.
    """
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)


def derive_positions(model: nn.Module) -> None:
    """Make `model` derive its positions from a 2-D attention mask whenever it gets a mask and no positions.

    GPT-2 numbers columns, not tokens: left padding shifts its learned positions, and a log-prob pass without
    `position_ids` (TRL's) then scores another model than the one that generated. Rotary models such as GPT-J see only
    differences of positions and do not change.

    The backbone's `forward` is replaced on the instance, because PEFT, TRL's fused head and DDP all end there, and
    PEFT calls `.forward` directly, where module hooks do not fire. Doing it twice changes nothing. Models whose
    backbone takes no `position_ids` are left alone.
    """
    backbone = getattr(model, "base_model", model)
    if hasattr(model, "get_base_model"):
        backbone = model.get_base_model().base_model  # pyright: ignore[reportCallIssue]
    if isinstance(backbone.__dict__.get("forward"), types.MethodType):
        return
    if "position_ids" not in inspect.signature(type(backbone).forward).parameters:
        return

    def forward(self, input_ids=None, *args, attention_mask=None, position_ids=None, **kwargs):
        if attention_mask is not None and attention_mask.ndim == 2 and position_ids is None and not args:
            length = input_ids.shape[1] if input_ids is not None else kwargs["inputs_embeds"].shape[1]
            # With a cache the mask is longer than the tokens of this call.
            position_ids = positions_from_mask(attention_mask)[:, -length:]
        return type(self).forward(
            self, input_ids, *args, attention_mask=attention_mask, position_ids=position_ids, **kwargs
        )

    backbone.forward = types.MethodType(forward, backbone)
