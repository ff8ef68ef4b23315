"""What the loops of PPO and A2C share: beginning, rollout, an optimizer step, and what follows an update."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from scope_rlhf.control.networks import ActorCritic
from scope_rlhf.control.on_policy_config import OnPolicyConfig
from scope_rlhf.control.rollout import Collector, EnvironmentFailure, Rollout
from scope_rlhf.control.session import Session
from scope_rlhf.losses import reduce_loss
from scope_rlhf.objectives import CriticLossFunction, Objective, PolicyInputs
from scope_rlhf.runtime.checkpoints import check_finite


def start(
    session: Session, config: OnPolicyConfig, make_optimizer: Callable[[nn.Module], torch.optim.Optimizer]
) -> tuple[nn.Module, Any, Collector]:
    """(prepared model, prepared optimizer, collector) of a new or the resumed learner; environments are started."""
    setup = session.setup
    session.seed_weights()
    agent = ActorCritic(setup.observation_space, setup.policy, setup.critic, config.network, config.hidden_sizes)
    agent = agent.to(session.accelerator.device)
    optimizer = make_optimizer(agent)

    def act(observations: Tensor) -> Tensor:
        outputs = agent(observations)[0].float()
        return setup.policy.sample(outputs) if config.eval_sampling else setup.policy.mode(outputs)

    session.start(agent, optimizer, act, parts=True)
    model, optimizer = session.accelerator.prepare(agent, optimizer)
    collector = Collector(
        session.environments,
        agent,
        setup.policy,
        setup.critic,
        session.observer,
        session.shaper,
        session.sticky,
        config.num_steps,
    )
    collector.restart(session.first_seed, resumed=session.checkpoint is not None)
    return model, optimizer, collector


def set_rate(optimizer: Any, config: OnPolicyConfig, left: float) -> float:
    """Set the learning rate for this update and return it; `left` is the share of the run that is left."""
    rate = config.learning_rate * (left if config.lr_scheduler_type == "linear" else 1.0)
    for group in optimizer.param_groups:
        group["lr"] = rate
    return rate


def collect(session: Session, collector: Collector) -> Rollout:
    """A rollout, after which all processes have the same statistics. EnvironmentFailure in all where one's failed."""
    failure = rollout = None
    try:
        rollout = collector.collect()
    except EnvironmentFailure as error:
        failure = error
    session.agree(failure)
    assert rollout is not None
    check_finite(session.global_step, {"the critic's value of an observation": rollout.values})
    collector.synchronise(session.reduce)
    return rollout


@dataclass(frozen=True)
class Batch:
    """n transitions that count: observations as the network takes them, actions [n, ...], advantages and returns [n].

    old_log_probs [n] or [n, K], old_values [n]: those of the rollout; None for an update without them.
    """

    observations: Tensor
    actions: Tensor
    advantages: Tensor
    returns: Tensor
    old_log_probs: Tensor | None = None
    old_values: Tensor | None = None


def optimizer_step(
    session: Session,
    config: OnPolicyConfig,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    objective: Objective,
    critic: CriticLossFunction,
    batch: Batch,
) -> dict[str, Tensor]:
    """One step on the batches of all processes, of

        mean(objective) - ent_coef mean(entropy) + vf_coef mean(critic loss).

    Returns the means of the three terms, of the statistics of objective and critic (value_...), and with old log-probs
    that of old - new (old_approx_kl); all over the transitions of all processes.
    """
    policy = session.setup.policy
    count = torch.tensor(float(len(batch.advantages)), device=batch.advantages.device)
    # DDP divides the summed gradient by the number of processes.
    normalizer = session.all_reduce(count).clamp(min=1) / session.processes
    decisions = normalizer * policy.decisions

    outputs, value_outputs = model(batch.observations)
    outputs = outputs.float()
    log_probs = policy.log_probs(outputs, batch.actions)
    with torch.set_grad_enabled(bool(config.ent_coef) or getattr(objective, "needs_entropy", False)):
        entropy = policy.entropy(outputs)
    advantages = batch.advantages.to(log_probs.dtype)
    if log_probs.dim() > 1:
        advantages = advantages.unsqueeze(1).expand_as(log_probs)
    policy_loss = objective(PolicyInputs(log_probs, advantages, batch.old_log_probs, entropy=entropy))
    critic_loss = critic(value_outputs, batch.returns, old_values=batch.old_values)
    policy_term = reduce_loss(policy_loss.per_decision, None, "token_mean", decisions)
    entropy_term = reduce_loss(entropy, None, "token_mean", normalizer)
    value_term = reduce_loss(critic_loss.per_decision, None, "token_mean", normalizer)
    loss = policy_term + config.vf_coef * value_term
    if config.ent_coef:
        loss = loss - config.ent_coef * entropy_term

    optimizer.zero_grad()
    session.accelerator.backward(loss)
    if config.max_grad_norm:
        session.accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm)
    optimizer.step()

    with torch.no_grad():
        means = {"policy_loss": policy_term, "value_loss": value_term, "entropy": entropy_term}
        if batch.old_log_probs is not None:
            means["old_approx_kl"] = (batch.old_log_probs - log_probs).sum() / decisions
        means |= {name: value.sum() / decisions for name, value in policy_loss.stats.items() if name != "entropy"}
        means |= {f"value_{name}": value.sum() / normalizer for name, value in critic_loss.stats.items()}
        # One collective for all: each mean is a local sum over the global count, times the processes.
        values = torch.stack([value.detach().float() for value in means.values()])
        return dict(zip(means, session.all_reduce(values) / session.processes, strict=True))


def end_update(
    session: Session, config: OnPolicyConfig, rollout: Rollout, metrics: Mapping[str, Any], update_seconds: float
) -> None:
    """Count, log, evaluate and save what is due after the update of a rollout."""
    session.advance(config.num_envs * config.num_steps)
    session.update += 1
    check_finite(session.global_step, {name: metrics[f"losses/{name}"] for name in ("policy_loss", "value_loss")})
    session.episodes += [episode for _, episode in rollout.episodes]
    if session.update % config.logging_steps == 0 or session.update == config.num_updates:
        seconds = {
            "environment": rollout.seconds_environment,
            "rollout": rollout.seconds - rollout.seconds_environment,
            "update": update_seconds,
        }
        session.log(metrics, seconds)
    session.remember()
    if config.eval_steps and session.update % config.eval_steps == 0:
        session.evaluate()
    if config.save_steps and session.update % config.save_steps == 0:
        session.save()
    session.interrupt.heed(session)
