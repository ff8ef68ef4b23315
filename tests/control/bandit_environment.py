"""Environments for the tests, by `bandit_environment:Bandit-v0`: episodes of one step, always the same."""

import os
import signal

import gymnasium
import numpy as np


class Bandit(gymnasium.Env):
    """Two observations in turn, three arms with fixed rewards; or, continuous, minus the distance to .5 in both
    dimensions.

    BANDIT_KILL / BANDIT_CRASH: after this many steps of one environment the process is killed, or the step raises.
    BANDIT_CRASH_SEED: a reset with this seed raises. BANDIT_MAKE: the environment with this number cannot be made.
    BANDIT_INTERRUPT: after this many steps of one environment Ctrl-C is pressed, BANDIT_INTERRUPTS times (1).
    BANDIT_NAN: "<steps> observation" or "<steps> reward": what is NaN after this many steps.
    """

    made, interrupted = 0, False

    def __init__(self, continuous: bool = False):
        Bandit.made += 1
        if Bandit.made == int(os.environ.get("BANDIT_MAKE", "-1")):
            raise OSError("no more licences")
        self.observation_space = gymnasium.spaces.Box(-1, 1, (3,), np.float32)
        space = gymnasium.spaces
        self.action_space = space.Box(-1, 1, (2,), np.float32) if continuous else space.Discrete(3)
        self.continuous, self.steps = continuous, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed == int(os.environ.get("BANDIT_CRASH_SEED", "-1")):
            raise RuntimeError("no bandit with this seed")
        return np.array([1, 0, -0.5], np.float32), {}

    def step(self, action):
        self.steps += 1
        if self.steps == int(os.environ.get("BANDIT_KILL", "-1")):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.steps == int(os.environ.get("BANDIT_INTERRUPT", "-1")) and not Bandit.interrupted:
            Bandit.interrupted = True  # one of the environments
            for _ in range(int(os.environ.get("BANDIT_INTERRUPTS", "1"))):
                signal.raise_signal(signal.SIGINT)
        if self.steps == int(os.environ.get("BANDIT_CRASH", "-1")):
            raise RuntimeError("the simulator lost its mind")
        reward = -float(np.abs(np.asarray(action) - 0.5).sum()) if self.continuous else [0.0, 1.0, 0.3][int(action)]
        observation = np.array([0, 1, 0.5], np.float32)
        at, _, what = os.environ.get("BANDIT_NAN", "-1").partition(" ")
        if self.steps == int(at):
            reward, observation[1] = (np.nan, 1) if what == "reward" else (reward, np.nan)
        return observation, reward, True, False, {}


gymnasium.register("Bandit-v0", entry_point=Bandit)
gymnasium.register("ContinuousBandit-v0", entry_point=Bandit, kwargs={"continuous": True})
