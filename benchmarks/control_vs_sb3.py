"""Our PPO beside Stable-Baselines3's with the same settings: is it not worse? With the interval of the difference.

    python benchmarks/control_vs_sb3.py cartpole lunarlander --peers_python peers/bin/python --jobs 2
    python benchmarks/control_vs_sb3.py atari --peers_python peers/bin/python --jobs 2     # hours
    python benchmarks/control_vs_sb3.py --report

The peers' environment is benchmarks/peers/requirements.txt. Settings are RL Baselines3 Zoo's for CartPole (with a
constant clip) and LunarLander, and for Atari those of its PPO, with the protocol NoFrameskip-v4. The critic's loss is
half the squared error here and the whole one there: vf_coef is 1 here and .5 there. Runs are folders or files of
--output_dir; one that has a record in benchmarks/results/control_vs_sb3.jsonl is not made again. Table and picture are
made from the records: benchmarks/results/control_vs_sb3.md and .png.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks import control_records  # noqa: E402
from benchmarks.control_records import Key, RunRecord  # noqa: E402
from scope_rlhf.metrics import average_repeated_steps, difference_of_means  # noqa: E402
from scope_rlhf.reports.control import plot_learning_curves  # noqa: E402
from scope_rlhf.reports.labels import format_interval, format_number  # noqa: E402
from scope_rlhf.reports.markdown import markdown_table  # noqa: E402
from scope_rlhf.runtime.files import write_text  # noqa: E402

RESULTS = ROOT / "benchmarks/results"
RECORDS = RESULTS / "control_vs_sb3.jsonl"


@dataclass(frozen=True)
class Task:
    """An environment: flags of ours, the peer's script and flags, and how many seeds."""

    title: str
    ours: str
    script: str
    theirs: str
    seeds: int = 5


_CARTPOLE = "--num_envs 8 --num_steps 32 --num_ppo_epochs 20 --num_mini_batches 1 --learning_rate 1e-3 --gamma 0.98 "
_CARTPOLE += "--lam 0.8 --cliprange 0.2 --ent_coef 0 --total_timesteps 100000"
_LANDER = "--num_envs 16 --num_steps 1024 --num_ppo_epochs 4 --num_mini_batches 256 --learning_rate 3e-4 --gamma 0.999 "
_LANDER += "--lam 0.98 --cliprange 0.2 --ent_coef 0.01 --total_timesteps 1000000"
TASKS = {
    "cartpole": Task(
        "CartPole-v1",
        f"--suite classic --env CartPole {_CARTPOLE} --lr_scheduler_type linear --clip_scheduler_type constant "
        "--vf_coef 1",
        "sb3_ppo_vector.py",
        f"--env_id CartPole-v1 {_CARTPOLE} --linear_lr",
    ),
    "lunarlander": Task(
        "LunarLander-v3",
        f"--suite box2d --env LunarLander {_LANDER} --lr_scheduler_type constant --vf_coef 1",
        "sb3_ppo_vector.py",
        f"--env_id LunarLander-v3 {_LANDER}",
    ),
    "atari": Task(
        "Pong, 500,000 steps",
        "--suite atari --env Pong --protocol NoFrameskip-v4 --total_timesteps 500000 --num_envs 8 --num_steps 128 "
        "--num_ppo_epochs 4 --num_mini_batches 4 --learning_rate 2.5e-4 --cliprange 0.1 --clip_scheduler_type linear "
        "--ent_coef 0.01 --vf_coef 1 --save_steps 50 --num_eval_episodes 10",
        "sb3_ppo_atari.py",
        "--env_id PongNoFrameskip-v4 --total_timesteps 500000 --eval_episodes 10",
        seeds=3,
    ),
}


def run(side: str, name: str, seed: int, args: argparse.Namespace) -> str:
    """Make one run where it is missing; what to print."""
    task, place = TASKS[name], args.output_dir / f"{name}-{side}-{seed}"
    result = place / "finished.json" if side == "ours" else place.with_suffix(".json")
    if result.exists():
        return f"{place.name}: there"
    if side == "ours":
        command = [sys.executable, "-m", "scope_rlhf.cli", "control", *task.ours.split(), "--output_dir", str(place)]
        command += ["--num_threads", "1", *(["--resume"] if list(place.glob("checkpoint-*")) else [])]
    else:
        command = [args.peers_python, f"benchmarks/peers/{task.script}", *task.theirs.split(), "--threads", "1"]
        command += ["--output", str(result)]
    variables = {"OMP_NUM_THREADS": "1"} | ({"PYTHONPATH": str(ROOT)} if side == "ours" else {})
    with place.with_suffix(".log").open("w") as log:
        command += ["--seed", str(seed)]
        status = subprocess.run(command, cwd=ROOT, env=os.environ | variables, stdout=log, stderr=log).returncode
    return f"{place.name}: {'done' if status == 0 else f'FAILED, see {place}.log'}"


def collect(folder: Path) -> dict[Key, RunRecord]:
    """The records of what is finished in `folder`, beside those that are there."""
    new = []
    for name, task in TASKS.items():
        for seed in range(1, task.seeds + 1):
            new.append(control_records.of_folder(folder / f"{name}-ours-{seed}", name, "ours", seed))
            result = folder / f"{name}-sb3-{seed}.json"
            if result.exists():
                found = json.loads(result.read_text())
                steps, values = ([point[key] for point in found["curve"]] for key in ("step", "return"))
                curve = control_records.thin(*average_repeated_steps(np.array(steps), np.array(values)))
                versions = found["versions"]
                source = f"stable-baselines3 {versions['stable_baselines3']}"
                new.append(RunRecord(name, "sb3", seed, found["evaluation"], *curve, source, versions["torch"]))
    return control_records.add(RECORDS, new)


def report(records: Mapping[Key, RunRecord]) -> Path:
    """control_vs_sb3.md and .png of what has two runs of both sides. ValueError where nothing has."""
    rows, panels = [], {}
    for name, task in TASKS.items():
        sides = {side: [run for key, run in records.items() if key[:2] == (name, side)] for side in ("ours", "sb3")}
        if min(map(len, sides.values())) < 2:
            continue
        last = min(float(run.steps[-1]) for runs in sides.values() for run in runs)
        areas = {side: [run.area(last) for run in runs] for side, runs in sides.items()}
        means = {side: [run.mean for run in runs] for side, runs in sides.items()}
        for what, values in (("evaluation", means), ("curve's mean", areas)):
            gap = difference_of_means(values["ours"], values["sb3"])
            cells = [format_number(gap.mean_a), format_number(gap.mean_b), format_number(gap.difference, sign=True)]
            rows.append((task.title, what, f"{gap.n_a} / {gap.n_b}", *cells, format_interval(gap.low, gap.high)))
        panels[task.title] = {side: [(run.steps, run.returns) for run in runs] for side, runs in sides.items()}
    if not rows:
        raise ValueError("no task has two finished runs of both sides")
    picture = plot_learning_curves(panels, RESULTS / "control_vs_sb3.png", note="mean, least and greatest seed")
    header = ("environment", "mean return of", "seeds", "ours", "SB3 2.9.2", "difference", "95 % (Welch)")
    commits = sorted({run.commit for run in records.values() if run.label == "ours"})
    text = f"""# Our PPO beside Stable-Baselines3's, the same settings

`python benchmarks/control_vs_sb3.py cartpole lunarlander atari`: settings in the script; ours at commit \
{", ".join(commits)}. Evaluation: the last policy's episodes; the curve's mean is the area under the returns of the
training episodes up to the last step that all runs have.

{markdown_table(header, rows, "llrrrrr")}

![learning curves]({picture.name})
"""
    write_text(RESULTS / "control_vs_sb3.md", text)
    return RESULTS / "control_vs_sb3.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", choices=[*TASKS, []], help="which")
    parser.add_argument("--peers_python", help="interpreter of the peers' environment")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, one thread each")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/control_vs_sb3"))
    parser.add_argument("--report", action="store_true")
    args = parser.parse_args()
    records = collect(args.output_dir)
    if args.report:
        print(report(records))
        return
    if not args.tasks or not args.peers_python:
        parser.error("name the tasks, and the peers' interpreter by --peers_python")
    args.output_dir = args.output_dir.resolve()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    work = [
        (side, name, seed)
        for name in args.tasks
        for seed in range(1, TASKS[name].seeds + 1)
        for side in ("ours", "sb3")
        if (name, side, seed) not in records
    ]
    with ThreadPoolExecutor(args.jobs) as pool:
        for said in pool.map(lambda item: run(item[0], item[1], item[2], args), work):
            print(said, flush=True)
            collect(args.output_dir)


if __name__ == "__main__":
    main()
