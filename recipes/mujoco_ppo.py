"""MuJoCo by PPO, with a Gaussian policy or 11 bins for each action dimension (--policy binned).

python recipes/mujoco_ppo.py --env HalfCheetah
python recipes/mujoco_ppo.py --config recipes/configs/mujoco_ppo_symmetric.yaml    # symmetric paper
"""

import sys

from scope_rlhf.runtime import run_main


def main(argv: list[str]) -> int:
    from scope_rlhf.experiments.control import main as experiment

    return experiment(argv, suite="mujoco", algorithm="ppo")


if __name__ == "__main__":
    sys.exit(run_main(main))
