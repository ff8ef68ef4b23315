"""What the README shows is what the repository holds."""

import re
from dataclasses import fields
from pathlib import Path

from scope_rlhf.objectives import OBJECTIVES, make_objective
from scope_rlhf.objectives.contract import check_objective

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_example_objective_is_the_tested_file_and_passes_the_contract(tmp_path):
    example = re.search(r"<!-- example: (\S+) -->\n```python\n(.*?)```", README, re.DOTALL)
    assert example is not None
    path, code = example.groups()
    assert (ROOT / path).read_text(encoding="utf-8") == code
    assert len(code.splitlines()) <= 25
    (tmp_path / "copied.py").write_text(code, encoding="utf-8")
    results = check_objective(make_objective(f"{tmp_path / 'copied.py'}:QuadraticPenalty"))
    assert [r for r in results if not r.passed] == []


def test_every_objective_has_a_row_with_its_parameters():
    for name, cls in OBJECTIVES.items():
        row = next(line for line in README.splitlines() if line.startswith(f"| `{name}`"))
        for parameter in (field.name for field in fields(cls)):
            if name == "ppo" or parameter not in ("clip_low", "clip_high", "policy_coef"):
                assert f"`{parameter}`" in row, f"{name}: {parameter}"
