"""Summaries read from installed packages: what is read, what is left out, and that no page is in two parts."""

import re
import warnings

import pytest

from scope_rlhf.data import documentation
from scope_rlhf.data.documentation import (
    DOCUMENTATION_PARTS,
    Entry,
    documentation_corpus,
    documentation_part,
    documentation_versions,
    load_documentation,
    near_duplicates,
    read_docstring,
    read_package,
    select_entries,
)

# The mark comes every few words: two texts with different marks share no run of 13 words.
PROSE = (
    "The words of this paragraph, {0}, are many enough to count as a text, {0}, since they say what they are about "
    "in thirty words, {0}, that no other paragraph of this test has, namely {0} and {0}."
)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of three modules on the path; the cache lies in tmp_path."""
    folder = tmp_path / "paper_mill"
    (folder / "tests").mkdir(parents=True)
    (folder / "__init__.py").write_text('"""Not a function."""\n')
    (folder / "tests" / "more.py").write_text(
        f'def f():\n    """Left out, a test.\n\n    {PROSE.format("test")}\n    """\n'
    )
    for number in range(40):
        functions = "".join(
            f'def f{i}(x):\n    """Do the thing number {number} {i}.\n\n    {PROSE.format(f"m{number}f{i}")}\n    """\n'
            for i in range(3)
        )
        (folder / f"part{number:02}.py").write_text(functions)
    (folder / "broken.py").write_text("def f(:\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(documentation, "DOCUMENTATION_PACKAGES", ("paper_mill",))
    monkeypatch.setattr(documentation, "documentation_versions", lambda: {"paper_mill": "1.0"})
    monkeypatch.setattr(documentation.constants, "HF_HOME", str(tmp_path / "cache"))
    documentation.all_documentation.cache_clear()
    yield folder
    documentation.all_documentation.cache_clear()


def test_numpy_google_and_sphinx_docstrings_keep_their_prose_and_lose_the_rest():
    numpy_style = """Return the sum of two numbers.

    It adds them in the order in which they come.

    Parameters
    ----------
    x : float
        The first.

    Notes
    -----
    Addition commutes, as everybody knows.

    Examples
    --------
    >>> add(1, 2)
    3
    """
    text = "It adds them in the order in which they come.\n\nAddition commutes, as everybody knows."
    assert read_docstring(numpy_style) == ("Return the sum of two numbers.", text)
    google_style = """Return the sum of two
    numbers.

    It adds them.

    Args:
        x: The first.

    Returns:
        The sum.

        Of course.

    It never fails.

    .. note:: nothing

    ```python
    add(1, 2)
    ```
    """
    assert read_docstring(google_style) == ("Return the sum of two numbers.", "It adds them.\n\nIt never fails.")


@pytest.mark.parametrize("docstring", ["", "Too short", " ".join(["long"] * 31), ">>> code that is no summary"])
def test_a_docstring_without_a_summary_of_3_to_30_words_is_left_out(docstring):
    assert read_docstring(docstring) is None


def test_files_are_read_in_order_without_tests_and_without_those_that_do_not_parse(package):
    names = [name for _, name, _ in read_package("paper_mill")]
    assert names[:4] == ["paper_mill.part00.f0", "paper_mill.part00.f1", "paper_mill.part00.f2", "paper_mill.part01.f0"]
    assert len(names) == 120
    with pytest.raises(ImportError, match="'no_such_package', which 'documentation' reads, is not installed"):
        list(read_package("no_such_package"))


def test_a_module_is_in_one_part_and_the_cache_gives_the_same_entries(package, tmp_path):
    first = {part: load_documentation(part) for part in DOCUMENTATION_PARTS}
    assert sum(map(len, first.values())) == 120
    modules = [{e.module for e in entries} for entries in first.values()]
    assert sum(map(len, modules)) == len(set.union(*modules)) == 40
    documentation.all_documentation.cache_clear()
    (package / "part00.py").unlink()  # the cache is asked, not the files
    assert {part: load_documentation(part) for part in DOCUMENTATION_PARTS} == first
    (cache,) = (tmp_path / "cache" / "scope_rlhf").iterdir()
    cache.write_text(cache.read_text()[:-100])
    documentation.all_documentation.cache_clear()
    assert sum(len(load_documentation(part)) for part in DOCUMENTATION_PARTS) == 117


def test_a_cache_that_cannot_be_written_warns_and_goes_on(package, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="could not be cached"):
        assert len(load_documentation("policy")) > 0
    documentation.all_documentation.cache_clear()


def test_an_unknown_and_an_empty_part_are_refused_with_the_versions(package):
    with pytest.raises(ValueError, match="unknown part 'train' of documentation; valid parts: policy, judge"):
        load_documentation("train")
    for file in package.glob("part*.py"):
        if documentation_part(f"paper_mill.{file.stem}") == "eval":
            file.unlink()
    with pytest.raises(ValueError, match=r"part 'eval' of documentation is empty.*\{'paper_mill': '1.0'\}"):
        load_documentation("eval")


def test_copies_and_near_copies_share_a_group():
    words = " ".join(f"w{i}" for i in range(30))
    texts = [words, "new start " + " ".join(f"w{i}" for i in range(5, 30)), "other words entirely", "short", "short"]
    groups = near_duplicates(["s1", "s2", "s3", "s4", "s5"], texts)
    assert groups[0] == groups[1] and groups[3] == groups[4]
    assert len({groups[0], groups[2], groups[3]}) == 3
    by_summary = near_duplicates(["Same Summary.", "same   summary"], ["one text", "another text"])
    assert by_summary[0] == by_summary[1]


def other_module(part, inside=False):
    """The name of a module that lies in that part, or in any other."""
    return next(m for m in (f"m{i}" for i in range(1000)) if (documentation_part(m) == part) == inside)


def test_near_copies_outside_the_part_of_the_first_are_left_out():
    home, away = other_module("policy", inside=True), other_module("policy")
    doc = "Do {} thing here.\n\n" + PROSE.format("nothing")
    rows = [("p", home, f"{home}.a", doc.format("one")), ("p", away, f"{away}.b", doc.format("two")),
            ("p", home, f"{home}.c", doc.format("three"))]  # fmt: skip
    assert [entry.name for entry in select_entries(rows)] == [f"{home}.a", f"{home}.c"]


def test_a_paragraph_in_many_entries_is_boilerplate():
    rows = [
        ("p", f"m{i}", f"m{i}.f", f"Do the thing {i}.\n\nThis model inherits from the base.\n\n{PROSE.format(f'x{i}')}")
        for i in range(5)
    ]
    assert all("inherits" not in entry.text for entry in select_entries(rows))
    assert all("inherits" in entry.text for entry in select_entries(rows[:3]))


def test_the_corpus_of_a_part_shares_no_run_of_words_with_another_part(package):
    stolen = load_documentation("eval")[0]
    module = next(e.module for e in load_documentation("policy"))
    with (package / f"{module.rpartition('.')[2]}.py").open("a") as file:
        file.write(f'def copy(x):\n    """Something else altogether here.\n\n    {stolen.text}\n    """\n')
        file.write('def own(x):\n    """Only here, and too short to be an entry."""\n')
    corpus = documentation_corpus("policy")
    assert not any(stolen.text[:60] in text for text in corpus)
    assert "Only here, and too short to be an entry." in corpus


def test_the_parts_of_an_installed_package_share_no_page_no_summary_and_no_run_of_13_words():
    rows = [("accelerate", *row) for row in read_package("accelerate")]
    entries = select_entries(rows)
    assert len(entries) > 20 and all(len(entry.text.split()) >= 25 for entry in entries)
    assert all(entry.module.startswith("accelerate") and entry.name.startswith(entry.module) for entry in entries)
    parts = [[entry for entry in entries if entry.part == part] for part in DOCUMENTATION_PARTS]
    assert all(parts)

    def runs(entry: Entry):
        words = re.findall(r"\w+", entry.text.lower())
        return {" ".join(words[i : i + 13]) for i in range(len(words) - 12)}

    def summary(entry: Entry):
        return {entry.summary.lower()}

    def module(entry: Entry):
        return {entry.module}

    for marks in (runs, summary, module):
        values = [set().union(*(marks(entry) for entry in part)) for part in parts]
        assert sum(map(len, values)) == len(set.union(*values)), marks.__name__
    assert {"torch", "transformers", "accelerate"} <= set(documentation_versions())


def test_reading_imports_no_module_and_warns_of_nothing(package):
    (package / "part00.py").write_text('raise SystemExit\n\n\ndef f():\n    """An invalid \\d escape here.\n    """\n')
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert next(name for _, name, _ in read_package("paper_mill")) == "paper_mill.part00.f"
