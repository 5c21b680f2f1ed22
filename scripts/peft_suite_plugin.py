"""Pytest plugin of `peft_suite.py`: PEFT's tests on peftly, offline, with a line for each outcome.

`peft` and the modules below it are stand-ins: a name that peftly.peft has is that, and any other name is an object that
raises `NotInPeftly` when it is used. Tests of methods that peftly does not have are deselected by their parameters.

Environment: PEFT_SUITE_PACKAGE (peftly; or peft, for the baseline), PEFT_SUITE_RECORD (file of the outcomes),
PEFT_SUITE_SECONDS (most seconds of a test).
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import json
import os
import signal
import sys
import traceback
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PACKAGE = os.environ.get("PEFT_SUITE_PACKAGE", "peftly")
SECONDS = int(os.environ.get("PEFT_SUITE_SECONDS", "60"))

METHOD_CONFIGS = {
    *("LoraConfig", "IA3Config", "PromptTuningConfig", "PromptEncoderConfig", "PrefixTuningConfig"),
    *("PeftConfig", "PromptLearningConfig"),
}
"""Configurations of the methods that peftly has."""


class NotInPeftly(Exception):  # noqa: N818 - a fact, as in the result
    """A test uses a name of PEFT that peftly.peft does not have."""


class TooLong(BaseException):
    """A test ran longer than the limit."""


class _Missing(type):
    """Class of the names of PEFT that peftly.peft does not have: they exist, and any use raises `NotInPeftly`."""

    collects = True

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if _Missing.collects:  # a parameter of a test, which is deselected
            return type.__call__(cls)
        raise NotInPeftly(cls.path)

    def __instancecheck__(cls, instance: Any) -> bool:
        if cls.path.endswith(("Config", "Wrapper")):  # PEFT's helpers ask this of every test
            return False
        raise NotInPeftly(f"isinstance {cls.path}")

    def __subclasscheck__(cls, subclass: Any) -> bool:
        return cls in getattr(subclass, "__mro__", ())

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return missing(f"{cls.path}.{name}")

    def __getitem__(cls, key: Any) -> Any:
        raise NotInPeftly(cls.path)

    def __iter__(cls) -> Iterator[Any]:
        raise NotInPeftly(cls.path)

    def __contains__(cls, key: Any) -> bool:
        raise NotInPeftly(cls.path)


def missing(path: str) -> type:
    return _Missing(path.rpartition(".")[2], (), {"path": path, "__module__": path.rpartition(".")[0]})


def available(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


HELPERS = {
    "infer_device": lambda: "cpu",
    "INCLUDE_LINEAR_LAYERS_SHORTHAND": "all-linear",
    "CONFIG_NAME": "adapter_config.json",
    "WEIGHTS_NAME": "adapter_model.bin",
    "SAFETENSORS_WEIGHTS_NAME": "adapter_model.safetensors",
    "DUMMY_MODEL_CONFIG": {"model_type": "custom"},
    "is_transformers_ge_v5": True,
    "is_transformers_ge_v5_1_0": True,
    "is_transformers_ge_v5_6_0": True,
    "is_bnb_available": lambda: available("bitsandbytes"),
    "is_bnb_4bit_available": lambda: available("bitsandbytes"),
    **{
        f"is_{name}_available": lambda: False
        for name in ["aqlm", "auto_awq", "diffusers", "eetq", "gptqmodel", "hqq", "inc"]
    },
    **{f"is_{name}_available": lambda: False for name in ["optimum", "torchao", "te", "xpu"]},
}
"""Names of PEFT's modules that say something about the environment."""


class _Module(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__version__":
            raise AttributeError(name)
        if name == "__version__":
            return "0.21.2"
        import peftly.peft
        import peftly.peft.helpers

        if name in HELPERS:
            value = HELPERS[name]
        else:
            owner = peftly.peft.helpers if hasattr(peftly.peft.helpers, name) else peftly.peft
            try:
                value = getattr(owner, name)
            except (AttributeError, ImportError):
                value = missing(f"{self.__name__}.{name}")
        setattr(self, name, value)
        return value


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds `peft`, and every module below it that PEFT has."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name == "peft" or name.startswith("peft."):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> types.ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


class _Diffusers(types.ModuleType):
    __version__ = "0.0.0"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        class Skips:
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                pytest.skip("needs diffusers")

            from_pretrained = classmethod(__init__)

        return Skips


def local_data(name: str, *args: Any, **kwargs: Any) -> Any:
    """Return a small data set with the columns of the one on the Hub."""
    import datasets
    from PIL import Image

    if "quotes" in name:
        quotes = ["Be yourself; everyone else is already taken.", "So many books, so little time."] * 20
        return datasets.DatasetDict({"train": datasets.Dataset.from_dict({"quote": quotes, "author": ["A", "B"] * 20})})
    if "cats-image" in name:
        images = [Image.new("RGB", (64, 48), (200, 80, 40))]
        return datasets.DatasetDict({"test": datasets.Dataset.from_dict({"image": images})})
    raise OSError(f"needs the Hub: data set {name}")


def pytest_configure(config: pytest.Config) -> None:
    import datasets

    datasets.load_dataset = local_data
    if not available("diffusers"):
        sys.modules["diffusers"] = _Diffusers("diffusers")
    if PACKAGE == "peftly":
        sys.meta_path.insert(0, _Finder())
        import transformers.utils.import_utils as checks

        checks.is_peft_available.cache_clear() if hasattr(checks.is_peft_available, "cache_clear") else None


def _other_method(value: Any, depth: int = 0) -> str | None:
    """Return the name of a configuration in the parameters of a test whose method peftly does not have."""
    if inspect.isclass(value) and value.__name__.endswith("Config"):
        is_of_peft = value.__module__.partition(".")[0] == "peft"
        return value.__name__ if is_of_peft and value.__name__ not in METHOD_CONFIGS else None
    if isinstance(value, str):
        return None
    if isinstance(value, list | tuple | dict) and depth < 4:
        inner = value.values() if isinstance(value, dict) else value
        return next((found for one in inner if (found := _other_method(one, depth + 1))), None)
    kind = type(value)
    return _other_method(kind) if kind.__module__.startswith("peft") else None


class _AllKnown(dict[str, int]):
    """The record of the models that PEFT's tests have fetched already: all, so that no test looks for the network."""

    def __contains__(self, key: object) -> bool:
        return True

    def __missing__(self, key: str) -> int:
        return 1


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for name, module in list(sys.modules.items()):
        if name.endswith("testing_utils") and hasattr(module, "_HUB_MODEL_ACCESSES"):
            module._HUB_MODEL_ACCESSES = _AllKnown()
    _Missing.collects = False
    chosen, others = [], []
    for item in items:
        params = getattr(getattr(item, "callspec", None), "params", {})
        (others if _other_method(list(params.values())) else chosen).append(item)
    items[:] = chosen
    config.hook.pytest_deselected(items=others)
    _record({"deselected": len(others)})


def _record(entry: dict[str, Any]) -> None:
    if path := os.environ.get("PEFT_SUITE_RECORD"):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: Any) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TooLong(f"more than {SECONDS} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Iterator[None]:
    outcome = yield
    report = outcome.get_result()
    if report.when != "call" and report.passed:
        return
    entry = {"id": report.nodeid, "when": report.when, "seconds": round(report.duration, 2)}
    entry["outcome"] = "xfailed" if hasattr(report, "wasxfail") and report.skipped else report.outcome
    if call.excinfo is not None and report.failed:
        frames = traceback.extract_tb(call.excinfo.tb)
        lines = [f"{Path(frame.filename).name}:{frame.lineno}: {(frame.line or '').strip()[:160]}" for frame in frames]
        entry |= {"error": call.excinfo.typename, "message": str(call.excinfo.value)[:600], "trace": lines[-4:]}
        entry["test_line"] = next((line for line in reversed(lines) if line.startswith("test")), "")
    elif report.skipped:
        entry["message"] = str(report.longrepr[-1] if isinstance(report.longrepr, tuple) else report.longrepr)[:200]
    _record(entry)


def pytest_collectreport(report: Any) -> None:
    if report.failed:
        _record({"id": report.nodeid, "when": "collect", "outcome": "failed", "error": "collect",
                 "message": str(report.longrepr)[-600:]})  # fmt: skip
