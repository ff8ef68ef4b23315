"""Atari by A2C with any objective in its score-function form: symmetric is SA2C, scope the paper's eq. 7.

python recipes/atari_a2c.py --env Pong --total_timesteps 1000000
python recipes/atari_a2c.py --config recipes/configs/atari_a2c_symmetric.yaml      # symmetric paper
"""

import sys

from scope_rlhf.runtime import run_main


def main(argv: list[str]) -> int:
    from scope_rlhf.experiments.control import main as experiment

    return experiment(argv, suite="atari", algorithm="a2c")


if __name__ == "__main__":
    sys.exit(run_main(main))
