"""What tells one network's numbers from another's."""

import hashlib

import torch
from torch import nn


def digest_of_module(module: nn.Module) -> str:
    """SHA-256 of every parameter and buffer of ``module``: their names, types, shapes and bytes, wherever they lie."""
    found = hashlib.sha256()
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()
