"""The pages in a browser, beside a running job whose worker is killed: headless Chromium, a real worker."""

import shutil
import signal
import socket

import pytest

from tests.support.installation import Installation, adds_up
from tests.support.tiny_model import TEXT, write_tiny_model
from tests.support.wait import wait_for

POSTERS = 600
PAGES = (
    "/",
    "/find",
    "/failures",
    "/duplicates?same_content=true",
    "/collection",
    "/map",
    "/posters/p0000.jpg",
    "/spaces",
)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OPTIONS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking")
pytestmark = pytest.mark.chaos


@pytest.fixture
def own_installation(redis_url, redis_server, tmp_path):
    """An installation whose model has a text tower."""
    model = write_tiny_model(tmp_path / "with-text", text_cfg=TEXT)
    installation = Installation(tmp_path, redis_server, model_name=model)
    yield installation
    installation.close()


@pytest.fixture
def address(own_installation):
    """Where the served pages of the installation are."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = own_installation.start("serve", "--port", str(port), POSTERS_POSTERS_PER_BATCH="16")
    try:
        wait_for(lambda: process.poll() is not None or _is_open(port), "the server")
        assert process.poll() is None, process.communicate()
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)


def _is_open(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def browser():
    """Debian's Chromium, driven by Playwright."""
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=list(OPTIONS))
        yield browser
        browser.close()


@pytest.fixture
def new_page(browser, address):
    """A factory of pages that notes what the browser complains of, and what it loads from elsewhere."""
    complaints = []

    def make(**options):
        page = browser.new_context(**options).new_page()
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        own = (address, "data:")
        page.on("request", lambda sent: None if sent.url.startswith(own) else complaints.append(sent.url))
        return page

    yield make
    # a picture of a poster that cannot be decoded is not there
    assert not [text for text in complaints if "404 (Not Found)" not in text]


def test_a_person_follows_a_job_whose_worker_is_killed(own_installation, address, new_page):
    """The dead worker goes, another finishes the job; then find, retry, pause, by hand and by keyboard."""
    installation = own_installation
    installation.draw(POSTERS)
    (installation.root / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    first = installation.worker("one").wait_until_ready()
    page = new_page()
    page.goto(address)
    page.get_by_text("one@tests").wait_for()
    page.get_by_role("button", name="Begin").click()
    job = wait_for(
        lambda: installation.producer.job("last").progress().embedded and installation.producer.job("last"), "work"
    )
    first.kill()
    assert not job.progress().at_rest
    page.get_by_role("progressbar").first.wait_for()
    page.get_by_text("No worker is alive").wait_for(timeout=60_000)
    installation.worker("two")
    page.get_by_text("two@tests").wait_for(timeout=120_000)
    page.get_by_text("finished", exact=True).wait_for(timeout=120_000)
    progress = job.progress()
    assert adds_up(vars(progress))
    assert (progress.submitted, progress.failed) == (POSTERS + 1, 1)
    assert page.get_by_text(f"{POSTERS:,} embedded").count() + page.get_by_text("reused").count() >= 1

    page.get_by_role("link", name="1 failed").click()
    page.get_by_text("broken.jpg").first.wait_for()
    page.get_by_role("button", name="Retry", exact=True).click()
    wait_for(lambda: len(installation.producer.job_store.list_jobs()) == 2, "the second job")

    page.goto(address)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.url.endswith("#content")
    page.get_by_role("button", name="Pause bulk work").press("Enter")
    page.get_by_text("rests: paused since").wait_for()
    page.get_by_label("What").select_option("force")
    page.get_by_role("button", name="Begin").click()
    wait_for(lambda: len(installation.claims().resting()) >= 32, "batches that rest")

    page.goto(f"{address}/find")
    page.locator("form.drop input[type=file]").first.set_input_files(installation.root / "p0003.jpg")
    page.get_by_text("is the best match for").wait_for()
    assert page.locator(".card.lead .score").inner_text().strip() == "1.0000"
    page.get_by_text("not calibrated").wait_for()
    page.get_by_label("Or words").fill("a girl with an umbrella")
    page.get_by_label("Or words").press("Enter")
    page.get_by_text("is the best match for a girl with an umbrella").wait_for(timeout=60_000)
    forced = installation.producer.job("last")
    assert (forced.progress().done, forced.progress().open_batches >= 32) == (0, True), (
        "a request was answered, bulk rests"
    )

    page.goto(address)
    page.get_by_role("button", name="Resume bulk work").press("Enter")
    page.get_by_role("button", name="Pause bulk work").wait_for()
    wait_for(lambda: forced.progress().at_rest, "the end of what rested")
    assert (forced.progress().embedded, forced.progress().failed) == (POSTERS, 1)

    page.goto(f"{address}/map")
    page.get_by_text(f"{POSTERS} posters: those that look alike lie together").wait_for(timeout=60_000)
    page.locator("canvas[aria-label]").focus()
    page.keyboard.press("ArrowRight")
    shown = page.locator(".shown a")
    shown.wait_for()
    first = shown.inner_text()
    page.keyboard.press("ArrowLeft")
    page.wait_for_function("first => document.querySelector('.shown a')?.innerText !== first", arg=first)
    page.keyboard.press("Enter")
    page.wait_for_url("**/posters/*")
    page.get_by_text("Posters like this one").wait_for()

    page.goto(address)
    page.get_by_role("button", name="Prune deleted posters").click()
    page.get_by_text("posters were pruned").wait_for()
    with page.expect_response(lambda answer: answer.request.method == "GET") as refreshed:
        pass
    assert refreshed.value.status == 200, "the answer to a form is refreshed as well"

    plain = new_page(java_script_enabled=False, viewport={"width": 360, "height": 740}, color_scheme="dark")
    phone = new_page(viewport={"width": 360, "height": 740})
    for path in PAGES:
        assert plain.goto(address + path).status == 200, path
        assert plain.get_by_role("heading", level=1).inner_text(), path
        phone.goto(address + path)
        widest, window = phone.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
        assert widest <= window, path
    plain.goto(f"{address}/find")
    plain.locator("form.drop input[type=file]").first.set_input_files(installation.root / "p0004.jpg")
    plain.get_by_role("button", name="Find").first.click()
    plain.get_by_text("is the best match for").wait_for()
