"""What `--help` prints for the commands that the experiments parse."""

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
  --rollout_dtype bfloat16          sample with bfloat16 weights, where the machine has it; what else the README's
                                    section Speed lists is on already

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

PASSK_HELP = """\
usage: scope-rlhf passk --model_name_or_path A [B ...] [--dataset_name NAME] [--flag value ...]

Avg@k and Pass@k (unbiased, with intervals over prompts) of systems on the same verifiable problems, the paired
difference to the first one, a table and the curve over k. Unknown flags are errors.

systems
  --model_name_or_path SYSTEM ...   models (Hub name, folder, adapter, embedded name) or files of completions (.jsonl,
                                    .json, .csv, .parquet: prompt, completion, and correct or answer)
  --names NAME ...                  what the results call them

problems (those of the first file of completions, where there is one)
  --dataset_name NAME               arithmetic (default), letters, a Hub math set such as HuggingFaceH4/MATH-500, a file
                                    or folder
  --task_kwargs JSON                of arithmetic and letters, such as '{"digits": [2, 3], "operators": "+-*"}'
  --dataset_test_split NAME         default: test          --dataset_config NAME
  --prompt_column NAME              default: prompt, problem or question
  --answer_column NAME              default: answer, final_answer or solution
  --instruction TEXT                stands behind each prompt of a Hub set or files
  --num_prompts N                   default: 256 of a dataset, all of a file; 0: all

verifier
  --verifier NAME                   exact_answer (default of arithmetic and letters), math_answer (default of others,
                                    needs `pip install "scope-rlhf[math]"`), FILE.py:FUNCTION or MODULE:FUNCTION, a
                                    reward function as of TRL; given, it replaces the column correct of files
  --correct_threshold X             for verifiers with other numbers than 0 and 1: right from X on

completions of models
  --num_samples N                   of each prompt, default 32   --k N ...   default: those of 1 8 32 up to the samples
  --temperature X                   default 1; 0 with --num_samples 1 is the greedy accuracy
  --max_new_tokens N                default 48             --use_chat_template true
  --batch_size N                    --dtype float32|bfloat16|float16|auto

run
  --output_dir DIR                  the same one again goes on with the systems that are not done
  --confidence X                    --seed N
"""
