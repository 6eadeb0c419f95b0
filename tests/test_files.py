"""Rules for every file of the tree: short modules, no path of one machine."""

import re

LINES = 300
# Spelt in pieces, or this file would name them.
MACHINE_PATH = re.compile(
    "|".join(
        (
            r"(?<![\w.])/(?:work|root)" + "/",
            r"(?<![\w.])/(?:home|Users)" + r"/[a-z]",
            r"(?<![\w.])/tmp" + r"/[a-z]",
            r"\.\./" + "shared",
            r"\." + "library/",
            r"/opt/" + "pypi",
        )
    )
)


def test_no_module_is_long(root, project_files):
    lengths = {
        path.as_posix(): len((root / path).read_text(encoding="utf-8").splitlines())
        for path in project_files
        if path.suffix == ".py"
    }
    assert len(lengths) > 4
    long = [f"{name}: {length} lines" for name, length in sorted(lengths.items()) if length > LINES]
    assert not long, f"over {LINES} lines, more than one purpose? {long}"


def test_no_file_names_a_path_of_one_machine(root, project_files):
    found = []
    for path in project_files:
        try:
            text = (root / path).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # weights and images
        found += [
            f"{path}:{number}: {line.strip()[:120]}"
            for number, line in enumerate(text.splitlines(), start=1)
            if MACHINE_PATH.search(line)
        ]
    assert not found, "a path that users do not have:\n" + "\n".join(found)


def test_machine_paths_are_recognised():
    for path in ("/wo" + "rk/main/x", "/ro" + "ot/.cache", "'/tm" + "p/out'", "../sha" + "red/data"):
        assert MACHINE_PATH.search(f"open {path}")
    for text in ("https://example.org/wo" + "rk/x", "framework/x", "model/ro" + "ot", "tests/ro" + "ot/x", "/t" + "mp"):
        assert not MACHINE_PATH.search(text)
