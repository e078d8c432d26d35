"""The packages of a machine that ``make gpu`` runs on: what is too old or missing, and installing that from wheels."""

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

REQUIREMENTS = Path(__file__).parent / "gpu-requirements.txt"
NEEDED = ["torch>=2.11", "transformers>=5.17"]
"""What the machine has to bring."""


def required():
    """The requirements other than torch and Transformers, as the file lists them."""
    lines = REQUIREMENTS.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def problem(requirement):
    """Why a requirement such as ``rich>=13.7`` is not met; None if it is."""
    name, least = requirement.split(">=")
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return f"{requirement} is not installed"
    return None if _release(version) >= _release(least) else f"{requirement} is needed, {version} is installed"


def install(requirements, wheels, target):
    """Install into a folder, from wheels of another folder and nothing else, and use that from here on.

    Raises:
        CalledProcessError: the wheels lack something; pip has said what.
    """
    options = ["--quiet", "--disable-pip-version-check", "--no-index", "--find-links", wheels, "--target", target]
    command = [sys.executable, "-m", "pip", "install", *options, "--upgrade", *requirements]
    subprocess.run(list(map(str, command)), check=True)


def _release(version):
    """The first numbers of a version: (2, 11) of ``2.11.0a0+git``."""
    return tuple(int(number) for number in re.findall(r"\d+", version.partition("+")[0])[:2])
