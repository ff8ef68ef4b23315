"""Evaluation episodes on environments of their own, and their film."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scope_rlhf.control.environments import EnvironmentSpec, make_environments, make_single
from scope_rlhf.control.policies import Policy
from scope_rlhf.control.rewards import StickyActions
from scope_rlhf.control.rollout import CRASHES, EnvironmentFailure, Observer

Act = Callable[[Tensor], Tensor]
"""Observations as the network takes them -> actions of the policy [N, ...]."""

# More environments are no faster on few cores.
_AT_ONCE = 20


@contextmanager
def isolated_randomness(seed: int) -> Iterator[None]:
    """Torch's and numpy's generators seeded inside, and as they were afterwards: evaluating changes no training."""
    numpy_state = np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if torch.cuda.is_available() else []):
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)


@torch.no_grad()
def evaluate_returns(
    spec: EnvironmentSpec,
    act: Act,
    policy: Policy,
    observer: Observer,
    episodes: int,
    seed: int,
    sticky: float = 0.0,
    max_steps: int = 200_000,
) -> dict[str, list[float]]:
    """True returns and lengths of that many whole episodes: no reward is clipped, scaled or noisy, no life ends one.

    Every environment plays the same number of episodes, so that short ones are not preferred. An episode that does not
    end within max_steps of all counts with what it has by then.
    """
    count = next(n for n in range(min(episodes, _AT_ONCE), 0, -1) if episodes % n == 0)
    quota = episodes // count
    try:
        environments = make_environments(spec, count, seed, training=False)
    except CRASHES as error:
        raise EnvironmentFailure(f"an evaluation failed to start: {type(error).__name__}: {error}") from error
    repeat = StickyActions(sticky, seed)
    played: list[list[tuple[float, int]]] = [[] for _ in range(count)]
    running, lengths = np.zeros(count), np.zeros(count, dtype=np.int64)
    with isolated_randomness(seed):
        try:
            observations = environments.reset(seed)
            for _ in range(max_steps):
                actions = act(observer.view(observer.store(observations)))
                step = environments.step(repeat(policy.to_environment(actions)))
                repeat.observe(step.terminated | step.truncated, step.counts)
                running += step.rewards
                lengths += step.counts
                for episode in step.episodes:
                    i = episode.environment
                    played[i].append((episode.episodic_return, episode.length))
                    running[i], lengths[i] = 0, 0
                observations = step.observations
                if all(len(done) >= quota for done in played):
                    break
        except CRASHES as error:
            raise EnvironmentFailure(f"an evaluation failed: {type(error).__name__}: {error}") from error
        finally:
            environments.close()
    if unfinished := sum(quota - len(done) for done in played if len(done) < quota):
        warnings.warn(
            f"{unfinished} of {episodes} episodes of the evaluation did not end within {max_steps:,} steps: what they "
            "had by then is counted, or they are left out where their environment has whole ones.",
            stacklevel=2,
        )
    for i, done in enumerate(played):
        if not done:
            done.append((float(running[i]), int(lengths[i])))
    kept = [episode for done in played for episode in done[:quota]]
    return {"returns": [r for r, _ in kept], "lengths": [float(n) for _, n in kept]}


def summarize_returns(result: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Mean return, its standard deviation over episodes (0 for one), and mean length of an `evaluate_returns`."""
    returns = np.asarray(result["returns"])
    return {
        "eval/episodic_return": float(returns.mean()),
        "eval/episodic_return_std": float(returns.std(ddof=1)) if len(returns) > 1 else 0.0,
        "eval/episodic_length": float(np.mean(result["lengths"])),
    }


@torch.no_grad()
def film_episode(
    spec: EnvironmentSpec,
    act: Act,
    policy: Policy,
    observer: Observer,
    path: Path,
    seed: int,
    sticky: float = 0.0,
    max_steps: int = 3_000,
) -> Path:
    """One whole episode, at most max_steps of it, as an mp4 or a gif at `path`, of the environment's own frames."""
    env, repeat = make_single(spec), StickyActions(sticky, seed)
    frames = []
    with isolated_randomness(seed):
        try:
            observation, _ = env.reset(seed=seed)
            for _ in range(max_steps):
                frames.append(np.asarray(env.render()))
                actions = act(observer.view(observer.store(np.asarray(observation)[None])))
                observation, _, terminated, truncated, _ = env.step(repeat(policy.to_environment(actions))[0])
                repeat.observe(np.zeros(1, dtype=bool), np.ones(1, dtype=bool))
                if terminated or truncated:
                    break
        finally:
            env.close()
    path.parent.mkdir(parents=True, exist_ok=True)
    rate = 15 if spec.suite == "atari" else 30
    if path.suffix == ".gif":
        from PIL import Image

        pictures = [Image.fromarray(frame) for frame in frames]
        pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=1000 // rate, loop=0)
    else:
        import imageio.v3 as imageio

        imageio.imwrite(path, np.stack(frames), fps=rate, codec="libx264", macro_block_size=2)
    return path
