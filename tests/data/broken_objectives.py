"""Objectives that each break the contract in one way: what people really write by mistake."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from scope_rlhf.objectives import PolicyInputs, PolicyLoss


@dataclass(frozen=True)
class HiddenMean:
    def __call__(self, inputs: PolicyInputs) -> PolicyLoss:
        return PolicyLoss(-(inputs.advantages * inputs.log_probs).mean(), {})


@dataclass(frozen=True)
class RowMean:
    def __call__(self, inputs: PolicyInputs) -> PolicyLoss:
        loss = -inputs.advantages * inputs.log_probs
        return PolicyLoss(loss.mean(-1, keepdim=True).expand_as(loss), {})


@dataclass(frozen=True)
class NormalisesAdvantages:
    def __call__(self, inputs: PolicyInputs) -> PolicyLoss:
        advantages = inputs.advantages - inputs.advantages.mean()
        return PolicyLoss(-advantages * inputs.log_probs, {})


@dataclass(frozen=True)
class InPlaceAdvantages:
    def __call__(self, inputs: PolicyInputs) -> PolicyLoss:
        inputs.advantages.clamp_(-1, 1)
        return PolicyLoss(-inputs.advantages * inputs.log_probs, {})


@dataclass(frozen=True)
class InPlaceLogProbs:
    def __call__(self, inputs: PolicyInputs) -> PolicyLoss:
        inputs.log_probs.add_(1e-8)
        return PolicyLoss(-inputs.advantages * inputs.log_probs, {})


@dataclass(frozen=True)
class LambdaField:
    weight: Callable = field(default_factory=lambda: lambda p: 1 - p)

    def __call__(self, inputs: PolicyInputs) -> PolicyLoss:
        return PolicyLoss(-self.weight(inputs.log_probs.exp()) * inputs.advantages * inputs.log_probs, {})


@dataclass(frozen=True)
class NotANumberAtExtremes:
    """The symmetric loss as published, formed in probability space."""

    def __call__(self, inputs: PolicyInputs) -> PolicyLoss:
        log_ratio = inputs.resolve_log_ratio()
        if log_ratio is None:
            raise ValueError("needs old log-probs")
        old_probs = (inputs.log_probs - log_ratio).detach().exp()
        return PolicyLoss(inputs.advantages * (1 - inputs.log_probs.exp()) / old_probs, {})


@dataclass(frozen=True)
class InfiniteStat:
    def __call__(self, inputs: PolicyInputs) -> PolicyLoss:
        inverse = (-inputs.log_probs.detach()).exp()
        return PolicyLoss(-inputs.advantages * inputs.log_probs, {"inverse_probability": inverse})


@dataclass(frozen=True)
class Detached:
    def __call__(self, inputs: PolicyInputs) -> PolicyLoss:
        return PolicyLoss((-inputs.advantages * inputs.log_probs).detach(), {})


@dataclass(frozen=True)
class OldMinusOld:
    """On-policy ratio against itself: the gradient is 0 everywhere."""

    def __call__(self, inputs: PolicyInputs) -> PolicyLoss:
        return PolicyLoss(-inputs.advantages * (inputs.log_probs - inputs.log_probs).exp(), {})


@dataclass(frozen=True)
class UndeclaredDetach:
    def __call__(self, inputs: PolicyInputs) -> PolicyLoss:
        return PolicyLoss(-inputs.advantages * inputs.log_probs.detach().exp() * inputs.log_probs, {})


@dataclass(frozen=True)
class StatWithGradient:
    def __call__(self, inputs: PolicyInputs) -> PolicyLoss:
        loss = -inputs.advantages * inputs.log_probs
        return PolicyLoss(loss, {"loss": loss})


@dataclass(frozen=True)
class ScalarStat:
    def __call__(self, inputs: PolicyInputs) -> PolicyLoss:
        loss = -inputs.advantages * inputs.log_probs
        return PolicyLoss(loss, {"loss": loss.detach().mean()})


@dataclass(frozen=True)
class NumberStat:
    def __call__(self, inputs: PolicyInputs) -> PolicyLoss:
        return PolicyLoss(-inputs.advantages * inputs.log_probs, {"one": 1.0})  # type: ignore[dict-item]


@dataclass(frozen=True)
class ReturnsTensor:
    def __call__(self, inputs: PolicyInputs):
        return -inputs.advantages * inputs.log_probs


@dataclass
class NotFrozen:
    def __call__(self, inputs: PolicyInputs) -> PolicyLoss:
        return PolicyLoss(-inputs.advantages * inputs.log_probs, {})


@dataclass(frozen=True)
class Counts:
    calls: list = field(default_factory=list)

    def __call__(self, inputs: PolicyInputs) -> PolicyLoss:
        self.calls.append(1)
        return PolicyLoss(-inputs.advantages * inputs.log_probs, {})


@dataclass(frozen=True)
class Random:
    def __call__(self, inputs: PolicyInputs) -> PolicyLoss:
        return PolicyLoss(-inputs.advantages * inputs.log_probs * torch.rand_like(inputs.log_probs), {})


@dataclass(frozen=True)
class IgnoresLogRatio:
    def __call__(self, inputs: PolicyInputs) -> PolicyLoss:
        if inputs.old_log_probs is None:
            return PolicyLoss(-inputs.advantages * inputs.log_probs, {})
        return PolicyLoss(-inputs.advantages * (inputs.log_probs - inputs.old_log_probs).exp(), {})


@dataclass(frozen=True)
class AlwaysFloat32:
    def __call__(self, inputs: PolicyInputs) -> PolicyLoss:
        return PolicyLoss(-inputs.advantages.float() * inputs.log_probs.float(), {})


@dataclass(frozen=True)
class AsksForAValue:
    def __call__(self, inputs: PolicyInputs) -> PolicyLoss:
        scale = 2.0 if inputs.advantages.abs().max() > 100 else 1.0
        return PolicyLoss(-scale * inputs.advantages * inputs.log_probs, {})


@dataclass(frozen=True)
class RefusesBothForms:
    def __call__(self, inputs: PolicyInputs) -> PolicyLoss:
        raise ValueError("not today")


@dataclass(frozen=True)
class RaisesWithoutOldLogProbs:
    def __call__(self, inputs: PolicyInputs) -> PolicyLoss:
        return PolicyLoss(-inputs.advantages * (inputs.log_probs - inputs.old_log_probs).exp(), {})  # type: ignore[operator]


@dataclass(frozen=True)
class NeedlessEntropy:
    needs_entropy = True

    def __call__(self, inputs: PolicyInputs) -> PolicyLoss:
        return PolicyLoss(-inputs.advantages * inputs.log_probs, {})


@dataclass(frozen=True)
class MisspelledInput:
    def __call__(self, inputs: PolicyInputs) -> PolicyLoss:
        return PolicyLoss(-inputs.advantage * inputs.log_probs, {})  # pyright: ignore[reportAttributeAccessIssue]


@dataclass(frozen=True)
class NeverFinite:
    def __call__(self, inputs: PolicyInputs) -> PolicyLoss:
        return PolicyLoss(-inputs.advantages * inputs.log_probs * float("nan"), {})


@dataclass(frozen=True)
class RefusesRatios:
    def __call__(self, inputs: PolicyInputs) -> PolicyLoss:
        if inputs.old_log_probs is not None:
            raise ValueError("only without old log-probs")
        return PolicyLoss(-inputs.advantages * inputs.log_probs, {})
