"""FOLDER NAME: writes NAME-1.0-py3-none-any.whl and the index page that offers it."""

import pathlib
import sys
import zipfile

folder, name = pathlib.Path(sys.argv[1]), sys.argv[2]
folder.mkdir(parents=True)
wheel = f"{name}-1.0-py3-none-any.whl"
with zipfile.ZipFile(folder / wheel, "w") as archive:
    archive.writestr(f"{name}.py", "")
    info = f"{name}-1.0.dist-info"
    archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    archive.writestr(f"{info}/RECORD", "")
(folder / "index.html").write_text(f'<!DOCTYPE html><html><body><a href="{wheel}">{wheel}</a></body></html>')
