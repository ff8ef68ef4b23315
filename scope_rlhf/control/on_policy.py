"""What the loops of PPO and A2C share around their updates: beginning, rollout, and what follows an update."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from scope_rlhf.control.config import OnPolicyConfig
from scope_rlhf.control.networks import ActorCritic
from scope_rlhf.control.rollout import Collector, EnvironmentFailure, Rollout
from scope_rlhf.control.session import Session


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
    collector.restart(session.first_seed)
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
    collector.synchronise(session.reduce)
    return rollout


def end_update(
    session: Session, config: OnPolicyConfig, rollout: Rollout, metrics: Mapping[str, Any], update_seconds: float
) -> None:
    """Count, log, evaluate and save what is due after the update of a rollout."""
    session.advance(config.num_envs * config.num_steps)
    session.update += 1
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
