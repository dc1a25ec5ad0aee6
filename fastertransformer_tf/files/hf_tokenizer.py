"""Reads the tokenizer of a Hugging Face folder.

What is damaged, of a wrong type or more than google's tokenizer can do is refused in one sentence
that names the file and what is in it. What google's tokenizer does is that of google-research/bert
tokenization.py; what HuggingFace's does is that of transformers' BertTokenizer and of the
`tokenizers` package's BertNormalizer, BertPreTokenizer and WordPiece.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastertransformer_tf.errors import UserError, listed
from fastertransformer_tf.files import text_files
from fastertransformer_tf.files.hf_json import is_whole, read_object, short

# What to do with tokens beyond the vocabulary of WordPiece; see `read_tokenizer`.
ADDED_TOKENS = ("refuse", "keep")
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
# A longer word is unknown: for google's tokenizer from 201 characters on, for transformers' from
# 101 on unless tokenizer.json says otherwise. Limits between the two differ from google's in such
# words alone; others would cut ordinary words in another way.
_WORD_LIMITS = range(100, 201)


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
                f"{self.said_by} is {short(self.value)}, but {said_by} is {short(value)}: "
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
            f"{path}: {key} is {short(value)}, expected true or false"
            + (" or null" if default is None else "")
        )
    return value


def _refuse_unless(fine: bool, path: Path, what: str, value: object, expected: str) -> None:
    """Refuses a setting that google's tokenizer cannot follow."""
    if not fine:
        raise UserError(
            f"{path}: {what} is {short(value)}, expected {expected}: google's tokenizer has "
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
            f"{path}: {key} is {short(fast[key])}, expected an object: google's tokenizer has "
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
                    f"{short(token)} is {lines.get(token)} and {ids.get(token)}, expected the same"
                )
    return vocab


def _read_word_piece(fast: Mapping[str, Any], path: Path) -> dict[str, int]:
    """Checks the model of tokenizer.json; returns its tokens and their ids."""
    model = fast.get("model")
    if not isinstance(model, dict) or model.get("type") != "WordPiece":
        kind = model.get("type") if isinstance(model, dict) else model
        raise UserError(f"{path}: model type is {short(kind)}, expected 'WordPiece'")
    for key, expected in (("unk_token", "[UNK]"), ("continuing_subword_prefix", "##")):
        value = model.get(key, expected)
        _refuse_unless(value == expected, path, f"model {key}", value, repr(expected))
    limit = model.get("max_input_chars_per_word", _WORD_LIMITS[0])
    fine = is_whole(limit) and limit in _WORD_LIMITS
    expected = f"{_WORD_LIMITS[0]} to {_WORD_LIMITS[-1]}"
    _refuse_unless(fine, path, "model max_input_chars_per_word", limit, expected)
    ids = model.get("vocab")
    if not isinstance(ids, dict) or not ids or not all(map(is_whole, ids.values())):
        raise UserError(f"{path}: model vocab is {short(ids)}, expected tokens and their ids")
    return ids


def _in_order(ids: Mapping[str, int], path: Path) -> list[str]:
    """Tokens by their id, as lines of a vocab.txt."""
    vocab = sorted(ids, key=ids.__getitem__)
    if sorted(ids.values()) != list(range(len(vocab))):
        raise UserError(f"{path}: expected the ids 0 ... {len(vocab) - 1}, each once")
    for token in vocab:
        if not _is_line(token):
            raise UserError(f"{path}: token {short(token)} cannot be a line of vocab.txt")
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
                f"{path}: added token {short(token)} has the id {short(number)}, expected text "
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
        raise UserError(f"{path}: added_tokens is {short(entries)}, expected a list of objects")
    for entry in entries:
        add(entry.get("id"), content(entry), path)
    path = folder / "tokenizer_config.json"
    decoder = config.get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict):
        raise UserError(f"{path}: added_tokens_decoder is {short(decoder)}, expected an object")
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
                    f"added token {short(token)} has the id {number}, expected "
                    f"{short(vocab[number])}, which the vocabulary has there"
                )
        elif number > len(vocab) or token in ids or not _is_line(token):
            raise UserError(
                f"added token {short(token)} has the id {number}, expected a new token of one "
                f"line with the id {len(vocab)}, the next one"
            )
        else:
            vocab.append(token)
        if token not in _SPECIAL_TOKENS:
            refused.append(f"{short(token)} (id {number})")
    if refused and added_tokens == "refuse":
        raise UserError(
            f"the tokenizer has {len(refused)} added tokens, which google's tokenizer cannot cut "
            f"out of a text: {listed(refused)}; if no text holds them, give added_tokens=keep"
        )
    return vocab
