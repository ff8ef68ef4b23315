"""A value head on the policy's backbone: values come back from the same forward pass as the log-probs."""

import functools
import json
import math
import os
import types
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from trl.trainer.utils import FusedCausalLMOutput

from scope_rlhf.models.adapters import base_of
from scope_rlhf.objectives import CategoricalCritic, CriticLossFunction, check_saved_critic, describe_critic

CRITIC_WEIGHTS, CRITIC_RECORD = "critic.safetensors", "critic.json"
# What in the policy's state dict belongs to the critic: the head, and the LoRA adapter of a critic on its own.
HEAD_NAME, ADAPTER_NAME = "value_head", "critic"
FOR_THE_LM_HEAD = ("labels", "shift_labels", "num_items_in_batch", "head_entropy")
FOR_THE_LM_HEAD = ("labels", "shift_labels", "num_items_in_batch", "head_entropy")


@dataclass
class PolicyValueOutput(FusedCausalLMOutput):
    """What a model with a fused LM head returns; beside log_probs [B, S - 1], critic_outputs [B, S - 1, output_size].

    Position t holds the critic's outputs for the state before token t + 1 is written, as log_probs hold that token's.
    """

    critic_outputs: Tensor | None = None


class ValueHead(nn.Module):
    """One linear layer on the last hidden state, [*D, hidden] -> [*D, output_size], in float32 at least.

    Weights are zero at the start, so that a new critic says `initial_value` everywhere: a scalar one by its bias, a
    categorical one by the least informative distribution over its support with that mean (None: its middle).
    This one reads the policy's own hidden states; models.critic_backbones has heads with a backbone of their own.

    active: False leaves values out (None), for passes that do not need them. detached: True keeps the critic's gradient
    out of the policy's backbone.
    """

    kind = "shared"

    def __init__(self, hidden_size: int, critic: CriticLossFunction, initial_value: float | None = None):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(critic.output_size, hidden_size))
        self.bias = nn.Parameter(initial_bias(critic, initial_value))
        self.active, self.detached = True, False

    def forward(self, hidden: Tensor) -> Tensor:
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        with torch.autocast(hidden.device.type, enabled=False):
            return nn.functional.linear(hidden.to(dtype), self.weight.to(dtype), self.bias.to(dtype))

    def states(self, base: nn.Module, policy_states: Tensor, **inputs: Any) -> Tensor:
        """The hidden states [B, S, hidden] to read; `inputs` are those of the policy's backbone."""
        return policy_states.detach() if self.detached else policy_states


def initial_bias(critic: CriticLossFunction, value: float | None) -> Tensor:
    """The bias [output_size] at which a head without weights decodes to `value`; zeros for None.

    For a categorical critic the bias is t z_i, z_i its centres: of all distributions with that mean the one of largest
    entropy. ValueError for a value that is not finite or not inside the support.
    """
    bias = torch.zeros(critic.output_size)
    if value is None:
        return bias
    if not math.isfinite(value):
        raise ValueError(f"initial_value must be finite, got {value!r}")
    if not isinstance(critic, CategoricalCritic):
        return bias + value
    if not critic.v_min < value < critic.v_max:
        raise ValueError(
            f"initial_value={value!r} must lie inside the critic's support ({critic.v_min:g}, {critic.v_max:g}); set "
            "--initial_value or --critic_kwargs"
        )
    centres = critic.centres(dtype=torch.float64)
    steepest = 500.0 / (critic.v_max - critic.v_min)
    low, high = -steepest, steepest
    for _ in range(80):  # the mean rises with the tilt
        tilt = (low + high) / 2
        low, high = (tilt, high) if critic.decode(tilt * centres) < value else (low, tilt)
    tilted = (low + high) / 2 * centres
    return (tilted - tilted.mean()).float()


def add_value_head(
    model: Any, critic: CriticLossFunction, initial_value: float | None = None, head: ValueHead | None = None
) -> ValueHead:
    """Give `model` (a causal LM with a log-prob head or TRL's fused LM head, with or without PEFT around it) a
    trainable value head.

    A call with fused_lm_head=True then returns PolicyValueOutput; other calls, such as those of `generate`, are as
    before. The head is a submodule of the base model, so that DDP, DeepSpeed and the optimizer see its parameters.
    `head` is one with a backbone of its own; by default the policy's backbone is shared and gets the critic's gradient
    too. ValueError for a model that has a value head already, or no fused head.
    """
    base = base_of(model)
    if hasattr(base, HEAD_NAME):
        raise ValueError(f"the model has a {HEAD_NAME} already")
    fused = base.__dict__.get("forward")
    if not isinstance(fused, types.MethodType):
        raise ValueError("the model has no log-prob head yet; call models.log_prob_head.add_log_prob_head first")
    if head is None:
        head = ValueHead(base.config.get_text_config().hidden_size, critic, initial_value)
    embeddings = base.get_output_embeddings().weight
    # float64 backbones (tests of identities) keep their precision; all others have the head in float32.
    dtype = torch.promote_types(embeddings.dtype, torch.float32)
    head.weight.data, head.bias.data = head.weight.data.to(dtype), head.bias.data.to(dtype)
    base.add_module(HEAD_NAME, head.to(embeddings.device))

    @functools.wraps(fused)  # generate validates its arguments against the signature
    def forward(self, *args, fused_lm_head: bool = False, **kwargs):
        head = self.value_head
        if not fused_lm_head or not head.active:
            return fused(*args, fused_lm_head=fused_lm_head, **kwargs)
        hidden: list[Tensor] = []
        # TRL calls the backbone as a module, so a hook sees its output; PEFT's direct .forward ends in this function.
        handle = self.base_model.register_forward_hook(lambda module, given, out: hidden.append(out.last_hidden_state))
        try:
            output = fused(*args, fused_lm_head=True, **kwargs)
        finally:
            handle.remove()
        inputs = {k: v for k, v in kwargs.items() if k not in FOR_THE_LM_HEAD}
        states = head.states(self, hidden[-1], **inputs)
        states = states if kwargs.get("shift_labels") is not None else states[:, :-1]
        return PolicyValueOutput(**output, critic_outputs=head(states))

    base.forward = types.MethodType(forward, base)
    return head


def split_critic(state_dict: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(policy, critic): a state dict parted by name. The critic's names lose what is around the head; the weights of a
    critic adapter, which lie in the policy's layers, are `adapter.<name in the base model>`.
    """
    policy, critic = {}, {}
    for name, tensor in state_dict.items():
        if f"{HEAD_NAME}." in name:
            critic[name.rpartition(f"{HEAD_NAME}.")[2]] = tensor
        elif f".{ADAPTER_NAME}." in name:
            critic["adapter." + name.removeprefix("base_model.model.")] = tensor
        else:
            policy[name] = tensor
    return policy, critic


def leave_critic_out(generation: Any) -> None:
    """Keep the critic out of what TRL's VLLMGeneration sends to vLLM, which serves the policy only."""
    parameters = generation._iter_named_params

    def without_critic():
        for name, weight in parameters():
            if not split_critic({name: weight})[1]:
                yield name, weight

    generation._iter_named_params = without_critic


def _kind(weights: Mapping[str, Tensor]) -> str:
    parts = {name.partition(".")[0] for name in weights}
    return "model" if "backbone" in parts else "adapter" if "adapter" in parts else "shared"


def save_critic(folder: str | os.PathLike[str], weights: Mapping[str, Tensor], critic: CriticLossFunction) -> None:
    """critic.safetensors and critic.json (kind, support, sizes) into the folder, the record last.

    weights: the second part of `split_critic`.
    """
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    # Cloned: safetensors refuses tensors that share memory, as those of a state dict may.
    weights = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in weights.items()}
    partial = path / f"{CRITIC_WEIGHTS}.tmp"
    save_file(weights, partial)
    os.replace(partial, path / CRITIC_WEIGHTS)
    sizes = {"hidden_size": int(weights["weight"].shape[1]), "backbone": _kind(weights)}
    partial = path / f"{CRITIC_RECORD}.tmp"
    partial.write_text(json.dumps({**describe_critic(critic), **sizes}, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, path / CRITIC_RECORD)


def check_critic_folder(source: str | os.PathLike[str], critic: CriticLossFunction) -> None:
    """ValueError where the folder or file cannot be loaded as this critic, as far as it shows without a model."""
    path = Path(source)
    if _is_own(path):
        check_saved_critic(_read_record(path), critic, str(path))
    else:
        _trl_value_head(path)


def load_critic(folder: str | os.PathLike[str], model: Any, critic: CriticLossFunction) -> None:
    """Fill the critic of `model` (which has a value head) from a folder of save_critic.

    ValueError for a folder without a critic, a critic of another kind, support or backbone, and another width.
    """
    path = Path(folder)
    record = _read_record(path)
    try:
        saved = load_file(path / CRITIC_WEIGHTS)
    except SafetensorError as error:
        raise ValueError(f"the critic in {path} is damaged ({error}); take another checkpoint") from error
    check_saved_critic(record, critic, str(path))
    # Under PEFT the base model's names are those of the whole without a prefix: split_critic drops it.
    own = split_critic(dict(model.named_parameters()))[1]
    width = own["weight"].shape[1]
    if record["hidden_size"] != width:
        raise ValueError(
            f"the critic in {path} belongs to a model of width {record['hidden_size']}, this one has width {width}"
        )
    if set(saved) != set(own):
        raise ValueError(
            f"the critic in {path} has the backbone {record['backbone']!r}, this one {_kind(own)!r}, or another model "
            f"or LoRA rank lies below it: {sorted(set(saved) ^ set(own))[:3]} ... are in one of the two only"
        )
    for name, tensor in saved.items():
        if own[name].shape != tensor.shape:
            raise ValueError(
                f"the critic in {path}: {name} has shape {tuple(tensor.shape)}, expected {tuple(own[name].shape)}"
            )
    with torch.no_grad():
        for name, tensor in saved.items():
            own[name].copy_(tensor)
            own[name].requires_grad_(True)


def load_any_critic(source: str | os.PathLike[str], model: Any, critic: CriticLossFunction) -> None:
    """load_critic for a folder with a critic.json, else load_trl_value_head."""
    if _is_own(Path(source)):
        load_critic(source, model, critic)
    else:
        base = base_of(model)
        load_trl_value_head(source, base.value_head)


def load_trl_value_head(source: str | os.PathLike[str], head: ValueHead) -> None:
    """Fill a scalar `head` from a checkpoint of TRL <= 1.12 (AutoModelForCausalLMWithValueHead).

    source: the folder with model.safetensors or pytorch_model.bin, or that file. Reads v_head.summary.weight
    [1, hidden] and its bias; the policy in the same file is not touched. ValueError where they are not there or do not
    fit.
    """
    path, weight, bias = _trl_value_head(Path(source))
    if weight.shape != head.weight.shape:
        raise ValueError(
            f"the value head in {path} has shape {tuple(weight.shape)}, expected {tuple(head.weight.shape)}: it is "
            "scalar, and belongs to a model of that width"
        )
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)


def _is_own(path: Path) -> bool:
    """Whether it is a folder of save_critic, rather than a checkpoint of TRL; ValueError where nothing is."""
    if not path.exists():
        raise ValueError(f"critic_path {os.fspath(path)!r} does not exist; set --critic_path.")
    return (path / CRITIC_RECORD).is_file()


def _read_record(path: Path) -> dict[str, Any]:
    if not (path / CRITIC_RECORD).is_file() or not (path / CRITIC_WEIGHTS).is_file():
        raise ValueError(f"{path} holds no critic: expected {CRITIC_WEIGHTS} and {CRITIC_RECORD}")
    try:
        record = json.loads((path / CRITIC_RECORD).read_text(encoding="utf-8"))
        missing = {"name", "parameters", "hidden_size", "backbone"} - set(record)
    except (ValueError, TypeError) as error:
        raise ValueError(f"the critic in {path} is damaged ({error}); take another checkpoint") from error
    if missing:
        raise ValueError(f"the critic in {path} is damaged ({CRITIC_RECORD} lacks {sorted(missing)})")
    return record


def _trl_value_head(path: Path) -> tuple[Path, Tensor, Tensor]:
    """The file, and weight and bias of the value head in it."""
    if path.is_dir():
        files = [path / name for name in ("model.safetensors", "pytorch_model.bin") if (path / name).is_file()]
        if not files:
            raise ValueError(f"{path} holds neither model.safetensors nor pytorch_model.bin")
        path = files[0]
    names = ("v_head.summary.weight", "v_head.summary.bias")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                found = {name: file.get_tensor(name) for name in names if name in file.keys()}  # noqa: SIM118
        else:
            # Mapped: only the two weights are read of a file that holds the whole policy.
            saved = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
            found = {name: saved[name] for name in names if name in saved}
    except (SafetensorError, RuntimeError, UnpicklingError) as error:
        raise ValueError(f"{path} cannot be read as weights ({error}); set --critic_path.") from error
    if set(found) != set(names):
        raise ValueError(f"{path} holds no value head of TRL: expected {names[0]} and {names[1]}")
    return path, found[names[0]], found[names[1]]
