"""docs/models.md of its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

HEAD = """# Files as makers ship them

Trained ONNX files of several makers and exporters, and exports of small architectures of the zoo. Written by
`python -m benchmarks.models` of `models.jsonl`, a line a row; `--render` writes the page alone. Nothing is downloaded:
`GRAPHPRUNE_MODELS` names the folder of files, `pip install -c constraints.txt '.[bench-models]'` brings the wheels
(basic-pitch asks for an older TensorFlow: `pip install --no-deps basic-pitch`). What is not there is listed below.

{summary}

## What is cut

Each file is compiled without data to half of its multiply-accumulates, or as near to it as its least allows, by the
default recipe: `group,score,mask{{macs=... allocate=global grain=...}},propagate`. Of `dtln1.onnx` all channels are
states that its user feeds back from an output to an input: their width is cut in both, `group{{states=input_3}}`.

- **can go**: the share of parameters and of multiply-accumulates that goes with every group at its floor of 10%: the
  rest is frozen, or is the floor.
- **MACs**: of one run, before and after, counted from the shapes that ONNX Runtime saw at run time
  (`benchmarks/ort_macs.py`). `=`: what graphprune itself counts is the same, before and after; else its count.
- **ms**: processor time of a run in ONNX Runtime on one thread, before and after turn about: median (quartiles).
- **masked**: the pruned file against the original with zeros where the plan cuts, both in ONNX Runtime, by a script
  that imports nothing of graphprune (`benchmarks/masked.py`): the largest difference, relative to the largest number,
  of the outputs and of what an output's sigmoid or softmax is of. In brackets where it is over 1e-5: how far the
  masked original is from itself without graph optimisations (rounding).
- **moved**: the masked original against the original. Where that is nothing, **masked** proves nothing.
"""

ANSWERS = """
## What users care for

How often the pruned model answers as the original does, calibrated on 32 samples without labels (`score{{by=obs}}`,
`allocate=rd`, `compensate`), no training; judged on samples that calibration did not see. Detected lines are the same
where they are as many and each overlaps one of the original's by 0.7; recognised text where every character is.
Sounds, pages and lines are made by `benchmarks/models_answers.py`; the files are of Python's own library and
`/usr/share`.

| product, file | the answer | kinds, the commonest | {budgets} |
|---|---|---|{rules}
"""


def page(rows: Mapping[str, Row], names: Sequence[str], skipped: Mapping[str, str]) -> str:
    """The whole page; ``names``: the order of files."""
    files = [rows[name] for name in names if name in rows]
    answers = [row for row in rows.values() if row["kind"] == "answers"]
    parts = [HEAD.format(summary=_summary(files)), _table(files)]
    if answers:
        parts.append(_answers(answers))
    if refused := [row for row in files if "refused" in row]:
        parts.append("\n## Not cut\n\n" + "".join(f"- `{row['name']}`: {row['refused']}\n" for row in refused))
    if missing := [name for name in names if name not in rows]:
        parts.append("\n## Not measured\n\n")
        parts.extend(f"- `{name}`: {skipped.get(name, 'not run yet')}\n" for name in missing)
    return "".join(parts)


def _summary(files: Sequence[Row]) -> str:
    cut = [row for row in files if "error" in row]
    if not cut:
        return "No row yet."
    worst = max(row["error"] for row in cut)
    agree = sum(row["macs"] == row["counted"] for row in cut)
    return (
        f"{len(files)} files: {len(cut)} cut, {len(files) - len(cut)} with nothing to cut or refused. Pruned = masked "
        f"within {worst:.0e} in all that were cut; graphprune's own count of multiply-accumulates is ONNX Runtime's "
        f"in {agree} of {len(cut)}."
    )


def _table(files: Sequence[Row]) -> str:
    lines = [
        "\n| file | origin, licence | exporter | parameters | can go: parameters, MACs | MACs | ms | masked | moved |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in files:
        first = f"| {row['name']} | {row['origin']}, {row['licence']} | {row['exporter']} "
        if "can_go" not in row:
            lines.append(f"{first}| | | | | | |")
            continue
        first += f"| {_amount(row['params'])} | {row['can_go']['params']:.0%}, {row['can_go']['macs']:.0%} "
        if "refused" in row:
            lines.append(f"{first}| not cut | | | |")
            continue
        own = "=" if row["macs"] == row["counted"] else f"own count {' to '.join(map(_amount, row['counted']))}"
        before, after = row["macs"]
        times = " to ".join(f"{median:.3g} ({low:.3g}-{high:.3g})" for median, low, high in row["ms"])
        masked = f"{row['error']:.0e}" + (f" ({row['rounding']:.0e})" if row["error"] > 1e-5 else "")
        lines.append(
            f"{first}| {_amount(before)} to {_amount(after)}, {after / before:.2f}x {own} | {times} | {masked} "
            f"| {row['moved']:.2g} |"
        )
    return "\n".join(lines) + "\n"


def _amount(number: float) -> str:
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= scale:
            return f"{number / scale:.3g} {unit}"
    return f"{number:.0f}"


def _answers(rows: Sequence[Row]) -> str:
    budgets = sorted({row["budget"] for row in rows}, reverse=True)
    head = ANSWERS.format(budgets=" | ".join(f"{one}x" for one in budgets), rules="---|" * len(budgets))
    lines = []
    for task in dict.fromkeys(row["task"] for row in rows):
        own = {row["budget"]: row for row in rows if row["task"] == task}
        some = next(iter(own.values()))
        kinds = next((f"{row['kinds']}, {row['commonest']:.0%}" for row in own.values() if "kinds" in row), "")
        cells = [_answer(own[one]) if one in own else "" for one in budgets]
        lines.append(f"| {task}, `{some['file']}` | {some['what']} | {kinds} | {' | '.join(cells)} |\n")
    return head + "".join(lines)


def _answer(row: Row) -> str:
    if "refused" in row:
        return f"refused: {row['refused']}"
    return f"{row['same'] / row['of']:.1%} of {row['of']} ({row['macs']:.2f}x)"
