"""A2C with any objective in its score-function form, and any critic: one step on each short rollout."""

import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from scope_rlhf.control import on_policy
from scope_rlhf.control.config import A2CConfig
from scope_rlhf.control.rollout import MinibatchLoader, Rollout
from scope_rlhf.control.session import Session
from scope_rlhf.losses import reduce_loss
from scope_rlhf.objectives import Objective, PolicyInputs, describe_objective
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
    policy, reduce = session.setup.policy, session.reduce
    advantages, returns = rollout.advantages(config.gamma, config.lam)
    stats: dict[str, Tensor] = {}
    if config.whiten_advantages == "rollout":
        advantages, found = whiten(advantages, rollout.counts, all_reduce=reduce)
        stats["normalization_sign_flip"] = found["normalization_sign_flip"]
    rows = rollout.counts.flatten().nonzero().squeeze(1)
    count = session.all_reduce(torch.tensor(float(len(rows)), device=rows.device)).clamp(min=1)
    normalizer = count / session.processes  # DDP divides the summed gradient by the number of processes

    outputs, value_outputs = model(load(rollout.observations.flatten(0, 1), rows))
    outputs = outputs.float()
    log_probs = policy.log_probs(outputs, rollout.actions.flatten(0, 1)[rows])
    entropy = policy.entropy(outputs)
    advantages = advantages.flatten()[rows]
    if log_probs.dim() > 1:
        advantages = advantages.unsqueeze(1).expand_as(log_probs)
    policy_loss = objective(PolicyInputs(log_probs, advantages.to(log_probs.dtype), entropy=entropy))
    critic_loss = session.setup.critic(value_outputs, returns.flatten()[rows])
    decisions = normalizer * policy.decisions
    policy_term = reduce_loss(policy_loss.per_decision, None, "token_mean", decisions)
    entropy_term = reduce_loss(entropy, None, "token_mean", normalizer)
    value_term = reduce_loss(critic_loss.per_decision, None, "token_mean", normalizer)
    loss = policy_term - config.ent_coef * entropy_term + config.vf_coef * value_term

    optimizer.zero_grad()
    session.accelerator.backward(loss)
    if config.max_grad_norm:
        session.accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm)
    optimizer.step()

    means = {"policy_loss": policy_term, "value_loss": value_term, "entropy": entropy_term}
    means |= {name: value.sum() / decisions for name, value in policy_loss.stats.items() if name != "entropy"}
    means |= {f"value_{name}": value.sum() / normalizer for name, value in critic_loss.stats.items()}
    summed = session.all_reduce(torch.stack([v.detach().float() for v in means.values()])) / session.processes
    stats |= dict(zip(means, summed, strict=True))
    stats["explained_variance"] = explained_variance(rollout.values, returns, rollout.counts, all_reduce=reduce)
    return {f"losses/{name}": value for name, value in stats.items()}
