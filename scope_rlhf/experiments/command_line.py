"""Command line over `--config file.yaml` over defaults, for any dataclasses; light to import."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from transformers.hf_argparser import HfArgumentParser

from scope_rlhf.runtime.settings import did_you_mean


def spell(argv: Sequence[str]) -> list[str]:
    """Flags with underscores, the spelling that is looked for here."""
    words = []
    for word in argv:
        name, equals, value = word.partition("=")
        words.append("--" + name[2:].replace("-", "_") + equals + value if word.startswith("--") else word)
    return words


def take_config(argv: list[str]) -> tuple[list[str], str | None]:
    """The command line without `--config file` or `--config=file`, and the file; of several the last."""
    rest, file, words = [], None, iter(argv)
    for word in words:
        if word == "--config":
            file = next(words, "")
        elif word.startswith("--config="):
            file = word.removeprefix("--config=")
        else:
            rest.append(word)
            continue
        if not file or file.startswith("--"):
            raise ValueError("--config needs a YAML file behind it.")
    return rest, file


class _Loader(yaml.SafeLoader):
    """A mapping that has a key twice is an error, where YAML takes the last one."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is there twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_config(path: str, *, env_names_setting: bool = False) -> dict[str, Any]:
    """The settings of a YAML file; what stands under `env` goes to the environment, as in TRL.

    env_names_setting: `env: <text>` is a setting of that name.
    """
    if not Path(path).is_file():
        raise ValueError(f"--config {path!r} is not a file.")
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"--config {path} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"--config {path} must hold settings as `name: value`, got {type(content).__name__}.")
    environment = {} if env_names_setting and isinstance(content.get("env"), str) else content.pop("env", {})
    if not isinstance(environment, dict):
        name = "be the name of an environment, or hold" if env_names_setting else "hold"
        raise ValueError(f"--config {path}: env must {name} variables as `NAME: value`, got {environment!r}.")
    os.environ.update({str(name): str(value) for name, value in environment.items()})
    for name, value in content.items():  # files beside this one
        if str(name).endswith("_config") and isinstance(value, str) and not Path(value).is_file():
            beside = Path(path).parent / value
            content[name] = str(beside) if beside.is_file() else value
    return content


class SettingsParser(HfArgumentParser):
    """A parser whose errors are one line, without the usage of a hundred flags."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; `--help` has the settings.")


def parse_settings(
    classes: tuple[type, ...],
    defaults: Mapping[str, Any],
    argv: Sequence[str],
    config: Mapping[str, Any],
    config_file: str | None,
    prog: str | None = None,
) -> tuple[Any, ...]:
    """One instance of each dataclass: the command line over the file's settings over the defaults.

    ValueError for a key or a flag that none of the classes has; abbreviated flags are such.
    """
    parser = SettingsParser(classes, prog=prog, allow_abbrev=False)  # pyright: ignore
    # Left to transformers, its quiet messages (quiet_libraries) would take the progress line with them.
    known = {action.dest for action in parser._actions}
    unused = [name for name in defaults if name not in known]
    if unused:
        raise ValueError(f"defaults that no setting takes: {unused}")
    if "disable_tqdm" in known:
        defaults = {"disable_tqdm": False, **defaults}
    for name, value in defaults.items():
        _set_default(parser, name, value)
    _set_from_config(parser, config, str(config_file))
    try:
        *found, rest = parser.parse_args_into_dataclasses(list(argv), return_remaining_strings=True)
    except ValueError as error:
        named = re.match(r"argument --(\w+)", str(error))
        if named is None or named[1] not in config or value_of(argv, f"--{named[1]}"):
            raise
        raise ValueError(f"--config {config_file}: {error}") from None
    if rest:
        known = [option for action in parser._actions for option in action.option_strings if "-" not in option[2:]]
        meant = did_you_mean(rest[0].partition("=")[0], known)
        raise ValueError(f"the command line has what no setting takes: {' '.join(rest)}{meant}")
    return tuple(found)


def _set_from_config(parser: HfArgumentParser, config: Mapping[str, Any], path: str) -> None:
    """Make the file's values the parser's defaults. Numbers go in as text, so that they are read as on the command
    line: `model_name_or_path: 5` is a name, and `max_steps: many` an error.
    """
    actions = {action.dest: action for action in reversed(parser._actions)}  # the first of each setting
    for name, value in config.items():
        action = actions.get(name)
        if action is None or name == "help":
            raise ValueError(f"--config {path}: unknown setting {name!r}{did_you_mean(name, actions)}")
        if value is None and action.default is not None:
            raise ValueError(f"--config {path}: {name} is empty; give a value, or leave the line out.")
        if isinstance(value, list) and action.nargs is None:
            raise ValueError(f"--config {path}: {name} takes one value, got the list {value!r}.")
        if isinstance(value, dict) and not name.endswith("_kwargs"):
            raise ValueError(f"--config {path}: {name} takes one value, got {value!r}.")
        if isinstance(value, int | float) and action.nargs in (None, "?"):
            value = str(value)
        elif action.nargs in ("+", "*") and not isinstance(value, list) and value is not None:
            value = [value]
        _set_default(parser, name, value)


def _set_default(parser: HfArgumentParser, name: str, value: Any) -> None:
    """For each action of the setting: a flag that is true by default has a second one, `--no_<flag>`, and argparse
    takes the default of the first.
    """
    for action in parser._actions:
        if action.dest == name:
            action.default, action.required = value, False


def value_of(argv: Sequence[str], flag: str) -> str | None:
    """The last value that the command line gives to the flag."""
    value = None
    for position, word in enumerate(argv):
        if word == flag and position + 1 < len(argv):
            value = argv[position + 1]
        elif word.startswith(f"{flag}="):
            value = word.removeprefix(f"{flag}=")
    return value


def is_given(argv: Sequence[str], config: dict[str, Any], name: str) -> bool:
    return name in config or value_of(argv, f"--{name}") is not None
