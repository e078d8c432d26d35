"""MLFlowLogger: an MLflow tracking server, or its database."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from itertools import batched
from typing import Any
