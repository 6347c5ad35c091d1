"""Tokenisers that are trimmed with a vocabulary: ``tokenizer.json``, what it says of others' numbers, and what
configurations do."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeGuard

from ...errors import ModelError, raised

FILE, SETTINGS = "tokenizer.json", "tokenizer_config.json"
OTHERS = (
    *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "source.spm", "target.spm", "bpe.model"),
    *("vocab.json", "merges.txt", "vocab.txt", "vocab.bpe", "added_tokens.json", "tekken.json", "tokenizer_file.json"),
)
"""Other files that number tokens: what ``tokenizer.json`` says takes their place."""
LISTS = ("suppress_tokens", "begin_suppress_tokens")
TABLES = ("task_to_id", "lang_to_id")
PAIRS = "forced_decoder_ids"
FORCED = "force_words_ids"
UNWANTED = ("bad_words_ids", "sequence_bias")
"""Of a configuration, beside single tokens and lists of them that ``_token_id`` and the like say: lists that lose
tokens, tables of tokens by name, pairs of a position and a token, words (or choices of words) of several tokens, and
those that need not stay: a word that cannot occur need be neither barred nor weighed."""
ENDS = ("sep", "cls")
"""Of what puts tokens around text: those that are given as a token and its number."""


def numbers(config: Any) -> list[int]:
    """The tokens that a configuration names and that have to stay: its own and those of its parts."""
    named = ((name, value) for _, name, value in _named(config) if name not in UNWANTED)
    return sorted({token for name, value in named for token in _flat(name, value)})


def with_numbers(config: Any, new: Mapping[int, int]) -> Any:
    """A copy of a configuration that names tokens by other numbers. Lists lose those that are not among them, and
    words that hold one."""
    config = copy.deepcopy(config)
    for part, name, value in list(_named(config)) if new else ():
        setattr(part, name, _renumbered(name, value, new))
    return config


def resize(model: Any, was: Any, new: Mapping[int, int]) -> None:
    """Tell a network that was cut to these tokens, ``was`` before: its configuration, and of the embeddings that were
    cut those that know which token pads."""
    size, layers = len(was.get_input_embeddings().weight), dict(was.named_modules())
    model.config = with_numbers(model.config, new)
    for part in (model.config, *(value for value in vars(model.config).values() if hasattr(value, "to_dict"))):
        if getattr(part, "vocab_size", None) == size:
            part.vocab_size = len(new)
    for name, layer in model.named_modules():
        rows = getattr(layer, "num_embeddings", None), getattr(layers[name], "num_embeddings", None)
        if rows == (len(new), size) and layer.padding_idx is not None:
            layer.padding_idx = new.get(layer.padding_idx, layer.padding_idx)


def _named(config: Any) -> Iterator[tuple[Any, str, Any]]:
    """The parts of a configuration, what in them names tokens, and how it does."""
    for name, value in vars(config).items():
        if hasattr(value, "to_dict"):
            yield from _named(value)
        elif value is not None and (
            name.endswith(("_token_id", "_token_ids", "_token_index"))
            or name in (*LISTS, *TABLES, PAIRS, FORCED, *UNWANTED)
        ):
            yield config, name, value


def _flat(name: str, value: Any) -> Iterator[int]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for one in value:
            yield from _flat("", one[1] if name == PAIRS else one)
    elif isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        yield value


def _renumbered(name: str, value: Any, new: Mapping[int, int]) -> Any:
    if name in LISTS:
        return [new[token] for token in value if token in new]
    if name == PAIRS:  # a position may say that its token is still to be found out: None
        return [[place, new.get(token)] for place, token in value if token is None or token in new]
    if name == "sequence_bias" and isinstance(value, Mapping):
        return {tuple(word): bias for word, bias in _renumbered(name, list(value.items()), new)} or None
    if name == "sequence_bias":
        return [[[new[k] for k in word], bias] for word, bias in value if new.keys() >= set(word)] or None
    if name in ("bad_words_ids", FORCED):
        return _words(value, new) or None
    if isinstance(value, Mapping):
        return {key: new[token] for key, token in value.items() if token in new}
    if isinstance(value, (list, tuple)):
        return [_renumbered("", one, new) for one in value]
    return new.get(value, value)


def _words(words: Any, new: Mapping[int, int]) -> list[Any]:
    """Those of words, or of choices of words, whose tokens are all left."""
    found = list[Any]()
    for one in words:
        if any(isinstance(part, (list, tuple)) for part in one):
            found += [some] if (some := _words(one, new)) else []
        elif new.keys() >= set(one):
            found.append([new[token] for token in one])
    return found


@dataclass(frozen=True)
class Tokenizer:
    """What ``tokenizer.json`` says, and ``tokenizer_config.json`` beside it. (Hugging Face tokenizers, format 1.0.)"""

    said: Mapping[str, Any]
    settings: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Tokenizer | None:
        """That of a folder, made by the library where it lies there in another format; None where there is none.
        Raises ModelError where it cannot be made."""
        settings = _json(folder / SETTINGS) if (folder / SETTINGS).is_file() else {}
        if (folder / FILE).is_file():
            return cls(_json(folder / FILE), settings)
        if not any((folder / name).is_file() for name in OTHERS):
            return None
        try:
            from transformers import AutoTokenizer

            fast: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            return cls(json.loads(fast.backend_tokenizer.to_str()), settings)
        except Exception as error:  # whatever the library raises; a slow one has no backend
            raise ModelError(
                f"{folder}: the tokeniser cannot be made a {FILE} ({raised(error)}), the only one that can be trimmed",
                "save it as a fast one: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)",
            ) from error

    @property
    def model(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.said["model"]
        return found

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """Every token of the model and its number."""
        listed = self.model["vocab"]
        return dict(listed) if isinstance(listed, Mapping) else {one[0]: k for k, one in enumerate(listed)}

    @property
    def special(self) -> list[int]:
        """Tokens that are added to those of the model, that are put around text, that pad, and the unknown one."""
        added = [int(token["id"]) for token in self.said.get("added_tokens") or ()]
        pads = [int(self.said["padding"]["pad_id"])] if self.said.get("padding") else []
        unknown = [] if self.unknown is None else [self.unknown]
        return sorted({*added, *_around(self.said.get("post_processor")), *pads, *unknown})

    @property
    def unknown(self) -> int | None:
        if self.model.get("unk_id") is not None:
            return int(self.model["unk_id"])
        named = self.model.get("unk_token") or self.settings.get("unk_token")
        name = named["content"] if isinstance(named, Mapping) else named
        known = {token["content"]: int(token["id"]) for token in self.said.get("added_tokens") or ()}
        return known.get(name, self.vocabulary.get(name)) if name else None

    @property
    def _scores(self) -> list[float]:
        """Of a unigram model the log probability of each token; of others nothing."""
        listed = self.model["vocab"]
        return [] if isinstance(listed, Mapping) else [float(one[1]) for one in listed]

    # ---- byte pairs ------------------------------------------------------------------------------------------

    @cached_property
    def _merges(self) -> dict[tuple[str, str], int]:
        listed = self.model.get("merges") or ()
        pairs = (one.split(" ", 1) if isinstance(one, str) else one for one in listed)
        return {(str(one), str(other)): rank for rank, (one, other) in enumerate(pairs)}

    def within(self, tokens: Sequence[int]) -> list[int]:
        """With these tokens, in order, those that byte-pair encoding makes them of on the way: without them it would
        not come there. Where text that nothing covers would be lost, no token being for what is unknown, also all that
        no others make. Where tokens have scores, one of the lowest stays, which what is unknown is scored by (less 10,
        tokenizers' ``K_UNK_PENALTY``). Other models take a token as it is."""
        found, scores = set(tokens), self._scores
        if scores and min(scores) not in {scores[token] for token in found if token < len(scores)}:
            found.add(scores.index(min(scores)))
        if self.model.get("type", "BPE" if "merges" in self.model else "") != "BPE":
            return sorted(found)
        named = {number: token for token, number in self.vocabulary.items()}
        for number in tokens:
            made = self._path(named.get(number, ""))
            found.update(self.vocabulary[one] for one in made)
        if self.model.get("unk_token") is None and not self.model.get("byte_fallback"):
            merged = {self._joined(*pair) for pair in self._merges}
            found.update(number for token, number in self.vocabulary.items() if token not in merged)
        return sorted(found)

    def _path(self, token: str) -> list[str]:
        """All that a token is made of on the way to it; nothing where the merges do not lead there."""
        parts = self._symbols(token)
        made = list(parts)
        while len(parts) > 1:
            pairs = [(self._merges.get(pair, len(self._merges)), k) for k, pair in enumerate(pairwise(parts))]
            rank, at = min(pairs)
            if rank == len(self._merges):
                return []
            parts[at : at + 2] = [self._joined(*parts[at : at + 2])]
            made.append(parts[at])
        return made if all(one in self.vocabulary for one in made) else []

    def _symbols(self, token: str) -> list[str]:
        prefix, suffix = (self.model.get(name) or "" for name in ("continuing_subword_prefix", "end_of_word_suffix"))
        ends = bool(suffix) and token.endswith(suffix)
        letters = list(token.removesuffix(suffix) if ends else token.removeprefix(prefix))
        parts = [prefix * (k > 0) + letter for k, letter in enumerate(letters)]
        if ends and parts:
            parts[-1] += suffix
        return parts

    def _joined(self, one: str, other: str) -> str:
        return one + other.removeprefix(self.model.get("continuing_subword_prefix") or "")

    # ---- trimmed ---------------------------------------------------------------------------------------------

    def trimmed(self, new: Mapping[int, int]) -> Tokenizer:
        """The same of the tokens ``new`` alone, by the numbers that it gives them, and the merges that are still
        possible. Raises ModelError where one goes that is put around text, or the one for what is unknown."""
        unknown = [] if self.model.get("unk_id") is None else [self.model["unk_id"]]
        if gone := sorted({*_around(self.said.get("post_processor")), *unknown} - new.keys()):
            raise ModelError(
                f"the tokeniser puts token {gone[0]} around text or for what is unknown, and it is not among those "
                "that stay",
                f"write vocabulary{{keep={gone[0]}}}",
            )
        said = copy.deepcopy(dict(self.said))
        model, listed = said["model"], self.model["vocab"]
        if isinstance(listed, Mapping):
            numbered = {token: new[number] for token, number in listed.items() if number in new}
            model["vocab"] = dict(sorted(numbered.items(), key=lambda one: one[1]))
        else:
            model["vocab"] = [one for number, one in enumerate(listed) if number in new]
        if model.get("unk_id") is not None:
            model["unk_id"] = new[model["unk_id"]]
        if "merges" in model:
            left = model["vocab"]
            model["merges"] = [list(pair) for pair in self._merges if {*pair, self._joined(*pair)} <= left.keys()]
        tokens = [token for token in said.get("added_tokens") or () if token["id"] in new]
        said["added_tokens"] = [{**token, "id": new[token["id"]]} for token in tokens]
        said["post_processor"] = _processor(said.get("post_processor"), new)
        if said.get("padding"):
            said["padding"]["pad_id"] = new.get(said["padding"]["pad_id"], said["padding"]["pad_id"])
        settings = dict(self.settings)
        if known := settings.get("added_tokens_decoder"):
            settings["added_tokens_decoder"] = {str(new[int(k)]): one for k, one in known.items() if int(k) in new}
        return Tokenizer(said, settings)

    def write(self, folder: Path) -> None:
        """Put it in the place of what numbers tokens there."""
        for name in OTHERS:
            (folder / name).unlink(missing_ok=True)
        for name, content in ((FILE, self.said), (SETTINGS, self.settings)):
            (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _processor(part: Any, new: Mapping[int, int]) -> Any:
    """What puts special tokens around text, by other numbers."""
    if isinstance(part, list):
        return [_processor(one, new) for one in part]
    if not isinstance(part, dict):
        return part
    made = {name: _processor(value, new) for name, value in part.items()}
    if isinstance(part.get("ids"), list):
        made["ids"] = [new[number] for number in part["ids"]]
    for name in ENDS:
        if _is_end(value := part.get(name)):
            made[name] = [value[0], new[value[1]]]
    return made


def _around(part: Any) -> set[int]:
    """The tokens that it puts there."""
    if isinstance(part, list):
        return {token for one in part for token in _around(one)}
    if not isinstance(part, dict):
        return set()
    ends = {value[1] for name in ENDS if _is_end(value := part.get(name))}
    return ends | _around(list(part.values())) | set(part["ids"] if isinstance(part.get("ids"), list) else ())


def _is_end(value: Any) -> TypeGuard[Sequence[Any]]:
    """Whether this is a token and its number."""
    return isinstance(value, (list, tuple)) and len(value) == 2 and isinstance(value[1], int)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path}: {raised(error)}") from error
    if not isinstance(found, dict) or (path.name == FILE and "vocab" not in (found.get("model") or ())):
        raise ModelError(f"{path}: no tokeniser, it has no `model` with a `vocab`")
    return found
