"""The documentation as a site: it builds, what it links is there, and nothing is fetched from other sites."""

import re
import subprocess
import sys
from html import unescape
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import descant

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    build = tmp_path_factory.mktemp("build") / "build"
    script = ROOT / "benchmarks" / "docs_site.py"
    done = subprocess.run([sys.executable, script, build], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    return build / "site"


@pytest.fixture(scope="module")
def pages(site):
    return {path.relative_to(site).as_posix(): path.read_text(encoding="utf-8") for path in site.rglob("*.html")}


@pytest.fixture(scope="module")
def ids(pages):
    return {name: set(re.findall(r'\bid="?([^"\s>]+)', html)) for name, html in pages.items()}


def test_every_page_is_in_the_site_and_in_its_navigation(site):
    navigation = (ROOT / "mkdocs.yml").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert re.search(rf"- {re.escape(page.name)}$", navigation, flags=re.MULTILINE), (
            f"nav of mkdocs.yml: {page.name}"
        )
        assert page.stem == "index" or (site / page.stem / "index.html").exists()
    assert {"contributing", "changelog"} <= {path.name for path in site.iterdir()}


def test_every_link_leads_somewhere(site, pages, ids):
    broken = set()
    for name, text in pages.items():
        if name == "404.html":  # its links begin at the root of a server
            continue
        for found in set(re.findall(r'\b(?:href|src)="?([^"\s>]+)', text)):
            link = urlsplit(unescape(found))
            if link.scheme or link.netloc or link.path.startswith("/"):
                continue
            target = (site / name).parent / unquote(link.path) if link.path else site / name
            target = (target / "index.html" if target.is_dir() else target).resolve()
            page = target.relative_to(site.resolve()).as_posix() if target.suffix == ".html" else None
            if not target.exists() or (page and link.fragment and unquote(link.fragment) not in ids[page]):
                broken.add((name, found))
    assert not broken


def test_nothing_is_fetched_from_other_sites(pages):
    for name, text in pages.items():
        fetched = re.findall(r'<(?:script|img|iframe|source)\b[^>]*\bsrc="?((?:https?:)?//[^"\s>]+)', text)
        fetched += re.findall(r'<link\b[^>]*rel="?(?:stylesheet|preconnect)[^>]*href="?((?:https?:)?//[^"\s>]+)', text)
        assert not fetched, name


def test_every_public_name_has_its_reference_and_is_found(site, ids):
    missing = {f"descant.{name}" for name in descant.__all__} - ids["api/index.html"]
    assert not missing, "docs/api.md lists all names"
    found = (site / "search.json").read_text(encoding="utf-8")
    assert all(text in found for text in ("GraderEvalCallback", "callback_budget", "Keep a Changelog"))
