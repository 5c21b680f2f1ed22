"""peftly: parameter-efficient fine-tuning, from raw data to an adapter that other tools can load.

`__init__.pyi` lists the public names. Each is imported at its first use, so that `peftly --help` stays fast.
"""

import lazy_loader

__getattr__, _, __all__ = lazy_loader.attach_stub(__name__, __file__)

__version__ = "0.1.0"
__all__ += ["__version__"]


def __dir__() -> list[str]:
    return list(__all__)
