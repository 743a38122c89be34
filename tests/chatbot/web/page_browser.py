"""A real Chromium for tests of the page: started once, headless, and looked at as a reader would."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from page_fakes import FakeApi

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions"),
)


@contextmanager
def chromium(profile: Path) -> Iterator[Any]:
    """A browser with a new, empty profile. Skips the test where none is installed."""
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("needs Chromium and chromedriver (on Debian: apt-get install chromium chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.set_script_timeout(20)
    try:
        yield driver
    finally:
        driver.quit()


class Reader:
    """Someone in front of the page at `url`, which is new to this browser. CSS selectors say where."""

    def __init__(self, driver: Any, url: str, api: FakeApi) -> None:
        self.driver, self.url, self.api = driver, url, api
        self.command("Emulation.clearDeviceMetricsOverride")
        self.command("Emulation.setTouchEmulationEnabled", enabled=False)
        self.media()
        self.size(1200, 900)
        driver.get(url)
        driver.execute_script("localStorage.clear(); sessionStorage.clear()")
        driver.get_log("browser")
        driver.get_log("performance")

    def command(self, name: str, **parameters: Any) -> Any:
        """A command of the Chrome DevTools protocol."""
        return self.driver.execute_cdp_cmd(name, parameters)

    def media(self, scheme: str = "light", motion: str = "no-preference") -> None:
        features = {"prefers-color-scheme": scheme, "prefers-reduced-motion": motion}
        self.command(
            "Emulation.setEmulatedMedia", features=[{"name": name, "value": value} for name, value in features.items()]
        )

    def size(self, width: int, height: int, touch: bool = False) -> None:
        self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=touch
        )
        self.command("Emulation.setTouchEmulationEnabled", enabled=touch)

    def open(self) -> Reader:
        """Load the page anew."""
        self.driver.get(self.url)
        self.until(lambda: self.api.key or self.text("#model-name") == "parrot", "the page to know the model")
        return self

    # Looking --------------------------------------------------------------------------------------------------------

    def js(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def all(self, where: str) -> list[Any]:
        """Elements that are there and shown."""
        found = self.driver.find_elements("css selector", where)
        return [each for each in found if each.is_displayed()]

    def one(self, where: str, number: int = 0) -> Any:
        return self.until(lambda: (self.all(where)[number:] or [None])[0], f"{where} to be shown")

    def text(self, where: str, number: int = 0) -> str:
        """Its text as it stands in the document, shown or not."""
        return str(
            self.js("return document.querySelectorAll(arguments[0])[arguments[1]]?.textContent ?? ''", where, number)
        )

    def until(self, condition: Callable[[], Any], what: str = "it to be so", seconds: float = 10) -> Any:
        from selenium.common.exceptions import StaleElementReferenceException

        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                if found := condition():
                    return found
            except StaleElementReferenceException:
                pass  # the page has just replaced it
            time.sleep(0.02)
        raise AssertionError(f"waited in vain for {what}")

    # Acting ---------------------------------------------------------------------------------------------------------

    def click(self, where: str, number: int = 0) -> None:
        element = self.one(where, number)
        self.js("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", element)
        element.click()

    def keys(self, *keys: str) -> None:
        """Pressed one after the other, wherever the focus is."""
        from selenium.webdriver.common.action_chains import ActionChains

        chain = ActionChains(self.driver)
        for key in keys:
            chain.send_keys(key)
        chain.perform()

    def ask(self, question: str, wait: bool = True) -> None:
        from selenium.webdriver.common.keys import Keys

        before = len(self.all(".exchange"))
        self.one("#question").send_keys(question, Keys.ENTER)
        self.until(lambda: len(self.all(".exchange")) == before + 1, "the question to stand there")
        if wait:
            self.ended()

    def ended(self) -> None:
        self.until(lambda: not self.all('.answer[aria-busy="true"]'), "the answer to end")

    def answers(self) -> list[str]:
        return [each.text for each in self.all(".answer .text")]

    def addresses_asked(self) -> list[str]:
        """Every address that the browser asked for since the page was new to it."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        asked = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
        return [each["request"]["url"] for each in asked]
