"""Uploads a folder to the Hugging Face hub."""

from pathlib import Path

from t2t_vit.errors import UserError


def push(folder: Path, repository: str) -> str:
    """Makes a repository if there is none, and commits the files of a folder to it.

    Args:
        folder: what to upload.
        repository: USER/NAME. huggingface_hub's own settings say as whom, and HF_ENDPOINT to which hub.

    Returns:
        A sentence with the address.

    Raises:
        UserError: the hub refuses, or cannot be reached. The folder stays.
    """
    from huggingface_hub import HfApi  # here, because it takes a second to import

    api = HfApi()
    try:
        api.create_repo(repository, exist_ok=True)
        done = api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload by t2t-vit export")
    except Exception as error:  # its own, and those of the HTTP library that it happens to use
        cause = error.__cause__ or error  # which says more than that something failed
        reason = str(cause).strip().splitlines()
        raise UserError(
            f"{repository} could not be pushed: {reason[0] if reason else type(cause).__name__}. The export is in "
            f"{folder}; log in with `hf auth login`, and upload it with `hf upload {repository} {folder}`."
        ) from error
    return f"pushed: {done.commit_url}"
