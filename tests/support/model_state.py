"""Everything of a model that a user could notice."""

import torch

HOOKS = [name for name in vars(torch.nn.Module()) if name.endswith(("_hooks", "_hooks_with_kwargs", "_always_called"))]


def everything(model) -> dict:
    """All that a user could notice of a model."""
    found = {"config": model.config.to_dict(), "generation": model.can_generate() and model.generation_config.to_dict()}
    found["attributes"] = sorted(vars(model))
    found["attention"] = model.config._attn_implementation
    for path, module in model.named_modules():
        found[path] = (id(module), type(module), sorted(module._modules), sorted(vars(module)))
        found[f"{path} hooks"] = {hooks: list(getattr(module, hooks)) for hooks in HOOKS}
        found[f"{path} flags"] = (module.training, getattr(module, "gradient_checkpointing", None))
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        found[f"tensor {name}"] = (id(tensor), tensor.requires_grad, tensor.dtype, tensor.detach().numpy().tobytes())
    return found
