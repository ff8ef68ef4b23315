"""What a policy head's outputs mean: categorical, binned continuous, or Gaussian. N transitions, K action dimensions, V
actions (or bins of one dimension).

Every family has: `output_size` of its head; `sample` and `mode` of the head's outputs; `log_probs` and `entropy`, with
gradient, [N], or [N, K] where each dimension is a decision of its own; and `to_environment`, actions as numpy arrays.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scope_rlhf.losses import categorical_entropy

POLICIES = ("categorical", "binned", "gaussian")


class CategoricalPolicy:
    """One of V actions: log p(a) = log_softmax(logits)_a."""

    decisions = 1

    def __init__(self, actions: int, start: int = 0):
        self.output_size, self._start = actions, start
        self.action_shape: tuple[int, ...] = ()
        self.action_dtype = torch.int64

    def sample(self, outputs: Tensor) -> Tensor:
        """Actions [N] int64 of logits [N, V], by the Gumbel trick from torch's global generator."""
        return _sample_categorical(outputs)

    def mode(self, outputs: Tensor) -> Tensor:
        return outputs.argmax(dim=-1)

    def log_probs(self, outputs: Tensor, actions: Tensor) -> Tensor:
        return _chosen(outputs, actions)

    def entropy(self, outputs: Tensor) -> Tensor:
        return categorical_entropy(outputs)

    def to_environment(self, actions: Tensor) -> np.ndarray:
        return actions.cpu().numpy() + self._start


class BinnedPolicy:
    """K continuous dimensions, each cut into `bins` values from low to high, ends included (arXiv 1901.10500).

    The dimensions are independent: log p(a) = sum_k log_softmax(logits_k)_{a_k}, and the entropy is the sum. With
    per_dimension both stay [N, K]: an objective then clips each dimension by itself.
    """

    def __init__(self, low: np.ndarray, high: np.ndarray, bins: int = 11, per_dimension: bool = False):
        self.bins, self.per_dimension = bins, per_dimension
        self.dimensions = len(low)
        self.decisions = self.dimensions if per_dimension else 1
        self.output_size = self.dimensions * bins
        self.action_shape: tuple[int, ...] = (self.dimensions,)
        self.action_dtype = torch.int64
        self._values = np.linspace(low, high, bins).T.astype(np.float32)  # [K, bins]

    def _logits(self, outputs: Tensor) -> Tensor:
        return outputs.unflatten(-1, (self.dimensions, self.bins))

    def sample(self, outputs: Tensor) -> Tensor:
        """Bin numbers [N, K] int64 of logits [N, K * bins]."""
        return _sample_categorical(self._logits(outputs))

    def mode(self, outputs: Tensor) -> Tensor:
        return self._logits(outputs).argmax(dim=-1)

    def log_probs(self, outputs: Tensor, actions: Tensor) -> Tensor:
        each = _chosen(self._logits(outputs), actions)
        return each if self.per_dimension else each.sum(dim=-1)

    def entropy(self, outputs: Tensor) -> Tensor:
        each = categorical_entropy(self._logits(outputs))
        return each if self.per_dimension else each.sum(dim=-1)

    def to_environment(self, actions: Tensor) -> np.ndarray:
        return self._values[np.arange(self.dimensions), actions.cpu().numpy()]


class GaussianPolicy:
    """K independent normals; the head gives the means, the log standard deviations are weights of their own (the last
    K of the outputs). log p is that of the unbounded action; the environment gets it clipped to its bounds.
    """

    def __init__(self, low: np.ndarray, high: np.ndarray, per_dimension: bool = False):
        self.per_dimension, self.dimensions = per_dimension, len(low)
        self.decisions = self.dimensions if per_dimension else 1
        self.output_size = self.dimensions
        self.action_shape: tuple[int, ...] = (self.dimensions,)
        self.action_dtype = torch.float32
        self._low, self._high = low, high

    def _moments(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = outputs.split(self.dimensions, dim=-1)
        return mean, log_std

    def sample(self, outputs: Tensor) -> Tensor:
        """Actions [N, K] of outputs [N, 2 K]: means and log standard deviations."""
        mean, log_std = self._moments(outputs)
        return mean + log_std.exp() * torch.randn_like(mean)

    def mode(self, outputs: Tensor) -> Tensor:
        return self._moments(outputs)[0]

    def log_probs(self, outputs: Tensor, actions: Tensor) -> Tensor:
        mean, log_std = self._moments(outputs)
        each = -((actions - mean) * (-log_std).exp()).square() / 2 - log_std - math.log(2 * math.pi) / 2
        return each if self.per_dimension else each.sum(dim=-1)

    def entropy(self, outputs: Tensor) -> Tensor:
        """Differential entropy in nats: log std + (1 + log 2 pi) / 2 for each dimension; it may be negative."""
        _, log_std = self._moments(outputs)
        each = log_std + (1 + math.log(2 * math.pi)) / 2
        return each if self.per_dimension else each.sum(dim=-1)

    def to_environment(self, actions: Tensor) -> np.ndarray:
        return np.clip(actions.cpu().numpy(), self._low, self._high)


Policy = CategoricalPolicy | BinnedPolicy | GaussianPolicy


class GaussianHead(nn.Module):
    """Linear means beside log standard deviations that do not depend on the state: [N, D] -> [N, 2 K]."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.mean = linear
        self.log_std = nn.Parameter(torch.zeros(linear.out_features))

    def forward(self, features: Tensor) -> Tensor:
        mean = self.mean(features)
        return torch.cat([mean, self.log_std.to(mean.dtype).expand_as(mean)], dim=-1)


def make_policy(
    action_space: Any, policy: str | None = None, *, bins: int = 11, per_dimension: bool = False, env: str = ""
) -> Policy:
    """The policy for an action space; default categorical for a discrete space, Gaussian for a continuous one.

    Raises ValueError where the policy does not fit the space, or the space is neither discrete nor a bounded box.
    """
    import gymnasium

    spaces = gymnasium.spaces
    if policy is not None and policy not in POLICIES:
        raise ValueError(f"policy {policy!r} is unknown; valid: {', '.join(POLICIES)}; set --policy.")
    if bins != 11 and policy != "binned":
        raise ValueError(f"bins={bins} given, but only policy binned has bins; leave --bins out.")
    if isinstance(action_space, spaces.Discrete):
        if policy not in (None, "categorical"):
            raise ValueError(
                f"policy {policy!r} is for continuous actions, but {env or 'the environment'} has "
                f"{action_space.n} discrete ones; set --policy categorical, or leave it out."
            )
        if per_dimension:
            raise ValueError(f"per_dimension needs several action dimensions, {env or 'the environment'} has one.")
        return CategoricalPolicy(int(action_space.n), int(action_space.start))
    if not isinstance(action_space, spaces.Box) or len(action_space.shape) != 1:
        raise ValueError(
            f"{env or 'the environment'} has the action space {action_space}, expected Discrete or a flat Box; set "
            "another --env."
        )
    if per_dimension and action_space.shape[0] == 1:
        raise ValueError(f"per_dimension needs several action dimensions, {env or 'the environment'} has one.")
    if policy == "categorical":
        raise ValueError(
            f"policy 'categorical' needs discrete actions, but {env or 'the environment'} has {action_space.shape[0]} "
            "continuous ones; set --policy binned (each dimension in --bins values) or gaussian."
        )
    if not (np.isfinite(action_space.low).all() and np.isfinite(action_space.high).all()):
        raise ValueError(
            f"{env or 'the environment'} has unbounded actions, {action_space}; bounds are needed; set another --env."
        )
    if policy == "binned":
        if bins < 2:
            raise ValueError(f"bins must be at least 2, got {bins!r}; set --bins.")
        return BinnedPolicy(action_space.low, action_space.high, bins, per_dimension)
    return GaussianPolicy(action_space.low, action_space.high, per_dimension)


def describe_policy(policy: Policy) -> Mapping[str, Any]:
    """What a checkpoint records of a policy: its kind and the shape of its outputs."""
    return {
        "policy": type(policy).__name__,
        "outputs": policy.output_size,
        "decisions": policy.decisions,
        "action_shape": list(policy.action_shape),
    }


def _chosen(logits: Tensor, actions: Tensor) -> Tensor:
    return logits.log_softmax(dim=-1).gather(-1, actions.unsqueeze(-1)).squeeze(-1)


def _sample_categorical(logits: Tensor) -> Tensor:
    """argmax(logits + Gumbel noise), that is of logits - log(Exponential(1)); [..., V] -> [...]."""
    return (logits - torch.empty_like(logits).exponential_().log()).argmax(dim=-1)
