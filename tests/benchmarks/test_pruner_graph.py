"""The pruner's own graph, cut out of whole ones."""

import re

import numpy as np
import onnx
import onnxruntime
import pytest

from ptp.benchmarks.speed.pruner_graph import write_pruner
from ptp.bundle import open_bundle


@pytest.mark.parametrize(
    ("name", "file", "encoding"),
    [
        ("demo_bundle", "vision_encoder.onnx", "Conv"),
        ("branching_bundle", "vision_encoder.onnx", "Conv"),
        ("branching_bundle", "vision_encoder_onnxruntime.onnx", "Scan"),
    ],
)
def test_the_pruners_graph_is_the_vision_graph_without_encoder_and_projector(request, tmp_path, name, file, encoding):
    """Fed with the encoder's own values, it returns what the whole graph does."""

    bundle = open_bundle(request.getfixturevalue(name))
    write_pruner(bundle, tmp_path / "cut")
    whole = onnx.load(bundle.path(f"onnx/{file}"))
    cut = onnx.load(tmp_path / "cut" / file)
    assert encoding in {node.op_type for node in whole.graph.node}
    assert encoding not in {node.op_type for node in cut.graph.node}
    matrices = [x.name for x in cut.graph.initializer if len(x.dims) > 1]  # equal vectors are stored once
    assert not any(re.search(r"encoder\.(blocks|projector)", name) for name in matrices)
    own = {x.name for x in whole.graph.input}
    crossing = [x for x in cut.graph.input if x.name not in own]
    known = {x.name: x for x in whole.graph.value_info}
    whole.graph.output.extend(known[x.name] for x in crossing)
    session = onnxruntime.InferenceSession(whole.SerializeToString(), providers=["CPUExecutionProvider"])
    random = np.random.default_rng(0)
    feeds = {}
    for node in session.get_inputs():
        side = bundle.manifest.tiling.tile_size * 2
        fixed = {"image_sizes": [[side, side]], "tile_grid": [[2, 2]], "alpha": [0.5], "prefix_length": [3]}
        fixed["num_kept"] = [bundle.manifest.pruning.num_kept]
        kind = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(bool)": bool}[node.type]
        value = fixed.get(node.name, random.normal(size=node.shape))
        feeds[node.name] = np.broadcast_to(np.asarray(value, kind), node.shape)
    values = dict(zip([x.name for x in session.get_outputs()], session.run(None, feeds), strict=True))
    small = onnxruntime.InferenceSession(tmp_path / "cut" / file, providers=["CPUExecutionProvider"])
    inputs = {x.name: values.get(x.name, feeds.get(x.name)) for x in small.get_inputs()}
    for node, value in zip(small.get_outputs(), small.run(None, inputs), strict=True):
        np.testing.assert_allclose(value, values[node.name], rtol=1e-5, atol=1e-5)


def test_without_an_instruction_the_projector_of_the_kept_rows_is_not_the_pruners(full_bundle, tmp_path):

    write_pruner(open_bundle(full_bundle), tmp_path / "cut")
    cut = onnx.load(tmp_path / "cut" / "vision_encoder.onnx")
    outputs = {x.name for x in cut.graph.output}
    features = {x.name for x in onnx.load(full_bundle / "onnx/vision_encoder.onnx").graph.output}
    assert features < outputs, "and the rows that the projector gets"
    assert not any(x.name.startswith("encoder.projector") for x in cut.graph.initializer)
