"""Stands in for ComfyUI's `folder_paths`: the parts that the pack uses, with the host's own behaviour."""

from __future__ import annotations

import os

models_dir = ""  # set by the tests
folder_names_and_paths: dict[str, tuple[list[str], set[str]]] = {}


def add_model_folder_path(folder_name: str, full_folder_path: str, is_default: bool = False) -> None:
    """Add a folder; a new name starts with no extensions, which lists every file."""
    paths, _ = folder_names_and_paths.setdefault(folder_name, ([], set()))
    if full_folder_path not in paths:
        paths.insert(0 if is_default else len(paths), full_folder_path)


def get_folder_paths(folder_name: str) -> list[str]:
    """The folders of that name."""
    return list(folder_names_and_paths[folder_name][0])


def get_filename_list(folder_name: str) -> list[str]:
    """Files in them and below, relative to them."""
    folders, extensions = folder_names_and_paths[folder_name]
    found = set()
    for folder in folders:
        for directory, _, files in os.walk(folder):
            found |= {os.path.relpath(os.path.join(directory, name), folder) for name in files}
    return sorted(name for name in found if not extensions or os.path.splitext(name)[1].lower() in extensions)


def get_full_path(folder_name: str, filename: str) -> str | None:
    """The first file of that name, or None; it never leaves the folders."""
    relative = os.path.relpath(os.path.join("/", filename), "/")
    candidates = (os.path.join(folder, relative) for folder in folder_names_and_paths[folder_name][0])
    return next((path for path in candidates if os.path.isfile(path)), None)
