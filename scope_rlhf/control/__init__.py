"""Layer 3: PPO, A2C and DQN on games and robots, with the objectives and critics of the language-model trainers."""
