"""The objective interface: inputs, output, and the base class of the shipped objectives. Public API.

One objective serves LLM tokens [B, T], control transitions [N], binned actions [N] or [N, K] and images [B]; `*D`
stands for any of them.
"""

import math
from dataclasses import dataclass, fields
from numbers import Real
from typing import ClassVar

import torch
from torch import Tensor

from scope_rlhf.losses import approx_kl, bounded_ratio, clip_mask, clipped_surrogate


@dataclass(frozen=True, eq=False)
class PolicyInputs:
    """What an objective sees, every tensor with the shape [*D] of `log_probs`; nothing broadcasts.

    log_probs: of the chosen action, with gradient.
    advantages: without gradient; ones for supervised classification.
    old_log_probs: under the behaviour policy, without gradient; None selects the score-function form.
    log_ratio: default log_probs - old_log_probs; given for sequence-level ratios (expanded to [B, T]), with gradient.
        Every objective uses the ratio it is given; given alone it selects the ratio form, with p_o = p / r.
    entropy: of the whole distribution, with gradient where the model offers it.

    Raises:
        ValueError: not a floating-point tensor, another shape, a gradient in advantages or old_log_probs (each would
            change the policy gradient silently), or a log_ratio cut off from the graph of log_probs.
    """

    log_probs: Tensor
    advantages: Tensor
    old_log_probs: Tensor | None = None
    log_ratio: Tensor | None = None
    entropy: Tensor | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            tensor = getattr(self, field.name)
            if tensor is None and field.default is None:
                continue
            if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
                given = f"{tensor.dtype} tensor" if isinstance(tensor, Tensor) else type(tensor).__name__
                raise ValueError(f"PolicyInputs: {field.name} is a {given}, expected a floating-point tensor")
            if tensor.shape != self.log_probs.shape:
                raise ValueError(
                    f"PolicyInputs: {field.name} has shape {tuple(tensor.shape)}, expected that of log_probs, "
                    f"{tuple(self.log_probs.shape)}; nothing broadcasts, expand it in the caller"
                )
        for name in ("advantages", "old_log_probs"):
            tensor = getattr(self, name)
            if tensor is not None and tensor.requires_grad:
                raise ValueError(f"PolicyInputs: {name} carries a gradient, expected none; pass {name}.detach()")
        cut = self.log_ratio is not None and not self.log_ratio.requires_grad
        if cut and self.log_probs.requires_grad and torch.is_grad_enabled():
            raise ValueError("PolicyInputs: log_ratio carries no gradient but log_probs does; build it from log_probs")

    def resolve_log_ratio(self) -> Tensor | None:
        """The log ratio to use: the given one, else log_probs - old_log_probs, else None (score-function form)."""
        if self.log_ratio is not None:
            return self.log_ratio
        return None if self.old_log_probs is None else self.log_probs - self.old_log_probs


@dataclass(frozen=True, eq=False)
class PolicyLoss:
    """What an objective returns: losses to minimise, unmasked and unreduced, and what to log.

    per_decision: [*D] with gradient.
    stats: each [*D], detached; its masked mean is what is logged.
    """

    per_decision: Tensor
    stats: dict[str, Tensor]


class Objective:
    """Optional base class. An objective is a frozen dataclass with `__call__(PolicyInputs) -> PolicyLoss`.

    It holds hyperparameters only, never sees a mask, never reduces and never waits for a device. The class variables
    tell trainers what to compute for it; a class without them has these defaults.
    """

    needs_entropy: ClassVar[bool] = False
    needs_old_log_probs: ClassVar[bool] = False
    stops_gradient: ClassVar[bool] = False
    formula: ClassVar[str] = ""

    def __call__(self, inputs: PolicyInputs) -> PolicyLoss:
        raise NotImplementedError(f"{type(self).__name__} has no __call__(inputs: PolicyInputs) -> PolicyLoss")


@dataclass(frozen=True, kw_only=True)
class ClippedObjective(Objective):
    """Shared by the shipped objectives: the policy term and its two clips.

    The policy term is -s with s = min(r A, clip(r) A), clip(r) = clamp(r, 1 - clip_low, 1 + clip_high), where the
    inputs have a ratio, and s = A log p where they have none. log r is bounded at 60, which keeps float32 and bfloat16
    finite; a decision beyond it has no gradient.

    clip_low in (0, 1), clip_high > 0. policy_coef >= 0 multiplies the policy term only.
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    policy_coef: float = 1.0

    def __post_init__(self) -> None:
        self._check_number("clip_low", above=0, below=1)
        self._check_number("clip_high", above=0)
        self._check_number("policy_coef", at_least=0)

    def surrogate(self, inputs: PolicyInputs) -> tuple[Tensor, Tensor | None]:
        """(s, r): the surrogate to maximise, with gradient, and the ratio, None in the score-function form."""
        log_ratio = inputs.resolve_log_ratio()
        if log_ratio is None:
            return inputs.advantages * inputs.log_probs, None
        ratio = bounded_ratio(log_ratio)
        return clipped_surrogate(ratio, inputs.advantages, self.clip_low, self.clip_high), ratio

    @torch.no_grad()
    def policy_stats(self, inputs: PolicyInputs, surrogate: Tensor, ratio: Tensor | None) -> dict[str, Tensor]:
        """surrogate; with a ratio also ratio, approx_kl (k3) and clip_fraction (0 or 1); entropy where given."""
        stats = {"surrogate": surrogate.detach()}
        log_ratio = inputs.resolve_log_ratio()
        if ratio is not None and log_ratio is not None:
            counts = clip_mask(ratio, inputs.advantages, self.clip_low, self.clip_high)
            stats["ratio"] = ratio.detach()
            stats["approx_kl"] = approx_kl(log_ratio)
            stats["clip_fraction"] = (~counts).to(surrogate.dtype)
        if inputs.entropy is not None:
            stats["entropy"] = inputs.entropy.detach()
        return stats

    def _check_number(
        self,
        field: str,
        *,
        above: float = -math.inf,
        below: float = math.inf,
        at_least: float = -math.inf,
        at_most: float = math.inf,
    ) -> None:
        """Keep `field` as a float, or raise a ValueError with what was given, what was expected and where to set it."""
        value = getattr(self, field)
        bounds = {"> ": above, "< ": below, ">= ": at_least, "<= ": at_most}
        expected = " and ".join(sign + format(bound, "g") for sign, bound in bounds.items() if math.isfinite(bound))
        number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
        if not (math.isfinite(number) and above < number < below and at_least <= number <= at_most):
            raise ValueError(
                f"{type(self).__name__}: {field}={value!r} ({type(value).__name__}) given, expected a finite number"
                f"{' ' + expected if expected else ''}; set it as objective parameter {field}"
            )
        object.__setattr__(self, field, number)

    def _check_bool(self, field: str) -> None:
        value = getattr(self, field)
        if not isinstance(value, bool):
            raise ValueError(
                f"{type(self).__name__}: {field}={value!r} ({type(value).__name__}) given, expected true or false; "
                f"set it as objective parameter {field}"
            )


def sign_flip(factor: Tensor, advantages: Tensor) -> Tensor:
    """1 where `factor` and the advantage push in opposite directions, else 0; no gradient."""
    return (factor.sign() * advantages.sign() < 0).to(factor.dtype)
