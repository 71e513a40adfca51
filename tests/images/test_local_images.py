"""Which images there are, in which order they are built, and what makes a new archive of one."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.citadelbuy.platform.plugins.modules import local_images

REGISTRY = "citadelbuy.local"
IMAGES = Path(__file__).parents[2] / "images"


def write_image(root: Path, name: str, base: str = "scratch", label: str = "1") -> Path:
    """Write the folder of an image."""
    folder = root / name
    folder.mkdir(parents=True)
    lines = [f"FROM {base}", f'LABEL org.opencontainers.image.version="{label}"' if label else "", "COPY file /"]
    (folder / "Containerfile").write_text("\n".join(lines))
    (folder / "file").write_text(name)
    return folder


def read(root: Path) -> list[local_images.Image]:
    """Read the images of a folder, in order, with their keys."""
    found = [local_images.read_image(path.parent, REGISTRY) for path in sorted(root.glob("*/Containerfile"))]
    ordered = local_images.in_order({image.name: image for image in found})
    local_images.give_keys(ordered, root / "cache")
    return ordered


def keys(root: Path) -> dict[str, str]:
    """Return the key of each image of a folder."""
    return {image.name: image.key for image in read(root)}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two images that start from a third, and one from scratch."""
    write_image(tmp_path, "a", f"{REGISTRY}/base:1")
    write_image(tmp_path, "b", f"{REGISTRY}/base:1")
    write_image(tmp_path, "base")
    write_image(tmp_path, "other")
    return tmp_path


def test_base_comes_first(root: Path) -> None:
    assert [image.name for image in read(root)] == ["base", "a", "b", "other"]


def test_named_image_brings_its_base(root: Path) -> None:
    assert [image.name for image in local_images.with_bases(read(root), ["b"])] == ["base", "b"]


def test_unknown_name_is_refused(root: Path) -> None:
    with pytest.raises(local_images.ImageError, match="there is no image nope; there are base, a, b, other"):
        local_images.with_bases(read(root), ["nope"])


def test_key_follows_own_files_only(root: Path) -> None:
    before = keys(root)
    (root / "a" / "file").write_text("changed")
    after = keys(root)
    assert {name for name in after if after[name] != before[name]} == {"a"}


def test_key_follows_the_base(root: Path) -> None:
    before = keys(root)
    (root / "base" / "file").chmod(0o755)
    after = keys(root)
    assert {name for name in after if after[name] != before[name]} == {"base", "a", "b"}


@pytest.mark.parametrize("name", ["README.md", "node_modules/x", "__pycache__/x", ".ruff_cache/x"])
def test_key_ignores_what_is_no_part_of_an_image(root: Path, name: str) -> None:
    before = keys(root)
    (root / "a" / name).parent.mkdir(exist_ok=True)
    (root / "a" / name).write_text("x")
    assert keys(root) == before


def test_missing_tag_is_refused(tmp_path: Path) -> None:
    write_image(tmp_path, "a", label="")
    with pytest.raises(
        local_images.ImageError, match=r"image a: .*/a/Containerfile has no tag; add a line such as LABEL"
    ):
        read(tmp_path)


def test_missing_base_is_refused(tmp_path: Path) -> None:
    write_image(tmp_path, "a", f"{REGISTRY}/base:1")
    with pytest.raises(local_images.ImageError, match="image a: it starts FROM base:1, which is no image here"):
        read(tmp_path)


def test_circle_is_refused(tmp_path: Path) -> None:
    write_image(tmp_path, "a", f"{REGISTRY}/b:1")
    write_image(tmp_path, "b", f"{REGISTRY}/a:1")
    with pytest.raises(local_images.ImageError, match="a -> b -> a"):
        read(tmp_path)


def test_images_of_the_checkout_are_complete() -> None:
    names = {image.name for image in read(IMAGES)}
    stores = {"postgres", "redis", "elasticsearch"}
    assert names >= {"debian", "api", "web", *stores, *(f"{store}-exporter" for store in stores)}
