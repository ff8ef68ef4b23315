"""Time and peak memory of one PPO update: ScopePPOTrainer beside the PPOTrainer of TRL 1.12.0, a process for each.

    python3.11 -m venv trl112
    trl112/bin/pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu
    trl112/bin/pip install trl==1.12.0 transformers==5.23.0 peft==0.21.2 accelerate==1.15.0 datasets==5.2.0 psutil rich
    OMP_NUM_THREADS=1 python benchmarks/ppo_update.py --trl-python trl112/bin/python --updates 5 --rounds 2

TRL removed PPO in 1.13. An update is a rollout with all its epochs and minibatches. All weights are random and made
here; no Hub. A second table counts optimizer steps on a tiny model, for several num_mini_batches.

Equal: policy (GPT-2's small shape), LoRA r 8 on c_attn, the reference is the policy without its adapter, tiny reward
model, scalar critic, rows and lengths, epochs, minibatches, AdamW at a constant rate, no gradient clipping, float32,
temperature 1, no checkpointing, other packages. Fails where sampled tokens or optimizer steps differ. CPU seconds hold
on a machine that does other work too. MiB before: weights are still mapped files. Linux only.

Not equal: TRL's critic is always a second model. `model` is what TRL's own example does, that model trained whole, and
meets our critic_backbone="model"; `adapter` is a second model under LoRA, undocumented, and meets our "adapter", which
reads the policy's base. Nothing in TRL meets our default, "shared". Both take old log-probs from generation,
where TRL keeps a row of the vocabulary for each token. TRL makes whole logits in training; ours has its own log-prob
head, which makes none.
"""

import argparse
import importlib
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch
from datasets import Dataset
from peft import LoraConfig, TaskType, get_peft_model
from rich.console import Console
from rich.progress import track
from rich.table import Table
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import GenerationMixin, GPT2Config, PreTrainedTokenizerFast, TrainerCallback
from transformers import GPT2ForSequenceClassification as Scorer
from transformers import GPT2LMHeadModel as Policy

VOCABULARY, EOS, PAD = 50257, 50256, 50255
SIDES = [("scope", "shared"), ("scope", "adapter"), ("scope", "model"), ("trl", "adapter"), ("trl", "model")]
# Side, critic, gradient accumulation, rollouts in the data.
STEP_KINDS = [("trl", "model", 1, 100), ("trl", "model", 4, 100), ("trl", "model", 4, 1), ("scope", "shared", 4, 100)]
SIZES = ("mini_batches", "batch", "prompt", "response", "epochs", "updates")
TIMES, WORK = ("seconds", "cpu_seconds", "sampling_cpu_seconds"), ("tokens", "steps")


@dataclass(frozen=True)
class Setup:
    """One process: which trainer with which critic, at which sizes. batch: completions of a rollout."""

    models: str
    side: str
    critic: str
    accumulation: int = 1
    rollouts_in_data: int = 100
    mini_batches: int = 2
    batch: int = 8
    prompt: int = 16
    response: int = 24
    epochs: int = 2
    updates: int = 3


def make_models(folder: Path, layers: int, width: int) -> None:
    """policy, critic and reward with random weights, as folders to load from."""
    torch.manual_seed(0)
    for name, (depth, size) in {"policy": (layers, width), "critic": (layers, width), "reward": (2, 32)}.items():
        config = GPT2Config(vocab_size=VOCABULARY, n_layer=depth, n_embd=size, n_head=max(size // 64, 1))
        config.num_labels, config.pad_token_id, config.eos_token_id = 1, PAD, EOS
        (Policy if name == "policy" else Scorer)(config).save_pretrained(folder / name)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One word for each id."""
    words = {f"w{i}": i for i in range(PAD)} | {"<pad>": PAD, "<eos>": EOS}
    whole = Tokenizer(models.WordLevel(words, unk_token="w0"))
    whole.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(tokenizer_object=whole, eos_token="<eos>", pad_token="<pad>", padding_side="left")


class Meter(TrainerCallback):
    """Wall and processor seconds of each update, of generation in it, sampled tokens and optimizer steps."""

    def __init__(self, every: int):
        self.every, self.updates = every, []
        mixin: Any = GenerationMixin
        generate = mixin.generate

        def timed(model: Any, *args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            result = generate(model, *args, **kwargs)
            self.now["sampling_cpu_seconds"] += time.process_time() - start
            ids = result if isinstance(result, torch.Tensor) else result.sequences
            self.now["tokens"] += ids[:, kwargs["input_ids"].shape[1] :].numel()
            return result

        mixin.generate = timed
        register_optimizer_step_post_hook(lambda *_: self.now.update(steps=self.now["steps"] + 1))

    def on_train_begin(self, args, state, control, **kwargs: Any) -> None:
        self.now, self._start = {"sampling_cpu_seconds": 0.0, "tokens": 0, "steps": 0}, time.perf_counter()
        self._cpu = time.process_time()

    def on_step_end(self, args, state, control, **kwargs: Any) -> None:
        if state.global_step % self.every == 0:
            took = {"seconds": time.perf_counter() - self._start, "cpu_seconds": time.process_time() - self._cpu}
            self.updates.append(took | self.now)
            self.on_train_begin(args, state, control)


def work(setup: Setup) -> dict[str, Any]:
    """Train as the setup says, in this process."""
    folder, tokenizer = Path(setup.models), make_tokenizer()
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(PAD, (setup.rollouts_in_data * setup.batch, setup.prompt), generator=generator).tolist()
    policy = Policy.from_pretrained(folder / "policy", dtype=torch.float32)
    reward = Scorer.from_pretrained(folder / "reward", dtype=torch.float32)
    common: dict[str, Any] = {
        "output_dir": str(folder / "out"), "num_ppo_epochs": setup.epochs, "num_mini_batches": setup.mini_batches,
        "gradient_accumulation_steps": setup.accumulation, "learning_rate": 1e-5, "temperature": 1.0,
        "total_episodes": (setup.updates + 1) * setup.batch, "lr_scheduler_type": "constant", "max_grad_norm": 0.0,
        "use_cpu": True, "gradient_checkpointing": False, "report_to": "none", "save_strategy": "no", "seed": 1,
        "bf16": False, "disable_tqdm": True, "logging_steps": 10**6,
    }  # fmt: skip
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=["c_attn"], fan_in_fan_out=True, task_type=TaskType.CAUSAL_LM)
    # TRL 1.12 says "step" where a whole update is meant.
    meter = Meter(1 if setup.side == "trl" else setup.epochs * setup.mini_batches)
    if setup.side == "trl":
        ppo = importlib.import_module("trl.experimental.ppo")  # not in this environment
        value: Any = Scorer.from_pretrained(folder / "critic", dtype=torch.float32)
        if setup.critic == "adapter":
            value = get_peft_model(value, replace(lora, task_type=TaskType.SEQ_CLS))
        args = ppo.PPOConfig(
            per_device_train_batch_size=setup.batch // setup.accumulation, response_length=setup.response,
            local_rollout_forward_batch_size=setup.batch, num_sample_generations=0, **common,
        )  # fmt: skip
        trainer = ppo.PPOTrainer(
            args, tokenizer, policy, None, reward, Dataset.from_dict({"input_ids": ids}), value, callbacks=[meter],
            peft_config=lora,
        )  # fmt: skip
    else:
        from scope_rlhf.trainers.ppo import ScopePPOConfig, ScopePPOTrainer  # not in the other environment

        critic = str(folder / "critic") if setup.critic == "model" else None
        args = ScopePPOConfig(
            per_device_train_batch_size=setup.batch // (setup.mini_batches * setup.accumulation),
            max_completion_length=setup.response, critic_backbone=setup.critic, critic_model_name_or_path=critic,
            **common,
        )  # fmt: skip
        # The space at the end: the reward model reads the text of prompt and completion put together.
        prompts = ["".join(f"w{i} " for i in row) for row in ids]
        trainer = ScopePPOTrainer(
            policy, [reward], args, train_dataset=Dataset.from_dict({"prompt": prompts}), processing_class=tokenizer,
            reward_processing_classes=[tokenizer], peft_config=lora, callbacks=[meter],
        )  # fmt: skip
    weights = list(trainer.model.parameters())
    report = asdict(setup) | {"versions": {name: version(name) for name in ("torch", "transformers", "trl", "peft")}}
    report["parameters"] = sum(x.numel() for x in weights)
    report["trained"] = sum(x.numel() for x in weights if x.requires_grad)
    report["mib_before"] = psutil.Process().memory_info().rss // 2**20
    report["peak_mib_before"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    trainer.train()
    measured = meter.updates[1:]  # the first warms up
    report["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    for name in TIMES:
        report[f"median_{name}"] = statistics.median(update[name] for update in measured)
    return report | {"updates": measured}


def launch(setup: Setup, python: str) -> dict[str, Any]:
    """`work` in a process of its own."""
    result = Path(setup.models) / "result.json"
    words = [python, __file__, "--worker", json.dumps(asdict(setup)), "--output", str(result)]
    quiet = os.environ | {"TRL_EXPERIMENTAL_SILENCE": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(words, env=quiet, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{setup.side} with critic {setup.critic} failed:\n{done.stdout}{done.stderr}")
    return {name: value for name, value in json.loads(result.read_text()).items() if name != "models"}


def machine() -> str:
    names = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return f"{names[0]}, {len(names)} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB"


def update_table(runs: list[dict[str, Any]]) -> Table:
    names = "trainer|critic|M params|M trained|wall s|CPU s|of it sampling|CPU min|max|MiB before|MiB peak|tokens|steps"
    table = Table(*names.split("|"), title="one update (medians)")
    for run in runs:
        cpu = [update["cpu_seconds"] for update in run["updates"]]
        times = (*(run[f"median_{name}"] for name in TIMES), min(cpu), max(cpu))
        counts = (run["mib_before"], run["peak_mib"], *(run["updates"][0][x] for x in WORK))
        sizes = (f"{run[x] / 1e6:.2f}" for x in ("parameters", "trained"))
        table.add_row(run["side"], run["critic"], *sizes, *(f"{x:.2f}" for x in times), *map(str, counts))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl-python", default=sys.executable, help="interpreter of the environment with TRL 1.12.0")
    parser.add_argument("--output", type=Path, help="JSON with everything measured")
    parser.add_argument("--rounds", type=int, default=1, help="how often to go through all sides")
    for name, size in (("layers", 12), ("width", 768), *((x, getattr(Setup, x)) for x in SIZES)):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=size, help=f"default {size}")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        args.output.write_text(json.dumps(work(Setup(**json.loads(args.worker)))))
        return
    console, python = Console(), {"scope": sys.executable, "trl": args.trl_python}
    with tempfile.TemporaryDirectory() as folder:
        make_models(Path(folder), args.layers, args.width)
        sizes = {name: getattr(args, name) for name in SIZES}
        setups = [Setup(folder, *side, **sizes) for side in SIDES * args.rounds]
        runs = [launch(setup, python[setup.side]) for setup in track(setups, "updates", console=console)]
    with tempfile.TemporaryDirectory() as folder:
        make_models(Path(folder), 1, 32)
        setups = [Setup(folder, *kind, parts, 16, 4, 4, updates=2) for kind in STEP_KINDS for parts in (1, 2, 4)]
        counts = [launch(setup, python[setup.side]) for setup in track(setups, "optimizer steps", console=console)]
    about = {"date": time.strftime("%Y-%m-%d", time.gmtime()), "machine": machine(), "threads": torch.get_num_threads()}
    if args.output:
        args.output.write_text(json.dumps(about | {"updates": runs, "optimizer_steps": counts}, indent=1) + "\n")
    names = ("side", "accumulation", "rollouts_in_data", "mini_batches", "epochs")
    table = Table(*(x.replace("_", " ") for x in names), "steps", title="optimizer steps of each rollout")
    for run in counts:
        table.add_row(*(str(run[name]) for name in names), " ".join(str(update["steps"]) for update in run["updates"]))
    console.print(table, update_table(runs))
    done = {tuple(update[x] for x in WORK) for run in runs for update in run["updates"]}
    if len(done) > 1:
        sys.exit(f"the sides differ in (tokens, optimizer steps) of an update: {sorted(done)}")


if __name__ == "__main__":
    main()
