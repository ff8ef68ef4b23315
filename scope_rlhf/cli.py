"""The console script `scope-rlhf`. Heavy imports live inside the commands, so that --help is instant."""

import argparse
import sys
from collections.abc import Sequence

from scope_rlhf import __version__
from scope_rlhf.runtime.launch import run_main

TRAIN_HELP = """\
usage: scope-rlhf {algorithm} [--config FILE.yaml] [--flag value ...]

Train a language model with {name} and a policy objective of your choice. Without arguments: the embedded run, a small
GPT-2 on real film reviews, which needs no GPU and no Hub. The command line overrides --config, which overrides the
defaults; unknown flags and keys are errors.

model and data
  --model_name_or_path NAME         policy: Hub name, local folder or embedded model
  --dataset_name NAME               prompts: Hub name such as stanfordnlp/imdb
  --reward_model_name_or_path NAME  classifier whose score is optimised
  --judge_model_name_or_path NAME   held-out classifier, measured and never optimised
  --use_peft true|false             train a LoRA adapter (--lora_r, --lora_alpha, --lora_target_modules)

objective
  --objective NAME                  see `scope-rlhf objectives`; path/to/file.py:Class or module:Class for your own
  --objective_kwargs JSON           its parameters, such as '{{"alpha": 0.3}}'
{objective}
training
  --learning_rate X                 --max_steps N
  --num_generations N               completions for each prompt
  --per_device_train_batch_size N   completions in one forward pass
{training}
  --max_completion_length N         --temperature X
  --seed N

run
  --output_dir DIR                  run folder: config, metrics, samples, report, curves, model
  --save_steps N                    --resume_from_checkpoint DIR
  --eval_strategy steps             --load_best_model_at_end true, by the reward of --num_validation_prompts kept back
  --report_to wandb|tensorboard     --hub_model_id NAME, to push the model with its card

  --config FILE.yaml                defaults for any flag
  --traceback                       show the traceback of an error
  --help-all                        every flag of TRL and transformers
"""
GRPO_HELP = TRAIN_HELP.format(
    algorithm="grpo",
    name="GRPO",
    objective="""\
  --epsilon X, --epsilon_high X     clip of the probability ratio
  --beta X                          coefficient of the KL to the reference; 0 turns it off
""",
    training="  --gradient_accumulation_steps N   --num_iterations N",
)
PPO_HELP = TRAIN_HELP.format(
    algorithm="ppo",
    name="PPO",
    objective="""\
  --cliprange X                     clip of the probability ratio
  --kl_coef X                       coefficient of the KL in the reward; --kl_target N makes it adaptive

advantages and critic
  --advantage_estimator NAME        gae (with a critic), rloo or group (without)
  --gamma X, --lam X                of generalised advantage estimation
  --critic NAME                     mse, hl_gauss or two_hot; the last two need the range of the returns:
  --critic_kwargs JSON              such as '{"v_min": -0.5, "v_max": 1.5}'
  --vf_coef X                       --cliprange_value X   --critic_learning_rate X   --initial_value X
  --critic_path DIR                 go on with a saved critic, or with a value head of TRL <= 1.12
  --critic_backbone NAME            shared, adapter, or model with --critic_model_name_or_path NAME
  --value_warmup_steps N            train the critic alone first
  --whiten_rewards, --whiten_advantages, --score_clip X, --use_score_scaling true, --use_score_norm true
  --missing_eos_penalty X, --missing_eos_score X, --stop_token TEXT, --stop_token_id N
  --target_coef X                   add the NLL of reference completions (--target_column)
  --nan_reward drop                 leave rows without a finite reward out instead of stopping
""",
    training="""\
  --gradient_accumulation_steps N   --num_mini_batches N   --num_ppo_epochs N   (a rollout is the product of the first
                                    three, for each process)
  --total_episodes N                in place of --max_steps
  --target_kl X                     end the updates of a rollout early""",
)

CONTROL_HELP = """\
usage: scope-rlhf control [--suite NAME] [--env NAME] [--algorithm ppo|a2c|dqn] [--flag value ...]

Train on games and robots with the objectives and critics of the language-model trainers. Without arguments: PPO on
CartPole, one to two minutes on a laptop. The command line overrides --config, which overrides the defaults of suite and
algorithm; unknown flags and keys are errors.

environment
  --suite NAME                      atari, procgen, mujoco, box2d, classic, or gymnasium (any registered id)
  --env NAME                        Breakout, StarPilot, HalfCheetah, LunarLander, CartPole, module:Id-v0, ...
  --protocol NAME                   Atari: v5 (sticky actions), NoFrameskip-v4, v0; Procgen: easy, hard, extreme
  --backend NAME                    ale, envpool, gymnasium      --env_kwargs JSON    --episodic_life true|false
  --num_envs N                      --total_timesteps N          --repeat_action_probability P (sticky actions)

objective and critic
  --objective NAME                  see `scope-rlhf objectives`; path/to/file.py:Class or module:Class for your own
  --objective_kwargs JSON           its parameters, such as '{"alpha": 0.3}'
  --critic NAME                     mse, hl_gauss, two_hot, and c51 for dqn; all but mse need the range of the returns:
  --critic_kwargs JSON              such as '{"v_min": -10, "v_max": 10}'
  --ent_coef X                      --vf_coef X

training
  --learning_rate X                 --lr_scheduler_type linear|constant     --max_grad_norm X    --gamma X   --lam X
  --num_steps N                     --num_ppo_epochs N    --num_mini_batches N    --cliprange X    --target_kl X
  --clip_scheduler_type NAME        linear or constant    --whiten_advantages minibatch|rollout|no
  --cliprange_value X               --adam_epsilon X      a2c: --optimizer rmsprop|adam, --optimizer_epsilon X
  --network NAME                    nature, impala, mlp   --hidden_sizes N N      --bf16 true
  --policy NAME                     categorical, binned (--bins 11, --per_dimension), gaussian
  --buffer_size N                   dqn, with --learning_starts, --train_frequency, --target_update_frequency,
                                    --batch_size, --exploration_initial, --exploration_steps, --exploration_final,
                                    --eval_epsilon, --double
  --clip_rewards, --normalize_observations, --normalize_rewards
  --reward_flip_probability P       --reward_noise_std X: noise, in training only

run
  --output_dir DIR                  run folder: config, metrics, curves, report, checkpoints
  --save_steps N                    --save_total_limit N  --resume, or --resume_from_checkpoint DIR
  --allow_objective_change true     resume with another objective
  --num_eval_episodes N             --eval_steps N        --eval_sampling true    --eval_seed N   --video mp4|gif
  --report_to NAME                  tensorboard, wandb, trackio             --logging_steps N
  --num_threads N                   --seed N

  --config FILE.yaml                defaults for any flag
  --traceback                       show the traceback of an error
"""

VISION_HELP = """\
usage: scope-rlhf vision [--dataset_name NAME] [--objective NAME] [--flag value ...]
       scope-rlhf vision table [--rows ROW ...] [--seeds N] [--flag value ...]

Classify images with the objectives of the trainers: the label is the action, its advantage is one. Without arguments:
scikit-learn's digits, cut to a long tail, in seconds. `table` trains every row over seeds and compares them. The
command line overrides --config, which overrides the defaults; unknown flags and keys are errors.

data
  --dataset_name NAME               digits (embedded), a folder of class folders (or of train, val, test with such), or
                                    a Hub image dataset with --image_column, --label_column, --dataset_config
  --split_file FILE                 the split: read where it exists, else written; --split_seed N
  --validation_fraction X           --test_fraction X
  --imbalance_ratio X               cut the training part to a long tail; --imbalance_type exp|step
  --corrupt_images error|skip       --cache_dir DIR       --cache_images true|false
  --image_size N                    --resize_size N       --augmentation none|crop_flip|paper
  --color_std X, --contrast_std X, --brightness_std X, --sharpness_std X, --flip_probability X

objective and network
  --objective NAME                  see `scope-rlhf objectives`; ppo is cross-entropy here; path/to/file.py:Class
  --objective_kwargs JSON           its parameters, such as '{"alpha": 0.3}'; scope has alpha 1 here
  --long_tail NAME                  none, class_balanced, logit_adjustment, balanced_softmax, ldam_drw,
                                    balanced_sampling; --long_tail_kwargs JSON
  --network NAME                    cnn, resnet18, resnet50, resnet101; --model_name_or_path NAME for a pretrained one

training
  --num_train_epochs N              --per_device_train_batch_size N         --per_device_eval_batch_size N
  --optim adam|adamw|sgd            --learning_rate X     --lr_scheduler_type constant|cosine|linear
  --warmup_steps N                  --weight_decay X      --momentum X      --max_grad_norm X     --bf16 true
  --metric_for_best_model NAME      --early_stopping_patience N             --early_stopping_threshold X
  --dataloader_num_workers N        --num_threads N       --seed N

run
  --output_dir DIR                  run folder: config, split, metrics, best model, evaluation, report, checkpoints
  --save_steps N                    --save_total_limit N  --resume, or --resume_from_checkpoint DIR
  --allow_objective_change true     resume with another objective
  --report_to NAME                  tensorboard, wandb, trackio             --logging_steps N   --disable_tqdm true

table
  --rows ROW ...                    sets (paper, catalogue, remedies, alphas, all) or single rows: an objective, its
                                    parameters as JSON behind it, ` + ` and a remedy: 'scope {"alpha": 0.3} + ldam_drw'
  --seeds N                         1 to N; --first_seed N      --jobs N: runs at a time
  --published table1|table2         the column of published numbers

  --config FILE.yaml                defaults for any flag
  --traceback                       show the traceback of an error
"""

PROMPTS_HELP = """\
prompts (those of a file of completions, where there is one)
  --dataset_name NAME               documentation (embedded), Hub name such as trl-lib/tldr, file or folder
  --dataset_test_split NAME         default: validation (documentation: its part eval)
  --num_prompts N                   default: 256 of a dataset, all of a file; 0: all
  --max_prompt_length N             tokens, default 192; a longer prompt of a dataset ends at its last line that fits

completions of models
  --max_new_tokens N                default 48             --temperature X, default 0: greedy
  --batch_size N                    --dtype float32|bfloat16|float16|auto

run
  --output_dir DIR                  the same one again goes on where it was interrupted
  --confidence X                    --seed N
"""
WINRATE_HELP = (
    """\
usage: scope-rlhf winrate --system_a A --system_b B --judge_... [--flag value ...]

How often a judge prefers system A to system B. Every pair is judged in both orders; a Markdown table, a picture and a
page of the pairs with what the judge said. Unknown flags are errors.

systems
  --system_a SYSTEM                 file of completions (.jsonl, .json, .csv, .parquet: prompt, completion, and ended
  --system_b SYSTEM                 where known), model (Hub name, folder, adapter, embedded name), `references` of the
                                    dataset, or `shuffled-references`
  --name_a NAME, --name_b NAME      what the results call them

judge, one of
  --judge_model_name_or_path NAME   reward model; --tie_margin X
  --judge_function FILE.py:NAME     function (prompt, first, second) -> "first", "second" or "tie"
  --judge_pipeline NAME             language model on this machine
  --judge_base_url URL              OpenAI-compatible endpoint, with --judge_model NAME; the key comes from the
                                    environment (--judge_api_key_variable NAME, default OPENAI_API_KEY)

what language models are asked
  --judge_wording FILE              with the fields {prompt}, {first}, {second}; answer: Preferred: A, B or tie
  --judge_max_new_tokens N          --judge_temperature X   --judge_api chat|completions
  --judge_timeout SECONDS           --judge_retries N       --judge_concurrency N
  --price_prompt X                  --price_completion X, of a million tokens, for the log of costs
  --max_invalid X                   share of pairs without a readable verdict above which the run fails, default 0.1

"""
    + PROMPTS_HELP
)

EVALUATE_HELP = (
    """\
usage: scope-rlhf evaluate --systems A [B ...] [--flag value ...]
       scope-rlhf evaluate --run_dir RUN [RUN ...]

Rewards, KL to the reference, perplexity, distinct-2, length and ROUGE of systems on the same prompts, with the paired
difference to the first one; or the over-optimisation curve of run folders: training reward and held-out judge against
KL. Unknown flags are errors.

systems
  --systems SYSTEM ...              as for `scope-rlhf winrate`: files of completions, models, references
  --names NAME ...                  what the results call them
  --reward_model_name_or_path NAME  reward model that was trained against
  --judge_model_name_or_path NAME   held-out reward model
  --reference_model_name_or_path NAME   for KL and perplexity; an adapter has its own base

runs
  --run_dir RUN_DIR ...             draw over_optimisation.png from their logs

"""
    + PROMPTS_HELP
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0, 1 for a failed check, 2 for a user's mistake."""
    return run_main(_dispatch, argv)


def build_parser() -> argparse.ArgumentParser:
    """All commands except the flags of grpo, ppo, control, winrate and evaluate, which the experiments parse."""
    parser = argparse.ArgumentParser(
        prog="scope-rlhf",
        description="RLHF with exchangeable policy objectives.",
        epilog="`--traceback`, or SCOPE_RLHF_TRACEBACK=1, shows the traceback of an error.",
    )
    parser.add_argument("--version", action="version", version=f"scope-rlhf {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)

    commands.add_parser("grpo", help="train with GRPO and any objective", add_help=False)
    commands.add_parser("ppo", help="train with PPO, any objective and any critic", add_help=False)
    commands.add_parser("control", help="PPO, A2C or DQN on Atari, Procgen, MuJoCo, Box2D", add_help=False)
    commands.add_parser("vision", help="image classification with any objective, long tails", add_help=False)
    commands.add_parser("winrate", help="compare two systems by a judge", add_help=False)
    commands.add_parser("evaluate", help="rewards, KL and ROUGE of systems; over-optimisation of runs", add_help=False)

    objectives = commands.add_parser(
        "objectives",
        help="list the objectives, or check your own",
        description="Without a subcommand: names, parameters with their defaults, and formulas.",
    )
    actions = objectives.add_subparsers(dest="action", metavar="action")
    check = actions.add_parser(
        "check",
        help="run the contract on an objective",
        description="Run the contract of objectives: gradients, masks, extremes, dtypes, pickling. Exit status 1 if a "
        "check fails.",
    )
    check.add_argument("objective", metavar="NAME", help="catalogue name, path/to/file.py:Class, or module:Class")
    check.add_argument("--objective_kwargs", metavar="JSON", help="parameters, such as '{\"alpha\": 0.3}'")

    commands.add_parser("env", help="versions for a bug report", description="Versions and the machine. No network.")

    report = commands.add_parser(
        "report", help="rewrite the report of run folders", description="Rewrite report.md and curves.png."
    )
    report.add_argument("runs", nargs="+", metavar="RUN_DIR")

    frontier = commands.add_parser(
        "frontier",
        help="draw score against KL over several runs",
        description="One line for each objective through its KL coefficients, from finished run folders.",
    )
    frontier.add_argument("runs", nargs="+", metavar="RUN_DIR")
    frontier.add_argument("--output", default="frontier.png", metavar="FILE.png", help="default: frontier.png")
    frontier.add_argument("--metric", default="judge", help="metric of evaluation.json on the y axis; default: judge")
    return parser


def _dispatch(argv: list[str]) -> int | None:
    if argv and argv[0] in ("grpo", "ppo"):
        return _train(argv[0], argv[1:])
    if argv and argv[0] == "control":
        return _control(argv[1:])
    if argv and argv[0] == "vision":
        return _vision(argv[1:])
    if argv and argv[0] in ("winrate", "evaluate"):
        return _measure(argv[0], argv[1:])
    arguments = build_parser().parse_args(argv)
    if arguments.command == "objectives":
        return _check(arguments) if arguments.action == "check" else _list_objectives()
    return {"env": _environment, "report": _report, "frontier": _frontier}[arguments.command](arguments)


def _train(algorithm: str, argv: list[str]) -> int | None:
    if {"-h", "--help"} & set(argv):
        print(GRPO_HELP if algorithm == "grpo" else PPO_HELP, end="")
        return 0
    from scope_rlhf.experiments import imdb

    return imdb.main(["--help"] if "--help-all" in argv else argv, f"scope-rlhf {algorithm}", algorithm)


def _control(argv: list[str]) -> int:
    if {"-h", "--help"} & set(argv):
        print(CONTROL_HELP, end="")
        return 0
    from scope_rlhf.experiments.control import main

    return main(argv, "scope-rlhf control")


def _vision(argv: list[str]) -> int:
    if {"-h", "--help"} & set(argv):
        print(VISION_HELP, end="")
        return 0
    from scope_rlhf.experiments.vision import main

    return main(argv, "scope-rlhf vision")


def _measure(command: str, argv: list[str]) -> int:
    if {"-h", "--help"} & set(argv):
        print(WINRATE_HELP if command == "winrate" else EVALUATE_HELP, end="")
        return 0
    if command == "winrate":
        from scope_rlhf.experiments.win_rate import main
    else:
        from scope_rlhf.experiments.evaluate import main

    return main(argv, f"scope-rlhf {command}")


def _list_objectives() -> None:
    from dataclasses import fields, is_dataclass

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from scope_rlhf.objectives import OBJECTIVES

    table = Table("name", "parameters", "loss per decision, minimised", show_lines=True)
    for name, objective in OBJECTIVES.items():
        parameters = [f"{field.name}={field.default}" for field in fields(objective)] if is_dataclass(objective) else []
        table.add_row(name, Text("\n".join(parameters)), Text(objective.formula))
    console = Console()
    console.print(table)
    console.print(
        "Your own: --objective path/to/file.py:Class or module:Class; "
        "`scope-rlhf objectives check` runs the contract on it.",
        markup=False,
        highlight=False,
    )


def _check(arguments: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from scope_rlhf.objectives import check_objective, make_objective
    from scope_rlhf.runtime.settings import json_object

    objective = make_objective(
        arguments.objective, **(json_object("objective_kwargs", arguments.objective_kwargs) or {})
    )
    results = check_objective(objective)
    table = Table("", "check", "")
    for result in results:
        verdict = Text("passed", "green") if result.passed else Text("FAILED", "bold red")
        table.add_row(verdict, result.name, Text(result.detail))
    failed = sum(not result.passed for result in results)
    console = Console()
    console.print(table)
    summary = f"{failed} of {len(results)} checks failed" if failed else f"all {len(results)} checks passed"
    console.print(f"{arguments.objective}: {summary}", markup=False, highlight=False)
    return 1 if failed else 0


def _environment(_: argparse.Namespace) -> None:
    from scope_rlhf.runtime.environment import device_name, environment_report

    report = environment_report()
    report["device"] = device_name() if report["torch"] != "not installed" else "unknown without torch"
    for name, value in report.items():
        print(f"- {name}: {value}")


def _report(arguments: argparse.Namespace) -> None:
    from scope_rlhf.reports.control import is_control_run, plot_control_curves, write_control_report
    from scope_rlhf.reports.curves import plot_curves
    from scope_rlhf.reports.run_report import write_report
    from scope_rlhf.reports.vision import is_vision_run, plot_confusion, plot_vision_curves, write_vision_report

    for run in arguments.runs:
        if is_vision_run(run):
            print(plot_vision_curves(run), plot_confusion(run), write_vision_report(run), sep="\n")
            continue
        control = is_control_run(run)
        # The report links the picture, so the picture comes first.
        print(plot_control_curves(run) if control else plot_curves(run))
        print(write_control_report(run) if control else write_report(run))


def _frontier(arguments: argparse.Namespace) -> None:
    from scope_rlhf.reports.frontier import plot_frontier, read_frontier

    names = {"judge": "held-out judge, mean score", "reward": "training reward, mean score"}
    points = read_frontier(arguments.runs, arguments.metric)
    print(plot_frontier(points, arguments.output, names.get(arguments.metric, arguments.metric)))


if __name__ == "__main__":
    sys.exit(main())
