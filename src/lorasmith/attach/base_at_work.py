"""The bare base at work on data while one looks at what the adapted layers read and give: for starts that need data."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager

from torch import Tensor

from lorasmith.attach.adapters import Adapters
from lorasmith.models.modes import kept_modes, note_trainability

# gets a layer's path, its input and its output, and may return another output
See = Callable[[str, Tensor, Tensor], Tensor | None]


@contextmanager
def base_watched(book: Adapters, paths: Iterable[str], see: See) -> Iterator[None]:
    """The base alone, in evaluation mode and without a parameter that trains; see is called as layers at paths run.

    When the block ends, also by an error, all is as it was.
    """
    with ExitStack() as stack:
        stack.enter_context(book.disabled())
        stack.enter_context(kept_modes(book.model))
        book.model.eval()
        stack.callback(note_trainability(book.model))
        book.model.requires_grad_(False)
        modules = dict(book.adapted())
        for path in paths:
            hook = modules[path].register_forward_hook(lambda _, given, y, path=path: see(path, given[0], y))
            stack.callback(hook.remove)
        yield
