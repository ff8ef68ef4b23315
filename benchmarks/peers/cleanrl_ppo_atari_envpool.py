"""CleanRL's ppo_atari_envpool.py, unmodified, timed under Gymnasium and envpool 1.2.

    python benchmarks/peers/cleanrl_ppo_atari_envpool.py --total_timesteps 8192 --output cleanrl.json

Runs the file of the installed package cleanrl 1.2.0 (MIT, github.com/vwxyzjn/cleanrl; environment: requirements.txt);
nothing of it is copied here. --script runs the file of a checkout instead. Network, float storage of observations,
loop and settings are CleanRL's: 8 environments x 128 steps, 4 epochs, 4 minibatches, Adam 2.5e-4 to 0, eps 1e-5.

What it finds in place of what it was written for:
- gym: a Wrapper that forwards, and Gymnasium's spaces. gym itself does not support numpy 2.
- envpool.make: envpool 1.2 speaks Gymnasium only, so a class gives back the older calls (reset: observations; step:
  done = terminated or truncated). Both reset an environment in the step after its end. num_threads is --threads.
- torch.utils.tensorboard: its SummaryWriter becomes this file's clock and learning curve, and writes nothing, which
  is in CleanRL's favour. An iteration ends where CleanRL logs charts/SPS.
- CUDA is hidden.

The split: environment is envpool's step, rollout the rest until the last step of it, update all after it, with the
bootstrap value and GAE. There is no evaluation.
"""

import argparse
import os
import runpy
import sys
import types
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

os.environ["CUDA_VISIBLE_DEVICES"] = ""

import envpool
import gymnasium
import numpy as np
import torch
from result import Meter, check_length, write_result

STEPS_PER_ITERATION = 8 * 128


class Wrapper:
    """gym.Wrapper as far as it is used: what a subclass does not define is the environment's."""

    def __init__(self, env: Any):
        self.env = env

    def __getattr__(self, name: str) -> Any:
        return getattr(self.env, name)

    def reset(self, **kwargs: Any) -> Any:
        return self.env.reset(**kwargs)

    def step(self, action: np.ndarray) -> Any:
        return self.env.step(action)


class OlderCalls:
    """An envpool with the calls of gym 0.23."""

    def __init__(self, pool: Any, meter: Meter):
        self.action_space, self.observation_space, self.close = pool.action_space, pool.observation_space, pool.close
        self._pool, self._meter, self._step = pool, meter, meter.timed(pool.step)

    def reset(self) -> np.ndarray:
        observations, _ = self._pool.reset()
        self._meter.start()
        return observations

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        observations, rewards, terminated, truncated, info = self._step(action)
        self._meter.end_rollout()
        return observations, rewards, terminated | truncated, info


def install(meter: Meter, curve: list[dict[str, float]], threads: int) -> None:
    """Put the replacements where the script's imports find them."""

    class SummaryWriter:
        def __init__(self, folder: str):
            pass

        def add_text(self, tag: str, text: str) -> None:
            pass

        def add_scalar(self, tag: str, value: float, step: int) -> None:
            if tag == "charts/episodic_return":
                curve.append({"step": step, "return": float(value)})
            elif tag == "charts/SPS":
                meter.end_iteration()

        def close(self) -> None:
            pass

    make = envpool.make

    def older_make(task: str, env_type: str, **kwargs: Any) -> OlderCalls:
        return OlderCalls(make(task, env_type="gymnasium", num_threads=threads, **kwargs), meter)

    gym: Any = types.ModuleType("gym")
    gym.Wrapper, gym.spaces = Wrapper, gymnasium.spaces
    tensorboard: Any = types.ModuleType("torch.utils.tensorboard")
    tensorboard.SummaryWriter = SummaryWriter
    sys.modules.update({"gym": gym, "torch.utils.tensorboard": tensorboard})
    envpool.make = older_make


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env_id", default="Breakout-v5")
    parser.add_argument("--total_timesteps", type=int, default=10_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2, help="of torch and of envpool")
    parser.add_argument("--script", type=Path, help="ppo_atari_envpool.py of a checkout (default: of the package)")
    parser.add_argument("--output", type=Path, required=True, help="JSON file")
    args = parser.parse_args()
    check_length(args.total_timesteps, STEPS_PER_ITERATION)
    script = args.script or Path(str(distribution("cleanrl").locate_file("cleanrl/ppo_atari_envpool.py")))
    torch.set_num_threads(args.threads)
    meter, curve = Meter(), []
    install(meter, curve, args.threads)
    words = {"--env-id": args.env_id, "--total-timesteps": args.total_timesteps, "--seed": args.seed}
    sys.argv = [str(script), *(str(word) for pair in words.items() for word in pair)]
    settings = vars(runpy.run_path(str(script), run_name="__main__")["args"])
    if settings["num_envs"] * settings["num_steps"] != STEPS_PER_ITERATION:
        raise ValueError(f"{script} has {settings['num_envs']} x {settings['num_steps']} steps, not 8 x 128")
    packages = ["cleanrl", "torch", "numpy", "gymnasium", "envpool"]
    settings = settings | {"cuda": False, "threads": args.threads, "script": args.script or "the package's"}
    write_result(args.output, "cleanrl", packages, settings, meter, STEPS_PER_ITERATION, curve, [])


if __name__ == "__main__":
    main()
