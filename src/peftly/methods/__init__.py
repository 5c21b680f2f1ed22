"""One file per method, and the registry `METHODS`. May import: `injection`, `kernels`, `data`.

A new method is one file here and one entry of `METHODS` in `registry`. Several methods share `method` (the interface),
`low_rank`, `soft_prompt`, `initial_tokens`, `quantization_error` and `peft_files`, the settings in files of PEFT.

`__init__.pyi` lists the names that other packages use. Each is imported at its first use, so that the registry can be
read without torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
