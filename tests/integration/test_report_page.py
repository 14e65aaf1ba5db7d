"""The report as a reader has it: opened from disk in a browser without a window, read, clicked, searched."""

from __future__ import annotations

import json
import os
import re
import shutil

import pytest
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

from minillm.evaluation.report import write_report
from tests.evaluation_files import CHINESE, FILES, HOSTILE, START, STUDENT, write_evaluation

pytestmark = pytest.mark.browser
SHOWN = HOSTILE.replace("\ud83d", "\ufffd")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return write_report(write_evaluation(tmp_path_factory.mktemp("report") / "paper"))


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Debian's Chromium with its driver; nothing is downloaded."""
    paths = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in paths:
        reason = "no chromium and chromedriver; apt-get install chromium chromium-driver"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    options = webdriver.ChromeOptions()
    options.binary_location = paths[0]
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    profile = tmp_path_factory.mktemp("profile")
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", f"user-data-dir={profile}"):
        options.add_argument(f"--{argument}")
    driver = webdriver.Chrome(options, webdriver.ChromeService(paths[1]))
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser, page):
    """The page as new, 1280 px wide and light; afterwards nothing was fetched and nothing went wrong in it."""
    browser.get_log("browser"), browser.get_log("performance")
    dress(browser, 1280, "light")
    browser.get(page.as_uri())
    WebDriverWait(browser, 20).until(lambda driver: driver.find_elements(By.CSS_SELECTOR, ".sample"))
    yield browser
    assert browser.execute_script("return window.hacked") is None
    assert browser.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    own = [each for each in asked if each["documentURL"].partition("#")[0] == page.as_uri()]  # not the first tab's
    assert {each["request"]["url"].partition("#")[0] for each in own} == {page.as_uri()}


def dress(browser, width: int, scheme: str) -> None:
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def texts(browser, selector: str) -> list[str]:
    return [each.text for each in browser.find_elements(By.CSS_SELECTOR, selector)]


def press(browser, element) -> None:
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    element.click()


def choose(browser, name: str, text: str) -> None:
    Select(browser.find_element(By.CSS_SELECTOR, f"select[name={name}]")).select_by_visible_text(text)


def search(browser, text: str, expected: str) -> None:
    """Type, and wait for what the pager says and for the text, and nothing else, to be marked where it is found."""
    marked = {text.lower()} if text and expected != "nothing fits" else set()
    field = browser.find_element(By.NAME, "search")
    field.send_keys(Keys.CONTROL, "a", Keys.NULL, Keys.BACKSPACE, text)
    WebDriverWait(browser, 5, ignored_exceptions=[StaleElementReferenceException]).until(
        lambda driver: (
            texts(driver, ".pager p")[0] == expected and {each.lower() for each in texts(driver, "mark")} == marked
        )
    )


@pytest.mark.quick
def test_files_beside_the_page(page):
    folder, names = page.parent / "plots", {file.name for file in page.parent.rglob("*")}
    assert {"index.html", "table.csv"} <= names
    assert {"exposure-dolly_test.png", "reliability-sst2.png"} <= names
    text = page.read_text()
    assert text.count("<figure") == len(list(folder.glob("*.png"))) > 20
    assert not re.search(r"(src|href)=\"(?!#)", text)


def test_the_table_changes_with_figure_and_decoding(opened, page):
    given = json.loads((page.parent.parent / "metrics.json").read_text())["answers"]

    def cell(decoding: str, figure: str, digits: int) -> str:
        entry = given[decoding][FILES[0]][START]["figures"][figure]
        mean, deviation, low, high = (f"{entry[key]:.{digits}f}" for key in ("mean", "deviation", "low", "high"))
        return f"{mean} ± {deviation}\n[{low}, {high}]"

    def shown() -> tuple[str, str]:
        row = opened.find_elements(By.CSS_SELECTOR, "#results-table tbody tr")[1]
        assert row.find_element(By.TAG_NAME, "th").text == "demo/start"
        return opened.find_element(By.CSS_SELECTOR, "caption").text, row.find_element(By.TAG_NAME, "td").text

    assert texts(opened, "#results-table thead th") == [
        "Model", "dolly_test\nn = 12", "vicuna\nn = 12", "a_<b>&$_set\nnot measured"
    ]  # fmt: skip
    assert shown() == ("Rouge-L, higher is better; decoding plain", cell("plain", "rouge_l", 1))
    choose(opened, "figure", "Reverse KL, nats a token")
    assert shown()[1] == cell("plain", "reverse_kl", 3)
    opened.find_elements(By.CSS_SELECTOR, "#table-controls .segments label")[1].click()
    expected = cell("no_repeat_ngram_6", "reverse_kl", 3)
    assert shown() == ("Reverse KL, nats a token, lower is better; decoding no_repeat_ngram_6", expected)


def test_the_best_student_is_bold_and_a_teacher_never(opened):
    rows = opened.find_elements(By.CSS_SELECTOR, "#results-table tbody tr")
    assert [len(row.find_elements(By.CSS_SELECTOR, ".best")) for row in rows] == [0, 0, 2]


def test_published_values_unfold_and_say_that_they_are_of_other_models(opened):
    press(opened, opened.find_element(By.CSS_SELECTOR, "#published summary"))
    rows = texts(opened, "#published tbody tr")
    assert rows[0] == "GPT-2 1.5B Teacher 27.6 14.3 16.3 27.6 31.8"
    assert rows[-1] == "our file dolly_test – vicuna – –"
    assert "not comparable" in opened.find_element(By.ID, "published").text


def test_hostile_answers_are_text(opened):
    answers = opened.find_elements(By.CSS_SELECTOR, ".sample:first-of-type .answer")
    assert [each.find_element(By.TAG_NAME, "h4").text for each in answers] == ["teacher", "demo/start", "demo/minillm"]
    text = opened.execute_script("return arguments[0].textContent", answers[2].find_element(By.CSS_SELECTOR, ".text"))
    assert text == SHOWN
    assert opened.find_elements(By.TAG_NAME, "img") == []
    press(opened, opened.find_element(By.NAME, "colours"))
    text = opened.execute_script("return document.querySelectorAll('.answer .text')[2].textContent")
    assert text == SHOWN
    press(opened, opened.find_element(By.CSS_SELECTOR, "#settings summary"))
    assert "window.hacked" in opened.find_element(By.CSS_SELECTOR, "#settings pre").text


def test_samples_are_filtered_searched_and_turned(opened):
    assert texts(opened, ".pager p") == ["1–8 of 36"] * 2
    assert all("plain · seed 10" in each for each in texts(opened, ".sample h3"))
    press(opened, opened.find_element(By.XPATH, "//button[text()='Next']"))
    assert texts(opened, ".pager p")[0] == "9–16 of 36"
    assert opened.switch_to.active_element.text == "Next"
    choose(opened, "file", "vicuna")  # back to the first page
    assert texts(opened, ".pager p")[0] == "1–8 of 12"
    choose(opened, "decoding", "no_repeat_ngram_6")
    choose(opened, "seed", "all")
    assert texts(opened, ".pager p")[0] == "1–8 of 24"
    assert all("vicuna" in each and "no_repeat_ngram_6" in each for each in texts(opened, ".sample h3"))
    search(opened, CHINESE[:4], "1–2 of 2")
    search(opened, "QUESTION 7", "1–2 of 2")
    search(opened, "<script>window", "1–2 of 2")
    search(opened, "no such words", "nothing fits")
    assert texts(opened, ".sample") == [] and not any(
        b.is_enabled() for b in opened.find_elements(By.CSS_SELECTOR, ".pager button")
    )
    search(opened, "", "1–8 of 24")


def test_empty_and_endless_answers(opened):
    def unfold(label: str) -> int:
        (button,) = (each for each in opened.find_elements(By.CSS_SELECTOR, ".more") if each.text == label)
        answer = button.find_element(By.XPATH, "..")
        length = "return arguments[0].querySelector('.text').textContent.length"
        assert opened.execute_script(length, answer) <= 1501
        press(opened, button)
        return opened.execute_script(length, answer)

    assert texts(opened, ".text.empty") == ["(empty)"]
    assert unfold("Show all 4,001 tokens") == 20_000
    press(opened, opened.find_element(By.NAME, "colours"))
    assert unfold("Show all 20,000 characters") == 20_000


def test_tokens_have_colours_and_tell_their_numbers_to_mouse_and_keyboard(opened, page):
    rows = (page.parent.parent / "tokens.jsonl").read_text().splitlines()
    row = json.loads(rows[0])
    difference = row["log_p"][1] - row["log_q"][1]
    spans = opened.find_elements(By.CSS_SELECTOR, ".sample:first-of-type .answer:nth-child(2) .token")
    assert len(spans) == len(row["tokens"])
    steps = sum(abs(difference) >= edge for edge in (0.25, 1, 2, 4))
    assert spans[1].get_attribute("class") == f"token d{steps if difference > 0 else -steps}"
    tip = opened.find_element(By.ID, "tip")
    assert not tip.is_displayed()
    opened.execute_script("arguments[0].focus()", spans[0])
    spans[0].send_keys(Keys.ARROW_RIGHT)
    assert opened.switch_to.active_element == spans[1]
    expected = f"log p − log q = {difference:.2f}".replace("= -", "= −")
    assert tip.is_displayed() and expected in tip.text
    spans[1].send_keys(Keys.ESCAPE)
    assert not tip.is_displayed()
    webdriver.ActionChains(opened).move_to_element(spans[2]).perform()
    assert tip.is_displayed() and row["tokens"][2].strip() in tip.text
    only = opened.find_element(By.NAME, "only")
    press(opened, only)
    assert texts(opened, ".pager p")[0] == "1–8 of 12"


def test_curves_tell_their_numbers_to_mouse_and_keyboard(opened, page):
    curves = json.loads((page.parent.parent / "metrics.json").read_text())["exposure"][FILES[0]]
    plot = opened.find_element(By.CSS_SELECTOR, "#plot-exposure-dolly_test svg")
    opened.execute_script("arguments[0].scrollIntoView({block: 'center'}); arguments[0].focus()", plot)
    plot.send_keys(Keys.HOME, Keys.ARROW_RIGHT)
    tip = opened.find_element(By.ID, "tip")
    labels = {"demo/start": START, "demo/minillm": STUDENT}
    expected = [f"{label} {curves[source]['excess'][1]:.4g}" for label, source in labels.items()]
    assert [" ".join(line.split()) for line in tip.text.splitlines()] == ["length 2", *expected]
    plot.send_keys(Keys.END)
    assert tip.text.startswith("length 35")  # the last with a value
    webdriver.ActionChains(opened).move_to_element(plot).perform()
    assert 15 < int(tip.text.split()[1]) < 25
    plot.send_keys(Keys.ESCAPE)
    assert not tip.is_displayed() and not plot.find_elements(By.CSS_SELECTOR, ".cursor")


@pytest.mark.parametrize("width", [320, 360, 1280])
def test_the_page_never_scrolls_sideways(opened, width):
    dress(opened, width, "light")
    for summary in opened.find_elements(By.TAG_NAME, "summary")[:4]:
        opened.execute_script("arguments[0].click()", summary)
    assert opened.execute_script("return document.documentElement.scrollWidth") <= width
    table = opened.find_element(By.ID, "results-table")
    script = "const box = arguments[0].parentNode; return [box.clientWidth, getComputedStyle(box, '::before').content]"
    place, said = opened.execute_script(script, table)
    assert (table.size["width"] > place) == (width < 500) == ("scrolls sideways" in said)


def test_dark_mode_reaches_the_plots(opened):
    def colours() -> list[list[int]]:
        script = """
            const style = (node) => getComputedStyle(node);
            const tick = document.querySelector('figure svg text');
            return [style(document.body).backgroundColor, style(document.body).color, style(tick).fill];
        """
        return [list(map(int, re.findall(r"\d+", each)[:3])) for each in opened.execute_script(script)]

    paper, ink, tick = colours()
    assert min(paper) > 240 and max(ink) < 60 and max(tick) < 120
    dress(opened, 1280, "dark")
    paper, ink, tick = colours()
    assert max(paper) < 40 and min(ink) > 200 and min(tick) > 140


def test_the_keyboard_reaches_every_control(opened):
    opened.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
    assert opened.switch_to.active_element.text == "To the results"
    script = """
        return [...document.querySelectorAll('select, input, button, .scroll, pre')].filter((node) => {
          const named = node.labels?.length || node.textContent || node.getAttribute('aria-label');
          return node.tabIndex < 0 || !named;
        }).length
    """
    assert opened.execute_script(script) == 0
    switch = opened.find_element(By.CSS_SELECTOR, "#table-controls input[type=radio]")
    switch.send_keys(Keys.ARROW_RIGHT)
    assert opened.find_element(By.CSS_SELECTOR, "caption").text.endswith("decoding no_repeat_ngram_6")


def test_ten_thousand_answers_are_shown_page_by_page(browser, page, tmp_path):
    text = page.read_text()
    found = re.search(r'<script type="application/json" id="samples-data">(.*?)</script>', text, re.DOTALL)
    data = json.loads(found[1])
    data["tokens"], times = [], 28
    for name in ("prompts", "answers"):
        data[name] = [row | {"id": f"{row['id']}.{i}"} for i in range(times) for row in data[name]]
    large = tmp_path / "large.html"
    large.write_text(text.replace(found[1], json.dumps(data).replace("<", "\\u003c")))
    assert len(data["answers"]) > 10_000
    browser.get(large.as_uri())
    WebDriverWait(browser, 30).until(lambda driver: driver.find_elements(By.CSS_SELECTOR, ".sample"))
    assert len(browser.find_elements(By.CSS_SELECTOR, ".sample")) == 8  # a page of them, not all
    search(browser, "Question 11", "1–8 of 84")
