"""Settings of the whole suite, made before torch is imported, and the tiny models that it runs on."""

import atexit
import os
import shutil
import signal
import tempfile

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two test processes on two cores
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a suite in the background of a shell; its programs inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest
from hypothesis import settings
from tiny_model import save_model
from trackers import mlflow_server  # noqa: F401 - a fixture of the whole session
from transformers import GPT2Config, Qwen3Config
from xdist.scheduler import LoadFileScheduling

os.environ["WANDB_MODE"] = "disabled"  # only tests of trackers use one, and they set their own
for name in ("WANDB_API_KEY", "MLFLOW_TRACKING_URI", "TENSORBOARD_LOGGING_DIR"):
    os.environ.pop(name, None)
_FOLDER = tempfile.mkdtemp(prefix="descant-trackers-")  # one per process: Trackio reads it when it is imported
atexit.register(shutil.rmtree, _FOLDER, ignore_errors=True)
for name in ("TRACKIO_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "XDG_CONFIG_HOME"):
    os.environ[name] = os.path.join(_FOLDER, name.lower())  # nothing goes into the home directory

settings.register_profile("descant", deadline=None, derandomize=True)
settings.load_profile("descant")

WITH_MLFLOW_SERVER = ("e2e/test_four_trackers.py", "contract/test_loggers.py", "unit/test_loggers_trackers.py")


class OneMLflowServer(LoadFileScheduling):
    """Runs each file of tests in one process, and all that need an MLflow server, which starts slowly, in the same."""

    def _split_scope(self, nodeid):
        file = super()._split_scope(nodeid)
        return "with an MLflow server" if file.endswith(WITH_MLFLOW_SERVER) else file


def pytest_xdist_make_scheduler(config, log):
    return OneMLflowServer(config, log)


def pytest_collection_modifyitems(items):
    """The demo takes longest and starts first, so that the rest of the suite runs in parallel to it."""
    items.sort(key=lambda item: item.path.name != "test_four_trackers.py")


@pytest.fixture(scope="session")
def qwen3_dir(tmp_path_factory):
    """A Qwen3 of two layers with grouped queries and tied embeddings."""
    config = Qwen3Config(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=256,
        tie_word_embeddings=True,
    )
    return save_model(tmp_path_factory.mktemp("models") / "qwen3", config)


@pytest.fixture(scope="session")
def gpt2_dir(tmp_path_factory):
    """A GPT-2 of two layers with dropout everywhere."""
    config = GPT2Config(
        n_embd=32, n_layer=2, n_head=4, n_positions=256, resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.1
    )
    return save_model(tmp_path_factory.mktemp("models") / "gpt2", config)


@pytest.fixture(params=["qwen3", "gpt2"])
def model_dir(request):
    """Each family of models in turn."""
    return request.getfixturevalue(f"{request.param}_dir")
