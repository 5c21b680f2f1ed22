"""peftly: parameter-efficient fine-tuning, from raw data to an adapter that other tools can load.

`__init__.pyi` lists the public names. Each is imported at its first use, so that `peftly --help` stays fast.
"""

import sys
from typing import Any

import lazy_loader

from peftly.object_names import missing_attribute

_load, _, __all__ = lazy_loader.attach_stub(__name__, __file__)

__version__ = "0.1.0"
__all__ += ["__version__"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return _load(name)
    message, is_known = missing_attribute(name, __all__)
    # `from peftly import LoraConfig` replaces an AttributeError by a text of its own, without the advice.
    is_import = is_known and sys._getframe(1).f_code.co_name == "_handle_fromlist"
    raise (ImportError if is_import else AttributeError)(message)


def __dir__() -> list[str]:
    return list(__all__)
