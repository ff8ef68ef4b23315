"""TL;DR from end to end: SFT -> reward model and held-out judge -> RL -> win rate. recipes/tldr_scope.py runs `main`.

Each stage has a folder of its own below the output folder, named by the hash of all that it depends on, and is skipped
where it is done: another objective or seed of RL uses the same SFT model, reward model and judge.
"""

from collections.abc import Callable, Container, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from rich.console import Console
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from scope_rlhf.data.documentation import EMBEDDED_DOCUMENTATION, all_documentation
from scope_rlhf.data.loading import dataset_fingerprint
from scope_rlhf.data.tldr import load_tldr
from scope_rlhf.evaluation.completions import System, describe_decoding, generate, read_system
from scope_rlhf.evaluation.judges import RewardJudge
from scope_rlhf.evaluation.win_rate import compare
from scope_rlhf.experiments.arguments import parse_arguments
from scope_rlhf.experiments.policy_run import (
    Task,
    check_positions,
    push_model,
    quiet_libraries,
    run_policy,
)
from scope_rlhf.experiments.stages import Stage, model_identity, run_stage, stage_inputs, stage_root
from scope_rlhf.experiments.tldr_arguments import EXPERIMENT, TldrArguments
from scope_rlhf.experiments.tldr_results import reward_table, sft_table, summary_table
from scope_rlhf.experiments.tldr_reward import human_pairs, parse_reward, run_reward
from scope_rlhf.experiments.tldr_sft import cut_prompts, parse_sft, run_sft
from scope_rlhf.experiments.win_rate import result_table
from scope_rlhf.hub import explain_model_errors
from scope_rlhf.models.loading import PolicyConfig, find_model, load_policy, load_policy_tokenizer
from scope_rlhf.models.reward import RewardScorer
from scope_rlhf.objectives import describe_objective, make_objective
from scope_rlhf.reports import write_model_card, write_report
from scope_rlhf.reports.over_optimisation import plot_over_optimisation
from scope_rlhf.reports.win_rate import write_win_rate_report
from scope_rlhf.runtime import RunFolder, is_main_process
from scope_rlhf.runtime.threads import set_threads
from scope_rlhf.trainers.checkpoints import newest_checkpoint
from scope_rlhf.trainers.grpo_config import ScopeGRPOConfig
from scope_rlhf.trainers.prompts import check_batches

SFT, RL, REFERENCES = "sft", "rl", "references"
PAIRINGS = ((RL, SFT), (RL, REFERENCES), (SFT, REFERENCES))


def main(argv: Sequence[str], prog: str | None = None, algorithm: str | None = None) -> int:
    """Run the chain that the command line describes; the exit status."""
    quiet_libraries()
    script, policy, training = parse_arguments(EXPERIMENT, list(argv), prog, algorithm)
    run(script, policy, training)
    return 0


def run(script: TldrArguments, policy: PolicyConfig, training: ScopeGRPOConfig) -> dict[str, Stage]:
    """The chain; name -> stage. ValueError for what cannot work, before the first stage trains."""
    set_threads(script.num_threads)
    console = Console(quiet=training.process_index != 0)
    root = stage_root(training)
    settings = _stage_settings(script, policy, training)
    if script.dataset_name == EMBEDDED_DOCUMENTATION:
        all_documentation()  # read once, with a progress line, before the first stage
    _check_prompts(script, training)
    stages: dict[str, Stage] = {}
    models = {SFT: script.sft_model_name_or_path}
    if not models[SFT]:
        sft_script, sft_policy, sft_training = settings["sft"]
        stages["sft"] = run_sft(sft_script, sft_policy, sft_training, root, console)
        models[SFT] = str(stages["sft"].model)
        console.print(sft_table(stages["sft"].results))
    for role in ("reward", "judge"):
        models[role] = getattr(script, f"{role}_model_name_or_path")
        if models[role]:
            continue
        reward_script, reward_policy, reward_training = settings[role]
        upstream: dict[str, Any] = {}
        if "sft" in stages:
            upstream["sampled_from"] = stages["sft"].folder.name
            if role == "reward":
                upstream["model"] = stages["sft"].folder.name
        if role == "reward":
            reward_policy.model_name_or_path = models[SFT]
        if reward_script.dataset_name == EMBEDDED_DOCUMENTATION:
            reward_script.sampled_from = models[SFT]
        stages[role] = run_reward(reward_script, reward_policy, reward_training, root, console, **upstream)
        models[role] = str(stages[role].model)
        console.print(reward_table(role, stages[role].results))
    stages["rl"] = run_rl(script, policy, training, models, stages, root, console)
    if models["judge"] != "none":
        stages["winrate"] = run_win_rate(script, policy, training, models, stages, root, console)
        if is_main_process():
            _finish(stages, training, console)
    elif is_main_process() and training.hub_model_id:
        push_model(stages["rl"].model, training)
    if is_main_process():
        console.print(summary_table(stages))
    return stages


def _stage_settings(script: TldrArguments, policy: PolicyConfig, training: ScopeGRPOConfig) -> dict[str, Any]:
    """Settings of the stages that are to run, with every name looked up: a wrong one must not cost hours of another
    stage.
    """
    base = policy.model_name_or_path or ""
    common: dict[str, Any] = {
        "model_name_or_path": base, "model_revision": policy.model_revision, "dtype": policy.dtype,
        "max_prompt_length": script.max_prompt_length, "use_cpu": training.use_cpu,
        "disable_tqdm": training.disable_tqdm,
    }  # fmt: skip
    embedded = script.dataset_name == EMBEDDED_DOCUMENTATION
    found: dict[str, Any] = {}
    if script.sft_model_name_or_path:
        find_model(script.sft_model_name_or_path, "--sft_model_name_or_path")
    else:
        given = {**common, "dataset_name": script.dataset_name}
        if not embedded:
            given["dataset_train_split"] = script.dataset_train_split
            given["dataset_test_split"] = script.dataset_test_split or None
        found["sft"] = _parse(parse_sft, script.sft_config, "--sft_config", given)
        config = find_model(base, "--model_name_or_path", revision=policy.model_revision)[1]
        check_positions(base, config, script.max_prompt_length, training.max_completion_length or 0)
    pairs = script.preference_dataset_name or (EMBEDDED_DOCUMENTATION if embedded else "trl-lib/tldr-preference")
    for role in ("reward", "judge"):
        name = getattr(script, f"{role}_model_name_or_path")
        if name and name != "none":
            path = find_model(name, f"--{role}_model_name_or_path")[0]
            if role == "reward" and script.critic_from_reward_model:
                _check_tokenizers(path, replace(policy, model_name_or_path=script.sft_model_name_or_path or base))
        elif not name:
            setting = "judge_config" if role == "judge" and script.judge_config else "reward_config"
            given = {**common, "dataset_name": pairs, "role": role}
            found[role] = _parse(parse_reward, getattr(script, setting), f"--{setting}", given)
            if found[role][0].dataset_name != EMBEDDED_DOCUMENTATION:
                human_pairs(found[role][0], found[role][2].seed, "--preference_dataset_name")
    if script.reward_model_name_or_path == "none":
        raise ValueError(
            "reward_model_name_or_path 'none' leaves nothing to optimise; set --reward_model_name_or_path."
        )
    return found


def _check_prompts(script: TldrArguments, training: ScopeGRPOConfig) -> None:
    """ValueError where the prompts of RL or of its evaluation are missing or too few: at once, not after SFT."""
    train = load_tldr(script.dataset_name, "train", split=script.dataset_train_split, num_rows=script.num_train_prompts)
    check_batches(train, training)
    load_tldr(script.dataset_name, "eval", split=script.dataset_test_split)


def _check_tokenizers(reward_model: str, policy: PolicyConfig) -> None:
    """ValueError where a critic that begins as the reward model would read the policy's token ids as other tokens."""
    with explain_model_errors(reward_model, "--reward_model_name_or_path"):
        tokenizer = AutoTokenizer.from_pretrained(reward_model)
    theirs, own = tokenizer.get_vocab(), load_policy_tokenizer(policy).get_vocab()
    different = [token for token in own if theirs.get(token) != own[token]]
    if different:
        raise ValueError(
            f"--critic_from_reward_model: {len(different)} of the {len(own)} tokens of {policy.model_name_or_path} "
            f"have another id in --reward_model_name_or_path={reward_model!r}, or none. Set --critic_from_reward_model "
            "false (--critic_backbone then says what it is), or give a reward model with the policy's tokenizer."
        )


def _parse(parse: Callable[..., Any], file: str | None, setting: str, given: dict[str, Any]) -> Any:
    """A stage's settings; what is wrong in its file is said of the flag that named the file."""
    try:
        return parse([] if file is None else ["--config", file], given=given)
    except ValueError as error:
        raise ValueError(str(error).replace("--config ", f"{setting} ")) from error


def load_prompts(script: Any, training: ScopeGRPOConfig, tokenizer: PreTrainedTokenizerBase) -> tuple[Dataset, Dataset]:
    """Cut prompts with their reference summaries (column completion): to train on, and to measure with."""
    train = load_tldr(
        script.dataset_name, "train", split=script.dataset_train_split, num_rows=script.num_train_prompts,
        seed=training.seed,
    )  # fmt: skip
    train = cut_prompts(train, tokenizer, script.max_prompt_length)
    return train, evaluation_prompts(script, tokenizer, script.num_eval_prompts, set(train["prompt"]))


def evaluation_prompts(
    script: TldrArguments, tokenizer: PreTrainedTokenizerBase, number: int, exclude: Container[str] = frozenset()
) -> Dataset:
    """The first prompts of the evaluation part as cut, the same for every seed of training; fewer where there are
    fewer. Each is there once, also where two entries only differ behind the cut, and none is in `exclude`.
    """
    data = load_tldr(script.dataset_name, "eval", split=script.dataset_test_split)
    cut, seen = cut_prompts(data, tokenizer, script.max_prompt_length), set()
    rows = [i for i, p in enumerate(cut["prompt"]) if not (p in seen or p in exclude or seen.add(p))]
    if not rows:
        raise ValueError(
            "no prompt of the evaluation is none of training: are --dataset_train_split and --dataset_test_split the "
            "same?"
        )
    return cut.select(rows[:number])


TASK = Task(
    name="tldr",
    reward="summary_reward",
    judge="summary_judge",
    labels=("reward model: score, optimised", "held-out judge: score"),
    prompt_length=lambda script: script.max_prompt_length,
    load_prompts=load_prompts,
    output="logit",
)


def _identity(name: str, models: dict[str, str], stages: dict[str, Stage]) -> str:
    """What later stages depend on by this model: the folder of its stage, or what was given in its place."""
    return stages[name].folder.name if name in stages else model_identity(models[name])


def run_rl(
    script: TldrArguments,
    policy: PolicyConfig,
    training: ScopeGRPOConfig,
    models: dict[str, str],
    stages: dict[str, Stage],
    root: Path,
    console: Console,
) -> Stage:
    """The stage of RL: a run folder as of recipes/imdb_scope.py."""
    script = replace(script, reward_model_name_or_path=models["reward"], judge_model_name_or_path=models["judge"])
    policy = replace(policy, model_name_or_path=models[SFT])
    identities = {name: _identity(name, models, stages) for name in (SFT, "reward", "judge")}
    names = ("model_name_or_path", "sft_model_name_or_path", "reward_model_name_or_path", "judge_model_name_or_path")
    settings = {**training.to_dict(), **asdict(policy), **asdict(script), **dict.fromkeys(names)}
    later = ("num_win_rate_prompts", "win_rate_temperature", "sft_config", "reward_config", "judge_config")
    own: Any = training.objective_kwargs or {}
    splits = {"train": script.dataset_train_split, "eval": script.dataset_test_split}
    data = [load_tldr(script.dataset_name, part, split=split) for part, split in splits.items()]
    inputs = stage_inputs(
        {k: v for k, v in settings.items() if k not in later}, models=identities,
        # With the hash of an own objective's file: another formula is another stage.
        policy_objective=describe_objective(make_objective(training.objective, **own)),
        data=[dataset_fingerprint(part) for part in data],
    )  # fmt: skip
    if script.critic_from_reward_model:
        critic: Any = training
        critic.critic_backbone, critic.critic_model_name_or_path = "model", models["reward"]

    def work(folder: Path) -> dict[str, Any]:
        training.output_dir = str(folder)
        checkpoint = newest_checkpoint(folder)
        training.resume_from_checkpoint = str(checkpoint) if checkpoint else None
        if checkpoint is None and is_main_process():
            (folder / "metrics.jsonl").unlink(missing_ok=True)  # of an attempt that left no checkpoint
        run_policy(TASK, script, policy, training, alone=False)
        evaluation = RunFolder(folder).read_evaluation() or {}
        return {"metrics": evaluation.get("metrics")}

    name = Path(training.objective.rsplit(":", 1)[-1]).name
    return run_stage(root, f"{script.algorithm}-{name}-{training.seed}", inputs, work, console)


def run_win_rate(
    script: TldrArguments,
    policy: PolicyConfig,
    training: ScopeGRPOConfig,
    models: dict[str, str],
    stages: dict[str, Stage],
    root: Path,
    console: Console,
) -> Stage:
    """The stage of win rates: RL against SFT, and both against the references, by the held-out judge."""
    tokenizer = load_policy_tokenizer(replace(policy, model_name_or_path=models[SFT]))
    cut = evaluation_prompts(script, tokenizer, script.num_win_rate_prompts)
    judge_identity = _identity("judge", models, stages)
    inputs = stage_inputs(
        {"rl": stages["rl"].folder.name, "judge": judge_identity, "data": dataset_fingerprint(cut),
         "temperature": script.win_rate_temperature, "max_new_tokens": training.max_completion_length,
         "max_prompt_length": script.max_prompt_length, "seed": script.eval_seed}
    )  # fmt: skip

    def work(folder: Path) -> dict[str, Any]:
        if not is_main_process():
            return {}
        with RunFolder(folder):
            prompts, references = list(cut["prompt"]), list(cut["completion"])
            names = {SFT: models[SFT], RL: str(stages["rl"].model)}
            systems = {REFERENCES: System(REFERENCES, prompts, references, [True] * len(prompts))}
            for name, path in names.items():
                file = folder / f"completions_{name}.jsonl"
                if not file.exists():
                    model, _, _ = load_policy(replace(policy, model_name_or_path=path), tokenizer)
                    device = "cpu" if training.use_cpu or not torch.cuda.is_available() else "cuda"
                    quantised = policy.load_in_4bit or policy.load_in_8bit
                    generate(
                        model if quantised else model.to(device), tokenizer, prompts, name=name,
                        max_new_tokens=training.max_completion_length or 1,
                        temperature=script.win_rate_temperature, seed=script.eval_seed,
                    ).write(file)  # fmt: skip
                decoding = describe_decoding(
                    training.max_completion_length or 1, script.win_rate_temperature, script.eval_seed
                )
                systems[name] = replace(read_system(str(file), "completions", name), decoding=decoding)
            scorer = RewardScorer.from_pretrained(
                models["judge"], setting="--judge_model_name_or_path", output=TASK.output
            )
            name = f"held-out judge ({judge_identity})" if "judge" in stages else models["judge"]
            judge = RewardJudge(scorer, scorer.describe(name))
            summaries, folders = [], []
            for a, b in PAIRINGS:
                result = compare(systems[a], systems[b], judge, seed=script.eval_seed)
                result.write(folder / f"{a}-{b}")
                folders.append(folder / f"{a}-{b}")
                summaries.append(result.summary)
            written = write_win_rate_report(folders, folder)
            return {"comparisons": summaries, "files": [str(file.relative_to(folder)) for file in written]}

    return run_stage(root, f"winrate-{stages['rl'].folder.name.rsplit('-', 1)[0]}", inputs, work, console)


def _finish(stages: dict[str, Stage], training: ScopeGRPOConfig, console: Console) -> None:
    """The win rates into the run's evaluation, report and card; the push, which is the last to happen."""
    run = RunFolder(stages["rl"].folder)
    evaluation = run.read_evaluation() or {}
    comparisons = stages["winrate"].results["comparisons"]
    if evaluation.get("win_rates") != comparisons:
        run.write_evaluation({**evaluation, "win_rates": comparisons})
        if any("kl" in row for row in run.read_metrics()):  # GRPO without a KL term logs none
            plot_over_optimisation([run.path], run.path / "over_optimisation.png")
        write_report(run.path)
        write_model_card(run.path, stages["rl"].model, load_path=training.hub_model_id)
    for summary in comparisons:
        console.print(result_table(summary))
    if training.hub_model_id:
        push_model(stages["rl"].model, training)
        console.print(f"pushed to {training.hub_model_id}")
