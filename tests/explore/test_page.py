"""The page in a headless Chromium, all tabs; nothing is fetched from elsewhere and nothing becomes markup."""

import os
import re
import signal
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import powerclip
from powerclip import cli
from powerclip.config import ExploreConfig
from powerclip.errors import PowerclipError
from powerclip.explore import server
from powerclip.explore.server import served
from powerclip.model import save
from powerclip.scenes import generate
from tests.support.browser import chromium
from tests.support.images import one_colour
from tests.support.models import write_tiny
from tests.support.runs import own_data, record_data

MARKUP = "<img src=x onerror=alert(1)><script>alert(2)</script> ${alert(3)} {{7*7}}"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("explore") / "a <b>run"
    torch.manual_seed(0)
    save(powerclip.create_model(write_tiny(folder.parent)), folder / "model")
    scene = next(iter(generate("test", count=1, seed=7, image_size=96)))
    record_data(folder, own_data(folder / "data", f"a red ball {MARKUP}", "a blue cube on a box", image=scene.image))
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for colour in ("red", "green", "blue"):
        (folder / f"{colour}.png").write_bytes(one_colour(colour, size=(40, 30)))
    (folder / "<img src=x onerror=alert(1)>.png").write_bytes(one_colour("teal", size=(40, 30)))
    (folder / "broken.jpg").write_bytes(b"not an image")
    return folder


@pytest.fixture(scope="module")
def address(run, images):
    said = []
    index = images.parent / "indexes"
    with served(str(run), ExploreConfig(port=0, images=images, index=index, device="cpu"), say=said.append) as found:
        assert said == ["loading gradio ...", "loading the model ..."]
        yield found


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture
def open_page(browser, address):
    """Opens the page; errors in the console, dialogs, and requests to elsewhere fail the test."""
    contexts, complaints = [], []

    def opened(**options):
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.set_default_timeout(120_000)
        page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
        page.on(
            "request",
            lambda asked: asked.url.startswith((address, "data:", "blob:", "about:")) or complaints.append(asked.url),
        )
        page.goto(address)
        result(page).locator(".phrase").first.wait_for()
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not complaints


def result(page):
    """What the first tab shows."""
    return page.frame_locator("iframe.result").first


def shot(page, name):
    """Keep a picture for a person's eye, where one is asked for."""
    if folder := os.environ.get("EXPLORE_SHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def choose(page, label, text):
    box = page.get_by_label(label, exact=True)
    box.fill(text)
    box.press("Enter")


def test_captions_are_grounded_and_compared(open_page):
    page = open_page()
    shown = result(page)
    assert shown.locator("h2").first.inner_text().startswith("S is ")
    assert MARKUP in shown.locator("article section h3").first.inner_text()
    assert page.locator("h1").inner_text() == "powerclip explore: a <b>run"
    choose(page, "Second caption", "a blue cube on a box")
    page.get_by_role("button", name="Show", exact=True).click()
    shown.get_by_text("Which phrases make the difference").wait_for()
    assert re.match(r"The (first|second) caption wins by \d\.\d{3} of S", shown.locator("h2").first.inner_text())
    assert shown.locator(".tree").count() == 2
    phrase = shown.locator(".tree").nth(1).locator(".phrase").first
    phrase.locator("button").hover()
    assert "the sum of" in shown.locator("article output").inner_text()
    shown.locator(".views svg").click()
    assert ", region " in shown.locator("article output").inner_text()
    frame = page.locator("iframe.result").first
    page.wait_for_function("document.querySelector('iframe.result').clientHeight > 400")
    inside = shown.locator("html").evaluate("html => html.offsetHeight")
    assert frame.bounding_box()["height"] == pytest.approx(inside, abs=4)
    shot(page, "captions")


def test_regions_and_temperature_can_be_changed(open_page):
    page = open_page()
    page.get_by_role("button", name="Regions and temperature").click()
    page.get_by_label("superpixels").check()
    result(page).get_by_text("regions: superpixels").wait_for()
    slider = page.get_by_label(re.compile("range slider for At most this many regions"))
    slider.focus()
    slider.press("Home")
    result(page).get_by_text("M = 1 regions: superpixels").wait_for()
    shot(page, "regions")


def test_prompts_become_heat_maps(open_page):
    page = open_page()
    page.get_by_role("tab", name="Prompts").click()
    page.get_by_label("Prompts, one a line").fill(f"a red ball\n{MARKUP}\n\na dog\n")
    page.get_by_role("button", name="Draw heat maps").click()
    shown = page.frame_locator("iframe.result").nth(1)
    shown.locator("figure").nth(3).wait_for()
    assert shown.locator("figure").count() == 4
    assert MARKUP in shown.locator("figure").nth(2).inner_text()
    assert "tokens of a text are read; cut here: " in shown.locator(".note").first.inner_text()
    assert "Norm: patches and prompts have unit length" in shown.locator(".note").nth(1).inner_text().replace("\n", " ")
    page.get_by_label("Prompts, one a line").fill(" ")
    page.get_by_role("button", name="Draw heat maps").click()
    page.get_by_text("no prompt was given; type one a line").wait_for()
    shot(page, "prompts")


def test_search_finds_by_text_by_image_and_from_a_result(open_page):
    page = open_page()
    page.get_by_role("tab", name="Search").click()
    page.get_by_text("4 of 5 images are indexed; skipped: 1 image format not read (broken.jpg)").wait_for()
    page.get_by_label("Text to find").fill("something green")
    page.get_by_role("button", name="Find by this text").click()
    page.get_by_text(re.compile(r"^-?0\.\d{3} green\.png$")).wait_for()
    page.get_by_text(re.compile(r"^-?0\.\d{3} <img src=x onerror=alert\(1\)>\.png$")).wait_for()
    shot(page, "search")
    page.get_by_text(re.compile(r"\d red\.png$")).click()
    page.get_by_text("1.000 red.png").wait_for()
    page.get_by_role("button", name="Find by the image").click()
    page.wait_for_function(
        "[...document.querySelectorAll('textarea, input')].some(x => x.value.includes('nearest to the image'))"
    )


def test_what_is_no_image_is_a_message(open_page):
    page = open_page()
    page.get_by_label("Remove Image").or_(page.get_by_label("Clear")).first.click()
    page.locator("input[type=file]").first.set_input_files(
        {"name": "<b>x.png", "mimeType": "image/png", "buffer": b"no image <img src=x onerror=alert(1)>"}
    )
    page.wait_for_timeout(1000)
    page.get_by_role("button", name="Show", exact=True).click()
    page.get_by_text("this file cannot be used as an image: image format not read").wait_for()
    page.wait_for_function("!document.querySelector('iframe.result')")  # of the image before
    shot(page, "message")


@pytest.mark.slow
def test_it_is_readable_in_the_dark_and_on_a_phone(open_page):
    dark = open_page(color_scheme="dark")
    inside = result(dark).locator("body").evaluate("body => getComputedStyle(body).color")
    assert inside == "rgb(230, 233, 237)"
    shot(dark, "dark")
    phone = open_page(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    assert phone.evaluate("document.documentElement.scrollWidth") == 390
    button = result(phone).locator(".phrase button[aria-pressed=false]").first
    button.tap()
    assert result(phone).locator(".phrase button[aria-pressed=true]").count() == 1
    shot(phone, "phone")


def test_only_this_machine_is_served_unless_asked(run):
    for host in ("0.0.0.0", "::", "example.com"):
        with pytest.raises(PowerclipError, match="add --public"), served(str(run), ExploreConfig(host=host), say=print):
            pass


def test_sigterm_ends_it_as_a_key_press_does(tmp_path, monkeypatch):
    @contextmanager
    def serving(run, config, *, say):
        with tempfile.TemporaryDirectory(dir=tmp_path):
            yield "http://here"

    monkeypatch.setattr(server, "served", serving)
    monkeypatch.setattr(server, "wait", lambda seconds: signal.raise_signal(signal.SIGTERM))
    before = signal.signal(signal.SIGTERM, lambda *_: pytest.fail("it was not handled"))
    try:
        with pytest.raises(KeyboardInterrupt):
            server.explore(None, ExploreConfig(), say=print)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not list(tmp_path.iterdir())


def test_without_gradio_the_extra_is_named(run, monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "powerclip.explore.page", raising=False)
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert cli.main(["explore", str(run)]) == 2
    assert capsys.readouterr().err.endswith(
        "powerclip: the explorer needs gradio, which is not installed; pip install 'powerclip[explore]'\n"
    )
