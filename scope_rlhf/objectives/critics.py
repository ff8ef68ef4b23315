"""Critic losses: what a value head is trained on, chosen by name like the objectives.

critic = make_critic_loss("hl_gauss", v_min=0.0, v_max=1.0, bins=51, padding_bins=3)
loss = critic(outputs, returns)      # outputs [*D, critic.output_size], returns [*D]
"""

import difflib
import inspect
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from numbers import Integral, Real
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from scope_rlhf.losses.categorical_value import (
    categorical_cross_entropy,
    distribution_entropy,
    expected_value,
    hl_gauss_probs,
    project_probs,
    two_hot_probs,
)


@dataclass(frozen=True, eq=False)
class CriticLoss:
    """per_decision: [*D] with gradient, unmasked, unreduced, without vf_coef. values: [*D] decoded, detached.

    stats: each [*D], detached; its masked mean is what is logged.
    """

    per_decision: Tensor
    values: Tensor
    stats: dict[str, Tensor]


class CriticLossFunction:
    """Base class: a frozen dataclass with `output_size`, `decode`, `target` and the call. No parameters, no state."""

    @property
    def output_size(self) -> int:
        """Width of the value head's last dimension."""
        raise NotImplementedError

    def decode(self, outputs: Tensor) -> Tensor:
        """Head outputs [*D, output_size] -> values [*D] in float32 (float64 for float64), with gradient."""
        raise NotImplementedError

    def target(self, returns: Tensor) -> Tensor:
        """What the head is to give for the returns [*D]; no gradient. ValueError for NaN."""
        raise NotImplementedError

    def __call__(
        self,
        outputs: Tensor,
        returns: Tensor | None = None,
        *,
        target: Tensor | None = None,
        old_values: Tensor | None = None,
    ) -> CriticLoss:
        """Loss of head outputs [*D, output_size] against returns [*D], or against a `target` made beforehand.

        old_values [*D]: decoded values of the rollout, for value clipping.
        """
        raise NotImplementedError

    def _check(self, outputs: Tensor, returns: Tensor | None, target: Tensor | None, old_values: Tensor | None) -> None:
        name = type(self).__name__
        if (returns is None) == (target is None):
            raise ValueError(f"{name}: give returns or target, one of the two")
        if outputs.shape[-1:] != (self.output_size,):
            raise ValueError(
                f"{name}: outputs have shape {tuple(outputs.shape)}, expected [..., {self.output_size}] from the head"
            )
        if returns is not None and returns.shape != outputs.shape[:-1]:
            raise ValueError(
                f"{name}: returns have shape {tuple(returns.shape)}, expected {tuple(outputs.shape[:-1])} as the values"
            )
        wanted = outputs.shape[:-1] if self.output_size == 1 else outputs.shape
        if target is not None and target.shape != wanted:
            raise ValueError(f"{name}: target has shape {tuple(target.shape)}, expected {tuple(wanted)}")
        if target is not None:
            _refuse_nan(target, "entries of target")
        if old_values is not None and old_values.shape != outputs.shape[:-1]:
            raise ValueError(
                f"{name}: old_values have shape {tuple(old_values.shape)}, expected {tuple(outputs.shape[:-1])}"
            )


@dataclass(frozen=True)
class MSECritic(CriticLossFunction):
    """(V - R)^2 / 2, with value clipping max((V - R)^2, (clip(V) - R)^2) / 2, clip(V) = V_old +- cliprange_value.

    The half and the clipping are those of PPO in baselines and TRL. cliprange_value None: no clipping, and old_values
    are not read. The gradient is 0 where the clipped error is the larger one.
    """

    cliprange_value: float | None = None

    def __post_init__(self) -> None:
        if self.cliprange_value is not None and not _positive(self.cliprange_value):
            raise ValueError(f"MSECritic: cliprange_value must be a number > 0 or None, got {self.cliprange_value!r}")

    @property
    def output_size(self) -> int:
        return 1

    def decode(self, outputs: Tensor) -> Tensor:
        return outputs.squeeze(-1).to(torch.promote_types(outputs.dtype, torch.float32))

    def target(self, returns: Tensor) -> Tensor:
        _refuse_nan(returns)
        return returns.detach().to(torch.promote_types(returns.dtype, torch.float32))

    def __call__(self, outputs, returns=None, *, target=None, old_values=None) -> CriticLoss:
        self._check(outputs, returns, target, old_values)
        wanted = self.target(returns) if target is None else target.detach()
        values = self.decode(outputs)
        squared = (values - wanted).square()
        stats = {"squared_error": squared.detach()}
        if self.cliprange_value is not None:
            if old_values is None:
                raise ValueError("MSECritic: value clipping (cliprange_value) needs old_values; give them or no clip")
            old = old_values.detach().to(values.dtype)
            clipped = old + (values - old).clamp(-self.cliprange_value, self.cliprange_value)
            clipped_squared = (clipped - wanted).square()
            stats["clip_fraction"] = (clipped_squared > squared).to(values.dtype)
            squared = torch.maximum(squared, clipped_squared)
        return CriticLoss(squared / 2, values.detach(), stats)


@dataclass(frozen=True)
class CategoricalCritic(CriticLossFunction):
    """Shared by the categorical critics: cross-entropy to a distribution over a fixed support.

    v_min, v_max: the range of the data. bins: output size, padding included. padding_bins: bins on either side outside
    the data range, so that the decoded value is right up to its ends (3 are enough for HL-Gauss).

    Returns outside [v_min, v_max] are clamped and counted in the stat out_of_range. Clipping of values has no analogue
    in cross-entropy: old_values are not read. Stats: above_floor (cross-entropy minus the entropy of its target, 0 at
    best), squared_error of the decoded value, out_of_range where returns are given.
    """

    v_min: float
    v_max: float
    bins: int = 51
    padding_bins: int = 0

    def __post_init__(self) -> None:
        name = type(self).__name__
        for field in ("v_min", "v_max"):
            if not _finite(getattr(self, field)):
                raise ValueError(f"{name}: {field} must be a finite number, got {getattr(self, field)!r}")
        if not self.v_min < self.v_max:
            raise ValueError(
                f"{name}: v_min must be below v_max, got v_min={self.v_min!r} and v_max={self.v_max!r}; set them to "
                "the range of the returns"
            )
        for field, least in (("bins", 2), ("padding_bins", 0)):
            value = getattr(self, field)
            if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name}: {field} must be a whole number >= {least}, got {value!r}")
        if self.bins - 2 * self.padding_bins < 2:
            raise ValueError(
                f"{name}: bins={self.bins} count the padding, and 2 x padding_bins={self.padding_bins} leave "
                f"{self.bins - 2 * self.padding_bins} for the data, expected at least 2"
            )

    @property
    def output_size(self) -> int:
        return int(self.bins)

    def centres(self, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
        """The value of each output [bins]."""
        raise NotImplementedError

    def decode(self, outputs: Tensor) -> Tensor:
        dtype = torch.promote_types(outputs.dtype, torch.float32)
        return expected_value(outputs, self.centres(outputs.device, dtype))

    def __call__(self, outputs, returns=None, *, target=None, old_values=None) -> CriticLoss:
        self._check(outputs, returns, target, old_values)
        target = self.target(returns) if target is None else target
        loss = categorical_cross_entropy(outputs, target)
        with torch.no_grad():
            values = self.decode(outputs)
            if returns is None:
                wanted = target.to(values.dtype) @ self.centres(outputs.device, values.dtype)
            else:
                wanted = returns.to(values.dtype)
            stats = {
                "above_floor": loss.detach() - distribution_entropy(target),
                "squared_error": (values - wanted).square(),
            }
            if returns is not None:
                stats["out_of_range"] = ((returns < self.v_min) | (returns > self.v_max)).to(values.dtype)
        return CriticLoss(loss, values, stats)

    def _clamped(self, returns: Tensor) -> Tensor:
        _refuse_nan(returns)
        returns = returns.detach().to(torch.promote_types(returns.dtype, torch.float32))
        return returns.clamp(self.v_min, self.v_max)


@dataclass(frozen=True)
class HLGaussCritic(CategoricalCritic):
    """Histogram loss with a Gaussian of sigma = sigma_ratio x bin width (arXiv 2403.03950); .75 is the paper's."""

    sigma_ratio: float = 0.75

    def __post_init__(self) -> None:
        super().__post_init__()
        if not _positive(self.sigma_ratio):
            raise ValueError(f"HLGaussCritic: sigma_ratio must be a number > 0, got {self.sigma_ratio!r}")

    @property
    def width(self) -> float:
        """Width of a bin."""
        return (self.v_max - self.v_min) / (self.bins - 2 * self.padding_bins)

    def centres(self, device=None, dtype=torch.float32) -> Tensor:
        first = self.v_min + (0.5 - self.padding_bins) * self.width
        return _grid(first, self.width, self.bins, device, dtype)

    def target(self, returns: Tensor) -> Tensor:
        returns = self._clamped(returns)
        first = self.v_min - self.padding_bins * self.width
        edges = _grid(first, self.width, self.bins + 1, returns.device, returns.dtype)
        return hl_gauss_probs(returns, edges, self.sigma_ratio * self.width)


@dataclass(frozen=True)
class TwoHotCritic(CategoricalCritic):
    """The two atoms around the return share it, so that the mean is kept (arXiv 2403.03950, eq. 2)."""

    def centres(self, device=None, dtype=torch.float32) -> Tensor:
        spacing = (self.v_max - self.v_min) / (self.bins - 2 * self.padding_bins - 1)
        return _grid(self.v_min - self.padding_bins * spacing, spacing, self.bins, device, dtype)

    def target(self, returns: Tensor) -> Tensor:
        returns = self._clamped(returns)
        return two_hot_probs(returns, self.centres(returns.device, returns.dtype))


@dataclass(frozen=True)
class C51Critic(TwoHotCritic):
    """C51 (arXiv 1707.06887): the target is the next state's distribution, moved and projected.

    With scalar returns it is two-hot; a distribution comes by `target=critic.project(...)`.
    """

    @torch.no_grad()
    def project(self, rewards: Tensor, discounts: Tensor, next_outputs: Tensor) -> Tensor:
        """Distribution of r + discount Z', next_outputs [*D, bins] of the target network -> [*D, bins].

        rewards, discounts [*D]; a discount of 0 ends the episode. Atoms beyond the support are clipped to its ends.
        """
        if rewards.shape != discounts.shape or next_outputs.shape != (*rewards.shape, self.output_size):
            raise ValueError(
                f"C51Critic: rewards {tuple(rewards.shape)}, discounts {tuple(discounts.shape)} and next_outputs "
                f"{tuple(next_outputs.shape)} do not fit, expected [*D], [*D] and [*D, {self.output_size}]"
            )
        _refuse_nan(rewards)
        dtype = torch.promote_types(torch.promote_types(next_outputs.dtype, rewards.dtype), torch.float32)
        atoms = self.centres(next_outputs.device, dtype)
        positions = rewards.unsqueeze(-1).to(dtype) + discounts.unsqueeze(-1).to(dtype) * atoms
        return project_probs(next_outputs.to(dtype).softmax(dim=-1), positions, atoms)


CRITICS: Mapping[str, type[CriticLossFunction]] = MappingProxyType(
    {"mse": MSECritic, "hl_gauss": HLGaussCritic, "two_hot": TwoHotCritic, "c51": C51Critic}
)


def make_critic_loss(name: str, /, **kwargs: Any) -> CriticLossFunction:
    """The critic loss of that name: mse(cliprange_value=None), or a categorical one (v_min, v_max, bins=51,
    padding_bins=0; hl_gauss also sigma_ratio=.75).

    Raises ValueError: unknown name or parameter, listing the valid ones; v_min or v_max missing; a value out of range.
    """
    if name not in CRITICS:
        near = difflib.get_close_matches(str(name), CRITICS, n=1)
        meant = f", did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown critic {name!r}{meant}; valid: {', '.join(CRITICS)}")
    parameters = inspect.signature(CRITICS[name]).parameters
    for key in kwargs:
        if key not in parameters:
            raise ValueError(f"critic {name!r} has no parameter {key!r}; valid: {', '.join(parameters)}")
    missing = [key for key, p in parameters.items() if p.default is p.empty and key not in kwargs]
    if missing:
        raise ValueError(f"critic {name!r} needs {' and '.join(missing)}: the range of the returns it is to represent")
    return CRITICS[name](**kwargs)


def describe_critic(critic: CriticLossFunction) -> dict[str, Any]:
    """Name and parameters, as saved with a critic's weights; make_critic_loss(name, **parameters) makes it again."""
    name = next((name for name, known in CRITICS.items() if known is type(critic)), None)
    if name is None:
        raise ValueError(f"{type(critic).__name__} is no critic of the catalogue: {', '.join(CRITICS)}")
    return {"name": name, "parameters": asdict(critic)}  # type: ignore[call-overload]


def check_saved_critic(saved: Mapping[str, Any], critic: CriticLossFunction, source: str) -> None:
    """ValueError where the saved weights belong to another kind of critic or another support.

    `source` names where `saved` came from. Value clipping may differ: it is no part of the weights' meaning.
    """
    before, now = ({**record["parameters"], "critic": record["name"]} for record in (saved, describe_critic(critic)))
    changed = [key for key in {**before, **now} if key != "cliprange_value" and before.get(key) != now.get(key)]
    if changed:
        kind = "critic" in changed
        listed = "; ".join(
            f"{key} was {before.get(key)!r}, is {now.get(key)!r}" for key in (["critic"] if kind else changed)
        )
        raise ValueError(
            f"the critic in {source} was trained {'as another kind' if kind else 'with another support'} ({listed}): "
            "its outputs would mean other values. Set the critic to what was saved (--critic, --critic_kwargs), or "
            "start a new one."
        )


def _grid(first: float, step: float, count: int, device: Any, dtype: torch.dtype) -> Tensor:
    """first + k step, in float64 before it is rounded (on a device without float64, on the CPU)."""
    return (first + step * torch.arange(count, dtype=torch.float64)).to(dtype).to(device)


def _refuse_nan(values: Tensor, what: str = "returns") -> None:
    if values.device.type != "meta" and not bool(values.isfinite().all()):
        raise ValueError(
            f"{int((~values.isfinite()).sum())} of {values.numel()} {what} are NaN or infinite; fill masked positions "
            "and check the rewards before the critic sees them"
        )


def _finite(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _positive(value: Any) -> bool:
    return _finite(value) and value > 0
