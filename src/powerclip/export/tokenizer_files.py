"""A model's tokenizer as files that other libraries read."""

import re
import string
from pathlib import Path
from typing import Any

import open_clip
from open_clip.tokenizer import get_clean_fn

from powerclip.errors import PowerclipError
from powerclip.files import atomic_write, write_json
from powerclip.model.towers import Tokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
"""As the other libraries call them."""

CLEANING = {
    "whitespace": "repair mojibake (ftfy), unescape HTML twice, make white space single spaces",
    "lower": "repair mojibake (ftfy), unescape HTML twice, make white space single spaces, lower",
    "canonicalize": "repair mojibake (ftfy), unescape HTML twice, replace _ by a space, remove ASCII punctuation, "
    "lower, make white space single spaces",
}
"""What open_clip does to a text before a tokenizer, by its names."""


def cleaning_of(tokenizer: Any) -> str:
    """The name of what open_clip's tokenizer does to a text first."""
    return next(name for name in CLEANING if tokenizer.clean_fn is get_clean_fn(name))


def write_tokenizer(tokenizer: Tokenizer, folder: Path) -> dict[str, Any]:
    """Write a tokenizer as transformers reads it; returns what a program without it must know.

    CLIP's own becomes ``vocab.json`` and ``merges.txt``. One of transformers' does in ``tokenizer.json`` what open_clip
    does to a text before it, but for repairing mojibake and unescaping HTML.

    Raises:
        PowerclipError: the tokenizer is of another kind.
    """
    if hasattr(tokenizer, "save_pretrained"):  # open_clip's wrapper of one of transformers
        wrapper: Any = tokenizer
        cleaning = cleaning_of(wrapper)
        (_with_cleaning(wrapper, cleaning) if is_fast(wrapper) else wrapper).save_pretrained(folder)
        more = {name: value for name in ("strip_sep_token", "tokenizer_mode") if (value := getattr(wrapper, name))}
        return {
            "cleaning": CLEANING[cleaning],
            "tokenizer": "tokenizer.json",
            "padding": wrapper.tokenizer.pad_token_id,
            **more,
        }
    if not isinstance(tokenizer, open_clip.SimpleTokenizer) or tokenizer.reduction_fn is not None:
        raise PowerclipError("only CLIP's tokenizer as it is, and those of transformers, can be exported")
    names = {tokenizer.sot_token_id: START, tokenizer.eot_token_id: END}
    vocabulary = {names.get(number, token): number for token, number in tokenizer.encoder.items()}
    write_json(folder / "vocab.json", vocabulary)
    merges = "\n".join(" ".join(pair) for pair in tokenizer.bpe_ranks)
    atomic_write(folder / "merges.txt", f"#version: 0.2\n{merges}\n")
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": tokenizer.context_length, **special}
    write_json(folder / "tokenizer_config.json", settings)
    ends = {"start": tokenizer.sot_token_id, "end": tokenizer.eot_token_id, "padding": 0}
    how = {"cleaning": CLEANING[cleaning_of(tokenizer)]}
    return {**how, "tokenizer": "CLIP's byte-pair encoding: vocab.json, merges.txt", **ends}


def is_fast(wrapper: Any) -> bool:
    """Whether the tokenizer that open_clip's wraps is all in ``tokenizer.json``."""
    return bool(getattr(wrapper.tokenizer, "is_fast", False))


def _with_cleaning(wrapper: Any, cleaning: str) -> Any:
    """The fast tokenizer of transformers' in open_clip's, but it cleans and cuts texts itself."""
    from tokenizers import Regex, normalizers
    from tokenizers import Tokenizer as Bare
    from transformers import PreTrainedTokenizerFast

    lower = [normalizers.Lowercase()] if cleaning != "whitespace" else []
    punctuation = Regex(f"[{re.escape(string.punctuation)}]")
    without = [normalizers.Replace("_", " "), normalizers.Replace(punctuation, "")]
    spaces = [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    theirs = wrapper.tokenizer
    bare = Bare.from_str(theirs.backend_tokenizer.to_str())
    own = [bare.normalizer] if bare.normalizer is not None else []
    bare.normalizer = normalizers.Sequence([*(without if cleaning == "canonicalize" else []), *lower, *spaces, *own])
    bare.no_padding()
    bare.no_truncation()
    options = {"model_max_length": wrapper.context_length, "padding_side": theirs.padding_side}
    return PreTrainedTokenizerFast(tokenizer_object=bare, **theirs.special_tokens_map, **options)
