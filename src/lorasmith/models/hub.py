"""From a folder or a hub name to a folder on this machine."""

import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from lorasmith.errors import ModelError

_WEIGHTS_AND_TEXT = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken"]
_CODE = ["*.py"]
# other formats and copies of the weights that some repositories hold beside the model
_LEFT_OUT = ["*/*", "consolidated*"]
# owner/name, or the name alone of the models that came before owners, such as gpt2
_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


@dataclass(frozen=True)
class Source:
    """Where a model comes from: a folder or a hub name, with what the hub asks for."""

    name: str | Path
    revision: str | None = None
    token: str | None = None
    offline: bool = False
    trust_remote_code: bool = False
    cache_dir: str | Path | None = None
    force_download: bool = False


def fetch(source: Source) -> Path:
    """The folder that holds the model, downloaded first where source names a hub repository.

    Raises ModelError for a missing folder or repository, with what to do.
    """
    path = Path(source.name).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        raise ModelError(f"{path} is a file; give the folder that holds it (config.json beside *.safetensors)")
    name = str(source.name)
    if not _NAME.fullmatch(name):
        raise ModelError(f"model folder {name} does not exist; check the path, or give a hub name such as owner/model")
    return Path(_download(source, name))


def _download(source: Source, name: str) -> str:
    try:
        return snapshot_download(
            name,
            revision=source.revision,
            token=source.token,
            local_files_only=source.offline,
            cache_dir=source.cache_dir,
            force_download=source.force_download,
            allow_patterns=_WEIGHTS_AND_TEXT + (_CODE if source.trust_remote_code else []),
            ignore_patterns=_LEFT_OUT,
        )
    except GatedRepoError as error:
        raise ModelError(f"hub model {name} is gated; accept its terms on its page and pass a token") from error
    except RevisionNotFoundError as error:
        raise ModelError(f"hub model {name} has no revision {source.revision!r}; check its branches") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ModelError(f"{name} is neither a folder here nor a hub model you may read; check the name") from error
    except LocalEntryNotFoundError as error:
        why = "offline was asked for" if source.offline else "the hub cannot be reached"
        raise ModelError(f"{name} is no folder here, not in the hub's cache, and {why}; download it first") from error
    except (HfHubHTTPError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"hub model {name} could not be downloaded: {reason}") from error
