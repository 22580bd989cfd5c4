"""The report's page in a headless Chromium, opened from disk."""

import json
import re

import pytest
import torch

from powerclip import create_model
from powerclip.config import ScoringConfig
from powerclip.data.shards import write_shards
from powerclip.model import save
from powerclip.report import write_report
from powerclip.scenes import generate
from tests.support.browser import chromium
from tests.support.runs import record_data


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    write_shards(generate("train", count=6, seed=0), folder / "data")
    runs = {}
    for seed, name in enumerate(("first", "second")):
        run = runs[name] = folder / name
        torch.manual_seed(seed)
        save(create_model("tiny"), run / "model")
        record_data(run, folder / "data")
        lines = [
            {"step": s, "samples_seen": s, "loss_clip": (seed + 1) / s, "gradient_ratio": s} for s in range(1, 401)
        ]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (run / "evaluation.json").write_text(json.dumps({"tasks": {"x": {"acc@1": 0.5 + seed / 10}}}))
        (run / "config.yaml").write_text(f"seed: {seed}\n")
    return write_report(runs, folder / "report.html")


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture
def open_page(browser, report):
    """Opens the page in a new window; anything that it logs or asks the network for fails the test."""
    contexts, complaints = [], []

    def opened(**options):
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda asked: asked.url.startswith(("file:", "data:")) or complaints.append(asked.url))
        page.goto(report.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not complaints


def veil(card, run):
    """How dark each patch of a run's image is."""
    cells = card.locator(".views figure").nth(run).locator("rect")
    return cells.evaluate_all("cells => cells.map(cell => Number(cell.style.fillOpacity))")


def parts(phrase, run):
    """The regions of a phrase's score in a run, with their similarities."""
    texts = phrase.locator(f"[data-run='{run}'] i").evaluate_all("all => all.map(i => i.dataset.parts)")
    return similarities(" ".join(texts))


def others(phrase, run):
    """The similarities of the regions that do not count."""
    return similarities(phrase.locator(f"[data-run='{run}']").get_attribute("data-others"))


def similarities(text):
    return {int(region): float(s) for region, s in (pair.split(":") for pair in text.split())}


def expected_veil(page, card, run):
    """What ``veil`` should be for each phrase: the mean of its similarities over a patch, the highest being 1."""
    masks = page.evaluate("data.masks")[int(card.get_attribute("data-sample"))]
    phrases = card.locator(".phrase").all()
    heat = []
    for of_run, own in enumerate(masks):
        mask_MN = torch.tensor([[int(bit) for bit in mask] for mask in own]).float()
        s_KM = torch.zeros(len(phrases), len(own))
        for k, phrase in enumerate(phrases):
            for region, s in parts(phrase, of_run).items():
                s_KM[k, region] = s
        heat.append(s_KM @ mask_MN / mask_MN.sum(dim=0).clamp(min=1))
    return 0.8 * (1 - heat[run] / heat[run].amax(dim=1, keepdim=True).clamp(min=1e-9))


def test_it_has_no_accessibility_violations_in_light_and_dark(browser, report):
    from axe_playwright_python.sync_playwright import Axe

    for scheme in ("light", "dark"):
        context = browser.new_context(color_scheme=scheme, bypass_csp=True)  # axe is a script of its own
        page = context.new_page()
        page.goto(report.as_uri())
        for closed in page.locator("details:not([open]) summary").all():
            closed.click()
        found = Axe().run(page).response["violations"]
        assert [(one["id"], one["nodes"][0]["html"]) for one in found] == []
        context.close()


def test_its_colours_follow_the_scheme(open_page):
    backgrounds = {
        open_page(color_scheme=scheme).evaluate("getComputedStyle(document.body).backgroundColor")
        for scheme in ("light", "dark")
    }
    assert backgrounds == {"rgb(255, 255, 255)", "rgb(20, 23, 27)"}


def test_a_phrase_lights_its_regions_in_both_runs(open_page):
    page = open_page()
    for card in page.locator("article.grounding").all()[:2]:
        phrases = card.locator(".phrase").all()
        expected = [expected_veil(page, card, run) for run in (0, 1)]
        pressed = [phrase.locator("button").get_attribute("aria-pressed") for phrase in phrases]
        assert sorted(pressed) == ["false"] * (len(phrases) - 1) + ["true"]  # one is chosen from the start
        best = pressed.index("true")
        innermost = [phrase.evaluate("phrase => !phrase.nextElementSibling") for phrase in phrases]
        grounded = [any(parts(phrase, run) for run in (0, 1)) for phrase in phrases]
        assert best == [a and b for a, b in zip(innermost, grounded, strict=True)].index(True)
        for k, phrase in enumerate(phrases):
            if k != best:
                phrase.locator("button").click()
            assert phrase.locator("button").get_attribute("aria-pressed") == "true"
            for run in (0, 1):
                assert veil(card, run) == pytest.approx(expected[run][k].tolist(), abs=2e-3)
            found = [parts(phrase, run) for run in (0, 1)]
            said = [f"{sum(s.values()):.2f}, the sum of {len(s)} region" for s in found]
            assert re.fullmatch(rf"first: {said[0]}s?; second: {said[1]}s?", card.locator("output").text_content())
            for run, own in enumerate(found):
                score = phrase.locator(f"[data-run='{run}']").inner_text().split()[-1]
                assert float(score) == pytest.approx(sum(own.values()), abs=6e-3)
            best = k
        phrases[best].locator("button").click()
        assert phrases[best].locator("button").get_attribute("aria-pressed") == "false"


def test_of_single_regions_a_phrase_lights_what_is_above_the_mean_and_bars_have_a_scale_of_their_own(browser, tmp_path):
    write_shards(generate("train", count=1, seed=0), tmp_path / "data")
    runs = {}
    for seed, (name, subsets) in enumerate((("sums", "all"), ("single", "single"))):
        run = runs[name] = tmp_path / name
        torch.manual_seed(seed)
        save(create_model("tiny", scoring=ScoringConfig(subsets=subsets)), run / "model")
        record_data(run, tmp_path / "data")
    context = browser.new_context()
    page = context.new_page()
    page.goto(write_report(runs, tmp_path / "report.html").as_uri())
    card = page.locator("article.grounding").first
    masks = page.evaluate("data.masks")[0][1]
    widths, scores = [], []
    for phrase in card.locator(".phrase").all():
        if phrase.locator("button").get_attribute("aria-pressed") == "false":
            phrase.locator("button").click()
        best = phrase.locator("[data-run='1'] i")
        ((region, score),) = parts(phrase, 1).items()
        found = {region: score, **others(phrase, 1)}
        assert phrase.locator("[data-run='1'] b").inner_text() == f"{score:.2f}"
        widths.append(float(best.get_attribute("style").removeprefix("width:").removesuffix("%")))
        assert len(found) == len(masks)
        assert score == max(found.values())
        assert f"single: {score:.2f}, its best region" in card.locator("output").text_content()
        mean = sum(found.values()) / len(found)
        bright = {masks[m].index("1"): max(0.0, s - mean) / (score - mean) for m, s in found.items()}  # tiles
        assert veil(card, 1) == pytest.approx([0.8 * (1 - bright[n]) for n in range(len(masks))], abs=2e-2)
        scores.append(region)
    assert max(widths) == 100
    for region in (0, scores[0]):
        card.locator("figure").nth(1).locator("input").fill(str(region + 1))
        lit = card.locator(".phrase").evaluate_all("all => all.map(one => one.classList.contains('lit'))")
        assert lit == [best == region for best in scores]
    context.close()


def test_of_single_regions_that_overlap_the_best_is_brightest_and_every_patch_of_a_patch_model_is_one(
    browser, tmp_path
):
    write_shards(generate("train", count=1, seed=0), tmp_path / "data")
    runs = {}
    for name, options in (
        ("patches", {"region_unit": "patch", "phrase_unit": "both"}),
        ("single", {"scoring": ScoringConfig(subsets="single")}),
        ("tokens", {"phrase_unit": "token"}),
    ):
        run = runs[name] = tmp_path / name
        torch.manual_seed(0)
        save(create_model("tiny", **options), run / "model")
        record_data(run, tmp_path / "data")
        (run / "config.yaml").write_text("objective: {region_source: stored}\n")
        (run / "metrics.jsonl").write_text('{"step": 5, "samples_seen": 5, "loss_clip": 1.0}\n')
    context = browser.new_context()
    page = context.new_page()
    page.goto(write_report(runs, tmp_path / "report.html").as_uri())
    for dot in page.locator(".curves path.line").all():  # of runs with one logged point
        assert dot.evaluate("dot => parseFloat(getComputedStyle(dot).strokeWidth)") == 6
    masks = page.evaluate("data.masks")[0]
    assert len(masks[0]) == 64
    card = page.locator("article.grounding").first
    chosen = card.locator(".phrase:has(button[aria-pressed=true])")
    scored = [phrase.locator(".score").count() for phrase in card.locator(".phrase").all()]
    assert chosen.locator(".score").count() == max(scored) == 2
    for phrase in card.locator(".phrase").all():
        if phrase.locator("[data-run='1']").count():
            phrase.locator("button").focus()
            (best,) = parts(phrase, 1)
            dark = veil(card, 1)
            assert min(dark) == 0
            assert {dark[n] for n, inside in enumerate(masks[1][best]) if inside == "1"} == {0}
    context.close()


def test_bars_have_one_scale_and_a_part_for_each_region(open_page):
    page = open_page()
    card = page.locator("article.grounding").first
    ratios = []
    for part in card.locator(".bar i").all()[::17]:
        ratios.append(part.bounding_box()["width"] / sum(similarities(part.get_attribute("data-parts")).values()))
    assert max(ratios) == pytest.approx(min(ratios), rel=0.05)  # widths are rounded
    lefts = {round(bar.bounding_box()["x"]) for bar in card.locator(".bar").all()}
    assert len(lefts) == 1


def test_a_region_lights_the_phrases_that_it_grounds(open_page):
    page = open_page()
    card = page.locator("article.grounding").nth(1)
    picture = card.locator(".views svg").nth(1)
    picture.scroll_into_view_if_needed()
    box = picture.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.7, box["y"] + box["height"] * 0.3)
    region = int(card.locator("input").nth(1).input_value()) - 1
    masks = page.evaluate("data.masks")[1][1]
    assert masks[region][2 * 8 + 5] == "1"  # of 8 by 8 patches, the third row's sixth
    assert masks[region].count("1") == min(mask.count("1") for mask in masks if mask[2 * 8 + 5] == "1")
    grounded = {k for k, phrase in enumerate(card.locator(".phrase").all()) if region in parts(phrase, 1)}
    lit = {k for k, phrase in enumerate(card.locator(".phrase").all()) if "lit" in phrase.get_attribute("class")}
    assert lit == grounded
    assert picture.locator("path").last.get_attribute("d").startswith("M")
    assert card.locator("output").text_content().startswith(f"second, region {region + 1}: ")
    page.mouse.move(0, 0)
    assert card.locator(".lit").count() == 0
    assert "the sum of" in card.locator("output").text_content()  # the chosen phrase is back


def test_all_can_be_done_by_keyboard(open_page):
    page = open_page()
    card = page.locator("article.grounding").first
    buttons = card.locator("button")
    before = buttons.nth(1).get_attribute("aria-pressed")
    buttons.first.focus()
    page.keyboard.press("Tab")
    assert buttons.nth(1).evaluate("button => button === document.activeElement")
    assert veil(card, 0) == pytest.approx(expected_veil(page, card, 0)[1].tolist(), abs=2e-3)
    page.keyboard.press("Enter")
    assert buttons.nth(1).get_attribute("aria-pressed") == {"true": "false", "false": "true"}[before]
    slider = card.locator("input").first
    slider.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert card.locator("output").text_content().startswith("first, region 2: ")
    assert slider.get_attribute("aria-valuetext").startswith("first, region 2: ")
    page.keyboard.press("Home")
    assert not card.locator("output").text_content().startswith("first, region")
    page.locator("#retrieval input").focus()
    page.keyboard.press("Space")
    assert page.locator("#retrieval input").is_checked()


def test_the_filter_leaves_what_a_run_gets_wrong(open_page):
    page = open_page()
    cards = page.locator("#retrieval article")
    cards.first.evaluate("card => card.classList.add('solved')")
    cards.nth(1).evaluate("card => card.classList.remove('solved')")
    assert cards.first.is_visible()
    page.get_by_label("only queries that a run gets wrong").check()
    assert not cards.first.is_visible()
    assert cards.nth(1).is_visible()


def test_a_query_is_marked_as_solved_where_all_runs_are_right(open_page):
    for card in open_page().locator("#retrieval article").all():
        wrong = card.get_by_text("✗ wrong").count()
        assert ("solved" in card.get_attribute("class")) == (wrong == 0)
        assert card.get_by_text("✓ right", exact=False).count() >= 2 - wrong


def test_curves_show_the_values_at_the_pointer_and_the_slider(open_page):
    page = open_page()
    group = page.locator(".curves").first
    panel = group.locator("figure").first
    points = [line["points"] for line in page.evaluate("data.curves")[0][0]["lines"]]
    assert len(points[0]) <= 120
    assert points[0][0] == [4, pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4, abs=1e-4), 0.25, 1.0]

    def shown_at(step):
        near = [min(line, key=lambda point: abs(point[0] - step)) for line in points]
        return "● first {:.4g} ● second {:.4g}".format(*(point[1] for point in near))

    def shown():
        names = panel.locator("output .run").all()
        return " ".join(f"● {name.text_content().strip()}" for name in names)

    assert page.locator("#unscripted").count() == 0
    assert shown() == shown_at(400)
    chart = panel.locator("svg")
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    page.mouse.move(box["x"] + box["width"] * (44 + 125) / 300, box["y"] + 40)  # the middle of the axis
    step = int(group.locator(".cursor output").text_content())
    assert step == pytest.approx(200, abs=3)
    assert shown() == shown_at(step)
    group.locator("input").focus()
    page.keyboard.press("Home")
    assert shown() == shown_at(0)
    page.keyboard.press("ArrowRight")
    assert group.locator(".cursor output").text_content() == "1"
    labels = page.locator(".curves").last.locator("svg text").all_text_contents()
    assert {"1", "10", "100"} <= set(labels)  # a logarithmic axis


def test_on_a_phone_nothing_is_cut_and_a_tap_chooses(open_page):
    page = open_page(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    card = page.locator("article.grounding").first
    pictures = [picture.bounding_box() for picture in card.locator(".views svg").all()]
    assert pictures[0]["y"] == pictures[1]["y"]  # side by side
    waiting = card.locator("button[aria-pressed=false]").first.element_handle()
    waiting.tap()
    assert waiting.get_attribute("aria-pressed") == "true"
    card.locator(".views svg").first.tap()
    assert card.locator("output").text_content().startswith("first, region ")
    small = "all => all.filter(x => x.getBoundingClientRect().height < 24).length"
    assert page.locator("button, summary, nav a").evaluate_all(small) == 0


def test_on_paper_all_is_open_and_light(open_page):
    page = open_page(color_scheme="dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator("nav").is_visible()
    assert not page.locator("input").first.is_visible()
    for table in page.locator("details table").all():
        assert table.bounding_box()["height"] > 0
    assert page.locator(".tree").first.evaluate("tree => tree.scrollHeight <= tree.clientHeight + 1")


def test_without_scripts_the_tables_are_there_and_the_rest_is_explained(open_page):
    page = open_page(java_script_enabled=False)
    assert page.get_by_text("which did not run").is_visible()
    assert page.get_by_text("second is ahead in 1 of 1 headline results").is_visible()


def test_a_watched_page_loads_itself_again_once_its_reader_is_idle(browser, report, tmp_path):
    watched = tmp_path / "watched.html"
    watched.write_text(report.read_text().replace("<body>", '<body data-reload-s="2">'))
    page = browser.new_page()
    page.clock.install(time=0)
    page.clock.pause_at(1000)  # from here on time passes when the test says so, however busy the machine is
    page.goto(watched.as_uri())
    page.evaluate("window.stale = true")
    for i in range(4):  # for longer than two seconds
        page.mouse.move(50 + i, 50)
        page.clock.run_for(800)
    assert page.evaluate("window.stale")
    with page.expect_navigation(timeout=20_000):
        page.clock.run_for(3000)
    page.wait_for_function("window.stale === undefined")
    page.close()
