"""The report: ``report.json`` as a page for people (``render``) and as a few lines for a terminal (``table``)."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from textwrap import fill
from typing import Any

from ..cost.units import UNITS
from ..errors import printable
from .environment import templates
from .network import blocks, drawing
from .next_steps import has_name, steps
from .segments import picture, segments
from .strips import strips
from .units import COLUMNS, count, duration, error, ratio, shortened, size

Report = Mapping[str, Any]

ROWS_LIMIT = 40
"""With more groups than this the page opens with a skyline and keeps the named bars folded away."""
FOLD_LIMIT = 10
"""Longer lists are folded away."""
_WORDS: Mapping[str, Any] = {"break_long_words": False, "break_on_hyphens": False}
KINDS_LIMIT = 8
"""Of kinds of ops is said what they take."""
CLOSENESS_LIMIT = 3
"""Of so many outputs is said how far they are from the original's."""


# ---- the comparison ------------------------------------------------------------------------------


def comparison(report: Report) -> list[dict[str, Any]]:
    """The rows of the before/after table: ``label``, ``before``, ``after``, ``remains`` (texts),
    ``share`` (after / before, None where that means nothing), ``exact`` and ``note``."""
    rows = _figures(report["evaluation"]) if "evaluation" in report else []
    for key, label, show in (
        ("params", "parameters", count),
        ("macs", "MACs", count),
        ("weights_bytes", "weights", size),
    ):
        before, after = report["before"][key], report["after"][key]
        rows.append(
            {
                "label": label,
                "before": show(before),
                "after": show(after),
                "remains": ratio(before, after),
                "share": after / before if before else None,
                "exact": f"{before:,} to {after:,}",
                "note": "",
            }
        )
    rows.extend(_latency_row(*pair) for pair in latencies(report))
    return rows


def _figures(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The user's own figures; only their difference means something whatever they are."""
    both = [(name, evaluation["before"][name], after) for name, after in evaluation["after"].items()]
    return [
        {
            "label": name,
            "before": f"{before:.4g}",
            "after": f"{after:.4g}",
            "remains": f"{after - before:+.3g}",
            "share": None,
            "exact": f"{before} to {after}",
            "note": str(evaluation["what"]),
        }
        for name, before, after in both
    ]


def latencies(report: Report) -> list[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    """(target, before, after) of every target that both models were measured on."""
    before = _per_target(report["before"])
    after = _per_target(report["after"])
    return [(name, before[name], after[name]) for name in before if name in after]


def _per_target(side: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    main = side.get("latency_ms")
    first = {main["target"]: main} if main else {}
    return {**first, **{name: one for name, one in (side.get("per_target") or {}).items() if one}}


def _latency_row(target: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    slow, fast = before["median_ms"], after["median_ms"]
    spreads = f"{duration(before['spread_ms'])} and {duration(after['spread_ms'])}"
    error = f"; ratio ± {after['share_error']:.3f}" if "share_error" in after else ""
    return {
        "label": f"latency, {target}",
        "before": duration(slow),
        "after": duration(fast),
        "remains": ratio(slow, fast),
        "share": fast / slow if slow else None,
        "exact": f"{slow} ms to {fast} ms",
        "note": f"median of {after['repeats']}, {_threads(after['threads'])}; interquartile range {spreads}{error}",
    }


def _threads(threads: int) -> str:
    return "1 thread" if threads == 1 else f"{threads} threads"


def speed(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """How the two latencies compare, in words; a difference within what the measurement is uncertain by is called
    none: two standard errors of the ratio, or the spread where they were not measured in turns."""
    slow, fast = before["median_ms"], after["median_ms"]
    unsure = 2 * after["share_error"] * slow if "share_error" in after else max(before["spread_ms"], after["spread_ms"])
    if abs(slow - fast) <= unsure or not (slow and fast):
        return "as fast as before (within the spread)"
    return f"{slow / fast:.2f} times as fast" if fast < slow else f"{fast / slow:.2f} times as slow"


def verdict(report: Report) -> str:
    """One sentence: what is left, how much faster it is, and whether that is proven."""
    before, after = report["before"], report["after"]
    kept = [
        f"{ratio(before[key], after[key])} of the {word}" for key, word in (("macs", "MACs"), ("params", "parameters"))
    ]
    measured = latencies(report)
    if measured:
        target, slow, fast = measured[0]
        kept.append(f"{speed(slow, fast)} on {target}")
    return f"{', '.join(kept)}."


def targeted(report: Report) -> list[str]:
    """Which of several recipes was taken, how a latency budget was met, or what was done where the cut was slower than
    the original, in a sentence each; nothing where there was no such thing."""
    return [*_contested(report), *_timed(report)]


def _contested(report: Report) -> Iterator[str]:
    if "contest" not in report:
        return
    taken, told = report["contest"]["taken"], report["contest"]["recipes"]
    each = [f"`{name}` {one['change']:.2%}" for name, one in told.items() if "change" in one]
    failed = [f" `{name}` failed: {one['error'].rstrip('.')}." for name, one in told.items() if "error" in one]
    yield (
        f"Of {len(told)} recipes the nearest, on samples held back: `{taken}`. Outputs change by {'; '.join(each)}."
        f"{''.join(failed)}"
    )


def _timed(report: Report) -> list[str]:
    if "fallback" in report:
        return [_less_slow(report["fallback"])]
    if "latency" not in report:
        return []
    facts = report["latency"]
    took = facts["measured_ms"]
    found = (
        f"not measured ({facts['not_measured']})"
        if took is None
        else f"measured {duration(took)} ({ratio(facts['whole_ms'], took)})"
    )
    rounds = f"{len(facts['rounds'])} round{'' if len(facts['rounds']) == 1 else 's'}"
    return [
        f"latency {facts['budget']} on {facts['target']}: goal {duration(facts['goal_ms'])}, predicted "
        f"{duration(facts['predicted_ms'])}, {found}; {facts['importance']:.1%} of the importance kept, {rounds}.",
        *([_contest(facts["contenders"])] if "contenders" in facts else []),
    ]


def _contest(contenders: Sequence[Mapping[str, Any]]) -> str:
    agreed, free = (one["change"] for one in contenders)
    taken = "chooses channels of its own where that pays" if free < agreed else "takes the same channels as others"
    return (
        f"Each reader {taken}: at that latency outputs change by {min(agreed, free):.1%} on samples held back, and by "
        f"{max(agreed, free):.1%} otherwise."
    )


def _less_slow(facts: Mapping[str, Any]) -> str:
    first, *others = facts["tried"]
    given = f"the recipe as it was given took {first['share']:.2f}x of the original's time on {facts['target']}"
    if facts["slower"]:
        tried = f"and {len(others)} milder ones were slower too" if others else "and no milder one is within the budget"
        return f"SLOWER than the original: this one takes {facts['share']:.2f}x of its time; {given}, {tried}."
    return f"So that it is not slower than the original: {given}, and this one {facts['share']:.2f}x."


def budget(report: Report) -> list[str]:
    """What was asked for and what came out, in one sentence; nothing where no single budget was given."""
    facts = report.get("budget") or {}
    if not facts.get("asked"):
        return []
    show = size if facts["unit"] in ("memory", "size") else count
    left = f" ({show(facts['left'])})" if "left" in facts else ""
    got = "" if facts["got"] is None else f", got {facts['got']:.3f}x{left}"
    default = " (the default: no budget was given)" if facts["default"] else ""
    return [f"Asked for {facts['asked']} of {UNITS[facts['unit']].of}{default}{got}."]


def counted(report: Report) -> list[str]:
    """At which sizes of the inputs MACs were counted, and of what; nothing in reports that do not say."""
    sizes = report.get("sizes", {})
    inputs = [f"{name} {'x'.join(map(str, shape)) or 'scalar'}" for name, shape in sizes.items()]
    whole = report.get("samples") == 1 and any(shape and shape[0] > 1 for shape in sizes.values())
    of = "the whole example, in which no axis is known to be a batch" if whole else "one sample"
    return [f"MACs are those of {of}, counted at the example's sizes: {', '.join(inputs)}."] if inputs else []


def close(report: Report) -> list[str]:
    """How far the outputs are from the original's, in a sentence per output (three at most), or that nobody knows."""
    if report.get("dry_run"):
        return []
    if "closeness" not in report:
        return [
            "How close the outputs are to the original's is NOT known: no data was given. Cut by weights alone a "
            "network may lose most of what it knows; data (a few hundred inputs, no labels) measures and repairs."
        ]
    facts = report["closeness"]
    seen = "held back from calibration" if facts["held_back"] else "of calibration itself (too few to hold any back)"
    outputs = sorted(facts["outputs"], key=lambda one: -(one["relative"] or 0))
    left = len(outputs) - CLOSENESS_LIMIT
    more = f" {left} more outputs change less; see report.json." if left > 0 else ""
    told = "; ".join(_change(one) for one in outputs[:CLOSENESS_LIMIT])
    samples = f"{count(facts['samples'])} sample{'' if facts['samples'] == 1 else 's'}"
    return [f"Against the original, on {samples} {seen}: {told}.{more}"]


def change(report: Report, key: str) -> float | None:
    """A figure of the output that changes most: ``relative``, ``cosine`` or ``same``."""
    outputs = report.get("closeness", {}).get("outputs", [])
    return max(outputs, key=lambda one: one["relative"] or 0)[key] if outputs else None


def _change(output: Mapping[str, Any]) -> str:
    said = [] if output["relative"] is None else [f"changes by {output['relative']:.2%}"]
    said += [] if output["cosine"] is None else [f"cosine {output['cosine']:.4f}"]
    if output["same"] is not None:
        what = "equal in" if output["cosine"] is None else "the same largest entry in"
        said.append(f"{what} {output['same']:.1%}")
    return f"`{output['name']}` {', '.join(said) or 'has another shape, or is zero'}"


_NOT_RUN = ": not run, "  # of the notes that `compile` leaves


def verified(report: Report) -> str:
    """One sentence on the verification, with its numbers."""
    proof = report["verification"]
    if report.get("dry_run"):
        return "A dry run: nothing was written, fitted or proven."
    if not proof["used"]:
        return "Not verified: --no-verify was given."
    return (
        f"The cut is exact: the result computes what the {proof['compared_with']} computes ({proof['dtype']}, "
        f"relative error {error(proof['max_relative_error'])}, tolerance {error(proof['tolerance'])})."
        f"{_unmoved(proof)}{unchecked(report)}"
    )


def _unmoved(proof: Mapping[str, Any]) -> str:
    names = ", ".join(f"`{name}`" for name in proof.get("unmoved", ()))
    return f" But {names} did not depend on the inputs tried, which proves little of it: try others." if names else ""


def unchecked(report: Report) -> str:
    """The targets whose code could not be run here: it was written, and nothing says that it is right."""
    said = [note.split(_NOT_RUN, 1) for note in report.get("notes", ()) if _NOT_RUN in note]
    return "".join(f" The code for {name} was NOT checked: {reason}." for name, reason in said)


def command(report: Report) -> str:
    """What reproduces the result: a shell line, or Python where the model has no name on disk."""
    model, recipe = str(report["model"]), str(report["recipe"])
    targets = [str(facts.get("target", name)) for name, facts in report["targets"].items()]
    if not has_name(model):
        options = [f"recipe={recipe!r}", f"seed={report['seed']}"]
        options += [f"targets={tuple(targets)!r}"] if targets else []
        options += ["data=data"] if report.get("data") else []
        options += [] if report["verification"]["used"] else ["verify=False"]
        return f"gp.compile(model, example_inputs, {', '.join(options)}, out='out')"
    parts = [["graphprune", "compile", model], ["--passes", recipe], ["--seed", str(report["seed"])]]
    parts += [["--data", str(report["data"])]] if report.get("data") else []
    parts += [["--target", name] for name in targets]
    parts += [] if report["verification"]["used"] else [["--no-verify"]]
    return " \\\n    ".join(shlex.join(part) for part in [*parts, ["-o", "out"]])


# ---- for a terminal ------------------------------------------------------------------------------


def table(report: Report) -> str:
    """The before/after table as aligned text, ``COLUMNS`` wide, and below it what is known of the result."""
    rows = comparison(report)
    lines = [("", "before", "after", "remains", "")]
    lines += [(row["label"], row["before"], row["after"], row["remains"], row["note"]) for row in rows]
    widths = [max(len(line[k]) for line in lines) for k in range(4)]
    text = []
    for line in lines:
        cells = "  ".join(f"{cell:>{width}}" for cell, width in zip(line[1:4], widths[1:], strict=True))
        text.append(f"{line[0]:<{widths[0]}}  {cells}".rstrip())
        if len(text[-1]) + 3 + len(line[4]) <= COLUMNS:
            text[-1] = f"{text[-1]}   {line[4]}".rstrip()
        else:
            text.append(fill(line[4], COLUMNS, initial_indent="  ", subsequent_indent="  ", **_WORDS))
    auto = [f"Recipe: auto, which is {report['recipe']}"] if report.get("auto") else []
    said = [*close(report), verified(report), *budget(report), *counted(report), *targeted(report)]
    wrapped = [fill(one, COLUMNS, subsequent_indent="  ", **_WORDS) for one in said]
    return "\n".join([*text, "", *wrapped, *auto])  # the recipe is there to be copied


def widths(report: Report) -> str:
    """What would be left of every group, as text."""
    rows = [("group", "channels", "kept", "remains")]
    rows += [
        (group["name"], f"{group['size']:,}", f"{group['kept']:,}", ratio(group["size"], group["kept"]))
        for group in report["groups"]
    ]
    wide = [max(len(row[k]) for row in rows) for k in range(4)]
    name = min(wide[0], COLUMNS - sum(wide[1:]) - 6)
    cells = ("  ".join(f"{cell:>{width}}" for cell, width in zip(row[1:], wide[1:], strict=True)) for row in rows)
    return "\n".join(f"{shortened(row[0], name):<{name}}  {cell}" for row, cell in zip(rows, cells, strict=True))


# ---- for a browser -------------------------------------------------------------------------------


def render(report: Report, charts: Sequence[Mapping[str, Any]] = (), at: int = 0) -> str:
    """One HTML page that needs nothing else: no network, no scripts, light and dark. ``charts``: of the curve that
    the result is point ``at`` of, see ``curve.charts``; the page of the curve is in the folder above.

    The same report always gives the same bytes.
    """
    environment = templates()
    environment.filters["facts"] = _facts
    drawn = drawing(report["network"]) if "network" in report else None
    page = environment.get_template("report.html.j2").render(
        report=report,
        charts=charts,
        at=at,
        rows=comparison(report),
        verdict=verdict(report),
        verified=verified(report),
        targeted=targeted(report),
        close=close(report),
        budget=budget(report),
        drawing=drawn,
        strips=strips(report["network"], drawn) if drawn else [],
        blocks=blocks(report["network"]) if "network" in report else [],
        counted=counted(report),
        ops=_op_bars(report),
        command=command(report),
        groups=_groups(report["groups"]),
        branches=_branches(report),
        segments=segments(report.get("segments", ())),
        picture=picture(report.get("segments", ())),
        latencies=_bars(report),
        kinds=_kinds(report),
        steps=steps(report),
        passes=_passes(report["passes"]),
        checks=[_check(one) for one in _checks(report["verification"])],
        rows_limit=ROWS_LIMIT,
        fold_limit=FOLD_LIMIT,
    )
    return printable(page)


def _groups(groups: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each group with the lengths of its bar, in percent of the widest group."""
    widest = max((group["size"] for group in groups), default=1)
    return [
        {
            **group,
            "total_percent": round(100 * group["size"] / widest, 3),
            "kept_percent": round(100 * group["kept"] / widest, 3),
            "share": f"{group['kept'] / group['size']:.0%}" if group["size"] else "-",
            "title": f"{group['name']}: {group['kept']} of {group['size']} channels kept",
        }
        for group in groups
    ]


def _branches(report: Report) -> list[dict[str, Any]]:
    """Each residual branch with its share of the original's MACs, in percent."""
    whole = report["before"]["macs"] or 1
    return [
        {
            **branch,
            "percent": round(100 * branch["macs"] / whole, 3),
            "title": f"{branch['name']}: {count(branch['macs'])} MACs, {'kept' if branch['kept'] else 'gone'}",
        }
        for branch in report.get("branches", ())
    ]


def _bars(report: Report) -> list[dict[str, Any]]:
    """Two bars per target, with whiskers of one interquartile range, on one scale."""
    pairs = latencies(report)
    longest = max((one["median_ms"] + one["spread_ms"] / 2 for _, *two in pairs for one in two), default=0) or 1

    def bar(side: str, one: Mapping[str, Any]) -> dict[str, Any]:
        half = one["spread_ms"] / 2
        return {
            **one,
            "side": side,
            "percent": round(100 * one["median_ms"] / longest, 3),
            "low": round(100 * max(0, one["median_ms"] - half) / longest, 3),
            "high": round(100 * (one["median_ms"] + half) / longest, 3),
        }

    return [
        {
            "target": name,
            "bars": (bar("before", before), bar("after", after)),
            "speed": speed(before, after),
            "remark": report["targets"].get(name, {}).get("remark", ""),
        }
        for name, before, after in pairs
    ]


def _op_bars(report: Report) -> list[dict[str, Any]]:
    """The ops of a latency budget, the slowest first: before, predicted and measured on one scale."""
    ops = report.get("latency", {}).get("ops", [])
    longest = max((op["before_ms"] for op in ops), default=0) or 1
    return [
        {
            **op,
            "before_percent": round(100 * op["before_ms"] / longest, 3),
            "predicted_percent": round(100 * op["predicted_ms"] / longest, 3),
        }
        for op in sorted(ops, key=lambda op: -op["before_ms"])
    ]


def _kinds(report: Report) -> list[dict[str, Any]]:
    """Kinds of ops with what they take, before and after, on one scale; the small ones as one."""
    found = [(one["kind"], *one["ms"]) for one in report.get("time", {}).get("kinds", ())]
    small = found[KINDS_LIMIT:]
    rows = found[:KINDS_LIMIT] + (
        [(f"{len(small)} others", *map(sum, zip(*(ms for _, *ms in small), strict=True)))] if small else []
    )
    longest, whole = max((max(ms) for _, *ms in rows), default=0) or 1, sum(after for _, _, after in rows) or 1
    return [
        {
            "kind": kind,
            "before": before,
            "after": after,
            "share": f"{after / whole:.0%}",
            "before_percent": round(100 * before / longest, 3),
            "after_percent": round(100 * after / longest, 3),
        }
        for kind, before, after in rows
    ]


def _passes(passes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    slowest = max((one["seconds"] for one in passes), default=0) or 1
    return [
        {
            **one,
            "percent": round(100 * one["seconds"] / slowest, 3),
            "time": duration(1e3 * one["seconds"]),
            "settings": ", ".join(_defaults(one)),
        }
        for one in passes
    ]


def _defaults(step: Mapping[str, Any]) -> list[str]:
    """The options that the canonical text leaves out because nobody changed them."""
    given = step["text"].partition("{")[2].removesuffix("}").split()
    return [option for option in _facts(step["options"]) if option not in given]


def _facts(value: Mapping[str, Any]) -> list[str]:
    """What a dict says, without what is empty and what the page shows elsewhere."""
    return [
        text for text in _flat(value) if not text.endswith(("=", "={}")) and not text.startswith(("name=", "remark="))
    ]


def _checks(proof: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Every comparison that was made; the overall result alone where they are not listed."""
    if not proof["used"]:
        return ()
    return proof.get("checks") or ({**proof, "what": f"compiled = {proof['compared_with']}, {proof['dtype']}"},)


def _check(check: Mapping[str, Any]) -> dict[str, Any]:
    """Where error and tolerance lie on a logarithmic scale from 1e-18 to 1, in percent."""

    def place(number: float) -> float:
        return round(100 * min(1.0, max(0.0, 1 + math.log10(number) / 18)), 3) if number > 0 else 0.0

    found, allowed = check["max_relative_error"], check["tolerance"]
    return {**check, "at": place(found), "limit": place(allowed), "holds": found <= allowed}


def _flat(value: Any) -> list[str]:
    """A dict as ``key=value`` texts, nested keys joined by dots."""
    if not isinstance(value, Mapping):
        return [str(value)]
    out: list[str] = []
    for key, item in value.items():
        nested = isinstance(item, Mapping) and item
        out += [f"{key}.{text}" for text in _flat(item)] if nested else [f"{key}={_plain(item)}"]
    return out


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_plain, value)) + "]"
    return (
        {True: "true", False: "false", None: "none"}[value] if value is None or isinstance(value, bool) else str(value)
    )
