"""Where an adapter lies: a folder, or a hub repository that is fetched."""

import logging
from pathlib import Path
from typing import Any

from lorasmith.models.hub import Source, fetch

# what PEFT's users pass on loading that changes nothing here: an adapter's tensors go where the layer is that they
# stand beside, in its type or in float32, and no tensor is made twice
_WITHOUT_EFFECT = {
    *("torch_device", "device_map", "max_memory", "offload_folder", "offload_dir", "offload_index", "offload_buffers"),
    *("low_cpu_mem_usage", "torch_dtype", "dtype", "user_agent", "proxies", "etag_timeout", "endpoint"),
}

log = logging.getLogger(__name__)


def adapter_folder(
    model_id: str | Path,
    revision: str | None = None,
    token: str | bool | None = None,
    use_auth_token: str | bool | None = None,
    local_files_only: bool = False,
    subfolder: str | None = None,
    cache_dir: str | Path | None = None,
    force_download: bool = False,
    **others: Any,
) -> Path:
    """The folder of an adapter that is named by a path or a hub repository.

    Of others a warning names those that are not known; PEFT drops such arguments without a word.
    """
    unknown = sorted(name for name, value in others.items() if name not in _WITHOUT_EFFECT and value)
    if unknown:
        log.warning("arguments that loading an adapter does not know are ignored: %s", ", ".join(unknown))
    secret = token if token is not None else use_auth_token
    source = Source(
        model_id,
        revision=revision,
        token=secret if isinstance(secret, str) else None,
        offline=local_files_only,
        cache_dir=cache_dir,
        force_download=force_download,
    )
    folder = fetch(source)
    return folder / subfolder if subfolder else folder
