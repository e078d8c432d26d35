"""Recipes: configs, how a file's function is found and called, what is said of what cannot work."""

import json
import subprocess
import sys
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, SecretStr, ValidationError, model_validator

from descant.errors import ConfigurationError
from descant.notifiers import JobNotifier
from descant.provenance import describe_environment, recipe_of_run
from descant.recipes import InputConfig, RecipeContext, recipe_main
from descant.recipes.config_values import apply_setting, parse_value, read_config, read_input
from descant.recipes.field_help import field_lines
from descant.recipes.recipe import load_recipe

SIMPLE = """
from descant.recipes import InputConfig, RecipeContext, recipe_main

class Config(InputConfig):
    lr: float = 1.0

@recipe_main
async def main(config: Config, ctx: RecipeContext):
    return ctx.name, config.lr
"""


class Optimizer(InputConfig):
    lr: float = Field(1e-3, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)


class Config(InputConfig):
    optimizer: Optimizer = Optimizer()
    label: str = "a"
    limit: int | None = None
    mode: int | str = 0
    stages: tuple[str, ...] = ()


@pytest.fixture(autouse=True)
def _modules_are_forgotten(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("mine", "helper", "main", "base", "package"):
            del sys.modules[name]


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def load(tmp_path, text, name="mine.py"):
    return load_recipe(write(tmp_path / name, text))


def refusal(function, *arguments):
    with pytest.raises(ConfigurationError) as caught:
        function(*arguments)
    return str(caught.value)


# Configs


def test_unknown_keys_are_refused_with_what_was_meant():
    with pytest.raises(ValidationError, match="did you mean 'label'"):
        Config(labl="b")
    with pytest.raises(ValidationError, match="did you mean 'lr'"):
        Config(optimizer={"lrr": 1})
    assert "keys are optimizer, label, limit, mode, stages" in refusal(Config.from_values, {"quux": 1})


def test_each_problem_is_one_line_with_key_value_and_what_is_allowed():
    values = {"optimizer": {"lr": -1, "betas": [0.5, "x"]}, "limit": "many", "mode": [], "labl": 1}
    assert refusal(Config.from_values, values, "c.toml").split("\n") == [
        "c.toml: 5 problems",
        "  optimizer.lr = -1: must be greater than 0",
        "  optimizer.betas.1 = 'x': must be a valid number, unable to parse string as a number",
        "  limit = 'many': must be a valid integer, unable to parse string as an integer",
        "  mode = []: must be a valid integer, or must be a valid string",
        "  labl = 1: there is no such key; did you mean 'label'?",
    ]


class Adam(InputConfig):
    kind: Literal["adam"] = "adam"
    lr: float = Field(1e-3, gt=0)


class SGD(InputConfig):
    kind: Literal["sgd"] = "sgd"
    momentum: float = Field(0.9, lt=1)


class Trained(InputConfig):
    by: Adam | SGD = Adam()
    told: Annotated[Adam | SGD, Field(discriminator="kind")] = Adam()
    others: tuple[Adam, ...] = ()
    pair: tuple[int, int] = (1, 2)
    last: SGD | None = None


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"by": {"momentum": 2}}, "by.momentum = 2: there is no such key; keys are kind, lr, or must be less than 1"),
        ({"by": 2}, "by = 2: must be a table (Adam), or must be a table (SGD)"),
        ({"told": {"kind": "sgd", "momentum": 2}}, "told.momentum = 2: must be less than 1"),
        ({"told": {"kind": "lion"}}, "told = {'kind': 'lion'}: kind is 'lion' and must be one of 'adam', 'sgd'"),
        ({"told": {"lr": 1}}, "told = {'lr': 1}: the key 'kind' is missing, which says what the others are"),
        ({"others": [{"lr": -1}]}, "others.0.lr = -1: must be greater than 0"),
        ({"others": "a"}, """others = 'a': must be a list, such as ["a", "b"] or [1, 2]"""),
        ({"pair": [1]}, "pair.1 is missing: give it in the config file, or with --set pair.1=VALUE"),
        ({"last": {"kind": "adam"}}, "last.kind = 'adam': must be 'sgd'"),
    ],
)
def test_a_problem_within_a_union_or_a_list_is_one_line(values, line):
    assert refusal(Trained.from_values, values) == f"the config: 1 problem\n  {line}"


def test_help_has_all_nested_keys_once():
    lines = [line.strip() for line in field_lines(Trained, 80)]
    assert [line.partition(":")[0] for line in lines] == [
        "by", "by, if Adam", "by.kind", "by.lr", "by, if SGD", "by.kind", "by.momentum",
        "told", "told, if Adam", "told.kind", "told.lr", "told, if SGD", "told.kind", "told.momentum",
        "others", "others[].kind", "others[].lr", "pair", "last", "last.kind", "last.momentum",
    ]  # fmt: skip
    assert "last: SGD | null (default null)" in lines


def test_a_config_may_contain_itself():
    class Tree(InputConfig):
        name: str = ""
        size: Literal[1, 2] = 1
        flag: bool = False
        children: "tuple[Tree, ...]" = ()

    Tree.model_rebuild(_types_namespace={"Tree": Tree})
    assert list(field_lines(Tree, 80)) == [
        "  name: str (default '')", "  size: 1 | 2 (default 1)", "  flag: bool (default false)",
        "  children: tuple[Tree, ...] (default ())",
    ]  # fmt: skip
    assert "children.0.nam = 'a': there is no such key" in refusal(Tree.from_values, {"children": [{"nam": "a"}]})


def test_a_value_that_looks_like_a_secret_is_not_shown():
    class Secretive(InputConfig):
        api_key: int = 0

    assert "hunter2" not in refusal(Secretive.from_values, {"api_key": "hunter2"})


class Judge(InputConfig):
    login: SecretStr | None = Field(None, min_length=9)
    num_calls: int = 1

    @model_validator(mode="after")
    def _check(self):
        if self.num_calls == 7:
            raise ValueError("not seven")
        return self


class Judged(InputConfig):
    judge: Judge = Judge()
    login: SecretStr = SecretStr("a default")


def test_a_secret_field_is_hidden_in_errors_help_and_the_record_of_a_run(monkeypatch):
    for settings in (["judge.login=hunter2"], ["judge.login=hunter2hunter2", "judge.num_calls=7"]):
        message = refusal(read_input, Judged, None, settings)
        assert "judge" in message
        assert "hunter2" not in message
    assert "  login: SecretStr (default **********)" in list(field_lines(Judged, 80))
    settings = ["judge.login=hunter2hunter2", 'judge={login="hunter2hunter2"}', "login=hunter2"]
    config = read_input(Judged, None, settings)
    assert config.judge.login.get_secret_value() == "hunter2hunter2"
    monkeypatch.setattr(sys, "argv", ["descant", *(word for setting in settings for word in ("--set", setting))])
    with RecipeContext("x", config=config, job=Recording()):
        found = describe_environment()
    assert found["command_line"] == [
        "descant", "--set", "judge.login=***", "--set", "judge=***", "--set", "login=***",
    ]  # fmt: skip
    assert "hunter2" not in json.dumps(found)


@pytest.mark.parametrize(
    ("name", "text", "place"),
    [
        ("c.toml", "a = 1\nb = }", "line 2, column 5: Invalid value"),
        ("c.toml", "a = 1\nb = [1", "line 2, column 7: "),
        ("c.json", '{"a": 1,\n "b" 2}', "line 2, column 6: Expecting ':' delimiter"),
        ("c.yaml", "a: 1\nb: [1\nc: 2", "line 3, column 2: "),
    ],
)
def test_syntax_errors_say_where(tmp_path, name, text, place):
    assert f"config {tmp_path / name}, {place}" in refusal(read_config, write(tmp_path / name, text))


def test_the_three_languages_say_the_same(tmp_path):
    values = {"label": "ü", "optimizer": {"lr": 0.5}}
    texts = {
        "c.toml": '\ufefflabel = "ü"\n[optimizer]\nlr = 0.5\n',
        "c.json": json.dumps(values),
        "c.yaml": "label: ü\noptimizer:\n  lr: 0.5\n",
    }
    for name, text in texts.items():
        assert read_config(write(tmp_path / name, text)) == values
        assert Config.load_from_file(tmp_path / name).optimizer.lr == 0.5


def test_config_files_that_cannot_be_used(tmp_path):
    assert "did you mean" in refusal(read_config, write(tmp_path / "config.toml", "").with_name("confg.toml"))
    assert "must end in .toml, .json" in refusal(read_config, tmp_path / "config.ini")
    assert "must hold keys with values" in refusal(read_config, write(tmp_path / "list.json", "[1]"))
    assert "the key 'a' stands twice in one" in refusal(read_config, write(tmp_path / "c.json", '{"a": 1, "a": 2}'))
    twice = refusal(read_config, write(tmp_path / "c.yaml", "a: 1\nb: {c: [{d: 1, d: 2}]}"))
    assert "line 2, column 16: the key 'd' stands twice in one object" in twice
    assert read_config(write(tmp_path / "c.yaml", "# nothing")) == {}
    (tmp_path / "latin.toml").write_bytes(b'a = "\xfc"')
    assert "cannot be read" in refusal(read_config, tmp_path / "latin.toml")


def test_settings_go_over_the_file_and_into_tables(tmp_path):
    file = write(tmp_path / "c.toml", "limit = 3\n[optimizer]\nlr = 1.0\n")
    config = read_input(Config, file, ["optimizer.lr=2e-4", "limit=null", 'stages=["a", "b"]', "label=x=y", "mode=7"])
    assert config == Config(optimizer=Optimizer(lr=2e-4), limit=None, stages=("a", "b"), label="x=y", mode=7)


@pytest.mark.parametrize("text", ["123", "1e-4", "true", "2024-01-01", "[a", "", "null ", "a = 1\nb = 2", '"a"b'])
def test_text_fields_take_the_text_as_it_was_written(text):
    assert read_input(Config, None, [f"label={text}"]).label == text


@given(st.one_of(st.integers(-(2**60), 2**60), st.booleans(), st.floats(allow_nan=False, allow_infinity=False)))
def test_plain_values_are_read_back(value):
    assert parse_value(json.dumps(value)) == value


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_is_a_value_of_a_setting(text):
    values = {}
    assert apply_setting(values, f"a.b={text}") == (("a", "b"), text)
    assert set(values) == {"a"}


def test_settings_that_cannot_be_read():
    for setting in ("label", "=1", "a..b=1", ".a=1"):
        assert "must be KEY=VALUE" in refusal(read_input, Config, None, [setting])
    assert "label is 'x', which has no keys" in refusal(read_input, Config, None, ["label=x", "label.y=1"])
    assert "give all of it as one table" in refusal(read_input, Config, None, ["label=x", "label.y=1"])
    assert "stages.0 = 1: must be a valid string" in refusal(read_input, Config, None, ["stages=[1]"])
    assert read_input(Config, None, ["limit=None"]).limit is None
    # a wrong value of another key does not change how a value is read
    assert "limit = 'q'" in refusal(read_input, Config, None, ["mode=7", "limit=q"])


# Files


def test_parameters_are_matched_by_annotation(tmp_path):
    recipe = load(tmp_path, SIMPLE)
    assert recipe.name == "mine"
    config = recipe.config_class(lr=2.0)
    assert recipe.run(RecipeContext("run", config=config)) == ("run", 2.0)


@pytest.mark.parametrize(
    ("signature", "expected"),
    [("", ()), ("c: Config", (1.0,)), ("x: Context", ("run",)), ("x: Context, c: Config", ("run", 1.0))],
)
@pytest.mark.parametrize("is_async", [True, False])
def test_any_of_the_two_and_string_annotations(tmp_path, signature, expected, is_async):
    text = f"""
from __future__ import annotations
from descant import recipes

@recipes.recipe_main
{"async " if is_async else ""}def main({signature}):
    return tuple(v for v in (locals().get("x") and x.name, locals().get("c") and c.lr) if v is not None)

class Config(recipes.InputConfig):
    lr: float = 1.0

class Context(recipes.RecipeContext):
    pass
"""
    recipe = load(tmp_path, text)
    config = recipe.config_class() if recipe.config_class else None
    assert recipe.run(recipe.context_class("run", config=config)) == expected


@pytest.mark.parametrize(
    ("signature", "reason"),
    [
        ("config", "parameter 'config' has no annotation"),
        ("config: int", "is annotated with <class 'int'>"),
        ("a: Config, b: Config", "'b' is a second config"),
        ("a: RecipeContext, b: RecipeContext", "'b' is a second context"),
        ("*a: Config", "cannot be given by name"),
        ("a: Config, b: RecipeContext, c=1", "parameter 'c' has no annotation"),
        ("a: 'Missing'", "annotations cannot be resolved"),
        ("a: Config = Config(lr=2)", "the default of 'a' would not be used"),
    ],
)
def test_parameters_that_cannot_be_matched(tmp_path, signature, reason):
    text = SIMPLE.replace("config: Config, ctx: RecipeContext", signature)
    message = refusal(load, tmp_path, text)
    assert reason in message
    assert "mine.py, line 7: main" in message


def test_a_file_without_a_main_with_two_with_a_syntax_error_or_not_there(tmp_path):
    assert "has no function under @recipe_main" in refusal(load, tmp_path, SIMPLE.replace("@recipe_main", ""))
    two = refusal(load, tmp_path, SIMPLE + "\n@recipe_main\ndef other(): ...\n")
    assert "has 2 functions under @recipe_main: main (line 7), other (line 11); keep one" in two
    assert "line 2, column 10: " in refusal(load, tmp_path, "x = 1\ndef main(:")
    assert "did you mean" in refusal(load_recipe, tmp_path / "mime.py")
    assert "has no main.py" in refusal(load_recipe, tmp_path)
    assert "line 7: main has a yield" in refusal(load, tmp_path, SIMPLE.replace("return", "yield"))
    assert "must end in .py" in refusal(load_recipe, write(tmp_path / "recipe.toml", ""))
    with pytest.raises(ConfigurationError, match="belongs on a function"):
        recipe_main(int)


def test_modules_beside_a_recipe_are_importable_and_imported_mains_do_not_count(tmp_path):
    write(tmp_path / "base.py", SIMPLE)
    write(tmp_path / "helper.py", "NAME = 'helped'")
    text = "from base import main as other, recipe_main\nimport helper\n@recipe_main\ndef mine(): return helper.NAME\n"
    assert load(tmp_path, text).run(RecipeContext("x")) == "helped"
    assert load(tmp_path, "from base import main", "json.py").function.__name__ == "main"  # and json stays json
    assert json.loads("1") == 1


def test_a_package_is_a_recipe(tmp_path):
    write(tmp_path / "package" / "__init__.py", "")
    write(tmp_path / "package" / "parts.py", "VALUE = 3")
    main = "from .parts import VALUE\nfrom descant.recipes import recipe_main\n@recipe_main\ndef main(): return VALUE\n"
    write(tmp_path / "package" / "main.py", main)
    recipe = load_recipe(tmp_path / "package")
    assert (recipe.name, recipe.run(RecipeContext("x"))) == ("package", 3)


# The context


class Recording(JobNotifier):
    def __init__(self):
        super().__init__()
        self.calls = []

    def report_progress(self, *arguments, **named):
        self.calls.append("progress")

    def report_error(self, error):
        self.calls.append(error)

    def complete(self):
        self.calls.append("complete")


async def test_a_context_tells_its_job_how_it_ended():
    job = Recording()
    async with RecipeContext("a", config=Config(label="b"), job=job) as ctx:
        assert recipe_of_run.get()["config"]["label"] == "b"
    ctx.close()
    assert job.calls == ["complete"]
    assert recipe_of_run.get() is None
    with pytest.raises(RuntimeError):
        async with RecipeContext("a", job=job):
            raise RuntimeError("no")
    assert job.calls[1:] == ["RuntimeError: no"]


def test_seed_name_and_directory_of_a_context(tmp_path):
    class Seeded(InputConfig):
        seed: int = 7

    assert RecipeContext(config=Seeded()).seed == 7
    assert RecipeContext(config=Seeded(), seed=3).seed == 3
    assert RecipeContext().seed == 0
    assert RecipeContext("try").run_dir.parent.name == "runs"
    assert RecipeContext("try").run_dir.name.startswith("try-")
    assert RecipeContext(run_dir=tmp_path / "x").run_dir == tmp_path / "x"
    for name in ("a/b", "..", " "):
        with pytest.raises(ConfigurationError, match="must be the name of a run"):
            RecipeContext(name)


def test_importing_recipes_does_not_import_torch():
    script = "import descant.recipes, descant.cli.run, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {"torch", "transformers", "numpy"}
