"""Environments by name: what is found, what is refused with the nearest names, and what is missing."""

import sys
from importlib.util import find_spec
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from scope_rlhf.control.environments import make_environments, make_single, resolve_environment
from scope_rlhf.control.probe import probe_film, probe_spaces

spaces = gymnasium.spaces


@pytest.fixture
def lacking(monkeypatch):
    """lacking("mujoco"): those packages cannot be found, all others can."""

    def hide(*packages):
        # What is there cannot be told from a name alone: envpool and others are not installed everywhere.
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name in packages else find_spec("json"))

    return hide


@pytest.mark.parametrize(
    ("suite", "name", "given", "message"),
    [
        ("atary", "Pong", {}, "suite 'atary' is unknown, did you mean atari?; valid: atari, procgen, mujoco, box2d"),
        ("classic", "", {}, "suite classic needs the name of an environment; set --env."),
        ("classic", "CartPole", {"backend": "ale"}, "'ale' given, suite classic has gymnasium, envpool; set --backend"),
        ("procgen", "CoinRun", {"backend": "gymnasium"}, "backend 'gymnasium' given, suite procgen has envpool"),
        ("gymnasium", "CartPole", {"backend": "envpool"}, "suite gymnasium has gymnasium; set --backend"),
        ("classic", "CartPool", {}, "'CartPool' is not in suite classic, did you mean CartPole"),
        ("classic", "CartPole-v7", {}, "'CartPole-v7' is not in suite classic, did you mean CartPole"),
        ("classic", "Hopper", {}, "'Hopper' is not in suite classic"),
        ("classic", "Nothing", {}, "valid: Acrobot, CartPole, MountainCar, MountainCarContinuous, Pendulum; set --env"),
        ("gymnasium", "LunarLandre-v3", {}, "'LunarLandre-v3' is not in suite gymnasium, did you mean LunarLander"),
        ("classic", "CartPole", {"protocol": "v5"}, "protocol='v5' given, but suite classic has none"),
        ("classic", "CartPole", {"episodic_life": True}, "episodic_life=True given, but only suite atari has lives"),
        ("gymnasium", "no_such_module:Own-v0", {}, "there is no module 'no_such_module' to import; set --env."),
        ("gymnasium", ":Own-v0", {}, "env :Own-v0 must be module:Id, such as my_module:MyEnv-v0; set --env."),
        ("gymnasium", "json.nothing:Own-v0", {}, "there is no module 'json.nothing' to import; set --env."),
    ],
)
def test_what_is_not_there_is_refused_with_what_is(suite, name, given, message):
    with pytest.raises(ValueError) as error:
        resolve_environment(suite, name, **given)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("suite", "name", "given", "package", "extra"),
    [
        ("mujoco", "Hopper", {}, "mujoco", "mujoco"),
        ("box2d", "LunarLander", {}, "Box2D", "box2d"),
        ("box2d", "LunarLander", {}, "pygame", "box2d"),
        ("atari", "Pong", {}, "ale_py", "atari"),
        ("classic", "CartPole", {}, "gymnasium", "classic"),
        ("classic", "CartPole", {"backend": "envpool"}, "envpool", "envpool"),
        ("atari", "Pong", {"backend": "envpool"}, "envpool", "envpool"),
        ("procgen", "CoinRun", {}, "envpool", "procgen"),
    ],
)
def test_a_missing_package_is_named_with_the_extra_that_installs_it(lacking, suite, name, given, package, extra):
    lacking(package)
    with pytest.raises(ImportError) as error:
        resolve_environment(suite, name, **given)
    assert f"suite {suite} on backend" in str(error.value) and f"needs {package}." in str(error.value)
    assert f'`pip install "scope-rlhf[{extra}]"`' in str(error.value)


def test_every_extra_that_a_message_names_is_declared():
    import tomllib
    from pathlib import Path

    from scope_rlhf.control.environments import _NEEDS

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    extras = {extra for _, extra in _NEEDS.values()} | {"envpool", "video"}
    assert extras <= set(project["optional-dependencies"])


def test_a_name_without_a_version_is_the_newest_one_and_a_version_is_kept():
    versions = [int(i.rpartition("-v")[2]) for i in gymnasium.registry if i.startswith("Hopper-v")]
    assert len(versions) > 1
    assert resolve_environment("mujoco", "Hopper").name == f"Hopper-v{max(versions)}"
    assert resolve_environment("mujoco", "Hopper-v4").name == "Hopper-v4"
    assert resolve_environment("box2d", "LunarLander").name == "LunarLander-v3"


def test_the_tenth_version_is_newer_than_the_ninth(monkeypatch):
    spec = gymnasium.spec("CartPole-v1")
    for version in (9, 10):
        monkeypatch.setitem(gymnasium.registry, f"CartPole-v{version}", spec)
    assert resolve_environment("classic", "CartPole").name == "CartPole-v10"


def test_an_id_that_only_looks_like_a_version_is_no_version(monkeypatch):
    monkeypatch.setitem(gymnasium.registry, "CartPole-vision", gymnasium.spec("CartPole-v1"))
    assert resolve_environment("classic", "CartPole").name == "CartPole-v1"


@pytest.mark.parametrize(
    ("suite", "name", "observations", "actions"),
    [
        ("classic", "CartPole", (4,), spaces.Discrete(2)),
        ("classic", "Pendulum", (3,), spaces.Box(-2, 2, (1,), np.float32)),
        ("mujoco", "Hopper", (11,), spaces.Box(-1, 1, (3,), np.float32)),
        ("box2d", "LunarLander", (8,), spaces.Discrete(4)),
        ("atari", "Breakout", (4, 84, 84), spaces.Discrete(4)),
    ],
)
def test_spaces_are_probed_without_a_run(suite, name, observations, actions):
    if suite in ("mujoco", "atari"):
        pytest.importorskip({"mujoco": "mujoco", "atari": "ale_py"}[suite])
    if suite == "box2d":
        pytest.importorskip("Box2D")
    observation_space, action_space = probe_spaces(resolve_environment(suite, name))
    assert observation_space.shape == observations and action_space == actions


OWN = """
import gymnasium
import numpy as np

class Corridor(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(0, 9, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(3)

    def __init__(self, length=4, render_mode=None):
        self.length = length

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.x += 1
        return np.full(1, self.x, np.float32), float(action), self.x == self.length, False, {}

gymnasium.register("ScopeCorridor-v0", entry_point=Corridor)
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module of the user's that registers its environment when it is imported."""
    (tmp_path / "scope_corridor.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "scope_corridor"
    sys.modules.pop("scope_corridor", None)
    gymnasium.registry.pop("ScopeCorridor-v0", None)


@pytest.mark.parametrize("name", ["ScopeCorridor-v0", "ScopeCorridor"])
def test_an_environment_of_ones_own_is_imported_and_gets_its_keywords(own, name):
    spec = resolve_environment("gymnasium", f"{own}:{name}", env_kwargs={"length": 3})
    assert spec.name == "ScopeCorridor-v0"
    environments = make_environments(spec, 2, 0)
    environments.reset(0)
    steps = [environments.step(np.array([1, 2])) for _ in range(4)]
    assert [step.terminated.tolist() for step in steps] == [[False] * 2] * 2 + [[True] * 2, [False] * 2]
    assert [(e.episodic_return, e.length) for e in steps[2].episodes] == [(3.0, 3), (6.0, 3)]
    assert not steps[3].counts.any()
    environments.close()
    assert probe_spaces(spec)[1] == spaces.Discrete(3)


def test_a_module_of_ones_own_that_lacks_another_one_says_which(tmp_path, monkeypatch):
    (tmp_path / "scope_lacking.py").write_text("import no_such_library_here")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ImportError, match="env scope_lacking:Own-v0: .*no_such_library_here"):
        resolve_environment("gymnasium", "scope_lacking:Own-v0")


def test_environments_of_a_seed_repeat_and_differ_from_each_other():
    spec = resolve_environment("classic", "Pendulum")
    first = []
    for seed in (3, 3, 4):
        environments = make_environments(spec, 2, seed)
        first.append(environments.reset(seed))
        environments.close()
    np.testing.assert_array_equal(first[0], first[1])
    np.testing.assert_array_equal(first[0][1], first[2][0])  # environment i has the seed + i
    assert (first[0][0] != first[0][1]).any()


def test_rewards_are_those_of_the_environment_itself():
    spec = resolve_environment("classic", "Pendulum")
    environments, single = make_environments(spec, 1, 0), gymnasium.make("Pendulum-v1")
    environments.reset(0)
    single.reset(seed=0)
    for _ in range(5):
        reward = float(single.step(np.array([0.5], dtype=np.float32))[1])
        step = environments.step(np.array([[0.5]], dtype=np.float32))
        assert step.rewards[0] == pytest.approx(reward) and reward < 0
    environments.close()


def test_procgen_has_no_single_environment_to_film():
    from scope_rlhf.control.environments import EnvironmentSpec

    with pytest.raises(ValueError, match="videos of Procgen are not offered"):
        make_single(EnvironmentSpec("procgen", "Coinrun", "envpool", "hard"))


class FakeEnvpool:
    """What envpool has for these tests: ids, and nothing that starts."""

    @staticmethod
    def list_all_envs():
        modes = ("Easy", "Hard", "Extreme")
        return ["CartPole-v1", *(f"{game}{mode}-v0" for game in ("Starpilot", "Coinrun") for mode in modes)]


@pytest.fixture
def envpool(lacking, monkeypatch):
    lacking()
    monkeypatch.setitem(sys.modules, "envpool", FakeEnvpool)
    monkeypatch.setattr("scope_rlhf.control.envpools._preload_qt", lambda: None)


@pytest.mark.parametrize(("mode", "expected"), [(None, "StarpilotHard-v0"), ("easy", "StarpilotEasy-v0")])
def test_procgen_names_are_found_in_any_spelling_and_modes_are_protocols(envpool, mode, expected):
    spec = resolve_environment("procgen", "StarPilot", protocol=mode)
    assert (spec.name, spec.envpool_id, spec.protocol) == ("Starpilot", expected, mode or "hard")


@pytest.mark.parametrize(
    ("suite", "name", "given", "message"),
    [
        ("procgen", "StarPliot", {}, "'StarPliot' is not in suite procgen, did you mean Starpilot"),
        ("procgen", "CoinRun", {"protocol": "v5"}, "protocol 'v5' is unknown; Procgen has easy, hard, extreme"),
        ("procgen", "CoinRun", {"env_kwargs": {"num_levels": -5}}, "num_levels=-5, expected a whole number >= 0"),
        ("classic", "Acrobot", {"backend": "envpool"}, "envpool has no 'Acrobot-v1'"),
    ],
)
def test_what_envpool_does_not_have_is_refused(envpool, suite, name, given, message):
    with pytest.raises(ValueError) as error:
        resolve_environment(suite, name, **given)
    assert message in str(error.value)


def test_envpool_takes_the_newest_id_that_gymnasium_knows(envpool):
    assert resolve_environment("classic", "CartPole", backend="envpool").envpool_id == "CartPole-v1"


@pytest.mark.parametrize(
    ("key", "instead"),
    [
        ("episodic_life", "--episodic_life"),
        ("reward_clipping", "--clip_rewards"),
        ("repeat_action_probability", "--repeat_action_probability"),
        ("batch_size", "leave it out"),
        ("render_mode", "--video"),
    ],
)
def test_env_kwargs_cannot_change_what_settings_promise(key, instead):
    with pytest.raises(ValueError, match=f"env_kwargs has '{key}'.*{instead}"):
        resolve_environment("classic", "CartPole", env_kwargs={key: 1})


@pytest.mark.parametrize(
    ("suite", "name", "kwargs", "cause"),
    [
        ("classic", "CartPole", {"gravity": 5}, "TypeError"),
        ("box2d", "LunarLander", {"gravity": 5}, "AssertionError"),
        ("mujoco", "Hopper", {"frame_skip": 0}, "ZeroDivisionError"),
        ("mujoco", "Hopper", {"reset_noise_scale": "x"}, "Error"),
        ("atari", "Breakout", {"nonsense": 1}, "TypeError"),
    ],
)
def test_env_kwargs_that_an_environment_cannot_take_are_told_with_its_own_words(suite, name, kwargs, cause):
    pytest.importorskip({"box2d": "Box2D", "mujoco": "mujoco", "atari": "ale_py"}.get(suite, "gymnasium"))
    spec = resolve_environment(suite, name, env_kwargs=kwargs)
    with pytest.raises(ValueError, match=rf"does not start with env_kwargs=.*{cause}.*set --env_kwargs"):
        probe_spaces(spec)


@pytest.mark.parametrize("kwargs", [{"stack_num": 0}, {"frameskip": -1}, {"frameskip": "x"}, {"img_width": 0.5}])
def test_counts_of_frames_that_are_none_are_refused_before_ale_hangs_on_them(kwargs):
    pytest.importorskip("ale_py")
    with pytest.raises(ValueError, match=r"expected a whole number >= 1; set --env_kwargs"):
        resolve_environment("atari", "Breakout", env_kwargs=kwargs)


def test_an_environment_that_renders_nothing_is_refused_for_a_film_before_the_training(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    pytest.importorskip("pygame")
    spec = resolve_environment("classic", "CartPole")
    probe_film(spec, probe_spaces(spec)[0])
    spec = resolve_environment("gymnasium", "bandit_environment:Bandit-v0")
    with pytest.raises(ValueError, match="cannot be filmed.*leave --video out"):
        probe_film(spec, probe_spaces(spec)[0])


@pytest.mark.parametrize(
    ("suite", "name", "right"),
    [
        ("mujoco", "CartPole", "classic"),
        ("gymnasium", "ALE/Breakout-v5", "atari"),
        ("classic", "Breakout", "atari"),
        ("classic", "PongNoFrameskip-v4", "atari"),
        ("atari", "CartPole", "classic"),
    ],
)
def test_an_environment_of_another_suite_is_refused_with_its_suite(suite, name, right, monkeypatch):
    if name.startswith("ALE/"):  # also where ale_py is not installed
        registry = {key: spec for key, spec in gymnasium.registry.items() if not key.startswith("ALE/")}
        monkeypatch.setattr(gymnasium, "registry", registry)
    elif "atari" in (suite, right):
        pytest.importorskip("ale_py")
    with pytest.raises(ValueError, match=f"not in suite {suite}, but in {right}; set --suite {right}"):
        resolve_environment(suite, name)
