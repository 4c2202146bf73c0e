"""As a user does it: a real Redis, a real worker, the real command line; only the model is small."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from redis_server import RedisServer
from tiny_model import DIMENSION, MEAN, SIDE, STD, make_model
from world import PROJECT, World, adds_up

from bench.image_samples import encoded, picture
from producer import Producer
from worker.errors import EmbedTimeout, NoWorker, RedisUnreachable, UnreadablePoster
from worker.messages import INTERACTIVE, EmbedBatch, Poster
from worker.settings import load_settings


@pytest.fixture(scope="module")
def server():
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="module")
def world(server, tmp_path_factory):
    """One worker for all tests of this file that do not hurt it."""
    world = World(tmp_path_factory.mktemp("world"), server)
    world.worker("shared").wait_until_ready()
    yield world
    world.close()


def folder(world: World, name: str) -> str:
    (world.root / name).mkdir()
    return f"{name}/"


def test_posters_become_vectors_of_the_reference_model(world):
    """The main job: every poster stored under its id, with the vector that open_clip gives for it."""
    names = world.draw(20, folder(world, "main"))
    ledger = world.index(str(world.root / "main"))
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
    store = world.producer.store()
    found = store.get(store.current(), names)
    store.close()
    assert set(found) == set(names)
    for name in names:
        with Image.open(world.root / name) as image, torch.inference_mode():
            reference = model.encode_image(transform(image).unsqueeze(0), normalize=True)[0].numpy()
        assert found[name] @ reference > 0.9995


def test_bad_posters_fail_by_name_and_good_ones_are_stored(world):
    """Truncated, text, empty, missing: exit status 1, four failures, every neighbour embedded."""
    inside = folder(world, "mixed")
    good = world.draw(9, inside)
    (world.root / inside / "cut.jpg").write_bytes(encoded(picture(400, 600), "JPEG")[:4000])
    (world.root / inside / "text.png").write_text("no picture")
    (world.root / inside / "empty.jpg").write_bytes(b"")
    done = world.run("index", f"{world.root}/mixed", f"{world.root}/mixed-missing.jpg")
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
    assert set(good) <= world.stored()
    listed = json.loads(world.run("failures", ledger["job"], "--json").stdout)
    assert {failure["path"]: failure["word"] for failure in listed} == {
        "mixed/cut.jpg": "truncated",
        "mixed/text.png": "unreadable",
        "mixed/empty.jpg": "unreadable",
        "mixed-missing.jpg": "missing",
    }
    (world.root / "mixed" / "cut.jpg").write_bytes(encoded(picture(400, 600), "JPEG"))
    retried = world.run("retry", ledger["job"], "--only", "truncated", "--json")
    assert retried.returncode == 0, retried.stderr
    assert json.loads(retried.stdout)["embedded"] == 1


def test_again_costs_nothing_unless_forced(world):
    """Unchanged posters are not even sent; --force embeds them; --dry-run tells beforehand."""
    inside = folder(world, "again")
    names = world.draw(12, inside)
    before = world.run("index", f"{world.root}/again", "--dry-run")
    assert before.stdout.split() == names
    assert "12 poster(s) to send, 0 unchanged" in before.stderr
    assert world.index(f"{world.root}/again", "--batch", "5")["embedded"] == 12
    assert "0 poster(s) to send, 12 unchanged" in world.run("index", f"{world.root}/again", "--dry-run").stderr
    second = world.index(f"{world.root}/again")
    assert (second["embedded"], second["unchanged"]) == (0, 12)
    assert world.index(f"{world.root}/again", "--force")["embedded"] == 12


def test_batch_sets_the_posters_per_message(world):
    """12 posters in messages of 5 are three steps in the ledger."""
    world.draw(12, folder(world, "batches"))
    ledger = world.index(f"{world.root}/batches", "--batch", "5")
    assert world.producer.ledger.about(ledger["job"])["step"] == "3"


def test_detach_leaves_and_status_follows(world):
    """The job's id is printed, and the job ends without anybody waiting."""
    world.draw(10, folder(world, "detached"))
    done = world.run("index", f"{world.root}/detached", "--detach", "--json")
    assert done.returncode == 0
    job = json.loads(done.stdout)["job"]
    assert f"python -m producer status {job}" in done.stderr
    progress = world.producer.job(job).wait(30)
    assert progress.at_rest
    shown = json.loads(world.run("status", job, "--json").stdout)["jobs"][0]
    assert (shown["state"], shown["embedded"], shown["open_batches"]) == ("finished", 10, 0)
    assert adds_up(shown)


def test_status_shows_workers_and_jobs(world):
    """For a person: who works, with what, and the newest jobs."""
    world.draw(1, folder(world, "status"))
    job = world.index(f"{world.root}/status")["job"]
    done = world.run("status")
    assert done.returncode == 0
    assert "worker shared@tests: ready" in done.stderr
    assert f"finished job {job} submitted 1 embedded 1" in done.stdout


def test_the_worker_announces_itself(world):
    """Host, device, model, space, batch size, speed, last progress; with a lease that expires."""
    world.draw(3, folder(world, "announced"))
    world.index(f"{world.root}/announced")
    ends = time.monotonic() + 15
    while time.monotonic() < ends:
        heard = world.producer.announcements.hear("shared@tests")
        if heard.get("progress_at"):
            break
        time.sleep(0.2)
    for field in ("host", "pid", "device", "model", "space", "batch_size", "progress_at", "images_per_second", "store"):
        assert heard.get(field), field
    with world.redis.client as client:
        assert 0 < client.ttl(f"posters:worker:{heard.owner}") <= 15


def test_doctor_finds_everything_in_order(world):
    """A line per thing that can be wrong; status 0 when none is."""
    done = world.run("doctor")
    assert done.returncode == 0, done.stdout
    assert [line.split()[1].rstrip(":") for line in done.stdout.splitlines()] == [
        "redis",
        "worker",
        "model",
        "posters",
        "store",
        "quarantine",
    ]
    assert all(finding["ok"] for finding in json.loads(world.run("doctor", "--json").stdout))


def test_a_backend_enqueues_and_follows(world):
    """Producer().enqueue returns at once; progress, wait and failures tell the rest."""
    names = world.draw(8, folder(world, "backend"))
    job = world.producer.enqueue([*names, "backend/nothing.jpg"])
    progress = job.wait(timeout=30)
    assert progress.at_rest
    assert (progress.submitted, progress.embedded, progress.failed) == (9, 8, 1)
    assert [(failure.path, failure.word) for failure in job.failures()] == [("backend/nothing.jpg", "missing")]
    assert world.producer.job("last").id == job.id


def test_a_backend_gets_a_vector_while_it_waits(world):
    """embed(): the interactive lane, float32 of unit length, the stored vector bit by bit."""
    name = world.draw(1, folder(world, "now"))[0]
    began = time.monotonic()
    vector = world.producer.embed(name, timeout=20)
    assert time.monotonic() - began < 5
    assert vector.shape == (DIMENSION,)
    assert vector.dtype == np.float32
    store = world.producer.store()
    assert np.array_equal(store.get(store.current(), [name])[name], vector)
    store.close()
    assert np.array_equal(world.producer.embed(world.root / name), vector)
    with pytest.raises(UnreadablePoster, match=r"now/nothing\.jpg: missing"):
        world.producer.embed("now/nothing.jpg")


def test_names_in_any_script_and_bytes_that_are_no_text(world):
    """Japanese, spaces, newlines, and on Linux bytes that are no UTF-8."""
    inside = world.root / "names"
    inside.mkdir()
    data = encoded(picture(60, 90), "PNG")
    names = ["進撃の巨人.png", "two words.png", "new\nline.png", "é.png", 'quote".png']
    for number, name in enumerate(names):
        (inside / name).write_bytes(data + bytes([number]))
    with open(os.fsencode(inside) + b"/\xff\xfe.png", "wb") as file:
        file.write(data + b"raw")
    ledger = world.index(str(inside))
    assert (ledger["submitted"], ledger["failed"]) == (6, 0)
    assert "names/進撃の巨人.png" in world.stored()
    assert "names/%FF%FE.png" in world.stored()


def test_messages_that_are_no_batch_are_put_aside(world):
    """Rubbish of every kind on both lanes: the worker goes on, the quarantine keeps it, doctor tells."""
    from test_envelope import RUBBISH

    from worker.celery import create_app

    before, worker = world.producer.quarantine.count(), world.workers[0].process
    rubbish = [element for element in RUBBISH.values() if element]
    with create_app(world.settings) as app, world.redis.client as client:
        app.send_task("posters.embed", args=[{"version": 1, "rubbish": True}], queue="posters.bulk")
        app.send_task("posters.embed", args=[{"version": 99}], queue="posters.bulk")
        app.send_task("posters.embed", args=[{"version": 1}], countdown=3600, queue="posters.bulk")
        app.send_task("os.system", args=["true"], queue="posters.interactive")
        app.send_task("posters.embed", args=[{}], serializer="pickle", queue="posters.bulk")
        for lane in ("posters.bulk", "posters.interactive"):
            client.lpush(lane, *rubbish)
    expected = before + 5 + 2 * len(rubbish)
    ends = time.monotonic() + 30
    while world.producer.quarantine.count() < expected and time.monotonic() < ends:
        time.sleep(0.1)
    assert world.producer.quarantine.count() == expected
    world.draw(1, folder(world, "afterwards"))
    assert world.index(f"{world.root}/afterwards")["embedded"] == 1
    assert worker.poll() is None
    assert f"{expected} message(s) put aside" in world.run("doctor").stdout
    with world.redis.client as client:
        assert not client.hlen("unacked"), "each was acknowledged"
        client.delete("posters:quarantine")


def test_the_same_batch_delivered_twice_counts_once(world):
    """A duplicate from the broker changes no count and no vector."""
    name = world.draw(1, folder(world, "twice"))[0]
    job = world.producer.enqueue([name])
    job.wait(30)
    before = job.progress()
    stat = (world.root / name).stat()
    batch = EmbedBatch(job.id, f"{job.id}.1", (Poster(name, name, stat.st_size, stat.st_mtime_ns),))
    world.producer.send(batch)
    world.producer.embed(name)  # the lane in front; then one more behind it
    world.producer.enqueue([name]).wait(30)
    assert job.progress() == before


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
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
def test_wrong_usage_is_status_2_with_its_way_out(world, arguments, environment, said):
    """One line that names the input; no stack trace."""
    done = world.run(*arguments, **environment)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("arguments", [["index"], ["status"], ["failures", "last"], ["doctor"], ["cancel", "x"]])
def test_a_redis_that_is_away_is_status_3_within_seconds(world, arguments):
    """Every command says where it looked and what to do."""
    began = time.monotonic()
    done = world.run(*arguments, POSTERS_REDIS_URL="redis://127.0.0.1:1/0")
    assert done.returncode == 3
    assert "127.0.0.1:1" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert time.monotonic() - began < 8


def test_a_backend_hears_of_a_redis_that_is_away_within_5_seconds(tmp_path):
    """Neither enqueue nor embed hangs."""
    producer = Producer(load_settings(redis_url="redis://127.0.0.1:1/0", root=tmp_path))
    for call in (lambda: producer.enqueue(["a.jpg"]), lambda: producer.embed("a.jpg")):
        began = time.monotonic()
        with pytest.raises(RedisUnreachable, match=r"127\.0\.0\.1:1"):
            call()
        assert time.monotonic() - began < 5
    producer.close()


def test_every_command_has_help_with_an_example(world):
    """And the help of the whole lists them."""
    listed = world.run("--help").stdout
    for command in (
        "index",
        "status",
        "failures",
        "retry",
        "cancel",
        "prune",
        "identify",
        "duplicates",
        "export",
        "spaces",
        "spaces use",
        "spaces drop",
        "doctor",
        "demo",
    ):
        assert command.split()[0] in listed
        done = world.run(*command.split(), "--help")
        assert done.returncode == 0
        assert f"Example:\n    python -m producer {command}" in done.stdout


def test_the_parent_answers_a_healthcheck_while_its_child_works(world):
    """As the compose file asks: `celery inspect ping` of one worker by name."""
    command = [sys.executable, "-m", "celery", "-A", "worker", "inspect", "ping", "--timeout", "5"]
    for name, status in (("shared@tests", 0), ("nobody@tests", 69)):
        done = subprocess.run(
            [*command, "--destination", name],
            cwd=PROJECT,
            env=world.environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == status, done.stdout + done.stderr
    assert "pong" in subprocess.run(command, cwd=PROJECT, env=world.environment, capture_output=True, text=True).stdout


# ─── without a worker, and with one that goes ───


def test_without_a_worker_index_says_so_waits_and_can_be_left(lonely):
    """Said at once; Ctrl-C prints the id and how to go on; a worker that comes later does the job."""
    lonely.draw(6)
    process = lonely.start("index", "--batch", "2")
    line = process.stderr.readline()
    assert "no worker is alive" in line
    assert "celery -A worker worker" in line
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    job = lonely.producer.job("last")
    assert f"status {job.id}" in err
    assert f"cancel {job.id}" in err
    with pytest.raises(NoWorker, match="celery -A worker worker"):
        lonely.producer.embed("p0000.jpg")
    done = lonely.run("doctor")
    assert done.returncode == 3
    assert "FAIL worker: none is alive" in done.stdout
    worker = lonely.worker("late").wait_until_ready()
    progress = job.wait(30)
    assert (progress.at_rest, progress.submitted, progress.embedded) == (True, 6, 6)
    assert worker.stop() == 0
    assert lonely.producer.workers() == []


def test_a_cancelled_job_withdraws_what_nobody_began(lonely):
    """Its posters leave `submitted`; the ledger still adds up."""
    lonely.draw(6)
    job = json.loads(lonely.run("index", "--detach", "--batch", "2", "--json").stdout)["job"]
    done = lonely.run("cancel", job)
    assert "6 poster(s) withdrawn" in done.stderr
    progress = lonely.producer.job(job).progress()
    assert (progress.state, progress.submitted, progress.cancelled, progress.at_rest) == ("cancelled", 0, 6, True)


def test_a_worker_without_weights_says_why_and_leaves(lonely):
    """One clear reason, in its log and to those who wait; status 78 tells a supervisor not to insist."""
    lonely.draw(1)
    worker = lonely.worker("poor", POSTERS_MODEL_NAME="ViT-B/32", POSTERS_PRETRAINED="/nowhere/weights.pt")
    process = lonely.start("index")
    assert worker.process.wait(90) == 78
    assert "no checkpoint file /nowhere/weights.pt" in worker.said()
    assert "POSTERS_PRETRAINED" in worker.said()
    assert any("poor@tests cannot start" in line for line in process.stderr)  # it asks every other second
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 130


def test_a_wrong_setting_ends_the_worker_at_once(lonely):
    """Before Redis, before torch."""
    worker = lonely.worker("wrong", POSTERS_BATCH_SIZE="lots")
    assert worker.process.wait(30) == 78
    assert "batch_size" in worker.said()
    assert "Traceback" not in worker.said()


def test_an_index_whose_steps_redis_forgot_looks_again(lonely):
    """As when Redis comes back from an old copy of its data: a new job finds what is missing, and all is stored."""
    names = lonely.draw(6)
    process = lonely.start("index", "--batch", "1", "--json", POSTERS_WINDOW="3")
    ends = time.monotonic() + 30
    while not (jobs := lonely.producer.ledger.jobs()) or lonely.producer.job(jobs[0]).progress().steps < 3:
        assert time.monotonic() < ends
        time.sleep(0.05)
    with lonely.redis.client as client:
        client.hset(f"posters:job:{jobs[0]}", "step", "1")
    lonely.worker("w").wait_until_ready()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "Looking again" in err
    ledger = json.loads(out)
    assert ledger["job"] != jobs[0]
    assert (ledger["submitted"], adds_up(ledger)) == (6, True)
    assert lonely.stored() == set(names)


def test_interactive_goes_before_bulk(lonely):
    """A waiting backend's poster is embedded before the rest of a long job."""
    names = lonely.draw(61)
    bulk = lonely.producer.enqueue(names[:60])
    for start in range(0, 60, 10):
        lonely.producer.enqueue(names[start : start + 10], force=True)
    urgent = lonely.producer.enqueue(names[60:], lane=INTERACTIVE)
    lonely.worker("w", "--include", "mischief", MISCHIEF_SLEEP_S="0.2").wait_until_ready()
    progress = urgent.wait(30)
    assert progress.embedded == 1
    assert not bulk.progress().at_rest
    assert lonely.producer.job("last").wait(90).at_rest


def test_a_vector_that_does_not_come_in_time_is_an_error_and_is_withdrawn(lonely):
    """The backend gets its thread back, and the queue is not left full of old wishes."""
    names = lonely.draw(41)
    lonely.worker("w", "--include", "mischief", MISCHIEF_SLEEP_S="1").wait_until_ready()
    bulk = lonely.producer.enqueue(names[:40])
    time.sleep(1)
    began = time.monotonic()
    with pytest.raises(EmbedTimeout, match=r"p0040\.jpg within 1 s"):
        lonely.producer.embed(names[40], timeout=1)
    assert time.monotonic() - began < 3
    assert bulk.wait(60).embedded == 40


@pytest.mark.slow
def test_the_demo_shows_all_of_it_and_leaves_nothing_running(tmp_path):
    """Its own Redis and worker, every sample embedded, copy and crop found, the ledger last, no process left."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("POSTERS_")}
    mark = f"MARK_{os.getpid()}_{time.time_ns()}"
    command = [sys.executable, "-m", "producer", "demo"]
    done = subprocess.run(
        command, cwd=PROJECT, env=environment | {mark: "1"}, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
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
    environment |= {mark: "1", "POSTERS_PRETRAINED": "untrained", "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-m", "producer", "demo"]
    process = subprocess.Popen(command, cwd=PROJECT, env=environment, stderr=subprocess.PIPE, text=True)
    assert any("the worker loads" in line for line in process.stderr)
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
