"""Training steps per second of PPO: scope_rlhf.control beside CleanRL and Stable-Baselines3, in turn.

    python3.11 -m venv peers
    peers/bin/pip install -r benchmarks/peers/requirements.txt
    peers/bin/pip install --no-deps --ignore-requires-python cleanrl==1.2.0
    python benchmarks/control_throughput.py atari impala mujoco --peers_python peers/bin/python --output throughput.json

Each run is a process of its own, in the order ours, bf16, cleanrl, sb3, ours, ..., so that what else the machine does
meets all alike. A step is one action of one environment; an iteration is a rollout and its update.

- atari: Breakout, Nature CNN, 8 environments x 128 steps, 4 epochs of 4 minibatches of 256, alike for all, in float32;
  `bf16` is ours with --bf16.
- impala: ours with the residual network of IMPALA in place of the Nature CNN.
- mujoco: HalfCheetah, one environment x 2,048 steps, 10 epochs of 32 minibatches of 64, observations and rewards
  normalised; beside Stable-Baselines3 with the same settings.

A run's steps per second are the median over its iterations without the first two. The table shows median, least and
greatest over runs, the parts of an iteration (median seconds), and our medians over that side's. Rollout is without the
environments, which include preprocessing and stacking of frames; ours play while the network acts, and only the waiting
for them is counted. Bootstrap value and GAE count as update for CleanRL and as rollout for Stable-Baselines3. Linux.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from scope_rlhf.runtime.environment import source_commit  # noqa: E402

_CLEANRL = "--suite atari --env Breakout --algorithm ppo --config recipes/configs/atari_ppo_cleanrl.yaml"
_CHEETAH = "--num_envs 1 --num_steps 2048 --num_ppo_epochs 10 --num_mini_batches 32"
# Flags of ours, which `bf16` shares, and script and flags of each peer.
TASKS: dict[str, dict[str, str]] = {
    "atari": {
        "ours": _CLEANRL,
        "bf16": f"{_CLEANRL} --bf16",
        "cleanrl": "cleanrl_ppo_atari_envpool.py --env_id Breakout-v5",
        "sb3": "sb3_ppo_atari.py --env_id BreakoutNoFrameskip-v4",
    },
    "impala": {"ours": f"{_CLEANRL} --network impala", "bf16": f"{_CLEANRL} --network impala --bf16"},
    "mujoco": {
        "ours": f"--suite mujoco --env HalfCheetah --algorithm ppo --policy gaussian {_CHEETAH}",
        "sb3": f"sb3_ppo_vector.py --env_id HalfCheetah-v5 {_CHEETAH} --normalize --eval_episodes 0",
    },
}
OURS = ("ours", "bf16")
WARM_UP = 2
PARTS = ("environment", "rollout", "update")
PACKAGES = ("scope-rlhf", "torch", "numpy", "gymnasium", "ale-py", "envpool")


def read_ours(folder: Path) -> dict[str, Any]:
    """Result of a run folder in the form of the peers' JSON (benchmarks/peers/result.py), from its metrics.jsonl.

    A line without any time/ key is not an update and is skipped; the first update counts from step 0.
    """
    files = sorted(folder.rglob("metrics.jsonl"))
    if len(files) != 1:
        raise ValueError(f"expected one metrics.jsonl under {folder}, found {len(files)}")
    steps, parts = [0], []
    for number, line in enumerate(files[0].read_text().splitlines(), 1):
        row = json.loads(line)
        if not any(key.startswith("time/") for key in row):
            continue
        missing = [key for key in ("step", *(f"time/{part}" for part in PARTS)) if key not in row]
        if missing:
            raise ValueError(f"{files[0]}, line {number}: an update without {', '.join(missing)}")
        if row["step"] <= steps[-1]:
            raise ValueError(f"{files[0]}, line {number}: step {row['step']} does not follow {steps[-1]}")
        steps.append(row["step"])
        parts.append([row[f"time/{part}"] for part in PARTS])
    if len(parts) <= WARM_UP:
        raise ValueError(f"{files[0]} has {len(parts)} updates, of which {WARM_UP} are not counted; raise --timesteps")
    seconds = [sum(times) for times in parts]
    rates = [(end - start) / took for start, end, took in zip(steps[:-1], steps[1:], seconds, strict=True)]
    return {
        "peer": "ours",
        "versions": own_versions(),
        "settings": {},
        "seconds": sum(seconds[1:]),
        "steps_per_second": statistics.median(rates[WARM_UP:]),
        "iterations": seconds,
        "split": {part: statistics.median(x[i] for x in parts[WARM_UP:]) for i, part in enumerate(PARTS)},
        "curve": [],
        "evaluation": [],
    }


def own_versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue  # an extra that this environment does without
    return found


def command(task: str, side: str, args: argparse.Namespace, folder: Path) -> list[str]:
    words = TASKS[task][side].split()
    if side in OURS:
        return [
            sys.executable, "-m", "scope_rlhf.cli", "control", *words,
            "--total_timesteps", str(args.timesteps), "--output_dir", str(folder), "--num_eval_episodes", "0",
        ]  # fmt: skip
    script, *flags = words
    return [
        args.peers_python, f"benchmarks/peers/{script}", *flags,
        "--total_timesteps", str(args.timesteps), "--threads", str(args.threads),
        "--output", str(folder / "result.json"),
    ]  # fmt: skip


def launch(task: str, side: str, args: argparse.Namespace) -> dict[str, Any]:
    """One run in a process of its own; load is the machine's load average of one minute before it."""
    threads = {"OMP_NUM_THREADS": str(args.threads), "MKL_NUM_THREADS": str(args.threads)}
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        words = command(task, side, args, Path(folder))
        done = subprocess.run(words, env=os.environ | threads, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{side} failed: {' '.join(words)}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
        result = read_ours(Path(folder)) if side in OURS else json.loads((Path(folder) / "result.json").read_text())
    return {"task": task, "side": side, "load": load} | result


def summarize(runs: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """For each side that ran: median, least and greatest steps per second, median parts, and our median over its."""
    summary = {}
    for side in dict.fromkeys(run["side"] for run in runs):
        mine = [run for run in runs if run["side"] == side]
        rates = [run["steps_per_second"] for run in mine]
        split = {part: statistics.median(run["split"][part] for run in mine) for part in PARTS}
        summary[side] = {"runs": len(mine), "median": statistics.median(rates), "min": min(rates), "max": max(rates)}
        summary[side] |= {"split": split}
    for row in summary.values():
        for name in OURS:
            row[f"{name}_over_it"] = summary[name]["median"] / row["median"] if name in summary else None
    return summary


HEADER = (
    "task", "side", "runs", "steps/s", "min", "max", "env s", "rollout s", "update s", "ours / it", "bf16 / it",
)  # fmt: skip


def table_rows(task: str, summary: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    rows = []
    for side, row in summary.items():
        rates = (f"{row[name]:,.0f}" for name in ("median", "min", "max"))
        ratios = ("-" if row[f"{name}_over_it"] is None else f"{row[f'{name}_over_it']:.2f}" for name in OURS)
        rows.append((task, side, str(row["runs"]), *rates, *(f"{row['split'][part]:.2f}" for part in PARTS), *ratios))
    return rows


def machine() -> str:
    names = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    flags = Path("/proc/cpuinfo").read_text().split()
    bf16 = "with" if {"avx512_bf16", "amx_bf16"} & set(flags) else "without"
    return f"{names[0]}, {len(names)} cores, {bf16} bfloat16, {psutil.virtual_memory().total / 2**30:.0f} GiB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", choices=[*TASKS, []], help="which; default atari")
    parser.add_argument("--peers_python", help="interpreter of the peers' environment (benchmarks/peers)")
    parser.add_argument("--repetitions", type=int, default=5, help="runs of each side")
    parser.add_argument("--timesteps", type=int, default=16_384, help="of each run, in actions")
    parser.add_argument("--threads", type=int, default=2, help="of every side")
    parser.add_argument("--only", nargs="+", choices=[*OURS, "cleanrl", "sb3"], help="sides to run; default all")
    parser.add_argument("--output", type=Path, help="JSON with everything measured; the table goes beside it as .md")
    args = parser.parse_args()
    tasks = args.tasks or ["atari"]
    work = [(task, side) for task in tasks for side in TASKS[task] if side in (args.only or TASKS[task])]
    if not work:
        parser.error(f"--only {' '.join(args.only)}: {' and '.join(tasks)} have none of these sides")
    if any(side not in OURS for _, side in work):
        if not (found := shutil.which(args.peers_python or "")):
            parser.error(
                f"--peers_python {args.peers_python} is no interpreter; the peers need that of their environment"
            )
        # Not resolved: a virtual environment's python is a link, and only by its own path the environment's.
        args.peers_python = os.path.abspath(found)
    console, runs = Console(), []
    about: dict[str, Any] = {"date": time.strftime("%Y-%m-%d", time.gmtime()), "machine": machine(), "tasks": tasks}
    about |= {name: getattr(args, name) for name in ("timesteps", "repetitions", "threads")}
    about["commit"] = str((source_commit(ROOT) or {}).get("commit", "?"))[:7]
    for repetition in range(args.repetitions):
        for task, side in work:
            runs.append(launch(task, side, args))
            rate, load = runs[-1]["steps_per_second"], runs[-1]["load"]
            console.print(
                f"{repetition + 1}/{args.repetitions} {task} {side}: {rate:,.0f} steps/s (load before: {load:.2f})"
            )
    rows = [row for task in tasks for row in table_rows(task, summarize([run for run in runs if run["task"] == task]))]
    table = Table(*HEADER, title="PPO, median over runs")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    about["versions"] = {run["side"]: run["versions"] for run in runs}
    console.print(f"{about['machine']}, {args.threads} threads")
    if args.output:
        args.output.write_text(json.dumps(about | {"runs": runs}, indent=1) + "\n")
        args.output.with_suffix(".md").write_text(page(about, rows))


def page(about: dict[str, Any], rows: list[tuple[str, ...]]) -> str:
    """The table and how it was measured, as Markdown."""
    head, rule = (" | ".join(cells) for cells in (HEADER, ("---",) * len(HEADER)))
    versions = sorted({f"{name} {number}" for found in about["versions"].values() for name, number in found.items()})
    return f"""# Steps per second of PPO

`python benchmarks/control_throughput.py {" ".join(about["tasks"])} --repetitions {about["repetitions"]} \
--timesteps {about["timesteps"]}` at commit {about["commit"]}, {about["date"]}: {about["machine"]}, \
{about["threads"]} threads.
Medians over runs, in turn; what is alike and what is counted is said in the script. Seconds are those of an iteration.

| {head} |
| {rule} |
{chr(10).join(f"| {' | '.join(row)} |" for row in rows)}

{", ".join(versions)}.
"""


if __name__ == "__main__":
    main()
