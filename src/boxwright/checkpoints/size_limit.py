"""A limit on the networks that a header may ask for."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import get_ident

from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from boxwright.config import require


@contextmanager
def parameter_limit(most: int) -> Iterator[None]:
    """Refuse modules that this thread builds in the block beyond so many numbers, before their memory is written.

    Raises:
        UserError: for more.
    """
    thread, left = get_ident(), most

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal left
        if get_ident() == thread and parameter is not None:
            left -= parameter.numel()
            require(left >= 0, f"its header asks for a network of over {most:,} numbers.")

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()
