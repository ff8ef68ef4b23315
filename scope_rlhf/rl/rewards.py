"""Rewards of language-model PPO: a score per completion, a KL penalty per token, and what is done to the score."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from scope_rlhf.losses import fill_masked
from scope_rlhf.rl.completions import last_counted


def token_rewards(
    scores: Tensor, log_probs: Tensor, ref_log_probs: Tensor | None, mask: Tensor, kl_coef: float
) -> tuple[Tensor, Tensor]:
    """r_t = -kl_coef (log p_t - log p_ref,t), plus the score at the last counted token (arXiv 1909.08593, eq. 2).

    The last counted token is the end token, or the last one of a cut completion. The penalty is the k1 estimate: its
    expectation under the policy is the KL; single tokens may be negative. With gamma = lambda = 1 the return of the
    first token is score - kl_coef * sum of k1.

    scores [B]; log_probs, ref_log_probs, mask [B, T]. ref_log_probs None: no reference, KL 0. Returns (rewards, kl),
    both [B, T], float32 at least, no gradient, 0 at masked tokens. A row without a counted token has no reward at all.

    Raises ValueError for another shape and for kl_coef < 0.
    """
    if scores.shape != mask.shape[:1] or log_probs.shape != mask.shape or mask.dim() != 2:
        raise ValueError(
            f"token_rewards: scores {tuple(scores.shape)}, log_probs {tuple(log_probs.shape)} and mask "
            f"{tuple(mask.shape)} do not fit, expected [B], [B, T] and [B, T]"
        )
    if not kl_coef >= 0:
        raise ValueError(f"token_rewards: kl_coef must be >= 0, got {kl_coef!r}: a negative one rewards moving away")
    dtype = torch.promote_types(log_probs.dtype, torch.float32)
    log_probs = fill_masked(log_probs.detach(), mask).to(dtype)
    if ref_log_probs is None:
        kl = torch.zeros_like(log_probs)
    else:
        kl = log_probs - fill_masked(ref_log_probs.detach(), mask).to(dtype)
    last = last_counted(mask).unsqueeze(1)
    here = torch.arange(mask.shape[1], device=mask.device) == last
    terminal = torch.where(here, scores.detach().to(dtype).unsqueeze(1), 0.0)
    return terminal - kl_coef * kl, kl


def score_missing_eos(
    scores: Tensor, ended: Tensor, *, penalty: float | None = None, replacement: float | None = None
) -> Tensor:
    """The score of completions that were cut: minus `penalty` (TRL's missing_eos_penalty), or `replacement` instead.

    scores, ended (bool) [B]. Replacement is what the TL;DR reproduction does (arXiv 2403.17031: -1). ValueError for
    both at once and for a penalty < 0.
    """
    if penalty is not None and replacement is not None:
        raise ValueError("score_missing_eos: penalty and replacement are two ways to score a cut completion; set one")
    if penalty is not None:
        if not penalty >= 0:
            raise ValueError(f"score_missing_eos: penalty must be >= 0, got {penalty!r}; it is subtracted")
        return torch.where(ended, scores, scores - penalty)
    if replacement is not None:
        return torch.where(ended, scores, replacement)
    return scores


class RunningMoments:
    """Mean and spread of all scores so far (Chan, Golub and LeVeque 1979), in float64 on the CPU, for checkpoints too.

    `update` takes scores of any shape; `all_reduce` sums a tensor over the processes, which must then all call it.
    """

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0.0, 0.0, 0.0

    @property
    def std(self) -> float:
        """Unbiased standard deviation; 1 below two scores, or without any spread, so that dividing by it is safe."""
        variance = self.squares / (self.count - 1) if self.count > 1 else 0.0
        return variance**0.5 if variance > 0 else 1.0

    def update(self, scores: Tensor, all_reduce: Callable[[Tensor], Tensor] | None = None) -> None:
        scores = scores.detach().double().flatten()

        def total(*sums: Tensor) -> list[float]:
            stacked = torch.stack(sums)
            return (stacked if all_reduce is None else all_reduce(stacked)).tolist()

        count, summed = total(torch.tensor(float(len(scores)), dtype=torch.float64, device=scores.device), scores.sum())
        if count == 0:
            return
        mean = summed / count
        (squares,) = total((scores - mean).square().sum())
        whole, gap = self.count + count, mean - self.mean
        self.squares += squares + gap**2 * self.count * count / whole
        self.mean += gap * count / whole
        self.count = whole

    def normalise(self, scores: Tensor, shift_mean: bool = True) -> Tensor:
        """(scores - mean) / std, or scores / std."""
        return (scores - self.mean if shift_mean else scores) / self.std

    def state_dict(self) -> dict[str, float]:
        return {"count": self.count, "mean": self.mean, "squares": self.squares}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count, self.mean, self.squares = state["count"], state["mean"], state["squares"]
