"""Box2D by PPO: LunarLander, BipedalWalker, CarRacing.

python recipes/box2d_ppo.py                                                        # LunarLander, about 10 minutes
python recipes/box2d_ppo.py --config recipes/configs/box2d_ppo_symmetric.yaml      # symmetric paper
"""

import sys

from scope_rlhf.runtime import run_main


def main(argv: list[str]) -> int:
    from scope_rlhf.experiments.control import main as experiment

    return experiment(argv, suite="box2d", algorithm="ppo")


if __name__ == "__main__":
    sys.exit(run_main(main))
