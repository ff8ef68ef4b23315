import math

import pytest

from scope_rlhf.runtime.functions import load_function


def test_a_function_of_a_file_and_of_a_module_is_loaded(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def double(x):\n    return 2 * x\n")
    assert load_function(f"{file}:double", "--f")(3) == 6
    assert load_function("math:hypot", "--f") is math.hypot


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mine.py", "--f='mine.py': expected FILE.py:FUNCTION or MODULE:FUNCTION, and it names no function"),
        ("no/mine.py:f", "and no file 'no/mine.py' was found"),
        ("math:nothing", "math has no function 'nothing'"),
        ("math:pi", "math has no function 'pi'"),
        ("no_such_module_at_all:f", "does not import (ModuleNotFoundError: No module named 'no_such_module_at_all')"),
    ],
)
def test_what_is_not_there_is_named_with_the_setting(spec, message):
    with pytest.raises(ValueError) as error:
        load_function(spec, "--f")
    assert message in str(error.value)


def test_an_error_inside_the_file_is_told(tmp_path):
    file = tmp_path / "broken.py"
    file.write_text("1 / 0")
    with pytest.raises(ValueError, match="does not import .ZeroDivisionError: division by zero"):
        load_function(f"{file}:f", "--f")
