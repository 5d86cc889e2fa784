"""What to install for the parts of this library that not every user needs."""

from importlib.metadata import PackageNotFoundError, requires


def install(extra: str) -> str:
    """The command that installs the packages of an extra, wherever this library came from."""
    in_sources = f"pip install -e '.[{extra}]' in the sources of torch_crl"
    try:
        requirements = [each.split(";") for each in requires("torch-crl") or ()]
    except PackageNotFoundError:
        return in_sources
    packages = [
        f"'{package.strip()}'"
        for package, *conditions in requirements
        if any(f'extra == "{extra}"' in each.replace("'", '"') for each in conditions)
    ]
    return " ".join(["pip install", *packages]) if packages else in_sources
