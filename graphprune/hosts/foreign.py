"""Files of other kinds that people give as a model: what they are, by their first bytes and the names of what they
hold, and the way from there to one that can be compiled. Nothing is unpickled to know it."""

from __future__ import annotations

import zipfile
from pathlib import Path

from ..errors import ModelError

_EXPORT = "torch.export.save(torch.export.export(module, example_inputs), 'model.pt2')"
_TF = "convert it: python -m tf2onnx.convert"
_BY_START = (
    (b"\x89HDF\r\n\x1a\n", 0, "a Keras or HDF5 file", f"{_TF} --keras FILE --output model.onnx"),
    (b"TFL3", 4, "a TensorFlow Lite model", f"{_TF} --tflite FILE --output model.onnx"),
    (b"GGUF", 0, "a GGUF file of quantised weights", "prune the model that it was made from"),
)
_BY_SUFFIX = {
    ".keras": ("a Keras model", f"{_TF} --keras FILE --output model.onnx"),
    ".pb": ("a TensorFlow graph", f"{_TF} --saved-model FOLDER --output model.onnx"),
    ".ort": ("a model in ONNX Runtime's own format", "give the .onnx file that it was made from"),
    ".engine": ("a TensorRT engine, compiled already", "give the model that it was made from"),
    ".trt": ("a TensorRT engine, compiled already", "give the model that it was made from"),
    ".mlmodel": ("a Core ML model", "give the model that it was converted from"),
    ".safetensors": ("weights alone (safetensors)", ""),
}


def refuse_foreign(path: Path) -> None:
    """Raises ModelError with the way out where a file is of a known kind that is not compiled."""
    found = _kind(path)
    if found is not None:
        what, hint = found
        raise ModelError(f"{path}: {what}", hint or _weights(path))


def _kind(path: Path) -> tuple[str, str] | None:
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError:
        return None  # whoever reads it says so
    for magic, at, what, hint in _BY_START:
        if start[at : at + len(magic)] == magic:
            return what, hint
    if start[:4] == b"PK\x03\x04":
        return _archive(path)
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "a pickle, an old checkpoint maybe: it is not opened, for reading it would run code", _weights(path)
    return _BY_SUFFIX.get(path.suffix)


def _archive(path: Path) -> tuple[str, str] | None:
    """Of a zip: torch's three kinds, told apart by the names of their members."""
    try:
        with zipfile.ZipFile(path) as archive:
            inside = {name.partition("/")[2] for name in archive.namelist()}
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return _BY_SUFFIX.get(path.suffix)
    if "constants.pkl" in inside:
        return (
            "a TorchScript archive (torch.jit.save), which has lost what torch.export needs",
            f"export the nn.Module that it was made from: {_EXPORT}; or give path/to/file.py:factory",
        )
    if "data.pkl" in inside:
        what = "a checkpoint (torch.save): weights, not what computes with them; it is not opened, for that runs code"
        return what, _weights(path)
    if "models/model.json" in inside and path.suffix != ".pt2":
        return "a program of torch.export by another name", f"name it {path.with_suffix('.pt2').name}"
    return _BY_SUFFIX.get(path.suffix)


def _weights(path: Path) -> str:
    load = "safetensors.torch.load_file" if path.suffix == ".safetensors" else "torch.load"
    return (
        f"put them into their network: in net.py, def net(): m = Net(); m.load_state_dict({load}({path.name!r})); "
        "return m.eval(), (example,) -- and give net.py:net"
    )
