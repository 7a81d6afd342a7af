"""Stands in for ComfyUI's package `comfy_api`."""
