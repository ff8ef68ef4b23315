"""Which updates of a rollout are made: none after the policy has moved too far, none of the policy's in a warm-up."""

from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from scope_rlhf.losses import fill_masked
from scope_rlhf.models.value_head import split_critic


class UpdateGate(TrainerCallback):
    """Stops the rest of a rollout's updates once the mean approx_kl of a minibatch (all processes) is above target_kl.

    The minibatch that is found too far away is not stepped on either, as in Stable-Baselines3. Gradients are taken
    away before the optimizer steps (zero gradients would still move Adam), and the learning rate stays where it is.
    During the value warm-up the policy's gradients are taken away, so that weight decay leaves it alone too.
    """

    def __init__(self, trainer: Any):
        self.trainer, self.stopped = trainer, False
        self._kl = torch.zeros(2, dtype=torch.float64)

    def note(self, approx_kl: Tensor, mask: Tensor) -> None:
        """Take in one micro-batch of a minibatch."""
        if self.trainer.args.target_kl is not None and self.trainer.model.training:
            seen = torch.stack([fill_masked(approx_kl, mask).sum(dtype=torch.float64), mask.sum().double()])
            self._kl = self._kl.to(seen.device) + seen

    def on_pre_optimizer_step(self, args: Any, state, control, **kwargs: Any):
        model = self.trainer.model
        if args.target_kl is not None:
            if not self.stopped:
                total, count = self.trainer.accelerator.reduce(self._kl, reduction="sum").tolist()
                self.stopped = total / max(count, 1.0) > args.target_kl
                self._kl.zero_()
            self.trainer._metrics["train"]["policy/skipped_updates"].append(float(self.stopped))
        if self.stopped:
            model.zero_grad(set_to_none=True)
        elif self.trainer.warming_up:
            policy, _ = split_critic(dict(model.named_parameters()))
            for weight in policy.values():
                weight.grad = None

    def on_optimizer_step(self, args: Any, state, control, **kwargs: Any):
        if args.target_kl is not None:
            # What accelerate reports as a skipped step, on which transformers leaves the schedule alone.
            self.trainer.optimizer._is_overflow = self.stopped
