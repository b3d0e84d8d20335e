"""From a folder on this machine to a repository on the hub."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitInfo, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

from lorasmith.errors import InputError, RunError

# what the hub's client raises where nothing answers: the base error of the HTTP library that it uses
_TRANSPORT: type[Exception] = HfHubHTTPError.__bases__[0]


@dataclass(frozen=True)
class Destination:
    """A repository on the hub and the commit that is to be made there; private None leaves it as it is."""

    name: str
    private: bool | None = None
    token: str | bool | None = None
    revision: str | None = None
    create_pr: bool = False
    message: str | None = None
    description: str | None = None


def fetch_file(destination: Destination, name: str, folder: Path) -> None:
    """Put the repository's own file of this name into folder, where it has one.

    Raises RunError where the hub does not answer or refuses.
    """
    api = HfApi(token=destination.token)
    with _explained(destination.name):
        if api.file_exists(destination.name, name, revision=destination.revision):
            cached = api.hf_hub_download(destination.name, name, revision=destination.revision)
            shutil.copyfile(cached, folder / name)


def upload(folder: Path, destination: Destination) -> CommitInfo:
    """Commit the files of folder to the repository, which is made where there is none.

    Raises InputError for a name that the hub does not take, RunError where it does not answer or refuses.
    """
    api = HfApi(token=destination.token)
    with _explained(destination.name):
        made = api.create_repo(destination.name, private=destination.private, exist_ok=True)
        return api.upload_folder(
            repo_id=made.repo_id,
            folder_path=folder,
            commit_message=destination.message or "Upload an adapter with lorasmith",
            commit_description=destination.description,
            revision=destination.revision,
            create_pr=destination.create_pr,
        )


@contextmanager
def _explained(name: str) -> Iterator[None]:
    try:
        yield
    except HFValidationError as error:
        raise InputError(f"{name} is no name of a repository on the hub; give owner/name") from error
    except OfflineModeIsEnabled as error:
        raise RunError(
            f"{name} was not uploaded: offline mode is on; unset HF_HUB_OFFLINE, or save to a folder"
        ) from error
    except HfHubHTTPError as error:
        reason = f"the hub refused ({error.response.status_code}: {str(error).splitlines()[0]})"
        raise RunError(f"{name} was not uploaded: {reason}; log in with a token that may write there") from error
    except (_TRANSPORT, OSError) as error:
        raise RunError(f"{name} was not uploaded: the hub cannot be reached ({error}); save to a folder") from error
