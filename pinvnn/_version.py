"""The installed version."""


def version() -> str:
    """As the package metadata has it; "0+unknown" for a source tree on the path that was never installed."""
    # Imported here: importlib.metadata would be most of the time of `import pinvnn`.
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed("pinvnn")
    except PackageNotFoundError:
        return "0+unknown"
