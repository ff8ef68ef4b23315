"""The README's figures of the position fix come from a command that runs."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_command_shows_the_gap_of_gpt2_and_that_it_is_closed():
    command = [sys.executable, str(ROOT / "benchmarks" / "positions.py"), "--max_new_tokens", "8"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = {line.split("│")[1].strip(): line.split("│")[2:4] for line in done.stdout.splitlines() if "│" in line}
    assert float(rows["random GPT-2"][0]) > 0.1 > 1e-4 > float(rows["random GPT-2"][1])
    assert float(rows["embedded/reviews-gpt2"][0]) > 0.1 > 1e-4 > float(rows["embedded/reviews-gpt2"][1])
