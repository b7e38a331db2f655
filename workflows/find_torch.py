"""Print constraints for an installed torch 2.11 or later and its torchvision; nothing if none."""

from importlib import metadata

OLDEST = (2, 11)


def main() -> None:
    """Print one ``name==version`` line per package that is to be kept."""
    try:
        torch = metadata.version("torch")
    except metadata.PackageNotFoundError:
        return
    if tuple(int(part) for part in torch.split(".")[:2]) < OLDEST:
        return
    print(f"torch=={torch}")
    try:
        print(f"torchvision=={metadata.version('torchvision')}")
    except metadata.PackageNotFoundError:
        return


if __name__ == "__main__":
    main()
