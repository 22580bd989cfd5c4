"""The documentation as a site: it builds without a warning, and its pages work from disk."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import powerclip
from powerclip import config
from powerclip.config import values
from powerclip.recipes import RECIPES
from tests.support.browser import chromium

ROOT = Path(__file__).parents[1]


def build(root, site):
    """`make docs`, without the environment."""
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(site)],
        cwd=root,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT, folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_reference_has_every_public_name_setting_and_recipe(site):
    api, settings = ((site / name).read_text(encoding="utf-8") for name in ("api.html", "settings.html"))
    for name in set(powerclip.__all__) - {"__version__", "alignment"}:
        assert f'id="powerclip.{name}"' in api
    for module, names in (
        ("recipes", RECIPES),
        ("config", [name for name in config.__all__ if name.endswith("Config")]),
        ("config.values", [name for name in vars(values) if name[0].isupper() and name not in ("Any", "Literal")]),
    ):
        for name in names:
            assert f'id="powerclip.{module}.{name}"' in settings


def test_broken_links_and_anchors_and_pages_outside_the_navigation_stop_the_build(tmp_path):
    for path in (*(ROOT / name for name in ("src", "examples", "mkdocs.yml", "CITATION.cff")), *ROOT.glob("*.md")):
        (tmp_path / path.name).symlink_to(path)
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    page = tmp_path / "docs" / "report.md"
    page.write_text(page.read_text() + "\n[a](gone.md) [b](training.md#gone) [c](../src/gone.py)\n")
    (tmp_path / "docs" / "extra.md").write_text("# Extra\n")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode == 1
    for complaint in ("'gone.md'", "'training.md#gone'", "src/gone.py'", "extra.md"):
        assert complaint in done.stderr


@pytest.mark.slow
def test_pages_open_from_disk_without_network_or_errors_and_fit_a_phone(site):
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 390, "height": 844})
        heard = []
        page.on("console", lambda message: heard.append(message.text))
        page.on("pageerror", lambda error: heard.append(str(error)))
        page.on("request", lambda request: heard.extend([request.url] if request.url.startswith("http") else []))
        for file in sorted(site.glob("*.html")):
            if file.name == "404.html":  # of a server: its links start at the root
                continue
            page.goto(file.as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") <= 390, file.name
            broken = "[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)"
            assert page.evaluate(broken) == [], file.name
            assert heard == [], file.name


@pytest.mark.slow
def test_the_search_works_from_disk(site):
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto((site / "index.html").as_uri())
        page.get_by_placeholder("Search").press_sequentially("gradient of the complete batch")  # it listens to keys
        page.locator(".md-search-result__link[href*='batches-larger-than-memory']").first.click()
        page.wait_for_url("**/training.html**")
