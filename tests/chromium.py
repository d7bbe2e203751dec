"""A headless Chromium driven through its own chromedriver, and clicks that survive a page that redraws itself."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest
from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

PROGRAMS = {"browser": ("chromium", "chromium-browser", "google-chrome"), "driver": ("chromedriver",)}
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1500,950",
)
WEBGL = ("--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist")
"""Three dimensions without a graphics card, instead of --disable-gpu."""
PATIENCE_SECONDS = 300.0
AGAIN_SECONDS = 30.0
"""After which, and then after twice as long each time, a page that does not show what is waited for is opened again: not everything on it
follows by itself."""

_T = TypeVar("_T")


def require() -> tuple[str, str]:
    """Paths of browser and driver; skips the test where they are not installed."""
    found = {role: next((path for name in names if (path := shutil.which(name))), None) for role, names in PROGRAMS.items()}
    browser, driver = found["browser"], found["driver"]
    if browser is None or driver is None:
        pytest.skip("no Chromium with chromedriver on this machine")
    return browser, driver


@contextmanager
def page(profile: Path, webgl: bool = False) -> Iterator[Page]:
    """A browser with a fresh profile, which is also where downloads go; it is gone when the block is left."""
    browser, driver = require()
    options = Options()
    options.binary_location = browser
    options.add_experimental_option("prefs", {"download.default_directory": str(profile)})
    flags = (*(flag for flag in FLAGS if flag != "--disable-gpu"), *WEBGL) if webgl else FLAGS
    for flag in (*flags, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    chrome = webdriver.Chrome(options=options, service=Service(driver))
    chrome.set_page_load_timeout(2 * AGAIN_SECONDS)
    try:
        yield Page(chrome)
    finally:
        chrome.quit()


class Page:
    """What a person does with a page: open, read, click, look."""

    def __init__(self, chrome: webdriver.Chrome) -> None:
        self._chrome = chrome

    def open(self, url: str) -> None:
        def opened() -> bool:
            self._chrome.get(url)
            return True

        self._until(opened, url)

    @property
    def text(self) -> str:
        return self._chrome.find_element(By.TAG_NAME, "body").text

    def wait_for_text(self, *wanted: str) -> None:
        """Until all of them can be read on the page."""
        self._until(lambda: all(word in self.text for word in wanted) or None, f"the words {wanted} on the page")

    def open_for(self, url: str, *wanted: str, without: str | None = None) -> None:
        """Until all of them, and not the one in `without`, can be read on that page, which is opened as often as needed."""
        due, pause = 0.0, AGAIN_SECONDS

        def readable() -> bool | None:
            nonlocal due, pause
            if time.monotonic() >= due:
                self.open(url)
                due, pause = time.monotonic() + pause, 2 * pause
            text = self.text
            return (all(word in text for word in wanted) and (without is None or without not in text)) or None

        self._until(readable, f"the words {wanted} but not {without} on {url}")

    def click_for(self, xpath: str, wanted: str) -> None:
        """Again and again until the word can be read: what a button acts on may come later than the button."""

        def clicked() -> bool | None:
            if wanted not in self.text:
                self._chrome.find_element(By.XPATH, xpath).click()
            return wanted in self.text or None

        self._until(clicked, f"{wanted!r} after clicking {xpath}")

    def click(self, xpath: str) -> None:
        """As soon as the element can be clicked."""

        def clicked() -> bool:
            self._chrome.find_element(By.XPATH, xpath).click()
            return True

        self._until(clicked, xpath)

    def type_into(self, xpath: str, text: str) -> None:
        """Replaces what stands in an input and leaves it; again where a page under load has lost some of the keys."""

        def typed() -> bool | None:
            field = self._chrome.find_element(By.XPATH, xpath)
            if field.get_property("value") != text:
                field.send_keys(Keys.CONTROL, "a")
                field.send_keys(text, Keys.TAB)
            return field.get_property("value") == text or None

        self._until(typed, xpath)

    def errors(self) -> list[str]:
        """What the console called severe since it was last asked."""
        return [entry["message"] for entry in self._chrome.get_log("browser") if entry["level"] == "SEVERE"]

    def wait_for_pictures(self) -> list[int]:
        """Natural widths in pixels of the pictures that came inside the page, once there are any; 0 for one that could not be decoded."""
        script = "return [...document.images].filter(i => i.src.startsWith('data:image/png') && i.complete).map(i => i.naturalWidth)"
        return self._until(lambda: [int(width) for width in self._chrome.execute_script(script)] or None, "a picture")

    def wait_until_gone(self, *words: str) -> None:
        """Until none of them can be read: what a page has asked for is dropped when it is left too early."""
        self._until(lambda: not any(word in self.text for word in words) or None, f"{words} to go")

    def wait_for_drawings(self) -> None:
        """Until a plot that the page draws itself has something on it."""
        script = """return [...document.querySelectorAll('canvas')].some(
            c => c.width && c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some(value => value))"""
        self._until(lambda: self._chrome.execute_script(script) or None, "a plot")

    def screenshot(self, path: Path) -> Path:
        self._chrome.save_screenshot(str(path))
        return path

    def _until(self, attempt: Callable[[], _T | None], what: str) -> _T:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                result = attempt()
            except WebDriverException:
                result = None
            if result is not None:
                return result
            if time.monotonic() > deadline:
                raise AssertionError(f"waited {PATIENCE_SECONDS:.0f} s for {what}; the page says:\n{self.text[:2000]}")
            time.sleep(0.25)
