"""deploy/kubernetes: against Kubernetes' own schemas, its rules for restricted pods, and our settings."""

import re

import kubernetes_validate
import pytest
import yaml

from producer.settings import PREFIX, Settings, load_settings
from tests.support.project import PROJECT
from worker.runtime.heartbeat import FORCE_S

FOLDER = PROJECT / "deploy" / "kubernetes"
KUSTOMIZATION = yaml.safe_load((FOLDER / "kustomization.yaml").read_text(encoding="utf-8"))
OBJECTS = {
    f"{entry['kind']} {entry['metadata']['name']}": entry
    for name in KUSTOMIZATION["resources"]
    for entry in yaml.safe_load_all((FOLDER / name).read_text(encoding="utf-8"))
}
VERSIONS = ("1.31", kubernetes_validate.latest_version())


def template_of(entry):
    """The pod that an object makes; None where it makes none."""
    spec = entry.get("spec", {})
    return (spec.get("jobTemplate", {}).get("spec") or spec).get("template", {}).get("spec")


PODS = {name: template for name, entry in OBJECTS.items() if (template := template_of(entry))}
OURS = {name: pod for name, pod in PODS.items() if pod["containers"][0]["image"] == "poster-embedding-queue"}


def variables_of(pod):
    """The environment of its container, secrets filled in; a reference to an earlier one is replaced."""
    (container,) = pod["containers"]
    variables = dict(OBJECTS["ConfigMap posters-settings"]["data"]) if "envFrom" in container else {}
    for entry in container["env"]:
        text = entry.get("value", "s3cretof16letters")
        variables[entry["name"]] = re.sub(r"\$\((\w+)\)", lambda found: variables[found[1]], text)
    return variables


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", OBJECTS)
def test_kubernetes_knows_every_field(name, version):
    """By the schemas of a version; `strict` refuses unknown fields."""
    kubernetes_validate.validate(OBJECTS[name], version, strict=True)


def test_every_file_is_applied():
    """None is forgotten in the list."""
    assert {path.name for path in FOLDER.glob("*.yaml")} == {"kustomization.yaml", *KUSTOMIZATION["resources"]}
    assert {image["name"] for image in KUSTOMIZATION["images"]} == {"poster-embedding-queue"}


@pytest.mark.parametrize("name", PODS)
def test_every_pod_is_restricted(name):
    """As the namespace demands, and with a read-only root, limits, and no token for the cluster."""
    pod = PODS[name]
    assert OBJECTS["Namespace posters"]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {"cpu", "memory"} <= set(container["resources"]["limits"])


@pytest.mark.parametrize("name", OURS)
def test_the_variables_make_settings(name, monkeypatch):
    """Each is one that the program knows, and secrets are references."""
    pod = OURS[name]
    variables = variables_of(pod)
    known = {f"{PREFIX}{field.upper()}" for field in Settings.model_fields}
    assert {variable for variable in variables if variable.startswith(PREFIX)} <= known
    monkeypatch.setenv("POSTERS_CONFIG", "none")
    for variable, text in variables.items():
        monkeypatch.setenv(variable, text)
    user = "posters-worker" if "worker" in name else "posters-backend"
    assert load_settings().redis_url == f"redis://{user}:s3cretof16letters@posters-redis:6379/0"
    assert load_settings().store == f"redis://{user}:s3cretof16letters@posters-redis:6379/1"
    secret = [entry for entry in pod["containers"][0]["env"] if entry["name"].endswith(("PASSWORD", "TOKEN"))]
    assert all("value" not in entry for entry in secret)


def test_the_token_is_demanded():
    """Of whoever reaches the service, by a name that browsers may use."""
    serve = variables_of(PODS["Deployment posters-serve"])
    assert serve["POSTERS_WEB_TOKEN"]
    assert "posters-serve" in serve["POSTERS_WEB_HOSTS"].split(",")


def test_a_worker_has_one_card_and_time_to_stop():
    """A second one beside it would wait for the card; what it does with a batch at its end takes up to 40 s."""
    worker = OBJECTS["Deployment posters-worker"]["spec"]
    pod = worker["template"]["spec"]
    assert worker["strategy"] == {"type": "Recreate"}
    assert worker["replicas"] == 1
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert pod["terminationGracePeriodSeconds"] > Settings().stop_s + FORCE_S + 5
    limits = pod["containers"][0]["resources"]["limits"]
    assert variables_of(pod)["POSTERS_DECODE_THREADS"] == limits["cpu"]


def test_a_workers_metrics_can_be_scraped():
    """At the port that the container declares, from other pods."""
    pod = PODS["Deployment posters-worker"]
    (port,) = pod["containers"][0]["ports"]
    variables = variables_of(pod)
    assert (port["name"], str(port["containerPort"])) == ("metrics", variables["POSTERS_METRICS_PORT"])
    assert variables["POSTERS_METRICS_HOST"] == "0.0.0.0"


@pytest.mark.parametrize(
    ("probe", "option"), [("startupProbe", "--live"), ("readinessProbe", ""), ("livenessProbe", "--live")]
)
def test_a_worker_is_asked_for_what_the_answer_decides(probe, option):
    """Loading for long is alive: only what a restart mends makes Kubernetes restart it."""
    (container,) = PODS["Deployment posters-worker"]["containers"]
    shell, flag, command = container[probe]["exec"]["command"]
    assert (shell, flag) == ("sh", "-c")
    assert command.split() == f"python -m producer ready {option} --worker posters@$HOSTNAME".split()


def test_redis_keeps_the_queue():
    """Its log on a volume that survives the pod; it evicts nothing, and is full before the kernel ends it."""
    redis = OBJECTS["StatefulSet posters-redis"]["spec"]
    (container,) = redis["template"]["spec"]["containers"]
    (script,) = container["args"]
    for option in ("--appendonly yes", "--maxmemory-policy noeviction", "--maxmemory 4gb", "--dir /data"):
        assert option in script
    assert container["resources"]["limits"]["memory"] == "8Gi"
    assert redis["volumeClaimTemplates"][0]["metadata"]["name"] == "data"
    policy = OBJECTS["NetworkPolicy posters-redis"]["spec"]
    assert policy["ingress"][0]["from"] == [{"podSelector": {"matchLabels": {"app": "posters"}}}]


def test_every_claim_is_made_and_every_selector_finds_its_pods():
    """A name that is misspelled would leave a pod pending, and a service without one."""
    claims = {name.split()[1] for name in OBJECTS if name.startswith("PersistentVolumeClaim")}
    used = {
        volume["persistentVolumeClaim"]["claimName"]
        for pod in PODS.values()
        for volume in pod["volumes"]
        if "persistentVolumeClaim" in volume
    }
    assert used == claims
    labels = [
        entry["spec"]["template"]["metadata"]["labels"]
        for name, entry in OBJECTS.items()
        if name.startswith(("Deployment", "StatefulSet"))
    ]
    for name, entry in OBJECTS.items():
        if name.startswith("Service "):
            assert entry["spec"]["selector"] in labels
