"""timm's own tests of its models, run on ours.

They are in timm's source distribution, not in the installed package:
`pip download --no-binary :all: --no-deps timm==1.0.31`, unpacked, and `TIMM_SDIST=timm-1.0.31`.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from psvit_ray.arch.presets import PRESETS
from psvit_ray.model.entrypoints import PRESET_NAMES

SDIST = os.environ.get("TIMM_SDIST")
if not SDIST:
    pytest.skip("TIMM_SDIST names no unpacked source of timm", allow_module_level=True)


def _timms_tests() -> Any:
    spec = importlib.util.spec_from_file_location(
        "timms_test_models", Path(SDIST or "") / "tests" / "test_models.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm's markers are unknown here
        spec.loader.exec_module(module)
    return module


TIMM = _timms_tests()
# Each with the arguments that timm gives it.
TESTS: dict[str, Callable[[str], None]] = {
    "default_cfgs": lambda name: TIMM.test_model_default_cfgs_non_std(name, 1, "meta"),
    "forward": lambda name: TIMM.test_model_forward(name, 1),
    "backward": lambda name: TIMM.test_model_backward(name, 2),
    "forward_fx": lambda name: TIMM.test_model_forward_fx(name, 1),
    "backward_fx": lambda name: TIMM.test_model_backward_fx(name, 2),
    "intermediates": lambda name: TIMM.test_model_forward_intermediates(name, 1),
    "features_only": lambda name: TIMM.test_model_forward_intermediates_features(name, 1),
    "prune": lambda name: TIMM.test_prune_intermediate_layers_contract(name),
    "to_empty": lambda name: TIMM.test_model_init_weights_after_to_empty(name, {"img_size": 64}),
    "torchscript": lambda name: TIMM.test_model_forward_torchscript(name, 1),
    "fx_torchscript": lambda name: TIMM.test_model_forward_fx_torchscript(name, 1),
}


GRIDS = {"intermediates": ValueError, "features_only": AssertionError, "prune": ValueError}
SCRIPTED = {"torchscript": NotImplementedError, "fx_torchscript": RuntimeError}


def _cases() -> Iterator[Any]:
    for test in TESTS:
        for name in PRESET_NAMES:
            marks = []
            if test in SCRIPTED:
                reason = "torch.jit.script, which torch has deprecated, is refused"
                marks = [pytest.mark.xfail(raises=SCRIPTED[test], strict=True, reason=reason)]
            elif test in GRIDS and PRESETS[name].pooling == "1d":
                reason = "a 1-D pool leaves no grid of tokens"
                marks = [pytest.mark.xfail(raises=GRIDS[test], strict=True, reason=reason)]
            yield pytest.param(test, name, marks=marks)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("test", "name"), list(_cases()))
def test_timms_test_passes_but_for_scripting_and_grids(test: str, name: str) -> None:
    TESTS[test](name)
