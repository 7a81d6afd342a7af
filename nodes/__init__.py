"""Thin ComfyUI nodes over `rddm_core`.

A node declares its inputs and outputs with `comfy_api.latest`, converts ComfyUI's tensors (`layout`) and calls one
stage of `rddm_core.pipeline`. All else that it needs of ComfyUI comes from `host`, the only module that imports
`comfy` and `folder_paths`. `rddm_core` is imported inside `execute`: loading the pack stays quick.
"""
