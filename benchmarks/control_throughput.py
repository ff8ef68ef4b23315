"""Training steps per second of PPO on Atari: scope_rlhf.control beside CleanRL and Stable-Baselines3, in turn.

    python3.11 -m venv peers
    peers/bin/pip install -r benchmarks/peers/requirements.txt
    peers/bin/pip install --no-deps --ignore-requires-python cleanrl==1.2.0
    python benchmarks/control_throughput.py --peers_python peers/bin/python --output control_throughput.json

Each run is a process of its own, in the order ours, cleanrl, sb3, ours, ..., so that what else the machine does meets
all alike. Equal: game, 8 environments x 128 steps, 4 epochs of 4 minibatches of 256, the network's shape, float32, CPU,
threads. A step is one action of one environment; an iteration is a rollout and its update.

A run's steps per second are the median over its iterations without the first two. The table shows median, least and
greatest over runs, the parts of an iteration (median seconds), and our median over that side's. Rollout is without the
environments, which include preprocessing and stacking of frames; bootstrap value and GAE count as update for CleanRL
and as rollout for Stable-Baselines3. Linux only.
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
SIDES = ("ours", "cleanrl", "sb3")
PEERS = {
    "cleanrl": ("cleanrl_ppo_atari_envpool.py", "{}-v5"),
    "sb3": ("sb3_ppo_atari.py", "{}NoFrameskip-v4"),
}
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


def command(side: str, args: argparse.Namespace, folder: Path) -> list[str]:
    if side == "ours":
        return [
            sys.executable, "-m", "scope_rlhf.cli", "control", "--suite", "atari", "--env", args.env,
            "--algorithm", "ppo", "--total_timesteps", str(args.timesteps), "--output_dir", str(folder),
            "--config", "recipes/configs/atari_ppo_cleanrl.yaml",
        ]  # fmt: skip
    script, env_id = PEERS[side]
    return [
        args.peers_python, f"benchmarks/peers/{script}", "--env_id", env_id.format(args.env),
        "--total_timesteps", str(args.timesteps), "--threads", str(args.threads),
        "--output", str(folder / "result.json"),
    ]  # fmt: skip


def launch(side: str, args: argparse.Namespace) -> dict[str, Any]:
    """One run in a process of its own; load is the machine's load average of one minute before it."""
    threads = {"OMP_NUM_THREADS": str(args.threads), "MKL_NUM_THREADS": str(args.threads)}
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        words = command(side, args, Path(folder))
        done = subprocess.run(words, env=os.environ | threads, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{side} failed: {' '.join(words)}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
        result = read_ours(Path(folder)) if side == "ours" else json.loads((Path(folder) / "result.json").read_text())
    return {"side": side, "load": load} | result


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
        row["ours_over_it"] = summary["ours"]["median"] / row["median"] if "ours" in summary else None
    return summary


def throughput_table(summary: dict[str, dict[str, Any]]) -> Table:
    names = ("side", "runs", "steps/s", "min", "max", "env s", "rollout s", "update s", "ours / it")
    table = Table(*names, title="PPO on Atari, median over runs")
    for side, row in summary.items():
        rates = (f"{row[name]:.0f}" for name in ("median", "min", "max"))
        ratio = "-" if row["ours_over_it"] is None else f"{row['ours_over_it']:.2f}"
        table.add_row(side, str(row["runs"]), *rates, *(f"{row['split'][part]:.2f}" for part in PARTS), ratio)
    return table


def machine() -> str:
    names = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return f"{names[0]}, {len(names)} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers_python", help="interpreter of the peers' environment (benchmarks/peers)")
    parser.add_argument("--repetitions", type=int, default=5, help="runs of each side")
    parser.add_argument("--timesteps", type=int, default=16_384, help="of each run, in actions")
    parser.add_argument("--threads", type=int, default=2, help="of every side")
    parser.add_argument("--env", default="Breakout", help="game, as Breakout")
    parser.add_argument("--only", nargs="+", choices=SIDES, default=SIDES, help="sides to run")
    parser.add_argument("--output", type=Path, help="JSON with everything measured")
    args = parser.parse_args()
    sides = [side for side in SIDES if side in args.only]
    if sides != ["ours"]:
        if not (found := shutil.which(args.peers_python or "")):
            parser.error(
                f"--peers_python {args.peers_python} is no interpreter; the peers need that of their environment"
            )
        # Not resolved: a virtual environment's python is a link, and only by its own path the environment's.
        args.peers_python = os.path.abspath(found)
    console, runs = Console(), []
    about = {"date": time.strftime("%Y-%m-%d", time.gmtime()), "machine": machine()}
    about |= {name: getattr(args, name) for name in ("env", "timesteps", "repetitions", "threads")}
    for repetition in range(args.repetitions):
        for side in sides:
            runs.append(launch(side, args))
            rate, load = runs[-1]["steps_per_second"], runs[-1]["load"]
            console.print(f"{repetition + 1}/{args.repetitions} {side}: {rate:.0f} steps/s (load before: {load:.2f})")
    summary = summarize(runs)
    if args.output:
        about |= {"versions": {run["side"]: run["versions"] for run in runs}, "load": [run["load"] for run in runs]}
        args.output.write_text(json.dumps(about | {"summary": summary, "runs": runs}, indent=1) + "\n")
    console.print(throughput_table(summary))
    console.print(
        f"{about['machine']}, {args.threads} threads; torch", {r["side"]: r["versions"]["torch"] for r in runs}
    )


if __name__ == "__main__":
    main()
