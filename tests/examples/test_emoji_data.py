"""The emoji example's captions, packages and held-out set, without a network."""

import json
import sys
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from powerclip.errors import PowerclipError
from tests.support.images import one_colour
from tests.support.tars import write_tar

EXAMPLE = Path(__file__).parents[2] / "examples" / "emoji"
sys.path.insert(0, str(EXAMPLE))

import emoji_captions  # noqa: E402 (beside the example, found by the line above)
import emoji_packages  # noqa: E402
import emoji_tasks  # noqa: E402

CAPTIONS = [
    ("WOMAN FIREFIGHTER", "person-role", "a woman firefighter"),
    ("FACE WITH TEARS OF JOY", "face-smiling", "a face with tears of joy"),
    ("SMILING FACE WITH OPEN MOUTH AND COLD SWEAT", "", "a smiling face with an open mouth and cold sweat"),
    ("FACE HOLDING BACK TEARS", "face-concerned", "a face holding back tears"),
    ("FACE SAVOURING DELICIOUS FOOD", "face-tongue", "a face savouring delicious food"),
    ("GRINNING FACE WITH ONE LARGE AND ONE SMALL EYE", "", "a grinning face with one large and one small eye"),
    ("WHITE SMILING FACE", "face-affection", "a smiling face"),
    ("HEAVY BLACK HEART", "heart", "a red heart"),
    ("TWO HEARTS", "heart", "two hearts"),
    ("United Arab Emirates Flag", "country-flag", "the flag of the United Arab Emirates"),
    ("France Flag", "country-flag", "the flag of France"),
    ("Hong Kong SAR China Flag", "country-flag", "the flag of Hong Kong"),
    ("St. Kitts & Nevis Flag", "country-flag", "the flag of Saint Kitts and Nevis"),
    ("Congo - Kinshasa Flag", "country-flag", "the flag of the Democratic Republic of the Congo"),
    ("Scotland Flag", "subdivision-flag", "the flag of Scotland"),
    ("KEYCAP 7", "keycap", "a keycap with the digit 7"),
    ("HASH KEY", "keycap", "a keycap with a hash sign"),
    ("KEYCAP TEN", "keycap", "a keycap with the number ten"),
    ("CLOCK FACE ONE OCLOCK", "time", "a clock face showing one o'clock"),
    ("CLOCK FACE TWELVE-THIRTY", "time", "a clock face showing half past twelve"),
    ("FAMILY: MAN, MAN, GIRL, BOY", "family", "a family of two men, a girl and a boy"),
    ("FAMILY: ADULT, CHILD, CHILD", "person-symbol", "a family of an adult and two children"),
    ("KISS: WOMAN, MAN", "family", "a woman and a man kissing"),
    ("COUPLE WITH HEART: MAN, MAN", "family", "two men with a heart between them"),
    ("MAN: RED HAIR", "person", "a man with red hair"),
    ("WOMAN: BALD", "person", "a bald woman"),
    ("MAN: BEARD", "person", "a man with a beard"),
    ("WOMAN IN MOTORIZED WHEELCHAIR FACING RIGHT", "", "a woman in a motorized wheelchair facing right"),
    ("MAN LIFTING WEIGHTS", "person-sport", "a man lifting weights"),
    ("WOMAN ROWING BOAT", "person-sport", "a woman rowing a boat"),
    ("WOMEN WRESTLING", "person-sport", "women wrestling"),
    ("WAVING HAND SIGN", "hand-fingers-open", "a waving hand"),
    ("OK HAND SIGN", "hand-fingers-partial", "an OK hand"),
    ("WAXING CRESCENT MOON SYMBOL", "sky & weather", "a waxing crescent moon"),
    ("HOURGLASS WITH FLOWING SAND", "time", "an hourglass with flowing sand"),
    ("UNICORN FACE", "animal-mammal", "a unicorn face"),
    ("BUTTERFLY", "animal-bug", "a butterfly"),
    ("OCTOPUS", "animal-marine", "an octopus"),
    ("GRAPES", "food-fruit", "grapes"),
    ("SLICE OF PIZZA", "food-prepared", "a slice of pizza"),
    ("EUROPEAN CASTLE", "place-building", "a European castle"),
    ("ONE-PIECE SWIMSUIT", "clothing", "a one-piece swimsuit"),
    ("LEO", "zodiac", "the zodiac sign Leo"),
    ("SQUARED COOL", "alphanum", "a button with the word COOL"),
    ("SQUARED CJK UNIFIED IDEOGRAPH-5272", "alphanum", "a Japanese button meaning discount"),
    ("BLACK SPADE SUIT", "game", "a spade suit"),
    ("RIGHT-POINTING MAGNIFYING GLASS", "light & video", "a magnifying glass pointing right"),
]


@pytest.mark.parametrize(("name", "subcategory", "caption"), CAPTIONS)
def test_captions_of_real_names(name, subcategory, caption):
    assert emoji_captions.describe(name, subcategory=subcategory) == caption


def test_skin_tones_follow_the_caption():
    assert (
        emoji_captions.with_tone("a woman firefighter", ["medium-dark"])
        == "a woman firefighter with medium-dark skin tone"
    )
    assert emoji_captions.with_tone("a couple kissing", ["light", "dark"]).endswith("light and dark skin tones")
    assert emoji_captions.with_tone("a man with red hair", ["dark"]) == "a man with red hair and dark skin tone"
    assert emoji_captions.with_tone("a cup", []) == "a cup"


def test_wording_varies_by_key_and_is_the_same_every_time():
    keys = [f"{number:x}" for number in range(200)]
    first = [emoji_captions.vary("a cook", key=key) for key in keys]
    assert first == [emoji_captions.vary("a cook", key=key) for key in keys]
    assert len(set(first)) == 4
    assert all("a cook" in caption for caption in first)
    assert len({emoji_captions.with_tone("a cook", ["dark"], key=key) for key in keys}) == 2


def test_held_out_set_is_balanced():
    assert set(Counter(emoji_tasks.HELD_OUT.values()).values()) == {4}
    assert set(emoji_tasks.HELD_OUT.values()) == set(emoji_captions.TONES.values())


def entry(name, image, *, subcategory="person-role", tones=()):
    """An entry of emoji.json."""
    stem, *rest = image.split("-")
    variations = {code: {"image": "-".join([stem, code.lower(), *rest]) + ".png"} for code in tones}
    return {"name": name, "image": f"{image}.png", "subcategory": subcategory, "skin_variations": variations}


ENTRIES = [
    entry("WOMAN FARMER", "1f469-200d-1f33e", tones=emoji_captions.TONES),
    entry("FARMER", "1f9d1-200d-1f33e", tones=emoji_captions.TONES),
    entry("GUARDSMAN", "1f482", tones=emoji_captions.TONES),
    entry("KISS", "1f48f", subcategory="family", tones=("1F3FB", "1F3FB-1F3FF")),
    entry("GRAPES", "1f347", subcategory="food-fruit"),
]


def write_package(folder, style, *, entries=ENTRIES, extra=()):
    """A tarball in the form of the npm package of a style."""
    images = [value["image"] for item in entries for value in [item, *item["skin_variations"].values()]]
    files = {"package/emoji.json": json.dumps(entries).encode()}
    files |= dict.fromkeys((f"package/img/{style}/64/{name}" for name in images), one_colour("red", size=(64, 64)))
    files |= dict(extra)
    path = folder / f"emoji-datasource-{style}-16.0.0.tgz"
    write_tar(path, files.items(), mode="w:gz")
    return path


@pytest.fixture
def packages(tmp_path):
    given = tmp_path / "given"
    given.mkdir()
    for style in emoji_packages.STYLES:
        write_package(given, style)
    return emoji_packages.obtain(tmp_path / "unpacked", given=given)


def test_packages_from_tarballs(packages):
    emoji = emoji_packages.read_emoji(packages)
    assert len(emoji) == 3 * 6 + 3 + 1
    captions = {one.key: emoji_captions.with_tone(one.base, one.tones) for one in emoji}
    assert captions["1f469-1f3fe-200d-1f33e"] == "a woman farmer with medium-dark skin tone"
    assert captions["1f48f-1f3fb-1f3ff"] == "a couple kissing with light and dark skin tones"
    assert captions["1f347"] == "grapes"


def test_unpacked_packages_are_taken_as_they_are(packages, tmp_path):
    again = emoji_packages.obtain(tmp_path / "other", given=packages["google"].parent)
    assert again == packages


def test_only_wanted_members_are_extracted_and_nothing_outside(tmp_path):
    extra = {
        "../escaped.txt": b"no",
        "package/img/google/64/../../../../../escaped.png": b"no",
        "package/install.js": b"no",
        "package/img/google/sheets/64.png": b"no",
    }
    tarball = write_package(tmp_path, "google", extra=extra.items())
    target = tmp_path / "deep" / "emoji-datasource-google"
    target.parent.mkdir()
    emoji_packages.extract(tarball, target, style="google")
    files = {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()}
    assert "emoji.json" in files
    assert {name.split("/")[0] for name in files} == {"emoji.json", "img"}
    assert not list(target.glob("img/*/sheets"))
    assert not list(tmp_path.rglob("escaped*"))


def test_the_split_keeps_one_tone_of_a_profession_from_training(packages):
    emoji = emoji_packages.read_emoji(packages)
    held = {(emoji_tasks.profession(one), one.tones) for one in emoji if emoji_tasks.is_held_out(one)}
    assert held == {(work, (emoji_tasks.HELD_OUT[work],)) for work in ("farmer", "guard")}
    assert sum(emoji_tasks.is_held_out(one) for one in emoji) == 3


def test_tasks_name_the_right_classes(packages):
    emoji = emoji_packages.read_emoji(packages)
    images = {"google": {one.key: Image.new("RGB", (64, 64)) for one in emoji}}
    tasks = {task.name: task for task in emoji_tasks.evaluation_tasks(emoji, images)}
    assert len(tasks["google_retrieval"].images) == len(emoji)
    combination = tasks["google_heldout_combination"]
    named = [combination.class_names[label] for label in combination.labels]
    assert named == [
        f"{emoji_tasks.profession(one)} with {one.tones[0]} skin tone" for one in emoji if emoji_tasks.is_held_out(one)
    ]
    assert len(set(combination.class_names)) == 100


def test_missing_npm_is_one_line_that_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(emoji_packages.shutil, "which", lambda name: None)
    with pytest.raises(PowerclipError, match="npm is not installed.*--packages FOLDER") as error:
        emoji_packages.obtain(tmp_path)
    assert "\n" not in str(error.value)


def test_wrong_packages_are_refused(tmp_path):
    with pytest.raises(PowerclipError, match="holds neither a folder emoji-datasource-google nor a tarball"):
        emoji_packages.obtain(tmp_path / "unpacked", given=tmp_path)
    broken = tmp_path / "emoji-datasource-google-16.0.0.tgz"
    broken.write_bytes(b"not a tarball")
    with pytest.raises(PowerclipError, match="cannot be unpacked"):
        emoji_packages.extract(broken, tmp_path / "target", style="google")
