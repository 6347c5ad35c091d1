"""Folders of the transformers library: ``config.json``, weights in safetensors, a tokeniser. Nothing in them is run,
unpickled or downloaded: the class is the library's own."""

from __future__ import annotations

import copy
import inspect
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...errors import DataError, ModelError, raised
from . import own_class
from .configuration import FIELDS, HEADS, Configuration
from .export import caches_are_known
from .tokenizer import Tokenizer, numbers
from .weight_files import check_files

SAMPLES, LENGTH, FRAMES = 2, 128, 50
"""Of the example, that a network is traced on; of text, so many tokens make a sample (fewer where no more fit), of
sound so many frames, about a second."""
MOST_SAMPLES = 512
WEIGHTS = (".safetensors", ".bin", ".pt", ".pt2", ".pth", ".ckpt", ".msgpack", ".h5", ".onnx", ".gguf", ".index.json")
"""Files of a folder that hold weights; what else lies beside them is carried along."""
OURS = (own_class.CLASS_FILE, "rebuild.py", "widths.json", "plan.json", "report.json", "report.html")
"""But for what tells of a network that was compiled before."""


@dataclass(frozen=True)
class Pretrained:
    """A network of the library and the folder that it is from (None: it was made in Python)."""

    model: Any
    folder: Path | None = None
    widths: Mapping[str, Any] | None = None  # as in widths.json, of a class that no configuration says: see own_class
    unread: tuple[str, ...] = ()  # weights in the folder that the class has no place for

    @property
    def notes(self) -> tuple[str, ...]:
        """What there is to say of it."""
        if not self.unread:
            return ()
        count, first = len(self.unread), self.unread[0]
        which = f"`{first}` in {self.folder} is" if count == 1 else f"{count} tensors in {self.folder} are"
        more = "" if count == 1 else f", the first `{first}`"
        return (f"{which} left out, for which {self.kind.__name__} has no place{more}",)

    def example(self, samples: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Example inputs as torch.export takes them; by name, ``samples`` (arrays) or sizes that they are to have.
        Raises DataError where some are given that are read beside others alone."""
        made = example_of(self.model)
        takes = inspect.signature(self.model.forward).parameters
        samples = samples or {}
        if len(samples) == len(made) and not samples.keys() & takes.keys():  # then data is taken in order
            samples = dict(zip(made, samples.values(), strict=True))
        own = {name: item for name, item in samples.items() if name in takes and _traced(item, made.get(name))}
        parts = own.keys() - made.keys(), made.keys() - samples.keys()
        more, lacking = (", ".join(f"`{name}`" for name in sorted(part)) for part in parts)
        if more and lacking:
            raise DataError(
                f"{more} is given and {lacking} is not, which {self.kind.__name__} reads beside it",
                f"give all by name: {', '.join([*made, *(name for name in own if name not in made)])}",
            )
        if any(name not in made or _sizes(item)[1:] != tuple(made[name].shape)[1:] for name, item in own.items()):
            made |= {name: _sized(made.get(name), item) for name, item in own.items()}
        return {"args": (), "kwargs": made | _without_cache(self.model)}

    @property
    def kind(self) -> Any:
        """The library's class."""
        return type(self.model) if self.widths is None else type(self.model).__base__

    @cached_property
    def configuration(self) -> Configuration:
        """That of the library's class: before widths that it does not say. Where heads are narrower since, none of its
        fields says how many there are."""
        if self.widths is None:
            return Configuration(self.kind, self.model.config)
        config = copy.deepcopy(self.model.config)
        for name in (own_class.WIDTHS, "auto_map"):
            delattr(config, name)
        narrower = any(size in own_class.HEAD_WIDTHS for sizes in self.widths["layers"].values() for size in sizes)
        return Configuration(self.kind, config, [name for name in FIELDS if not (narrower and name in HEADS)])

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """None where there is none. Raises ModelError where it is of a kind that cannot be trimmed."""
        return Tokenizer.read(self.folder) if self.folder else None

    @property
    def special_tokens(self) -> tuple[Sequence[int], int | None]:
        """See ir.Host.special_tokens. What is out of the vocabulary (a token of images, say) is none."""
        size, own = getattr(self.model.config.get_text_config(), "vocab_size", 0), self._known
        parts = (self.model.config, getattr(self.model, "generation_config", None))
        said = {token for part in parts if part is not None for token in numbers(part)}
        said.update(own.special if own else ())
        return sorted(token for token in said if token < size), own.unknown if own else None

    def tokens_within(self, tokens: Sequence[int]) -> Sequence[int]:
        """See ir.Host.tokens_within."""
        return self._known.within(tokens) if self._known else tokens

    @property
    def _known(self) -> Tokenizer | None:
        try:
            return self.tokenizer
        except ModelError:  # which is said where it is to be written
            return None

    def carry(self, out: Path) -> None:
        """What is beside the weights (tokeniser, preprocessing, licence), into a folder that has not got it."""
        for path in sorted(self.folder.iterdir()) if self.folder else ():
            ours = path.name in OURS or path.name.endswith(WEIGHTS)
            if path.is_file() and not ours and not (out / path.name).exists():
                shutil.copyfile(path, out / path.name)


def read(folder: Path) -> Pretrained:
    """The network of a folder. Raises ModelError."""
    where = folder / "config.json"
    if not where.is_file():
        what = "no config.json in it" if folder.is_dir() else "no such folder"
        if (folder / "adapter_config.json").is_file():
            raise ModelError(
                f"{folder}: an adapter, without the network that it is for",
                "merge it: PeftModel.from_pretrained(model, FOLDER).merge_and_unload().save_pretrained(OUT)",
            )
        raise ModelError(
            f"{folder}: {what}",
            "nothing is fetched by its name: give a folder that model.save_pretrained(FOLDER) wrote",
        )
    library = _library()
    must = "its `architectures` must list the class of the network"
    try:
        written = json.loads(where.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{where}: {raised(error)}", must) from error
    names = written.get("architectures") if isinstance(written, dict) else None
    if not (isinstance(names, list) and names and isinstance(names[0], str)):
        raise ModelError(f"{where}: no class is named in it", must)
    name = own_class.called(folder, written, names[0])
    found: Any = getattr(library, name, None)
    if not (inspect.isclass(found) and issubclass(found, library.PreTrainedModel)):
        own = " It has code of its own (auto_map), which is not run." if "auto_map" in written else ""
        raise ModelError(
            f"{where}: transformers {library.__version__} has no class `{name}`.{own}",
            "load it in a function of yours: path/to/file.py:factory",
        )
    if isinstance(quantised := written.get("quantization_config"), dict):
        how = quantised.get("quant_method", "no method is named")
        raise ModelError(
            f"{where}: its weights are quantised ({how}), and a cut is of numbers as they were trained",
            "give the folder that it was made from, and quantise what comes out",
        )
    if not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"{folder}: no .safetensors in it",
            "other weights are pickles, which can run code: load them yourself and save_pretrained again",
        )
    check_files(folder)
    try:
        kind: Any = own_class.of(found) if names[0] != name else found
        options = {"local_files_only": True, "use_safetensors": True, "dtype": "auto"}
        model, info = kind.from_pretrained(folder, **options, output_loading_info=True, ignore_mismatched_sizes=True)
    except Exception as error:  # whatever the library raises
        raise ModelError(f"{folder}: {raised(error)}", "try AutoModel.from_pretrained on it") from error
    if lacking := sorted(info["missing_keys"]):
        raise ModelError(
            f"{folder}: {len(lacking)} weights of {names[0]} are not in its files, the first `{lacking[0]}`",
            "they would be random; `architectures` in config.json may be another class than was saved",
        )
    for lacking, have, want in sorted(info["mismatched_keys"]):
        sizes = ["x".join(map(str, shape)) for shape in (have, want)]
        raise ModelError(
            f"{folder}: `{lacking}` is {sizes[0]} in its files, and {sizes[1]} by config.json",
            "they are of two networks: take both from one folder",
        )
    unread = tuple(sorted(info["unexpected_keys"]))
    return Pretrained(model.eval(), folder, written[own_class.WIDTHS] if kind is not found else None, unread)


def check_written(folder: Path, model: Any) -> None:
    """Raises ModelError where what is loaded of a folder is not, to the last bit, what was written there."""
    found = read(folder).model.state_dict()
    for name, tensor in model.state_dict().items():
        if name not in found or not torch.equal(found[name], tensor.to(found[name].dtype)):
            raise ModelError(f"`{name}` does not come back as it was written")


def _library() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ModelError(
            "folders of transformers need that library", "pip install 'graphprune[transformers]'"
        ) from error
    return transformers


def example_of(model: Any) -> dict[str, torch.Tensor]:
    """Inputs of the sizes that the configuration says, by the names of forward. Raises ModelError where it does not."""
    config, made = model.config, np.random.default_rng(0)

    def tokens(vocabulary: int) -> torch.Tensor:
        return torch.from_numpy(made.integers(3, vocabulary, (SAMPLES, _length(config))))

    def image(vision: Any) -> torch.Tensor:
        size = getattr(vision, "image_size", 224)
        sides = (size, size) if isinstance(size, int) else tuple(size)
        pixels = made.standard_normal((SAMPLES, getattr(vision, "num_channels", 3), *sides), np.float32)
        return torch.from_numpy(pixels).to(model.dtype)

    text, vision = getattr(config, "text_config", config), getattr(config, "vision_config", config)
    main = model.main_input_name
    both = vision is not config and "input_ids" in inspect.signature(model.forward).parameters
    if main == "pixel_values" and not both:
        return {"pixel_values": image(config)}
    if main == "input_features":
        frames = made.standard_normal((SAMPLES, config.num_mel_bins, 2 * config.max_source_positions), np.float32)
        found = {"input_features": torch.from_numpy(frames).to(model.dtype)}
    elif main == "input_values" and (ratio := getattr(config, "inputs_to_logits_ratio", None)):  # samples of a frame
        waves = made.standard_normal((SAMPLES, FRAMES * ratio), np.float32)
        found = {"input_values": torch.from_numpy(waves).to(model.dtype)}
    elif main in ("input_ids", "pixel_values"):
        if (sizes := "image_grid_thw") in inspect.signature(model.forward).parameters:
            raise ModelError(
                f"{type(model).__name__} reads sizes of images from a tensor, `{sizes}`, and loops by them: "
                "torch.export has no form of that",
                'its language model alone goes: a function of yours that returns (model, {"input_ids": ids}), given as '
                "path/to/file.py:factory",
            )
        found = {"input_ids": tokens(text.vocab_size)}
        if vision is not config:
            found["pixel_values"] = image(vision)
        if vision is not config and getattr(config, "image_token_id", None) is not None:
            found |= _merged(model, **found)
    else:
        raise ModelError(
            f"{type(model).__name__} reads `{main}`, of which no example can be made",
            "load it in a function of yours that returns (model, example_inputs)",
        )
    if config.is_encoder_decoder:
        found["decoder_input_ids"] = tokens(text.vocab_size)
    return found


def _merged(model: Any, input_ids: torch.Tensor, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of a vision-language model: as many tokens of images before the text as its images have features, and in it none.
    Some take several images a sample, along an axis of their own. Raises ModelError."""
    image, why = int(model.config.image_token_id), ""
    for pixels in (pixel_values, pixel_values.unsqueeze(1)):
        try:
            with torch.no_grad():
                made = model.get_image_features(pixel_values=pixels)
        except Exception as error:  # whatever the class raises
            why = why or raised(error)
            continue
        features = getattr(made, "pooler_output", made)
        count = sum(len(one) for one in features) // len(pixels)
        before = torch.full((len(pixels), count), image)
        text = input_ids.masked_fill(input_ids == image, 3 if image != 3 else 4)
        ids = torch.cat([before, text], 1)
        found = {"input_ids": ids, "pixel_values": pixels}
        if getattr(model.config.get_text_config(), "use_bidirectional_attention", False):  # between which it attends
            found["token_type_ids"] = torch.zeros_like(ids)
        return found
    raise ModelError(
        f"{type(model).__name__}: no example of an image can be made ({why})",
        "load it in a function of yours that returns (model, example_inputs)",
    )


def _traced(item: Any, made: torch.Tensor | None) -> bool:
    """Whether a network may be traced on what is given for an input: of other numbers than its own example has, or of
    other axes where those are tokens, one error is told where the data is read."""
    if not hasattr(item, "shape"):
        return made is not None and isinstance(item, tuple) and all(type(n) is int for n in item)
    kind = next((kind for kind in ("float", "int", "bool") if kind in str(item.dtype)), "")
    if made is None:
        return bool(kind)
    return kind == "float" if made.is_floating_point() else kind == "int" and item.ndim == made.ndim


def _sizes(item: Any) -> tuple[int, ...]:
    return item if isinstance(item, tuple) else tuple(item.shape)


def _sized(made: torch.Tensor | None, item: Any) -> torch.Tensor:
    """What was given, in the network's precision, or an example of that size: what is cut off, or said again, is the
    end."""
    if not isinstance(item, tuple):
        given = torch.as_tensor(item)
        return given.to(made.dtype) if made is not None and made.is_floating_point() else given
    assert made is not None  # see _is_sized
    for axis, size in enumerate(item):
        made = made.index_select(axis, torch.arange(size).clamp(max=made.shape[axis] - 1))
    return made


def _length(config: Any) -> int:
    """Tokens of a sample."""
    text = getattr(config, "text_config", config)
    limits = (
        "max_position_embeddings",
        "n_positions",
        "max_target_positions",
        "max_seq_len",
        "max_decoder_position_embeddings",
    )
    # what pads is left out of the positions of RoBERTa and its kin
    return min([LENGTH, *(int(own) - 4 for name in limits if (own := getattr(text, name, None)) and own > 4)])


def _without_cache(model: Any) -> dict[str, Any]:
    """How one is asked to hand out no cache where tracing does not see to that by itself, see export.evaluated."""
    configs = (model.config, model.config.get_text_config(decoder=True)) if caches_are_known() else ()
    return {"use_cache": False} if any(getattr(config, "use_cache", False) for config in configs) else {}


def tokenised(folder: Path, text: Path) -> dict[str, np.ndarray[Any, Any]]:
    """A text file by the tokeniser of a folder, packed into samples of equal length. Raises DataError."""
    library = _library()
    try:
        content = text.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{text}: not UTF-8, at byte {error.start}", f"iconv -f latin1 -t utf-8 {text.name}, if it is Latin-1"
        ) from error
    except OSError as error:
        raise DataError(f"{text}: {error.strerror}", "give a text file, or an .npz with an array per input") from error
    try:
        tokenizer = library.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        ids = tokenizer(content, verbose=False)["input_ids"]
        config = library.AutoConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # whatever the library raises
        hint = f"{folder} needs its tokeniser; or give an .npz with an array per input"
        raise DataError(f"{text}: {raised(error)}", hint) from error
    length = _length(config)
    count = min(len(ids) // length, MOST_SAMPLES)
    if count < 2:
        raise DataError(f"{text}: {len(ids)} tokens, and a sample takes {length}", "give text of some thousand words")
    packed = np.array(ids[: count * length], np.int64).reshape(count, length)
    return {"input_ids": packed, **({"decoder_input_ids": packed} if config.is_encoder_decoder else {})}


def made_from(kind: type, config: Any, state: Mapping[str, torch.Tensor], dtype: torch.dtype) -> Any:
    """A network with a configuration and, not copied, weights. Raises RuntimeError where they do not fit."""
    with as_loaded(dtype):
        model = kind(config).eval()
    model.load_state_dict(state, assign=True)
    model.tie_weights()
    return model


@contextmanager
def as_loaded(dtype: torch.dtype) -> Iterator[None]:
    """Within, parameters that are made take no memory, and what a class computes of a configuration (tables of angles)
    is what it is where the library loads it: the default is ``dtype``, and what asks for more has more."""
    register, before = torch.nn.Module.register_parameter, torch.get_default_dtype()

    def without(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter | None) -> None:
        empty = parameter if parameter is None else torch.nn.Parameter(parameter.to("meta"), parameter.requires_grad)
        register(module, name, empty)

    torch.nn.Module.register_parameter = without  # type: ignore[method-assign, assignment]
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.nn.Module.register_parameter = register  # type: ignore[method-assign]
        torch.set_default_dtype(before)


def automatic(kind: Any) -> list[str]:
    """The names of the library's classes by which people load networks of a class, ``AutoModel`` and its kin."""
    library = _library()
    found = []
    for name in dir(library):
        mapping = getattr(getattr(library, name), "_model_mapping", None) if name.startswith("AutoModel") else None
        named = mapping.get(kind.config_class, ()) if mapping is not None else ()
        if kind in (named if isinstance(named, tuple) else (named,)):
            found.append(name)
    return found
