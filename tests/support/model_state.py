"""The observable state of a model."""

import torch

HOOKS = [name for name in vars(torch.nn.Module()) if name.endswith(("_hooks", "_hooks_with_kwargs", "_always_called"))]


def observable_state(model) -> dict:
    """Return all that a user can observe of a model: configuration, modules, attributes, hooks, flags and tensors."""
    state = {"config": model.config.to_dict(), "generation": model.can_generate() and model.generation_config.to_dict()}
    state["attributes"] = sorted(vars(model))
    state["attention"] = model.config._attn_implementation
    for path, module in model.named_modules():
        state[path] = (id(module), type(module), sorted(module._modules), sorted(vars(module)))
        state[f"{path} hooks"] = {hooks: list(getattr(module, hooks)) for hooks in HOOKS}
        state[f"{path} flags"] = (module.training, getattr(module, "gradient_checkpointing", None))
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        state[f"tensor {name}"] = (
            id(tensor),
            tensor.requires_grad,
            tensor.dtype,
            tensor.detach().reshape(-1).view(torch.uint8).numpy().tobytes(),
        )
    return state
