"""Time and peak memory of one update: DualPathDistillationTrainer beside TRL's DistillationTrainer, a process for each.

    OMP_NUM_THREADS=1 python benchmarks/distillation_step.py --updates 5 --rounds 3

All weights are random and made here; no Hub. Equal: student (GPT-2's small shape by default), LoRA r 8 on c_attn,
teacher of the same shape, completions of an update and their length, AdamW at a constant rate, no gradient clipping,
float32, temperature 1, one update of a rollout, micro-batches, other packages. Fails where sampled tokens or optimizer
steps differ. CPU seconds hold on a machine that does other work too. MiB before: weights are still mapped files.

Not equal: TRL samples one completion of each prompt, has no verifier, and its loss is the KL over the whole vocabulary
in chunks (beta 1 is the reverse KL, whose estimate from the sampled token ours is); ours takes the student's log-probs
from its sampler.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch
from datasets import Dataset
from peft import LoraConfig, TaskType
from ppo_update import PAD, VOCABULARY, WORK, Meter, machine, make_tokenizer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import GPT2Config
from transformers import GPT2LMHeadModel as Policy

# Trainer, mode, completions of a prompt.
SIDES = [("scope", "dual_path", 8), ("scope", "opd", 8), ("scope", "opd", 1), ("trl", "beta=1", 1)]
SIZES = ("batch", "micro_batches", "prompt", "response", "updates")
TIMES = ("seconds", "cpu_seconds", "sampling_cpu_seconds")


@dataclass(frozen=True)
class Setup:
    """One process. batch: completions of an update, in micro_batches parts."""

    models: str
    side: str
    mode: str
    generations: int
    batch: int = 8
    micro_batches: int = 2
    prompt: int = 16
    response: int = 64
    updates: int = 3


def make_models(folder: Path, layers: int, width: int) -> None:
    """student and teacher with random weights, as folders to load from."""
    for seed, name in enumerate(("student", "teacher")):
        torch.manual_seed(seed)
        config = GPT2Config(vocab_size=VOCABULARY, n_layer=layers, n_embd=width, n_head=max(width // 64, 1))
        # A random model would end now and then, on each side at another place.
        config.eos_token_id = config.bos_token_id = config.pad_token_id = PAD
        Policy(config).save_pretrained(folder / name)


def verdicts(prompts: Any, completions: Any, **kwargs: Any) -> list[float]:
    """About half of any completions are right."""
    return [float(sum(map(ord, str(text))) % 2) for text in completions]


def work(setup: Setup) -> dict[str, Any]:
    """Train as the setup says, in this process."""
    folder, tokenizer = Path(setup.models), make_tokenizer()
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(PAD, (100 * setup.batch, setup.prompt), generator=generator).tolist()
    data = Dataset.from_dict({"prompt": ["".join(f"w{i} " for i in row) for row in ids]})
    student, teacher = (Policy.from_pretrained(folder / n, dtype=torch.float32) for n in ("student", "teacher"))
    common: dict[str, Any] = {
        "output_dir": str(folder / "out"), "per_device_train_batch_size": setup.batch // setup.micro_batches,
        "gradient_accumulation_steps": setup.micro_batches, "learning_rate": 1e-5, "lr_scheduler_type": "constant",
        "max_steps": setup.updates + 1, "max_grad_norm": 0.0, "use_cpu": True, "bf16": False, "report_to": "none",
        "gradient_checkpointing": False, "save_strategy": "no", "seed": 1, "disable_tqdm": True, "temperature": 1.0,
        "logging_steps": 10**6, "max_completion_length": setup.response, "disable_dropout": True,
        "generation_kwargs": {"min_new_tokens": setup.response} if setup.side == "trl" else None,
    }  # fmt: skip
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=["c_attn"], fan_in_fan_out=True, task_type=TaskType.CAUSAL_LM)
    meter = Meter(1)
    shared: dict[str, Any] = {
        "teacher_model": teacher, "train_dataset": data, "processing_class": tokenizer, "peft_config": lora,
        "callbacks": [meter],
    }  # fmt: skip
    if setup.side == "trl":
        from trl import DistillationConfig, DistillationTrainer

        trainer: Any = DistillationTrainer(student, args=DistillationConfig(beta=1.0, **common), **shared)
    else:
        from scope_rlhf.trainers import DualPathDistillationConfig, DualPathDistillationTrainer

        args = DualPathDistillationConfig(mode=setup.mode, num_generations=setup.generations, **common)
        trainer = DualPathDistillationTrainer(student, [verdicts], args, **shared)
    report = asdict(setup) | {"versions": {name: version(name) for name in ("torch", "transformers", "trl", "peft")}}
    report["mib_before"] = psutil.Process().memory_info().rss // 2**20
    trainer.train()
    measured = meter.updates[1:]  # the first warms up
    report["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    for name in TIMES:
        report[f"median_{name}"] = statistics.median(update[name] for update in measured)
    return report | {"updates": measured}


def launch(setup: Setup) -> dict[str, Any]:
    """`work` in a process of its own."""
    result = Path(setup.models) / "result.json"
    words = [sys.executable, __file__, "--worker", json.dumps(asdict(setup)), "--output", str(result)]
    done = subprocess.run(words, env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{setup.side} {setup.mode} failed:\n{done.stdout}{done.stderr}")
    return {name: value for name, value in json.loads(result.read_text()).items() if name != "models"}


def summarise(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Medians over rounds of each side, and their ratio to TRL."""
    rows = []
    for side, mode, generations in SIDES:
        own = [r for r in runs if (r["side"], r["mode"], r["generations"]) == (side, mode, generations)]
        names = (*(f"median_{name}" for name in TIMES), "mib_before", "peak_mib")
        medians = {name.removeprefix("median_"): statistics.median(r[name] for r in own) for name in names}
        rows.append({"trainer": side, "mode": mode, "completions of a prompt": generations} | medians)
    for row in rows:
        row["x CPU of TRL"] = row["cpu_seconds"] / rows[-1]["cpu_seconds"]
        row["x peak of TRL"] = row["peak_mib"] / rows[-1]["peak_mib"]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="JSON with everything measured")
    parser.add_argument("--rounds", type=int, default=1, help="how often to go through all sides")
    for name, size in (("layers", 12), ("width", 768), *((x, getattr(Setup, x)) for x in SIZES)):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=size, help=f"default {size}")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        args.output.write_text(json.dumps(work(Setup(**json.loads(args.worker)))))
        return
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        make_models(Path(folder), args.layers, args.width)
        sizes = {name: getattr(args, name) for name in SIZES}
        setups = [Setup(folder, *side, **sizes) for side in SIDES * args.rounds]
        runs = [launch(setup) for setup in track(setups, "updates", console=console)]
    done = {tuple(update[x] for x in WORK) for run in runs for update in run["updates"]}
    if len(done) > 1:
        sys.exit(f"the sides differ in (tokens, optimizer steps) of an update: {sorted(done)}")
    rows = summarise(runs)
    about = {"date": time.strftime("%Y-%m-%d", time.gmtime()), "machine": machine(), "threads": torch.get_num_threads()}
    if args.output:
        sizes |= {"layers": args.layers, "width": args.width}
        args.output.write_text(json.dumps(about | {"sizes": sizes, "summary": rows, "runs": runs}, indent=1) + "\n")
    table = Table(*rows[0], title="one update (medians)")
    for row in rows:
        table.add_row(*(f"{x:.2f}" if isinstance(x, float) else str(x) for x in row.values()))
    console.print(table)


if __name__ == "__main__":
    main()
