"""The page of a build in a browser: no errors, no requests, visible charts, sorting by keyboard."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.report_pages import full

CHROMIUM, DRIVER = (
    shutil.which("chromium") or shutil.which("chromium-browser"),
    shutil.which("chromedriver"),
)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None,
    reason="chromium and chromedriver are not installed (apt-get install chromium chromium-driver)",
)

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run"
    " --disable-background-networking --disable-component-update --disable-sync"
    " --disable-dev-shm-usage --window-size=1280,1000"
).split()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with tempfile.TemporaryDirectory(
        prefix="lrfc-chromium-", ignore_cleanup_errors=True
    ) as profile:
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        driver = webdriver.Chrome(options=options, service=Service(DRIVER))
        yield driver
        driver.quit()


@pytest.fixture(scope="module")
def page(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    path: Path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(full(), encoding="utf-8")
    browser.get(path.as_uri())
    return browser


def test_no_error_and_no_request(page: Any) -> None:
    assert page.get_log("browser") == []
    events = (json.loads(entry["message"])["message"] for entry in page.get_log("performance"))
    urls = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]
    assert urls, "the page itself was asked for"
    assert [
        url
        for url in urls
        if not url.startswith(("file:", "data:", "chrome:", "chrome-untrusted:"))
    ] == [], "chrome: is the empty tab before it"


def test_every_drawing_is_visible_and_has_a_size(page: Any) -> None:
    sizes = page.execute_script(
        "return [...document.querySelectorAll('svg[role=img]')].filter(s =>"
        " !s.closest('[hidden]')).map(s => [s.getAttribute('aria-label'),"
        " s.getBoundingClientRect().width, s.querySelectorAll('.mark').length])"
    )
    assert len(sizes) == 12
    for label, width, marks in sizes:
        assert label
        assert width > 200, label
        assert marks > 0, label


def column(page: Any, number: int) -> list[str]:
    script = (
        "return [...document.querySelectorAll('#layer-table tbody tr')].map(r =>"
        " r.children[arguments[0]].textContent.trim())"
    )
    return list(page.execute_script(script, number))


def test_the_table_sorts_by_keyboard_and_says_so(page: Any) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    heads = page.find_elements(By.CSS_SELECTOR, "#layer-table thead th")
    assert column(page, 0) == ["conv1", "head"]
    heads[5].find_element(By.TAG_NAME, "button").send_keys(Keys.ENTER)
    assert heads[5].get_attribute("aria-sort") == "ascending"
    assert column(page, 0) == ["head", "conv1"], "20 parameters before 40, as numbers"
    heads[5].find_element(By.TAG_NAME, "button").send_keys(Keys.SPACE)
    assert heads[5].get_attribute("aria-sort") == "descending"
    assert column(page, 0) == ["conv1", "head"]
    heads[8].find_element(By.TAG_NAME, "button").click()
    assert heads[5].get_attribute("aria-sort") is None
    assert column(page, 8)[-1] == "—", "what is not known stays below"
    heads[8].find_element(By.TAG_NAME, "button").click()
    assert column(page, 8)[-1] == "—"


def test_one_layer_s_curves_at_a_time_and_the_changed_layers_alone(page: Any) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.select import Select

    def shown() -> list[str]:
        return [
            each.get_attribute("data-layer")
            for each in page.find_elements(By.CSS_SELECTOR, ".curve")
            if each.is_displayed()
        ]

    assert shown() == ["conv1"]
    Select(page.find_element(By.ID, "layer-choice")).select_by_visible_text("head")
    assert shown() == ["head"]
    page.find_element(By.ID, "only-changed").click()
    rows = page.find_elements(By.CSS_SELECTOR, "#layer-table tbody tr")
    assert [row.find_element(By.TAG_NAME, "th").text for row in rows if row.is_displayed()] == [
        "conv1"
    ]
    page.find_element(By.ID, "only-changed").click()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(page: Any, scheme: str) -> None:
    """WCAG 2.1 AA: a contrast of 4.5."""
    page.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
    )
    pairs = page.execute_script(
        """
        const background = e => {
            for (; e; e = e.parentElement) {
                const c = getComputedStyle(e).backgroundColor;
                if (!/, 0\\)$/.test(c)) return c;
            }
            return null;
        };
        const tags = 'p, td, th, li, dt, dd, h1, h2, h3, caption, figcaption, small, button, code,'
            + ' span, svg text';
        return [...document.querySelectorAll(tags)]
            .filter(e => e.textContent.trim())
            .map(e => {
                const s = getComputedStyle(e);
                return [e.tagName, e.tagName === 'text' ? s.fill : s.color, background(e)];
            })"""
    )
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    assert len(pairs) > 100
    for tag, text, back in pairs:
        low, high = sorted((luminance(text), luminance(back)))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (tag, text, back)


def test_a_phone_shows_it_without_scrolling_sideways(page: Any) -> None:
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 320, "height": 640, "deviceScaleFactor": 2, "mobile": True},
    )
    assert page.execute_script("return document.documentElement.scrollWidth") == 320
    assert (
        min(
            page.execute_script(
                "return [...document.querySelectorAll('svg[role=img]')].filter(s =>"
                " !s.closest('[hidden]')).map(s => s.clientWidth)"
            )
        )
        > 250
    )
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
