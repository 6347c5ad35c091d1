"""What to do with a result: lines to copy, for the report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Step = Mapping[str, str]

UNWRITTEN = "no widths.json was written"
"""How the note begins that says why."""


def steps(report: Mapping[str, Any]) -> list[Step]:
    """To load, to train on and to deploy what lies in the folder of the report: a title and code each."""
    return [{"title": title, "code": code} for title, code in (*_model(report), *_targets(report))]


def _model(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if report["host"] == "onnx":
        yield "Load it, anywhere that ONNX runs:", _session("model.onnx")
        return
    yield "Load it, where torch is and nothing else:", 'model = torch.export.load("model.pt2").module()'
    if not any(UNWRITTEN in note for note in report.get("notes", ())):
        yield (
            "Your own class at the new widths, to train on (in this folder; graphprune is not needed):",
            "from rebuild import rebuild\n\n"
            'model = rebuild(YourClass(), ".")\n'
            'model.load_state_dict(torch.load("weights.pt"))\n'
            "model.train()  # and your own loop, at about a tenth of the learning rate it ended with",
        )
    else:
        yield (
            "To train on, from Python (where graphprune is):",
            'smaller = gp.apply("plan.json", YourClass(), example_inputs).model\nsmaller.train()',
        )


def _targets(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for label in report["targets"]:
        if label.startswith(("onnx", "ort")) and report["host"] != "onnx":
            yield f"Deploy the code for {label}:", _session(f"{label}/model.onnx")
        elif label.startswith("tvm"):
            yield (
                f"Run and time the code for {label}:",
                f"from graphprune.backends.target import runnable\n\n"
                f'outputs = runnable("{label}").run([array])\n\n'
                f"# graphprune bench {label} OTHER",
            )
        elif label not in ("onnx", "torch"):
            yield f"The code for {label}:", f"ls {label}/"


def _session(path: str) -> str:
    return (
        "import onnxruntime as ort\n\n"
        f'session = ort.InferenceSession("{path}")\n'
        "outputs = session.run(None, {hole.name: array for hole in session.get_inputs()})"
    )
