"""Scope Loss's classification table (arXiv 2308.04024): cross-entropy, policy entropy, focal and scope over seeds.

    python recipes/caltech256.py                       # digits in a long tail: half a minute, no download
    python recipes/caltech256.py --rows all --seeds 10 # with remedies against imbalance and an alpha sweep: 10 minutes

Caltech-256 is a folder of 257 class folders (30,607 images) from https://data.caltech.edu/records/nyy15-4j048, by
default ./256_ObjectCategories; ResNet-101 from random weights, on a GPU:

    python recipes/caltech256.py --config recipes/configs/caltech256_scope_table1.yaml --dataset_name FOLDER
    python recipes/caltech256.py --config recipes/configs/caltech256_scope_table2.yaml --dataset_name FOLDER

The published numbers stand beside ours; they are of one run each, without intervals. One run instead of a table, and
several processes: `torchrun --nproc_per_node 2 -m scope_rlhf.cli vision ...`.
"""

import sys

from scope_rlhf.runtime import run_main


def main(argv: list[str]) -> int:
    from scope_rlhf.experiments.vision_table import main as experiment

    return experiment(argv)


if __name__ == "__main__":
    sys.exit(run_main(main))
