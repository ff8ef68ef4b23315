"""What a win-rate folder shows: a Markdown table, a picture, and a page to read the pairs. Reads its files only."""

import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scope_rlhf.reports.figures import COLOURS, figure_style, new_figure, save_figure
from scope_rlhf.reports.markdown import escape_cell, markdown_table
from scope_rlhf.runtime.files import read_json_lines, write_text

_OUTCOMES = {1.0: "win", 0.5: "tie", 0.0: "loss", None: "invalid"}


def write_win_rate_report(folders: Sequence[str | Path], output: str | Path | None = None) -> list[Path]:
    """report.md, win_rate.png and pairs.html of one or several win-rate folders, into `output` (default: the first).

    The page holds the pairs of all folders. ValueError for a folder without win_rate.json.
    """
    target = Path(output if output is not None else folders[0])
    summaries = [read_summary(folder) for folder in folders]
    written = [target / name for name in ("report.md", "pairs.html")]
    write_text(written[0], win_rate_markdown(summaries))
    rows = [
        {**pair, "name_a": s["system_a"]["name"], "name_b": s["system_b"]["name"]}
        for s, folder in zip(summaries, folders, strict=True)
        for pair in read_json_lines(Path(folder) / "pairs.jsonl")
    ]
    write_text(written[1], pairs_page(summaries, rows))
    if any(summary["win_rate"] for summary in summaries):
        written.append(plot_win_rates(summaries, target / "win_rate.png"))
    return written


def read_summary(folder: str | Path) -> dict[str, Any]:
    """win_rate.json of a folder; ValueError where it is missing or damaged."""
    file = Path(folder) / "win_rate.json"
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{folder} is no win-rate folder: it has no {file.name}") from error
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}") from error


def win_rate_markdown(summaries: Sequence[dict[str, Any]]) -> str:
    """report.md: win_rate_section, and links to the pairs and the picture."""
    picture = "\n![win rates](win_rate.png)\n" if any(s["win_rate"] for s in summaries) else ""
    pairs = "The pairs with what the judge said: [pairs.html](pairs.html).\n"
    return f"# Win rates\n\n{win_rate_section(summaries)}\n\n{pairs}{picture}"


def win_rate_section(summaries: Sequence[dict[str, Any]]) -> str:
    """One row for each comparison, and below it what the columns are and how the completions were made."""
    header = (
        "A", "B", "judge", "win rate of A", "length-controlled", "decided pairs only", "wins / ties / losses", "n",
        "invalid", "words A / B", "empty A / B", "without end A / B", "same in both orders",
    )  # fmt: skip
    rows = [
        (
            escape_cell(s["system_a"]["name"]), escape_cell(s["system_b"]["name"]), escape_cell(s["judge"]),
            _interval((s["win_rate"] or {}).get("rate")), _interval(s["length_controlled"]),
            _interval((s["win_rate"] or {}).get("decided")), _counts(s["win_rate"]),
            str(s["pairs"] - s["invalid"]), f"{100 * s['invalid_share']:.1f} %",
            " / ".join(f"{s[k]['mean_length_words']:.1f}" for k in ("system_a", "system_b")),
            " / ".join(str(s[k]["empty"]) for k in ("system_a", "system_b")),
            " / ".join(_percent(s[k]["share_without_eos"]) for k in ("system_a", "system_b")),
            _percent((s["win_rate"] or {}).get("order_consistency")),
        )
        for s in summaries
    ]  # fmt: skip
    decoding = sorted({f"{s[k]['name']}: {s[k]['decoding']}" for s in summaries for k in ("system_a", "system_b")})
    confidence = 100 * summaries[0]["confidence"]
    notes = (
        f"Win rate of A with its {confidence:g} % bootstrap interval over prompts. Every pair was judged in both "
        "orders; verdicts that contradict each other are ties, ties count one half, invalid answers count nowhere. "
        "Length-controlled: the rate that a logistic regression leaves at equal length. Decided pairs only: wins / "
        "(wins + losses) with its Wilson interval. Never compare across judges."
    )
    apart = [
        f"{escape_cell(s['system_a']['name'])} against {escape_cell(s['system_b']['name'])}"
        for s in summaries
        if s.get("lengths_overlap") is False  # an earlier comparison does not say
    ]
    if apart:
        notes += (
            f" In {', '.join(apart)} one side is nearly always the longer: its length-controlled rate extrapolates."
        )
    table = markdown_table(header, rows)
    how = "\n".join(f"- {escape_cell(line)}" for line in decoding)
    return f"{table}\n\n{notes}\n\nDecoding:\n\n{how}"


def plot_win_rates(summaries: Sequence[dict[str, Any]], path: str | Path) -> Path:
    """Win rate and length-controlled win rate with their intervals, one line for each comparison."""
    shown = [s for s in summaries if s["win_rate"]]
    if not shown:
        raise ValueError("no comparison has a valid pair to draw")
    figure = new_figure(7.5, 1.4 + 0.6 * len(shown))
    with figure_style():
        axes = figure.add_subplot()
        axes.axvline(0.5, color="0.6", linewidth=1, linestyle=":")
        for row, s in enumerate(shown):
            kinds = (("win rate", s["win_rate"]["rate"], 0.12), ("length-controlled", s["length_controlled"], -0.12))
            for (label, interval, shift), colour in zip(kinds, COLOURS, strict=False):
                value = interval["value"]
                low, high = (value if b is None else b for b in (interval["low"], interval["high"]))
                axes.errorbar(
                    value, len(shown) - 1 - row + shift, xerr=[[max(0.0, value - low)], [max(0.0, high - value)]],
                    color=colour, marker="o", markersize=5, capsize=3, elinewidth=1.4, linestyle="none",
                    label=label if row == 0 else None,
                )  # fmt: skip
        axes.set_yticks(range(len(shown)))
        axes.set_yticklabels(
            [f"{s['system_a']['name']}\nagainst {s['system_b']['name']}" for s in reversed(shown)], parse_math=False
        )
        axes.set_ylim(-0.6, len(shown) - 0.4)
        axes.set_xlim(0, 1)
        axes.set_xlabel(f"share of pairs that A wins, {100 * shown[0]['confidence']:g} % interval")
        judges = sorted({s["judge"] for s in shown})
        axes.set_title(f"Judge: {', '.join(judges)}", fontsize=10, parse_math=False)
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        return save_figure(figure, Path(path))


def pairs_page(summaries: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]]) -> str:
    """One HTML file without any other: the pairs with the judge's words, filtered by outcome, comparison and text."""
    counts = {name: sum(_OUTCOMES[row["score"]] == name for row in rows) for name in _OUTCOMES.values()}
    buttons = "".join(
        f'<button data-outcome="{name}">{name} {count}</button>' for name, count in {"all": len(rows), **counts}.items()
    )
    choices = "".join(
        f"<option>{html.escape(name)}</option>" for name in ["all comparisons", *dict.fromkeys(map(_versus, rows))]
    )
    judges = ", ".join(sorted({str(s["judge"]) for s in summaries}))
    pairs = "\n".join(_pair(number, row) for number, row in enumerate(rows))
    return _PAGE.format(buttons=buttons, choices=choices, judge=html.escape(judges), pairs=pairs, total=len(rows))


def _pair(number: int, row: dict[str, Any]) -> str:
    outcome = _OUTCOMES[row["score"]]
    versus = html.escape(_versus(row), quote=True)

    def side(key: str) -> str:
        text = html.escape(row[key].strip()) or "<i>empty</i>"
        head = f"{key.upper()}: {html.escape(row[f'name_{key}'])} <small>{row[f'length_{key}']} words</small>"
        return f"<div><h4>{head}</h4><p>{text}</p></div>"

    said = "".join(
        f"<p><b>{order}: {html.escape(str(row[f'verdict_{key}']))}</b> {html.escape(str(row[f'words_{key}']))}</p>"
        for order, key in (("A in front", "a_first"), ("B in front", "b_first"))
    )
    return (
        f'<article data-outcome="{outcome}" data-versus="{versus}">'
        f'<header><span class="{outcome}">{outcome}</span> #{number} {versus}</header>'
        f"<details><summary>prompt</summary><pre>{html.escape(row['prompt'])}</pre></details>"
        f'<div class="sides">{side("a")}{side("b")}</div>'
        f"<details><summary>what the judge said (its A is the text in front)</summary>{said}</details></article>"
    )


def _versus(row: dict[str, Any]) -> str:
    return f"{row['name_a']} against {row['name_b']}"


def _interval(interval: dict[str, Any] | None) -> str:
    if interval is None:
        return "none"
    low, high = interval["low"], interval["high"]
    bounds = f" [{100 * low:.1f}, {100 * high:.1f}]" if low is not None and high is not None else ""
    return f"{100 * interval['value']:.1f} %{bounds}"


def _counts(rates: dict[str, Any] | None) -> str:
    return "0 / 0 / 0" if rates is None else f"{rates['wins']} / {rates['ties']} / {rates['losses']}"


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{100 * share:.1f} %"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Pairs</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 0 auto; padding: 1rem; color: #222; }}
nav {{ position: sticky; top: 0; background: #fff; padding: .5rem 0; border-bottom: 1px solid #ccc; z-index: 1; }}
button, select, input {{ font: inherit; padding: .2rem .6rem; margin: 0 .3rem .3rem 0; }}
button.on {{ background: #222; color: #fff; }}
article {{ border: 1px solid #ddd; border-radius: 6px; padding: .6rem 1rem; margin: .8rem 0; }}
header span {{ color: #fff; border-radius: 4px; padding: 0 .5rem; }}
.win {{ background: #009E73; }} .loss {{ background: #D55E00; }}
.tie {{ background: #666; }} .invalid {{ background: #000; }}
.sides {{ display: grid; grid-template-columns: 1fr 1fr; gap: 1rem; }}
h4 {{ margin: .5rem 0 .2rem; }} small {{ color: #666; font-weight: normal; }}
p {{ margin: .2rem 0; white-space: pre-wrap; }}
pre {{ white-space: pre-wrap; background: #f6f6f6; padding: .6rem; }}
@media (max-width: 40rem) {{ .sides {{ grid-template-columns: 1fr; }} }}
</style></head><body>
<h1>Pairs</h1>
<p>Judge: {judge}. A wins where both orders name A; verdicts that contradict each other are ties.</p>
<nav>{buttons}<select>{choices}</select><input type="search" placeholder="text">
<span id="shown">{total} shown</span></nav>
{pairs}
<script>
const buttons = [...document.querySelectorAll("button")], select = document.querySelector("select");
const search = document.querySelector("input"), articles = [...document.querySelectorAll("article")];
let outcome = "all";
function show() {{
  let shown = 0;
  for (const a of articles) {{
    const fits = (outcome === "all" || a.dataset.outcome === outcome)
      && (select.selectedIndex === 0 || a.dataset.versus === select.value)
      && a.textContent.toLowerCase().includes(search.value.toLowerCase());
    a.hidden = !fits;
    shown += fits;
  }}
  for (const b of buttons) b.classList.toggle("on", b.dataset.outcome === outcome);
  document.getElementById("shown").textContent = shown + " shown";
}}
for (const b of buttons) b.onclick = () => {{ outcome = b.dataset.outcome; show(); }};
select.onchange = search.oninput = show;
show();
</script></body></html>
"""
