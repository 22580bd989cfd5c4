"""Draws docs/explore.png: the explorer in Chromium, with two captions of the first example's image.

Run: python docs/screenshot.py [RUN]; without a run, of the model that comes with powerclip
"""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

from powerclip.config import ExploreConfig
from powerclip.explore.server import served


def main(run: str | None) -> None:
    """Serve the page, fill it in, and keep a picture of it."""
    with served(run, ExploreConfig(port=0, device="cpu"), say=print) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1180, "height": 1560})
        page.set_default_timeout(120_000)
        page.goto(address)
        result = page.frame_locator("iframe.result").first
        result.locator(".phrase").first.wait_for()
        for label, text in (
            ("Caption", "a green flask over a crescent"),
            ("Second caption", "a red anchor over a crescent"),
        ):
            page.get_by_label(label, exact=True).fill(text)
            page.get_by_label(label, exact=True).press("Enter")
        page.get_by_role("button", name="Show", exact=True).click()
        result.get_by_text("Which phrases make the difference").wait_for()
        phrase = result.get_by_role("button", name="NP a green flask", exact=True)
        if phrase.get_attribute("aria-pressed") == "false":
            phrase.click()
        page.mouse.move(0, 0)
        page.evaluate("scrollTo(0, 0)")
        page.wait_for_timeout(2000)  # the frame takes its height
        page.screenshot(path=Path(__file__).with_name("explore.png"))
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1] if sys.argv[1:] else None)
