"""The page in a real browser: choose, see the skeleton at once, get the video, browse, on a desk and on a phone."""

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.select import Select

from finephys.data.video import decode_video
from tests.needs import needs_programs
from tests.serve.conftest import QUICK, TOKENS, Service, served

pytestmark = needs_programs("chromium", "chromedriver")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1200,900",
)  # fmt: skip
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    folder = tmp_path_factory.mktemp("browser")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in (*FLAGS, f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(folder)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    yield chrome
    chrome.quit()


@pytest.fixture
def url(service: Service) -> Iterator[str]:
    with served(service) as url:
        yield url


def _until(condition: Callable[[], Any], what: str, timeout_s: float = 60) -> float:
    """Seconds until the condition held."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() < started + timeout_s, f"no {what} in {timeout_s} s"
        time.sleep(0.05)
    return time.monotonic() - started


def _sign_in(browser: webdriver.Chrome, url: str, token: str) -> None:
    browser.get(url)
    browser.execute_script("sessionStorage.setItem('token', arguments[0])", token)
    browser.get(url)
    _until(lambda: browser.execute_script("return document.getElementById('canvas').dataset.element"), "skeleton")


def _canvas(browser: webdriver.Chrome) -> str:
    return str(browser.execute_script("return document.getElementById('canvas').toDataURL()"))


def _text(browser: webdriver.Chrome, name: str) -> str:
    return browser.find_element(By.ID, name).text


def test_from_a_token_to_a_video_and_its_deletion(browser: webdriver.Chrome, url: str, service: Service) -> None:
    service.is_paused = True
    browser.get(url)
    token = browser.find_element(By.ID, "token")
    _until(token.is_displayed, "question for a token")
    token.send_keys("nobody's token")
    browser.find_element(By.ID, "prompt").click()
    _until(lambda: "unknown" in _text(browser, "problem"), "refusal")
    token.clear()
    token.send_keys(TOKENS["ada"])
    browser.find_element(By.ID, "prompt").click()
    _until(lambda: not token.is_displayed(), "end of the question")

    # Choose: the skeleton of that element moves at once, and the prompt tells of it, though no worker is there.
    Select(browser.find_element(By.ID, "element")).select_by_visible_text("split jump")
    canvas = browser.find_element(By.ID, "canvas")
    # Two seconds are for a busy machine; the skeleton is computed in a fraction of one.
    assert _until(lambda: canvas.get_attribute("data-element") == "12", "skeleton") < 2
    assert "opens her legs into a front split" in str(browser.find_element(By.ID, "prompt").get_property("value"))
    before = _canvas(browser)
    _until(lambda: _canvas(browser) != before, "movement", 5)
    Select(browser.find_element(By.ID, "leotard")).select_by_index(2)
    prompt = str(browser.find_element(By.ID, "prompt").get_property("value"))
    assert f"in a {Select(browser.find_element(By.ID, 'leotard')).first_selected_option.text} leotard" in prompt

    # Order it: it waits, then it is there and plays.
    browser.find_element(By.ID, "go").click()
    _until(lambda: _text(browser, "state") == "waiting for a worker", "queued job")
    (job_id,) = service.journal.open_ids()
    job = service.journal.get(job_id)
    assert job is not None
    assert job.client == "ada"
    assert (job.order["prompt"], job.order["staging"]["label"]) == (prompt, 12)
    service.is_paused = False
    _until(lambda: browser.execute_script("return document.getElementById('video').currentTime > 0"), "playing video")
    assert _text(browser, "state") == prompt
    _until(lambda: browser.find_elements(By.CSS_SELECTOR, "#past li[data-status=completed] video[src]"), "card")

    # Download it, and forget it.
    browser.find_element(By.ID, "save").click()
    path = Path(browser.capabilities["chrome"]["userDataDir"]).parent / f"{job_id}.mp4"
    _until(path.exists, "download")
    assert path.read_bytes() == service.journal.video(job_id)
    assert decode_video(path.read_bytes()).frames_THWC.shape == (16, 64, 64, 3)
    browser.find_element(By.XPATH, "//ul[@id='past']//button[text()='Delete']").click()
    _until(lambda: not browser.find_elements(By.CSS_SELECTOR, "#past li"), "deletion")
    assert service.journal.get(job_id) is None
    # What the browser complained of: the refusals, and neither our script nor the policy that it runs under.
    complaints = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert [one for one in complaints if "status of 401" not in one and "status of 403" not in one] == []


def test_the_gallery_goes_on_page_by_page(browser: webdriver.Chrome, url: str, service: Service) -> None:
    service.is_paused = True
    order = {"prompt": "", "seed": 0}
    shown = {
        "model": "finephys", "prompt": "<b>bold</b>", "seconds": "1", "size": "64x64", "class": None, "seed": 0,
        "num_frames": QUICK["num_frames"], "num_inference_steps": 1,
    }  # fmt: skip
    for _ in range(15):
        service.journal.submit("bob", order, shown)
    _sign_in(browser, url, TOKENS["bob"])
    _until(lambda: len(browser.find_elements(By.CSS_SELECTOR, "#past li")) == 12, "first page")
    browser.find_element(By.ID, "more").click()
    _until(lambda: len(browser.find_elements(By.CSS_SELECTOR, "#past li")) == 15, "second page")
    assert not browser.find_element(By.ID, "more").is_displayed()
    assert not browser.find_elements(By.CSS_SELECTOR, "#past b b")


def test_on_a_phone_everything_is_at_hand(browser: webdriver.Chrome, url: str) -> None:
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
    try:
        _sign_in(browser, url, TOKENS["ada"])
        assert browser.execute_script("return document.scrollingElement.scrollWidth") <= PHONE["width"]
        # Element, skeleton, video and button are on the first screen, and large enough for a thumb.
        for name in ("element", "canvas", "video", "go"):
            box = browser.find_element(By.ID, name).rect
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= PHONE["width"]
            assert box["y"] + box["height"] <= PHONE["height"]
            assert box["height"] >= 40
        browser.find_element(By.TAG_NAME, "summary").click()
        assert browser.find_element(By.ID, "hall").is_displayed()
        assert browser.execute_script("return document.scrollingElement.scrollWidth") <= PHONE["width"]
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
