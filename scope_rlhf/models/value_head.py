"""A value head on the policy's backbone: values come back from the same forward pass as the log-probs."""

import functools
import json
import math
import os
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from trl.trainer.utils import FusedCausalLMOutput

from scope_rlhf.objectives import CriticLossFunction, check_saved_critic, describe_critic

CRITIC_WEIGHTS, CRITIC_RECORD = "critic.safetensors", "critic.json"
# Names in the policy's state dict that belong to the critic.
HEAD_NAME = "value_head"


@dataclass
class PolicyValueOutput(FusedCausalLMOutput):
    """What a model with a fused LM head returns, and `values` [B, S - 1, output_size] beside its log_probs [B, S - 1].

    Position t holds the critic's outputs for the state before token t + 1 is written, as log_probs hold that token's.
    """

    values: Tensor | None = None


class ValueHead(nn.Module):
    """One linear layer on the last hidden state, [*D, hidden] -> [*D, output_size], in float32 whatever the backbone.

    All zeros at the start: a categorical critic then begins at mid-support, a scalar one at `initial_value`.
    """

    def __init__(self, hidden_size: int, output_size: int, initial_value: float = 0.0):
        super().__init__()
        if not math.isfinite(initial_value):
            raise ValueError(f"initial_value must be finite, got {initial_value!r}")
        if initial_value and output_size != 1:
            raise ValueError(
                f"initial_value={initial_value!r} is for a scalar critic; this one has {output_size} outputs"
            )
        self.weight = nn.Parameter(torch.zeros(output_size, hidden_size))
        self.bias = nn.Parameter(torch.full((output_size,), float(initial_value)))

    def forward(self, hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return nn.functional.linear(hidden.float(), self.weight.float(), self.bias.float())


def add_value_head(model: Any, critic: CriticLossFunction, initial_value: float = 0.0) -> ValueHead:
    """Give `model` (a causal LM with TRL's fused LM head, with or without PEFT around it) a trainable value head.

    A call with fused_lm_head=True then returns PolicyValueOutput; other calls, such as those of `generate`, are as
    before. The head is a submodule of the base model, so that DDP, DeepSpeed and the optimizer see its parameters, and
    the backbone gets the critic's gradient too. ValueError for a model that has a value head already, or no fused head.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if hasattr(base, HEAD_NAME):
        raise ValueError(f"the model has a {HEAD_NAME} already")
    fused = base.__dict__.get("forward")
    if not isinstance(fused, types.MethodType):
        raise ValueError("the model has no fused LM head yet; call trl.trainer.utils.add_fused_lm_head first")
    embeddings = base.get_output_embeddings().weight
    head = ValueHead(base.config.get_text_config().hidden_size, critic.output_size, initial_value)
    base.add_module(HEAD_NAME, head.to(embeddings.device))

    @functools.wraps(fused)  # generate validates its arguments against the signature
    def forward(self, *args, fused_lm_head: bool = False, **kwargs):
        if not fused_lm_head:
            return fused(*args, **kwargs)
        hidden: list[Tensor] = []
        # TRL calls the backbone as a module, so a hook sees its output; PEFT's direct .forward ends in this function.
        handle = self.base_model.register_forward_hook(lambda module, given, out: hidden.append(out.last_hidden_state))
        try:
            output = fused(*args, fused_lm_head=True, **kwargs)
        finally:
            handle.remove()
        states = hidden[-1] if kwargs.get("shift_labels") is not None else hidden[-1][:, :-1]
        return PolicyValueOutput(**output, values=self.value_head(states))

    base.forward = types.MethodType(forward, base)
    return head


def split_critic(state_dict: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(policy, critic): a state dict parted by name, the critic's names without what is around the head."""
    policy = {name: tensor for name, tensor in state_dict.items() if f"{HEAD_NAME}." not in name}
    critic = {name.rpartition(f"{HEAD_NAME}.")[2]: tensor for name, tensor in state_dict.items() if name not in policy}
    return policy, critic


def save_critic(folder: str | os.PathLike[str], head: nn.Module, critic: CriticLossFunction) -> None:
    """critic.safetensors and critic.json (kind, support, sizes) into the folder, the record last."""
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in head.state_dict().items()}
    save_file(weights, path / CRITIC_WEIGHTS)
    record = {**describe_critic(critic), "hidden_size": int(weights["weight"].shape[1])}
    (path / CRITIC_RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def load_critic(folder: str | os.PathLike[str], head: ValueHead, critic: CriticLossFunction) -> None:
    """Fill `head` from a folder of save_critic.

    ValueError for a folder without a critic, a critic of another kind or support, and another width.
    """
    path = Path(folder)
    if not (path / CRITIC_RECORD).is_file() or not (path / CRITIC_WEIGHTS).is_file():
        raise ValueError(f"{path} holds no critic: expected {CRITIC_WEIGHTS} and {CRITIC_RECORD}")
    record = json.loads((path / CRITIC_RECORD).read_text(encoding="utf-8"))
    check_saved_critic(record, critic, str(path))
    width = head.weight.shape[1]
    if record["hidden_size"] != width:
        raise ValueError(
            f"the critic in {path} belongs to a model of width {record['hidden_size']}, this one has width {width}"
        )
    head.load_state_dict(load_file(path / CRITIC_WEIGHTS))


def load_trl_value_head(source: str | os.PathLike[str], head: ValueHead) -> None:
    """Fill a scalar `head` from a checkpoint of TRL <= 1.12 (AutoModelForCausalLMWithValueHead).

    source: the folder with model.safetensors or pytorch_model.bin, or that file. Reads v_head.summary.weight
    [1, hidden] and its bias; the policy in the same file is not touched. ValueError where they are not there or do not
    fit.
    """
    path = Path(source)
    if path.is_dir():
        files = [path / name for name in ("model.safetensors", "pytorch_model.bin") if (path / name).is_file()]
        if not files:
            raise ValueError(f"{path} holds neither model.safetensors nor pytorch_model.bin")
        path = files[0]
    names = ("v_head.summary.weight", "v_head.summary.bias")
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            found = {name: file.get_tensor(name) for name in names if name in file.keys()}  # noqa: SIM118
    else:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        found = {name: saved[name] for name in names if name in saved}
    if set(found) != set(names):
        raise ValueError(f"{path} holds no value head of TRL: expected {names[0]} and {names[1]}")
    weight, bias = found[names[0]], found[names[1]]
    if weight.shape != head.weight.shape:
        raise ValueError(
            f"the value head in {path} has shape {tuple(weight.shape)}, expected {tuple(head.weight.shape)}: it is "
            "scalar, and belongs to a model of that width"
        )
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)
