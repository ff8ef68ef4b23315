from dataclasses import dataclass, field

import pytest

from scope_rlhf.experiments.command_line import parse_settings, read_config, spell, take_config, value_of


@dataclass
class Settings:
    rate: float = 1.0
    on: bool = True
    off: bool = False
    names: list[str] = field(default_factory=list)
    maybe: int | None = None


def parse(argv=(), config=None, defaults=None):
    (settings,) = parse_settings((Settings,), defaults or {}, list(argv), config or {}, "c.yaml")
    return settings


@pytest.mark.parametrize("source", ["config", "defaults"])
def test_a_false_in_the_file_for_what_is_true_by_default_is_not_ignored(source):
    assert parse(**{source: {"on": False, "off": True}}) == Settings(on=False, off=True)
    assert parse(["--on", "true"], **{source: {"on": False}}) == Settings()
    assert parse(["--no_on"]) == Settings(on=False)


def test_the_command_line_goes_over_the_file_over_the_defaults():
    assert parse(config={"rate": 2}, defaults={"rate": 3.0}).rate == 2.0
    assert parse(["--rate", "1.0"], config={"rate": 2}, defaults={"rate": 3.0}).rate == 1.0
    assert parse(config={"names": "one"}).names == ["one"]
    assert parse(["--names", "a", "b"]).names == ["a", "b"]


def test_unknown_keys_flags_and_defaults_are_errors():
    with pytest.raises(ValueError, match=r"unknown setting 'rat', did you mean rate\?"):
        parse(config={"rat": 1})
    with pytest.raises(ValueError, match=r"what no setting takes: --rat 3, did you mean --rate\?"):
        parse(["--rat", "3"])
    with pytest.raises(ValueError, match="defaults that no setting takes"):
        parse(defaults={"rat": 1})


def test_env_is_a_setting_or_variables_as_the_experiment_has_it(tmp_path, monkeypatch):
    monkeypatch.setenv("SCOPE_TEST_VARIABLE", "0")
    file = tmp_path / "c.yaml"
    file.write_text("env: Breakout\n")
    assert read_config(str(file), env_names_setting=True) == {"env": "Breakout"}
    with pytest.raises(ValueError, match="env must hold variables"):
        read_config(str(file))
    for text in ("env: 3\n", "env:\n"):
        file.write_text(text)
        with pytest.raises(ValueError, match="env must be the name of an environment, or hold variables"):
            read_config(str(file), env_names_setting=True)
    file.write_text("env: {SCOPE_TEST_VARIABLE: 1}\nrate: 2\n")
    assert read_config(str(file), env_names_setting=True) == {"rate": 2}


def test_a_key_that_is_there_twice_is_an_error(tmp_path):
    """YAML takes the last one without a word."""
    file = tmp_path / "c.yaml"
    file.write_text("seed: 1\nrate: 2\nseed: 2\n")
    with pytest.raises(ValueError, match=r"(?s)is not YAML: 'seed' is there twice.*line 3"):
        read_config(str(file))
    file.write_text("base: &base {seed: 1}\nmore: {<<: *base, seed: 2}\n")
    assert read_config(str(file))["more"] == {"seed": 2}


def test_config_is_taken_out_and_the_last_value_counts():
    assert take_config(spell(["--a-b", "1", "--config=x.yaml", "--config", "y.yaml"])) == (["--a_b", "1"], "y.yaml")
    assert value_of(["--a", "1", "--a=2"], "--a") == "2"
    with pytest.raises(ValueError, match="needs a YAML file"):
        take_config(["--config", "--a"])


def test_a_value_of_the_wrong_type_is_one_line_and_names_the_file_it_comes_from(tmp_path, capsys):
    from scope_rlhf.experiments.control_arguments import parse_control

    with pytest.raises(ValueError, match=r"^argument --learning_rate.*: invalid float value: 'abc'"):
        parse_control(["--learning_rate", "abc"])
    path = tmp_path / "settings.yaml"
    path.write_text("num_envs: 1.5\n")
    with pytest.raises(ValueError, match=r"^--config .*settings.yaml: argument --num_envs.*: invalid int value: '1.5'"):
        parse_control(["--config", str(path)])
    assert capsys.readouterr().err == ""
