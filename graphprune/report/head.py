"""The head of the report for a notebook: the comparison as a table, and what is known of the result."""

from __future__ import annotations

from html import escape

from ..errors import printable
from .page import Report, budget, close, comparison, targeted, verdict, verified


def head(report: Report) -> str:
    """HTML that a notebook shows: no scripts, no styles of its own but numbers to the right."""
    cells = [("", "before", "after", "remains")]
    cells += [(row["label"], row["before"], row["after"], row["remains"]) for row in comparison(report)]
    first, *rest = [
        "".join(
            f'<td style="text-align:{"left" if k == 0 else "right"}">{_safe(cell)}</td>' for k, cell in enumerate(row)
        )
        for row in cells
    ]
    said = [verdict(report), *close(report), verified(report), *budget(report), *targeted(report)]
    return (
        f"<p><b>{_safe(report['model'])}</b></p>"
        f"<table><thead><tr>{first}</tr></thead><tbody>{''.join(f'<tr>{row}</tr>' for row in rest)}</tbody></table>"
        f"<ul>{''.join(f'<li>{_safe(one)}</li>' for one in said)}</ul>"
    )


def _safe(text: object) -> str:
    """Names are somebody else's."""
    return escape(printable(str(text)))
