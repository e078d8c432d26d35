"""WandbLogger: Weights & Biases, online or offline."""

from __future__ import annotations

import configparser
import hashlib
import netrc
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from shlex import quote
from typing import Any
from urllib.parse import urlsplit

from descant.table import Table
from descant.text import shortened
from descant.trackers.logger import STEP_KEY, RunInfo, TrackerLogger, require_extra
from descant.trackers.rows import MAX_CELL_LENGTH, bounded, checked_cell_length, tracker_rows, without_nan
from descant.trackers.server import check_answers

_DEFAULT_ADDRESS = "https://api.wandb.ai"
_RESERVED = ("_step", "_timestamp", "_runtime", "_wandb")
_MAX_TABLE_NAME = 75  # an artifact's name has 128 characters, with the run's id, and its file begins with a number
_MAX_GROUP_NAME = 128
_FINISH_TIMEOUT_S = 60


class WandbLogger(TrackerLogger):
    """Writes to a W&B run, with ``progress/step`` as the axis of every chart.

    W&B's own step counter only rises, so it is left alone: a late value is charted at its step, and the summary has the
    value of the latest step, not the one that came last; and the best one, where it is declared which values are
    better. The tables of all evaluations are one incremental table
    per key, with a column ``step``; NaN and infinity in cells are strings. ``WANDB_MODE=offline`` writes to
    ``<run_dir>/wandb`` (or ``WANDB_DIR``), for ``wandb sync`` later. Other settings are W&B's own environment
    variables. The console is not captured, W&B's own metadata (command line, git remote) is not collected, since
    secrets stand in it as they are, and W&B prints only warnings.

    Args:
        project_name: the project of the run.
        run_name: for people, since the run is found again by the id that descant gives it; by default the name of the
            run directory. It is also the name of the group of all runs that the logger is given, unless
            ``WANDB_RUN_GROUP`` is set.
        entity: user or team, W&B's default if None.
        max_cell_length: characters of a string or a cell that are written.

    Raises:
        ConfigurationError: wandb is not installed.
    """

    tracker = "wandb"

    def __init__(
        self,
        project_name: str,
        run_name: str | None = None,
        entity: str | None = None,
        *,
        max_cell_length: int = MAX_CELL_LENGTH,
    ) -> None:
        require_extra("wandb", "WandbLogger")
        self.project_name = project_name
        self.run_name = run_name
        self.entity = entity
        self.max_cell_length = checked_cell_length(max_cell_length)
        self._wandb_run: Any = None
        self._link: str | None = None
        self._offline_dir: str | None = None
        self._tables = WandbTables()
        self._latest: dict[str, tuple[int, float | str]] = {}
        self._with_best: set[str] = set()

    @property
    def training_monitoring_link(self) -> str | None:
        """The page of the run, once it has begun online."""
        return self._link

    @property
    def viewer(self) -> str | None:
        """What sends the run, once it has begun offline, to W&B."""
        return None if self._offline_dir is None else f"wandb sync {quote(self._offline_dir)}"

    def start(self, run: RunInfo) -> None:
        """Begin or continue the W&B run whose id is made from ``run.run_id``.

        Raises:
            ConnectionError: the server does not answer. W&B itself would not let the program end before it does.
        """
        with suppress(FileNotFoundError):
            self._finish_run(exit_code=1)
        if is_online() and not {"WANDB_HTTP_PROXY", "WANDB_HTTPS_PROXY"} & set(os.environ):
            check_answers(wandb_address())
        wandb = import_module("wandb")
        # its own metadata has command line and git remote with their secrets; our config has what is of use, masked
        settings = wandb.Settings(silent=True, console="off", disable_code=True, disable_git=True, x_disable_meta=True)
        if "WANDB_FINISH_TIMEOUT" not in os.environ:  # W&B waits for ever by itself, also when the program ends
            settings.finish_timeout, settings.finish_timeout_raises = _FINISH_TIMEOUT_S, True
        self._wandb_run = wandb.init(
            project=self.project_name,
            name=self.name_of(run),
            group=os.environ.get("WANDB_RUN_GROUP") or shortened(self.run_name or "", _MAX_GROUP_NAME) or None,
            entity=self.entity,
            id=_wandb_id(run.run_id),
            resume="allow",
            reinit="create_new",  # a run that the program has opened itself stays open
            dir=None if "WANDB_DIR" in os.environ else str(run.run_dir.resolve()),
            config=dict(run.config),
            settings=settings,
        )
        self._define_metrics(run.config)
        offline = self._wandb_run.settings.mode != "online"
        self.starts_empty = offline and self._is_alone()
        self._link = None if offline else self._wandb_run.url
        self._offline_dir = self._wandb_run.settings.sync_dir if offline else None
        self._tables = WandbTables()  # an incremental table belongs to one wandb.Run
        self.run = run

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Add settings to the run's config; a setting that has changed is replaced."""
        self._wandb_run.config.update(dict(config), allow_val_change=True)

    def write(self, step: int, time_s: float, metrics: Mapping[str, float | str], tables: Mapping[str, Table]) -> None:
        """Log one row of the history, and correct the summary where the row is late."""
        values = {_name(key): bounded(value, self.max_cell_length) for key, value in metrics.items()}
        values[STEP_KEY] = step
        row: dict[str, Any] = {**values, "_timestamp": time_s}
        for key, table in tables.items():
            if table.rows:
                shown = tracker_rows(table, step, self.max_cell_length)
                name, grown = self._tables.grown(key, shown)
                row[name] = grown
        self._wandb_run.log(row)
        self._check_files()
        late = {name for name in values if self._latest.get(name, (step,))[0] > step}
        self._latest |= {name: (step, value) for name, value in values.items() if name not in late}
        for name in late:
            summary, key = self._wandb_run.summary, name
            if name in self._with_best:
                summary, key = summary[name], "last"
            summary[key] = self._latest[name][1]

    def finish(self, outcome: str) -> None:
        """Finish the W&B run: as failed, unless training was completed or stopped."""
        if self._wandb_run is not None:
            self._check_files()
            self._wandb_run.summary.update({"outcome": outcome})
        self._finish_run(exit_code=0 if outcome in ("completed", "stopped") else 1)
        self.run = None

    def _define_metrics(self, config: Mapping[str, Any]) -> None:
        """The axis of all charts; and where a run declares which values of a metric are better, its best one is in the
        summary beside the latest: ``validation/loss.min`` and ``validation/loss.last``."""
        self._wandb_run.define_metric("*", step_metric=STEP_KEY)
        for spec in config.get("metrics") or ():
            if spec.get("better") and "*" not in spec["key"]:
                name, best = _name(spec["key"]), "min" if spec["better"] == "lower" else "max"
                self._wandb_run.define_metric(name, step_metric=STEP_KEY, summary=f"{best},last")
                self._with_best.add(name)

    def _is_gone(self) -> bool:
        """Whether there was a run offline, and its folder is not there any more."""
        return self._offline_dir is not None and not Path(self._offline_dir).exists()

    def _is_alone(self) -> bool:
        """Whether the folder of the run is the only one of its id: nothing that was written before is there."""
        settings = self._wandb_run.settings
        folders = Path(settings.wandb_dir).glob(f"*run-*-{settings.run_id}")
        return all(folder.resolve() == Path(settings.sync_dir).resolve() for folder in folders)

    def _check_files(self) -> None:
        if self._is_gone():
            raise FileNotFoundError(f"{self._offline_dir} was deleted")

    def _finish_run(self, exit_code: int) -> None:
        wandb_run, self._wandb_run = self._wandb_run, None
        if wandb_run is None:
            return
        try:
            wandb_run.finish(exit_code=exit_code)
        except TimeoutError as error:
            folder = wandb_run.settings.sync_dir
            raise TimeoutError(
                f"W&B has not taken everything in time; `wandb sync {quote(folder)}` sends it"
            ) from error


class WandbTables:
    """The incremental tables of one W&B run."""

    def __init__(self) -> None:
        self._tables: dict[str, Any] = {}

    def grown(self, key: str, rows: Table) -> tuple[str, Any]:
        """The table of a key with more rows, and its name; rows with other columns go to ``<name>-2`` and so on."""
        name, number = shortened(_name(key), _MAX_TABLE_NAME), 1
        while True:
            numbered = name if number == 1 else f"{name}-{number}"
            table = self._tables.get(numbered)
            if table is None:
                table = import_module("wandb").Table(
                    columns=list(rows.headers), log_mode="INCREMENTAL", allow_mixed_types=True
                )
                self._tables[numbered] = table
            if table.columns == rows.headers:
                break
            number += 1
        for row in rows.rows:
            table.add_data(*map(without_nan, row))
        return numbered, table


def _name(key: str) -> str:
    """The key as W&B takes it: ``_step`` becomes ``metric_step``, an empty name ``_``, and backslashes, at which its
    service crashes, and control characters become their code in hexadecimal."""
    name = re.sub(r"[\\\x00-\x1f\x7f]", lambda found: f"_x{ord(found[0]):x}_", key) or "_"
    return f"metric{name}" if name in _RESERVED else name


def _wandb_id(run_id: str) -> str:
    return run_id if re.fullmatch(r"[A-Za-z0-9_-]{1,64}", run_id) else hashlib.sha256(run_id.encode()).hexdigest()[:32]


def is_online() -> bool:
    """Whether W&B sends what it is given. Otherwise it writes to files only, or, if "disabled", nowhere."""
    return os.environ.get("WANDB_MODE") not in ("offline", "dryrun", "disabled")


def wandb_address() -> str:
    """``WANDB_BASE_URL``, or what ``wandb login --host`` has written to W&B's settings, or W&B's own."""
    folder = Path(os.environ.get("WANDB_CONFIG_DIR") or Path.home() / ".config" / "wandb").expanduser()
    settings = configparser.ConfigParser(interpolation=None)
    try:
        settings.read(folder / "settings", encoding="utf-8")
    except (configparser.Error, OSError, UnicodeDecodeError):
        settings.clear()
    recorded = settings.get("default", "base_url", fallback="")
    return os.environ.get("WANDB_BASE_URL") or recorded or _DEFAULT_ADDRESS


def has_wandb_login() -> bool:
    """Whether there is a key: ``WANDB_API_KEY`` or ``WANDB_IDENTITY_TOKEN_FILE`` is set, or it is where ``wandb login``
    puts it, in the netrc file (``NETRC``, ``~/.netrc``)."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    try:
        paths = [Path(given)] if (given := os.environ.get("NETRC")) else [Path("~/.netrc"), Path("~/_netrc")]
        path = next((path.expanduser() for path in paths if path.expanduser().exists()), None)
        found = None if path is None else netrc.netrc(path).authenticators(urlsplit(wandb_address()).netloc)
    except (netrc.NetrcParseError, OSError, RuntimeError, UnicodeDecodeError):
        return False
    return found is not None and bool(found[2])
