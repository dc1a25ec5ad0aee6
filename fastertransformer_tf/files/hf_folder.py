"""Reads a HuggingFace BERT folder: JSON objects, the tokenizer's files and the weights.

What is damaged, of a wrong type or more than google's tokenizer can do is refused in one sentence
that names the file and what is in it. What google's tokenizer does is that of google-research/bert
tokenization.py; what HuggingFace's does is that of transformers' BertTokenizer and of the
`tokenizers` package's BertNormalizer, BertPreTokenizer and WordPiece.
"""

from __future__ import annotations

import dataclasses
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fastertransformer_tf.errors import UserError, listed
from fastertransformer_tf.files import text_files

# tokenizer_class of transformers that cut words as google's tokenizer does. PreTrainedTokenizerFast
# and TokenizersBackend do what tokenizer.json says.
_TOKENIZER_CLASSES = (
    "BertTokenizer",
    "DistilBertTokenizer",
    "ElectraTokenizer",
    "PreTrainedTokenizer",
    "TokenizersBackend",
)
# Marks that google's scripts put around sentences, and the one for words that cannot be cut.
_MARKS = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
_SPECIAL_TOKENS = frozenset({"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"})
_FILE_NAME = re.compile(r"(?!\.+$)[^/]+")
# A longer word is unknown: for google's tokenizer from 201 characters on, for transformers' from
# 101 on unless tokenizer.json says otherwise. Limits between the two differ from google's in such
# words alone; others would cut ordinary words in another way.
_WORD_LIMITS = range(100, 201)


def _short(value: object) -> str:
    """`repr` of what a file says, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 100 else text[:100] + "..."


def existing(path: Path) -> Path:
    """Returns `path`.

    Raises:
      FileNotFoundError: There is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    return path


def read_object(path: Path) -> dict[str, Any]:
    """Reads a file that holds a JSON object; see `text_files.read_json`.

    Raises:
      FileNotFoundError: There is no such file.
      UserError: It holds something else.
    """
    content = text_files.read_json(existing(path))
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a JSON {type(content).__name__}, expected an object")
    return content


def is_whole(value: object) -> bool:
    """Whether a value of JSON is a whole number (Python's bool is one, JSON's is none)."""
    return isinstance(value, int) and not isinstance(value, bool)


# ---- Tokenizer -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """What google's tokenizer needs to cut text as the model's own does.

    Attributes:
      vocab: Tokens by their id.
      do_lower_case: Whether text is lower-cased and its accents are stripped.
    """

    vocab: list[str]
    do_lower_case: bool


@dataclasses.dataclass
class _Setting:
    """A setting and the file that said it first; every file must say the same."""

    value: Any = None
    said_by: str = ""

    def say(self, value: Any, said_by: str) -> None:
        """Takes what a file says.

        Raises:
          UserError: Another file said something else.
        """
        if self.said_by and value != self.value:
            raise UserError(
                f"{self.said_by} is {_short(self.value)}, but {said_by} is {_short(value)}: "
                "expected the same in both files"
            )
        self.value, self.said_by = value, said_by


def read_tokenizer(folder: Path, added_tokens: str = "refuse") -> Tokenizer:
    """Reads the vocabulary and the settings of a model's tokenizer.

    Args:
      folder: Holds vocab.txt or a WordPiece tokenizer.json, or both; and maybe
        tokenizer_config.json, special_tokens_map.json and added_tokens.json.
      added_tokens: What to do with tokens beyond the vocabulary of WordPiece, which transformers
        cuts out of a text before anything else and google's tokenizer cannot: "refuse", or "keep"
        to write them into the vocabulary.

    Raises:
      FileNotFoundError: There is no vocabulary.
      UserError: A file is damaged, the files contradict each other, or google's tokenizer cannot do
        what they say.
    """
    config_path = folder / "tokenizer_config.json"
    config = read_object(config_path) if config_path.is_file() else {}
    fast_path = folder / "tokenizer.json"
    fast = read_object(fast_path) if fast_path.is_file() else {}
    lower, strip = _Setting(), _Setting()
    _read_tokenizer_config(config, config_path, lower, strip)
    marks_path = folder / "special_tokens_map.json"
    if marks_path.is_file():
        _check_marks(read_object(marks_path), marks_path)
    if fast:
        _read_normalizer(fast, fast_path, lower, strip)
        _check_pre_and_post(fast, fast_path)
    do_lower_case = lower.value if lower.said_by else True  # transformers' own default
    if strip.said_by and strip.value is not None and strip.value != do_lower_case:
        raise UserError(
            f"{strip.said_by} is {strip.value}, expected {do_lower_case} or null: google's "
            "tokenizer strips accents exactly where it lower-cases, and this model's "
            f"{'does' if do_lower_case else 'does not'} lower-case"
        )
    vocab = _read_vocab(folder, fast, fast_path)
    extra = _read_added_tokens(folder, fast, config)
    return Tokenizer(_add_tokens(vocab, extra, added_tokens), do_lower_case)


def _choice(settings: Mapping[str, Any], key: str, path: Path, default: bool | None) -> bool | None:
    """Reads a boolean that may be left out, or null where the default is."""
    value = settings.get(key, default)
    if not (isinstance(value, bool) or (value is None and default is None)):
        raise UserError(
            f"{path}: {key} is {_short(value)}, expected true or false"
            + (" or null" if default is None else "")
        )
    return value


def _refuse_unless(fine: bool, path: Path, what: str, value: object, expected: str) -> None:
    """Refuses a setting that google's tokenizer cannot follow."""
    if not fine:
        raise UserError(
            f"{path}: {what} is {_short(value)}, expected {expected}: google's tokenizer has "
            "nothing else"
        )


def _read_tokenizer_config(
    config: Mapping[str, Any], path: Path, lower: _Setting, strip: _Setting
) -> None:
    """Reads tokenizer_config.json."""
    if config.get("do_lower_case") is not None:
        lower.say(_choice(config, "do_lower_case", path, True), f"{path}: do_lower_case")
    if config.get("strip_accents") is not None:
        strip.say(_choice(config, "strip_accents", path, None), f"{path}: strip_accents")
    for key in ("tokenize_chinese_chars", "do_basic_tokenize"):
        value = _choice(config, key, path, True)
        _refuse_unless(value is True, path, key, value, "true")
    name = config.get("tokenizer_class")
    known = isinstance(name, str) and name.removesuffix("Fast") in _TOKENIZER_CLASSES
    expected = f"one of {', '.join(_TOKENIZER_CLASSES)}"
    _refuse_unless(name is None or known, path, "tokenizer_class", name, expected)
    never_split = config.get("never_split") or []
    harmless = isinstance(never_split, list) and all(
        isinstance(token, str) and token in _SPECIAL_TOKENS for token in never_split
    )
    _refuse_unless(harmless, path, "never_split", never_split, "null or an empty list")
    _check_marks(config, path)


def _check_marks(settings: Mapping[str, Any], path: Path) -> None:
    """Checks that the marks have the names that google's scripts know."""
    for key, expected in _MARKS.items():
        value = settings.get(key)
        if isinstance(value, dict):  # transformers' AddedToken
            value = value.get("content")
        _refuse_unless(value in (None, expected), path, key, value, repr(expected))


def _part(fast: Mapping[str, Any], key: str, path: Path) -> dict[str, Any] | None:
    """Reads a part of tokenizer.json; None where it is left out.

    Raises:
      UserError: It is null, which means that nothing is done, or not an object.
    """
    if key not in fast:
        return None
    if not isinstance(fast[key], dict):
        raise UserError(
            f"{path}: {key} is {_short(fast[key])}, expected an object: google's tokenizer has "
            "nothing else"
        )
    return fast[key]


def _read_normalizer(fast: Mapping[str, Any], path: Path, lower: _Setting, strip: _Setting) -> None:
    """Reads what tokenizer.json does to a text before it is cut."""
    normalizer = _part(fast, "normalizer", path)
    if normalizer is None:
        return
    kind = normalizer.get("type")
    _refuse_unless(kind == "BertNormalizer", path, "normalizer", kind, "'BertNormalizer'")
    for key in ("clean_text", "handle_chinese_chars"):
        value = _choice(normalizer, key, path, True)
        _refuse_unless(value is True, path, f"normalizer {key}", value, "true")
    lowercase = _choice(normalizer, "lowercase", path, True)
    lower.say(lowercase, f"{path}: normalizer lowercase")
    stripped = _choice(normalizer, "strip_accents", path, None)
    if stripped is None and strip.said_by:
        stripped = lowercase  # What null means here, to be compared with what the other file says.
    if stripped is not None:
        strip.say(stripped, f"{path}: normalizer strip_accents")


def _check_pre_and_post(fast: Mapping[str, Any], path: Path) -> None:
    """Checks how tokenizer.json cuts words, and the marks that it puts around sentences."""
    before = _part(fast, "pre_tokenizer", path)
    if before is not None:
        kind = before.get("type")
        expected = "'BertPreTokenizer'"
        _refuse_unless(kind == "BertPreTokenizer", path, "pre_tokenizer", kind, expected)
    after = fast.get("post_processor")
    if not isinstance(after, dict):
        return
    if after.get("type") == "BertProcessing":
        for key in ("sep", "cls"):
            mark = _MARKS[f"{key}_token"]
            found = after.get(key)
            fine = isinstance(found, list) and found[:1] == [mark]
            _refuse_unless(fine, path, f"post_processor {key}", found, f"'{mark}' and its id")
    if after.get("type") == "TemplateProcessing":
        tokens = after.get("special_tokens")
        names = sorted(tokens) if isinstance(tokens, dict) else tokens
        fine = names == ["[CLS]", "[SEP]"]
        _refuse_unless(fine, path, "post_processor special_tokens", names, "[CLS] and [SEP]")


def _read_vocab(folder: Path, fast: Mapping[str, Any], fast_path: Path) -> list[str]:
    """The WordPiece vocabulary in the order of its ids."""
    vocab_path = folder / "vocab.txt"
    ids = _read_word_piece(fast, fast_path) if fast else None
    if not vocab_path.is_file():
        if ids is None:
            raise FileNotFoundError(f"{folder} holds neither vocab.txt nor tokenizer.json")
        return _in_order(ids, fast_path)
    vocab = text_files.read_lines(vocab_path)
    if not any(vocab):
        raise UserError(f"{vocab_path} is empty, expected a token a line")
    if ids is not None:
        # Of lines that are the same the last one counts, in google's code as in transformers'.
        lines = {token: number for number, token in enumerate(vocab)}
        for token in {**lines, **ids}:
            if lines.get(token) != ids.get(token):
                raise UserError(
                    f"{vocab_path} and {fast_path} contradict each other: the id of "
                    f"{_short(token)} is {lines.get(token)} and {ids.get(token)}, expected the same"
                )
    return vocab


def _read_word_piece(fast: Mapping[str, Any], path: Path) -> dict[str, int]:
    """Checks the model of tokenizer.json; returns its tokens and their ids."""
    model = fast.get("model")
    if not isinstance(model, dict) or model.get("type") != "WordPiece":
        kind = model.get("type") if isinstance(model, dict) else model
        raise UserError(f"{path}: model type is {_short(kind)}, expected 'WordPiece'")
    for key, expected in (("unk_token", "[UNK]"), ("continuing_subword_prefix", "##")):
        value = model.get(key, expected)
        _refuse_unless(value == expected, path, f"model {key}", value, repr(expected))
    limit = model.get("max_input_chars_per_word", _WORD_LIMITS[0])
    fine = is_whole(limit) and limit in _WORD_LIMITS
    expected = f"{_WORD_LIMITS[0]} to {_WORD_LIMITS[-1]}"
    _refuse_unless(fine, path, "model max_input_chars_per_word", limit, expected)
    ids = model.get("vocab")
    if not isinstance(ids, dict) or not ids or not all(map(is_whole, ids.values())):
        raise UserError(f"{path}: model vocab is {_short(ids)}, expected tokens and their ids")
    return ids


def _in_order(ids: Mapping[str, int], path: Path) -> list[str]:
    """Tokens by their id, as lines of a vocab.txt."""
    vocab = sorted(ids, key=ids.__getitem__)
    if sorted(ids.values()) != list(range(len(vocab))):
        raise UserError(f"{path}: expected the ids 0 ... {len(vocab) - 1}, each once")
    for token in vocab:
        if not _is_line(token):
            raise UserError(f"{path}: token {_short(token)} cannot be a line of vocab.txt")
    return vocab


def _is_line(token: str) -> bool:
    """Whether a token can be written as a line: without line breaks or half characters."""
    return not re.search("[\\n\\r\\ud800-\\udfff]", token)


def _read_added_tokens(
    folder: Path, fast: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[int, str]:
    """Reads tokens beyond WordPiece's from the three files that may hold them.

    Returns:
      Id to token, by id.
    """
    found: dict[int, _Setting] = {}

    def add(number: Any, token: object, path: Path) -> None:
        if not (is_whole(number) and isinstance(token, str)):
            raise UserError(
                f"{path}: added token {_short(token)} has the id {_short(number)}, expected text "
                "and a whole number"
            )
        found.setdefault(number, _Setting()).say(token, f"{path}: added token {number}")

    def content(entry: object) -> object:
        return entry.get("content") if isinstance(entry, dict) else entry

    path = folder / "added_tokens.json"
    if path.is_file():
        for token, number in read_object(path).items():
            add(number, token, path)
    path = folder / "tokenizer.json"
    entries = fast.get("added_tokens") or []
    if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
        raise UserError(f"{path}: added_tokens is {_short(entries)}, expected a list of objects")
    for entry in entries:
        add(entry.get("id"), content(entry), path)
    path = folder / "tokenizer_config.json"
    decoder = config.get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict):
        raise UserError(f"{path}: added_tokens_decoder is {_short(decoder)}, expected an object")
    for number, entry in decoder.items():
        # As a key of JSON it is text; of very long ones Python makes no number.
        is_number = number.isdecimal() and len(number) < 10
        add(int(number) if is_number else number, content(entry), path)
    return {number: said.value for number, said in sorted(found.items())}


def _add_tokens(vocab: list[str], extra: Mapping[int, str], added_tokens: str) -> list[str]:
    """Writes added tokens into the vocabulary, or refuses them; see `read_tokenizer`."""
    ids = {token: number for number, token in enumerate(vocab)}
    refused = []
    vocab = list(vocab)
    for number, token in extra.items():
        if number < len(vocab):
            if ids.get(token) != number:
                raise UserError(
                    f"added token {_short(token)} has the id {number}, expected "
                    f"{_short(vocab[number])}, which the vocabulary has there"
                )
        elif number > len(vocab) or token in ids or not _is_line(token):
            raise UserError(
                f"added token {_short(token)} has the id {number}, expected a new token of one "
                f"line with the id {len(vocab)}, the next one"
            )
        else:
            vocab.append(token)
        if token not in _SPECIAL_TOKENS:
            refused.append(f"{_short(token)} (id {number})")
    if refused and added_tokens == "refuse":
        raise UserError(
            f"the tokenizer has {len(refused)} added tokens, which google's tokenizer cannot cut "
            f"out of a text: {listed(refused)}; if no text holds them, give added_tokens=keep"
        )
    return vocab


# ---- Weights -------------------------------------------------------------------------------------


def read_tensors(folder: Path) -> dict[str, np.ndarray]:
    """Reads all weights of an HF folder as NumPy arrays.

    Raises:
      FileNotFoundError: There are none, or an index names a file that is missing.
      ImportError: torch is needed and is not installed.
      UserError: A file is damaged or does not hold tensors by name.
    """
    for name, read in (
        ("model.safetensors", _read_safetensors),
        ("pytorch_model.bin", _read_torch),
    ):
        if (folder / name).is_file():
            return read(folder / name)
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _read_shards(index, read)
    raise FileNotFoundError(
        f"{folder} holds no weights: expected model.safetensors or pytorch_model.bin, or one of "
        "them with .index.json and the files that it names"
    )


def _read_shards(
    index: Path, read: Callable[[Path], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Reads the files that an index names, and checks that they hold what it says."""
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(
            f"{index}: weight_map is {_short(weight_map)}, expected tensor names and file names"
        )
    for name, file in weight_map.items():
        # A name of another folder could make any file of the machine part of the model.
        if not (isinstance(file, str) and file.isprintable() and _FILE_NAME.fullmatch(file)):
            raise UserError(
                f"{index}: the file of {_short(name)} is {_short(file)}, expected the name of a "
                "file beside it"
            )
    tensors: dict[str, np.ndarray] = {}
    for file in sorted(set(weight_map.values())):
        shard = read(existing(index.parent / file))
        wanted = {name for name, place in weight_map.items() if place == file}
        odd = sorted(wanted ^ set(shard))
        if odd:
            raise UserError(
                f"{index} and {file} contradict each other about {listed(map(_short, odd))}: "
                "expected every tensor in the file that the index names, and no other"
            )
        tensors.update(shard)
    return tensors


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="np") as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}
    # Besides its own error it raises whatever NumPy says of a type that NumPy has not.
    except (SafetensorError, TypeError, KeyError, AttributeError, ValueError) as error:
        raise UserError(
            f"{path} is not a readable safetensors file: {_first_line(error)}"
        ) from error


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            f"reading {path} needs torch (pip install torch); without it, save the model as "
            "model.safetensors"
        ) from error
    try:
        # weights_only: a pickle could run any code, tensors cannot.
        state = torch.load(path, map_location="cpu", weights_only=True)
    # A damaged pickle fails wherever its bytes lead: no list of exceptions is complete.
    except Exception as error:
        advice = ""
        if isinstance(error, pickle.UnpicklingError):
            advice = "; expected tensors by name, as torch.save writes model.state_dict()"
        raise UserError(f"{path} cannot be read: {_first_line(error)}{advice}") from error
    if not isinstance(state, dict):
        raise UserError(f"{path} holds a {type(state).__name__}, expected tensors by name")
    return {name: _torch_to_numpy(name, tensor, path) for name, tensor in state.items()}


def _torch_to_numpy(name: object, value: Any, path: Path) -> np.ndarray:
    """Turns an entry of a PyTorch file into an array; bfloat16, which NumPy has not, to float32."""
    import torch

    if isinstance(value, dict):
        raise UserError(
            f"{path}: {_short(name)} holds {len(value)} entries of its own, expected a tensor: "
            "save the inner entries as the file"
        )
    if not (isinstance(name, str) and isinstance(value, torch.Tensor)):
        raise UserError(
            f"{path}: {_short(name)} is a {type(value).__name__}, expected tensors by name"
        )
    try:
        value = value.detach()
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    except (TypeError, RuntimeError, NotImplementedError) as error:  # sparse, quantized, no data
        raise UserError(f"{path}: {name} is no plain tensor: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    """The beginning of what a library says, which may be a page."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
