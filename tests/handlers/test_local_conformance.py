"""The local engine does what sqlft relies on."""

from importlib.util import find_spec
from pathlib import Path

import pytest
from sqlft_local import Local

from sqlft.testing import HandlerConformance


class TestLocal(HandlerConformance):
    """On a tiny random model, in each way that `auto` can take."""

    handler = Local
    predict_options = {"max_tokens": 8}
    train_options = {"n_epochs": 3, "batch_size": 4}
    bad_messages = [("user", "a" * 5000)]

    @pytest.fixture(autouse=True)
    def _base(self, tiny: Path, processor: str) -> None:
        type(self).base = str(tiny)


@pytest.mark.skipif(find_spec("openvino_genai") is None, reason="openvino-genai is not installed")
class TestOpenVino(HandlerConformance):
    """Answers of OpenVINO."""

    handler = Local
    predict_options = {"max_tokens": 8, "backend": "openvino"}
    train_options = {"n_epochs": 3, "batch_size": 4}
    bad_messages = [("user", "a" * 5000)]

    @pytest.fixture(autouse=True)
    def _base(self, tiny: Path) -> None:
        type(self).base = str(tiny)
