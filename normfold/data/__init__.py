"""Samples of the user: files, folders of images, loaders."""
