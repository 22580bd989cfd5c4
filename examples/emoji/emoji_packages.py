"""Download emoji packages with npm, and read images and names from them."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from emoji_captions import TONES, describe

from powerclip.errors import PowerclipError
from powerclip.files import atomic_folder


@dataclass(frozen=True, kw_only=True)
class Package:
    """An npm package with a 64-pixel image of each emoji in one style, named by code points, and ``emoji.json``."""

    name: str
    version: str
    images: str
    """Folder of the images inside the package."""

    @property
    def tarball(self) -> str:
        """Its file, as ``npm pack`` names it."""
        return f"{self.name}-{self.version}.tgz"


PACKAGES = {
    "google": Package(name="emoji-datasource-google", version="16.0.0", images="img/google/64"),
    "twitter": Package(name="emoji-datasource-twitter", version="16.0.0", images="img/twitter/64"),
    "emojione": Package(name="emojione", version="2.2.7", images="assets/png"),
}
"""Noto, Twemoji and EmojiOne 2, by style."""

STYLES = ("google", "twitter")
"""The styles that have all emoji, in the same form."""

MAX_MEMBER_BYTES = 8_000_000
"""A larger file is not extracted; none of the needed ones comes near this size."""


@dataclass(frozen=True, kw_only=True)
class Emoji:
    """One emoji: a name, its skin tones, and where its image is in a style's package."""

    key: str
    """Code points, as in the file's name: 1f469-1f3fb-200d-1f692."""
    name: str
    """Unicode name of the emoji without skin tone."""
    base: str
    """Caption without skin tone."""
    tones: tuple[str, ...]
    """Names of skin tones, one or one per person; empty where it has none."""
    category: str
    """What it belongs to: "Food & Drink", ..."""


def obtain(folder: Path, *, given: Path | None = None, styles: Sequence[str] = STYLES) -> dict[str, Path]:
    """Unpacked packages by style: from ``given`` if it is a folder, otherwise downloaded into ``folder``.

    Raises:
        PowerclipError: npm is missing or fails, or ``given`` lacks a package.
    """
    unpacked = {}
    for style in styles:
        target = folder / PACKAGES[style].name
        if not _is_package(target, style):
            source = _given_package(given, style) if given else _fetch(folder, style)
            if source.is_dir():
                target = source
            else:
                extract(source, target, style=style)
        unpacked[style] = target
    return unpacked


def _is_package(folder: Path, style: str) -> bool:
    return (folder / "emoji.json").is_file() and (folder / PACKAGES[style].images).is_dir()


def _given_package(given: Path, style: str) -> Path:
    package = PACKAGES[style]
    for folder in (given / package.name, given / package.name / "package"):
        if _is_package(folder, style):
            return folder
    tarballs = sorted(given.glob(f"{package.name}-[0-9]*.tgz"))
    if not tarballs:
        raise PowerclipError(f"{given} holds neither a folder {package.name} nor a tarball {package.tarball}")
    return tarballs[-1]


def _fetch(folder: Path, style: str) -> Path:
    """The tarball of a style's package, downloaded unless it is there already."""
    name = f"{PACKAGES[style].name}@{PACKAGES[style].version}"
    tarball = folder / PACKAGES[style].tarball
    if tarball.is_file():
        return tarball
    npm = shutil.which("npm")
    if npm is None:
        raise PowerclipError(
            f"npm is not installed; install Node.js, or put {tarball.name} of every package into a folder "
            "and give it with --packages FOLDER"
        )
    temporary = folder / ".download"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    command = [npm, "pack", name, "--silent", "--pack-destination", str(temporary.resolve())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not (temporary / tarball.name).is_file():
        words = " ".join(done.stderr.split())[-300:]
        raise PowerclipError(
            f"npm pack {name} failed ({words or 'no message'}); check the network and npm's settings, or give "
            "the packages with --packages FOLDER"
        )
    (temporary / tarball.name).replace(tarball)
    temporary.rmdir()
    return tarball


def extract(tarball: Path, target: Path, *, style: str) -> None:
    """Extract the names and the 64-pixel images of a style, and nothing else; a folder that exists is complete.

    Raises:
        PowerclipError: the file is not such a package.
    """
    with atomic_folder(target) as folder:
        try:
            with tarfile.open(tarball) as archive:
                for member in archive:
                    if _wanted(member, style):
                        name = member.name.removeprefix("package/")
                        archive.extract(member.replace(name=name), folder, filter="data")
        except (tarfile.TarError, EOFError, OSError) as error:
            raise PowerclipError(f"{tarball} cannot be unpacked ({error}); delete it and try again") from error
        if not _is_package(folder, style):
            raise PowerclipError(
                f"{tarball} holds no emoji.json or no {PACKAGES[style].images}; is it the right package?"
            )


def _wanted(member: tarfile.TarInfo, style: str) -> bool:
    path = PurePosixPath(member.name)
    image = path.parent == PurePosixPath("package", PACKAGES[style].images) and path.suffix == ".png"
    names = path.parent == PurePosixPath("package") and path.name in ("emoji.json", "LICENSE", "LICENSE.md")
    return member.isfile() and member.size <= MAX_MEMBER_BYTES and (image or names)


def image_path(package: Path, style: str, emoji: Emoji) -> Path:
    """Where the image of an emoji is stored in an unpacked package."""
    key = emoji.key.replace("-fe0f", "") if style == "emojione" else emoji.key
    return package / PACKAGES[style].images / f"{key}.png"


def read_emoji(packages: dict[str, Path]) -> list[Emoji]:
    """Every emoji that all packages have an image of, in the order of the first package's ``emoji.json``.

    Raises:
        PowerclipError: ``emoji.json`` is not in the expected form.
    """
    path = packages[next(iter(packages))] / "emoji.json"
    try:
        found = list(_records(json.loads(path.read_text(encoding="utf-8"))))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PowerclipError(f"{path} does not have the form of {PACKAGES['google'].name}'s: {error!r}") from error
    unique = {emoji.key: emoji for emoji in found}
    return [
        emoji
        for emoji in unique.values()
        if all(image_path(package, style, emoji).is_file() for style, package in packages.items())
    ]


def _records(entries: Sequence[dict[str, object]]) -> Iterator[Emoji]:
    for entry in entries:
        name = str(entry["name"])
        if entry.get("short_name") == "person_in_tuxedo":
            name = "PERSON IN TUXEDO"  # the list names it like the man
        base = describe(name, subcategory=str(entry.get("subcategory", "")))
        category = str(entry.get("category", ""))
        key = str(entry["image"]).removesuffix(".png")
        yield Emoji(key=key, name=name, base=base, tones=(), category=category)
        variations = entry.get("skin_variations") or {}
        assert isinstance(variations, dict)
        for modifiers, variation in variations.items():
            tones = tuple(TONES[code] for code in modifiers.split("-"))
            key = variation["image"].removesuffix(".png")
            yield Emoji(key=key, name=name, base=base, tones=tones, category=category)
