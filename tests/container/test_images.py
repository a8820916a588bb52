"""The images: what they are made of, and how they run without rights."""

import json
import re
import subprocess
import time
from uuid import uuid4

import pytest

from order_service import __version__
from tests.support.service import ROOT, until

SIZE_MAX_BYTES = 250_000_000
HARDENED = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")
USER = "10001"
NO_KAFKA = "127.0.0.1:1"
BUILD_TOOLS = "pip pip3 setuptools wheel gcc cc make strip ld git"
SBOM = "/opt/orders/sbom.cdx.json"

pytestmark = pytest.mark.timeout(1300)  # the first test builds the images


@pytest.fixture(params=["service", "cli"])
def image(images, request):
    return images[["service", "cli"].index(request.param)]


@pytest.fixture
def service(images):
    return images[0]


def python(run, image, program, *options, code=0):
    return run("run", "--rm", *HARDENED, *options, "--entrypoint", "python", image, "-c", program, code=code)


def config(run, image):
    [described] = json.loads(run("image", "inspect", image))
    return described


def pins(lock):
    return set(re.findall(r"^([a-z0-9-]+)==(\S+)", (ROOT / lock).read_text(), flags=re.MULTILINE))


def test_an_image_is_small(run, image):
    assert config(run, image)["Size"] <= SIZE_MAX_BYTES


def test_an_image_runs_as_a_user_and_declares_no_volume(run, image):
    described = config(run, image)["Config"]
    assert described["User"] == USER
    assert not described.get("Volumes")
    assert described["Entrypoint"] == ["order-service"]


def test_an_image_has_oci_labels(run, image):
    labels = config(run, image)["Config"]["Labels"]
    revision = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    of_image = {name.removeprefix("org.opencontainers.image."): value for name, value in labels.items()}
    assert of_image.keys() == {"title", "description", "licenses", "version", "revision", "created"}
    assert (of_image["licenses"], of_image["version"]) == ("MIT", __version__)
    assert of_image["revision"] == revision.stdout.strip()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(Z|[+-]\d\d:\d\d)", of_image["created"])


def test_an_image_has_no_tools_to_build_or_to_install(run, image):
    program = (
        "import importlib.util, shutil;"
        f"print([name for name in '{BUILD_TOOLS}'.split() if shutil.which(name) or importlib.util.find_spec(name)])"
    )
    assert python(run, image, program) == "[]"


@pytest.mark.parametrize(("number", "lock"), [(0, "requirements.lock"), (1, "requirements-cli.lock")])
def test_the_sbom_lists_what_is_installed_and_pinned(run, images, number, lock):
    installed = (
        "import importlib.metadata as metadata, json;"
        "print(json.dumps([[of.name, of.version] for of in metadata.distributions(path=[p for p in"
        " __import__('sys').path if p.startswith('/opt/orders')])]))"
    )
    canonical = lambda pairs: {(re.sub(r"[-_.]+", "-", name).lower(), version) for name, version in pairs}  # noqa: E731
    bom = json.loads(python(run, images[number], f"print(open('{SBOM}').read())"))
    assert bom["bomFormat"] == "CycloneDX"
    listed = canonical((part["name"], part["version"]) for part in [*bom["components"], bom["metadata"]["component"]])
    assert listed == canonical(json.loads(python(run, images[number], installed)))
    assert listed - {("order-service", __version__)} <= pins(lock)


def test_only_the_data_folder_can_be_written_whoever_runs_it(run, service):
    program = (
        "import pathlib\n"
        "for name in ('/data/x', '/opt/orders/x', '/x', '/tmp/x'):\n"
        "    try: pathlib.Path(name).touch(); print(name)\n"
        "    except OSError: pass"
    )
    for user in (USER, "12345:0"):
        options = ("--user", user, "--mount", "type=volume,target=/data")  # `--rm` removes an unnamed volume
        assert python(run, service, program, *options) == "/data/x"


@pytest.mark.parametrize("process", ["worker", "projector", "web"])
def test_a_process_is_number_one_alive_without_kafka_and_ends_on_sigterm(run, service, process):
    name = f"order-service-test-{uuid4().hex[:8]}"
    options = ("--name", name, "--tmpfs", "/data:uid=10001", "--health-interval", "1s")
    run("run", "--detach", *HARDENED, *options, "--env", f"KAFKA_BOOTSTRAP_SERVERS={NO_KAFKA}", service, process)
    try:
        until(lambda: run("inspect", "--format", "{{.State.Health.Status}}", name) == "healthy", "it is healthy")
        command = run("exec", name, "python", "-c", "print(open('/proc/1/cmdline').read().replace(chr(0), ' '))")
        assert "order-service" in command
        stopped_at = time.monotonic()
        run("stop", "--time", "30", name)
        assert time.monotonic() - stopped_at < 15
        assert run("inspect", "--format", "{{.State.ExitCode}}", name) == "0"
    finally:
        run("rm", "--force", "--volumes", name)


def test_a_secret_may_be_in_a_file(run, service, tmp_path):
    secret = tmp_path / "password"
    secret.write_text("made-up\n")
    secret.chmod(0o444)
    tmp_path.chmod(0o755)
    options = ("--volume", f"{secret}:/run/secrets/password:ro", "--env", "ORDERS_TOKEN_FILE=/run/secrets/password")
    shown = run("run", "--rm", *HARDENED, *options, service, "config")
    assert re.search(r"ORDERS_TOKEN\b.*\*{10}", shown)
    assert "made-up" not in shown


def test_the_small_image_has_the_sdk_and_the_command_line(run, images):
    service, cli = images
    assert config(run, cli)["Size"] < config(run, service)["Size"]
    assert __version__ in run("run", "--rm", *HARDENED, cli, "--version")
    assert "OrderCreated" in run("run", "--rm", *HARDENED, cli, "schemas", "list")
    assert python(run, cli, "from order_service.sdk import OrderCommands; print('imported')") == "imported"
    refused = run("run", "--rm", *HARDENED, "--env", f"KAFKA_BOOTSTRAP_SERVERS={NO_KAFKA}", cli, "worker", code=1)
    assert refused == "order-service: faust is not installed: pip install 'order-service[service]'"
