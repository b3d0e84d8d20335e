"""lorasmith: parameter-efficient fine-tuning that tells the truth about what it did.

A name is imported when it is first asked for, from the module that __init__.pyi says, so that a command or a kernel
does not wait for what it has no use for; transformers and what it brings take seconds.
"""

from importlib.util import find_spec

import lazy_loader

from lorasmith.import_after import import_after
from lorasmith.version import VERSION

__version__ = VERSION

_imported, __dir__, _names = lazy_loader.attach_stub(__name__, __file__)
__all__ = [name for name in _names if name != "why_absent"]

# from_pretrained then knows our format, and a pickled model its attention, if nothing else of lorasmith is asked for
for _registered in ("quantizer", "packed_attention"):
    import_after("transformers.modeling_utils", f"lorasmith.models.{_registered}")


def __getattr__(name: str) -> object:
    """A name of __init__.pyi; one line for one that PEFT has and lorasmith has not: what it is not, and what to use."""
    if name in __all__:
        return _imported(name)
    # Python asks for a module of the package here, too, before it imports it
    if not name.startswith("_") and find_spec(f"{__name__}.{name}") is None:
        reason = _imported("why_absent")(name)
        if reason is not None:
            raise ImportError(f"lorasmith has no {name}: {reason} (docs/peft-names.md)")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
