"""The documentation as a site: ``make docs`` writes the pages of docs into build/site.

What a page links outside of docs is linked in the repository; CONTRIBUTING and CHANGELOG become pages. A page or
an anchor that is not there ends the build.
"""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import griffe

ROOT = Path(__file__).parent.parent
BESIDE = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
REPOSITORY = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]


class AsRead(griffe.Extension):
    """Examples in docstrings are code, and a field's default is what ``field`` has for it."""

    def on_object(self, *, obj, **_):
        """Fence the examples of an object's docstring."""
        if obj.docstring:
            text = obj.docstring.value
            obj.docstring.value = re.sub(r"(?m)(?:^>>> .*\n?(?:.+\n?)*)", "```pycon\n\\g<0>\n```\n", text)

    def on_attribute(self, *, attr, **_):
        """Replace a call of ``field`` by the default."""
        call = attr.value
        if isinstance(call, griffe.ExprCall) and str(call.function) == "field":
            given = {each.name: each.value for each in call.arguments if isinstance(each, griffe.ExprKeyword)}
            attr.value = given.get("default", given.get("default_factory"))


def as_page(text, folder):
    """The text of a page of ``folder``, linked as it has to be in the site."""

    def linked(match):
        path, anchor = match["path"], match["anchor"] or ""
        if re.match(r"\w+:|$", path):
            return match[0]
        target = (folder / path).resolve().relative_to(ROOT).as_posix()
        if target in BESIDE:
            return f"]({BESIDE[target]}{anchor})"
        if target.startswith("docs/"):
            return f"]({target.removeprefix('docs/')}{anchor})"
        assert (ROOT / target).exists(), f"{target} is linked and not there"
        return f"]({REPOSITORY}/blob/main/{target}{anchor})"

    blocks = re.split(r"(^```.*?^```|`[^`\n]*`)", text, flags=re.DOTALL | re.MULTILINE)
    return "".join(
        block if block.startswith("`") else re.sub(r"\]\((?P<path>[^)#\s]*)(?P<anchor>#[^)\s]*)?\)", linked, block)
        for block in blocks
    )


def main(build):
    """Write the pages into ``build``/docs and the site into ``build``/site."""
    pages = build / "docs"
    shutil.rmtree(build, ignore_errors=True)
    shutil.copytree(ROOT / "docs", pages)
    for name, page in BESIDE.items():
        (pages / page).write_text(as_page((ROOT / name).read_text(encoding="utf-8"), ROOT), encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        (pages / page.name).write_text(as_page(page.read_text(encoding="utf-8"), ROOT / "docs"), encoding="utf-8")
    config = (ROOT / "mkdocs.yml").read_text()
    config = config.replace("[src]", f"[{ROOT / 'src'}]").replace("[benchmarks/", f"[{ROOT}/benchmarks/")
    config += f"repo_url: {REPOSITORY}\n"
    (build / "mkdocs.yml").write_text(re.sub(r"(?m)^(\w+_dir): build/", r"\1: ", config))
    done = subprocess.run([sys.executable, "-m", "zensical", "build", "--strict"], cwd=build, check=False)
    print(build / "site" / "index.html")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "build").resolve()))
