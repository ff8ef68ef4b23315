import pytest

from scope_rlhf.runtime.settings import did_you_mean, json_object


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("cartpol", ", did you mean CartPole?"),
        ("Pendulum", ", did you mean Pendulum or InvertedPendulum?"),
        ("xyz", ""),
        (None, ""),
        (7, ""),
    ],
)
def test_the_nearest_names_whatever_their_case(given, said):
    assert did_you_mean(given, ["CartPole", "Pendulum", "InvertedPendulum"]) == said


def test_a_dictionary_is_taken_as_it_is_or_from_json():
    assert json_object("env_kwargs", None) is None
    assert json_object("env_kwargs", {"a": 1}) == {"a": 1}
    assert json_object("env_kwargs", '{"a": [1, null]}') == {"a": [1, None]}


@pytest.mark.parametrize("given", ["{a: 1}", "[1]", "", "5", 5, ["{}"], True])
def test_what_is_no_dictionary_is_refused_with_the_setting(given):
    with pytest.raises(ValueError, match="^env_kwargs must be a JSON object .*; set --env_kwargs"):
        json_object("env_kwargs", given)
