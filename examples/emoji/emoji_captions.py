"""Captions from Unicode names: "WOMAN FIREFIGHTER" -> "a woman firefighter"."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

from emoji_names import (
    BARE_ENDS,
    BARE_STARTS,
    CAPITALS,
    COUNTRY_NAMES,
    IRREGULAR_PLURALS,
    LINKS,
    MASS,
    OVERRIDES,
    PEOPLE,
    SINGULARS_IN_S,
    THE_COUNTRIES,
    WORDS,
)

TONES = {
    "1F3FB": "light",
    "1F3FC": "medium-light",
    "1F3FD": "medium",
    "1F3FE": "medium-dark",
    "1F3FF": "dark",
}
"""Unicode's skin-tone modifiers and what their names say."""

_NUMBERS = ("zero", "one", "two", "three", "four", "five")


def describe(name: str, *, subcategory: str = "") -> str:
    """A noun phrase for an emoji without skin tone, from its Unicode name.

    Args:
        name: as in ``emoji.json``, mostly capitals.
        subcategory: as in ``emoji.json``; decides flags, signs of the zodiac, hands and moons.
    """
    if subcategory in ("country-flag", "subdivision-flag"):
        return f"the flag of {_country(name.removesuffix(' Flag'))}"
    if subcategory == "zodiac":
        return f"the zodiac sign {name.title()}"
    if name in OVERRIDES:
        return OVERRIDES[name]
    for pattern, build in _PATTERNS:
        if match := re.fullmatch(pattern, name):
            return build(match)
    if subcategory.startswith("hand"):
        name = name.removesuffix(" SIGN")
    if "MOON" in name:
        name = name.removesuffix(" SYMBOL")
    return _with_articles(name)


def with_tone(caption: str, tones: Sequence[str], *, key: str | None = None) -> str:
    """A caption with its skin tones: "a woman firefighter with medium-dark skin tone".

    Args:
        caption: what ``describe`` gives.
        tones: names of tones, one, or one per person; none leaves the caption.
        key: chooses the wording; None takes the first.
    """
    if not tones:
        return caption
    if caption.endswith((" hair", " beard")):
        wordings = [f"and {tones[0]} skin tone", f"and a {tones[0]} skin tone"]
    elif len(set(tones)) == 1:
        wordings = [f"with {tones[0]} skin tone", f"with a {tones[0]} skin tone"]
    else:
        wordings = [f"with {_list(list(tones))} skin tones", f"with skin tones {_list(list(tones))}"]
    return f"{caption} {wordings[_choice(key, len(wordings))]}"


def vary(caption: str, *, key: str) -> str:
    """The caption in one of several frames; the key chooses, the same way every time."""
    frames = ("{}", "{}", "{}", "an emoji of {}", "a picture of {}", "a small drawing of {}")
    return frames[_choice(f"frame {key}", len(frames))].format(caption)


def _choice(key: str | None, count: int) -> int:
    return 0 if key is None else zlib.crc32(key.encode()) % count


def _country(name: str) -> str:
    name = COUNTRY_NAMES.get(name, name)
    name = re.sub(r" \([^)]*\)| SAR China", "", name).replace(" & ", " and ")
    name = re.sub(r"\bSt\. ", "Saint ", name)
    plural = re.search(r"(Islands|States|Kingdom|Emirates|Republic|Union|Nations|Territor(y|ies))$", name)
    return f"the {name}" if plural or name in THE_COUNTRIES else name


def _family(match: re.Match[str]) -> str:
    """FAMILY: MAN, MAN, GIRL -> a family of two men and a girl."""
    return f"a family of {_people(match[1])}"


def _people(names: str) -> str:
    people = [name.lower() for name in names.split(", ")]
    plurals = {"man": "men", "woman": "women", "child": "children"}
    groups = []
    for person in dict.fromkeys(people):
        count = people.count(person)
        groups.append(_article(person) if count == 1 else f"{_NUMBERS[count]} {plurals.get(person, person + 's')}")
    return _list(groups)


def _list(items: list[str]) -> str:
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def _person_with(match: re.Match[str]) -> str:
    """MAN: RED HAIR -> a man with red hair."""
    person, feature = match[1].lower(), match[2].lower()
    if feature == "bald":
        return f"a bald {person}"
    return f"a {person} with {'a beard' if feature == 'beard' else feature}"


_PATTERNS = (
    (r"KEYCAP (\d)", lambda m: f"a keycap with the digit {m[1]}"),
    (r"CLOCK FACE (\w+) OCLOCK", lambda m: f"a clock face showing {m[1].lower()} o'clock"),
    (r"CLOCK FACE (\w+)-THIRTY", lambda m: f"a clock face showing half past {m[1].lower()}"),
    (r"NEGATIVE SQUARED LATIN CAPITAL LETTER (\w)", lambda m: f"a button with the letter {m[1]}"),
    (r"CIRCLED LATIN CAPITAL LETTER (\w)", lambda m: f"a circled letter {m[1]}"),
    (r"(?:NEGATIVE )?SQUARED (AB|CL|ID|NG|SOS|VS)", lambda m: f"a button with the letters {m[1]}"),
    (r"SQUARED (COOL|FREE|NEW|OK)", lambda m: f"a button with the word {m[1]}"),
    (r"(BACK|END|SOON|TOP) WITH .*", lambda m: f"an arrow with the word {m[1]}"),
    (r"FAMILY: (.+)", _family),
    (r"KISS: (.+)", lambda m: f"{_people(m[1])} kissing"),
    (r"COUPLE WITH HEART: (.+)", lambda m: f"{_people(m[1])} with a heart between them"),
    (r"(MAN|WOMAN|PERSON): (.+)", _person_with),
    (r"(BLACK|WHITE) ((?:[\w-]+ )*(?:INDEX|SUIT|FACE|SCISSORS|TELEPHONE|NIB))", lambda m: describe(m[2])),
    (r"HEAVY ((?:\w+ )+(?:SIGN|MARK))", lambda m: _article(f"bold {m[1].lower()}")),
    (
        r"(UP|DOWN|LEFT|RIGHT) POINTING (BACKHAND )?INDEX",
        lambda m: f"{'the back of ' if m[2] else ''}a hand pointing {m[1].lower()}",
    ),
)


def _with_articles(name: str) -> str:
    """Lower-case the words, and give each noun group the article it needs."""
    words = [WORDS.get(word.lower(), word.lower()) for word in name.split()]
    parts: list[str] = []
    group: list[str] = []
    for position, word in enumerate(words):
        before = words[position - 1] if position else ""
        verb = word.endswith("ing") and (before in PEOPLE or before.endswith("ing"))
        if position and (word in LINKS or verb):
            parts += [_noun_group(group, after=parts[-1] if parts else ""), word]
            group = []
        else:
            group.append(word)
    parts.append(_noun_group(group, after=parts[-1] if parts else ""))
    return " ".join(part for part in parts if part)


def _noun_group(words: list[str], *, after: str) -> str:
    text = " ".join(CAPITALS.get(word, word) for word in words)
    if not words or after == "of" or words[0] in BARE_STARTS or words[-1] in BARE_ENDS:
        return text
    return text if words[-1] in MASS or _plural(words[-1]) else _article(text)


def _plural(word: str) -> bool:
    if word in IRREGULAR_PLURALS:
        return True
    return word.endswith("s") and not word.endswith(("ss", "us", "is", "as")) and word not in SINGULARS_IN_S


def _article(text: str) -> str:
    """Put a or an before a phrase, by its sound."""
    vowel = re.match(r"(?!one\b|euro|uni|use|u-|ukulele)[aeiou]|hour|honest|x-ray|mp|fm", text.lower())
    return f"{'an' if vowel else 'a'} {text}"
