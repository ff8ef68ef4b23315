"""A2C with any objective in its score-function form, and any critic: one step on each short rollout."""

import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from scope_rlhf.control import on_policy
from scope_rlhf.control.on_policy_config import A2CConfig
from scope_rlhf.control.rollout import MinibatchLoader, Rollout
from scope_rlhf.control.session import Session
from scope_rlhf.objectives import Objective, describe_objective
from scope_rlhf.rl import explained_variance, whiten


def train_a2c(config: A2CConfig) -> Path:
    """Train, evaluate and save; returns the run folder.

    Each of the `num_updates` rollouts of num_envs x num_steps transitions gives one optimizer step of

        mean(objective) - ent_coef mean(entropy) + vf_coef mean(critic loss)

    without old log-probs: ppo is -A log p, symmetric is SA2C, scope and focal are their actor-critic forms. Errors:
    Session's, and EnvironmentFailure, after a checkpoint.
    """
    objective = config.make_objective()
    with Session(config, "a2c", describe_objective(objective)) as session:
        model, optimizer, collector = on_policy.start(session, config, lambda agent: make_optimizer(agent, config))
        load = MinibatchLoader(session.observer)

        while session.update < config.num_updates:
            # Schedule
            rate = on_policy.set_rate(optimizer, config, 1 - session.update / config.num_updates)

            # Rollout
            rollout = on_policy.collect(session, collector)

            # Advantages and update
            started = time.perf_counter()
            metrics = update(config, objective, session, model, optimizer, load, rollout)
            metrics = {**metrics, "charts/learning_rate": rate}

            # Log, evaluate, save
            on_policy.end_update(session, config, rollout, metrics, time.perf_counter() - started)
        return session.finish()


def make_optimizer(agent: nn.Module, config: A2CConfig) -> torch.optim.Optimizer:
    """RMSprop with alpha .99, or Adam."""
    if config.optimizer == "adam":
        return torch.optim.Adam(agent.parameters(), config.learning_rate, eps=config.optimizer_epsilon, fused=True)
    return torch.optim.RMSprop(agent.parameters(), config.learning_rate, alpha=0.99, eps=config.optimizer_epsilon)


def update(
    config: A2CConfig,
    objective: Objective,
    session: Session,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    load: MinibatchLoader,
    rollout: Rollout,
) -> Mapping[str, Tensor]:
    """One optimizer step on the counted transitions of a rollout, of all processes; what is logged."""
    reduce = session.reduce
    advantages, returns = rollout.advantages(config.gamma, config.lam)
    stats: dict[str, Tensor] = {}
    if config.whiten_advantages == "rollout":
        advantages, found = whiten(advantages, rollout.counts, all_reduce=reduce)
        stats["normalization_sign_flip"] = found["normalization_sign_flip"]
    rows = rollout.counts.flatten().nonzero().squeeze(1)
    batch = on_policy.Batch(
        load(rollout.observations.flatten(0, 1), rows),
        rollout.actions.flatten(0, 1)[rows],
        advantages.flatten()[rows],
        returns.flatten()[rows],
    )
    stats |= on_policy.optimizer_step(session, config, model, optimizer, objective, session.setup.critic, batch)
    stats["explained_variance"] = explained_variance(rollout.values, returns, rollout.counts, all_reduce=reduce)
    return {f"losses/{name}": value for name, value in stats.items()}
