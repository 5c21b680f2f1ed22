"""peftly: parameter-efficient fine-tuning, from raw data to an adapter that other tools can load.

The public names stand in `__init__.pyi`. Each is imported at its first use, so that `peftly --help` answers at once.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

__version__ = "0.1.0"
__all__ += ["__version__"]
