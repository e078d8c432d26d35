"""The figures of the house: how large the code is and what importing it costs, with limits. Part of ``make check``.

python benchmarks/house.py               the working tree against commit 0633e16; exit status 1 where a limit is broken
python benchmarks/house.py REVISION      the same against another revision, of which only files are read
python benchmarks/house.py --save PATH   write the figures of the working tree as JSON
"""

import argparse
import ast
import io
import json
import statistics
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
BEFORE = Path(__file__).parent / "house-0633e16.json"
PROCESSES = 5

LIMITS = {
    "lines": 28_000,  # 24,000 until previews, sample pages, settings of all trainers and the mode "auto" came
    "largest file, lines": 500,
    "largest function, lines": 60,
    "runtime dependencies": 11,
    "modules of torch after `descant --help`": 0,
    "import of the callback runner, s": 0.15,
}
NOT_HELD = {
    "import of the callback runner, s",  # a busy machine is no fault of the code
}

RUNNER = """
import time
started_at = time.perf_counter()
import descant.runner.callback_runner
print(time.perf_counter() - started_at)
"""
HELP = """
import sys, time
started_at = time.perf_counter()
from descant.cli.app import app
sys.argv = ["descant", "--help"]
try:
    app()
except SystemExit:
    pass
print(time.perf_counter() - started_at, sum(name.partition(".")[0] == "torch" for name in sys.modules))
"""


def function_lengths(source):
    """(name, lines) of each function of a module; its signature and docstring do not count."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            has_docstring = isinstance(node.body[0], ast.Expr) and isinstance(node.body[0].value, ast.Constant)
            first = node.body[1] if has_docstring and len(node.body) > 1 else node.body[0]
            yield node.name, node.end_lineno - first.lineno + 1


def sizes(root):
    """(file, lines) of each file under ``src``, and (file: function, lines) of each function in them."""
    files, functions = [], []
    for path in sorted((root / "src").rglob("*.py")):
        source, name = path.read_text(encoding="utf-8"), str(path.relative_to(root))
        files.append((name, len(source.splitlines())))
        functions += [(f"{name}: {function}", length) for function, length in function_lengths(source)]
    return files, functions


def static_figures(root):
    """What can be read from the files of a revision, without running them."""
    file_lines, function_lines = ([lines for _, lines in found] for found in sizes(root))
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = project["tool"]["importlinter"]["contracts"]
    return {
        "files": len(file_lines),
        "lines": sum(file_lines),
        "median file, lines": statistics.median(file_lines),
        "largest file, lines": max(file_lines),
        "functions": len(function_lines),
        "median function, lines": statistics.median(function_lines),
        "largest function, lines": max(function_lines),
        "public names": num_public_names(root / "src" / "descant" / "__init__.py"),
        "runtime dependencies": len(project["project"]["dependencies"]),
        "layers": sum(len(contract.get("layers", ())) for contract in contracts),
    }


def num_public_names(path):
    """How many names ``__all__`` lists."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "__all__":
            return len(ast.literal_eval(node.value))
    raise ValueError(f"{path} has no __all__")


def import_figures():
    """What imports cost in the working tree: the quickest of a few fresh processes, without the interpreter's start."""
    runner = [float(output_of(RUNNER)) for _ in range(PROCESSES)]
    helps = [output_of(HELP).splitlines()[-1].split() for _ in range(PROCESSES)]
    return {
        "import of the callback runner, s": min(runner),
        "`descant --help`, s": min(float(seconds) for seconds, _ in helps),
        "modules of torch after `descant --help`": max(int(num_modules) for _, num_modules in helps),
    }


def output_of(code):
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT / 'src')!r})\n{code}"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def revision_figures(revision):
    """The static figures of a revision of this repository."""
    archive = subprocess.run(
        ["git", "archive", "--format=tar", revision, "src", "pyproject.toml"], cwd=ROOT, check=True, capture_output=True
    )
    with tempfile.TemporaryDirectory() as folder, tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(folder, filter="data")
        return static_figures(Path(folder))


def broken_limits(figures):
    """The limits that are broken, in words, with what breaks them."""
    files, functions = sizes(ROOT)
    largest = {"largest file, lines": files, "largest function, lines": functions}
    problems = []
    for name, limit in LIMITS.items():
        if name not in NOT_HELD and figures[name] > limit:
            culprits = [f"{what} ({lines})" for what, lines in largest.get(name, ()) if lines > limit]
            problems.append(f"{name}: {figures[name]}, more than {limit}" + "".join(f"\n  {what}" for what in culprits))
    return problems


def shown(value):
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.2f}".removesuffix(".00")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision", nargs="?", help="the revision to compare with")
    parser.add_argument("--save", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    before = revision_figures(arguments.revision) if arguments.revision else json.loads(BEFORE.read_text())
    after = {**static_figures(ROOT), **import_figures()}
    print(f"\n| src/ | {arguments.revision or BEFORE.stem.removeprefix('house-')} | now | limit |\n|---|---|---|---|")
    for name, value in after.items():
        print(f"| {name} | {shown(before.get(name))} | {shown(value)} | {shown(LIMITS.get(name))} |")
    if arguments.save:
        arguments.save.write_text(json.dumps(after, indent=2) + "\n")
    if problems := broken_limits(after):
        sys.exit("\n" + "\n".join(problems))


if __name__ == "__main__":
    main()
