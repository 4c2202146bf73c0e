"""docker-compose.yml, Dockerfile, Makefile and the Windows service, as far as they can be checked here."""

import re
import shlex
import subprocess
import tomllib
from xml.etree import ElementTree

import pytest
import yaml

from producer.settings import PREFIX, Settings, load_settings
from tests.support.project import PROJECT
from worker.runtime.heartbeat import FORCE_S

COMPOSE = yaml.safe_load((PROJECT / "docker-compose.yml").read_text(encoding="utf-8"))
SERVICES = COMPOSE["services"]
DOCKERFILE = (PROJECT / "Dockerfile").read_text(encoding="utf-8")


def test_redis_keeps_the_queue():
    """AOF on, nothing evicted, a healthcheck, a volume, and no published port."""
    redis = SERVICES["redis"]
    (script,) = redis["command"]
    command = shlex.split(script)
    assert command[command.index("--appendonly") + 1] == "yes"
    assert command[command.index("--maxmemory-policy") + 1] == "noeviction"
    assert "redis-cli --user posters-backend ping" in redis["healthcheck"]["test"][1]
    assert redis["volumes"] == ["redis:/data", "./docs/redis.acl:/etc/redis.acl:ro"]
    assert "ports" not in redis
    assert redis["networks"] == ["inner"]
    assert COMPOSE["networks"]["inner"]["internal"] is True


def test_the_worker_has_one_card_and_the_cpu_profile_none():
    """One NVIDIA device reserved; the other profile runs where there is none."""
    (device,) = SERVICES["worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
    assert device["device_ids"] == ["${POSTERS_GPU:-0}"]
    assert SERVICES["worker-cpu"]["profiles"] == ["cpu"]
    assert "deploy" not in SERVICES["worker-cpu"]
    assert SERVICES["worker-cpu"]["environment"]["POSTERS_DEVICE"] == "cpu"
    assert SERVICES["producer"]["profiles"] == ["producer"]


@pytest.mark.parametrize("name", ["worker", "worker-cpu"])
def test_workers_restart_and_touch_nothing_they_need_not(name):
    """Restart, healthcheck, posters read-only, weights in a volume, Redis awaited."""
    service = SERVICES[name]
    assert service["restart"] == "unless-stopped"
    assert service["depends_on"]["redis"]["condition"] == "service_healthy"
    assert any(volume.endswith(":/app/posters:ro") for volume in service["volumes"])
    assert any(volume.startswith("models:") for volume in service["volumes"])
    assert int(service["stop_grace_period"].removesuffix("s")) > Settings().stop_s + FORCE_S + 5


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_has_no_more_rights_than_it_needs(name):
    """No capability, no way to gain one, and nothing of the image can be changed."""
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] is True
    assert service["tmpfs"] == ["/tmp"]
    assert "privileged" not in service


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_has_limits(name):
    """Of memory, processors and threads; its log has one by its driver."""
    service = SERVICES[name]
    memory = re.fullmatch(r"(\d+)g", filled_in(service["mem_limit"]))
    assert 0 < int(memory[1]) <= 8
    assert filled_in(service["cpus"]) == "0", "all, as long as nobody says how many"
    assert 0 < service["pids_limit"] <= 1024
    assert service["logging"] == {"driver": "local"}


def test_redis_is_full_before_the_kernel_ends_it():
    """At its maxmemory it refuses writes, and work waits; at the container's limit it dies."""
    (script,) = SERVICES["redis"]["command"]
    command = shlex.split(filled_in(script))
    most = int(command[command.index("--maxmemory") + 1].removesuffix("gb"))
    assert 2 * most <= int(filled_in(SERVICES["redis"]["mem_limit"]).removesuffix("g"))


def filled_in(text, **variables):
    """A value of the compose file with its variables replaced, `${NAME:-default}` and `${NAME:?message}` alike."""
    while match := re.search(r"\$\{(\w+):([-?])([^${}]*)\}", text):
        name, kind, default = match.groups()
        assert kind == "-" or name in variables, f"{name} is required"
        text = text.replace(match[0], variables.get(name) or default)
    return text.replace("$$", "$")


@pytest.mark.parametrize("name", ["worker", "worker-cpu", "producer", "serve"])
def test_every_variable_is_a_setting(name):
    """A variable that the program does not know would end it at its start."""
    known = {f"{PREFIX}{field.upper()}" for field in Settings.model_fields}
    used = {variable for variable in SERVICES[name]["environment"] if variable.startswith(PREFIX)}
    assert used
    assert used <= known


@pytest.mark.parametrize("name", ["worker", "worker-cpu", "producer", "serve"])
def test_the_variables_make_settings(name, monkeypatch):
    """As compose fills them in where nobody has set anything; what is empty is as good as absent."""
    passwords = {"REDIS_WORKER_PASSWORD": "w0rk", "REDIS_BACKEND_PASSWORD": "b4ck"}
    for variable, text in SERVICES[name]["environment"].items():
        monkeypatch.setenv(variable, filled_in(text, **passwords))
    settings = load_settings()
    user = "posters-worker:w0rk" if name.startswith("worker") else "posters-backend:b4ck"
    assert (settings.redis_url, settings.store) == (f"redis://{user}@redis:6379/0", f"redis://{user}@redis:6379/1")
    assert settings.precision == "auto"
    assert settings.device == ("cpu" if name == "worker-cpu" else "auto")


def test_ports_are_for_this_machine_alone():
    """Whoever wants others in puts a proxy with TLS before them."""
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(ports) == 3
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_the_profile_observe_runs_prometheus_and_grafana():
    """Of pinned versions, with the files of deploy/, and with what those files name."""
    assert {name for name, service in SERVICES.items() if "observe" in service.get("profiles", [])} == {
        "serve",
        "prometheus",
        "grafana",
    }
    for name in ("prometheus", "grafana"):
        assert re.search(r":v?\d+\.\d+\.\d+$", SERVICES[name]["image"])
        for volume in SERVICES[name]["volumes"]:
            if volume.startswith("./"):
                assert (PROJECT / volume.split(":")[0]).exists(), volume
                assert volume.endswith(":ro")
    text = (PROJECT / "deploy" / "prometheus" / "prometheus.yml").read_text(encoding="utf-8")
    queue, worker = yaml.safe_load(text)["scrape_configs"]
    (served,), (scraped,) = (job["dns_sd_configs"] for job in (queue, worker))
    assert set(served["names"] + scraped["names"]) < set(SERVICES)
    assert str(scraped["port"]) == SERVICES["worker"]["environment"]["POSTERS_METRICS_PORT"]
    assert SERVICES["serve"]["ports"] == [f"127.0.0.1:8000:{served['port']}"]
    assert f"> {queue['authorization']['credentials_file']}\n" in SERVICES["prometheus"]["command"][0]
    source = PROJECT / "deploy" / "grafana" / "provisioning" / "datasources" / "prometheus.yml"
    (source,) = yaml.safe_load(source.read_text(encoding="utf-8"))["datasources"]
    assert source["url"] == "http://prometheus:9090"


@pytest.mark.parametrize("name", ["redis", "prometheus", "grafana"])
def test_commands_of_containers_are_shell_that_parses(name):
    """As Compose hands them to `sh`."""
    (script,) = SERVICES[name]["command"]
    subprocess.run(["sh", "-n"], input=script.replace("$$", "$"), text=True, check=True)


def test_every_volume_and_network_is_declared():
    """Compose refuses the file otherwise."""
    for service in SERVICES.values():
        assert set(service["networks"]) <= set(COMPOSE["networks"])
        named = {volume.split(":")[0] for volume in service.get("volumes", []) if volume[0] not in "./$"}
        assert named <= set(COMPOSE["volumes"])


def test_the_image_holds_what_runs_and_not_as_root():
    """Every source of a COPY is there, packages are all of ours, and the user is not root."""
    for line in re.findall(r"^COPY (.+)$", DOCKERFILE, re.MULTILINE):
        *sources, _ = line.split()
        assert all((PROJECT / source).exists() for source in sources), line
    for package in ("worker", "producer", "requirements.lock", "config.json"):
        assert re.search(rf"^COPY .*\b{re.escape(package)}\b", DOCKERFILE, re.MULTILINE)
    assert re.search(r"^USER posters$", DOCKERFILE, re.MULTILINE)
    assert DOCKERFILE.index("USER posters") < DOCKERFILE.index("CMD [")
    assert 'CMD ["celery", "-A", "worker", "worker"]' in DOCKERFILE


def test_the_package_and_the_requirements_agree():
    """What pyproject.toml lists for backends and workers is, together, requirements.txt; what is off, of the tests."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    off = extras.pop("formats")
    listed = [*project["dependencies"], *(name for extra in extras.values() for name in extra)]
    listed = [name for name in listed if not name.startswith(f"{project['name']}[")]  # an extra that is part of another

    def required(name):
        lines = (PROJECT / name).read_text(encoding="utf-8").splitlines()
        return sorted(filter(None, (line.partition("#")[0].strip() for line in lines)))

    assert sorted(listed) == required("requirements.txt")
    assert set(off) <= set(required("requirements-dev.txt"))


def test_the_engine_has_the_version_of_the_project():
    """It asks for exactly that version, with the extra that brings its libraries."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    engine = tomllib.loads((PROJECT / "worker" / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert engine["version"] == project["version"]
    assert engine["requires-python"] == project["requires-python"]
    assert engine["dependencies"] == [f"{project['name']}[worker]=={project['version']}"]


def test_a_backend_needs_no_torch():
    """Its list names nothing that brings the model along."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert not [name for name in project["dependencies"] if re.match("torch|open|pillow|safetensors", name)]


def test_make_help_lists_every_target():
    """Each documented target exists; `make` alone changes nothing."""
    done = subprocess.run(["make"], cwd=PROJECT, capture_output=True, text=True, check=True)
    listed = set(re.findall(r"make ([a-z-]+)", done.stdout))
    assert {"setup", "demo", "unit", "test", "lint", "shuffle", "matrix", "chaos", "fuzz", "bench"} <= listed


def test_ci_runs_the_readmes_command():
    """One way to prove it, for people and for machines."""
    assert "make test" in (PROJECT / ".ci" / "run").read_text()
    assert "`make test`" in (PROJECT / "README.md").read_text(encoding="utf-8")


def test_the_readmes_commands_are_commands_of_ours():
    """Every `python -m producer X` that the documentation names exists."""
    from producer.__main__ import main

    for page in [PROJECT / "README.md", *(PROJECT / "docs").glob("*.md")]:
        for name in re.findall(r"python -m producer ([a-z]+)", page.read_text(encoding="utf-8")):
            assert name in main.commands, f"{page.name}: {name}"


def test_the_healthcheck_is_shell_that_parses():
    """And asks this container's own worker, whose name is made of its host's."""
    kind, command = SERVICES["worker"]["healthcheck"]["test"]
    assert kind == "CMD-SHELL"
    assert shlex.split(command) == ["python", "-m", "producer", "ready", "--worker", "posters@$$HOSTNAME"]
    check = SERVICES["worker"]["healthcheck"]
    assert (check["interval"], check["retries"]) == ("10s", 1), "a fault is shown within 30 s of its begin"


def test_a_release_is_installed_by_hashes():
    """requirements.lock: every version is that of constraints.txt, everything has a hash, and no registry is named."""
    text = (PROJECT / "requirements.lock").read_text(encoding="utf-8")
    assert "://" not in text
    entries = text.replace("\\\n", " ").splitlines()
    versions = dict(entry.split()[0].split("==") for entry in entries)
    assert all(re.search("--hash=sha256:[0-9a-f]{64}( |$)", entry) for entry in entries)
    constraints = (PROJECT / "constraints.txt").read_text(encoding="utf-8")
    tested = {
        re.sub("[-_.]+", "-", name).lower(): version
        for name, version in re.findall(r"^([\w.-]+)==(\S+)$", constraints, re.MULTILINE)
    }
    assert not {name: version for name, version in versions.items() if tested.get(name, version) != version}
    required = (PROJECT / "requirements.txt").read_text(encoding="utf-8")
    names = set(re.findall(r"^([\w-]+)", required, re.MULTILINE))
    assert names <= set(versions)
    assert "--require-hashes --requirement requirements.lock" in DOCKERFILE


def test_torch_of_another_index_is_installed_without_what_pypi_has_of_it(tmp_path):
    """The Dockerfile's filters, run on the real file: its version is kept, everything else keeps its hashes."""
    (tmp_path / "requirements.lock").write_bytes((PROJECT / "requirements.lock").read_bytes())
    (torch,) = re.findall(r"\$\((sed .*?requirements\.lock)\)", DOCKERFILE)
    (rest,) = re.findall(r"(awk '.*?' requirements\.lock)", DOCKERFILE)
    run = {"shell": True, "cwd": tmp_path, "capture_output": True, "text": True, "check": True}
    assert re.fullmatch(r"torch==\S+\ntorchvision==\S+\n", subprocess.run(torch, **run).stdout)
    kept = subprocess.run(rest, **run).stdout
    assert not re.search(r"^(torch|torchvision|triton|nvidia-.*|cuda-.*)==", kept, re.MULTILINE)
    assert re.search(r"^celery==\S+ \\\n +--hash", kept, re.MULTILINE)
    assert kept.count("==") > 40


def test_the_windows_service_names_what_is_ours():
    """Its command, settings that the program knows, and time to stop; it is started again, and not for ever."""
    service = ElementTree.parse(PROJECT / "deploy" / "windows" / "posters-worker.xml").getroot()
    assert service.findtext("arguments").startswith("-A worker worker --hostname ")
    names = {variable.get("name") for variable in service.findall("env")}
    assert {name for name in names if name.startswith(PREFIX)} <= {
        f"{PREFIX}{name.upper()}" for name in Settings.model_fields
    }
    assert int(service.findtext("stoptimeout").split()[0]) > Settings().stop_s + FORCE_S + 5
    actions = [failure.get("action") for failure in service.findall("onfailure")]
    assert (actions[0], actions[-1]) == ("restart", "none")
