"""The page in Debian's Chromium, driven by Selenium. Nothing is fetched for it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.common.exceptions import TimeoutException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

SECONDS = 60  # until a test gives up waiting, on a machine that is busy
DESK, PHONE = (1360, 860), (390, 844)
REQUIRED = "PAGE_TESTS_REQUIRE_A_BROWSER"  # set where a missing browser is a failure
SHOTS = Path(__file__).parents[2] / "build" / "page"
_FLAGS = (
    "--headless=new",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--hide-scrollbars",
    "--force-prefers-reduced-motion",  # what is pressed does not move away meanwhile
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    "--host-resolver-rules=MAP page.test 127.0.0.1",
)


@dataclass(frozen=True)
class Page:
    """A browser with the page of one server."""

    driver: webdriver.Chrome
    url: str

    def open(self, *, theme: str = "system", url: str | None = None) -> None:
        """Load the page anew, with nothing remembered but the theme."""
        self.driver.get(url or self.url)
        self.run("sessionStorage.clear(); localStorage.clear()")
        if theme != "system":
            self.run(f"localStorage.setItem('paligemma-edge-theme', {theme!r})")
        self.driver.get(url or self.url)
        self.until("document.querySelectorAll('#samples button').length > 0")

    def size(self, width: int, height: int) -> None:
        """A screen of so many CSS pixels; a narrow one is a phone's."""
        phone = width < 600
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1 + phone}
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride", {**metrics, "mobile": phone}
        )

    def one(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def run(self, script: str, *given: object) -> Any:  # noqa: ANN401 - of JavaScript
        """What a function with this body returns; its promise's value, if it is one."""
        return self.driver.execute_script(script, *given)

    def until(self, expression: str, *given: object) -> Any:  # noqa: ANN401 - of JavaScript
        """The value of an expression of JavaScript once that is true."""
        wait = WebDriverWait(self.driver, SECONDS, poll_frequency=0.05)
        try:
            return wait.until(lambda _: self.run(f"return ({expression})", *given))
        except TimeoutException:
            raise AssertionError(f"never true: {expression}\n{self.one('body').text}") from None

    def press(self, *keys: str) -> None:
        """Keys, as they are typed into whatever has the focus."""
        for key in keys:
            ActionChains(self.driver).send_keys(key).perform()

    def sample(self, name: str) -> None:
        """Choose a sample image, and wait until it is shown."""
        self.run("arguments[0].click()", self.one(f'#samples img[src$="{name}"]'))
        self.until("document.getElementById('canvas').ariaLabel.startsWith(arguments[0])", name)

    def task(self, title: str) -> None:
        """Press a task's button."""
        self.driver.find_element(By.XPATH, f'//div[@id="tasks"]/button[.="{title}"]').click()

    def prompt(self, text: str) -> None:
        """Write a prompt in the place of what is there."""
        self.one("#prompt").clear()
        self.one("#prompt").send_keys(text)

    def ask(self) -> None:
        """Press Ask, and wait for the whole answer."""
        before = len(self.all(".card"))
        self.one("#send").click()
        self.until("document.querySelectorAll('.card').length > arguments[0]", before)
        self.answered()

    def answered(self) -> None:
        """Wait until the selected answer is whole."""
        self.until("document.querySelector('.card[data-selected][data-state=done]')")

    def pixel(self, x: float, y: float) -> list[int]:
        """The canvas's colour at a point in shares of its sides, once it is painted."""
        script = """
            const [x, y, done] = arguments, canvas = document.getElementById("canvas");
            requestAnimationFrame(() => requestAnimationFrame(() => {
              const at = [x * canvas.width, y * canvas.height].map(Math.floor);
              const copy = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
              copy.drawImage(canvas, ...at, 1, 1, 0, 0, 1, 1);
              done([...copy.getImageData(0, 0, 1, 1).data.slice(0, 3)]);
            }));
        """
        found: list[int] = self.driver.execute_async_script(script, x, y)
        return found

    def shot(self, name: str) -> None:
        """A picture of the page for people, in a folder that git ignores."""
        SHOTS.mkdir(parents=True, exist_ok=True)
        self.run("document.activeElement?.scrollIntoView({ block: 'nearest' })")
        self.driver.save_screenshot(str(SHOTS / f"{name}.png"))

    def errors(self) -> list[str]:
        """What the console had to complain of since it was last asked."""
        entries = self.driver.get_log("browser")  # type: ignore[no-untyped-call]
        return [entry["message"] for entry in entries if entry["level"] != "INFO"]

    def requested(self) -> set[str]:
        """The addresses of all requests since it was last asked."""
        entries = self.driver.get_log("performance")  # type: ignore[no-untyped-call]
        messages = [json.loads(entry["message"])["message"] for entry in entries]
        sent = [one for one in messages if one["method"] == "Network.requestWillBeSent"]
        return {one["params"]["request"]["url"] for one in sent}

    def hindrances(self) -> list[str]:
        """What axe finds that hinders people seriously, or worse."""
        script = files("axe_core_python") / "axe.min.js"
        self.run(script.read_text(encoding="utf-8"))
        found = self.driver.execute_async_script("axe.run().then(arguments[0])")
        return [
            f"{one['id']}: {one['help']}: {[node['html'] for node in one['nodes']]}"
            for one in found["violations"]
            if one["impact"] in ("serious", "critical")
        ]


@contextlib.contextmanager
def browser() -> Iterator[Callable[[str], Page]]:
    """A browser; called with an address it is a page. Skips where there is none."""
    programs = shutil.which("chromium"), shutil.which("chromedriver")
    if None in programs:
        missing = "no chromium and chromedriver here; apt-get install chromium chromium-driver"
        assert REQUIRED not in os.environ, missing
        pytest.skip(missing)
    options = webdriver.ChromeOptions()
    options.binary_location = str(programs[0])
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # which Chromium refuses root
    for flag in (*_FLAGS, *sandbox, f"--window-size={DESK[0]},{DESK[1]}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options, Service(str(programs[1])))
    try:
        driver.set_script_timeout(SECONDS)
        yield lambda url: Page(driver, url)
    finally:
        driver.quit()
