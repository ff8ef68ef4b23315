import subprocess
import sys
from importlib.metadata import version

import pytest

from scope_rlhf.runtime.environment import (
    command_line,
    describe_commit,
    environment_report,
    package_versions,
    source_commit,
)


@pytest.fixture
def checkout(tmp_path):
    def git(*arguments):
        identity = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init", "-q")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "module.py").write_text("x = 1\n")
    git("add", ".")
    git("commit", "-q", "-m", "one")
    return tmp_path


def test_commit_is_the_head_and_dirty_means_a_tracked_file_changed(checkout):
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=checkout, capture_output=True, text=True, check=True)
    (checkout / "notes.txt").write_text("untracked")
    assert source_commit(checkout / "package") == {"commit": head.stdout.strip(), "dirty": False}
    (checkout / "package" / "module.py").write_text("x = 2\n")
    assert source_commit(checkout / "package") == {"commit": head.stdout.strip(), "dirty": True}
    assert describe_commit(source_commit(checkout / "package")).endswith("with uncommitted changes")


def test_a_package_installed_inside_another_repository_has_no_commit(checkout, tmp_path_factory):
    installed = checkout / ".venv" / "scope_rlhf"
    installed.mkdir(parents=True)
    (installed / "__init__.py").touch()
    assert source_commit(installed) is None
    assert source_commit(tmp_path_factory.mktemp("plain")) is None
    assert describe_commit(None) == "not a git checkout"


def test_without_git_there_is_no_commit(checkout, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert source_commit(checkout / "package") is None


def test_report_names_versions_of_installed_and_absent_packages():
    report = environment_report()
    assert report["torch"] == version("torch")
    assert all(isinstance(value, str) for value in report.values())
    assert package_versions(("no-such-package-anywhere",)) == {"no-such-package-anywhere": None}


def test_report_imports_nothing_heavy():
    code = (
        "import sys; from scope_rlhf.runtime import environment_report; environment_report();"
        "print(*({'torch', 'numpy', 'transformers'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_recorded_command_hides_access_tokens(monkeypatch):
    monkeypatch.setattr("sys.argv", ["x.py", "--hub_token", "hf_secret", "--hub_token=hf_secret", "--eos_token", "e"])
    assert command_line() == ["x.py", "--hub_token", "<hidden>", "--hub_token=<hidden>", "--eos_token", "e"]
