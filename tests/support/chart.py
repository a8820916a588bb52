"""The Helm chart as `helm template` renders it."""

import shutil
import subprocess
from functools import cache
from pathlib import Path

import yaml

from tests.support.service import ROOT

CHART = ROOT / "deploy" / "helm" / "order-service"
TOOLS = ROOT / ".tools"
VALUE_SETS = ("minimal", "production", "everything")
PROCESSES = ("worker", "projector", "web")
NEWEST = "1.37.0"
"""The newest version of Kubernetes whose schemas `make chart` installs."""


def tool(name):
    """Return the path of a tool that `make chart` installs or finds. Raises FileNotFoundError without it."""
    path = TOOLS / "bin" / name
    if path.exists():
        return path
    if found := shutil.which(name):
        return Path(found)
    raise FileNotFoundError(f"{path} is missing: run `make chart`")


def values_file(name):
    return CHART / "ci" / f"{name}.yaml"


def helm_template(*arguments, version=NEWEST):
    """Return what `helm template` did: its status, its output and its errors."""
    command = [tool("helm"), "template", "shop", CHART, "--namespace", "shop", "--kube-version", version, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@cache
def rendered_text(name, *arguments, version=NEWEST):
    """Return the manifests of a set of values."""
    done = helm_template("--values", values_file(name), *arguments, version=version)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rendered(name, *arguments):
    """Return the resources of a set of values."""
    return [resource for resource in yaml.safe_load_all(rendered_text(name, *arguments)) if resource]


def of_kind(resources, *kinds):
    return [resource for resource in resources if resource["kind"] in kinds]


def workloads(resources):
    """Return what has pods: one for each process, but one for each projector."""
    return of_kind(resources, "StatefulSet", "Deployment")


def process_of(resource):
    return resource["metadata"]["labels"]["app.kubernetes.io/component"]


def pods(resources):
    """Return the pod template of each process; of several projectors, that of the last one."""
    by_process = {process_of(workload): workload["spec"]["template"] for workload in workloads(resources)}
    assert sorted(by_process) == sorted(PROCESSES)
    return by_process


def container(pod):
    [only] = pod["spec"]["containers"]
    return only


def environment(pod):
    """Return the variables of a pod; one that Kubernetes fills in has the path of the field."""
    return {
        entry["name"]: entry["value"] if "value" in entry else entry["valueFrom"]["fieldRef"]["fieldPath"]
        for entry in container(pod)["env"]
    }


WHOLE = ("podSecurityContext", "securityContext", "resources")
"""Values that are parts of a pod, as Kubernetes documents them."""


def flattened(values, above=""):
    """Yield the path of each value of values.yaml: worker.replicas. A value that is empty by default is one path."""
    for name, value in values.items():
        if isinstance(value, dict) and value and name not in WHOLE:
            yield from flattened(value, f"{above}{name}.")
        else:
            yield f"{above}{name}"


def values():
    return yaml.safe_load(Path(CHART / "values.yaml").read_text(encoding="utf-8"))
