"""Atari by DQN with a scalar or a categorical critic: mse, two_hot, c51 or hl_gauss.

    python recipes/atari_dqn.py --env Pong --total_timesteps 500000 --buffer_size 100000
    python recipes/atari_dqn.py --config recipes/configs/atari_dqn_hl_gauss.yaml       # HL-Gauss paper

The replay keeps every frame once: 1M transitions take 7.5 GB.
"""

import sys

from scope_rlhf.runtime import run_main


def main(argv: list[str]) -> int:
    from scope_rlhf.experiments.control import main as experiment

    return experiment(argv, suite="atari", algorithm="dqn")


if __name__ == "__main__":
    sys.exit(run_main(main))
