"""RLHF on the Hugging Face stack with exchangeable policy objectives. Importing the package loads nothing else."""

__version__ = "0.1.0"
