"""One PPO update of 4 epochs without its sampling: ScopePPOTrainer and the PPOTrainer of TRL 1.12, on a CPU.

Sides, models and what is not equal: benchmarks/ppo_update.py, whose parts these are; --trl-python is the interpreter of
the environment that its head says how to make. Not equal above all: the critic of TRL is always a second model, and
ours shares the policy's backbone by default, which is a choice of modelling as well as of speed; `adapter` meets
`adapter`, and `model` meets `model`. Sizes: --batch, --prompt, --completion and --shape, the vocabulary is GPT-2's.

A time is the median over --updates updates of processor seconds without those of sampling; the sides run in turn in
each of --repetitions rounds. Peak: of the whole process. Compared: sampled tokens and optimizer steps.
"""

import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from benchmarks import ppo_update
from benchmarks.speed.measure import Options, Row, Section

EPOCHS = 4


def find_python(trl_python: str | None) -> dict[str, str]:
    """Interpreter of each side; ValueError without that of TRL 1.12."""
    found = shutil.which(trl_python or "")
    code = "from importlib.metadata import version; print(version('trl'))"
    done = found and subprocess.run([found, "-c", code], capture_output=True, text=True)
    version = done.stdout.strip() if done and not done.returncode else None
    if found is None or not (version or "").startswith("1.12."):
        commands = (ppo_update.__doc__ or "").split("\n\n")[1]
        has = f" (it has TRL {version})" if version else ""
        raise ValueError(
            f"--trl-python is {trl_python!r}{has}, expected the interpreter of an environment with TRL 1.12, which "
            f"still has a PPOTrainer. To make it and use it:\n{commands}"
        )
    return {"scope": sys.executable, "trl": str(Path(found).absolute())}


def run(options: Options) -> list[Section]:
    python, rows = find_python(options.trl_python), []
    for shape in options.shapes:
        layers, width = map(int, shape.split("x"))
        with tempfile.TemporaryDirectory() as folder:
            ppo_update.make_models(Path(folder), layers, width)
            setups = [
                ppo_update.Setup(
                    folder, *side, batch=options.batch, prompt=options.prompt, response=options.completion,
                    epochs=EPOCHS, updates=options.updates,
                )
                for side in ppo_update.SIDES * options.repetitions
            ]  # fmt: skip
            works = track(setups, f"ppo {shape}", console=Console(stderr=True))
            runs = [ppo_update.launch(setup, python[setup.side]) for setup in works]
        rows += [row_of(shape, side, runs) for side in ppo_update.SIDES]
    title = f"a PPO update of {EPOCHS} epochs without sampling, {options.batch} x ({options.prompt} + "
    section = Section(f"{title}{options.completion}), V {ppo_update.VOCABULARY}", rows, baseline="trl model")
    for row in rows:
        for critic in ("model", "adapter"):
            ratio = section.ratio(row, f"trl {critic}")
            if ratio is not None:
                row.more[f"trl {critic} / it"] = f"{1 / ratio:.2f}"
    return [section]


def row_of(shape: str, side: tuple[str, str], runs: list[dict[str, Any]]) -> Row:
    own, trl = ([run for run in runs if (run["side"], run["critic"]) == who] for who in (side, ("trl", "model")))
    errors = {f"{name} unlike TRL's": (count_unlike(name, own, trl), 0.0) for name in ppo_update.WORK}
    row = Row(shape, " ".join(side), errors)
    if not row.faults:
        row.seconds = [statistics.median(map(without_sampling, run["updates"])) for run in own]
        row.peak_mib = statistics.median(run["peak_mib"] for run in own)
        row.more = {"with sampling ms": 1e3 * statistics.median(run["median_cpu_seconds"] for run in own)}
    return row


def count_unlike(name: str, own: list[dict[str, Any]], others: list[dict[str, Any]]) -> float:
    """In how many updates the two differ in `name`."""
    mine, theirs = ([update[name] for run in runs for update in run["updates"]] for runs in (own, others))
    return float(sum(a != b for a, b in zip(mine, theirs, strict=True)))


def without_sampling(update: dict[str, Any]) -> float:
    return update["cpu_seconds"] - update["sampling_cpu_seconds"]
