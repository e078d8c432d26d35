"""Directories that are replaced: whole, only where they may be, where links lead, and whatever kills the process."""

import os
import random
import subprocess
import sys
from contextlib import suppress

import pytest

from descant.directories import written_whole
from descant.engine.model_files import check_is_model
from descant.errors import SaveError

REPLACES = """
import sys
from pathlib import Path
from descant.directories import written_whole
for number in range(10**6):
    with written_whole(Path(sys.argv[1]), lambda _: None) as written:
        for name in "abcd":
            (written / name).write_text(str(number))
    print(number, flush=True)
"""


def write(path, text, check=check_is_model):
    with written_whole(path, check) as written:
        (written / "config.json").write_text(text)
        (written / "model.safetensors").write_text(text)


def contents(path):
    return {file.name: file.read_text() for file in path.iterdir()}


def test_a_kill_leaves_the_old_or_the_new_one_whole_and_the_next_save_clears_up(tmp_path):
    chance, target = random.Random(0), tmp_path / "best"
    for _ in range(6):
        child = subprocess.Popen([sys.executable, "-c", REPLACES, str(target)], stdout=subprocess.PIPE)
        for _ in range(chance.randrange(1, 40)):
            child.stdout.readline()
        child.kill()
        child.wait()
        child.stdout.close()
        found = contents(target)
        assert sorted(found) == list("abcd")
        assert len(set(found.values())) == 1
    for kind in ("new", "old"):
        (tmp_path / f".best.0123abcd.{kind}").mkdir()
    (tmp_path / ".best.mine").mkdir()  # not a name of ours
    (tmp_path / ".other.0123abcd.new").mkdir()  # of another save
    write(target, "1", lambda _: None)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".best.mine", ".other.0123abcd.new", "best"]


def test_what_a_living_process_writes_is_not_cleared_up(tmp_path):
    with written_whole(tmp_path / "best", check_is_model) as first:
        write(tmp_path / "best", "second")
        assert first.is_dir()
        (first / "config.json").write_text("first")
    assert contents(tmp_path / "best") == {"config.json": "first"}


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_save_that_fails_leaves_what_was_there(tmp_path, monkeypatch, can_exchange):
    if not can_exchange:  # as on NFS
        monkeypatch.setattr("descant.directories._exchange", lambda first, second: False)
    target = tmp_path / "best"
    write(target, "old")
    write(target, "new")
    assert contents(target)["config.json"] == "new"
    with pytest.raises(ZeroDivisionError), written_whole(target, check_is_model):
        raise ZeroDivisionError
    with pytest.raises(SaveError, match=r"No space left.*as it was"), written_whole(target, check_is_model):
        raise OSError(28, "No space left on device")
    rename, calls = os.rename, []

    def rename_once(source, destination):
        calls.append(source)
        if len(calls) == 2:
            raise OSError(5, "Input/output error")
        rename(source, destination)

    if not can_exchange:
        monkeypatch.setattr(os, "rename", rename_once)
        with pytest.raises(SaveError, match="Input/output error"):
            write(target, "newest")
        assert len(calls) == 3
    assert contents(target) == {"config.json": "new", "model.safetensors": "new"}
    assert list(tmp_path.iterdir()) == [target]


def test_a_kill_between_two_renames_is_repaired_by_the_next_save(tmp_path):
    target, hidden = tmp_path / "best", tmp_path / ".best.0123abcd.old"
    write(target, "old")
    target.rename(hidden)
    with suppress(ZeroDivisionError), written_whole(target, check_is_model):
        assert contents(target)["config.json"] == "old"
        raise ZeroDivisionError
    assert contents(target)["config.json"] == "old"


def test_links_are_followed_to_the_disk_that_they_mean(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    (tmp_path / "link").symlink_to(disk / "model")
    with pytest.raises(SaveError, match=r"link is a link to .*model, which does not exist"):
        write(tmp_path / "link", "1")
    (disk / "model").mkdir()
    write(tmp_path / "link", "1")
    assert (tmp_path / "link").is_symlink()
    assert contents(disk / "model")["config.json"] == "1"
    assert [path.name for path in disk.iterdir()] == ["model"]
    (tmp_path / "unmounted").symlink_to(tmp_path / "nowhere")
    with pytest.raises(SaveError, match="unmounted is a link to"):
        write(tmp_path / "unmounted" / "model", "1")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    with pytest.raises(SaveError, match="circle is a link to"):
        write(tmp_path / "circle", "1")


def test_files_and_the_working_directory_are_refused(tmp_path, monkeypatch):
    file = tmp_path / "notes.txt"
    file.write_text("mine")
    for path in (file, file / "model"):
        with pytest.raises(SaveError, match=r"notes\.txt"):
            write(path, "1")
    assert file.read_text() == "mine"
    (tmp_path / "empty" / "below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "empty" / "below")
    for path in (tmp_path / "empty", tmp_path / "empty" / "below"):
        with pytest.raises(SaveError, match="the working directory"):
            write(path, "1")
    (tmp_path / "empty" / "below").rmdir()  # a callback worked in a directory that is gone
    write(tmp_path / "model", "1")
    with pytest.raises(SaveError, match="where a disk is mounted"):
        write(tmp_path / "model" / ".." / ".." / ".." / ".." / ".." / ".." / "..", "1")


@pytest.mark.parametrize(
    ("files", "named"),
    [
        (["run.sqlite", "checkpoints/best/config.json"], r"not a model's"),
        ([".git/HEAD", "README.md", "train.py"], r"not a model's"),
        (["config.json", "model.safetensors", "README.md"], "README.md"),  # written by hand: there is no adapter
        (["config.json", "model.safetensors", "optimizer.pt"], "optimizer.pt"),  # a checkpoint to resume from
        (["config.json", "model.safetensors", "results/eval.json"], "results"),
        (["config.json", "model.safetensors", "embeddings.safetensors"], "embeddings.safetensors"),
        (["config.json"], r"not a whole saved model: it has only 'config\.json'"),
        (["model.safetensors"], "not a whole saved model"),
        (["config.json", "model.safetensors", "\x1b[2J"], r"'\\x1b\[2J'"),
    ],
)
def test_what_is_not_a_models_is_never_deleted(tmp_path, files, named):
    for file in files:
        (tmp_path / "target" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "target" / file).write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SaveError, match=named):
        write(tmp_path / "target", "1")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "files",
    [
        [],
        ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"],
        ["config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
         "model.safetensors.index.json", "vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json"],
        ["config.json", "pytorch_model.bin", "tokenizer.model", "chat_template.jinja"],
        ["config.json", "model.safetensors", "additional_chat_templates/tool_use.jinja"],
        ["README.md", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json"],
    ],
)  # fmt: skip
def test_a_saved_model_is_replaced(tmp_path, files):
    for file in files:
        (tmp_path / "target" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "target" / file).write_text("old")
    write(tmp_path / "target", "new")
    assert contents(tmp_path / "target") == {"config.json": "new", "model.safetensors": "new"}
