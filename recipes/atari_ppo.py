"""Atari by PPO with any objective: the Nature CNN, or IMPALA's by --network impala.

    python recipes/atari_ppo.py --env Pong --total_timesteps 500000
    python recipes/atari_ppo.py --config recipes/configs/atari_ppo_scope.yaml          # scope paper, Table 3
    python recipes/atari_ppo.py --config recipes/configs/atari_ppo_symmetric.yaml      # symmetric paper
    python recipes/atari_ppo.py --config recipes/configs/atari_ppo_cleanrl.yaml        # CleanRL's setting

Another objective: --objective ppo|scope|symmetric|focal|policy_entropy, or path/to/file.py:Class for one's own. About
300 actions (1,200 frames) a second on two CPU cores. Several processes:

    torchrun --nproc_per_node 2 recipes/atari_ppo.py
"""

import sys

from scope_rlhf.runtime import run_main


def main(argv: list[str]) -> int:
    from scope_rlhf.experiments.control import main as experiment

    return experiment(argv, suite="atari", algorithm="ppo")


if __name__ == "__main__":
    sys.exit(run_main(main))
