"""End to end: a real Redis, a real worker, the real command line; only the model is small."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from bench.image_samples import encoded, picture
from producer import Producer
from producer.__main__ import main
from producer.errors import EmbedTimeout, NoWorker, RedisUnreachable, UnreadablePoster
from producer.host import program
from producer.queue.messages import INTERACTIVE, EmbedBatch, Poster
from producer.queue.sender import create_sender
from producer.settings import load_settings
from tests.integration.test_validation import GARBAGE
from tests.support.installation import PYTHONPATH, Installation, adds_up
from tests.support.project import PROJECT
from tests.support.redis_server import RedisServer
from tests.support.tiny_model import DIMENSION, MEAN, SIDE, STD, make_model
from tests.support.wait import wait_for

# What a program around us may have set, for its own Celery above all; no test may notice.
OTHER_PROGRAM = {
    "CELERY_BROKER_URL": "redis://127.0.0.1:1/0",
    "CELERY_BROKER_READ_URL": "redis://127.0.0.1:1/1",
    "CELERY_BROKER_WRITE_URL": "redis://127.0.0.1:1/2",
    "CELERY_RESULT_BACKEND": "redis://127.0.0.1:1/3",
    "CELERY_CONFIG_MODULE": "no_module_of_ours",
    "CELERY_LOADER": "no_module_of_ours:Loader",
    "DJANGO_SETTINGS_MODULE": "no_module_of_ours",
    "CELERY_WORKER_CONCURRENCY": "4",
    "CELERY_WORKER_QUEUES": "theirs",
    "PYTHONWARNINGS": "error",
}


@pytest.fixture(scope="module")
def server():
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="module")
def installation(server, tmp_path_factory):
    """One worker for all tests of this file that do not stop it."""
    installation = Installation(tmp_path_factory.mktemp("world"), server)
    installation.environment |= OTHER_PROGRAM
    installation.forks_workers = False
    installation.worker("shared", POSTERS_LOG="json").wait_until_ready()
    yield installation
    installation.close()


@pytest.fixture
def own_installation(own_installation):
    """Its workers start as a user starts them."""
    own_installation.forks_workers = False
    return own_installation


def folder(installation: Installation, name: str) -> str:
    (installation.root / name).mkdir()
    return f"{name}/"


def test_posters_become_vectors_of_the_reference_model(installation):
    """The main job: every poster stored under its id, with the vector that open_clip gives for it."""
    names = installation.draw(20, folder(installation, "main"))
    process = installation.start("index", str(installation.root / "main"), "--json")  # not `run`: as a user does
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    ledger = json.loads(out)
    assert ledger.keys() == {
        "job",
        "submitted",
        "embedded",
        "reused",
        "unchanged",
        "failed",
        "seconds",
        "images_per_second",
    }
    assert (ledger["submitted"], ledger["embedded"]) == (20, 20)
    transform, model = open_clip.image_transform(SIDE, is_train=False, mean=MEAN, std=STD), make_model()
    store = installation.producer.store()
    found = store.get(store.current(), names)
    store.close()
    assert set(found) == set(names)
    for name in names:
        with Image.open(installation.root / name) as image, torch.inference_mode():
            reference = model.encode_image(transform(image).unsqueeze(0), normalize=True)[0].numpy()
        assert found[name] @ reference > 0.9995


def test_a_batch_is_one_line_of_the_log_and_every_line_is_json(installation):
    """Its fields are what the ledger counts; from the parent process and from its child, library and Celery alike."""
    (installation.root / folder(installation, "logged") / "bad.jpg").write_text("no picture")
    installation.draw(2, "logged/")
    counts = installation.index(str(installation.root / "logged"), status=1)
    entries = [json.loads(line) for line in installation.workers[0].log_text().splitlines()]
    (entry,) = [entry for entry in entries if entry.get("job") == counts["job"]]
    assert entry["batch"] == f"{counts['job']}.1"
    assert (entry["level"], entry["logger"], entry["worker"]) == ("INFO", "worker.runtime.batch_runner", "shared@tests")
    assert (entry["posters"], entry["embedded"], entry["failed"]) == (3, 2, 1)
    assert entry["seconds"] > 0
    assert entry["images_per_second"] > 0
    assert entry.keys() >= {"reused", "unchanged", "device_s", "waiting_for_decode_s", "waiting_for_store_s"}
    assert not any("celery" in entry["message"].lower() for entry in entries if entry["level"] == "INFO"), "no banner"


def test_bad_posters_fail_by_name_and_good_ones_are_stored(installation):
    """Truncated, text, empty, missing: exit status 1, four failures, every neighbor embedded."""
    inside = folder(installation, "mixed")
    good = installation.draw(9, inside)
    (installation.root / inside / "cut.jpg").write_bytes(encoded(picture(400, 600), "JPEG")[:4000])
    (installation.root / inside / "text.png").write_text("no picture")
    (installation.root / inside / "empty.jpg").write_bytes(b"")
    (installation.root / "mixed-missing.jpg").symlink_to("nowhere.jpg")
    done = installation.run("index", f"{installation.root}/mixed", f"{installation.root}/mixed-missing.jpg")
    assert done.returncode == 1
    ledger = dict(zip(*[iter(done.stdout.split())] * 2, strict=True))
    assert (ledger["submitted"], ledger["embedded"], ledger["failed"]) == ("13", "9", "4")
    for name, word in (
        ("mixed/cut.jpg", "truncated"),
        ("mixed/text.png", "unreadable"),
        ("mixed/empty.jpg", "unreadable"),
        ("mixed-missing.jpg", "missing"),
    ):
        assert f"failed: {name}: {word}: " in done.stderr
    assert set(good) <= installation.stored()
    listed = json.loads(installation.run("failures", ledger["job"], "--json").stdout)
    assert {failure["path"]: failure["word"] for failure in listed} == {
        "mixed/cut.jpg": "truncated",
        "mixed/text.png": "unreadable",
        "mixed/empty.jpg": "unreadable",
        "mixed-missing.jpg": "missing",
    }
    (installation.root / "mixed" / "cut.jpg").write_bytes(encoded(picture(400, 600), "JPEG"))
    retried = installation.run("retry", ledger["job"], "--only", "truncated", "--json")
    assert retried.returncode == 0, retried.stderr
    assert json.loads(retried.stdout)["embedded"] == 1


def test_unchanged_posters_are_sent_only_when_forced(installation):
    """Unchanged posters are not sent; --force embeds them; --dry-run lists what would happen."""
    inside = folder(installation, "again")
    names = installation.draw(12, inside)
    before = installation.run("index", f"{installation.root}/again", "--dry-run")
    assert before.stdout.split() == names
    assert "12 poster(s) to send, 0 unchanged" in before.stderr
    assert installation.index(f"{installation.root}/again", "--batch", "5")["embedded"] == 12
    assert (
        "0 poster(s) to send, 12 unchanged"
        in installation.run("index", f"{installation.root}/again", "--dry-run").stderr
    )
    second = installation.index(f"{installation.root}/again")
    assert (second["embedded"], second["unchanged"]) == (0, 12)
    assert installation.index(f"{installation.root}/again", "--force")["embedded"] == 12


def test_batch_sets_the_posters_per_message(installation):
    """12 posters in messages of 5 are three steps in the ledger."""
    installation.draw(12, folder(installation, "batches"))
    ledger = installation.index(f"{installation.root}/batches", "--batch", "5")
    assert installation.producer.job_store.progress(ledger["job"]).steps == 3


def test_detach_returns_at_once_and_status_shows_the_job(installation):
    """The job's id is printed, and the job ends without its producer."""
    installation.draw(10, folder(installation, "detached"))
    done = installation.run("index", f"{installation.root}/detached", "--detach", "--json")
    assert done.returncode == 0
    job = json.loads(done.stdout)["job"]
    assert f"-m producer status {job}" in done.stderr
    progress = installation.producer.job(job).wait(30)
    assert progress.at_rest
    shown = json.loads(installation.run("status", job, "--json").stdout)["jobs"][0]
    assert (shown["state"], shown["embedded"], shown["open_batches"]) == ("finished", 10, 0)
    assert (shown["percent"], shown["seconds_left"]) == (100, 0)
    assert adds_up(shown)


def test_status_shows_workers_and_jobs(installation):
    """The workers with their devices, and the newest jobs."""
    installation.draw(1, folder(installation, "status"))
    job = installation.index(f"{installation.root}/status")["job"]
    done = installation.run("status")
    assert done.returncode == 0
    assert done.stderr == ""
    assert re.search(r"^shared@tests +ready ", done.stdout, re.MULTILINE)
    assert re.search(rf"^{job} +finished +100 % +1 of 1 +1 ", done.stdout, re.MULTILINE)


def test_the_worker_registers_itself(installation):
    """Host, device, model, space, batch size, speed and last progress, in an entry that expires."""
    installation.draw(3, folder(installation, "announced"))
    installation.index(f"{installation.root}/announced")
    ends = time.monotonic() + 15
    while time.monotonic() < ends:
        entry = installation.producer.registry.find("shared@tests")
        if entry.get("progress_at"):
            break
        time.sleep(0.2)
    for field in ("host", "pid", "device", "model", "space", "batch_size", "progress_at", "images_per_second", "store"):
        assert entry.get(field), field
    with installation.redis.client as client:
        assert 0 < client.ttl(f"posters:worker:{entry.owner}") <= 15


def test_doctor_finds_everything_in_order(installation):
    """One line per check; status 0 when all pass."""
    done = installation.run("doctor")
    assert done.returncode == 0, done.stdout
    checks = "redis eviction persistence memory clocks worker model device posters store disk dead"
    lines = [line for line in done.stdout.splitlines() if not line.startswith(" ")]
    assert [line.split()[1].rstrip(":") for line in lines] == checks.split()
    findings = json.loads(installation.run("doctor", "--json").stdout)
    assert {finding["name"] for finding in findings if finding["status"] != "ok"} <= {"persistence", "disk"}, "warnings"


def test_a_backend_enqueues_and_follows(installation):
    """Producer().enqueue returns at once; progress, wait and failures report the outcome."""
    names = installation.draw(8, folder(installation, "backend"))
    job = installation.producer.enqueue([*names, "backend/nothing.jpg"])
    progress = job.wait(timeout=30)
    assert progress.at_rest
    assert (progress.submitted, progress.embedded, progress.failed) == (9, 8, 1)
    assert [(failure.path, failure.word) for failure in job.failures()] == [("backend/nothing.jpg", "missing")]
    job = installation.producer.enqueue(["", *names, "x" * 9000, installation.root / "backend", "/etc/hostname", "a\0"])
    progress = job.wait(timeout=30)  # a bad path fails alone, before a worker sees it
    assert (progress.submitted, progress.unchanged, progress.failed) == (12, 8, 4)
    assert installation.producer.job("last").id == job.id


def test_a_backend_gets_a_vector(installation):
    """embed(): float32 of unit length, the stored vector bit by bit."""
    name = installation.draw(1, folder(installation, "now"))[0]
    began = time.monotonic()
    vector = installation.producer.embed(name, timeout=20)
    assert time.monotonic() - began < 5
    assert vector.shape == (DIMENSION,)
    assert vector.dtype == np.float32
    store = installation.producer.store()
    assert np.array_equal(store.get(store.current(), [name])[name], vector)
    store.close()
    assert np.array_equal(installation.producer.embed(installation.root / name), vector)
    with pytest.raises(UnreadablePoster, match=r"now/nothing\.jpg: missing"):
        installation.producer.embed("now/nothing.jpg")


def test_file_names_in_any_script_and_names_that_are_not_text(installation):
    """Japanese, spaces, newlines, and on Linux bytes that are not UTF-8."""
    inside = installation.root / "names"
    inside.mkdir()
    data = encoded(picture(60, 90), "PNG")
    names = ["進撃の巨人.png", "two words.png", "new\nline.png", "é.png", 'quote".png']
    for number, name in enumerate(names):
        (inside / name).write_bytes(data + bytes([number]))
    with open(os.fsencode(inside) + b"/\xff\xfe.png", "wb") as file:
        file.write(data + b"raw")
    ledger = installation.index(str(inside))
    assert (ledger["submitted"], ledger["failed"]) == (6, 0)
    assert "names/進撃の巨人.png" in installation.stored()
    assert "names/%FF%FE.png" in installation.stored()


def test_malformed_messages_become_dead_letters(installation):
    """Malformed messages on both lanes: the worker continues, and doctor counts the dead letters."""
    before, worker = installation.producer.dead_letters.count(), installation.workers[0].process
    garbage = [element for element in GARBAGE.values() if element]
    with create_sender(installation.settings) as app, installation.redis.client as client:
        app.send_task("posters.embed", args=[{"version": 1, "rubbish": True}], queue="posters.bulk")
        app.send_task("posters.embed", args=[{"version": 99}], queue="posters.bulk")
        app.send_task("posters.embed", args=[{"version": 1}], countdown=3600, queue="posters.bulk")
        app.send_task("os.system", args=["true"], queue="posters.interactive")
        app.send_task("posters.embed", args=[{}], serializer="pickle", queue="posters.bulk")
        for lane in ("posters.bulk", "posters.interactive"):
            client.lpush(lane, *garbage)
    expected = before + 5 + 2 * len(garbage)
    ends = time.monotonic() + 30
    while installation.producer.dead_letters.count() < expected and time.monotonic() < ends:
        time.sleep(0.1)
    assert installation.producer.dead_letters.count() == expected
    installation.draw(1, folder(installation, "afterwards"))
    assert installation.index(f"{installation.root}/afterwards")["embedded"] == 1
    assert worker.poll() is None
    assert f"{expected} message(s) rejected" in installation.run("doctor").stdout
    with installation.redis.client as client:
        assert not client.hlen("unacked"), "each was acknowledged"
        client.delete("posters:quarantine")


def test_the_same_batch_delivered_twice_counts_once(installation):
    """A duplicate from the broker changes no count and no vector."""
    name = installation.draw(1, folder(installation, "twice"))[0]
    job = installation.producer.enqueue([name])
    job.wait(30)
    before = job.progress()
    stat = (installation.root / name).stat()
    batch = EmbedBatch(job.id, f"{job.id}.1", (Poster(name, name, stat.st_size, stat.st_mtime_ns),))
    installation.producer.send(batch)
    installation.producer.embed(name)  # the lane in front; then one more behind it
    installation.producer.enqueue([name]).wait(30)
    assert job.progress() == before


@pytest.mark.parametrize(
    ("arguments", "environment", "text"),
    [
        (["index", "/etc/hostname"], {}, "outside the posters root"),
        (["index"], {"POSTERS_BATCH_SIZ": "3"}, "did you mean POSTERS_BATCH_SIZE?"),
        (["index"], {"POSTERS_BATCH_SIZE": "many"}, "batch_size"),
        (["status", "no-such-job"], {}, "no-such-job"),
        (["failures", "no-such-job"], {}, "no-such-job"),
        (["index"], {"POSTERS_ROOT": "/nowhere"}, "/nowhere is not a folder"),
        (["index", "--batch", "0"], {}, "--batch"),
    ],
)
def test_wrong_usage_is_status_2_with_its_way_out(installation, arguments, environment, text):
    """One line that names the input; no stack trace."""
    done = installation.run(*arguments, **environment)
    assert done.returncode == 2
    assert text in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("arguments", [["index"], ["status"], ["failures", "last"], ["doctor"], ["cancel", "x"]])
def test_an_unreachable_redis_is_status_3_within_seconds(installation, arguments):
    """Every command names the address and the way out."""
    began = time.monotonic()
    done = installation.run(*arguments, POSTERS_REDIS_URL="redis://127.0.0.1:1/0")
    assert done.returncode == 3
    assert "127.0.0.1:1" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert time.monotonic() - began < 15  # 2 s on a machine with nothing else to do


def test_a_backend_gets_an_error_for_an_unreachable_redis_within_5_seconds(tmp_path):
    """Neither enqueue nor embed hangs."""
    producer = Producer(load_settings(redis_url="redis://127.0.0.1:1/0", root=tmp_path))
    for call in (lambda: producer.enqueue(["a.jpg"]), lambda: producer.embed("a.jpg")):
        began = time.monotonic()
        with pytest.raises(RedisUnreachable, match=r"127\.0\.0\.1:1"):
            call()
        assert time.monotonic() - began < 5
    producer.close()


def test_every_command_has_help_with_an_example():
    """The help of the program lists them all."""
    listed = CliRunner().invoke(main, ["--help"]).output
    for command in (
        "index",
        "status",
        "failures",
        "retry",
        "cancel",
        "prune",
        "identify",
        "calibrate",
        "duplicates",
        "export",
        "spaces",
        "spaces use",
        "spaces drop",
        "doctor",
        "ready",
        "demo",
    ):
        assert command.split()[0] in listed
        done = CliRunner().invoke(main, [*command.split(), "--help"])
        assert done.exit_code == 0
        assert f"Example:\n    {program()} {command}" in done.output


def test_a_healthcheck_asks_the_registry(installation):
    """As the compose file does; Celery's remote control is off: no worker even listens to it."""
    done = installation.run("ready", "--worker", "shared@tests")
    assert (done.returncode, done.stderr) == (0, "")
    assert installation.run("ready", "--worker", "nobody@tests").returncode == 1
    with installation.redis.client as client:
        assert client.pubsub_numpat() == 0
        assert not client.pubsub_channels()


# ─── without a worker, and with one that goes ───


def test_without_a_worker_index_says_so_waits_and_can_be_left(own_installation):
    """Reported at once; Ctrl-C prints the id and how to continue; a later worker does the job."""
    own_installation.draw(6)
    process = own_installation.start("index", "--batch", "2")
    line = process.stderr.readline()
    assert "no worker is alive" in line
    assert "celery -A worker worker" in line
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    job = own_installation.producer.job("last")
    assert f"status {job.id}" in err
    assert f"cancel {job.id}" in err
    with pytest.raises(NoWorker, match="celery -A worker worker"):
        own_installation.producer.embed("p0000.jpg")
    done = own_installation.run("doctor")
    assert done.returncode == 3
    assert "FAIL worker: none is alive" in done.stdout
    worker = own_installation.worker("late").wait_until_ready()
    progress = job.wait(30)
    assert (progress.at_rest, progress.submitted, progress.embedded) == (True, 6, 6)
    assert worker.stop() == 0
    assert own_installation.producer.workers() == []


def test_a_cancelled_job_drops_what_no_worker_began(own_installation):
    """Its posters no longer count as `submitted`; the sums still balance."""
    own_installation.draw(6)
    job = json.loads(own_installation.run("index", "--detach", "--batch", "2", "--json").stdout)["job"]
    done = own_installation.run("cancel", job)
    assert "6 poster(s) withdrawn" in done.stderr
    progress = own_installation.producer.job(job).progress()
    assert (progress.state, progress.submitted, progress.cancelled, progress.at_rest) == ("cancelled", 0, 6, True)


def test_a_worker_without_weights_exits_with_its_reason(own_installation):
    """One reason, in its log and for waiting producers; status 78 tells a supervisor not to restart it."""
    own_installation.draw(1)
    worker = own_installation.worker("poor", POSTERS_MODEL_NAME="ViT-B/32", POSTERS_PRETRAINED="/nowhere/weights.pt")
    process = own_installation.start("index")
    assert worker.process.wait(90) == 78
    assert "no checkpoint file /nowhere/weights.pt" in worker.log_text()
    assert "POSTERS_PRETRAINED" in worker.log_text()
    assert any("poor@tests cannot start" in line for line in process.stderr)  # it asks every other second
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 130


def test_a_wrong_setting_ends_the_worker_at_once(own_installation):
    """Before Redis, before torch."""
    worker = own_installation.worker("wrong", POSTERS_BATCH_SIZE="lots")
    assert worker.process.wait(30) == 78
    assert "batch_size" in worker.log_text()
    assert "Traceback" not in worker.log_text()


def test_an_index_whose_steps_redis_lost_scans_again(own_installation):
    """As when Redis comes back from an old copy of its data: a new job finds what is missing, and all is stored."""
    names = own_installation.draw(6)
    process = own_installation.start("index", "--batch", "1", "--json", POSTERS_WINDOW="3")
    ends = time.monotonic() + 30
    while (
        not (jobs := own_installation.producer.job_store.list_jobs())
        or own_installation.producer.job(jobs[0]).progress().steps < 3
    ):
        assert time.monotonic() < ends
        time.sleep(0.05)
    with own_installation.redis.client as client:
        client.hset(f"posters:job:{jobs[0]}", "step", "1")
    own_installation.worker("w").wait_until_ready()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "Scanning again" in err
    ledger = json.loads(out)
    assert ledger["job"] != jobs[0]
    assert (ledger["submitted"], adds_up(ledger)) == (6, True)
    assert own_installation.stored() == set(names)


def test_interactive_goes_before_bulk(own_installation):
    """A waiting backend's poster is embedded before the rest of a long job."""
    names = own_installation.draw(61)
    bulk = own_installation.producer.enqueue(names[:60])
    for start in range(0, 60, 10):
        own_installation.producer.enqueue(names[start : start + 10], force=True)
    urgent = own_installation.producer.enqueue(names[60:], lane=INTERACTIVE)
    own_installation.worker("w", "--include", "tests.support.fault_injection", FAULT_SLEEP_S="0.2").wait_until_ready()
    progress = urgent.wait(30)
    assert progress.embedded == 1
    assert not bulk.progress().at_rest
    assert own_installation.producer.job("last").wait(90).at_rest


def test_a_vector_that_is_late_is_an_error_and_its_request_is_withdrawn(own_installation):
    """The call ends at its timeout, and no request is left in the queue."""
    names = own_installation.draw(41)
    own_installation.worker("w", "--include", "tests.support.fault_injection", FAULT_SLEEP_S="1").wait_until_ready()
    bulk = own_installation.producer.enqueue(names[:40])
    wait_for(lambda: bulk.progress().doing, "the first of five forward passes")
    began = time.monotonic()
    with pytest.raises(EmbedTimeout, match=r"p0040\.jpg within 1 s"):
        own_installation.producer.embed(names[40], timeout=1)
    assert time.monotonic() - began < 3
    assert bulk.wait(60).embedded == 40


@pytest.mark.slow
@pytest.mark.parametrize(
    "chosen", [{"POSTERS_MODEL_NAME": "ViT-S-32", "PYTHONPATH": PYTHONPATH}, pytest.param({}, marks=pytest.mark.chaos)]
)
def test_the_demo_shows_every_feature_and_leaves_nothing_running(tmp_path, chosen):
    """Its own Redis and worker, every sample embedded, copy and crop found, the ledger last, no process left.

    There are no weights for the smaller model, so that it continues with untrained ones.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("POSTERS_")}
    mark = f"MARK_{os.getpid()}_{time.time_ns()}"
    command = [sys.executable, "-m", "producer", "demo"]
    environment |= {mark: "1", **chosen}
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert not chosen or "continuing with UNTRAINED weights" in done.stderr
    *lines, last = done.stdout.splitlines()
    ledger = dict(zip(*[iter(last.split())] * 2, strict=True))
    assert ledger["submitted"] == ledger["embedded"] == "24"
    assert lines[0].startswith("moonlit_shrine_copy.webp  looks most like  moonlit_shrine.jpg")
    assert lines[1].startswith("iron_aurora_crop.jpg  looks most like  iron_aurora.jpg")
    assert processes_with(mark) == []


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_demo_leaves_nothing_when_it_is_ended_while_its_worker_loads(tmp_path, signum, status):
    """Neither Redis, nor the worker, nor the temporary folder."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("POSTERS_")}
    mark = f"MARK_{os.getpid()}_{time.time_ns()}"
    environment |= {mark: "1", "POSTERS_PRETRAINED": "untrained", "TMPDIR": str(tmp_path), "PYTHONPATH": PYTHONPATH}
    command = [sys.executable, "-m", "producer", "demo"]
    process = subprocess.Popen(command, cwd=PROJECT, env=environment, stderr=subprocess.PIPE, text=True)
    assert any("the worker is loading" in line for line in process.stderr)
    time.sleep(2)
    process.send_signal(signum)
    _, err = process.communicate(timeout=60)
    assert process.returncode == status, err
    assert "Traceback" not in err
    assert processes_with(mark) == []
    assert list(tmp_path.glob("posters-demo-*")) == []


def processes_with(mark):
    """Processes that inherited a variable of that name; none are seen where there is no /proc."""
    return [path for path in Path("/proc").glob("[0-9]*/environ") if mark.encode() in _readable(path)]


def _readable(path):
    try:
        return path.read_bytes()
    except OSError:
        return b""
