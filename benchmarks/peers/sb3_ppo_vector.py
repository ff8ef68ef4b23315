"""PPO of Stable-Baselines3 on vector observations: any Gymnasium id with Box observations, Discrete or Box actions.

    python benchmarks/peers/sb3_ppo_vector.py --env_id CartPole-v1 --num_envs 8 --num_steps 128 --num_mini_batches 4 \\
        --num_ppo_epochs 4 --learning_rate 2.5e-4 --linear_lr --total_timesteps 100000 --output cartpole.json

MlpPolicy (two tanh layers of 64 each for policy and value), environments in one process (DummyVecEnv). Flags have TRL's
names; their defaults are Stable-Baselines3's own. --normalize is VecNormalize: observations and rewards in training,
observations only, with frozen statistics, in the evaluation. The evaluation has 20 episodes on environments of its own
with the most probable action. Returns there and in the curve come from Monitor: unnormalised.
"""

import argparse
from pathlib import Path

import torch
from result import check_length, write_result
from sb3_meter import MeterCallback
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

# Ours and TRL's name: Stable-Baselines3's.
NAMES = {
    "num_steps": "n_steps", "num_ppo_epochs": "n_epochs", "gamma": "gamma", "lam": "gae_lambda",
    "cliprange": "clip_range", "ent_coef": "ent_coef", "vf_coef": "vf_coef", "max_grad_norm": "max_grad_norm",
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env_id", default="CartPole-v1")
    parser.add_argument("--total_timesteps", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    parser.add_argument("--num_envs", type=int, default=1)
    parser.add_argument("--num_steps", type=int, default=2048, help="of each environment in a rollout")
    parser.add_argument("--num_mini_batches", type=int, default=32, help="of an epoch")
    parser.add_argument("--num_ppo_epochs", type=int, default=10)
    parser.add_argument("--learning_rate", type=float, default=3e-4)
    parser.add_argument("--linear_lr", action="store_true", help="learning rate linear to 0")
    parser.add_argument("--gamma", type=float, default=0.99)
    parser.add_argument("--lam", type=float, default=0.95, help="of GAE")
    parser.add_argument("--cliprange", type=float, default=0.2)
    parser.add_argument("--ent_coef", type=float, default=0.0)
    parser.add_argument("--vf_coef", type=float, default=0.5)
    parser.add_argument("--max_grad_norm", type=float, default=0.5)
    parser.add_argument("--normalize", action="store_true", help="VecNormalize")
    parser.add_argument("--eval_episodes", type=int, default=20)
    parser.add_argument("--output", type=Path, required=True, help="JSON file")
    args = parser.parse_args()
    steps = args.num_envs * args.num_steps
    check_length(args.total_timesteps, steps)
    if steps % args.num_mini_batches:
        raise ValueError(f"a rollout of {steps} steps does not split into --num_mini_batches {args.num_mini_batches}")
    torch.set_num_threads(args.threads)
    training = make_vec_env(args.env_id, args.num_envs, seed=args.seed, vec_env_cls=DummyVecEnv)
    apart = make_vec_env(args.env_id, 1, seed=args.seed + 10_000, vec_env_cls=DummyVecEnv)
    if args.normalize:
        training = VecNormalize(training, gamma=args.gamma)
        apart = VecNormalize(apart, gamma=args.gamma, training=False, norm_reward=False)
    settings = {theirs: getattr(args, ours) for ours, theirs in NAMES.items()}
    settings["batch_size"] = steps // args.num_mini_batches
    rate = LinearSchedule(args.learning_rate, 0.0, 1.0) if args.linear_lr else args.learning_rate
    model = PPO("MlpPolicy", training, learning_rate=rate, seed=args.seed, device="cpu", **settings)
    callback = MeterCallback()
    model.learn(args.total_timesteps, callback=callback)
    if args.normalize:
        apart.obs_rms = training.obs_rms
    evaluation = []
    if args.eval_episodes:
        evaluation, _ = evaluate_policy(
            model, apart, args.eval_episodes, deterministic=True, return_episode_rewards=True
        )
    packages = ["stable_baselines3", "torch", "numpy", "gymnasium", "box2d", "mujoco"]
    write_result(
        args.output, "sb3", packages, vars(args) | settings, callback.meter, steps, callback.curve,
        [float(x) for x in evaluation],
    )  # fmt: skip


if __name__ == "__main__":
    main()
