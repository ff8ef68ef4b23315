"""Categorical decisions in float64 over the grid of probabilities, ratios and advantages, with loop-made oracles."""

import itertools
from types import SimpleNamespace

import pytest
import torch

from scope_rlhf.objectives import PolicyInputs

CLIP_LOW, CLIP_HIGH = 0.2, 0.3


class Decisions:
    """N decisions over 4 actions; p, A, r, s and m are the symbols of the formulas, m and s made by a loop."""

    def __init__(self) -> None:
        grid = itertools.product((0.02, 0.2, 0.5, 0.9), (0.6, 0.95, 1.0, 1.1, 1.7), (-1.3, -0.2, 0.4, 1.0, 1.6))
        kept = [(p, r, a) for p, r, a in grid if p / r < 1]
        rest = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
        rows = []
        for i, (p, _, _) in enumerate(kept):
            row = (rest * (1 - p)).tolist()
            row.insert(i % 4, p)
            rows.append(row)
        self.logits = torch.tensor(rows, dtype=torch.float64).log() + 0.7
        self.actions = torch.arange(len(kept)) % 4
        self.p, self.r, self.A = torch.tensor(kept, dtype=torch.float64).T
        self.old_log_probs = (self.p / self.r).log()
        clip = [(min(r * a, min(max(r, 1 - CLIP_LOW), 1 + CLIP_HIGH) * a)) for _, r, a in kept]
        self.s = torch.tensor(clip, dtype=torch.float64)
        binds = [(a > 0 and r > 1 + CLIP_HIGH) or (a < 0 and r < 1 - CLIP_LOW) for _, r, a in kept]
        self.m = 1 - torch.tensor(binds, dtype=torch.float64)
        self.onehot = torch.nn.functional.one_hot(self.actions, 4).double()
        self.probs = self.logits.softmax(-1)

    def evaluate(self, objective, *, old: bool, advantages=None, dtype=torch.float64):
        """The objective's loss, and its gradient with respect to the logits."""
        logits = self.logits.to(dtype).requires_grad_()
        all_log_probs = logits.log_softmax(-1)
        log_probs = all_log_probs.gather(1, self.actions[:, None]).squeeze(1)
        entropy = -(all_log_probs.exp() * all_log_probs).sum(-1)
        advantages = self.A if advantages is None else advantages
        inputs = PolicyInputs(
            log_probs=log_probs,
            advantages=advantages.to(dtype),
            old_log_probs=self.old_log_probs.to(dtype) if old else None,
            entropy=entropy,
        )
        loss = objective(inputs)
        (gradient,) = torch.autograd.grad(loss.per_decision.sum(), logits)
        return SimpleNamespace(per_decision=loss.per_decision.detach(), stats=loss.stats, gradient=gradient)

    def along(self, g):
        """G (onehot - probs): dL/dlogits of a loss with dL/dlog p = G."""
        return g[:, None] * (self.onehot - self.probs)

    def check(self, objective, g, *, old: bool, advantages=None):
        """The loss has gradient G, it sums to zero over the logits, and the stat advantage_factor stands for it."""
        result = self.evaluate(objective, old=old, advantages=advantages)
        torch.testing.assert_close(result.gradient, self.along(g), rtol=1e-10, atol=1e-10)
        zero = torch.zeros(len(g), dtype=torch.float64)
        torch.testing.assert_close(result.gradient.sum(-1), zero, rtol=0, atol=1e-10)
        single = self.evaluate(objective, old=old, advantages=advantages, dtype=torch.float32)
        torch.testing.assert_close(single.gradient, self.along(g).float(), rtol=1e-5, atol=1e-5)
        if "advantage_factor" in result.stats:
            unclipped = (self.m == 1) if old else torch.ones_like(self.m, dtype=torch.bool)
            factor = -g / self.r if old else -g
            actual = result.stats["advantage_factor"]
            torch.testing.assert_close(actual[unclipped], factor[unclipped], rtol=1e-10, atol=1e-10)
        return result


@pytest.fixture(scope="session")
def decisions() -> Decisions:
    return Decisions()


@pytest.fixture(scope="session")
def clips() -> dict[str, float]:
    return {"clip_low": CLIP_LOW, "clip_high": CLIP_HIGH}
