import os

import pytest

from scope_rlhf.runtime.threads import available_cores


def test_the_cores_are_those_this_process_may_use_not_those_of_the_machine():
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("no affinity on this system")
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert available_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert available_cores() == len(allowed)
