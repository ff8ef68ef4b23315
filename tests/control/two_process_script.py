"""One update of PPO, A2C and DQN on the same data by one process or several; rank 0 saves the weights."""

import sys
from pathlib import Path

import numpy as np
import torch

from scope_rlhf.control.a2c import make_optimizer
from scope_rlhf.control.a2c import update as a2c_update
from scope_rlhf.control.config import DQNConfig
from scope_rlhf.control.dqn import Learner
from scope_rlhf.control.networks import ActorCritic, QNetwork
from scope_rlhf.control.on_policy_config import A2CConfig, PPOConfig
from scope_rlhf.control.ppo import PPOUpdater
from scope_rlhf.control.rollout import MinibatchLoader, Rollout
from scope_rlhf.control.session import Session
from scope_rlhf.runtime import leave_process_group
from tests.processes import gloo_threads

STEPS, ENVS = 8, 4
COMMON = {"suite": "classic", "env": "CartPole", "num_envs": ENVS, "total_timesteps": 1000, "num_eval_episodes": 0}


def rollout(session):
    """The columns of this process out of one seeded rollout, with ends, cuts and rows that do not count."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    ends, kinds = torch.rand(STEPS, ENVS, generator=generator) < 0.2, torch.rand(STEPS, ENVS, generator=generator) < 0.5
    counts = torch.ones(STEPS, ENVS, dtype=torch.bool)
    counts[1:] = ~ends[:-1]
    counts[4:, 0] = False  # the processes count different numbers of steps
    whole = Rollout(
        observations=draw(STEPS, ENVS, 4),
        actions=torch.randint(2, (STEPS, ENVS), generator=generator),
        log_probs=-0.7 + 0.1 * draw(STEPS, ENVS),
        values=draw(STEPS, ENVS),
        rewards=draw(STEPS, ENVS),
        terminated=ends & counts & kinds,
        truncated=ends & counts & ~kinds,
        truncation_values=draw(STEPS, ENVS),
        counts=counts,
        last_values=draw(ENVS),
    )
    first = session.rank * session.local_envs
    share = slice(first, first + session.local_envs)
    names = [name for name in whole.__dataclass_fields__ if isinstance(getattr(whole, name), torch.Tensor)]
    tensors = {name: getattr(whole, name)[..., share] for name in names if name not in ("observations",)}
    return Rollout(observations=whole.observations[:, share], **tensors)


def agent_of(session):
    session.seed_weights()
    setup = session.setup
    return ActorCritic(setup.observation_space, setup.policy, setup.critic, None, [16])


def ppo(folder, **more):
    config = PPOConfig(**COMMON, num_steps=STEPS, output_dir=folder, num_mini_batches=1, ent_coef=0.01, **more)
    with Session(config, "ppo", {"name": "x"}) as session:
        agent = agent_of(session)
        optimizer = torch.optim.Adam(agent.parameters(), 1e-2, eps=1e-5)
        session.start(agent, optimizer, lambda observations: agent(observations)[0].argmax(-1))
        model, optimizer = session.accelerator.prepare(agent, optimizer)
        metrics = PPOUpdater(config, session, model, optimizer).update(rollout(session))
        return session.rank, agent.state_dict(), metrics


def a2c(folder):
    config = A2CConfig(**COMMON, num_steps=STEPS, output_dir=folder, objective="symmetric", whiten_advantages="rollout")
    with Session(config, "a2c", {"name": "x"}) as session:
        agent = agent_of(session)
        optimizer = make_optimizer(agent, config)
        session.start(agent, optimizer, lambda observations: agent(observations)[0].argmax(-1))
        model, optimizer = session.accelerator.prepare(agent, optimizer)
        load = MinibatchLoader(session.observer)
        metrics = a2c_update(config, config.make_objective(), session, model, optimizer, load, rollout(session))
        return session.rank, agent.state_dict(), metrics


def dqn(folder):
    config = DQNConfig(**COMMON, learning_starts=10, batch_size=8, buffer_size=100, output_dir=folder)
    with Session(config, "dqn") as session:
        session.seed_weights()
        make = (session.setup.observation_space, 2, session.setup.critic, None, [16])
        network, target = QNetwork(*make), QNetwork(*make)
        optimizer = torch.optim.Adam(network.parameters(), 1e-2)
        learner = Learner(config, session, network, target, 2)
        session.start(network, optimizer, lambda observations: learner.act(observations, 0.0))
        model, optimizer = session.accelerator.prepare(network, optimizer)
        generator = np.random.default_rng(0)
        batch = {
            "observations": torch.from_numpy(generator.standard_normal((8, 4)).astype(np.float32)),
            "actions": torch.from_numpy(generator.integers(2, size=8)),
            "rewards": torch.from_numpy(generator.standard_normal(8).astype(np.float32)),
            "terminated": torch.from_numpy(generator.random(8) < 0.3),
            "next_observations": torch.from_numpy(generator.standard_normal((8, 4)).astype(np.float32)),
        }
        size = 8 // session.processes
        share = slice(session.rank * size, (session.rank + 1) * size)
        learner.replay.sample = lambda *_: {name: tensor[share] for name, tensor in batch.items()}
        metrics = learner.update(model, optimizer)
        return session.rank, network.state_dict(), metrics


if __name__ == "__main__":
    output = Path(sys.argv[1])
    runs = {
        "ppo": lambda folder: ppo(folder),
        "ppo_rollout": lambda folder: ppo(folder, whiten_advantages="rollout", objective="scope"),
        "a2c": a2c,
        "dqn": dqn,
    }
    for name, run in runs.items():
        rank, weights, metrics = run(str(output / name))
        if rank == 0:
            metrics = {key: float(value) for key, value in metrics.items()}
            processes = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
            torch.save({"weights": weights, "metrics": metrics, "processes": processes}, output / f"{name}.pt")
    leave_process_group()
    assert not gloo_threads(), "a living gloo group may abort the process at its end"
