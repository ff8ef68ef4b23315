"""DQN with a scalar or a categorical critic (mse, two-hot, C51, HL-Gauss), uniform replay and a target network."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scope_rlhf.control.config import DQNConfig
from scope_rlhf.control.networks import QNetwork
from scope_rlhf.control.replay import Replay
from scope_rlhf.control.rollout import CRASHES, EnvironmentFailure
from scope_rlhf.control.session import Session
from scope_rlhf.losses import reduce_loss
from scope_rlhf.objectives import C51Critic, CriticLossFunction
from scope_rlhf.runtime.checkpoints import check_finite


def train_dqn(config: DQNConfig) -> Path:
    """Train, evaluate and save; returns the run folder.

    Every train_frequency steps one optimizer step on batch_size transitions, after learning_starts random ones. With Q
    the decoded outputs and Q' those of the target network, the target of (s, a, r, s') is

        mse, two_hot, hl_gauss:   y = r + gamma (1 - terminated) max_b Q'(s', b), as scalar or as distribution
        c51:                      the distribution of r + gamma (1 - terminated) Z'(s', argmax_b Q'(s', b))

    (arXiv 2403.03950, 1707.06887). A truncated episode bootstraps. Errors: Session's, and EnvironmentFailure, after a
    checkpoint.
    """
    with Session(config, "dqn") as session:
        setup, device = session.setup, session.accelerator.device
        session.seed_weights()
        actions = setup.policy.output_size
        make = (setup.observation_space, actions, setup.critic, config.network, config.hidden_sizes)
        network, target = QNetwork(*make).to(device), QNetwork(*make).to(device)
        target.load_state_dict(network.state_dict())
        optimizer = torch.optim.Adam(network.parameters(), config.learning_rate, eps=config.adam_epsilon, fused=True)
        learner = Learner(config, session, network, target, actions)

        def evaluate(observations: Tensor) -> Tensor:
            return learner.act(observations, config.eval_epsilon)

        session.start(network, optimizer, evaluate, (learner.state_dict, learner.load_state_dict), {"target": target})
        model, optimizer = session.accelerator.prepare(network, optimizer)
        [environments] = session.environments
        observations = environments.reset(session.first_seed)
        seconds = dict.fromkeys(("environment", "rollout", "update"), 0.0)
        metrics: Mapping[str, Tensor] = {}

        while session.global_step < config.total_timesteps:
            # Act
            started = time.perf_counter()
            epsilon = exploration(config, session.global_step)
            chosen = learner.act(session.observer.view(session.observer.store(observations)), epsilon)
            before = time.perf_counter()
            failure = step = None
            try:
                step = environments.step(session.sticky(setup.policy.to_environment(chosen)))
            except CRASHES as error:
                failure = EnvironmentFailure(f"an environment failed: {type(error).__name__}: {error}")
                failure.__cause__ = error
                session.remember()
            after = time.perf_counter()
            session.agree(failure)
            assert step is not None

            # Remember
            ended = step.terminated | step.truncated
            session.sticky.observe(ended, step.counts)
            rewards = session.shaper(step.rewards, ended, step.counts)
            following = (
                step.observations
                if step.final_observations is None
                else np.where(
                    ended.reshape(-1, *[1] * (observations.ndim - 1)), step.final_observations, step.observations
                )
            )
            learner.replay.add(observations, chosen.cpu().numpy(), rewards, step.terminated, following, step.counts)
            observations = step.observations
            session.episodes += step.episodes
            previous = session.global_step
            session.advance(config.num_envs)
            seconds["environment"] += after - before
            seconds["rollout"] += time.perf_counter() - started - (after - before)

            # Learn
            started = time.perf_counter()
            for _ in range(due(config, previous, session.global_step)):
                rate = config.learning_rate
                if config.lr_scheduler_type == "linear":
                    rate *= 1 - session.global_step / (config.total_timesteps + 1)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                metrics = learner.update(model, optimizer)
                session.update += 1
            if crossed(config.target_update_frequency, previous, session.global_step):
                target.load_state_dict(network.state_dict())
            seconds["update"] += time.perf_counter() - started

            # Log, evaluate, save
            over = session.global_step >= config.total_timesteps
            if over or crossed(100 * config.logging_steps, previous, session.global_step):
                session.log({**metrics, "charts/epsilon": epsilon}, seconds)
                seconds = dict.fromkeys(seconds, 0.0)
            if config.eval_steps and crossed(config.eval_steps, previous, session.global_step):
                session.remember()
                session.evaluate()
            if config.save_steps and crossed(config.save_steps, previous, session.global_step):
                session.remember()
                session.save()
            session.interrupt.heed(session)
        return session.finish()


def exploration(config: DQNConfig, step: int) -> float:
    """Probability of a random action: linear from initial to final over exploration_steps after learning_starts."""
    if step < config.learning_starts:
        return 1.0
    share = min(1.0, (step - config.learning_starts) / max(config.exploration_steps, 1))
    return config.exploration_initial + share * (config.exploration_final - config.exploration_initial)


def crossed(every: int, before: int, after: int) -> bool:
    """Whether a multiple of `every` lies in (before, after]."""
    return after // every > before // every


def due(config: DQNConfig, before: int, after: int) -> int:
    """Updates that the steps (before, after] ask for."""
    if after <= config.learning_starts:
        return 0
    return after // config.train_frequency - before // config.train_frequency


class Learner:
    """Acting, replay and updates."""

    def __init__(self, config: DQNConfig, session: Session, network: nn.Module, target: nn.Module, actions: int):
        self.config, self.session, self.network, self.target, self.actions = config, session, network, target, actions
        self.critic: CriticLossFunction = session.setup.critic
        space = session.setup.observation_space
        stacked = session.setup.spec.suite == "atari"  # [frames, height, width]; elsewhere channels are colours
        self.replay = Replay(
            config.buffer_size // session.processes, session.local_envs, space.shape, space.dtype, stacked=stacked
        )
        self.generator = np.random.default_rng([config.seed, session.rank, 0x647166])

    @torch.no_grad()
    def act(self, observations: Tensor, epsilon: float) -> Tensor:
        """Actions [N]: random ones with probability epsilon, else the best decoded value."""
        count = len(observations)
        random = torch.rand(count) < epsilon
        drawn = torch.randint(self.actions, (count,))
        if bool(random.all()):
            return drawn
        best = self.critic.decode(self.network(observations)).argmax(dim=1)
        return torch.where(random.to(best.device), drawn.to(best.device), best)

    @torch.no_grad()
    def targets(self, rewards: Tensor, terminated: Tensor, following: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """(returns [B], None), or for C51 (None, distribution [B, bins])."""
        discounts = self.config.gamma * (~terminated).to(rewards.dtype)
        outputs = self.target(following)
        values = self.critic.decode(outputs)
        check_finite(self.session.global_step, {"the target network's value of an observation": values})
        chooser = self.critic.decode(self.network(following)) if self.config.double else values
        best = chooser.argmax(dim=1)
        rows = torch.arange(len(best), device=best.device)
        if isinstance(self.critic, C51Critic):
            return None, self.critic.project(rewards, discounts, outputs[rows, best])
        return rewards + discounts * values[rows, best], None

    def update(self, model: nn.Module, optimizer: Any) -> Mapping[str, Tensor]:
        """One optimizer step; what is logged."""
        config, session = self.config, self.session
        local = config.batch_size // session.processes
        device = session.accelerator.device
        batch = {name: tensor.to(device) for name, tensor in self.replay.sample(local, self.generator).items()}
        view = session.observer.view
        states, following = (self._stored(batch[name]) for name in ("observations", "next_observations"))
        returns, target = self.targets(batch["rewards"], batch["terminated"], view(following))
        outputs = model(view(states))
        rows = torch.arange(local, device=device)
        loss = self.critic(outputs[rows, batch["actions"]], returns, target=target)
        # DDP averages over the processes, whose batches have one size.
        total = reduce_loss(loss.per_decision, None, "token_mean")
        optimizer.zero_grad()
        session.accelerator.backward(total)
        if config.max_grad_norm:
            session.accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step()
        stats = {"td_loss": total.detach(), "q_values": loss.values.mean()}
        stats |= {f"value_{name}": value.mean() for name, value in loss.stats.items()}
        summed = session.all_reduce(torch.stack(list(stats.values()))) / session.processes
        return {f"losses/{name}": value for name, value in zip(stats, summed, strict=True)}

    def _stored(self, observations: Tensor) -> Tensor:
        """[B, ...] of the environment as kept by the observer: pixels channels last."""
        swapped = observations.permute(0, 2, 3, 1) if self.session.observer.swap else observations
        return swapped.to(self.session.observer.dtype)

    def state_dict(self) -> dict[str, Any]:
        return {"replay": self.replay.state_dict(), "generator": self.generator.bit_generator.state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.replay.load_state_dict(state["replay"])
        self.generator.bit_generator.state = state["generator"]
