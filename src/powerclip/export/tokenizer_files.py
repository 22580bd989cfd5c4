"""A model's tokenizer as files that other libraries read."""

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
"""What open_clip does to a text before one of transformers' tokenizers, by its names."""


def write_tokenizer(tokenizer: Tokenizer, folder: Path) -> dict[str, Any]:
    """Write a tokenizer as transformers reads it; returns what a program without it must know.

    CLIP's own becomes ``vocab.json`` and ``merges.txt``. It lowers, unescapes HTML and repairs mojibake (ftfy) first,
    of which other implementations only lower.

    Raises:
        PowerclipError: the tokenizer is of another kind.
    """
    if hasattr(tokenizer, "save_pretrained"):  # open_clip's wrapper of one of transformers
        wrapper: Any = tokenizer
        wrapper.save_pretrained(folder)
        cleaning = next(how for name, how in CLEANING.items() if wrapper.clean_fn is get_clean_fn(name))
        more = {name: value for name in ("strip_sep_token", "tokenizer_mode") if (value := getattr(wrapper, name))}
        return {"cleaning": cleaning, "tokenizer": "tokenizer.json", "padding": wrapper.tokenizer.pad_token_id, **more}
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
    return {"tokenizer": "CLIP's byte-pair encoding: vocab.json, merges.txt; lower case", **ends}
