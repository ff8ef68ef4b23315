"""PPO with any objective and any critic, in CleanRL's phase order: rollout, advantages, epochs of minibatches, log."""

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from scope_rlhf.control import on_policy
from scope_rlhf.control.on_policy_config import PPOConfig
from scope_rlhf.control.rollout import MinibatchLoader, Rollout
from scope_rlhf.control.session import Session
from scope_rlhf.objectives import CriticLossFunction, Objective, describe_objective
from scope_rlhf.rl import explained_variance, whiten

# Statistics of an objective under CleanRL's names.
_CLEANRL = {"approx_kl": "losses/approx_kl", "clip_fraction": "losses/clipfrac"}


def train_ppo(config: PPOConfig) -> Path:
    """Train, evaluate and save; returns the run folder.

    Each of the `num_updates` rollouts has num_envs x num_steps transitions and gives num_ppo_epochs x num_mini_batches
    optimizer steps of

        mean(objective) - ent_coef mean(entropy) + vf_coef mean(critic loss)

    over the counted transitions of a minibatch of all processes; gradients are averaged over the processes. Errors:
    Session's, and EnvironmentFailure, after a checkpoint.
    """
    with Session(config, "ppo", describe_objective(config.make_objective())) as session:
        model, optimizer, collector = on_policy.start(
            session,
            config,
            lambda agent: torch.optim.Adam(
                agent.parameters(), config.learning_rate, eps=config.adam_epsilon, fused=True
            ),
        )
        updater = PPOUpdater(config, session, model, optimizer)

        while session.update < config.num_updates:
            # Schedules
            left = 1 - session.update / config.num_updates
            rate = on_policy.set_rate(optimizer, config, left)
            updater.set_clip(left if config.clip_scheduler_type == "linear" else 1.0)

            # Rollout
            rollout = on_policy.collect(session, collector)

            # Advantages and update
            started = time.perf_counter()
            metrics = {**updater.update(rollout), "charts/learning_rate": rate}

            # Log, evaluate, save
            on_policy.end_update(session, config, rollout, metrics, time.perf_counter() - started)
        return session.finish()


class PPOUpdater:
    """Advantages, epochs and minibatches of one rollout.

    Every process calls `update` with its own share of the environments; the result is that of one process with all.
    """

    def __init__(self, config: PPOConfig, session: Session, model: nn.Module, optimizer: torch.optim.Optimizer):
        self.config, self.session, self.model, self.optimizer = config, session, model, optimizer
        self.load = MinibatchLoader(session.observer)
        self._full: tuple[Objective, CriticLossFunction] = (config.make_objective(), session.setup.critic)
        self.objective, self.critic = self._full

    def set_clip(self, share: float) -> None:
        """Shrink the clips of the ratio and of the value to this share, which is > 0: 0 would refuse every change."""
        if share == 1.0:
            self.objective, self.critic = self._full
            return
        objective, critic = self._full
        clips = {name: getattr(objective, name) * share for name in ("clip_low", "clip_high")}
        self.objective = dataclasses.replace(objective, **clips)  # type: ignore[type-var]
        if getattr(critic, "cliprange_value", None) is not None:
            self.critic = dataclasses.replace(critic, cliprange_value=critic.cliprange_value * share)  # type: ignore

    def update(self, rollout: Rollout) -> Mapping[str, Tensor]:
        """All optimizer steps of a rollout; the mean over them of what is logged."""
        config, reduce = self.config, self.session.reduce
        advantages, returns = rollout.advantages(config.gamma, config.lam)
        counts = rollout.counts
        flips = torch.zeros((), device=advantages.device)
        if config.whiten_advantages == "rollout":
            advantages, stats = whiten(advantages, counts, all_reduce=reduce)
            flips = stats["normalization_sign_flip"]
        flat = {
            "observations": rollout.observations.flatten(0, 1),
            "actions": rollout.actions.flatten(0, 1),
            "log_probs": rollout.log_probs.flatten(0, 1),
            "values": rollout.values.flatten(),
            "advantages": advantages.flatten(),
            "returns": returns.flatten(),
        }
        rows = counts.flatten().nonzero().squeeze(1)
        totals: dict[str, Tensor] = {}
        steps = 0
        for _ in range(config.num_ppo_epochs):
            order = rows[torch.randperm(len(rows), device=rows.device)]
            # As many parts in every process, however many of its steps count.
            epoch_kl = []
            for part in order.tensor_split(config.num_mini_batches):
                stats = self.step(flat, part)
                for name, value in stats.items():
                    totals[name] = totals.get(name, 0) + value
                steps += 1
                epoch_kl.append(stats.get("approx_kl", flips))
            if config.target_kl is not None and torch.stack(epoch_kl).mean().item() > config.target_kl:
                break
        metrics = {_CLEANRL.get(name, f"losses/{name}"): total / steps for name, total in totals.items()}
        if config.whiten_advantages == "rollout":
            metrics["losses/normalization_sign_flip"] = flips
        metrics["losses/explained_variance"] = explained_variance(rollout.values, returns, counts, all_reduce=reduce)
        return metrics

    def step(self, flat: Mapping[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
        """One optimizer step on these rows; the means of its statistics over all processes."""
        advantages = flat["advantages"][rows]
        extra: dict[str, Tensor] = {}
        if self.config.whiten_advantages == "minibatch":
            everywhere = torch.ones_like(advantages, dtype=torch.bool)
            advantages, stats = whiten(advantages, everywhere, all_reduce=self.session.reduce)
            extra["normalization_sign_flip"] = stats["normalization_sign_flip"]
        batch = on_policy.Batch(
            self.load(flat["observations"], rows),
            flat["actions"][rows],
            advantages,
            flat["returns"][rows],
            flat["log_probs"][rows],
            flat["values"][rows],
        )
        found = on_policy.optimizer_step(
            self.session, self.config, self.model, self.optimizer, self.objective, self.critic, batch
        )
        return {**found, **extra}
