"""Reads a caption of a scene by its words alone, knowing nothing of the grammar that wrote it."""

import re

SHAPE = "[a-z]+"
COLOUR = "red|green|blue|yellow|purple|orange|black|pink"
MENTION = re.compile(rf"\ban? ((?:(?:small|big|{COLOUR}) )*)(?!picture|drawing)({SHAPE})(?: that is ({COLOUR}))?\b")
RELATION_WORDS = {
    "left of": "left",
    "right of": "right",
    "above": "above",
    "over ": "above",
    "below": "below",
    "under": "below",
    "overlooks": "above",
    "is overlooked by": "below",
    "precedes": "left",
    "is followed by": "left",
    "follows": "right",
    "is preceded by": "right",
}


def read_caption(caption):
    """The statements of a caption: mentions (attribute to value) and the relation between the first two, or None."""
    clauses = caption.lower().rstrip(".").split(", and ")
    return [_read_clause(text) for text in clauses]


def _read_clause(text):
    found = list(MENTION.finditer(text))
    assert 1 <= len(found) <= 3, text
    between = text[found[0].end() : found[1].start()] if len(found) > 1 else ""
    relations = {relation for words, relation in RELATION_WORDS.items() if words in between}
    assert len(relations) <= 1, text
    assert relations or between.strip() in ("", "and"), text
    return {"mentions": [_read_mention(m) for m in found], "relation": relations.pop() if relations else None}


def _read_mention(match):
    before, shape, colour = match.groups()
    said = {"shape": shape}
    for word in before.split():
        said["size" if word in ("small", "big") else "colour"] = word
    if colour:
        said["colour"] = colour
    return said


def true_of_objects(statement, objects):
    """Whether distinct objects (with x to the right and y downwards) fit the mentions and the relation."""
    return _assign(statement, objects, [])


def _assign(statement, objects, chosen):
    said = statement["mentions"]
    if len(chosen) == len(said):
        return statement["relation"] is None or _stands(statement["relation"], chosen[0], chosen[1])
    return any(
        _assign(statement, objects, [*chosen, thing])
        for thing in objects
        if thing not in chosen and all(thing[k] == v for k, v in said[len(chosen)].items())
    )


def _stands(relation, a, b):
    across, down = b["x"] - a["x"], b["y"] - a["y"]
    if relation in ("left", "right"):
        return abs(across) > abs(down) and (across > 0) == (relation == "left")
    return abs(down) > abs(across) and (down > 0) == (relation == "above")
