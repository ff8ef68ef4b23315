"""Critics that do not share the policy's hidden states: an adapter of their own, or a model of their own."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from scope_rlhf.hub import explain_model_errors
from scope_rlhf.models.adapters import base_of
from scope_rlhf.models.embedded import resolve_model_path
from scope_rlhf.models.positions import derive_positions
from scope_rlhf.models.reward import OFFSET
from scope_rlhf.models.value_head import ADAPTER_NAME, ValueHead, add_value_head
from scope_rlhf.objectives import CriticLossFunction


class AdapterValueHead(ValueHead):
    """A value head on the same frozen base under a LoRA adapter of its own, in a second pass of the same forward."""

    kind = "adapter"

    def __init__(
        self, base: nn.Module, hidden_size: int, critic: CriticLossFunction, initial_value: float | None = None
    ):
        super().__init__(hidden_size, critic, initial_value)
        # In lists, so that they are no submodules of the head.
        self._layers = [m for m in base.modules() if isinstance(m, BaseTunerLayer)]
        self._adapter = [w for name, w in base.named_parameters() if f".{ADAPTER_NAME}." in name]
        self.train_adapter()

    def train_adapter(self) -> None:
        """Turn the gradient of the critic's adapter on: PEFT's set_adapter and disable_adapter turn it off."""
        for weight in self._adapter:
            weight.requires_grad_(True)

    @contextmanager
    def _switched(self) -> Iterator[None]:
        """Under the critic's adapter; not by PEFT's set_adapter, which would turn off the policy's gradients."""
        before = [(layer._active_adapter, layer._disable_adapters) for layer in self._layers]
        try:
            for layer in self._layers:
                layer._active_adapter, layer._disable_adapters = [ADAPTER_NAME], False
            yield
        finally:
            for layer, (active, disabled) in zip(self._layers, before, strict=True):
                layer._active_adapter, layer._disable_adapters = active, disabled

    def states(self, base: nn.Module, policy_states: Tensor, **inputs: Any) -> Tensor:
        if torch.is_grad_enabled():
            self.train_adapter()
        with self._switched():
            return base.base_model(**inputs, use_cache=False).last_hidden_state  # pyright: ignore[reportCallIssue]


class ModelValueHead(ValueHead):
    """A value head on a whole model of its own, all of it trained."""

    kind = "model"

    def __init__(
        self, backbone: nn.Module, hidden_size: int, critic: CriticLossFunction, initial_value: float | None = None
    ):
        super().__init__(hidden_size, critic, initial_value)
        self.backbone = backbone

    def states(self, base: nn.Module, policy_states: Tensor, **inputs: Any) -> Tensor:
        return self.backbone(**inputs, use_cache=False).last_hidden_state


def make_value_head(
    model: Any, critic: CriticLossFunction, backbone: str, name: str | None = None, initial_value: float | None = None
) -> ValueHead:
    """Add the critic's head to `model`: on the policy's backbone ("shared"), on an "adapter" or on the "model" `name`.

    Raises ValueError as add_value_head, adapter_value_head and model_value_head.
    """
    head = None
    if backbone == "adapter":
        head = adapter_value_head(model, critic, initial_value)
    elif backbone == "model":
        head = model_value_head(str(name), model, critic, initial_value, "--critic_model_name_or_path")
    return add_value_head(model, critic, initial_value, head)


def require_lora(lora: bool) -> None:
    """ValueError unless the policy of a critic with an adapter of its own has one too."""
    if not lora:
        raise ValueError("critic_backbone='adapter' needs a LoRA policy (--use_peft); use shared or model without it.")


def adapter_value_head(model: Any, critic: CriticLossFunction, initial_value: float | None = None) -> AdapterValueHead:
    """A new adapter `critic` in the PEFT model, shaped like its active one, and the head to add with add_value_head.

    ValueError for a model without PEFT.
    """
    require_lora(isinstance(model, PeftModel))
    active = model.active_adapter
    model.add_adapter(ADAPTER_NAME, copy.deepcopy(model.peft_config[active]))
    model.set_adapter(active)
    base: Any = model.get_base_model()
    return AdapterValueHead(base, base.config.get_text_config().hidden_size, critic, initial_value)


def model_value_head(
    name: str, policy: Any, critic: CriticLossFunction, initial_value: float | None = None, setting: str = ""
) -> ModelValueHead:
    """A critic on a copy of the reward model (or any causal model) of that name or path.

    A scalar critic also takes over the reward model's score layer, so that its values begin as scores. The model must
    read the policy's token ids and, like a value of the state before each token, must not look ahead: ValueError for
    another vocabulary and for an encoder.
    """
    path = resolve_model_path(name, setting)
    with explain_model_errors(name, setting):
        whole, info = AutoModelForSequenceClassification.from_pretrained(
            path, dtype=policy.dtype, output_loading_info=True
        )
    backbone, base = whole.base_model, base_of(policy)
    sizes = [int(m.get_input_embeddings().weight.shape[0]) for m in (backbone, base)]
    # A row more for a pad token of its own (trainers.reward.load_classifier) is never read.
    padded = sizes[0] == sizes[1] + 1 and whole.config.pad_token_id == sizes[1]
    if sizes[0] != sizes[1] and not padded:
        raise ValueError(
            f"{name} has {sizes[0]} token embeddings and the policy {sizes[1]}: a critic reads the policy's token ids, "
            f"so the two need one tokenizer; set {setting} to such a model, or share the policy's backbone."
        )
    derive_positions(backbone)
    backbone.eval()
    with torch.no_grad():
        ids = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 5]])
        first = backbone(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    if not torch.allclose(first[0, :3].float(), first[1, :3].float(), atol=1e-4):
        raise ValueError(
            f"{name} looks ahead: its states before a token depend on later tokens, so it cannot give the value of a "
            f"state. Set {setting} to a causal model."
        )
    head = ModelValueHead(backbone, first.shape[-1], critic, initial_value)
    score = getattr(whole, "score", None)
    trained = not any("score" in key for key in info["missing_keys"])
    if isinstance(score, nn.Linear) and trained and score.weight.shape == head.weight.shape:
        with torch.no_grad():
            head.weight.copy_(score.weight)
            head.bias.fill_(-float(getattr(whole.config, OFFSET, 0.0)))  # values are of the centred scores
            if score.bias is not None:
                head.bias.add_(score.bias)
    return head
