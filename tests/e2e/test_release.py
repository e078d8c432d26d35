"""What is released: a wheel that runs where nothing of the repository is, and a description that an index shows."""

import email
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from readme_renderer import markdown

import descant

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def run(arguments, cwd):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(arguments, cwd=cwd, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """A folder with the source distribution, and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT], folder)
    return folder


@pytest.fixture(scope="module")
def metadata(dist):
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name))


def test_the_wheel_has_the_package_and_nothing_else(dist):
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    sources = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src" / "descant").rglob("*")}
    expected = {name for name in sources if "." in Path(name).name and "__pycache__" not in name}
    folder = f"descant-{descant.__version__}.dist-info"
    assert "descant/py.typed" in expected
    added = {f"{folder}/{name}" for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE")}
    assert names == expected | added


def test_the_source_distribution_has_what_its_tests_need(dist):
    (source,) = dist.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "CHANGELOG.md", "constraints.txt", "tests/conftest.py", "examples/addition/train.py"} <= names
    assert not {name for name in names if name.startswith((".venv", "runs", "build"))}


def test_it_runs_in_an_environment_without_the_repository(dist, tmp_path):
    """The dependencies are those of this environment, without its own descant."""
    (wheel,) = dist.glob("*.whl")
    venv.create(tmp_path / "new", with_pip=False, symlinks=True)
    python = tmp_path / "new" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index", "--no-deps"]
    run([*pip, wheel], tmp_path)
    (packages,) = (tmp_path / "new" / "lib").glob("*/site-packages")
    assert run([python, "-c", "import descant; print(descant.__file__)"], tmp_path).strip() == str(
        packages / "descant" / "__init__.py"
    )
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    command = tmp_path / "new" / "bin" / "descant"
    assert run([command, "--version"], tmp_path) == f"descant {descant.__version__}\n"
    assert "Usage: descant" in run([command, "--help"], tmp_path)
    assert run([command, "new", "recipe", "mine"], tmp_path)
    assert (tmp_path / "mine.py").exists()
    names = "import descant; [getattr(descant, name) for name in descant.__all__]"
    run([python, "-W", "error::FutureWarning", "-c", names], tmp_path)


def test_an_index_shows_the_readme_with_pictures_and_links(metadata):
    address = PROJECT["project"]["urls"]["Repository"]
    shown = markdown.render(metadata.get_payload())
    assert shown, "the description does not render"
    linked = re.findall(r'(?:href|src)="([^"]+)"', shown)
    assert any(re.search(r"/raw/main/docs/images/\w+\.png$", link) for link in linked)
    for link in linked:
        assert link.startswith(("https://", "#")), f"{link} leads nowhere on an index"
        path = re.fullmatch(re.escape(address) + r"/(?:blob|raw)/main/([^#]+)(?:#.*)?", link)
        assert path is None or (ROOT / path[1]).exists(), f"{link}: there is no such file"
    assert any(link.startswith(f"{address}/blob/main/docs/") for link in linked)


def test_the_project_has_one_address():
    """It stands in pyproject.toml and in no other file; all others are made from it."""
    address = PROJECT["project"]["urls"]["Repository"]
    hook = PROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
    assert all(address in each["replacement"] for each in hook["substitutions"])
    owner = address.removeprefix("https://")
    listed = run(["git", "ls-files"], ROOT).splitlines() if (ROOT / ".git").exists() else []
    for name in listed:
        path = ROOT / name
        if name != "pyproject.toml" and path.suffix in {".md", ".py", ".toml", ".yml"} and path.exists():
            assert owner not in path.read_text(encoding="utf-8"), name


def test_versions_agree(metadata):
    assert metadata["Version"] == PROJECT["project"]["version"] == descant.__version__
    assert f"## [{descant.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
