"""The table of docs/zoo.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from .work import HOSTS, PEER

Results = Mapping[str, Mapping[str, Any]]

HEAD = """# The zoo

The whole compiler on {count} architectures: those of `transformers`, in small configurations with random weights, and a
hand-written diffusion U-Net; through both hosts. Written by `make zoo`; nothing is downloaded.

{summary}

## What the columns say

- **host**: `torch` reads the module through `torch.export`; `onnx` reads what `torch.onnx.export(dynamo=True)` writes
  of the same module (its optimizer folds BatchNorm away and transposes weights, so groups may differ; where it fails
  on fused attention, the attention is written out first).
- **groups**: dims that can be pruned, each with everything that must go along; in brackets their channels.
- **dense**: of the weights of convolutions and matrix products (depthwise ones are not dense), how many have at least
  one axis, input or output, that can be pruned; and the share of their numbers.
- **left**: the share of all parameters that remains with every group cut to its floor of 10%.
- **frozen**: dims of dense weights that are not pruned, by reason. `normalises`: LayerNorm or GroupNorm runs across
  the dim, where a pruned network cannot equal its mask (`group{{normalised=true}}` prunes it all the same). `reduce`:
  mostly the same, spelled out in single operations (RMSNorm, L2 norm). `input` and `output`: the dim is one of the
  network's own.
- **error**: pruned against masked, the largest of four settings ({settings});
  in float64 on the torch host, where 1e-12 is allowed, in float32 in ONNX Runtime on the other, where 1e-5 is. A
  parameter budget that the frozen part does not allow is replaced by the smallest that it does. `exact`: all settings
  compiled and are within it.
- **moved**: how far the outputs of the pruned network are from those of the unpruned one, relative to the largest; the
  smallest of the settings. A network whose output does not move proves nothing.
- **s**: seconds for loading, grouping, and all four settings with their proofs, on one (shared) core.
- **{name}**: {peer} on the same module, as its documentation says for an unknown network: half of each
  layer's channels by L2, the layers that make the output left alone. No heads were named to it (with
  `num_heads`, and the modules' attributes set by hand afterwards, part of its failures on attention go away); nothing
  about the network was told to graphprune either. Groups with a LayerNorm, GroupNorm or RMSNorm are left out, because
  no cut across one equals its mask. `ok`: it runs and equals, to 1e-9 in float64, the module in which every slice that
  its history says is cut is zero; `wrong`: it runs, and differs by the number given, or has an output of another
  shape; `crash`: an exception, in the tool or in the pruned network; `hang`: no end after 30 seconds of processor time;
  `nothing`: not one channel was cut. In brackets: parameters left.

{versions}

"""
COLUMNS = ("architecture", "host", "groups", "dense", "left", "frozen", "error", "moved", "s", "Torch-Pruning")
SHORT = {
    "reaches the graph output": "output",
    "graph input": "input",
    "normalises across it": "normalises",
    "reduce reduces over it": "reduce",
}


def document(families: Mapping[str, str], rows: Mapping[str, Results], versions: Mapping[str, str]) -> str:
    """The whole page, from the results by architecture and column."""
    head = HEAD.format(
        count=len(families),
        summary="\n".join(_summary(rows)),
        settings="channels 0.7x and 0.5x uniform, parameters 0.7x and 0.5x global",
        name=PEER,
        peer=f"{PEER} {versions['torch-pruning']}",
        versions="Versions: " + ", ".join(f"{name} {number}" for name, number in versions.items()) + ".",
    )
    lines = [head, "## The table", ""]
    for family in dict.fromkeys(families.values()):
        lines += [f"### {family[0].upper()}{family[1:]}", "", _line(COLUMNS), _line(["---"] * len(COLUMNS))]
        for name in (name for name, one in families.items() if one == family):
            lines += [_line(_cells(name, host, rows[name])) for host in HOSTS]
        lines.append("")
    lines += ["## Rows that are not exact, and why", ""]
    lines += [f"- **{name}, {host}**: {why}" for name, host, why in _exceptions(rows)] or ["None."]
    return "\n".join(lines) + "\n"


def status(result: Mapping[str, Any]) -> str:
    """exact, refused, failed, crash or hang."""
    if "outcome" in result:
        return str(result["outcome"])
    if "refused" in result:
        return "refused"
    return "failed" if any("failed" in setting for setting in result["settings"]) else "exact"


def _summary(rows: Mapping[str, Results]) -> Iterator[str]:
    for host in HOSTS:
        found = [results[host] for results in rows.values() if host in results]
        counts = Counter(map(status, found))
        whole = sum(1 for result in found if result.get("dense") and not _unexplained(result))
        yield f"- {host} host: {_counts(counts)} of {len(found)}; in {whole} nothing that is frozen lacks a rule"
    peers = Counter(results[PEER]["outcome"] for results in rows.values() if PEER in results)
    yield f"- {PEER} on the same modules: {_counts(peers)} of {sum(peers.values())}"


def _unexplained(result: Mapping[str, Any]) -> bool:
    return any("no rule for" in reason for reason in result["frozen"])


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{number} {name}" for name, number in sorted(counts.items(), key=lambda item: -item[1]))


def _exceptions(rows: Mapping[str, Results]) -> Iterator[tuple[str, str, str]]:
    for name, results in rows.items():
        for host in HOSTS:
            result = results.get(host)
            if result is None or status(result) == "exact":
                continue
            failed = [setting["failed"] for setting in result.get("settings", ()) if "failed" in setting]
            why = result.get("refused") or result.get("detail") or "; ".join(dict.fromkeys(failed))
            yield name, host, f"{status(result)}: {' '.join(str(why).split())}"


def _cells(name: str, host: str, results: Results) -> list[str]:
    result = results.get(host)
    peer = _peer(results.get(PEER)) if host == HOSTS[0] else ""
    start = [name, host]
    if result is None:
        return [*start, *["not measured"], *[""] * 6, peer]
    if "groups" not in result:
        return [*start, "", "", "", "", f"**{status(result)}**", "", "", peer]
    frozen = ", ".join(f"{SHORT.get(reason, reason)} {number}" for reason, number in result["frozen"].items())
    good = [setting for setting in result["settings"] if "error" in setting]
    error = f"{max(setting['error'] for setting in good):.0e}" if good else "-"
    moved = f"{min(setting['moved'] for setting in good):.2f}" if good else "-"
    verdict = f"exact, {error}" if status(result) == "exact" else f"**{status(result)}**, {error}"
    dense = f"{result['prunable']}/{result['dense']}, {result['share']:.0%}"
    groups = f"{result['groups']} ({result['channels']})"
    return [*start, groups, dense, f"{result['least']:.0%}", frozen, verdict, moved, f"{result['seconds']:.1f}", peer]


def _peer(result: Mapping[str, Any] | None) -> str:
    if result is None:
        return "not measured"
    left = f" ({result['left']:.0%})" if "left" in result else ""
    if result["outcome"] == "wrong":
        return f"**wrong**, {result.get('detail') or format(result['error'], '.0e')}{left}"
    if result["outcome"] == "ok":
        return f"ok{left}"
    return "nothing" if result["outcome"] == "nothing" else f"**{result['outcome']}**: {result['detail']}"


def _line(cells: list[str] | tuple[str, ...]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"
