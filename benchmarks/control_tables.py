"""The tables of control: what learns, beside which control, over seeds, with intervals.

    python benchmarks/control_tables.py learning --jobs 2 --output_dir runs/control_tables
    python benchmarks/control_tables.py noise critics continuous atari --jobs 2
    python benchmarks/control_tables.py learning --report                        # tables and pictures of what is there

Every run is a folder of its own; an interrupted one goes on, and one that has a record in
benchmarks/results/control_<table>.jsonl is not made again. Seeds 1 to 5 are reported. Settings are the defaults of
`scope-rlhf control`, which were not changed after looking at these seeds; all else is in RUNS. Tables and pictures are
made from the records: benchmarks/results/control_<table>.md and .png. An evaluation is the mean of 20 episodes of the
last policy on environments of their own, by its most probable actions; sampled ones for A2C on LunarLander and Atari.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results"
SYMMETRIC = '{"alpha": 0.5, "beta": 1.0}'
UNMASKED = '{"alpha": 0.5, "beta": 1.0, "masked": false}'
CONTROL = '{"policy_coef": 1.5}'


@dataclass(frozen=True)
class Cell:
    """Runs that differ in the seed only: panel and label in table and picture, and the flags. Cells with the same flags
    share their runs.
    """

    panel: str
    label: str
    flags: tuple[str, ...]
    seeds: int = 5

    def folder(self, seed: int) -> str:
        words = "-".join([*self.flags, str(seed)]).lower()
        return "-".join(re.findall(r"[a-z0-9.]+", words))


def _cells(panel: str, flags: str, variants: dict[str, tuple[str, ...]], seeds: int = 5) -> list[Cell]:
    return [Cell(panel, label, (*flags.split(), *more), seeds) for label, more in variants.items()]


OBJECTIVES = {
    "ppo": (),
    "scope": ("--objective", "scope"),
    "symmetric": ("--objective", "symmetric", "--objective_kwargs", SYMMETRIC),
}
NOISY = {
    "ppo": (),
    "ppo, policy_coef 1.5": ("--objective", "ppo", "--objective_kwargs", CONTROL),
    "symmetric": ("--objective", "symmetric", "--objective_kwargs", SYMMETRIC),
    "symmetric, unmasked": ("--objective", "symmetric", "--objective_kwargs", UNMASKED),
    "scope": ("--objective", "scope"),
    "scope, alpha .3": ("--objective", "scope", "--objective_kwargs", '{"alpha": 0.3}'),
}
NOISY_A2C = {
    "A2C": (),
    "A2C, policy_coef 1.5": ("--objective", "ppo", "--objective_kwargs", CONTROL),
    "SA2C": ("--objective", "symmetric", "--objective_kwargs", SYMMETRIC),
}
CARTPOLE, ACROBOT = "--suite classic --env CartPole", "--suite classic --env Acrobot"
LANDER = "--suite box2d --env LunarLander"
ATARI = "--suite atari --protocol NoFrameskip-v4 --save_steps 50"
SHORT_A2C = " --algorithm a2c --total_timesteps 200000"
FLIP = " --reward_flip_probability 0.1"
# Returns of CartPole at gamma .98 are at most 50, of Acrobot at least -50; flips and noise reach a little beyond.
SUPPORT = {CARTPOLE: '{"v_min": -5, "v_max": 55, "bins": 51, "padding_bins": 3}'}
SUPPORT[ACROBOT] = '{"v_min": -55, "v_max": 5, "bins": 51, "padding_bins": 3}'
DQN_SUPPORT = '{"v_min": -5, "v_max": 105, "bins": 51, "padding_bins": 3}'
DQN: dict[str, tuple[str, ...]] = {"mse": ()}
DQN |= {name: ("--critic", name, "--critic_kwargs", DQN_SUPPORT) for name in ("two_hot", "c51", "hl_gauss")}


def _critics(panel: str, flags: str) -> list[Cell]:
    support = SUPPORT[flags]
    cells = []
    for condition, more in {"clean": "", "noise": FLIP, "sticky .25": " --repeat_action_probability 0.25"}.items():
        kinds = {"mse": (), "hl_gauss": ("--critic", "hl_gauss", "--critic_kwargs", support)}
        cells += _cells(f"{panel}, {condition}", flags + more, kinds)
    return cells


RUNS: dict[str, list[Cell]] = {
    "learning": [
        *_cells("CartPole, PPO", CARTPOLE, OBJECTIVES),
        *_cells("CartPole, A2C", CARTPOLE + " --algorithm a2c", {"ppo": ()}),
        *_cells("CartPole, DQN", CARTPOLE + " --algorithm dqn", DQN),
        *_cells("LunarLander, A2C", LANDER + " --algorithm a2c", {"ppo": ()}),
        *_cells("LunarLander, PPO", LANDER, OBJECTIVES),
    ],
    "noise": [
        *_cells("CartPole", CARTPOLE, NOISY),
        *_cells("CartPole, 10 % flipped", CARTPOLE + FLIP, NOISY),
        *_cells("Acrobot", ACROBOT, NOISY),
        *_cells("Acrobot, 10 % flipped", ACROBOT + FLIP, NOISY),
        *_cells("CartPole, A2C", CARTPOLE + SHORT_A2C, NOISY_A2C),
        *_cells("CartPole, A2C, 10 % flipped", CARTPOLE + SHORT_A2C + FLIP, NOISY_A2C),
        *_cells("Acrobot, A2C", ACROBOT + SHORT_A2C, NOISY_A2C),
        *_cells("Acrobot, A2C, 10 % flipped", ACROBOT + SHORT_A2C + FLIP, NOISY_A2C),
    ],
    "critics": [*_critics("CartPole", CARTPOLE), *_critics("Acrobot", ACROBOT)],
    "continuous": _cells(
        "HalfCheetah",
        "--suite mujoco --env HalfCheetah --total_timesteps 500000",
        {
            "Gaussian": ("--policy", "gaussian"),
            "11 bins": ("--policy", "binned"),
            "11 bins, per dimension": ("--policy", "binned", "--per_dimension", "true"),
        },
        seeds=3,
    ),
    "atari": [
        *_cells(
            "Breakout, 200,000 steps",
            f"{ATARI} --env Breakout --total_timesteps 200000 --num_eval_episodes 10",
            {"float32": (), "bfloat16": ("--bf16", "true")},
            seeds=3,
        ),
        *_cells(
            "Pong, 2,700,000 steps",
            f"{ATARI} --env Pong --total_timesteps 2700000 --num_eval_episodes 10",
            {"ppo, bfloat16": ("--bf16", "true")},
            seeds=1,
        ),
    ],
}


def run_cell(cell: Cell, seed: int, output_dir: Path) -> str:
    """Make or finish one run; what to print."""
    folder = output_dir / cell.folder(seed)
    if (folder / "finished.json").exists():
        return f"{folder.name}: there"
    command = [sys.executable, "-m", "scope_rlhf.cli", "control", *cell.flags, "--seed", str(seed)]
    command += ["--output_dir", str(folder), "--num_threads", "1"]
    if list(folder.glob("checkpoint-*")):
        command.append("--resume")
    elif folder.exists():
        for name in ("metrics.jsonl", "config.json"):
            (folder / name).unlink(missing_ok=True)
    started = time.perf_counter()
    with (output_dir / f"{folder.name}.log").open("w") as log:
        variables = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        status = subprocess.run(command, cwd=ROOT, env=os.environ | variables, stdout=log, stderr=log).returncode
    if status:
        return f"{folder.name}: FAILED, see {folder}.log"
    returns = json.loads((folder / "evaluation.json").read_text())["returns"]
    return f"{folder.name}: {sum(returns) / len(returns):.1f} in {time.perf_counter() - started:.0f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="+", choices=[*RUNS], help="which")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, one thread each")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/control_tables"), help="run folders")
    parser.add_argument("--report", action="store_true", help="tables and pictures of the runs that are there")
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    from benchmarks import control_records
    from benchmarks.control_report import write_table

    def collect(table: str) -> dict[control_records.Key, control_records.RunRecord]:
        work = [(cell, seed) for cell in RUNS[table] for seed in range(1, cell.seeds + 1)]
        new = [control_records.of_folder(args.output_dir / c.folder(s), c.panel, c.label, s) for c, s in work]
        return control_records.add(RESULTS / f"control_{table}.jsonl", new)

    if args.report:
        for table in args.tables:
            print(write_table(table, RUNS[table], collect(table), RESULTS))
        return
    args.output_dir.mkdir(parents=True, exist_ok=True)
    work: dict[str, tuple[Cell, int]] = {}
    for table in args.tables:
        there = collect(table)
        for seed in range(1, 1 + max(cell.seeds for cell in RUNS[table])):
            for cell in RUNS[table]:
                if seed <= cell.seeds and (cell.panel, cell.label, seed) not in there:
                    work.setdefault(cell.folder(seed), (cell, seed))
    lock = threading.Lock()

    def make(item: tuple[Cell, int]) -> str:
        said = run_cell(*item, args.output_dir)
        with lock:
            for name in args.tables:
                collect(name)
        return said

    with ThreadPoolExecutor(args.jobs) as pool:
        for said in pool.map(make, work.values()):
            print(said, flush=True)


if __name__ == "__main__":
    main()
