from __future__ import annotations

import pytest

from eavatar.settings import EvaluateSettings
from eavatar.tables.evaluate import evaluate
from eavatar.tables.table import metrics
from tests.scenes.ball import Subject, make_subject

SETTINGS = EvaluateSettings(lpips_net="alex", lpips_required=False, pictures=4)


@pytest.fixture(scope="session")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """The ball, evaluated, with its table; no LPIPS weights, wherever the tests run."""
    made = make_subject(tmp_path_factory.mktemp("ball"))
    results, output = made.results, made.results / "tables" / "full"
    stale = output / "pictures" / "old.png"
    stale.parent.mkdir(parents=True)
    stale.touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(tmp_path_factory.mktemp("torch")))
        avatar = results / "splat" / "full"
        evaluate(SETTINGS, "avatar", avatar, results / "capture", results / "face", output)
    metrics("ball", {"full": output / "images.csv"}, results / "metrics.csv")
    return made
