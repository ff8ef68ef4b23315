"""Classic control by PPO: CartPole is solved (500) in one to two minutes on one CPU core.

python recipes/classic_ppo.py
python recipes/classic_ppo.py --objective scope --objective_kwargs '{"alpha": 0.3}'
"""

import sys

from scope_rlhf.runtime import run_main


def main(argv: list[str]) -> int:
    from scope_rlhf.experiments.control import main as experiment

    return experiment(argv, suite="classic", algorithm="ppo")


if __name__ == "__main__":
    sys.exit(run_main(main))
