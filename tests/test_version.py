"""One version, in lorkd_monailabel/__init__.py."""

import re
import tomllib

import lorkd_monailabel


def test_changelogs_newest_version_is_the_packages(root):
    text = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## \[?([^\]\s]+)\]? - (unreleased|\d{4}-\d{2}-\d{2})$", text, flags=re.MULTILINE)
    assert headings, "CHANGELOG.md has no heading such as `## [0.1.0] - unreleased`"
    assert headings[0][0] == lorkd_monailabel.__version__


def test_pyproject_takes_the_version_from_the_package(root):
    config = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    assert config["project"]["dynamic"] == ["version"]
    assert "version" not in config["project"]
    assert config["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "lorkd_monailabel.__version__"}


def test_package_init_holds_docstring_and_version_only(root):
    text = (root / "lorkd_monailabel" / "__init__.py").read_text(encoding="utf-8")
    statements = re.sub(r'^""".*?"""\n', "", text, flags=re.DOTALL).split()
    assert statements == ["__version__", "=", f'"{lorkd_monailabel.__version__}"']
