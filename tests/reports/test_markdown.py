import pytest

from scope_rlhf.reports.markdown import code_block, escape_cell, inline_code, markdown_table

HOSTILE = [
    "a | b",
    "line\nbreak\r\n\tand tab",
    "*bold* _it_ `code` ~~gone~~",
    "<br /><script>x</script>",
    "[link](http://x) ![i](y)",
    "back\\slash | pipe\\|",
    "&lt; stays",
    "# no heading",
    "$x$",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_escaped_cells_render_as_the_text_itself(text, markdown_tables):
    table = markdown_table(("one", "two"), [(escape_cell(text), "end")])
    assert markdown_tables(table) == [[["one", "two"], [" ".join(text.split()), "end"]]]


@pytest.mark.parametrize("text", ["plain", "with `tick`", "``two``", "a | b", "x=<y>"])
def test_inline_code_in_a_cell_renders_as_the_text_itself(text, markdown_tables):
    assert markdown_tables(markdown_table(("one",), [(inline_code(text),)])) == [[["one"], [text]]]


def test_a_fence_inside_a_code_block_does_not_end_it():
    from markdown_it import MarkdownIt

    text = "before\n```\nafter"
    tokens = MarkdownIt("commonmark").parse(code_block(text, "python"))
    assert [(token.type, token.content.strip(), token.info) for token in tokens] == [("fence", text, "python")]
