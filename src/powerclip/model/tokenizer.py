"""A model's tokenizer: open_clip's, of CLIP or around one of Hugging Face's."""

import copy
import functools
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip

from powerclip.errors import PowerclipError
from powerclip.model.start import in_one_line
from powerclip.model.towers import PowerCLIP, Tokenizer

TOKENIZER_SETTINGS = ("clean", "context_length", "language", "strip_sep_token", "tokenizer_mode")
"""Settings of a tokenizer that a model's config may have; others could name files, or let code be run."""


def make_tokenizer(model: PowerCLIP) -> Tokenizer:
    """open_clip's tokenizer for a model: captions to (B, T) int64 ids with T = ``context_length``.

    Code that comes with a tokenizer of Hugging Face's is never run.

    Raises:
        PowerclipError: it is one of Hugging Face's, and transformers is not installed or it cannot be read; the
            config has settings for it that are not among ``TOKENIZER_SETTINGS``; it has ids that the model does not
            know; or the model's ``pool_type`` does not find where its texts end.
    """
    text = model.config["model"]["text_cfg"]
    given = text.get("tokenizer_kwargs") or {}
    if not isinstance(given, Mapping) or given.keys() - TOKENIZER_SETTINGS:
        raise PowerclipError(
            f"tokenizer_kwargs of the model's config is {given!r:.200}; it may hold {', '.join(TOKENIZER_SETTINGS)}"
        )
    options = {"context_length": model.context_length, **given}
    if name := text.get("hf_tokenizer_name"):
        if Path(name).is_absolute() and not Path(name).is_dir():
            raise PowerclipError(
                f"the folder of the model's tokenizer, {name}, is not there; put it back, or copy its files into the "
                "model's folder"
            )
        options = {"tokenizer_mode": text.get("tokenizer_mode"), **options}
        try:
            tokenizer: Any = open_clip.tokenizer.HFTokenizer(name, trust_remote_code=False, **options)
            theirs = tokenizer.tokenizer
            ids, padded = theirs("a")["input_ids"], tokenizer(["a"])
            unseen = {*theirs.all_special_ids} - {theirs.unk_token_id, *padded[0].tolist()}
            highest = max({*theirs.get_vocab().values()} - unseen)
        except ImportError as error:
            raise PowerclipError(
                f"the tokenizer {name} needs transformers, which is not installed; pip install transformers"
            ) from error
        except Exception as error:  # no such folder, no network, ...
            raise PowerclipError(
                f"cannot read the tokenizer {name}, a folder or hub id: {in_one_line(error)}"
            ) from error
        if tokenizer.tokenizer_mode == "clips" and model.text_pool == "avg":
            raise PowerclipError(
                "tokenizer_mode clips puts a token after the padding, so the mean over the tokens of a text is not "
                "known; set text_pool to tower (in a command: --model.text-pool tower)"
            )
        pool = text.get("pool_type", "argmax")
        missed = int(model.valid_tokens(padded).sum()) != len(ids) or (pool == "argmax" and ids[-1] < highest)
        if pool in ("argmax", "eos") and missed:
            raise PowerclipError(
                f"pool_type {pool} does not find where texts end for the tokenizer {name}, so captions would be cut; "
                "in text_cfg of the model's config set pool_type to last, or to eos with eos_id "
                f"{theirs.sep_token_id or theirs.eos_token_id or 'of its end token'}"
            )
    else:
        name = "of CLIP"
        try:
            tokenizer = copy.copy(_clip_tokenizer(**options))  # for this model alone
        except (AssertionError, TypeError) as error:
            raise PowerclipError(
                f"tokenizer_kwargs of the model's config is {given!r:.200}, which the tokenizer of CLIP does not take: "
                f"{in_one_line(error)}"
            ) from error
        highest = tokenizer.vocab_size - 1
    if highest >= model.vocabulary:
        raise PowerclipError(
            f"the tokenizer {name} has ids up to {highest} and the model knows {model.vocabulary} of them; in "
            f"text_cfg of the model's config set vocab_size to {highest + 1} or more"
        )
    return tokenizer  # type: ignore[no-any-return]


@functools.cache
def _clip_tokenizer(**options: Any) -> open_clip.SimpleTokenizer:
    """CLIP's own tokenizer, made once: each time it takes longer than a small model."""
    return open_clip.SimpleTokenizer(**options)


def save_tokenizer(config: dict[str, Any], folder: Path) -> None:
    """Save the tokenizer in a folder that a model's config names, and let the config name the new place: ".".

    One that cannot be read stays out, with a warning: the weights matter more.
    """
    text = config.get("text_cfg", {})
    name = text.get("hf_tokenizer_name")
    if not name or not Path(name).is_absolute():
        return
    try:
        open_clip.tokenizer.HFTokenizer(name, trust_remote_code=False).save_pretrained(folder)
    except Exception as error:  # no such folder, transformers not installed, ...
        warnings.warn(f"the model is saved without its tokenizer {name}: {in_one_line(error)}", stacklevel=3)
    else:
        text["hf_tokenizer_name"] = "."


def vocabulary(tokenizer: Any) -> dict[str, int]:
    """The id of each token."""
    return dict(tokenizer.tokenizer.get_vocab() if hasattr(tokenizer, "tokenizer") else tokenizer.encoder)
