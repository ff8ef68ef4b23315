import json

import pytest


@pytest.fixture
def known_defaults(monkeypatch):
    """The defaults of shipped objectives, without importing them."""
    defaults = {"clip_low": 0.2, "clip_high": 0.2, "policy_coef": 1.0, "alpha": 0.01, "detach_factor": False}
    monkeypatch.setattr("scope_rlhf.reports.labels._defaults", lambda _: defaults)


@pytest.fixture
def edit():
    """edit(file, change) applies change to the JSON object in the file."""

    def apply(file, change):
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))

    return apply


@pytest.fixture
def markdown_tables():
    """markdown_tables(text) parses Markdown and gives the tables of its HTML, as rows of cell texts."""
    from html.parser import HTMLParser

    from markdown_it import MarkdownIt

    class Cells(HTMLParser):
        def __init__(self):
            super().__init__()
            self.tables, self.open = [], False

        def handle_starttag(self, tag, attrs):
            if tag == "table":
                self.tables.append([])
            elif tag == "tr":
                self.tables[-1].append([])
            elif tag in ("td", "th"):
                self.tables[-1][-1].append("")
                self.open = True

        def handle_endtag(self, tag):
            if tag in ("td", "th"):
                self.open = False

        def handle_data(self, data):
            if self.open:
                self.tables[-1][-1][-1] += data

    def parse(text):
        cells = Cells()
        cells.feed(MarkdownIt("commonmark").enable("table").render(text))
        return cells.tables

    return parse
