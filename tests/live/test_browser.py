"""The page in a real browser."""

import re
from collections.abc import Callable
from time import time_ns

import pytest
from opentelemetry import trace
from playwright.sync_api import Locator, Page, expect
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.live.conftest import BROWSER, BROWSERS, Process, Shop
from tests.servers.serving import wait_for

if BROWSER is None:
    names = ", ".join(BROWSERS)
    pytest.skip(f"none of {names} is there: in Debian, apt install {BROWSERS[0]}", allow_module_level=True)

OpenPage = Callable[..., Page]
ServeShop = Callable[..., Shop]

expect.set_options(timeout=10_000)


def card_of(page: Page, title: str) -> Locator:
    return page.get_by_role("article").filter(has=page.get_by_role("heading", name=title))


def row_of(card: Locator, name: str) -> Locator:
    """The line of a span, by the beginning of its name."""
    return card.get_by_role("button", name=re.compile(f"^{re.escape(name)}"))


def total_of(page: Page, kind: str) -> Locator:
    return page.get_by_role("group").get_by_role("button", name=re.compile(rf"^\d+ {kind}$"))


def top_of(locator: Locator) -> float:
    return float(locator.evaluate("element => element.getBoundingClientRect().top"))


def watch_top_of(locator: Locator) -> Callable[[], list[float]]:
    """Note where an element is in every frame that is drawn from now on."""
    locator.evaluate("""element => {
        const tops = window.tops = new Set();
        const note = () => { tops.add(element.getBoundingClientRect().top); requestAnimationFrame(note); };
        note();
    }""")
    return lambda: list(locator.page.evaluate("[...window.tops]"))


def questions_of(page: Page) -> list[str]:
    """The questions for what is new, from now on."""
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if "/data" in request.url else None)
    return asked


def tab_to(page: Page, wanted: Locator) -> None:
    """Press Tab until it has the focus."""
    for _ in range(30):
        if wanted.evaluate("element => element === document.activeElement"):
            break
        page.keyboard.press("Tab")
    expect(wanted).to_be_focused()


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
def test_every_outcome_is_shown_with_its_request(shop: Shop, open_page: OpenPage) -> None:
    """What ran, failed, never ran, was handed over, runs or waits stands in its request's card, with the reason."""
    for path in ("/checkout", "/signup", "/coupon", "/welcome", "/reindex", "/audit", "/orders", "/orders/late"):
        shop.post(path)
    shop.post("/exports/spring")
    page = open_page(shop.page)
    lines = {
        "POST /checkout 200": ["request", "send_receipt", "render receipt"],
        "POST /signup 200": ["request", "send_mail", "charge_card PaymentError", "write_audit skipped"],
        "POST /coupon 409": ["request", "write_audit dropped"],
        "POST /welcome 200": ["request", "<lambda> never awaited", "lines never iterated"],
        "POST /reindex 200": ["request", "send_receipt own trace", "render receipt"],
        "write_audit no request": ["write_audit"],
        "POST /orders 200": ["request", "notify to taskiq handed over in"],
        "POST /orders/late 200": ["request", "notify to taskiq unconfirmed"],
        "POST /exports/{name} 200": ["request", "export_catalogue", "page 1", "archive waits"],
    }
    for title, names in lines.items():
        rows = card_of(page, title).locator(".line")
        expect(rows).to_have_count(len(names))
        for at, name in enumerate(names):
            expect(rows.nth(at)).to_have_accessible_name(re.compile(f"^{re.escape(name)} ?(\\d.*)?$"))
    says = {
        "POST /checkout 200": r"^answered in [\d.]+ ms, then 1 task for [\d.]+ ms$",
        "POST /signup 200": r"then 2 tasks for [\d.]+ ms · 1 failed · 1 never ran: skipped$",
        "POST /coupon 409": r"^answered in [\d.]+ ms · 1 never ran: dropped$",
        "POST /welcome 200": r"^answered in [\d.]+ ms · 1 never ran: never awaited · 1 never ran: never iterated$",
        "POST /orders/late 200": r"· 1 unconfirmed$",
        "POST /exports/{name} 200": r"^answered in [\d.]+ ms · 1 task running · 1 waiting$",
    }
    for title, sentence in says.items():
        expect(card_of(page, title).locator(".says")).to_have_text(re.compile(sentence))
    reasons = {
        "POST /signup 200": "tests.live.app.charge_card, before it in the queue, failed",
        "POST /coupon 409": "nothing ran it. For example, the handler raised after add_task",
        "POST /welcome 200": "its function returned a generator, which nobody iterates",
        "POST /orders/late 200": "SendTaskError: Cannot send task to the queue",
    }
    for title, reason in reasons.items():
        expect(card_of(page, title)).to_contain_text(reason)
    totals = page.get_by_role("group").inner_text()
    assert totals.split("\n") == [
        *("1 running", "1 waiting", "4 done", "1 handed over", "1 failed", "1 unconfirmed", "never ran:", "1 skipped"),
        *("1 dropped", "1 never awaited", "1 never iterated"),
    ]
    running = page.get_by_role("region", name="Running now").get_by_role("listitem")
    expect(running).to_have_text(re.compile(r"^export_catalogue [\d.]+ m?s POST /exports/\{name\}$"))

    failed = row_of(card_of(page, "POST /signup"), "charge_card")
    failed.click()
    expect(card_of(page, "POST /signup")).to_contain_text("PaymentError: the card was declined")


def test_the_cards_can_be_filtered(shop: Shop, open_page: OpenPage) -> None:
    """A click on a total, and a word of a route, a task, an error or a trace id, leave the cards that match."""
    for path in ("/checkout", "/signup", "/coupon"):
        shop.post(path)
    page = open_page(shop.page)
    titles = page.get_by_role("article").filter(visible=True).get_by_role("heading")
    everything = ["POST /coupon 409", "POST /signup 200", "POST /checkout 200"]
    expect(titles).to_have_text(everything)

    total_of(page, "failed").click()
    expect(titles).to_have_text(["POST /signup 200"])
    expect(page.get_by_text("1 of 3 requests match")).to_be_visible()
    total_of(page, "dropped").click()
    expect(titles).to_have_text(everything[:2])
    total_of(page, "failed").click()
    total_of(page, "dropped").click()
    expect(titles).to_have_text(everything)

    trace_id = card_of(page, "/coupon").get_by_title("Copy the trace id").get_attribute("title")
    assert trace_id is not None
    for text, title in {
        "/check": "POST /checkout 200",
        "send_receipt": "POST /checkout 200",
        "paymenterror": "POST /signup 200",
        "declined": "POST /signup 200",
        trace_id[-32:]: "POST /coupon 409",
        "write_audit 409": "POST /coupon 409",
    }.items():
        page.get_by_role("searchbox").fill(text)
        expect(titles).to_have_text([title])
    page.get_by_role("searchbox").fill("nowhere")
    expect(titles).to_have_count(0)
    expect(page.get_by_text("0 of 3 requests match")).to_be_visible()


def test_the_cards_can_be_filtered_by_keyboard(shop: Shop, open_page: OpenPage) -> None:
    """The totals and the filter are reached with Tab; a total says whether it is pressed."""
    for path in ("/checkout", "/signup"):
        shop.post(path)
    page = open_page(shop.page)
    titles = page.get_by_role("article").filter(visible=True).get_by_role("heading")
    expect(titles).to_have_count(2)
    failed, search = total_of(page, "failed"), page.get_by_role("searchbox", name="Filter")
    tab_to(page, failed)
    expect(failed).to_have_attribute("aria-pressed", "false")
    page.keyboard.press("Space")
    expect(failed).to_have_attribute("aria-pressed", "true")
    expect(titles).to_have_text(["POST /signup 200"])
    page.keyboard.press("Enter")
    expect(titles).to_have_count(2)
    page.keyboard.press("Tab")  # skipped
    page.keyboard.press("Tab")
    expect(search).to_be_focused()
    page.keyboard.type("checkout")
    expect(titles).to_have_text(["POST /checkout 200"])
    page.keyboard.press("Enter")
    expect(titles).to_have_text(["POST /checkout 200"])


HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>"


def test_nothing_that_is_shown_is_markup(shop: Shop, open_page: OpenPage) -> None:
    """Names, attributes, messages and paths are text: none runs, loads anything, or breaks the policy."""
    shop.post("/named", name=HOSTILE)
    shop.post(f"/missing/{HOSTILE}")
    tracer, tasks = shop.provider.get_tracer("shop"), shop.provider.get_tracer("traced_tasks")
    attributes = {"http.request.method": HOSTILE, "http.route": HOSTILE, "http.response.status_code": HOSTILE}
    with (
        pytest.raises(ValueError, match="img"),
        tracer.start_as_current_span(HOSTILE, attributes=attributes),
        tasks.start_as_current_span(HOSTILE, attributes={HOSTILE: HOSTILE, "error.type": HOSTILE}),
        tracer.start_as_current_span(HOSTILE, attributes={"server.address": HOSTILE}),
    ):
        raise ValueError(HOSTILE)
    page = open_page(shop.page)
    card = card_of(page, f"{HOSTILE} {HOSTILE} {HOSTILE}")
    expect(card.get_by_text(f"{HOSTILE} {HOSTILE}", exact=True)).to_be_visible()  # the inner span and its server
    expect(card_of(page, "POST /named")).to_contain_text(HOSTILE)
    expect(page.get_by_role("heading", name="404")).to_contain_text("/missing/")
    for card in page.get_by_role("article").all():
        for row in card.locator(".line").all():
            row.click()
    expect(page.get_by_text(f"ValueError: {HOSTILE}").first).to_be_visible()
    expect(page.get_by_role("term").filter(has_text=HOSTILE).first).to_be_visible()
    assert page.locator("img, main script").count() == 0


def test_what_runs_becomes_done_as_one_looks(shop: Shop, open_page: OpenPage) -> None:
    """A bar grows while its task runs, what waits starts behind it, and both end, without a reload."""
    shop.post("/exports/spring")
    page = open_page(shop.page)
    page.evaluate("window.isTheSame = true")
    card, running = card_of(page, "/exports"), page.get_by_role("region", name="Running now")
    export, archive = card.locator(".row.task").nth(0), card.locator(".row.task").nth(1)
    expect(export).to_contain_class("running")
    expect(archive).to_contain_class("waiting")
    expect(running).to_contain_text("export_catalogue")
    first = export.locator(".took").inner_text()
    expect(export.locator(".took")).not_to_have_text(first)

    shop.signals.stop("spring")
    expect(archive).to_contain_class("running")
    expect(export).not_to_contain_class("running")
    expect(running).to_contain_text("archive")
    expect(total_of(page, "done")).to_have_text("1 done")
    # The scale is halved now and then: in between, the bar grows.
    assert archive.locator(".bar").evaluate(
        """bar => new Promise(done => {
            let last = parseFloat(bar.style.width);
            new MutationObserver(() => {
                const width = parseFloat(bar.style.width);
                if (width > last) done(true);
                last = width;
            }).observe(bar, {attributes: true});
            setTimeout(() => done(false), 5000);
        })"""
    )
    shop.signals.stop("archive spring")
    expect(card.locator(".says")).to_have_text(re.compile("then 2 tasks for"))
    expect(running).to_contain_text("nothing")
    expect(total_of(page, "done")).to_have_text("2 done")
    assert page.evaluate("window.isTheSame")


@pytest.mark.parametrize("height", [300, 900])
def test_what_one_reads_stays_where_it_is(shop: Shop, open_page: OpenPage, height: int) -> None:
    """An open row does not move by a pixel when there is more, or less, above it; what is new is announced."""
    shop.post("/checkout")
    shop.post("/exports/spring")
    page = open_page(shop.page, width=1000, height=height)
    read = row_of(card_of(page, "/checkout"), "send_receipt")
    read.click()
    expect(read).to_have_attribute("aria-expanded", "true")
    trace = card_of(page, "/checkout").get_by_role("definition").last
    trace.select_text()
    selected = page.evaluate("getSelection().toString()")
    assert selected
    tops = watch_top_of(read)

    for _ in range(11):
        shop.signals.go_on("spring")
    export = card_of(page, "/exports")
    expect(row_of(export, "page 12")).to_be_attached()
    shop.post("/signup")
    shop.post("/coupon")
    news = page.get_by_role("button", name="2 new requests")
    expect(news).to_be_visible()
    shop.signals.stop("spring")  # one line fewer
    expect(row_of(export, "page 12")).not_to_be_attached()
    assert max(tops()) - min(tops()) < 1
    assert page.evaluate("getSelection().toString()") == selected
    expect(read).to_have_attribute("aria-expanded", "true")
    expect(card_of(page, "/signup")).to_be_hidden()

    news.click()
    expect(card_of(page, "/signup")).to_be_visible()
    expect(card_of(page, "/coupon")).to_be_in_viewport()
    expect(news).to_be_hidden()
    expect(read).to_have_attribute("aria-expanded", "true")


def test_what_one_reads_at_the_top_stays_where_it_is(shop: Shop, open_page: OpenPage) -> None:
    """Where the page cannot be scrolled further up, a card above that gets shorter moves nothing either."""
    shop.post("/checkout")
    shop.post("/exports/spring")
    for _ in range(11):
        shop.signals.go_on("spring")
    page = open_page(shop.page)
    last = row_of(card_of(page, "/exports"), "page 12")
    expect(last).to_be_attached()
    read = row_of(card_of(page, "/checkout"), "send_receipt")
    read.click()
    assert page.evaluate("scrollY") == 0
    tops = watch_top_of(read)
    shop.signals.stop("spring")
    expect(last).not_to_be_attached()
    assert max(tops()) - min(tops()) < 1


def test_what_is_selected_stays_selected(shop: Shop, open_page: OpenPage) -> None:
    """What one has selected of a task that runs is still selected when the task has another span."""
    shop.post("/exports/spring")
    page = open_page(shop.page)
    card = card_of(page, "/exports")
    row_of(card, "export_catalogue").click()
    card.get_by_role("definition").last.select_text()
    selected = page.evaluate("getSelection().toString()")
    assert selected
    shop.signals.go_on("spring")
    expect(row_of(card, "page 2")).to_be_attached()
    assert page.evaluate("getSelection().toString()") == selected


def test_what_one_has_scrolled_to_stays_where_it_is(shop: Shop, open_page: OpenPage) -> None:
    """Further down nothing moves either, also where the lines that are added are those of the card in view."""
    for _ in range(4):
        shop.post("/checkout")
    shop.post("/exports/spring")
    page = open_page(shop.page, width=1000, height=500)
    export = card_of(page, "/exports")
    for number in range(1, 6):
        expect(row_of(export, f"page {number}")).to_be_attached()
        shop.signals.go_on("spring")
    expect(row_of(export, "page 6")).to_be_attached()
    page.evaluate("top => scrollTo({top, behavior: 'instant'})", top_of(row_of(export, "page 6")) - 10)
    read = row_of(export, "archive")  # below what is added
    tops = watch_top_of(row_of(export, "page 6"))
    shop.signals.go_on("spring")
    shop.post("/signup")
    expect(row_of(export, "page 7")).to_be_attached()
    expect(page.get_by_role("button", name="1 new request")).to_be_visible()
    assert max(tops()) - min(tops()) < 1

    page.evaluate("top => scrollBy({top, behavior: 'instant'})", top_of(read) - 10)
    tops = watch_top_of(read)
    shop.signals.go_on("spring")
    expect(row_of(export, "page 8")).to_be_attached()
    assert max(tops()) - min(tops()) < 1


def test_the_newest_come_first_where_nobody_reads(shop: Shop, open_page: OpenPage) -> None:
    """At the top, with nothing open, new requests are put above the others."""
    shop.post("/checkout")
    page = open_page(shop.page)
    titles = page.get_by_role("article").get_by_role("heading")
    expect(titles).to_have_text(["POST /checkout 200"])
    shop.post("/signup")
    expect(titles).to_have_text(["POST /signup 200", "POST /checkout 200"])
    expect(titles.first).to_be_in_viewport()


def test_a_request_that_does_not_match_is_not_announced(shop: Shop, open_page: OpenPage) -> None:
    """Of what is new while one reads, only what the filter lets through is announced."""
    shop.post("/signup")
    page = open_page(shop.page)
    total_of(page, "failed").click()
    row_of(card_of(page, "/signup"), "charge_card").click()
    shop.post("/checkout")
    expect(total_of(page, "done")).to_have_text("2 done")
    expect(page.get_by_role("button", name="new request")).to_be_hidden()
    shop.post("/signup")
    expect(page.get_by_role("button", name="1 new request")).to_be_visible()


def test_a_paused_page_asks_nothing(shop: Shop, open_page: OpenPage) -> None:
    """While it is paused no request is sent and nothing moves. It goes on where it was."""
    shop.post("/exports/spring")
    page = open_page(shop.page, clock=True)
    expect(card_of(page, "/exports")).to_be_visible()
    pause = page.get_by_role("button", name="Pause")
    pause.click()
    expect(page.get_by_role("status")).to_have_text(re.compile("^paused at "))
    asked, took = questions_of(page), row_of(card_of(page, "/exports"), "export_catalogue").inner_text()
    shop.post("/checkout")
    page.clock.run_for(20_000)
    assert not asked
    assert row_of(card_of(page, "/exports"), "export_catalogue").inner_text() == took
    page.get_by_role("button", name="Go on").click()
    expect(card_of(page, "/checkout")).to_be_visible()
    expect(page.get_by_role("status")).to_have_text(re.compile("^process "))
    assert asked


def test_a_hidden_tab_asks_nothing(shop: Shop, open_page: OpenPage) -> None:
    """A page that nobody sees asks nothing, and asks at once when it is seen again."""
    page = open_page(shop.page, clock=True)
    expect(page.get_by_role("status")).to_have_text(re.compile("^process "))

    def set_hidden(hidden: bool) -> None:
        page.evaluate(
            """hidden => {
            Object.defineProperty(document, "hidden", {value: hidden, configurable: true});
            document.dispatchEvent(new Event("visibilitychange"));
        }""",
            hidden,
        )

    set_hidden(True)
    asked = questions_of(page)
    page.clock.run_for(20_000)
    assert not asked
    shop.post("/checkout")
    set_hidden(False)
    expect(card_of(page, "/checkout")).to_be_visible()


def test_a_server_that_goes_and_comes_again(start_process: Callable[..., Process], open_page: OpenPage) -> None:
    """The page says that nobody answers, goes on with the new process, and takes nothing of the old for running."""
    first = start_process()
    old = first.post("/exports/spring").json()
    page = open_page(first.page, may_fail="ERR_")
    state, running = page.get_by_role("status"), page.get_by_role("region", name="Running now")
    expect(state).to_contain_text(f"process {old}, ")
    expect(running).to_contain_text("export_catalogue")
    first.kill()
    expect(state).to_have_text(re.compile("no answer since .*, trying again"))
    expect(state).to_contain_class("silent")

    second = start_process(first.port)
    new = second.post("/pid").json()
    expect(state).to_contain_text(f"process {new}, ")
    expect(state).not_to_contain_text(str(old))
    expect(state).not_to_contain_class("silent")
    expect(running).to_contain_text("nothing")
    expect(total_of(page, "running")).to_have_text("0 running")
    expect(card_of(page, "/pid")).to_contain_text(f"pid {new}")
    card = card_of(page, "/exports")
    expect(card).to_contain_text(f"pid {old}, gone")
    expect(row_of(card, "export_catalogue")).to_contain_text("not heard of again")
    expect(card.locator(".says")).not_to_contain_text("running")


def test_two_workers(start_process: Callable[..., Process], open_page: OpenPage) -> None:
    """The cards of both workers of a server stand in one page, which names both."""
    server = start_process(workers=2)
    page = open_page(server.page, clock=True)
    state, pids = page.get_by_role("status"), []

    def are_both_named() -> bool:
        # Which of two workers answers is left to chance, and better mixed when there is more to do.
        pids.append(server.post("/pid").json())
        page.clock.run_for(1000)
        return state.inner_text().count("process") == 2

    wait_for(are_both_named)
    expect(total_of(page, "done")).to_have_text(f"{len(pids)} done")
    for pid in set(pids):
        expect(state).to_contain_text(f"process {pid}, ")
        expect(card_of(page, "/pid").filter(has_text=f"pid {pid}").first).to_be_visible()
    expect(card_of(page, "/pid").filter(has_not=page.get_by_text(re.compile(r"^pid \d")))).to_have_count(0)


WIDTHS = [390, 600, 720, 1024, 1280, 1600]
OVERLAPS = """() => {
    const list = ".line .name, .line .took, .axis .label, .axis .took, .head h2, .says, .meta, .why, #state";
    const boxOf = (element) => {
        const range = document.createRange(), box = element.getBoundingClientRect();
        range.selectNodeContents(element);
        const text = range.getBoundingClientRect();
        if (getComputedStyle(element).overflow === "visible") return text;
        const left = Math.max(text.left, box.left), right = Math.min(text.right, box.right);
        return {left, right, top: box.top, bottom: box.bottom};
    };
    const texts = [...document.querySelectorAll(`${list}, #totals button`)];
    const found = [];
    for (const card of [...document.querySelectorAll("article, header, #tools")]) {
        const boxes = texts.filter((each) => card.contains(each) && each.textContent && each.checkVisibility())
            .map((each) => [each, boxOf(each)]);
        for (const [one, a] of boxes) for (const [other, b] of boxes)
            if (one !== other && Math.min(a.right, b.right) - Math.max(a.left, b.left) > .5
                && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 3)
                found.push(`${one.textContent} / ${other.textContent}`);
    }
    return found;
}"""
CUT = """() => [...document.querySelectorAll(".line .took, .axis .took, .axis .label")]
    .filter((each) => each.scrollWidth > each.clientWidth && getComputedStyle(each).overflow !== "visible")
    .map((each) => each.textContent)"""


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
def test_every_width(shop: Shop, open_page: OpenPage) -> None:
    """On no width is there anything to scroll sideways, a text over another, or a time that is cut short."""
    long = "update_every_index_of_the_catalogue_" * 3
    for path in ("/checkout", "/signup", "/coupon", "/welcome", "/reindex", "/orders", "/orders/late"):
        shop.post(path)
    shop.post("/named", name=long)
    shop.post("/exports/spring")
    page = open_page(shop.page)
    tracer, tasks = shop.provider.get_tracer("shop"), shop.provider.get_tracer("traced_tasks")
    now, second = time_ns(), 10**9
    for answered in (70, 240, 260, 590, 690):  # of 700 s
        request = tracer.start_span("report", start_time=now - 700 * second)
        context = trace.set_span_in_context(request)
        task = tasks.start_span("background_task print", context, start_time=now + (answered - 700) * second)
        request.end(now + (answered - 700) * second)
        task.end(now)
    expect(page.get_by_role("heading", name="report")).to_have_count(5)
    named = card_of(page, "/named").locator(".row.task .name")
    expect(named).to_be_visible()
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.evaluate(OVERLAPS) == [], width
        assert page.evaluate(CUT) == [], width
        assert named.evaluate("each => each.scrollWidth > each.clientWidth")
        expect(named).to_have_css("text-overflow", "ellipsis")
        expect(named).to_have_attribute("title", long)


CONTRASTS = """() => {
    const canvas = Object.assign(document.createElement("canvas"), {width: 1, height: 1})
        .getContext("2d", {willReadFrequently: true});
    const light = (colour) => {
        canvas.fillStyle = colour;
        canvas.fillRect(0, 0, 1, 1);
        const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map((each) => each / 255)
            .map((each) => each <= .04045 ? each / 12.92 : ((each + .055) / 1.055) ** 2.4);
        return .2126 * r + .7152 * g + .0722 * b;
    };
    const contrast = (one, other) => {
        const [dark, bright] = [light(one), light(other)].sort((a, b) => a - b);
        return (bright + .05) / (dark + .05);
    };
    const behind = (element) => {
        const colour = getComputedStyle(element).backgroundColor;
        return colour === "rgba(0, 0, 0, 0)" && element.parentElement ? behind(element.parentElement) : colour;
    };
    const poor = [], band = getComputedStyle(document.documentElement).getPropertyValue("--band");
    const check = (element, colour, back) => {
        const found = contrast(colour, back);
        if (found < 4.5) poor.push(`${element.id || element.className} ${element.textContent}: ${found.toFixed(2)}`);
    };
    for (const element of document.body.querySelectorAll("*")) {
        const hasText = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
        if (!hasText || !element.checkVisibility()) continue;
        check(element, getComputedStyle(element).color, behind(element));
        if (element.className === "label") check(element, getComputedStyle(element).color, band);
    }
    const filter = document.getElementById("filter");
    check(filter, getComputedStyle(filter, "::placeholder").color, behind(filter));
    return poor;
}"""


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
@pytest.mark.parametrize("color_scheme", ["light", "dark"])
def test_every_text_can_be_read(shop: Shop, open_page: OpenPage, color_scheme: str) -> None:
    """In light and in dark each text has a contrast of 4.5 to 1 or more."""
    for path in ("/checkout", "/signup", "/coupon", "/welcome", "/orders", "/orders/late"):
        shop.post(path)
    page = open_page(shop.page, color_scheme=color_scheme)
    row_of(card_of(page, "/signup"), "charge_card").click()
    shop.post("/exports/spring")
    expect(page.get_by_role("button", name="1 new request")).to_be_visible()
    assert page.evaluate(CONTRASTS) == []
    page.get_by_role("button", name="1 new request").click()
    total_of(page, "running").click()
    assert page.evaluate(CONTRASTS) == []
    page.get_by_role("button", name="Pause").click()
    assert page.evaluate(CONTRASTS) == []


def test_less_motion(shop: Shop, open_page: OpenPage) -> None:
    """What runs grows in steps, not by an animation. Who asks for less motion gets fewer, and no smooth scrolling."""
    shop.post("/exports/spring")
    steps: dict[str, int] = {}
    for wish, scrolls in {"no-preference": "smooth", "reduce": "auto"}.items():
        page = open_page(shop.page, clock=True, reduced_motion=wish)
        expect(page.locator("html")).to_have_css("scroll-behavior", scrolls)
        page.locator(".task .bar").first.evaluate("""bar => {
            window.steps = new Set();
            new MutationObserver(() => steps.add(bar.style.width)).observe(bar, {attributes: true});
        }""")
        page.clock.run_for(8_000)
        steps[wish] = page.evaluate("steps.size")
        assert page.evaluate("document.getAnimations()") == []
    assert steps["no-preference"] >= 30 > 24 > steps["reduce"] >= 7


def test_a_row_is_opened_by_keyboard(shop: Shop, open_page: OpenPage) -> None:
    """Tab reaches each row, Enter opens and closes it, and the focus stays there whatever is new."""
    shop.post("/signup")
    page = open_page(shop.page)
    row = row_of(card_of(page, "/signup"), "charge_card")
    expect(row).to_have_attribute("aria-expanded", "false")
    tab_to(page, row)
    expect(row).not_to_have_css("outline-style", "none")
    page.keyboard.press("Enter")
    expect(row).to_have_attribute("aria-expanded", "true")
    expect(page.get_by_text("PaymentError: the card was declined")).to_be_visible()
    shop.post("/exports/spring")
    expect(page.get_by_role("button", name="1 new request")).to_be_visible()
    expect(row).to_be_focused()
    page.keyboard.press("Enter")
    expect(row).to_have_attribute("aria-expanded", "false")
    expect(page.get_by_text("PaymentError: the card was declined")).to_be_hidden()
    expect(row).to_be_focused()


def test_a_task_that_runs_is_found(shop: Shop, open_page: OpenPage) -> None:
    """A click on what runs now leads to its row, wherever that is, and also where it was only announced."""
    shop.post("/exports/spring")
    for _ in range(8):
        shop.post("/checkout")
    page = open_page(shop.page, width=1000, height=500)
    running = page.get_by_role("region", name="Running now").get_by_role("button")
    running.click()
    row = row_of(card_of(page, "/exports"), "export_catalogue")
    expect(row).to_be_in_viewport()
    expect(row).to_be_focused()
    shop.post("/exports/autumn")
    expect(page.get_by_role("button", name="1 new request")).to_be_visible()
    page.evaluate("scrollTo({top: 0, behavior: 'instant'})")
    running.nth(1).click()
    expect(row_of(card_of(page, "/exports").first, "export_catalogue")).to_be_focused()
    expect(page.get_by_role("button", name="1 new request")).to_be_hidden()


def test_a_trace_is_copied_and_linked(serve_shop: ServeShop, open_page: OpenPage) -> None:
    """The trace id goes to the clipboard, and a link leads to the trace in another place, which learns nothing."""
    shop = serve_shop(trace_url="http://traces.example/{trace_id}?of={trace_id}")
    shop.post("/checkout")
    page = open_page(shop.page)
    card = card_of(page, "/checkout")
    copy = card.get_by_title("Copy the trace id")
    trace_id = (copy.get_attribute("title") or "")[-32:]
    assert re.fullmatch("[0-9a-f]{32}", trace_id)
    expect(copy).to_have_text(trace_id[:8])
    copy.click()
    expect(copy).to_have_text("copied")
    assert page.evaluate("navigator.clipboard.readText()") == trace_id
    expect(copy).to_have_text(trace_id[:8])
    link = card.get_by_role("link", name="trace")
    expect(link).to_have_attribute("href", f"http://traces.example/{trace_id}?of={trace_id}")
    expect(link).to_have_attribute("rel", "noopener noreferrer")


def test_a_trace_id_is_copied_once(shop: Shop, open_page: OpenPage) -> None:
    """Who clicks twice finds the id again afterwards."""
    shop.post("/checkout")
    page = open_page(shop.page)
    copy = card_of(page, "/checkout").get_by_title("Copy the trace id")
    shown = copy.inner_text()
    copy.dblclick()
    expect(copy).to_have_text("copied")
    expect(copy).to_have_text(shown)


def strip(app: ASGIApp) -> ASGIApp:
    """A proxy that has the application under /api, of which the application is told nothing."""

    async def stripped(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = scope["path"].removeprefix("/api")
            scope = {**scope, "path": path, "raw_path": path.encode()}
        await app(scope, receive, send)

    return stripped


@pytest.mark.filterwarnings("ignore:The `root_path` parameter is deprecated")
def test_behind_a_proxy_that_strips_a_prefix(serve_shop: ServeShop, open_page: OpenPage) -> None:
    """Where a proxy strips a prefix, and FastAPI knows of it, all is found under another mount path."""
    shop = serve_shop(strip, root_path="/api")
    shop.post("/api/checkout")
    page = open_page(f"{shop.url}/api/internal/tasks/")
    expect(card_of(page, "/checkout")).to_be_visible()


@pytest.mark.parametrize("slash", ["/", ""])
def test_where_the_server_knows_the_prefix(serve_shop: ServeShop, open_page: OpenPage, slash: str) -> None:
    """Under the root path of a server all is found, with and without the slash at the end."""
    shop = serve_shop(lambda app: with_root_path(app, "/api"))
    shop.post("/api/checkout")
    page = open_page(f"{shop.url}/api/internal/tasks{slash}")
    expect(card_of(page, "/checkout")).to_be_visible()
    assert page.url == f"{shop.url}/api/internal/tasks/"


def with_root_path(app: ASGIApp, root_path: str) -> ASGIApp:
    async def with_root_path(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "root_path": root_path} if scope["type"] == "http" else scope, receive, send)

    return with_root_path


def test_a_full_page(shop: Shop, open_page: OpenPage) -> None:
    """Two hundred requests of twenty spans come in several small answers, and all are shown, and can be filtered."""
    tracer, tasks = shop.provider.get_tracer("shop"), shop.provider.get_tracer("traced_tasks")
    for number in range(200):
        attributes = {"http.request.method": "POST", "http.route": f"/full/{number}"}
        with (
            tracer.start_as_current_span("request", attributes=attributes),
            tasks.start_as_current_span("background_task fill", attributes={"number": number}),
        ):
            for each in range(18):
                tracer.start_span(f"step {each}").end()
    page, sizes = open_page("about:blank"), []
    page.on("response", lambda response: sizes.append(response) if "/data" in response.url else None)
    page.goto(shop.page)
    expect(page.get_by_role("article")).to_have_count(200)
    parts = [len(response.body()) for response in sizes]
    assert len(parts) > 3
    assert max(parts) < 300_000
    page.get_by_role("searchbox").fill("/full/123")
    expect(page.get_by_text("1 of 200 requests match")).to_be_visible()
    page.get_by_role("button", name="+ 10 spans").filter(visible=True).click()
    expect(row_of(card_of(page, "/full/123"), "step 17")).to_be_visible()
