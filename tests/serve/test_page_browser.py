"""The page in Chromium: both widths and schemes, streaming, stopping, probabilities, keys, 200 attempts at scripts."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from chinchilla_lm.serve.settings import Limits, ServerSettings

from .conftest import Live, make_folder, run_live, wait_until
from .xss_payloads import PAYLOADS

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium in PATH: apt install chromium"),
]
DESK, PHONE = {"width": 1120, "height": 760}, {"width": 380, "height": 780}
KEY = "0123456789abcdef-key"
LONG = 4096


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with playwright.sync_playwright() as driver:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium's sandbox refuses root
        with driver.chromium.launch(executable_path=CHROMIUM, args=arguments) as opened:
            yield opened


@pytest.fixture(scope="module")
def slow_live(tmp_path_factory) -> Iterator[Live]:
    """A context so long that an answer takes seconds."""
    folder = make_folder(tmp_path_factory.mktemp("long"), context=LONG)
    with run_live(folder, ServerSettings(port=0, limits=Limits(slots=2))) as running:
        yield running


@pytest.fixture
def open_page(browser, request):
    """Return a function that opens the page of a server; at the end nothing on it may have failed."""
    faults: list[str] = []
    contexts = []

    def open_one(live: Live, *, size=DESK, scheme="light", before=lambda page: None, **options):
        context = browser.new_context(viewport=size, color_scheme=scheme, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda said: "Content Security" in said.text and faults.append(said.text))
        page.on("request", lambda asked: asked.url.startswith(live.url) or faults.append(asked.url))
        before(page)
        page.goto(live.url)
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert faults == []


def ready(page) -> None:
    page.wait_for_selector("#state.ready")


def complete(page, prompt: str, tokens: int = 24) -> str:
    """Send with the keyboard; return the answer's text."""
    page.fill("#max_tokens", str(tokens))
    page.fill("#seed", "3")
    page.fill("#prompt", prompt)
    page.keyboard.press("Control+Enter")
    page.wait_for_selector(".run:not(.running) footer")
    return page.locator(".run .answer").first.text_content()


def sent(chunks: list[dict], *, is_whole: bool = True) -> str:
    return "".join(f"data: {json.dumps(one)}\r\n\r\n" for one in chunks) + ("data: [DONE]\n\n" if is_whole else "")


def always(**answer):
    """Return a route that answers so (playwright hands the request to a second parameter, even one with a default)."""
    return lambda route: route.fulfill(**answer)


def never_ending(live: Live):
    """Return a route that forbids the end-of-text token."""
    end = live.served.tokenizer.token_to_id("<|endoftext|>")
    ids = [end] if end is not None else [0]

    def pass_on(route) -> None:
        route.continue_(
            post_data=json.dumps({**route.request.post_data_json, "logit_bias": {str(i): -100 for i in ids}})
        )

    return pass_on


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_it_loads_fits_the_width_and_completes(live, open_page, size, scheme):
    page = open_page(live, size=size, scheme=scheme)
    ready(page)
    assert page.text_content("#model") == "tiny"
    assert "192 tokens" in page.text_content("#context")
    assert page.evaluate("document.getElementById('settings').open") == (size is DESK)
    if size is PHONE:
        page.click("summary")
    text = complete(page, "The sailor")
    assert page.locator(".given").text_content() == "The sailor"
    asked = {"model": "tiny", "prompt": "The sailor", "max_tokens": 24, "seed": 3, "temperature": 0.8, "top_p": 0.95}
    assert text == live.post("/v1/completions", asked).json()["choices"][0]["text"]
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, paper[4:-1].split(","))) < 384) == (scheme == "dark")


def test_tokens_are_those_of_the_api_also_where_one_is_part_of_a_character(live, open_page):
    page = open_page(live)
    ready(page)
    text = complete(page, "你好，大海 🚀", 120)
    asked = {
        "model": "tiny",
        "prompt": "你好，大海 🚀",
        "max_tokens": 120,
        "seed": 3,
        "temperature": 0.8,
        "top_p": 0.95,
    }
    choice = live.post("/v1/completions", {**asked, "logprobs": 5}).json()["choices"][0]
    assert text == choice["text"]
    spans = page.locator(".token").all_text_contents()
    assert "".join(spans) == text
    offsets = sorted({offset for offset in choice["logprobs"]["text_offset"] if offset < len(text)})
    assert spans == [text[begin:end] for begin, end in zip(offsets, [*offsets[1:], len(text)], strict=True)]
    assert f"{len(choice['logprobs']['tokens'])} tokens" in page.locator(".run footer").inner_text()


def test_the_pointer_shows_a_tokens_probability(live, open_page):
    page = open_page(live)
    ready(page)
    complete(page, "The sea")
    asked = {"model": "tiny", "prompt": "The sea", "max_tokens": 24, "seed": 3, "temperature": 0.8, "top_p": 0.95}
    logprobs = live.post("/v1/completions", {**asked, "logprobs": 5}).json()["choices"][0]["logprobs"]
    page.locator(".token").first.hover()
    readout = page.locator("#readout")
    assert readout.is_visible()
    shares = [float(text.removesuffix(" %")) for text in readout.locator("li .chance").all_inner_texts()]
    import math

    best = sorted((100 * math.exp(one) for one in logprobs["top_logprobs"][0].values()), reverse=True)
    assert shares == pytest.approx(best, abs=0.06)
    assert readout.locator("li.chosen").count() == 1
    assert float(page.locator(".token").first.evaluate("one => one.style.getPropertyValue('--surprise')")) > 0
    page.keyboard.press("Escape")
    assert readout.is_hidden()


def test_a_finger_shows_it_on_a_phone(live, open_page):
    page = open_page(live, size=PHONE, has_touch=True, is_mobile=True)
    ready(page)
    page.click("summary")
    complete(page, "The sea")
    page.locator(".token").nth(2).tap()
    box = page.locator("#readout").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= PHONE["width"]


def test_it_streams_and_stops(slow_live, open_page):
    page = open_page(slow_live, before=lambda page: page.route("**/v1/completions", never_ending(slow_live)))
    ready(page)
    page.fill("#max_tokens", "4000")
    page.fill("#prompt", "The sea")
    page.click("#send")
    page.wait_for_function("() => document.querySelectorAll('.running .token').length > 5")
    assert page.is_disabled("#send")
    page.click("#stop")
    page.wait_for_selector(".run:not(.running) footer")
    assert "stopped" in page.locator(".run footer").inner_text()
    assert 5 < page.locator(".token").count() < 3900
    assert page.is_disabled("#stop")
    assert page.is_enabled("#send")
    wait_until(lambda: "chinchilla_requests_in_flight 0.0" in slow_live.get("/metrics").text)  # the server stopped too


def test_the_keyboard_is_enough(slow_live, open_page):
    page = open_page(slow_live, before=lambda page: page.route("**/v1/completions", never_ending(slow_live)))
    ready(page)
    focused = "document.activeElement.id || document.activeElement.className || document.activeElement.value"
    page.keyboard.press("Tab")
    seen = [page.evaluate(focused)]
    while seen[-1] != "prompt":
        page.keyboard.press("Tab")
        seen.append(page.evaluate(focused))
        assert len(seen) < 10
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.fill("#max_tokens", "4000")
    page.focus("#prompt")
    page.keyboard.type("The cook")
    page.keyboard.press("Control+Enter")
    page.wait_for_function("() => document.querySelectorAll('.running .token').length > 5")
    assert page.get_attribute(".run", "aria-live") == "polite"
    assert page.get_attribute(".run", "aria-busy") == "true"
    page.keyboard.press("Escape")
    page.wait_for_selector(".run:not(.running) footer")
    assert page.get_attribute(".run", "aria-busy") == "false"
    page.locator(".token[tabindex='0']").focus()
    assert page.locator(".token[tabindex='0']").count() == 1  # one stop, whatever the length
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("[...document.querySelectorAll('.token')].indexOf(document.activeElement)") == 2
    assert page.locator("#readout").is_visible()


def test_a_chat_remembers_its_turns_and_clear_forgets_them(live, open_page):
    page = open_page(live)
    ready(page)
    bodies: list[dict] = []
    page.on("request", lambda asked: asked.method == "POST" and bodies.append(asked.post_data_json))
    page.locator("input[value=chat]").check(force=True)
    page.fill("#max_tokens", "8")
    for turn, words in enumerate(("hello", "and the sea?")):
        page.fill("#prompt", words)
        page.click("#send")
        page.wait_for_function(f"() => document.querySelectorAll('#chat-runs footer').length === {turn + 1}")
    answers = page.locator("#chat-runs .answer").all_text_contents()
    assert [one["role"] for one in bodies[1]["messages"]] == ["user", "assistant", "user"]
    assert bodies[1]["messages"][1]["content"] == answers[0]
    assert "".join(page.locator("#chat-runs .token").all_text_contents()) == "".join(answers)
    page.click("#clear")
    page.fill("#prompt", "again")
    page.click("#send")
    page.wait_for_selector("#chat-runs footer")
    assert [one["content"] for one in bodies[2]["messages"]] == ["again"]


def test_refusals_are_told_in_plain_words(live, open_page):
    page = open_page(live)
    ready(page)
    page.fill("#max_tokens", "500")
    page.fill("#prompt", "The sea")
    page.click("#send")
    page.wait_for_selector("#error:not([hidden])")
    assert "exceed the context of 192" in page.inner_text("#error")
    assert page.locator(".run").count() == 0
    page.fill("#max_tokens", "8")
    for status, words in ((429, "busy"), (503, "takes no requests"), (500, "failed")):
        page.route("**/v1/completions", always(status=status, body="<p>proxy</p>"))
        page.click("#send")
        page.wait_for_function("words => document.getElementById('error').textContent.includes(words)", arg=words)
    head = {"choices": [{"text": "half", "finish_reason": None}]}
    for body, words in (
        (sent([head], is_whole=False), "too early"),
        (sent([head, {"error": {"message": "no time left"}}]), "no time left"),
        (sent([head]).replace("}]}", "}]"), "broke off"),
    ):
        page.route("**/v1/completions", always(status=200, body=body))
        page.click("#send")
        page.wait_for_function("words => document.getElementById('error').textContent.includes(words)", arg=words)
    page.route("**/v1/completions", lambda route: route.abort())
    page.click("#send")
    page.wait_for_function("() => document.getElementById('error').textContent.includes('cannot be reached')")


def test_the_key_is_sent_and_kept_nowhere(tiny_folder: Path, open_page):
    settings = ServerSettings(port=0, api_keys=(KEY,), limits=Limits(slots=2))
    with run_live(tiny_folder, settings) as locked:
        page = open_page(locked, http_credentials={"username": "", "password": KEY, "origin": locked.url})
        ready(page)
        seen: list[str] = []
        page.on("request", lambda asked: asked.method == "POST" and seen.append(asked.headers.get("authorization", "")))
        page.fill("#key", "a-wrong-key-of-some-length")
        page.fill("#prompt", "The sea")
        page.click("#send")
        page.wait_for_function("() => document.getElementById('error').textContent.includes('API key')")
        page.fill("#key", KEY)
        complete(page, "The sea")
        assert seen == ["Bearer a-wrong-key-of-some-length", f"Bearer {KEY}"]
        kept = "[localStorage.length, sessionStorage.length, document.cookie, location.href]"
        assert page.evaluate(kept) == [0, 0, "", f"{locked.url}/"]


def test_copy_gives_the_answer(live, open_page):
    page = open_page(live, permissions=["clipboard-read", "clipboard-write"])
    ready(page)
    text = complete(page, "The sailor")
    page.click("text=Copy")
    page.wait_for_selector("text=Copied")
    assert page.evaluate("navigator.clipboard.readText()") == text


def _watched(page) -> list[str]:
    """Count script runs: calls of xss() in any frame, and dialogs."""
    runs: list[str] = []
    page.expose_function("xss", lambda *_: runs.append("call"))
    page.on("dialog", lambda dialog: (runs.append("dialog"), dialog.dismiss()))
    return runs


def test_the_payloads_do_run_in_a_naive_page(browser):
    """Without this the test below could pass because its payloads are duds."""
    assert len(set(PAYLOADS)) == 200
    page = browser.new_page()
    runs = _watched(page)
    for payload in PAYLOADS:
        page.set_content(f"<div>{payload}</div>")
    page.wait_for_timeout(200)
    page.close()
    assert len(runs) >= 100


def test_no_payload_runs_as_prompt_output_alternative_error_or_name(live, open_page):
    now = {"payload": ""}

    def answer(route) -> None:
        text = now["payload"]
        middle = len(text) // 2
        parts = [text[:middle], text[middle:]]
        logprobs = {
            "tokens": parts, "token_logprobs": [-1.0, -2.0], "top_logprobs": [{text: -1.0, parts[0]: -1.5}] * 2,
            "text_offset": [0, middle],
        }  # fmt: skip
        choice = {"text": text, "logprobs": logprobs, "finish_reason": None}
        if "chat" in route.request.url:
            top = [{"token": text, "logprob": -1.0}]
            content = [
                {"token": one, "logprob": -1.0, "bytes": list(one.encode()), "top_logprobs": top} for one in parts
            ]
            choice = {"delta": {"content": text}, "logprobs": {"content": content}, "finish_reason": None}
        error = {"error": {"message": text, "code": text}}
        route.fulfill(status=200, content_type="text/event-stream", body=sent([{"choices": [choice]}, error]))

    def name(route) -> None:
        card = {"id": now["payload"] or "tiny", "max_model_len": now["payload"] or 192}
        route.fulfill(status=200, json={"object": "list", "data": [card]})

    page = open_page(
        live, before=lambda page: (page.route("**/v1/*completions", answer), page.route("**/v1/models", name))
    )
    page.route("**/v1/chat/completions", answer)
    ready(page)
    runs = _watched(page)
    assert "script-src 'self'" in live.get("/").headers["content-security-policy"]
    for mode in ("completion", "chat"):
        page.locator(f"input[value={mode}]").check(force=True)
        for payload in PAYLOADS:
            now["payload"] = payload
            page.click("#clear")
            page.fill("#prompt", payload)
            page.evaluate("document.getElementById('key').dispatchEvent(new Event('change'))")
            page.keyboard.press("Control+Enter")
            page.wait_for_function(
                "text => document.getElementById('error').textContent.includes(text.trim())", arg=payload
            )
            page.wait_for_function("text => document.getElementById('model').textContent === text", arg=payload)
            shown = page.locator(f"#{mode}-runs")
            assert shown.locator(".answer").text_content() == payload
            assert shown.locator(".given, .question").text_content() == payload
            shown.locator(".token").first.focus()
            assert page.locator("#readout li .word").first.text_content() == payload.replace(" ", "·")
    page.wait_for_timeout(300)
    assert runs == []
    assert page.evaluate("document.querySelectorAll('script, iframe, img, svg, object, embed, style').length") == 1
