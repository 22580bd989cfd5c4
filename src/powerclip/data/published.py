"""``KEY.njson`` of the shards published with the paper: a caption and its parse, in a layout that is not documented.

So it is read by keys, whatever else it holds: a JSON object with the caption as a string under one of
``CAPTION_KEYS``, and the constituency tree under one of ``TREE_KEYS``: bracketed ("(NP (DT a) (NN dog))"), as nested
lists (["NP", ["DT", "a"], ["NN", "dog"]]) or as nested objects ({"label": "NP", "children": [...]}, words under "word"
or "text"). Either may be missing: the caption where there is a ``KEY.txt``, the tree always.
"""

from __future__ import annotations

import json
import logging
from functools import lru_cache
from typing import Any

from powerclip.errors import BadSampleError
from powerclip.phrases.brackets import Node, parse_brackets, tree_of_nodes
from powerclip.phrases.tree import PhraseTree

CAPTION_KEYS = ("caption", "text", "sentence", "raw", "txt")
TREE_KEYS = ("tree", "parse", "parse_tree", "parse_string", "constituency", "constituency_tree")
LABEL_KEYS = ("label", "tag", "type")
CHILD_KEYS = ("children", "nodes")
WORD_KEYS = ("word", "text", "token")

log = logging.getLogger(__name__)


def read_njson(data: bytes, caption: str | None) -> tuple[str, PhraseTree | None]:
    """The caption, and its phrases where the file has them in a form that is known.

    Args:
        data: the file.
        caption: from ``KEY.txt``, where there is one: then the tree must fit it.

    Raises:
        BadSampleError: it is no JSON object, or there is no caption; the message names the keys that were seen.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadSampleError("malformed njson") from error
    if not isinstance(value, dict):
        raise BadSampleError("malformed njson (expected an object)")
    keys = ", ".join(sorted(str(key)[:30] for key in value)[:12])
    if caption is None:
        caption = next((v.strip() for k in CAPTION_KEYS if isinstance(v := value.get(k), str) and v.strip()), None)
        if caption is None or "\0" in caption:
            raise BadSampleError(f"njson without a caption (expected under {', '.join(CAPTION_KEYS)}; keys: {keys})")
        try:
            caption.encode("utf-8")
        except UnicodeEncodeError as error:
            raise BadSampleError("caption not UTF-8") from error
    given = next((value[key] for key in TREE_KEYS if value.get(key)), None)
    if given is None:
        _warn(
            f"njson without a parse (expected under {', '.join(TREE_KEYS)}; keys: {keys}): it is parsed anew, or whole"
        )
        return caption, None
    try:
        nodes = parse_brackets(given) if isinstance(given, str) else [_node(given)]
        return caption, tree_of_nodes(nodes, caption, parser="njson")
    except (ValueError, RecursionError) as error:
        _warn(f"njson with a parse that cannot be read ({' '.join(str(error).split())[:200]}): it is passed over")
        return caption, None


def _node(value: Any) -> Node | str:
    """A node of nested lists or objects."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and isinstance(value[0], str):
        return Node(label=value[0], children=[_node(child) for child in value[1:]])
    if isinstance(value, dict):
        label = next((value[key] for key in LABEL_KEYS if isinstance(value.get(key), str)), "")
        children = next((value[key] for key in CHILD_KEYS if isinstance(value.get(key), list) and value[key]), None)
        if children is not None:
            return Node(label=label, children=[_node(child) for child in children])
        word = next((value[key] for key in WORD_KEYS if isinstance(value.get(key), str)), None)
        if word is not None:
            return Node(label=label, children=[word])
    raise ValueError("a node is no word, [label, children...] or {label, children}")


@lru_cache(maxsize=64)
def _warn(message: str) -> None:
    """Said once a message, not once a sample."""
    log.warning("%s", message)
