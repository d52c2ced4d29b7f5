"""The report in a real browser, by pointer, by keys, at a phone's width; nothing complains."""

import shutil
from contextlib import contextmanager

import numpy as np
import pytest
from small_run import CLUSTERS, GALLERY, QUERIES, leave_run, small_space
from test_report import HOSTILE

from retrieval_jax.main import main
from retrieval_jax.report import explore
from retrieval_jax.report.page import make
from retrieval_jax.runtime.errors import printable

sync = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.skipif(shutil.which("chromium") is None, reason="without Chromium")


@contextmanager
def opened(path, **options):
    """The page of a file; fails if it says a word to the console or asks for another address."""
    with sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_context(
            **({"viewport": {"width": 1000, "height": 800}} | options)
        ).new_page()
        said, asked = [], []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: said.append(dialog.message))
        page.on("request", lambda sent: asked.append(sent.url))
        page.goto(path.as_uri())
        yield page
        browser.close()
    assert said == []
    assert all(url == path.as_uri() or url.startswith("data:image/") for url in asked)


def pixels(page):
    """The map's, as one number that changes with them."""
    return page.locator("#map").evaluate("canvas => canvas.toDataURL()")


def place_of(page, item):
    """Where an item is in the map's box."""
    return page.evaluate(
        "item => { const p = map.placeOf.get(item);"
        "return {x: map.toX(p) / devicePixelRatio, y: map.toY(p) / devicePixelRatio}; }",
        item,
    )


def frame(page):
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => setTimeout(done, 50)))")


def test_the_map_by_pointer(tmp_path):
    space = small_space()
    leave_run(tmp_path, space)
    with opened(make(tmp_path)) as page:
        canvas, tip = page.locator("#map"), page.locator("#tip")
        canvas.scroll_into_view_if_needed()
        frame(page)
        first, query = pixels(page), page.evaluate("data.gallery + 3")
        canvas.hover(position=place_of(page, query))
        sync.expect(tip).to_contain_text(f"Query, {GALLERY + 3}.png")
        drawn = "c => { const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
        assert tip.locator("canvas").evaluate(drawn + "return d.some(v => v > 0); }")
        canvas.click(position=place_of(page, query))
        sync.expect(page.locator("#query")).to_contain_text(f"{GALLERY + 3}.png")
        page.mouse.wheel(0, -500)
        frame(page)
        zoomed = pixels(page)
        assert zoomed != first
        page.locator("#reset").click()
        for value in ("cluster", "right", "distance", "class"):
            page.locator("#colour").select_option(value)
            frame(page)
        page.locator("#legend button").nth(1).click()
        shown = np.load(tmp_path / "map.npz")["rows"]
        labels = np.concatenate([space.gallery_labels[shown], space.query_labels])
        mine = (labels == 1).sum()
        sync.expect(page.locator("#picked h3")).to_contain_text("of one")
        assert page.locator("#picked .thumb").count() == min(mine, 60)
        page.locator("#legend button").nth(1).click()
        assert page.locator("#picked .thumb").count() == 0
        page.locator("#lasso").click()
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        right, bottom = box["width"] - 2, box["height"] - 2
        corners = [(right, 2), (right, bottom), (2, bottom), (2, 2), (30, 2)]
        page.mouse.move(box["x"] + 30, box["y"] + 2)  # its corners are round
        page.mouse.down()
        for x, y in corners:
            page.mouse.move(box["x"] + x, box["y"] + y)
        page.mouse.up()
        counts = f"{len(shown)} gallery images, {QUERIES} queries in the lasso"
        sync.expect(page.locator("#picked h3")).to_have_text(counts)
        page.get_by_text("Show more").click()
        assert page.locator("#picked .thumb").count() == len(shown) + QUERIES
        page.locator("#show-gallery").uncheck()
        page.mouse.move(box["x"] + 1, box["y"] + 1)


def test_the_map_by_keys(tmp_path):
    leave_run(tmp_path, small_space())
    with opened(make(tmp_path)) as page:
        page.locator("#map").focus()
        frame(page)
        before = pixels(page)
        page.keyboard.press("ArrowLeft")
        frame(page)
        moved = pixels(page)
        page.keyboard.press("+")
        frame(page)
        assert len({before, moved, pixels(page)}) == 3
        sync.expect(page.locator("#tip")).to_be_visible()
        named = page.locator("#tip").inner_text().split(", ")[1]
        page.keyboard.press("Enter")
        sync.expect(page.locator("#query")).to_contain_text(named)
        page.keyboard.press("0")
        page.locator(".chart svg").first.focus()
        readout = page.locator(".chart .readout").first
        last = readout.inner_text()
        page.keyboard.press("ArrowLeft")
        assert readout.inner_text() != last


def test_queries_are_answered(tmp_path):
    space = small_space()
    leave_run(tmp_path, space)
    order = np.argsort(-explore.goodness(space), kind="stable")
    kept = explore.kept_by_clusters(space)
    with opened(make(tmp_path)) as page:
        sync.expect(page.locator("#query strong")).to_have_text(f"{GALLERY + order[0]}.png")
        page.get_by_role("button", name="Worst").click()
        page.get_by_role("button", name="Worst").click()
        worst = order[-2]
        sync.expect(page.locator("#query strong")).to_have_text(f"{GALLERY + worst}.png")

        def listed(of):
            return [
                int(title.split(", ")[1].removesuffix(".png"))
                for title in page.locator(f"#{of} .thumb").evaluate_all(
                    "all => all.map(e => e.title)"
                )
            ]

        assert listed("whole") == space.exhaustive_indices[worst, :10].tolist()
        inside = space.cluster_indices[worst, :10]
        assert listed("found") == inside[inside >= 0].tolist()
        first = page.locator("#whole .thumb").first
        distance = float(first.locator("span").first.inner_text())
        assert distance == pytest.approx(space.exhaustive_distances[worst, 0], rel=1e-3)
        for probes in range(1, CLUSTERS + 1):
            page.locator("#probes").evaluate(
                "(e, v) => { e.value = v; e.dispatchEvent(new Event('input')); }", str(probes)
            )
            text = page.locator("#kept").inner_text()
            assert f"over all queries {100 * kept[probes - 1]:.1f} %" in text
            missed = page.locator("#whole .missed").count()
            assert f" {10 - missed} of its 10 true neighbours" in text
        assert missed == 0 and listed("found") == listed("whole")
        neighbour = space.exhaustive_indices[worst, 2]
        page.locator("#whole .thumb").nth(2).click()
        sync.expect(page.locator("#query strong")).to_have_text(f"{neighbour}.png")
        sync.expect(page.locator("#query")).to_contain_text("a gallery image")
        page.locator("#back").click()
        sync.expect(page.locator("#query strong")).to_have_text(f"{GALLERY + worst}.png")
        page.locator("#ask-class").select_option("2")
        page.get_by_role("button", name="Random").click()
        sync.expect(page.locator("#query")).to_contain_text("Class: two")
        one = explore.describe_clusters(space)[1]
        page.locator("#cluster").select_option(str(one.number))
        shown = page.locator("#cluster-shown")
        sync.expect(shown).to_contain_text(f"{one.size} gallery images, {one.queries} queries")
        assert shown.locator(".thumb").count() == len(one.typical) + len(one.odd)
        near = one.near[0][0]
        shown.get_by_role("button", name=f"Cluster {near} (").click()
        assert page.locator("#cluster").input_value() == str(near)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_hostile_names_as_text(tmp_path, scheme):
    names = [f"{HOSTILE[i % 3]} {i}" for i in range(GALLERY + QUERIES)]
    leave_run(tmp_path, small_space(), class_names=map(printable, HOSTILE), names=names)
    size = {"width": 390, "height": 800}
    options = {"is_mobile": True, "has_touch": True, "device_scale_factor": 2}
    with opened(make(tmp_path), viewport=size, color_scheme=scheme, **options) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.locator("#map").scroll_into_view_if_needed()
        frame(page)
        spot = place_of(page, page.evaluate("data.gallery"))
        page.locator("#map").tap(position=spot)
        sync.expect(page.locator("#query strong")).to_have_text(printable(names[GALLERY]))
        page.locator("#legend button").first.tap()
        assert page.locator("#picked .thumb").count() > 0
        assert page.locator("#legend").inner_text().startswith(HOSTILE[0])
        assert page.locator("main script, main b, main img[src=x]").count() == 2  # both JSON
        assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_without_labels_and_without_a_map(tmp_path):
    leave_run(tmp_path / "flat", small_space(labelled=False))
    with opened(make(tmp_path / "flat")) as page:
        values = page.locator("#colour option").evaluate_all("all => all.map(e => e.value)")
        assert values == ["cluster", "distance"]
        page.get_by_role("button", name="Worst").click()
        assert page.locator("#whole .thumb").count() == 10
        assert page.locator(".right, .wrong").count() == 0
        assert page.locator("#hubs .thumb").count() > 0
    leave_run(tmp_path / "bare", small_space(), points=0)
    with opened(make(tmp_path / "bare")) as page:
        assert page.locator("#map").count() == 0
        page.locator("#whole .thumb").first.click()
        sync.expect(page.locator("#query")).to_contain_text("a gallery image")


def test_the_comparison(tmp_path, capsys):
    for name, seed in (("one", 0), ("two", 1)):
        leave_run(tmp_path / name, small_space(seed=seed))
    runs = [str(tmp_path / name) for name in ("one", "two")]
    assert main(["compare", *runs, "--output", str(tmp_path)]) == 0
    size = {"width": 390, "height": 800}
    with opened(tmp_path / "comparison.html", viewport=size, color_scheme="dark") as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.locator(".answers").count() == 12
        images = page.locator(".answers img")
        assert images.evaluate_all("all => all.every(e => e.naturalWidth === 9)")
        chart = page.locator(".chart svg").first
        chart.hover(position={"x": 60, "y": 60})
        sync.expect(page.locator(".chart .readout").first).to_contain_text("epoch 1")
