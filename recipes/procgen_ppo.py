"""Procgen by PPO with IMPALA's network, through envpool: pip install "scope-rlhf[procgen]".

python recipes/procgen_ppo.py --env StarPilot --total_timesteps 1000000
python recipes/procgen_ppo.py --config recipes/configs/procgen_ppo_scope.yaml      # scope paper, Table 3
"""

import sys

from scope_rlhf.runtime import run_main


def main(argv: list[str]) -> int:
    from scope_rlhf.experiments.control import main as experiment

    return experiment(argv, suite="procgen", algorithm="ppo")


if __name__ == "__main__":
    sys.exit(run_main(main))
