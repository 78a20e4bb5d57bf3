from __future__ import annotations

import hashlib
import json
import math
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from paligemma_edge import PaliGemma
from paligemma_edge.export.lora.add_to_bundle import add_adapter
from paligemma_edge.runtime.results.draw import colour_of
from tests.helpers import adapters
from tests.helpers.browser import DESK, PHONE, Page, browser
from tests.helpers.serving import running_server

STARS, HEART, ZEBRA = "00.png", "03.png", "11.png"
FILE_EVENT = """
    const [kind, target, bytes, name, type] = arguments;
    const transfer = new DataTransfer();
    transfer.items.add(new File([new Uint8Array(bytes)], name, { type }));
    const given = { bubbles: true, cancelable: true };
    const event = kind === "paste"
      ? new ClipboardEvent(kind, { ...given, clipboardData: transfer })
      : new DragEvent(kind, { ...given, dataTransfer: transfer });
    document.querySelector(target).dispatchEvent(event);
"""


@pytest.fixture(scope="module")
def start() -> Iterator[Callable[[str], Page]]:
    with browser() as started:
        yield started


@pytest.fixture(scope="module")
def served(start: Callable[[str], Page], shapes_bundle: Path) -> Iterator[Page]:
    with running_server(shapes_bundle, allowed_hosts=("page.test",)) as running:
        yield start(f"http://localhost:{running.address.port}/")


@pytest.fixture
def page(served: Page) -> Iterator[Page]:
    """The page at a desk; whatever a test does, it asks nobody else and no error is logged."""
    served.size(*DESK)
    served.open()
    served.errors(), served.requested()  # of a test that failed
    yield served
    assert served.errors() == []
    other = ("http://page.test:", "blob:http://page.test:")
    ours = (served.url, f"blob:{served.url}", "data:", *other)
    assert [url for url in served.requested() if not url.startswith(ours)] == []


def objects(page: Page) -> list[list[str]]:
    """Number, label and confidence of the objects in the list that are not hidden."""
    shown = [one for one in page.all(".card[data-selected] .objects li") if one.is_displayed()]
    parts = "arguments[0].querySelectorAll('.number, .label, .sure')"
    return [page.run(f"return [...{parts}].map(e => e.textContent)", one) for one in shown]


def active(page: Page) -> tuple[str, list[str]]:
    """The object that is meant, as the canvas and as the list have it."""
    marked = [one.text.split("\n")[0] for one in page.all(".objects button[data-active]")]
    return str(page.one("#canvas").get_attribute("data-active")), marked


def edge(box: list[float]) -> tuple[float, float]:
    """A point on the left line of a box."""
    return box[0] + 0.0015, (box[1] + box[3]) / 2


def copied(page: Page, title: str) -> str:
    page.driver.execute_cdp_cmd(
        "Browser.grantPermissions",
        {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"], "origin": page.url[:-1]},
    )
    button = f'//article[@data-selected]//button[.="{title}"]'
    page.driver.find_element("xpath", button).click()
    page.until("document.querySelector('.takeaways').textContent.includes('Copied')")
    text: str = page.driver.execute_async_script(
        "navigator.clipboard.readText().then(arguments[0])"
    )
    return text


def result(page: Page) -> dict[str, Any]:
    """The selected answer as the API gave it."""
    found: dict[str, Any] = json.loads(copied(page, "Copy JSON"))
    return found


def test_a_caption_an_answer_and_text_are_those_of_the_model(
    page: Page, shapes_model: PaliGemma, shapes_images: Path
) -> None:
    page.shot("desk-empty")
    page.sample(ZEBRA)
    for title in ("Caption", "Ask", "OCR"):
        page.task(title)
        page.ask()
        asked = str(page.one("#prompt").get_attribute("value"))
        words = page.run("return document.querySelector('.words').firstChild.textContent")
        assert words == shapes_model.run(shapes_images / ZEBRA, asked).text
    assert [one.text for one in page.all(".asked")] == [
        "ocr",
        "answer en what colour is the diamond?",
        "caption en",
    ]
    assert len(page.all(".group")) == 1
    page.shot("desk-words")


def test_an_image_is_sent_once(page: Page) -> None:
    page.sample(STARS)
    page.requested()
    page.ask()
    page.task("Detect")
    page.ask()
    posted = [url for url in page.requested() if "/v1/" in url and "/v1/info" not in url]
    assert len([url for url in posted if "?" in url]) == 1  # the image, the rest in the query
    assert [url for url in posted if "?" not in url] == [f"{page.url}v1/detect"]


def test_boxes_are_drawn_where_the_model_has_them_in_their_colour(page: Page) -> None:
    page.sample(STARS)
    page.task("Segment")
    before = page.pixel(0.775, 0.7)
    page.ask()
    found = result(page)["objects"]
    assert [label for _, label, _ in objects(page)] == [one["label"] for one in found]
    assert page.one("#canvas").get_attribute("data-objects") == str(len(found)) == "2"
    for one in found:
        assert page.pixel(*edge(one["xyxy_normalized"])) == list(colour_of(one["label"]))
        for _, label, sure in objects(page):
            if label == one["label"]:
                assert float(sure) == math.floor(one["confidence"] * 100) / 100
    assert page.pixel(0.775, 0.7) != before  # the red star has its mask there
    assert "2 objects" in str(page.one("#canvas").get_attribute("aria-label"))
    page.shot("desk-segment")


def test_the_slider_leaves_out_what_is_below_it(page: Page) -> None:
    page.sample(STARS)
    page.task("Detect")
    page.prompt("detect red star ; purple star ; yellow star")
    page.ask()
    found = result(page)["objects"]
    doubted = [one for one in found if one["confidence"] < 0.5]
    assert len(page.all("#marks span")) == len(found) == 2
    slider = page.one("#threshold")
    slider.send_keys(*[Keys.ARROW_RIGHT] * 50)
    assert page.one("#threshold-value").text == "0.50"
    assert len(objects(page)) == 2 - len(doubted) == 1
    page.shot("desk-slider")
    slider.send_keys(Keys.END)
    assert page.one("#threshold-value").text == "1.00"
    assert objects(page) == []
    assert page.one(".card[data-selected] .summary").text == "0 of 2 objects"
    for one in found:
        assert page.pixel(*edge(one["xyxy_normalized"])) != list(colour_of(one["label"]))
    slider.send_keys(Keys.HOME)
    assert len(objects(page)) == 2
    assert page.one(".card[data-selected] .summary").text == "2 objects"


def test_list_and_canvas_point_at_the_same_object(page: Page) -> None:
    page.sample(STARS)
    page.task("Segment")
    page.ask()
    boxes = [one["xyxy_normalized"] for one in result(page)["objects"]]
    canvas = page.one("#canvas")
    for number, row in enumerate(page.all(".objects button")):
        ActionChains(page.driver).move_to_element(row).perform()
        assert active(page) == (str(number), [str(number + 1)])
    page.shot("desk-pointed")
    for number, (x0, y0, x1, y1) in enumerate(boxes):
        across = ((x0 + x1) / 2 - 0.5) * canvas.size["width"]
        down = ((y0 + y1) / 2 - 0.5) * canvas.size["height"]
        ActionChains(page.driver).move_to_element_with_offset(
            canvas, int(across), int(down)
        ).perform()
        assert active(page) == (str(number), [str(number + 1)])
    ActionChains(page.driver).click().move_to_element(page.one("h1")).perform()
    assert active(page)[0] == "1"  # what was pressed stays meant
    page.press(Keys.ESCAPE)
    assert active(page) == ("", [])


def test_choices_have_probabilities(page: Page) -> None:
    page.sample(STARS)
    page.task("Classify")
    page.ask()
    assert page.one(".ranking .choice").text == "3"
    numbers = [float(one.text) for one in page.all(".ranking .number")]
    assert numbers == sorted(numbers, reverse=True)
    assert len(numbers) == 4
    page.shot("desk-classify")


def test_any_prompt_can_be_sent_as_it_stands(page: Page) -> None:
    page.sample(STARS)
    page.prompt("DETECT star;star")  # another spelling than `/v1/detect` would ask
    assert page.one('#tasks [aria-pressed="true"]').text == "Detect"
    page.ask()
    assert result(page)["prompt"] == "DETECT star;star"
    page.prompt("star")
    assert page.one('#tasks [aria-pressed="true"]').text == "Free"
    page.ask()
    assert result(page)["task"] == "generate"


def test_typed_endpoints_are_asked_only_for_what_was_typed(page: Page) -> None:
    expected = {
        "caption de": ["caption", {"language": "de"}],
        "answer en where; and why?": ["ask", {"question": "where; and why?", "language": "en"}],
        " ocr ": ["ocr", {}],
        "detect cat ; red dog": ["detect", {"labels": ["cat", "red dog"]}],
        "segment all classes": ["segment", {"labels": ["all classes"]}],
    }
    as_it_stands = [
        "detect",
        "detect cat;dog",
        "detect cat ; cat",
        "detect  cat",
        "Segment cat",
        "caption EN",
        "hello",
    ]
    expected |= {text: ["generate", {"prompt": text}] for text in as_it_stands}
    script = """
        const [texts, done] = arguments;
        import("/page/prompts.js").then(({ endpoint }) =>
          done(texts.map((text) => [endpoint(text).path, endpoint(text).fields])));
    """
    assert page.driver.execute_async_script(script, list(expected)) == list(expected.values())


def test_what_is_looked_for_is_kept_between_tasks(page: Page) -> None:
    page.sample(STARS)
    page.task("Detect")
    page.prompt("detect yellow star")
    page.task("Segment")
    assert page.one("#prompt").get_attribute("value") == "segment yellow star"
    page.task("Caption")
    page.task("Detect")
    assert page.one("#prompt").get_attribute("value") == "detect yellow star"


def test_all_by_keyboard(page: Page) -> None:
    def tab_to(selector: str, *, back: bool = False) -> None:
        for _ in range(60):
            if page.run("return document.activeElement.matches(arguments[0])", selector):
                return
            chain = ActionChains(page.driver)
            held = chain.key_down(Keys.SHIFT) if back else chain
            held.send_keys(Keys.TAB).key_up(Keys.SHIFT).perform()
        raise AssertionError(f"Tab does not reach {selector}")

    page.press(Keys.TAB)
    assert page.run("return document.activeElement.className") == "skip"
    tab_to("#camera")
    tab_to(".sample")
    page.press(Keys.ENTER)
    page.until("document.activeElement.id === 'prompt'")
    tab_to("#tasks button:nth-child(5)", back=True)
    page.press(Keys.ENTER)
    assert page.run("return document.activeElement.value.slice(arguments[0])", 8)
    assert page.run("return getSelection().toString()") in ("", "red star ; purple star")
    page.press("star", Keys.ENTER)
    page.answered()
    assert page.one(".card[data-selected] .asked").text == "segment star"
    tab_to(".objects button")
    assert active(page) == ("0", ["1"])
    page.press(Keys.ARROW_DOWN)
    assert active(page) == ("1", ["2"])
    page.press(Keys.END)
    assert active(page)[0] == str(len(objects(page)) - 1)
    page.press(Keys.HOME, Keys.TAB)  # the list is one stop
    assert page.run("return document.activeElement.textContent") == "Copy JSON"
    tab_to("#threshold", back=True)
    page.press(Keys.END)
    assert objects(page) == []


def test_answers_are_told_in_whole_sentences(page: Page) -> None:
    page.sample(STARS)
    page.ask()
    page.task("Detect")
    page.ask()
    told = page.until(
        "document.querySelectorAll('#speech p').length > 2 && "
        "[...document.querySelectorAll('#speech p')].map(e => e.textContent)"
    )
    assert told[0] == "00.png, 112 by 112 pixels"
    assert told[1] == page.run("return document.querySelector('.words').firstChild.textContent")
    assert told[2].startswith("1 object: purple star, ")
    assert page.one("#speech").get_attribute("aria-live") == "polite"


def test_an_earlier_answer_comes_back_with_its_image(page: Page) -> None:
    page.sample(STARS)
    page.task("Detect")
    page.ask()
    page.sample(HEART)
    page.ask()
    assert len(page.all(".group")) == 2
    assert str(page.one("#canvas").get_attribute("aria-label")).startswith(HEART)
    page.all(".title")[1].click()
    assert str(page.one("#canvas").get_attribute("aria-label")).startswith(STARS)
    assert page.one("#canvas").get_attribute("data-objects") == "1"


@pytest.mark.parametrize("kind", ["drop", "paste", "file"])
def test_images_of_ones_own(page: Page, shapes_images: Path, kind: str, tmp_path: Path) -> None:
    image = shapes_images / STARS
    if kind == "file":
        mine = shutil.copy(image, tmp_path / "mine.png")
        page.one("#file").send_keys(str(mine))
    else:
        target = "#stage" if kind == "drop" else "#prompt"
        page.run(FILE_EVENT, kind, target, list(image.read_bytes()), "mine.png", "image/png")
    page.until("document.getElementById('canvas').ariaLabel.startsWith('mine.png')")
    page.task("Detect")
    page.prompt("detect purple star")
    page.ask()
    assert [label for _, label, _ in objects(page)] == ["purple star"]
    line = copied(page, "Copy curl")
    assert "--data-binary '@mine.png'" in line


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("notes.txt", "text/plain", "notes.txt is not an image."),
        ("torn.png", "image/png", "torn.png cannot be read as an image here."),
    ],
)
def test_what_is_no_image_is_refused_in_words(page: Page, name: str, kind: str, said: str) -> None:
    page.run(FILE_EVENT, "drop", "#stage", [1, 2, 3], name, kind)
    page.until("!document.getElementById('trouble').hidden")
    assert page.one("#trouble").text.startswith(said)
    page.sample(STARS)
    assert not page.one("#trouble").is_displayed()


def test_a_question_without_an_image(page: Page) -> None:
    page.one("#send").click()
    assert page.one("#trouble").text.startswith("An image is needed first")
    page.shot("desk-without-image")


def test_the_camera(page: Page) -> None:
    page.one("#camera").click()
    page.until("document.getElementById('viewfinder').videoWidth > 0")
    page.until("!document.getElementById('shutter').hidden")
    page.shot("desk-camera")
    page.one("#shutter").click()
    page.until("document.getElementById('canvas').ariaLabel.startsWith('camera.jpg')")
    assert page.one("#canvas").is_displayed()
    assert page.run("return document.getElementById('viewfinder').srcObject") is None
    page.ask()
    page.one("#camera").click()
    page.until("document.getElementById('stage').dataset.view === 'camera'")
    page.sample(STARS)  # an image from elsewhere closes it
    assert page.one("#canvas").is_displayed()
    assert page.one("#camera").is_displayed()
    assert page.run("return document.getElementById('viewfinder').srcObject") is None


def test_a_camera_that_is_not_to_be_had_says_why(page: Page) -> None:
    page.open(url=page.url.replace("localhost", "page.test"))
    assert page.one("#camera").get_attribute("aria-disabled") == "true"
    assert "HTTPS or localhost" in page.one("#camera-reason").text
    page.sample(STARS)
    page.ask()  # all else works


def test_the_line_for_curl_gives_the_same_answer(page: Page) -> None:
    if shutil.which("curl") is None:
        pytest.skip("no curl here")
    page.sample(STARS)
    page.task("Detect")
    page.ask()
    line = copied(page, "Copy curl")
    answer = subprocess.run(line, shell=True, check=True, capture_output=True)
    mine, theirs = result(page), json.loads(answer.stdout)
    for name in ("task", "prompt", "text", "objects"):
        assert theirs[name] == mine[name]


def test_refusals_are_told_and_can_be_tried_again(served: Page) -> None:
    served.size(*DESK)
    served.open()
    served.sample(STARS)
    too_long = "detect " + "long " * 800
    served.run("document.getElementById('prompt').value = arguments[0]", too_long)
    served.one("#send").click()
    served.until("document.querySelector('.card[data-state=failed]')")
    assert len(served.one(".card .trouble p").text) > 20
    served.shot("desk-refused")
    served.driver.find_element("xpath", '//button[.="Ask again"]').click()
    served.until("document.querySelectorAll('.card[data-state=failed]').length === 1")
    assert any("400" in error for error in served.errors())


def test_a_server_that_has_gone_is_told(start: Callable[[str], Page], shapes_bundle: Path) -> None:
    with running_server(shapes_bundle) as running:
        page = start(f"http://localhost:{running.address.port}/")
        page.open()
        page.sample(STARS)
    page.one("#send").click()
    page.until("document.querySelector('.card[data-state=failed]')")
    assert page.one(".card .trouble p").text == "The server does not answer. Is it still running?"
    page.shot("desk-gone")
    page.errors()


def test_a_key_is_asked_for_and_kept(
    start: Callable[[str], Page], shapes_bundle: Path, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"me:{hashlib.sha256(b'sesame').hexdigest()}\n")
    with running_server(shapes_bundle, api_keys=keys) as running:
        page = start(f"http://localhost:{running.address.port}/")
        page.open()
        page.until("document.getElementById('key-dialog').open")
        page.shot("desk-key")
        assert page.hindrances() == []
        page.press("wrong", Keys.ENTER)
        page.until("!document.getElementById('key-trouble').hidden")
        page.press("sesame", Keys.ENTER)
        page.until("document.getElementById('facts').textContent.includes('cpu-fp32')")
        page.sample(STARS)
        page.ask()
        assert "Bearer $PALIGEMMA_API_KEY" in copied(page, "Copy curl")
        page.driver.refresh()
        page.until("document.getElementById('facts').textContent.includes('cpu-fp32')")
        assert not page.run("return document.getElementById('key-dialog').open")
        page.errors()


def test_an_adapter_can_be_chosen(
    start: Callable[[str], Page], shapes_checkpoint: Path, shapes_copy: Path, tmp_path: Path
) -> None:
    adapter = adapters.train(shapes_checkpoint, tmp_path / "night", target_modules=["q_proj"])
    add_adapter(shapes_copy, adapter, "night")
    with running_server(shapes_copy) as running:
        page = start(f"http://localhost:{running.address.port}/")
        page.open()
        page.until("!document.getElementById('model').disabled")
        names = [one.text for one in page.all("#model option")]
        assert names == ["copy", "night (adapter)"]
        page.sample(STARS)
        page.ask()
        assert result(page)["model"] == "copy"
        page.one("#model").send_keys("n")
        page.ask()
        assert result(page)["model"] == "night"


def test_the_foot_says_what_answers(page: Page) -> None:
    foot = page.until("document.getElementById('facts').innerText.includes('cpu-fp32')") and (
        page.one("#facts").text.split("\n")
    )
    assert dict(zip(foot[::2], foot[1::2], strict=True))["Queue"] == "idle"
    assert page.one("#model").get_attribute("value") == "shapes"


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_nothing_hinders_people(page: Page, theme: str, size: tuple[int, int]) -> None:
    page.size(*size)
    page.open(theme=theme)
    assert page.hindrances() == []
    page.sample(STARS)
    page.task("Classify")
    page.ask()
    page.task("Caption")
    page.ask()
    page.task("Segment")
    page.ask()
    page.one(".card[data-selected] summary").click()
    assert page.hindrances() == []
    page.shot(f"{'phone' if size == PHONE else 'desk'}-{theme}")


def test_a_phone_needs_no_sideways_scrolling(page: Page) -> None:
    def fits() -> None:
        assert page.run("return document.documentElement.scrollWidth") <= PHONE[0]

    page.size(*PHONE)
    page.open()
    fits()
    page.shot("phone-empty")
    page.sample(STARS)
    for title in ("Caption", "Classify", "Detect", "Segment"):
        page.task(title)
        page.ask()
        fits()
    page.prompt("answer en " + "w" * 120)
    fits()
    page.ask()
    fits()
    page.one("#samples-toggle").click()
    assert page.one("#samples").is_displayed()
    fits()
    small = page.run(
        "return [...document.querySelectorAll('button, select, .button, summary')]"
        ".filter(e => e.checkVisibility() && e.getBoundingClientRect().height < 24)"
        ".map(e => e.outerHTML)"
    )
    assert small == []  # WCAG 2.2, 2.5.8
