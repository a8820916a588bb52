"""What builds the images and runs containers. `make test-container` runs these tests; they need a container engine."""

import subprocess

import pytest

from tests.support.service import ROOT

BUILD_WITHIN_S = 1200.0


def docker(*arguments, code=0, within_s=60.0, **more):
    """Return what the docker client prints, without the newline at the end."""
    done = subprocess.run(
        ["docker", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=within_s, check=False, **more
    )
    assert done.returncode == code, f"docker {' '.join(arguments)}: {done.stdout}{done.stderr}"
    return (done.stdout + done.stderr).rstrip("\n")


@pytest.fixture(scope="session")
def images():
    """Build both images as an operator does, and return their names."""
    done = subprocess.run(
        ["make", "container"], cwd=ROOT, capture_output=True, text=True, timeout=BUILD_WITHIN_S, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return "order-service:local", "order-service-cli:local"


@pytest.fixture
def run():
    return docker
